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

/// Modules and names that are dangerous with all that is below them, and what they can do.
const DANGEROUS: &[(&str, &[&str])] = &[
    (
        "runs programs of the system",
        &[
            "os",
            "posix",
            "nt",
            "subprocess",
            "_posixsubprocess",
            "pty",
            "popen2",
            "commands",
            "asyncio",
            "multiprocessing",
            "_winapi",
            "distutils",
            "setuptools",
            "pip",
            "ensurepip",
            "venv",
            "webbrowser",
            "antigravity",
            "platform",
            "uuid._get_command_stdout",
            "_osx_support",
            "_aix_support",
            "ctypes.util",
            "numpy.distutils",
            "numpy.f2py",
            "torch.utils.cpp_extension",
            "torch.utils.collect_env",
            "torch.utils.data.datapipes.utils.decoder",
            "torch._inductor",
            "torch.distributed.run",
            "torch.distributed.launch",
            "torch.distributed.elastic",
            "torch.utils.bottleneck",
            "imaplib",
            "pydoc",
            "test.support",
            "pipes",
            "plumbum",
            "pexpect",
            "IPython",
            "concurrent.futures",
            "torch.utils._config_module",
            "torch.utils._cpp_extension_versioner",
            "torch.utils.hipify",
        ],
    ),
    (
        "runs Python code given as data",
        &[
            "builtins.eval",
            "builtins.exec",
            "builtins.compile",
            "builtins.execfile",
            "builtins.__import__",
            "code",
            "codeop",
            "runpy",
            "timeit",
            "profile",
            "cProfile",
            "_lsprof",
            "pdb",
            "bdb",
            "trace",
            "doctest",
            "idlelib",
            "lib2to3",
            "marshal",
            "types.CodeType",
            "types.FunctionType",
            "_interpreters",
            "_xxsubinterpreters",
            "_testcapi",
            "_testinternalcapi",
            "site",
            "sitecustomize",
            "torch.jit.unsupported_tensor_ops",
            "torch.jit.frontend",
            "torch._dynamo",
            "torch.fx",
            "torch._C._jit_",
            "torch.package",
            "torch._export",
            "torch._higher_order_ops",
            "numpy.testing",
            "numpy.ma.timer_comparison",
            "numpy.lib.utils.safe_eval",
            "numexpr",
            "pandas.eval",
            "pandas.core.computation",
            "jinja2",
            "mako",
            "cffi",
            "weave",
            "scipy.weave",
            "cython",
            "Cython",
            "ast",
            "symtable",
            "rlcompleter",
            "dataclasses.make_dataclass",
            "collections.namedtuple",
            "typing.get_type_hints",
            "typing.ForwardRef",
            "string.Formatter",
            "logging.config",
            "configparser",
            "sqlite3",
            "smtpd",
            "wsgiref",
            "cgi",
            "cgitb",
            "tracemalloc",
            "faulthandler",
            "signal",
            "atexit",
            "threading",
            "_thread",
            "weakref.finalize",
            "contextlib.ExitStack",
        ],
    ),
    (
        "imports modules or finds code by a text, so that any other name can hide behind it",
        &[
            "importlib",
            "imp",
            "pkgutil",
            "zipimport",
            "zipapp",
            "modulefinder",
            "builtins.getattr",
            "builtins.setattr",
            "builtins.delattr",
            "builtins.vars",
            "builtins.globals",
            "builtins.locals",
            "builtins.__build_class__",
            "builtins.breakpoint",
            "builtins.input",
            "builtins.memoryview",
            "builtins.__dict__",
            "builtins.super",
            "builtins.type",
            "builtins.property",
            "operator.attrgetter",
            "operator.methodcaller",
            "operator.itemgetter",
            "operator.call",
            "_operator",
            "sys",
            "copyreg.add_extension",
            "copyreg.pickle",
            "copyreg.dispatch_table",
            "copyreg._extension_registry",
            "codecs",
            "encodings",
            "xml.sax.make_parser",
            "xmlrpc",
            "torch._utils_internal",
            "torch.utils._import_utils",
            "torch._classes",
            "torch.classes",
            "torch.ops",
            "torch._ops",
            "torch.library",
            "numpy.ctypeslib",
            "apipkg",
            "pkg_resources",
        ],
    ),
    (
        "calls what it is given, now or later",
        &[
            "builtins.map",
            "builtins.filter",
            "builtins.apply",
            "builtins.reduce",
            "builtins.sorted",
            "builtins.min",
            "builtins.max",
            "builtins.iter",
            "functools",
            "_functools",
            "itertools",
            "collections.Callable",
            "numpy.vectorize",
            "numpy.frompyfunc",
            "numpy.apply_along_axis",
            "numpy.apply_over_axes",
            "numpy.fromfunction",
            "numpy.piecewise",
            "numpy.lib.npyio.fromregex",
            "pandas.core.apply",
            "torch._functorch",
            "joblib.parallel",
            "joblib.memory",
        ],
    ),
    (
        "unpickles or loads data by itself, without any restriction",
        &[
            "pickle",
            "_pickle",
            "cPickle",
            "cloudpickle",
            "dill",
            "jsonpickle",
            "joblib",
            "shelve",
            "dbm",
            "yaml",
            "ruamel",
            "pandas.read_pickle",
            "pandas.compat.pickle_compat",
            "numpy.load",
            "numpy.loads",
            "numpy.lib.npyio",
            "numpy.lib._npyio_impl",
            "numpy.lib.format",
            "numpy.compat",
            "numpy.core.multiarray.set_string_function",
            "torch.load",
            "torch.serialization.load",
            "torch.serialization._load",
            "torch.serialization._legacy_load",
            "torch.serialization.add_safe_globals",
            "torch.serialization.safe_globals",
            "torch._weights_only_unpickler",
            "torch.storage._load_from_bytes",
            "torch.jit.load",
            "torch.jit._serialization",
            "torch.hub",
            "torch.utils.model_zoo",
            "torch.utils.model_dump",
            "torch.utils.show_pickle",
            "torch.utils.data.datapipes",
            "torch.save",
            "torch.serialization.save",
            "torch.serialization.set_default_load_endianness",
            "torch.serialization.register_package",
            "torch.distributed.checkpoint",
            "torch.distributed.rpc",
            "multiprocessing.reduction",
            "logging.handlers",
        ],
    ),
    (
        "reads or writes files",
        &[
            "builtins.open",
            "builtins.file",
            "io",
            "_io",
            "_pyio",
            "shutil",
            "pathlib.Path.",
            "tempfile",
            "glob",
            "fileinput",
            "linecache",
            "mmap",
            "tarfile",
            "zipfile",
            "gzip",
            "bz2",
            "lzma",
            "csv",
            "fcntl",
            "mailbox",
            "netrc",
            "filecmp",
            "dircache",
            "tokenize",
            "compileall",
            "py_compile",
            "numpy.fromfile",
            "numpy.memmap",
            "numpy.save",
            "numpy.savez",
            "numpy.savetxt",
            "numpy.loadtxt",
            "numpy.genfromtxt",
            "numpy.DataSource",
            "numpy.lib._datasource",
            "torch.from_file",
            "torch.storage.UntypedStorage.from_file",
            "torch.UntypedStorage.from_file",
            "torch.FloatStorage.from_file",
            "torch._C.PyTorchFileReader",
            "torch._C.PyTorchFileWriter",
            "pandas.read_csv",
            "logging.FileHandler",
            "logging.basicConfig",
            "hashlib.file_digest",
            "mimetypes",
            "_pyrepl",
            "os.path",
        ],
    ),
    (
        "reaches the network",
        &[
            "socket",
            "_socket",
            "ssl",
            "_ssl",
            "http",
            "httplib",
            "urllib",
            "urllib2",
            "urllib3",
            "requests",
            "aiohttp",
            "httpx",
            "ftplib",
            "smtplib",
            "poplib",
            "nntplib",
            "telnetlib",
            "xmlrpc.client",
            "socketserver",
            "SocketServer",
            "paramiko",
            "torch.utils.tensorboard",
            "boto3",
            "websocket",
            "websockets",
            "pycurl",
            "select",
            "selectors",
            "asyncore",
            "asynchat",
            "getpass",
        ],
    ),
    (
        "runs machine code or changes memory directly",
        &[
            "ctypes",
            "_ctypes",
            "cffi.FFI",
            "_cffi_backend",
            "torch.ops.load_library",
            "torch.cuda.nvrtc",
            "torch.cuda._compile_kernel",
            "pycuda",
            "llvmlite",
        ],
    ),
    (
        "compresses or encodes, which hides what it is given",
        &["zlib", "base64", "binascii", "quopri", "uu", "_codecs.decode"],
    ),
];

/// The dangerous names, each with what it can do.
static DANGERS: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| {
    DANGEROUS.iter().rev().flat_map(|(why, names)| names.iter().map(move |&name| (name, *why))).collect()
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
    if new_name.split('.').any(|part| part.starts_with("__"))
        || new_module.split('.').any(|part| part.starts_with("__") && part != "__main__" && part != "__torch__")
    {
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
            assert!(danger(name).is_none_or(|_| name.starts_with("uuid")), "{name} is on both lists");
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
        ] {
            assert_eq!(judge(module, name, false).level, level, "{module}.{name}");
        }
        assert_eq!(judge("__torch__.Net", "Net", true).level, Level::Allowed);
    }
}
