//! What a checkpoint holds besides tensors, as JSON.

use serde_json::{Map, Value as Json, json};

use crate::container::{Tree, Value, ValueId};

/// The largest number of values that are shown; what goes beyond is replaced by `"..."`.
pub const MAX_VALUES_SHOWN: usize = 10_000;

/// The largest number of bytes of text that are shown, all values together.
const MAX_TEXT_SHOWN: usize = 4 << 20;

/// The deepest nesting shown.
const MAX_SHOWN_DEPTH: usize = 32;

/// The values of the tree by key. A file whose top is no mapping has one entry, `value`.
pub(super) fn of(tree: &Tree) -> Map<String, Json> {
    let mut render = Render { tree, left: MAX_VALUES_SHOWN, text: MAX_TEXT_SHOWN };
    match render.json(tree.root, 0) {
        Some(Json::Object(object)) => object,
        Some(other) => Map::from_iter([("value".to_owned(), other)]),
        None => Map::new(),
    }
}

struct Render<'t> {
    tree: &'t Tree,
    left: usize,
    text: usize,
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
            Value::Str(text) => self.text(text),
            Value::Name(name) => {
                let name = self.text(name);
                json!({"__class__": name})
            }
            Value::Bytes(bytes) => json!(format!("{} bytes", bytes.len())),
            Value::List(items) | Value::Set(items) => {
                let shown = self.list(items, depth);
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
            Value::Module(module) => {
                let mut object = Map::new();
                object.insert("__class__".into(), self.text(&module.class));
                self.entries(&module.entries, &mut object, depth);
                // What every module has (hooks and the like) tells nothing.
                let own = |&(key, _): &(ValueId, ValueId)| !tree.key_text(key).starts_with('_');
                let rest: Vec<_> = module.rest.iter().copied().filter(own).collect();
                self.entries(&rest, &mut object, depth);
                Json::Object(object)
            }
            Value::Object(found) => {
                let mut object = Map::new();
                object.insert("__class__".into(), self.text(&found.class));
                let args = self.list(&found.args, depth);
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
                let items = self.list(&found.items, depth);
                if !items.is_empty() {
                    object.insert("__items__".into(), Json::Array(items));
                }
                self.entries(&found.entries, &mut object, depth);
                Json::Object(object)
            }
        })
    }

    /// A text, as long as there is room for it.
    fn text(&mut self, text: &str) -> Json {
        if text.len() > self.text {
            self.text = 0;
            return json!("...");
        }
        self.text -= text.len();
        json!(text)
    }

    /// The values of a list that are no tensors, as long as there is room for them.
    fn list(&mut self, items: &[ValueId], depth: usize) -> Vec<Json> {
        let mut shown = Vec::new();
        for &item in items {
            shown.extend(self.json(item, depth + 1));
            if self.left == 0 {
                shown.push(json!("..."));
                break;
            }
        }
        shown
    }

    fn entries(&mut self, entries: &[(ValueId, ValueId)], object: &mut Map<String, Json>, depth: usize) {
        for &(key, value) in entries {
            if self.left == 0 {
                object.insert("...".into(), json!("..."));
                return;
            }
            if let Some(value) = self.json(value, depth + 1) {
                let key = self.tree.key_text(key).into_owned();
                self.text = self.text.saturating_sub(key.len());
                object.insert(key, value);
                if self.text == 0 {
                    self.left = 0;
                }
            }
        }
    }
}
