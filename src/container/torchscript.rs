//! TorchScript archives: `data.pkl` holds the module, `code/` declares which of its attributes are parameters and buffers.
//!
//! Follows `torch/csrc/jit/serialization` (`export_module.cpp`, `python_print.cpp`). The code is not run: only the lines
//! that declare names are read.

use super::archive::Archive;
use super::rebuild::{Rebuilt, ScriptClass, ScriptClasses};
use super::{Container, Part, Stored, zip};
use crate::error::Result;

/// The largest file of code that is read, in bytes; and the most of all together.
const MAX_CODE_BYTES: u64 = 32 << 20;

/// Reads the archive with that `data.pkl`.
pub(super) fn open(archive: &Archive<'_>, object: &zip::Entry, root: &str) -> Result<Part> {
    let mut classes = ScriptClasses::new();
    let folder = format!("{root}code/");
    let mut left = MAX_CODE_BYTES;
    for entry in archive.entries {
        let path = entry.name.strip_prefix(&folder).and_then(|path| path.strip_suffix(".py"));
        let Some(path) = path else { continue };
        let code = archive.read(entry, left)?;
        left -= code.len() as u64;
        declarations(&path.replace('/', "."), &String::from_utf8_lossy(&code), &mut classes);
    }
    let mut part = archive.part(Container::TorchScript, object, root, &classes)?;
    // A frozen module has its weights here.
    if let Some(constants) = archive.find(&format!("{root}constants.pkl")) {
        let Rebuilt { tree, tensors, storages } = archive.object(constants, &classes)?;
        let (first, first_storage) = (part.tensors.len(), part.storages.len());
        let order = archive.byte_order(root)?;
        part.storages
            .extend(storages.into_iter().map(|s| archive.storage(format!("{root}constants/{}", s.key), &s, order)));
        part.tensors.extend(tensors.into_iter().map(|tensor| match tensor {
            Stored::Dense(mut dense) => {
                dense.storage += first_storage;
                Stored::Dense(dense)
            }
            other => other,
        }));
        let constants = part.tree.graft(tree, first);
        part.tree.loose.push(constants);
    }
    Ok(part)
}

/// Adds the classes that `code`, the file of the module `module`, declares.
///
/// ```text
/// class Linear(Module):
///   __parameters__ = ["weight", "bias", ]
///   __buffers__ = []
/// ```
fn declarations(module: &str, code: &str, classes: &mut ScriptClasses) {
    let mut class: Option<(String, ScriptClass)> = None;
    for line in code.lines() {
        if let Some(rest) = line.strip_prefix("class ") {
            classes.extend(class.take());
            // Other classes than modules have other bases.
            class = rest.strip_suffix("(Module):").map(|name| (format!("{module}.{name}"), ScriptClass::default()));
        } else if let Some((_, declared)) = &mut class {
            if let Some(list) = line.trim_start().strip_prefix("__parameters__ = [") {
                declared.parameters.extend(names(list));
            } else if let Some(list) = line.trim_start().strip_prefix("__buffers__ = [") {
                declared.buffers.extend(names(list));
            }
        }
    }
    classes.extend(class);
}

/// The names in a list of quoted texts. Attributes are identifiers, so that there is nothing to unescape.
fn names(list: &str) -> impl Iterator<Item = String> {
    list.split('"').skip(1).step_by(2).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_names_are_found_by_class() {
        // As torch.jit.save writes them.
        let code = "class Net(Module):\n  __parameters__ = [\"scale\", ]\n  __buffers__ = [\"mean\", \"var\", ]\n  \
                    scale : Tensor\n  def forward(self: __torch__.Net) -> Tensor:\n    return self.scale\n\
                    class Pair(NamedTuple):\n  __parameters__ = [\"no\", ]\nclass Empty(Module):\n  __parameters__ = []\n";
        let mut classes = ScriptClasses::new();
        declarations("__torch__.m", code, &mut classes);
        assert_eq!(classes.len(), 2);
        assert!(classes["__torch__.m.Net"].parameters.contains("scale"));
        assert_eq!(classes["__torch__.m.Net"].buffers.len(), 2);
        assert!(classes["__torch__.m.Empty"].parameters.is_empty());
    }
}
