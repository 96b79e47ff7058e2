//! The judgement on a name: allowed, unknown or dangerous.
//!
//! Only the two allow-lists let a name pass. The table of dangerous names does no more than explain: a name that it lacks
//! is unknown, which is a finding too.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use super::report::Level;

/// What stands behind a name that `torch.load(weights_only=True)` accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Dtype,
    Qscheme,
    /// A typed storage by its old name, with the bytes of an element. It cannot be called.
    Storage(u8),
    /// `TypedStorage` and `UntypedStorage`, with the bytes of an element; 0 where it has no type of its own.
    StorageClass(u8),
    TensorClass,
    Class,
    Function,
}

/// What torch accepts by default.
pub(super) static TORCH: LazyLock<HashMap<&'static str, Kind>> = LazyLock::new(|| {
    let lines = include_str!("torch_allowed.txt").lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (name, kind) = (words.next()?, words.next()?);
            let size = words.next().and_then(|size| size.parse().ok()).unwrap_or(0);
            let kind = match kind {
                "dtype" => Kind::Dtype,
                "qscheme" => Kind::Qscheme,
                "storage" => Kind::Storage(size),
                "storage-class" => Kind::StorageClass(size),
                "tensor-class" => Kind::TensorClass,
                "class" => Kind::Class,
                _ => Kind::Function,
            };
            Some((name, kind))
        })
        .collect()
});

/// Types that only hold data, and why they are harmless.
static HARMLESS: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| {
    let lines = include_str!("harmless.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).collect()
});

/// A renamed module or name, and whether torch's restricted unpickler renames it as well.
struct Renamed {
    to: &'static str,
    torch: bool,
}

/// How Python 3 renames what Python 2 pickled.
static RENAMED: LazyLock<HashMap<&'static str, Renamed>> = LazyLock::new(|| {
    let lines = include_str!("python2_names.txt").lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (from, to) = line.split_once(" > ")?;
            let (to, torch) = to.strip_suffix(" torch").map_or((to, false), |to| (to, true));
            Some((from, Renamed { to, torch }))
        })
        .collect()
});

/// A module and name as Python 3 looks them up; `only_torch` keeps to what torch's restricted unpickler renames.
pub(super) fn renamed(module: &str, name: &str, only_torch: bool) -> (String, String) {
    let find = |key: &str| RENAMED.get(key).filter(|renamed| renamed.torch || !only_torch);
    if let Some((module, name)) = find(&format!("{module} {name}")).and_then(|renamed| renamed.to.split_once(' ')) {
        return (module.to_owned(), name.to_owned());
    }
    (find(module).map_or(module, |renamed| renamed.to).to_owned(), name.to_owned())
}

/// The dangerous names, each with what it can do.
static DANGERS: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| {
    let lines = include_str!("dangerous.txt").lines().filter(|line| !line.starts_with('#'));
    let groups = lines.filter_map(|line| line.split_once(": "));
    groups.flat_map(|(why, names)| names.split(' ').map(move |name| (name, why))).collect()
});

/// What a dangerous path can do: the path itself or what it is below of is in the table.
fn danger(path: &str) -> Option<&'static str> {
    let mut end = path.len();
    loop {
        if let Some(why) = DANGERS.get(&path[..end]) {
            return Some(why);
        }
        end = path[..end].rfind('.')?;
    }
}

/// The dangerous module that a dotted name reaches: modules that a module has imported are its attributes, as in
/// `torch.serialization` + `os.system`.
fn reached(path: &str) -> Option<&str> {
    const MODULES: &[&str] = &[
        "os",
        "posix",
        "nt",
        "sys",
        "subprocess",
        "builtins",
        "importlib",
        "pickle",
        "io",
        "shutil",
        "ctypes",
        "socket",
        "runpy",
        "code",
        "marshal",
        "pty",
        "tempfile",
        "zipfile",
        "tarfile",
        "urllib",
        "warnings.sys",
        "linecache",
    ];
    let tails = path.match_indices('.').map(|(at, _)| path[at + 1..].trim_start_matches('_'));
    tails.into_iter().find(|tail| {
        let first = tail.split('.').next().unwrap_or("");
        tail.len() > first.len() && MODULES.contains(&first) && danger(tail).is_some()
    })
}

/// The judgement on a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    /// `module.name`, as Python 3 resolves it.
    pub(super) path: String,
    pub(super) level: Level,
    pub(super) because: Cow<'static, str>,
}

/// Whether a text looks like a name of Python: ASCII letters, digits, underscores, dots in between.
pub(super) fn is_identifier(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

/// Judges `name` in `module`; in a TorchScript archive the classes of its own code pass too.
pub(super) fn judge(module: &str, name: &str, script: bool) -> Judgement {
    let (new_module, new_name) = renamed(module, name, false);
    let path = format!("{new_module}.{new_name}");
    let as_written = format!("{module}.{name}");
    let known = |why: &str| format!("it {why}");
    let verdict = |level, because: Cow<'static, str>| Judgement { path: path.clone(), level, because };
    if as_written.contains('\0') {
        return verdict(
            Level::Dangerous,
            "Python finds built-in modules by what comes before the zero byte in the name".into(),
        );
    }
    if TORCH.contains_key(path.as_str()) {
        return verdict(Level::Allowed, "torch.load(weights_only=True) accepts it".into());
    }
    if let Some(why) = HARMLESS.get(path.as_str()) {
        return verdict(Level::Allowed, known(why).into());
    }
    if script && (module.starts_with("__torch__.") || module == "__torch__") {
        return verdict(Level::Allowed, "it is a class of the TorchScript code in this archive".into());
    }
    const SCRIPT: &[&str] = &[
        "build_intlist",
        "build_doublelist",
        "build_boollist",
        "build_tensorlist",
        "build_tensor_from_id",
        "restore_type_tag",
    ];
    if script && module == "torch.jit._pickle" && SCRIPT.contains(&name) {
        return verdict(Level::Allowed, "TorchScript makes its lists with it".into());
    }
    if let Some(why) = danger(&path).or_else(|| danger(&as_written)) {
        return verdict(Level::Dangerous, known(why).into());
    }
    let inside =
        |part: &str| part.starts_with("__") && part.ends_with("__") && !["__main__", "__torch__"].contains(&part);
    if path.split('.').any(inside) {
        return verdict(
            Level::Dangerous,
            "it reaches into the insides of Python, from where everything can be reached".into(),
        );
    }
    if let Some(tail) = reached(&path) {
        return verdict(Level::Dangerous, format!("it reaches {tail} through another module").into());
    }
    verdict(Level::Unknown, "it is on no allow-list: what it does depends on what is installed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_read() {
        assert!(TORCH.len() > 140 && HARMLESS.len() > 60 && RENAMED.len() > 140);
        assert_eq!(TORCH["torch.HalfStorage"], Kind::Storage(2));
        for name in HARMLESS.keys() {
            // Types that hold data, of modules that do other things too.
            let of_two_minds = ["uuid.", "torch.distributed.checkpoint."].iter().any(|module| name.starts_with(module));
            assert!(danger(name).is_none_or(|_| of_two_minds), "{name} is on both lists");
        }
    }

    #[test]
    fn names_are_judged_by_what_python_3_makes_of_them() {
        for (module, name, level) in [
            ("collections", "OrderedDict", Level::Allowed),
            ("torch", "nn.parameter.Parameter", Level::Allowed),
            ("__builtin__", "set", Level::Allowed),
            ("__builtin__", "eval", Level::Dangerous),
            ("copy_reg", "_reconstructor", Level::Allowed),
            ("commands", "getoutput", Level::Dangerous),
            ("posix", "system", Level::Dangerous),
            ("os", "path.join", Level::Dangerous),
            ("torch.serialization", "os.system", Level::Dangerous),
            ("torch.nn.modules.linear", "Linear", Level::Unknown),
            ("pathlib", "PosixPath", Level::Allowed),
            ("pathlib", "Path.write_text", Level::Unknown),
            ("collections", "OrderedDict.__init__.__globals__", Level::Dangerous),
            ("__torch__.Net", "Net", Level::Unknown),
            ("osmium", "system", Level::Unknown),
            ("os\0x", "system", Level::Dangerous),
        ] {
            assert_eq!(judge(module, name, false).level, level, "{module}.{name}");
        }
        assert_eq!(judge("__torch__.Net", "Net", true).level, Level::Allowed);
    }
}
