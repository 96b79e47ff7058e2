//! `torch.package` archives: pickles under the names of packages and resources, storages in `.data/`.
//!
//! Follows `torch/package/package_exporter.py` (`save_pickle`) and `package_importer.py` (`load_pickle`). The sources of
//! modules that the archive carries are not looked at.

use std::collections::HashMap;

use super::archive::Archive;
use super::rebuild::{Rebuilt, ScriptClasses};
use super::{Container, Part, Storage, Stored, Tree, Value, zip};
use crate::container::MAX_TENSORS;
use crate::error::Result;
use crate::pickle;

/// The largest number of pickles in an archive.
const MAX_PICKLES: usize = 4096;

/// Whether the archive below `root` is a package.
pub(super) fn root<'a>(archive: &Archive<'a>) -> Option<&'a str> {
    let marker = archive.entries.iter().find(|e| e.name.ends_with("/.data/extern_modules"))?;
    marker.name.strip_suffix(".data/extern_modules")
}

/// Reads every pickle below `root`. A single one is the object; several are a mapping by `package/resource.pkl`.
pub(super) fn open(archive: &Archive<'_>, root: &str) -> Result<Part> {
    let hidden = format!("{root}.data/");
    let is_inside = |name: &str| name.starts_with(root) && !name.starts_with(&hidden) && !name.ends_with(".py");
    // `save_pickle` takes any name: others may be pickles, if they begin like one and can be read.
    let is_pickle = |entry: &zip::Entry| {
        entry.name.ends_with(".pkl") || entry.head(archive.file, 2).is_ok_and(|head| matches!(*head, [0x80, 2..=5]))
    };
    let pickles: Vec<_> = archive.entries.iter().filter(|e| is_inside(&e.name) && is_pickle(e)).collect();
    if pickles.len() > MAX_PICKLES {
        return Err(archive.not("a torch.package archive of more than 4096 pickles", "split it"));
    }
    let order = archive.byte_order(root)?;
    let mut tree = Tree { values: vec![Value::None], root: 0, loose: Vec::new() };
    let (mut tensors, mut storages) = (Vec::<Stored>::new(), Vec::<Storage>::new());
    let mut by_key: HashMap<std::sync::Arc<str>, usize> = HashMap::new();
    let mut entries = Vec::new();
    let sizes = pickles.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.size));
    if sizes > pickle::MAX_PICKLE_BYTES as u64 {
        return Err(archive.not("a torch.package archive of more than 64 MiB of pickles", "split it"));
    }
    for entry in &pickles {
        let Rebuilt { tree: part, tensors: found, storages: declared } =
            match archive.object(entry, &ScriptClasses::new()) {
                Ok(object) => object,
                Err(error) if entry.name.ends_with(".pkl") => return Err(error),
                Err(_) => continue,
            };
        let mut places = Vec::with_capacity(declared.len());
        for declared in declared {
            let label = format!("{hidden}{}.storage", declared.key);
            // Pickles of one archive may share a storage; one that is declared with another size is kept apart, and is
            // refused for its size.
            let known = by_key.get(&declared.key).filter(|&&at| storages[at].declared == declared.bytes);
            places.push(match known {
                Some(&at) => at,
                None => {
                    by_key.insert(declared.key.clone(), storages.len());
                    storages.push(archive.storage(label, &declared, order));
                    storages.len() - 1
                }
            });
        }
        if tree.values.len() + part.values.len() > pickle::MAX_NODES {
            return Err(archive.not("a torch.package archive of too many values", "split it"));
        }
        let first = tensors.len();
        tensors.extend(found.into_iter().map(|tensor| match tensor {
            Stored::Dense(mut dense) => {
                dense.storage = places[dense.storage];
                Stored::Dense(dense)
            }
            other => other,
        }));
        if tensors.len() > MAX_TENSORS {
            return Err(archive.not("a torch.package archive of too many tensors", "split it"));
        }
        let object = tree.graft(part, first);
        let name = tree.add(Value::Str(entry.name[root.len()..].into()));
        entries.push((name, object));
    }
    if entries.is_empty() {
        return Err(archive.not("a torch.package archive without pickles", "export it again with save_pickle()"));
    }
    match entries.as_slice() {
        &[(_, object)] => tree.root = object,
        _ => tree.values[0] = Value::Map(entries),
    }
    Ok(Part { container: Container::TorchPackage, tree, tensors, storages })
}
