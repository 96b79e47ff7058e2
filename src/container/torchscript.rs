//! TorchScript archives: `data.pkl` holds the module, `code/` declares which of its attributes are parameters and buffers.
//!
//! Follows `torch/csrc/jit/serialization` (`export_module.cpp`, `python_print.cpp`). The code is not run: only the lines
//! that declare names are read.

use super::archive::Archive;
use super::rebuild::{ScriptClass, ScriptClasses};
use super::{Container, MAX_TENSORS, Part, TreeLimit, too_large, zip};
use crate::error::{Error, Result};
use crate::pickle::{self, Budget, Full, allocated};

/// The largest file of code that is read, in bytes; and the most of all together.
const MAX_CODE_BYTES: u64 = 32 << 20;

/// The largest number of files of code: one for each module of Python that a class is from.
const MAX_CODE_FILES: usize = 1 << 14;

/// Reads the archive with that `data.pkl`.
pub(super) fn open(archive: &Archive<'_>, object: &zip::Entry, root: &str, budget: &mut Budget) -> Result<Part> {
    let before = budget.taken();
    let mut classes = ScriptClasses::new();
    let folder = format!("{root}code/");
    let mut left = (MAX_CODE_BYTES, MAX_TENSORS);
    let mut files = 0;
    for entry in &archive.directory.entries {
        let path = entry.name.strip_prefix(&folder).and_then(|path| path.strip_suffix(".py"));
        let Some(path) = path else { continue };
        files += 1;
        if files > MAX_CODE_FILES {
            let limit = TreeLimit { what: "files of code", limit: MAX_CODE_FILES };
            return Err(Error::Tree { path: archive.path.to_owned(), limit });
        }
        let code = archive.read(entry, left.0, budget)?;
        left.0 -= code.len() as u64;
        declarations(&path.replace('/', "."), &code, &mut classes, &mut left.1, budget)
            .map_err(|limit| Error::Tree { path: archive.path.to_owned(), limit })?;
    }
    let declared = budget.taken() - before;
    let mut part = archive.part(Container::TorchScript, object, &format!("{root}data/"), &classes, budget)?;
    // A frozen module has its weights here.
    if let Some(constants) = archive.find(&format!("{root}constants.pkl")) {
        let data = format!("{root}constants/");
        let constants = archive.part(Container::TorchScript, constants, &data, &classes, budget)?;
        let constants = part.absorb(constants, budget).map_err(too_large(archive.path))?;
        part.tree.loose.push(constants);
    }
    budget.give_back(declared);
    Ok(part)
}

/// Adds the classes that `code`, the file of the module `module`, declares: no more names than `names_left`.
///
/// ```text
/// class Linear(Module):
///   __parameters__ = ["weight", "bias", ]
///   __buffers__ = []
/// ```
fn declarations(
    module: &str,
    code: &[u8],
    classes: &mut ScriptClasses,
    names_left: &mut usize,
    budget: &mut Budget,
) -> std::result::Result<(), TreeLimit> {
    /// Bytes of memory that a class takes among the others, and a name among those of its class, but for their texts.
    const CLASS: usize = 5 * size_of::<(String, ScriptClass)>() / 2;
    const NAME: usize = 5 * size_of::<String>() / 2;
    let mut take = |bytes: usize| {
        let full = |Full| TreeLimit { what: "bytes of memory", limit: pickle::MAX_VALUE_BYTES };
        let many = TreeLimit { what: "names of classes, parameters and buffers in its code", limit: MAX_TENSORS };
        *names_left = names_left.checked_sub(1).ok_or(many)?;
        budget.take(bytes).map_err(full)
    };
    let mut class: Option<(String, ScriptClass)> = None;
    // Lines that are no text declare nothing.
    for line in code.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()) {
        if let Some(rest) = line.strip_prefix("class ") {
            classes.extend(class.take());
            // Other classes than modules have other bases.
            let Some(name) = rest.strip_suffix("(Module):") else { continue };
            take(CLASS + allocated(module.len() + 1 + name.len()))?;
            class = Some(([module, ".", name].concat(), ScriptClass::default()));
        } else if let Some((_, declared)) = &mut class {
            let line = line.trim_start();
            let (list, held) = match line.strip_prefix("__parameters__ = [") {
                Some(list) => (Some(list), &mut declared.parameters),
                None => (line.strip_prefix("__buffers__ = ["), &mut declared.buffers),
            };
            for name in list.into_iter().flat_map(names) {
                take(NAME + allocated(name.len()))?;
                held.insert(name.to_owned());
            }
        }
    }
    classes.extend(class);
    Ok(())
}

/// The names in a list of quoted texts. Attributes are identifiers, so that there is nothing to unescape.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split('"').skip(1).step_by(2)
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
        declarations("__torch__.m", code.as_bytes(), &mut classes, &mut 100, &mut Budget::default()).unwrap();
        assert_eq!(classes.len(), 2);
        assert!(classes["__torch__.m.Net"].parameters.contains("scale"));
        assert_eq!(classes["__torch__.m.Net"].buffers.len(), 2);
        assert!(classes["__torch__.m.Empty"].parameters.is_empty());
    }
}
