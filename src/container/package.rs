//! `torch.package` archives: pickles under the names of packages and resources, storages in `.data/`.
//!
//! Follows `torch/package/package_exporter.py` (`save_pickle`) and `package_importer.py` (`load_pickle`). The sources of
//! modules that the archive carries are not looked at.

use std::collections::HashMap;
use std::sync::Arc;

use super::archive::Archive;
use super::rebuild::{Rebuilt, ScriptClasses};
use super::zip::{self, Inflate, Method};
use super::{Container, Part, Value, too_large};
use crate::error::Result;
use crate::pickle::{self, Budget, allocated};

/// The largest number of pickles in an archive.
const MAX_PICKLES: usize = 4096;

/// The largest number of compressed files that are looked at to see whether they are pickles. PyTorch compresses none.
const MAX_PACKED: usize = 1 << 14;

/// Whether the archive below `root` is a package.
pub(super) fn root<'a>(archive: &Archive<'a>) -> Option<&'a str> {
    let marker = archive.directory.entries.iter().find(|e| e.name.ends_with("/.data/extern_modules"))?;
    marker.name.strip_suffix(".data/extern_modules")
}

/// Reads every pickle below `root`. A single one is the object; several are a mapping by `package/resource.pkl`.
pub(super) fn open(archive: &Archive<'_>, root: &str, budget: &mut Budget) -> Result<Part> {
    let hidden = format!("{root}.data/");
    let is_inside = |name: &str| name.starts_with(root) && !name.starts_with(&hidden) && !name.ends_with(".py");
    // `save_pickle` takes any name: others may be pickles, if they begin like one and can be read.
    let is_packed = |e: &&zip::Entry| is_inside(&e.name) && e.method == Method::Deflated && !e.name.ends_with(".pkl");
    if archive.directory.entries.iter().filter(is_packed).count() > MAX_PACKED {
        let found = "a torch.package archive of more than 16384 compressed files";
        return Err(archive.not(found, "zip it again without compression"));
    }
    let mut inflate = Inflate::default();
    let mut is_pickle = |entry: &zip::Entry| {
        let mut head = || entry.head(archive.file, 2, &mut inflate);
        entry.name.ends_with(".pkl") || head().is_ok_and(|head| matches!(*head, [0x80, 2..=5]))
    };
    let pickles: Vec<_> = archive.directory.entries.iter().filter(|e| is_inside(&e.name) && is_pickle(e)).collect();
    if pickles.len() > MAX_PICKLES {
        return Err(archive.not("a torch.package archive of more than 4096 pickles", "split it"));
    }
    let sizes = pickles.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.size));
    if sizes > pickle::MAX_PICKLE_BYTES as u64 {
        return Err(archive.not("a torch.package archive of more than 64 MiB of pickles", "split it"));
    }
    let order = archive.byte_order(root)?;
    let mut all = Part::new(Container::TorchPackage);
    let mut by_key: HashMap<Arc<str>, usize> = HashMap::new();
    let mut entries = Vec::new();
    for entry in &pickles {
        let before = budget.taken();
        let Rebuilt { tree, tensors, storages } = match archive.object(entry, &ScriptClasses::new(), budget) {
            Ok(object) => object,
            Err(error) if entry.name.ends_with(".pkl") => return Err(error),
            Err(_) => {
                budget.give_back(budget.taken() - before);
                continue;
            }
        };
        let mut places = Vec::with_capacity(storages.len());
        for declared in storages {
            // Pickles of one archive may share a storage; one that is declared with another size is kept apart, and is
            // refused for its size.
            let known = by_key.get(&declared.key).filter(|&&at| all.storages[at].declared == declared.bytes);
            places.push(match known {
                Some(&at) => at,
                None => {
                    let label = format!("{hidden}{}.storage", declared.key);
                    let storage = archive.storage(label, &declared, order, budget)?;
                    budget.push(&mut all.storages, storage).map_err(too_large(archive.path))?;
                    by_key.insert(declared.key, all.storages.len() - 1);
                    all.storages.len() - 1
                }
            });
        }
        let object = all.graft(tree, tensors, |storage| places[storage], budget).map_err(too_large(archive.path))?;
        let name = &entry.name[root.len()..];
        budget.take(2 * size_of::<Value>() + allocated(16 + name.len())).map_err(too_large(archive.path))?;
        let name = all.tree.add(Value::Str(name.into()));
        entries.push((name, object));
    }
    all.tree.root = match entries.as_slice() {
        [] => return Err(archive.not("a torch.package archive without pickles", "export it again with save_pickle()")),
        &[(_, object)] => object,
        _ => all.tree.add(Value::Map(entries)),
    };
    Ok(all)
}
