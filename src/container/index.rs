//! The index of a sharded checkpoint: JSON, read without trusting it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::tree::{MAX_NAME_BYTES, MAX_TENSORS};
use super::{Tree, Value, ValueId};
use crate::pickle::{Budget, Full, MAX_VALUE_BYTES, allocated};

/// An index: which file holds which tensor, in its order, and what else is in it, as values of the tree.
pub(super) struct Index {
    pub(super) weights: Vec<(String, String)>,
    pub(super) rest: Vec<(ValueId, ValueId)>,
    /// Bytes of memory that `weights` takes.
    pub(super) memory: usize,
    /// The values in `rest`.
    pub(super) tree: Tree,
    /// Memory that all of it takes.
    pub(super) budget: Budget,
}

impl Index {
    /// Bytes of memory that a tensor takes, but for its name: here, among the names in order, and among those of its shard.
    const TENSOR: usize = 2 * size_of::<(String, String)>() + 3 * size_of::<&str>();

    /// Reads an index.
    ///
    /// # Errors
    /// What is wrong, with line and column.
    pub(super) fn parse(json: &[u8]) -> serde_json::Result<Index> {
        let tree = Tree { values: Vec::new(), root: 0, loose: Vec::new() };
        let mut index = Index { weights: Vec::new(), rest: Vec::new(), memory: 0, tree, budget: Budget::default() };
        let mut parser = serde_json::Deserializer::from_slice(json);
        Top(&mut index).deserialize(&mut parser)?;
        parser.end()?;
        let mut names: Vec<&str> = index.weights.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        match names.array_windows().find(|[first, second]| first == second) {
            // JSON libraries keep the last.
            Some([twice, _]) => {
                let shown = &twice[..twice.floor_char_boundary(MAX_NAME_BYTES)];
                Err(de::Error::custom(format_args!("the name {shown:?} occurs twice")))
            }
            None => Ok(index),
        }
    }
}

/// Accounts for memory.
fn take<E: de::Error>(budget: &mut Budget, bytes: usize) -> std::result::Result<(), E> {
    budget.take(bytes).map_err(too_large)
}

/// What is said where there is no memory left.
fn too_large<E: de::Error>(Full: Full) -> E {
    E::custom(format_args!("it takes more than {MAX_VALUE_BYTES} bytes of memory, the limit of this reader"))
}

/// The whole index.
struct Top<'i>(&'i mut Index);

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let Top(index) = self;
        let mut weights = false;
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                take(&mut index.budget, 2 * size_of::<(ValueId, ValueId)>())?;
                let key = Json(index).text(&key)?;
                let value = map.next_value_seed(Json(index))?;
                index.rest.push((key, value));
            } else if std::mem::replace(&mut weights, true) {
                return Err(de::Error::duplicate_field("weight_map"));
            } else {
                map.next_value_seed(Weights(index))?;
            }
        }
        if weights { Ok(()) } else { Err(de::Error::missing_field("weight_map")) }
    }
}

/// The `weight_map`.
struct Weights<'i>(&'i mut Index);

impl<'de> DeserializeSeed<'de> for Weights<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Weights<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensor names and file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let Weights(index) = self;
        while let Some((name, file)) = map.next_entry::<String, String>()? {
            if index.weights.len() >= MAX_TENSORS {
                return Err(de::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
            }
            let pieces = allocated(name.len()) + allocated(file.len());
            take(&mut index.budget, pieces)?;
            index.budget.take_table(Index::TENSOR).map_err(too_large)?;
            index.memory += pieces + Index::TENSOR;
            index.weights.push((name, file));
        }
        Ok(())
    }
}

/// Any value, which becomes one of the tree; the parser bounds its depth.
struct Json<'i>(&'i mut Index);

impl Json<'_> {
    fn add<E: de::Error>(self, value: Value) -> std::result::Result<ValueId, E> {
        take(&mut self.0.budget, value.memory())?;
        let values = &mut self.0.tree.values;
        self.0.budget.push(values, value).map_err(too_large)?;
        Ok((values.len() - 1) as ValueId)
    }

    fn text<E: de::Error>(self, text: &str) -> std::result::Result<ValueId, E> {
        take(&mut self.0.budget, allocated(16 + text.len()))?;
        self.add(Value::Str(text.into()))
    }
}

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = ValueId;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<ValueId, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = ValueId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> std::result::Result<ValueId, E> {
        self.add(Value::None)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> std::result::Result<ValueId, E> {
        self.add(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> std::result::Result<ValueId, E> {
        self.add(Value::Int(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> std::result::Result<ValueId, E> {
        self.add(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> std::result::Result<ValueId, E> {
        self.add(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<ValueId, E> {
        self.text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<ValueId, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = items.next_element_seed(Json(self.0))? {
            self.0.budget.push(&mut ids, id).map_err(too_large)?;
        }
        self.add(Value::List(ids))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<ValueId, A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = entries.next_key::<Cow<'de, str>>()? {
            let key = Json(self.0).text(&key)?;
            let value = entries.next_value_seed(Json(self.0))?;
            self.0.budget.push(&mut pairs, (key, value)).map_err(too_large)?;
        }
        self.add(Value::Map(pairs))
    }
}
