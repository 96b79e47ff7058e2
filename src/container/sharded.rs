//! Sharded checkpoints, as the Hugging Face libraries write them: an index (`model.safetensors.index.json`,
//! `pytorch_model.bin.index.json`) that tells of each tensor which file of the same folder it is in.
//!
//! Read as transformers does: the shards in the order of their names, each of them whole, so that tensors which the index
//! does not list are there too. What the index lists has to be there, and no tensor may be in two shards.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value as Json;

use super::gather::{Gather, MAX_FILES, folder_of, inside};
use super::tree::MAX_TENSORS;
use super::{Container, Contents, Source, Value, ValueId, part};
use crate::error::{Error, Result};
use crate::pickle;

/// The largest index read, in bytes; that of a model of a hundred thousand tensors has ten million.
pub const MAX_INDEX_BYTES: usize = 64 << 20;

/// Why a sharded checkpoint cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardedProblem {
    /// The index is larger than this reader takes.
    #[error("it has {size} bytes, past the limit of {MAX_INDEX_BYTES} for an index of shards")]
    TooLarge {
        /// Its size.
        size: u64,
    },
    /// The index is no JSON object with a `weight_map`.
    #[error("the index of shards is malformed: {reason}; get it again")]
    Index {
        /// What the JSON parser says, with line and column.
        reason: String,
    },
    /// The index names more files than this reader opens.
    #[error("the index names more than {MAX_FILES} shards, the limit of this reader")]
    TooMany,
    /// The name of a shard leads out of the folder.
    #[error("the index names the shard {shard:?}, which is no plain file name: get the index again")]
    Name {
        /// The name.
        shard: String,
    },
    /// A shard is not in the folder.
    #[error(
        "the shard {shard:?}, which should hold {tensors} of {of} tensors, is not beside the index: get it, and put it there"
    )]
    Missing {
        /// The file's name.
        shard: String,
        /// How many tensors the index says it holds.
        tensors: usize,
        /// How many tensors the index lists in all.
        of: usize,
    },
    /// A shard is something else than a dictionary of tensors.
    #[error("the shard {shard:?} holds no dictionary of tensors: get it again")]
    NoDictionary {
        /// The file's name.
        shard: String,
    },
    /// A shard lacks a tensor.
    #[error(
        "the shard {shard:?} does not hold the tensor {tensor:?}, which the index says is there: index and shards are not of one checkpoint; get all of them again"
    )]
    NotInShard {
        /// The tensor.
        tensor: String,
        /// The file's name.
        shard: String,
    },
    /// Two shards hold a tensor of the same name.
    #[error("the tensor {tensor:?} is in both {first:?} and {second:?}: take away the shard that does not belong here")]
    Twice {
        /// The tensor.
        tensor: String,
        /// The file that is read first.
        first: String,
        /// The file that is read after it.
        second: String,
    },
}

/// An index: which file holds which tensor, in its order, and what else is in it.
struct Index {
    weights: Vec<(String, String)>,
    rest: Vec<(String, Json)>,
}

/// The text pairs of a JSON object in order; a name that occurs twice is an error, where JSON libraries keep the last.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor names and file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs, A::Error> {
                let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
                while let Some((name, file)) = map.next_entry::<String, String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(de::Error::custom(format_args!("the name {name:?} occurs twice")));
                    }
                    if pairs.len() >= MAX_TENSORS {
                        return Err(de::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
                    }
                    pairs.push((name, file));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Index;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a weight_map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Index, A::Error> {
                let (mut weights, mut rest) = (None, Vec::new());
                while let Some(key) = map.next_key::<String>()? {
                    if key != "weight_map" {
                        rest.push((key, map.next_value()?));
                    } else if weights.replace(map.next_value::<Pairs>()?.0).is_some() {
                        return Err(de::Error::duplicate_field("weight_map"));
                    }
                }
                Ok(Index { weights: weights.ok_or_else(|| de::Error::missing_field("weight_map"))?, rest })
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// Whether a file is an index of shards, or tries to be one: a JSON object that speaks of a `weight_map`.
pub(super) fn is_index(file: &[u8]) -> bool {
    const KEY: &[u8] = b"\"weight_map\"";
    // A safetensors file may begin with the same byte, but its seventh and eighth are zero.
    let is_text = file.trim_ascii_start().starts_with(b"{") && !file.iter().take(8).any(|&byte| byte == 0);
    is_text && file[..file.len().min(MAX_INDEX_BYTES)].windows(KEY.len()).any(|window| window == KEY)
}

/// Reads the shards that `index` names.
pub(super) fn open(index: Source) -> Result<Contents> {
    let path = index.path.clone();
    let error = |problem| Error::Sharded { path: path.clone(), problem };
    if index.map.len() > MAX_INDEX_BYTES {
        return Err(error(ShardedProblem::TooLarge { size: index.map.len() as u64 }));
    }
    // An upper bound of the values in it, each of which takes many times its bytes in memory.
    if index.map.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count() > pickle::MAX_NODES {
        let reason = format!("it holds more than {} values", pickle::MAX_NODES);
        return Err(error(ShardedProblem::Index { reason }));
    }
    let Index { weights, rest } = serde_json::from_slice(&index.map)
        .map_err(|problem| error(ShardedProblem::Index { reason: problem.to_string() }))?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weights {
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.len() > MAX_FILES {
        return Err(error(ShardedProblem::TooMany));
    }
    let mut gather = Gather { sources: vec![index], ..Gather::default() };
    let (mut root, mut metadata) = (Vec::new(), Vec::new());
    let mut found: HashMap<String, &str> = HashMap::new();
    for (&shard, listed) in &shards {
        let name = || shard.to_owned();
        let file = inside(folder_of(&path), shard);
        let file = file.ok_or_else(|| error(ShardedProblem::Name { shard: name() }))?;
        if !file.exists() {
            return Err(error(ShardedProblem::Missing { shard: name(), tensors: listed.len(), of: weights.len() }));
        }
        let source = Source::open(&file)?;
        let part = part(&source.path, &source.map)?;
        let is_safetensors = part.container == Container::Safetensors;
        gather.sources.push(source);
        let top = gather.add(part, gather.sources.len() - 1, 0)?;
        let Value::Map(entries) = &gather.values[top as usize] else {
            return Err(error(ShardedProblem::NoDictionary { shard: name() }));
        };
        let mut own = None;
        for &(key, value) in entries {
            let Value::Str(text) = &gather.values[key as usize] else {
                root.push((key, value));
                continue;
            };
            match &gather.values[value as usize] {
                Value::Map(_) if is_safetensors => {
                    own = Some(value);
                    continue;
                }
                Value::Tensor(_) => {
                    if let Some(first) = found.insert(text.to_string(), shard) {
                        let (tensor, first) = (text.to_string(), first.to_owned());
                        return Err(error(ShardedProblem::Twice { tensor, first, second: name() }));
                    }
                }
                _ => {}
            }
            root.push((key, value));
        }
        if let Some(tensor) = listed.iter().find(|tensor| found.get(**tensor) != Some(&shard)) {
            return Err(error(ShardedProblem::NotInShard { tensor: (*tensor).to_owned(), shard: name() }));
        }
        if let Some(own) = own {
            metadata.push((gather.text(shard), own));
        }
    }
    // What every shard says of itself is said once.
    let metadata = match metadata.split_first() {
        Some((&(_, first), rest)) if rest.iter().all(|&(_, own)| texts(&gather, own) == texts(&gather, first)) => {
            Some(first)
        }
        Some(_) => Some(gather.value(Value::Map(metadata))),
        None => None,
    };
    if let Some(metadata) = metadata {
        root.push((gather.text("__metadata__"), metadata));
    }
    for (key, value) in rest {
        root.push((gather.text(&key), json(&mut gather, value)));
    }
    let root = gather.value(Value::Map(root));
    Ok(gather.contents(Container::Sharded, root))
}

/// The pairs of texts in a mapping.
fn texts(gather: &Gather, id: ValueId) -> Vec<(&Value, &Value)> {
    let value = |id: ValueId| &gather.values[id as usize];
    match value(id) {
        Value::Map(entries) => entries.iter().map(|&(key, text)| (value(key), value(text))).collect(),
        _ => Vec::new(),
    }
}

/// A JSON value as a value of the tree; the parser has bounded its depth.
fn json(gather: &mut Gather, value: Json) -> ValueId {
    let value = match value {
        Json::Null => Value::None,
        Json::Bool(b) => Value::Bool(b),
        Json::Number(n) => match n.as_i64() {
            Some(n) => Value::Int(n),
            None => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Str(text.into()),
        Json::Array(items) => Value::List(items.into_iter().map(|item| json(gather, item)).collect()),
        Json::Object(entries) => {
            Value::Map(entries.into_iter().map(|(key, value)| (gather.text(&key), json(gather, value))).collect())
        }
    };
    gather.value(value)
}
