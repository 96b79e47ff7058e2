//! NumPy's objects in pickles: scalars become numbers, arrays are named with their type and shape.
//!
//! Follows `numpy/core/src/multiarray/{scalartypes,methods}.c.src` (`scalar.__reduce__`, `ndarray.__reduce__`) and
//! `numpy.dtype.__reduce__`.

use crate::container::Value;
use crate::pickle::{Node, NodeId, Object, Pickle};

/// `_codecs.encode(text, "latin1")`: how protocol 2 pickles bytes.
pub(super) fn latin1(pickle: &Pickle, args: &[NodeId]) -> Option<Box<[u8]>> {
    let &[text, encoding] = args else { return None };
    match (pickle.node(text), pickle.node(encoding)) {
        (Node::Str(text), Node::Str(encoding)) if matches!(&**encoding, "latin1" | "latin-1") => {
            text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
        }
        _ => None,
    }
}

/// A type code (`f8`, `i4`, ...) and whether its numbers are big-endian.
fn dtype(pickle: &Pickle, id: NodeId) -> Option<(&str, bool)> {
    let Node::Object(dtype) = pickle.node(id) else { return None };
    let Node::Str(code) = pickle.node(*pickle.sequence(dtype.args)?.first()?) else { return None };
    let state = dtype.state.first().and_then(|&s| pickle.sequence(s)).unwrap_or(&[]);
    let big = matches!(state.get(1).map(|&order| pickle.node(order)), Some(Node::Str(order)) if &**order == ">");
    Some((code, big))
}

/// `numpy.core.multiarray.scalar(dtype("f8"), bytes)`: a number.
pub(super) fn scalar(pickle: &Pickle, args: &[NodeId]) -> Option<Value> {
    /// Bytes of the longest text that stands for a number; scalars may share a longer one, and each would look at it.
    const LONGEST: usize = 32;
    let &[kind, data] = args else { return None };
    let (code, big) = dtype(pickle, kind)?;
    let mut bytes = match pickle.node(data) {
        Node::Bytes(bytes) if bytes.len() <= LONGEST => bytes.clone(),
        Node::Object(call) if pickle.global(call.callable) == Some(("_codecs", "encode")) => {
            let args = pickle.sequence(call.args)?;
            let is_long = |&arg: &NodeId| matches!(pickle.node(arg), Node::Str(text) if text.len() > LONGEST);
            if args.iter().take(2).any(is_long) {
                return None;
            }
            latin1(pickle, args)?
        }
        // Python 2 pickled the bytes as text where they happen to be text.
        Node::Str(text) if text.len() <= LONGEST && text.is_ascii() => text.as_bytes().into(),
        _ => return None,
    };
    if big {
        bytes.reverse();
    }
    let signed = |bytes: &[u8]| {
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Value::Int(i64::from_le_bytes(wide)))
    };
    match (code, &*bytes) {
        ("f8", bytes) => Some(Value::Float(f64::from_le_bytes(*bytes.as_array()?))),
        ("f4", bytes) => Some(Value::Float(f64::from(f32::from_le_bytes(*bytes.as_array()?)))),
        ("f2", bytes) => Some(Value::Float(half::f16::from_le_bytes(*bytes.as_array()?).to_f64())),
        ("b1", &[b]) => Some(Value::Bool(b != 0)),
        ("i1" | "i2" | "i4" | "i8", bytes) => signed(bytes),
        ("u1" | "u2" | "u4", bytes) => signed(&[bytes, &[0]].concat()),
        _ => None,
    }
}

/// An array (`_reconstruct` and its state): `numpy.ndarray float32 [2, 3]`. `None` for arrays of objects, whose elements
/// are values of the pickle.
pub(super) fn array(pickle: &Pickle, object: &Object) -> Option<Value> {
    let &[_, shape, kind, _, data] = pickle.sequence(*object.state.first()?)? else { return None };
    if pickle.sequence(data).is_some() {
        return None;
    }
    let (code, _) = dtype(pickle, kind)?;
    let shape = pickle.sequence(shape)?.iter().map(|&n| match pickle.node(n) {
        Node::Int(n) => Some(n.to_string()),
        _ => None,
    });
    let shape: Vec<String> = shape.take(crate::tensor::MAX_DIMENSIONS).collect::<Option<_>>()?;
    let code = code.get(..32).unwrap_or(code);
    Some(Value::Name(format!("numpy.ndarray {} [{}]", name(code), shape.join(", ")).into()))
}

/// NumPy's name of a type code, or the code itself.
fn name(code: &str) -> &str {
    match code {
        "f2" => "float16",
        "f4" => "float32",
        "f8" => "float64",
        "i1" => "int8",
        "i2" => "int16",
        "i4" => "int32",
        "i8" => "int64",
        "u1" => "uint8",
        "u2" => "uint16",
        "u4" => "uint32",
        "u8" => "uint64",
        "b1" => "bool",
        "c8" => "complex64",
        "c16" => "complex128",
        other => other,
    }
}
