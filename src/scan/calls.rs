//! What torch's restricted unpickler makes of opcodes and of calls of the functions it allows.
//!
//! The checks serve two ends: an allowed function that is called with arguments no honest writer gives it is a finding, and
//! torch would fail on it.

use super::judge::{Kind, TORCH, renamed};
use super::report::{Level, Rule};
use super::trace::{StorageRef, Trace, Val};
use crate::pickle::Op;

/// Whether torch's restricted unpickler knows the opcode.
pub(super) fn supported(op: Op) -> bool {
    !matches!(
        op,
        Op::POP
            | Op::POP_MARK
            | Op::DUP
            | Op::FLOAT
            | Op::INT
            | Op::LONG
            | Op::LONG4
            | Op::PERSID
            | Op::STRING
            | Op::BINSTRING
            | Op::UNICODE
            | Op::DICT
            | Op::LIST
            | Op::GET
            | Op::PUT
            | Op::INST
            | Op::OBJ
            | Op::BINBYTES
            | Op::SHORT_BINBYTES
            | Op::EXT1
            | Op::EXT2
            | Op::EXT4
            | Op::SHORT_BINUNICODE
            | Op::BINUNICODE8
            | Op::BINBYTES8
            | Op::ADDITEMS
            | Op::FROZENSET
            | Op::NEWOBJ_EX
            | Op::STACK_GLOBAL
            | Op::MEMOIZE
            | Op::FRAME
            | Op::BYTEARRAY8
            | Op::NEXT_BUFFER
            | Op::READONLY_BUFFER
    )
}

/// Whether torch lets a GLOBAL pass.
pub(super) fn check_global(trace: &mut Trace<'_>, module: &str, name: &str, offset: usize) {
    let (module, name) = renamed(module, name, true);
    if ["sys", "os", "posix", "nt"].contains(&module.as_str()) {
        trace.refuse(offset, format!("the module {module} is never allowed ({module}.{name})"));
    } else if !TORCH.contains_key(format!("{module}.{name}").as_str()) {
        trace.refuse(offset, format!("{module}.{name} is not allowed by default"));
    }
}

/// The functions that give a tensor.
fn gives_tensor(path: &str) -> bool {
    path.starts_with("torch._utils._rebuild_") && !path.contains("parameter")
        || path == "torch._tensor._rebuild_from_type_v2"
        || path == "torch.Tensor"
}

fn is_parameter(path: &str) -> bool {
    path.starts_with("torch._utils._rebuild_parameter") || path == "torch.nn.parameter.Parameter"
}

fn is_tensor(trace: &Trace<'_>, value: Val) -> bool {
    matches!(value, Val::Made(name) if gives_tensor(trace.path(name)) || is_parameter(trace.path(name)))
}

/// Whether it could be a list of integers, and the integers of a tuple or `torch.Size`.
fn integers(trace: &Trace<'_>, value: Val) -> Result<Option<Vec<i64>>, ()> {
    match value {
        Val::Tuple { .. } => {
            let values = trace.elements(value).unwrap_or_default();
            let numbers = values.iter().map(|v| if let Val::Int(n) = v { Some(*n) } else { None });
            numbers.collect::<Option<Vec<i64>>>().map(Some).ok_or(())
        }
        Val::List => Ok(None),
        Val::Made(name) if trace.path(name) == "torch.Size" => Ok(None),
        _ => Err(()),
    }
}

/// Checks `_rebuild_tensor*(storage, offset, size, stride, ...)`.
fn rebuild(trace: &Trace<'_>, args: &[Val]) -> Result<(), String> {
    let &[storage, offset, size, stride, ..] = args else { return Err("too few arguments".to_owned()) };
    let Val::Storage(index) = storage else { return Err("its first argument is no storage".to_owned()) };
    let Val::Int(offset) = offset else { return Err("its offset is no number".to_owned()) };
    let bad = |()| "its size or stride are no numbers".to_owned();
    let (size, stride) = (integers(trace, size).map_err(bad)?, integers(trace, stride).map_err(bad)?);
    let (Some(size), Some(stride), Some(storage)) = (size, stride, trace.storage(index)) else { return Ok(()) };
    if size.len() != stride.len() {
        return Err("its size and stride are of different length".to_owned());
    }
    if offset < 0 || size.iter().any(|&n| n < 0) || stride.iter().any(|&n| n < 0) {
        return Err("its offset, size or stride is negative".to_owned());
    }
    if size.contains(&0) {
        return Ok(());
    }
    let last = size
        .iter()
        .zip(&stride)
        .try_fold(offset, |sum, (&n, &step)| (n - 1).checked_mul(step).and_then(|x| x.checked_add(sum)));
    match last {
        Some(last) if last < storage.numel => Ok(()),
        _ => Err(format!("it reaches outside of its storage {:?} of {} elements", storage.key, storage.numel)),
    }
}

/// The layouts of tensors, as PyTorch 2.15 names them.
const LAYOUTS: &[&str] = &[
    "torch.strided",
    "torch.sparse_coo",
    "torch.sparse_csr",
    "torch.sparse_csc",
    "torch.sparse_bsr",
    "torch.sparse_bsc",
    "torch._mkldnn",
    "torch.jagged",
];

/// A codec that honest pickles use for bytes.
fn plain_codec(name: &str) -> bool {
    matches!(name.to_ascii_lowercase().replace(['-', '_'], "").as_str(), "latin1" | "iso88591" | "utf8" | "ascii")
}

/// Judges the arguments of an allowed call; what it gives, or why it fails.
fn arguments(trace: &mut Trace<'_>, op: Op, index: u32, args: Val, offset: usize) -> Result<Val, String> {
    /// More bytes than any honest pickle asks for with one number.
    const HUGE: i64 = 1 << 30;
    let path = trace.path(index).to_owned();
    let made = Ok(Val::Made(index));
    let Some(values) = trace.elements(args) else {
        return match args {
            Val::List | Val::Dict | Val::Set | Val::Text { .. } | Val::OwnText(_) | Val::Made(_) | Val::Unknown
                if op == Op::REDUCE =>
            {
                made
            }
            _ => Err(format!("the arguments of {path} are no tuple")),
        };
    };
    let n = values.len();
    let first = values.first().copied();
    let wrong = || Err(format!("{path} is called with {n} arguments"));
    match path.as_str() {
        "builtins.bytearray" | "builtins.bytes" | "numpy.ndarray" => match first {
            Some(Val::Int(size)) if size > HUGE => Err(format!("{path} is asked for {size} bytes at once")),
            Some(Val::Int(size)) if size < 0 => Err(format!("{path} is asked for {size} bytes")),
            _ if path == "builtins.bytearray" && n > 3 => wrong(),
            _ => made,
        },
        "_codecs.encode" => {
            if !(1..=3).contains(&n) {
                return wrong();
            }
            let codec = values.get(1).copied();
            let codec = codec.map_or(Some("utf-8"), |codec| trace.text(codec)).map(str::to_owned);
            let (Some(codec), Some(text)) = (codec, first.and_then(|text| trace.text(text))) else {
                return Err(format!("{path} encodes something that is no text in the pickle"));
            };
            if !plain_codec(&codec) {
                return Err(format!("{path} is called with the codec {codec:?}, which honest pickles do not use"));
            }
            let latin1: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
            let bytes = if codec.starts_with(['l', 'L', 'i', 'I']) { latin1 } else { Some(text.as_bytes().to_vec()) };
            let Some(bytes) = bytes else { return Err(format!("{path} cannot encode its text")) };
            trace.decoded(offset, &bytes);
            Ok(trace.own_bytes(bytes))
        }
        "torch._utils._rebuild_tensor_v2" if !(6..=7).contains(&n) => wrong(),
        "torch._utils._rebuild_tensor" if n != 4 => wrong(),
        "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
            rebuild(trace, &values).map_err(|why| format!("{path}: {why}"))?;
            if values.get(4).is_some_and(|&gradient| gradient != Val::Bool) {
                return Err(format!("{path}: whether it has a gradient is neither true nor false"));
            }
            made
        }
        "torch._utils._rebuild_parameter" if n != 3 => wrong(),
        "torch._utils._rebuild_parameter_with_state" if n != 4 => wrong(),
        "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => match first {
            Some(value) if is_tensor(trace, value) => made,
            _ => Err(format!("{path} is given something that is no tensor")),
        },
        "torch.serialization._get_layout" => match first.and_then(|name| trace.text(name)) {
            Some(name) if n == 1 && LAYOUTS.contains(&name) => made,
            _ => Err(format!("{path} is not given the name of a layout")),
        },
        "collections.OrderedDict" if n > 1 => wrong(),
        "collections.OrderedDict" => match first {
            None | Some(Val::List | Val::Dict | Val::Made(_) | Val::Tuple { .. } | Val::Unknown) => made,
            _ => Err(format!("{path} is given something that is no dictionary")),
        },
        "builtins.set" | "torch.Size" | "collections.Counter" if n > 1 && op == Op::REDUCE => wrong(),
        "builtins.set" => match first {
            Some(Val::Int(_) | Val::None | Val::Bool | Val::Float) => {
                Err(format!("{path} is given something that is no collection"))
            }
            _ => made,
        },
        "torch.Size" => match first {
            None => made,
            Some(value) if integers(trace, value).is_ok() => made,
            Some(_) => Err(format!("{path} is given something that is no list of numbers")),
        },
        "torch.device" => match first {
            Some(Val::Text { .. } | Val::OwnText(_) | Val::Int(_) | Val::Made(_)) if n <= 2 => made,
            _ => Err(format!("{path} is not given the name of a device")),
        },
        _ => match TORCH.get(path.as_str()) {
            Some(Kind::Dtype | Kind::Qscheme | Kind::Storage(_)) => Err(format!("{path} cannot be called")),
            Some(Kind::TensorClass | Kind::StorageClass(_))
                if first.is_some_and(|v| matches!(v, Val::Int(n) if n > HUGE)) =>
            {
                Err(format!("{path} is asked for a huge size"))
            }
            Some(Kind::Function) if op != Op::REDUCE => Err(format!("{path} is a function, and no class")),
            _ => made,
        },
    }
}

/// What a call gives. Odd arguments of allowed functions are findings.
pub(super) fn call(trace: &mut Trace<'_>, op: Op, index: u32, args: Val, offset: usize) -> Val {
    let allowed = trace.level(index) == Level::Allowed;
    if !allowed {
        trace.refuse(offset, format!("it calls {}", trace.path(index)));
        return Val::Made(index);
    }
    if !TORCH.contains_key(trace.path(index)) {
        trace.refuse(offset, format!("{} is not allowed by default", trace.path(index)));
    }
    match arguments(trace, op, index, args, offset) {
        Ok(value) => value,
        Err(why) => {
            let level = if why.contains("codec") { Level::Unknown } else { Level::Suspicious };
            trace.find(level, Rule::OddArguments, offset, why.clone());
            trace.refuse(offset, why);
            Val::Made(index)
        }
    }
}

/// BUILD: whether torch lets the state be set.
pub(super) fn build(trace: &mut Trace<'_>, target: Val, state: Val, offset: usize) {
    let refused = match target {
        Val::Made(name) => {
            let path = trace.path(name);
            if path == "collections.OrderedDict" || path == "collections.Counter" {
                (!matches!(state, Val::Dict | Val::List)).then(|| format!("the state of {path} is no dictionary"))
            } else if is_parameter(path) || gives_tensor(path) {
                (!matches!(state, Val::Tuple { .. })).then(|| format!("the state of what {path} gave is no tuple"))
            } else if TORCH.contains_key(path) {
                (!matches!(state, Val::Dict | Val::Tuple { .. })).then(|| format!("the state of {path} is none"))
            } else {
                Some(format!("it sets the state of {path}"))
            }
        }
        _ => Some("it sets the state of something that has none".to_owned()),
    };
    if let Some(why) = refused {
        trace.refuse(offset, why);
    }
}

/// APPEND and its like: whether torch lets the value be changed.
pub(super) fn fill(trace: &mut Trace<'_>, op: Op, target: Val, key: Option<Val>, offset: usize) {
    let fits = match (op, target) {
        (Op::APPEND | Op::APPENDS, Val::List) | (Op::SETITEM | Op::SETITEMS, Val::Dict) => true,
        (Op::SETITEM | Op::SETITEMS, Val::Made(name)) => {
            matches!(trace.path(name), "collections.OrderedDict" | "collections.Counter")
        }
        _ => false,
    };
    if !fits {
        trace.refuse(offset, format!("{} is applied to something that is neither list nor dictionary", op.name()));
    }
    if matches!(key, Some(Val::List | Val::Dict | Val::Set)) {
        trace.refuse(offset, "a key of a dictionary is a list, dictionary or set".to_owned());
    }
}

/// Whether PyTorch knows where a storage tagged so belongs; whether this machine has such a device is another matter.
fn is_location(tag: &str) -> bool {
    const DEVICES: &[&str] = &["cuda", "hpu", "xpu", "mps", "mtia", "privateuseone"];
    ["cpu", "meta"].contains(&tag) || DEVICES.iter().any(|device| tag.starts_with(device))
}

/// The class in a persistent id `("module", class, file, source)`, as legacy files have them for modules.
pub(super) fn module_class(trace: &mut Trace<'_>, id: Val) -> Option<Val> {
    match trace.elements(id)?.as_slice() {
        &[word, class @ Val::Global(_), _, _] if trace.text(word) == Some("module") => Some(class),
        _ => None,
    }
}

/// The storage that a persistent id asks for, or what is odd about the id.
pub(super) fn storage(trace: &mut Trace<'_>, id: Val, offset: usize) -> Result<StorageRef, String> {
    let values = trace.elements(id).ok_or("it is no tuple")?;
    let word = values.first().and_then(|&word| trace.text(word)).unwrap_or("");
    if word != "storage" {
        let shown: String = word.chars().take(40).collect();
        return Err(format!("it asks for {shown:?} instead of a storage"));
    }
    let (&[_, class, key, location, numel] | &[_, class, key, location, numel, _]) = values.as_slice() else {
        return Err(format!("it has {} parts instead of 5 or 6", values.len()));
    };
    let Val::Global(class) = class else { return Err("it names no type".to_owned()) };
    let element = match TORCH.get(trace.path(class)) {
        Some(Kind::Storage(size) | Kind::StorageClass(size)) if *size > 0 => *size,
        _ => return Err(format!("{} is no type of storage", trace.path(class))),
    };
    let key = match key {
        Val::Int(key) => key.to_string(),
        key => trace.text(key).ok_or("it has no key")?.to_owned(),
    };
    if key.is_empty()
        || key.len() > 40
        || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'.')
        || key.contains("..")
    {
        let shown: String = key.chars().take(40).collect();
        return Err(format!("its key is {shown:?}"));
    }
    match trace.text(location).map(str::to_owned) {
        Some(location) if is_location(&location) => {}
        Some(location) => {
            trace.refuse(offset, format!("there is no device {:?}", location.chars().take(40).collect::<String>()))
        }
        None => trace.refuse(offset, "the device of a storage is no text".to_owned()),
    }
    let Val::Int(numel) = numel else { return Err("its length is no number".to_owned()) };
    if numel < 0 {
        return Err(format!("its length is {numel}"));
    }
    Ok(StorageRef { offset, key, numel, element, fields: values.len() as u32 })
}
