//! The header of a NumPy array: magic, version, length, and a Python dictionary of three entries.
//!
//! Follows `numpy/lib/format.py`, versions 1.0 to 3.0. The dictionary is read by a small parser of Python literals that
//! takes what NumPy writes (Python 2's `3L` included) and nothing else.

use crate::tensor::{ByteOrder, DType, MAX_DIMENSIONS, contiguous_strides};

/// The first bytes of an array in NumPy's format.
pub(in crate::container) const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The largest header read, in bytes; NumPy itself takes 10,000 unless it is told to trust the file.
pub const MAX_NUMPY_HEADER_BYTES: usize = 1 << 20;

/// The largest number of bytes of all headers of an archive together.
pub const MAX_NPZ_HEADERS_BYTES: usize = 64 << 20;

/// The deepest nesting of a header's values; structured types of structured types are the only honest need.
const MAX_NESTING: usize = 32;

/// Why an array in NumPy's format cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NumpyProblem {
    /// The array does not begin as the format says.
    #[error("it does not begin as an array in NumPy's format does: save it again with numpy.save")]
    Magic,
    /// A version of the format that is not known.
    #[error(
        "it is of version {major}.{minor} of NumPy's format, and only 1.0, 2.0 and 3.0 are known: save it again with a current NumPy"
    )]
    Version {
        /// The major version.
        major: u8,
        /// The minor version.
        minor: u8,
    },
    /// The file ends inside of the header.
    #[error("it ends inside of its header, after {available} bytes: it was cut off; download or copy it again")]
    HeaderTruncated {
        /// Bytes that there are.
        available: u64,
    },
    /// The header is larger than this reader takes.
    #[error("its header claims {declared} bytes, past the limit of {MAX_NUMPY_HEADER_BYTES}")]
    HeaderTooLarge {
        /// Bytes that the header is said to have.
        declared: u64,
    },
    /// The headers of an archive together are larger than this reader takes.
    #[error("the archive has more than {MAX_NPZ_HEADERS_BYTES} bytes of headers, the limit of this reader")]
    HeadersTooLarge,
    /// The header is not the dictionary that NumPy writes.
    #[error("its header is malformed at byte {offset}: {what}; save it again with numpy.save")]
    Header {
        /// Where, in bytes from the start of the array.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The data is shorter or longer than the shape needs.
    #[error("its shape {shape:?} needs {needed} bytes of data, but {found} are there: {}", if found < needed { "it was cut off; download or copy it again" } else { "something was appended to it; get it again" })]
    DataLength {
        /// The shape.
        shape: Vec<usize>,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes after the header.
        found: u64,
    },
}

/// What a header says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub(super) shape: Vec<usize>,
    /// Elements between neighbours, for each dimension.
    pub(super) strides: Vec<usize>,
    pub(super) element: Element,
}

/// The elements of an array.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Element {
    Number(DType, ByteOrder),
    /// Anything else, by its description as written.
    Other(String),
}

/// The length of the header's fixed part, which tells that of the rest: magic, version, and two or four bytes.
pub(super) fn fixed_length(start: &[u8]) -> Result<usize, NumpyProblem> {
    if !start.starts_with(MAGIC) {
        return Err(NumpyProblem::Magic);
    }
    match *start {
        [_, _, _, _, _, _, 1, 0, ..] => Ok(10),
        [_, _, _, _, _, _, 2 | 3, 0, ..] => Ok(12),
        [_, _, _, _, _, _, major, minor, ..] => Err(NumpyProblem::Version { major, minor }),
        _ => Err(NumpyProblem::HeaderTruncated { available: start.len() as u64 }),
    }
}

/// Bytes before the data, told from the first twelve of the array (fewer if it has fewer).
pub(super) fn length(start: &[u8]) -> Result<usize, NumpyProblem> {
    let fixed = fixed_length(start)?;
    let declared = match start.get(8..fixed) {
        Some(&[a, b]) => u64::from(u16::from_le_bytes([a, b])),
        Some(&[a, b, c, d]) => u64::from(u32::from_le_bytes([a, b, c, d])),
        _ => return Err(NumpyProblem::HeaderTruncated { available: start.len() as u64 }),
    };
    if declared > MAX_NUMPY_HEADER_BYTES as u64 {
        return Err(NumpyProblem::HeaderTooLarge { declared });
    }
    Ok(fixed + declared as usize)
}

/// Reads the header at the start of `array`; what follows it is not looked at.
pub(super) fn read(array: &[u8]) -> Result<Header, NumpyProblem> {
    let (fixed, length) = (fixed_length(array)?, length(array)?);
    let header = array.get(fixed..length).ok_or(NumpyProblem::HeaderTruncated { available: array.len() as u64 })?;
    let mut parser = Parser { text: header, at: 0, utf8: array.get(6) == Some(&3) };
    parser.header().map_err(|(at, what)| NumpyProblem::Header { offset: fixed + at, what })
}

/// A Python literal, as far as headers hold them.
#[derive(Debug)]
enum Literal {
    /// A text: where it is, without its quotes.
    Text(std::ops::Range<usize>),
    Int(u64),
    Bool(bool),
    Tuple(Vec<Literal>),
    List,
}

/// Where in the header, and what is wrong there.
type Wrong = (usize, &'static str);

struct Parser<'t> {
    text: &'t [u8],
    at: usize,
    /// Whether texts are UTF-8, as of version 3; they are Latin-1 before.
    utf8: bool,
}

impl Parser<'_> {
    fn header(&mut self) -> Result<Header, Wrong> {
        self.space();
        self.expect(b'{', "a dictionary was expected")?;
        let (mut descr, mut order, mut shape) = (None, None, None);
        loop {
            self.space();
            if self.eat(b'}') {
                break;
            }
            let at = self.at;
            let Literal::Text(key) = self.literal(0)? else { return Err((at, "a key was expected")) };
            self.space();
            self.expect(b':', "':' was expected")?;
            self.space();
            let value_at = self.at;
            let value = self.literal(0)?;
            let is_new = match &self.text[key] {
                b"descr" => descr.replace((value, value_at..self.at)).is_none(),
                b"fortran_order" => match value {
                    Literal::Bool(fortran) => order.replace(fortran).is_none(),
                    _ => return Err((value_at, "fortran_order is neither True nor False")),
                },
                b"shape" => match value {
                    Literal::Tuple(sizes) => shape.replace((sizes, value_at)).is_none(),
                    _ => return Err((value_at, "shape is no tuple")),
                },
                _ => return Err((at, "its keys are not descr, fortran_order and shape")),
            };
            if !is_new {
                return Err((at, "a key occurs twice"));
            }
            self.space();
            if !self.eat(b',') {
                self.expect(b'}', "',' or '}' was expected")?;
                break;
            }
        }
        self.space();
        if self.at != self.text.len() {
            return Err((self.at, "something follows the dictionary"));
        }
        let (Some((descr, span)), Some(fortran), Some((sizes, shape_at))) = (descr, order, shape) else {
            return Err((self.at, "one of the keys descr, fortran_order and shape is missing"));
        };
        if sizes.len() > MAX_DIMENSIONS {
            return Err((shape_at, "it has more dimensions than any array"));
        }
        let size = |size: &Literal| match size {
            Literal::Int(n) => usize::try_from(*n).map_err(|_| (shape_at, "a dimension is larger than any memory")),
            _ => Err((shape_at, "a dimension is no number")),
        };
        let shape = sizes.iter().map(size).collect::<Result<Vec<_>, _>>()?;
        let strides = if fortran {
            let mut strides = contiguous_strides(&shape.iter().rev().copied().collect::<Vec<_>>());
            strides.reverse();
            strides
        } else {
            contiguous_strides(&shape)
        };
        let element = match descr {
            Literal::Text(text) => {
                let text = &self.text[text];
                element(text).unwrap_or_else(|| Element::Other(self.decoded(text)))
            }
            Literal::List => Element::Other(self.decoded(&self.text[span])),
            _ => return Err((span.start, "descr describes no type")),
        };
        Ok(Header { shape, strides, element })
    }

    fn decoded(&self, text: &[u8]) -> String {
        if self.utf8 {
            String::from_utf8_lossy(text).into_owned()
        } else {
            text.iter().copied().map(char::from).collect()
        }
    }

    fn literal(&mut self, depth: usize) -> Result<Literal, Wrong> {
        if depth > MAX_NESTING {
            return Err((self.at, "it nests too deeply"));
        }
        match self.text.get(self.at) {
            Some(&quote @ (b'\'' | b'"')) => self.text(quote).map(Literal::Text),
            Some(b'0'..=b'9') => self.int().map(Literal::Int),
            Some(b'(') => self.sequence(b')', depth).map(Literal::Tuple),
            Some(b'[') => self.sequence(b']', depth).map(|_| Literal::List),
            _ if self.word(b"True") => Ok(Literal::Bool(true)),
            _ if self.word(b"False") => Ok(Literal::Bool(false)),
            _ => Err((self.at, "a value was expected")),
        }
    }

    /// A text up to its closing quote; an escaped character stays as it is written.
    fn text(&mut self, quote: u8) -> Result<std::ops::Range<usize>, Wrong> {
        let begin = self.at;
        self.at += 1;
        loop {
            match self.text.get(self.at) {
                Some(b'\\') => self.at += 2,
                Some(&byte) if byte == quote => {
                    self.at += 1;
                    return Ok(begin + 1..self.at - 1);
                }
                Some(b'\n') | None => return Err((begin, "a text does not end")),
                Some(_) => self.at += 1,
            }
        }
    }

    fn int(&mut self) -> Result<u64, Wrong> {
        let begin = self.at;
        let mut n = 0u64;
        while let Some(digit @ b'0'..=b'9') = self.text.get(self.at) {
            let digit = u64::from(digit - b'0');
            n = n.checked_mul(10).and_then(|n| n.checked_add(digit)).ok_or((begin, "a number is too large"))?;
            self.at += 1;
        }
        // Python 2 marks long integers.
        self.eat(b'L');
        Ok(n)
    }

    /// The items up to `close`. One item in parentheses without a comma is no tuple.
    fn sequence(&mut self, close: u8, depth: usize) -> Result<Vec<Literal>, Wrong> {
        let begin = self.at;
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.space();
            if self.eat(close) {
                return Ok(items);
            }
            items.push(self.literal(depth + 1)?);
            self.space();
            if !self.eat(b',') {
                self.expect(close, "',' or a closing bracket was expected")?;
                if items.len() == 1 && close == b')' {
                    return Err((begin, "a tuple of one value lacks its comma"));
                }
                return Ok(items);
            }
        }
    }

    fn space(&mut self) {
        while self.text.get(self.at).is_some_and(|&byte| matches!(byte, b' ' | b'\n' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), Wrong> {
        if self.eat(byte) { Ok(()) } else { Err((self.at, what)) }
    }

    fn word(&mut self, word: &[u8]) -> bool {
        let found = self.text[self.at..].starts_with(word);
        self.at += if found { word.len() } else { 0 };
        found
    }
}

/// The number type of a description such as `<f4`. Without a mark of its byte order, or with `=`, it is little-endian, as
/// NumPy takes it on every machine that PyTorch is made for; NumPy itself always writes `<`, `>` or (one byte) `|`.
///
/// `<V2` is what NumPy writes for the bfloat16 of the package ml_dtypes, and `<V1` for most of its 8-bit floats and all of
/// its smaller types; NumPy reads them back as bytes without a meaning, and so they are no numbers here.
fn element(descr: &[u8]) -> Option<Element> {
    let (order, kind) = match descr.split_first()? {
        (b'<' | b'=' | b'|', rest) => (ByteOrder::Little, rest),
        (b'>', rest) => (ByteOrder::Big, rest),
        _ => (ByteOrder::Little, descr),
    };
    let dtype = match kind {
        b"f2" => DType::F16,
        b"f4" => DType::F32,
        b"f8" => DType::F64,
        b"i1" => DType::I8,
        b"i2" => DType::I16,
        b"i4" => DType::I32,
        b"i8" => DType::I64,
        b"u1" => DType::U8,
        b"u2" => DType::U16,
        b"u4" => DType::U32,
        b"u8" => DType::U64,
        b"b1" => DType::Bool,
        b"c8" => DType::C64,
        b"c16" => DType::C128,
        _ => return None,
    };
    Some(Element::Number(dtype, order))
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
