//! Sharded checkpoints, as the Hugging Face libraries write them: an index (`model.safetensors.index.json`,
//! `pytorch_model.bin.index.json`) that tells of each tensor which file of the same folder it is in.
//!
//! Read as transformers does: the shards in the order of their names, each of them whole, so that tensors which the index
//! does not list are there too. What the index lists has to be there, and no tensor may be in two shards.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::gather::{Gather, MAX_FILES, folder_of, inside};
use super::index::Index;
use super::{Container, Contents, Source, Value, ValueId, part, too_large};
use crate::error::{Error, Result};
use crate::pickle::allocated;

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

/// Whether a file is an index of shards, or tries to be one: a JSON object that speaks of a `weight_map`.
pub(super) fn is_index(file: &[u8]) -> bool {
    const KEY: &[u8] = b"\"weight_map\"";
    // A safetensors file may begin with the same byte, but its seventh and eighth are zero.
    let is_text = file.trim_ascii_start().starts_with(b"{") && !file.iter().take(8).any(|&byte| byte == 0);
    is_text && memchr::memmem::find(&file[..file.len().min(MAX_INDEX_BYTES)], KEY).is_some()
}

/// Reads the shards that `index` names.
pub(super) fn open(index: Source) -> Result<Contents> {
    let path = index.path.clone();
    let error = |problem| Error::Sharded { path: path.clone(), problem };
    if index.map.len() > MAX_INDEX_BYTES {
        return Err(error(ShardedProblem::TooLarge { size: index.map.len() as u64 }));
    }
    let Index { weights, rest, memory, tree, budget } =
        Index::parse(&index.map).map_err(|problem| error(ShardedProblem::Index { reason: problem.to_string() }))?;
    let mut gather = Gather::new(Container::Sharded, index);
    (gather.all.tree, gather.budget) = (tree, budget);
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weights {
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.len() > MAX_FILES {
        return Err(error(ShardedProblem::TooMany));
    }
    let (mut root, mut metadata) = (Vec::new(), Vec::new());
    let mut found: HashMap<Arc<str>, &str> = HashMap::new();
    /// Bytes of memory that an entry takes at the top, and among the names that were found.
    const ENTRY: usize = 2 * size_of::<(ValueId, ValueId)>() + 5 * size_of::<(Arc<str>, &str)>() / 2;
    for (&shard, listed) in &shards {
        let name = || shard.to_owned();
        let file = inside(folder_of(&path), shard);
        let file = file.ok_or_else(|| error(ShardedProblem::Name { shard: name() }))?;
        if !file.exists() {
            return Err(error(ShardedProblem::Missing { shard: name(), tensors: listed.len(), of: weights.len() }));
        }
        let source = Source::open(&file)?;
        let part = part(&source.path, &source.map, &mut gather.budget)?;
        let is_safetensors = part.container == Container::Safetensors;
        gather.sources.push(source);
        let top = gather.absorb(part, gather.sources.len() - 1, 0)?;
        let Value::Map(entries) = gather.all.tree.value(top) else {
            return Err(error(ShardedProblem::NoDictionary { shard: name() }));
        };
        gather.budget.take(entries.len() * ENTRY).map_err(too_large(&path))?;
        let mut own = None;
        for &(key, value) in entries {
            let Value::Str(text) = gather.value(key) else {
                root.push((key, value));
                continue;
            };
            match gather.value(value) {
                Value::Map(_) if is_safetensors => {
                    own = Some(value);
                    continue;
                }
                Value::Tensor(_) => {
                    if let Some(first) = found.insert(Arc::clone(text), shard) {
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
            gather.take(allocated(16 + shard.len()) + 2 * size_of::<Value>() + 2 * size_of::<(ValueId, ValueId)>())?;
            metadata.push((gather.text(shard), own));
        }
    }
    gather.budget.give_back(memory);
    // What every shard says of itself is said once.
    let metadata = match metadata.split_first() {
        Some((&(_, first), rest)) if rest.iter().all(|&(_, own)| texts(&gather, own) == texts(&gather, first)) => {
            Some(first)
        }
        Some(_) => Some(gather.add(Value::Map(metadata))),
        None => None,
    };
    if let Some(metadata) = metadata {
        root.push((gather.text("__metadata__"), metadata));
    }
    root.extend(rest);
    let root = gather.add(Value::Map(root));
    Ok(gather.contents(root))
}

/// The pairs of texts in a mapping.
fn texts(gather: &Gather, id: ValueId) -> Vec<(&Value, &Value)> {
    match gather.value(id) {
        Value::Map(entries) => entries.iter().map(|&(key, text)| (gather.value(key), gather.value(text))).collect(),
        _ => Vec::new(),
    }
}
