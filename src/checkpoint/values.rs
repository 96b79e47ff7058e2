//! What a checkpoint holds besides tensors, as JSON.

use serde_json::{Map, Value as Json, json};

use crate::container::{Tree, Value, ValueId};

/// The largest number of values that are shown; what goes beyond is replaced by `"..."`.
pub const MAX_VALUES_SHOWN: usize = 10_000;

/// The deepest nesting shown.
const MAX_SHOWN_DEPTH: usize = 32;

/// The values of the tree by key. A file whose top is no mapping has one entry, `value`.
pub(super) fn of(tree: &Tree) -> Map<String, Json> {
    let mut render = Render { tree, left: MAX_VALUES_SHOWN };
    match render.json(tree.root, 0) {
        Some(Json::Object(object)) => object,
        Some(other) => Map::from_iter([("value".to_owned(), other)]),
        None => Map::new(),
    }
}

struct Render<'t> {
    tree: &'t Tree,
    left: usize,
}

impl Render<'_> {
    /// The value without its tensors; `None` if nothing but tensors is in it.
    fn json(&mut self, id: ValueId, depth: usize) -> Option<Json> {
        if self.left == 0 || depth > MAX_SHOWN_DEPTH {
            return Some(json!("..."));
        }
        let tree = self.tree;
        let value = tree.value(id);
        if matches!(value, Value::Tensor(_)) {
            return None;
        }
        self.left -= 1;
        Some(match value {
            Value::Tensor(_) => return None,
            Value::None => Json::Null,
            Value::Bool(b) => json!(b),
            Value::Int(n) => json!(n),
            Value::BigInt(bytes) => json!(format!("integer of {} bytes", bytes.len())),
            Value::Float(x) if x.is_finite() => json!(x),
            Value::Float(x) => json!(x.to_string()),
            Value::Str(text) => json!(text),
            Value::Bytes(bytes) => json!(format!("{} bytes", bytes.len())),
            Value::List(items) | Value::Set(items) => {
                let shown: Vec<Json> = items.iter().filter_map(|&item| self.json(item, depth + 1)).collect();
                if shown.is_empty() && !items.is_empty() {
                    return None;
                }
                Json::Array(shown)
            }
            Value::Map(entries) => {
                let mut object = Map::new();
                self.entries(entries, &mut object, depth);
                if object.is_empty() && !entries.is_empty() {
                    return None;
                }
                Json::Object(object)
            }
            Value::Object(found) => {
                let mut object = Map::new();
                object.insert("__class__".into(), json!(found.class));
                let args: Vec<Json> = found.args.iter().filter_map(|&arg| self.json(arg, depth + 1)).collect();
                if !args.is_empty() {
                    object.insert("__args__".into(), Json::Array(args));
                }
                for &state in &found.state {
                    match tree.value(state) {
                        Value::Map(entries) => self.entries(entries, &mut object, depth),
                        _ => {
                            if let Some(state) = self.json(state, depth + 1) {
                                object.insert("__state__".into(), state);
                            }
                        }
                    }
                }
                let items: Vec<Json> = found.items.iter().filter_map(|&item| self.json(item, depth + 1)).collect();
                if !items.is_empty() {
                    object.insert("__items__".into(), Json::Array(items));
                }
                self.entries(&found.entries, &mut object, depth);
                Json::Object(object)
            }
        })
    }

    fn entries(&mut self, entries: &[(ValueId, ValueId)], object: &mut Map<String, Json>, depth: usize) {
        for &(key, value) in entries {
            if self.left == 0 {
                object.insert("...".into(), json!("..."));
                return;
            }
            if let Some(value) = self.json(value, depth + 1) {
                object.insert(self.tree.key_text(key), value);
            }
        }
    }
}
