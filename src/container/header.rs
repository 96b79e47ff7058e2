//! The JSON header of a safetensors file, read without trusting it.
//!
//! Limits hold while it is parsed, and no text of the file goes into a message unless it is short.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::tree::{MAX_ALL_NAMES_BYTES, MAX_NAME_BYTES, MAX_TENSORS};
use super::{Storage, Stored, Value, ValueId};
use crate::pickle::{Budget, Full, MAX_VALUE_BYTES, allocated};
use crate::tensor::MAX_DIMENSIONS;

/// The largest number of entries of `__metadata__`.
pub const MAX_METADATA_ENTRIES: usize = 1 << 16;
/// The largest number of bytes of all keys and values of `__metadata__` together.
pub const MAX_METADATA_BYTES: usize = 32 << 20;

/// The header in its own order.
#[derive(Debug)]
pub(super) struct Header<'b> {
    pub(super) tensors: Vec<Info>,
    pub(super) metadata: Vec<(Arc<str>, Arc<str>)>,
    names: usize,
    budget: &'b mut Budget,
}

/// What it says of a tensor.
#[derive(Debug)]
pub(super) struct Info {
    pub(super) name: Arc<str>,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) offsets: (u64, u64),
}

/// The name of an element type, of up to fifteen bytes: all that are in use are shorter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dtype {
    bytes: [u8; 15],
    length: u8,
}

impl Dtype {
    fn new(text: &str) -> Option<Dtype> {
        let mut bytes = [0; 15];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Dtype { bytes, length: text.len() as u8 })
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl<'b> Header<'b> {
    /// Bytes of memory that all that is made of a tensor takes, but for its name and shape: the vectors here have up to twice
    /// as many places, and the tensor, its storage, and its places in the tree are made of it.
    const TENSOR: usize = 2 * size_of::<Info>()
        + 2 * size_of::<(u64, u64, usize)>()
        + size_of::<Stored>()
        + size_of::<Storage>()
        + 4 * size_of::<Value>()
        + 2 * size_of::<(ValueId, ValueId)>();
    /// The same of an entry of `__metadata__`, but for its texts.
    const ENTRY: usize = 4 * size_of::<Arc<str>>() + 4 * size_of::<Value>() + 2 * size_of::<(ValueId, ValueId)>();

    /// Reads the header within `budget`.
    ///
    /// # Errors
    /// What is wrong, with line and column: no JSON, not as safetensors writes it, past a limit, or a name that occurs
    /// twice, where JSON libraries keep the last.
    pub(super) fn parse(json: &[u8], budget: &'b mut Budget) -> Result<Header<'b>, String> {
        let mut header = Header { tensors: Vec::new(), metadata: Vec::new(), names: 0, budget };
        let mut parser = serde_json::Deserializer::from_slice(json);
        Object(&mut header).deserialize(&mut parser).and_then(|()| parser.end()).map_err(|error| error.to_string())?;
        let mut names: Vec<&str> = header.tensors.iter().map(|tensor| &*tensor.name).collect();
        let mut keys: Vec<&str> = header.metadata.iter().map(|(key, _)| &**key).collect();
        for names in [&mut names, &mut keys] {
            names.sort_unstable();
            if let Some([twice, _]) = names.array_windows().find(|[first, second]| first == second) {
                let shown = &twice[..twice.floor_char_boundary(MAX_NAME_BYTES)];
                return Err(format!("the name {shown:?} occurs twice"));
            }
        }
        Ok(header)
    }
}

/// A visitor that says what it expects, and repeats no text of the file in its messages.
macro_rules! expecting {
    ($what:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str($what)
        }
    };
    ($what:expr, not text) => {
        expecting!($what);

        fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::custom(concat!("a text where ", $what, " is expected")))
        }
    };
}

/// A seed that is its own visitor. Asked for anything, the parser leaves it to the visitor to refuse a text; asked for
/// a map, it would repeat the text.
macro_rules! seed {
    ($seed:ty, $value:ty) => {
        impl<'de> DeserializeSeed<'de> for $seed {
            type Value = $value;

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<$value, D::Error> {
                deserializer.deserialize_any(self)
            }
        }
    };
}

/// A text of at most that many bytes.
struct Text(usize);

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Text {
    fn check<E: Error>(&self, text: &str) -> Result<(), E> {
        if text.len() > self.0 {
            return Err(E::custom(format_args!("a text of {} bytes, where {} is the limit", text.len(), self.0)));
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    expecting!("a text");

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        self.check(text).map(|()| Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Cow<'de, str>, E> {
        self.check(text).map(|()| Cow::Owned(text.to_owned()))
    }
}

/// What is said where there is no memory left.
fn too_large<E: Error>(Full: Full) -> E {
    E::custom(format_args!("it takes more than {MAX_VALUE_BYTES} bytes of memory, the limit of this reader"))
}

/// The whole header.
struct Object<'h, 'b>(&'h mut Header<'b>);

seed!(Object<'_, '_>, ());

impl<'de> Visitor<'de> for Object<'_, '_> {
    type Value = ();

    expecting!("an object of tensors", not text);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Object(header) = self;
        let mut metadata = false;
        while let Some(name) = map.next_key_seed(Text(MAX_NAME_BYTES))? {
            if name == "__metadata__" {
                if std::mem::replace(&mut metadata, true) {
                    return Err(A::Error::custom("the name \"__metadata__\" occurs twice"));
                }
                map.next_value_seed(Metadata(header))?;
                continue;
            }
            header.names += name.len();
            if header.names > MAX_ALL_NAMES_BYTES {
                return Err(A::Error::custom(format_args!("more than {MAX_ALL_NAMES_BYTES} bytes of names")));
            }
            if header.tensors.len() >= MAX_TENSORS {
                return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
            }
            let (dtype, shape, offsets) = map.next_value_seed(Tensor)?;
            let bytes = allocated(16 + name.len()) + 2 * allocated(size_of::<usize>() * shape.len());
            header.budget.take(bytes).and_then(|()| header.budget.take_table(Header::TENSOR)).map_err(too_large)?;
            header.tensors.push(Info { name: name.into(), dtype, shape, offsets });
        }
        Ok(())
    }
}

/// `__metadata__`: texts by key.
struct Metadata<'h, 'b>(&'h mut Header<'b>);

seed!(Metadata<'_, '_>, ());

impl<'de> Visitor<'de> for Metadata<'_, '_> {
    type Value = ();

    expecting!("an object of texts", not text);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut left = MAX_METADATA_BYTES;
        while let Some(key) = map.next_key_seed(Text(left))? {
            if self.0.metadata.len() >= MAX_METADATA_ENTRIES {
                let limit = MAX_METADATA_ENTRIES;
                return Err(A::Error::custom(format_args!("more than {limit} entries in __metadata__")));
            }
            left -= key.len();
            let value = map.next_value_seed(Text(left))?;
            left -= value.len();
            let bytes = allocated(16 + key.len()) + allocated(16 + value.len());
            let budget = &mut self.0.budget;
            budget.take(bytes).and_then(|()| budget.take_table(Header::ENTRY)).map_err(too_large)?;
            self.0.metadata.push((key.into(), value.into()));
        }
        Ok(())
    }
}

/// One tensor: its type, shape and offsets.
struct Tensor;

seed!(Tensor, (Dtype, Vec<usize>, (u64, u64)));

impl<'de> Visitor<'de> for Tensor {
    type Value = (Dtype, Vec<usize>, (u64, u64));

    expecting!("an object with dtype, shape and data_offsets", not text);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        /// The longest key shown in a message.
        const SHOWN: usize = 64;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let mut fields = 0;
        while let Some(key) = map.next_key_seed(Text(SHOWN))? {
            fields += 1;
            match &*key {
                "dtype" if dtype.is_none() => {
                    let text = map.next_value_seed(Text(SHOWN))?;
                    let short = Dtype::new(&text);
                    dtype = Some(short.ok_or_else(|| A::Error::custom(format_args!("the type {text:?} is unknown")))?);
                }
                "shape" if shape.is_none() => shape = Some(map.next_value_seed(Numbers(MAX_DIMENSIONS))?),
                "data_offsets" if offsets.is_none() => offsets = Some(map.next_value_seed(Numbers(2))?),
                _ => return Err(A::Error::custom(format_args!("the field {key:?} is unknown or occurs twice"))),
            }
        }
        match (dtype, shape, offsets.as_deref()) {
            (Some(dtype), Some(shape), Some(&[begin, end])) => {
                Ok((dtype, shape.into_iter().map(|n| n as usize).collect(), (begin, end)))
            }
            (_, _, Some([] | [_])) => Err(A::Error::custom("data_offsets are two numbers")),
            _ => Err(A::Error::custom(format_args!("a tensor with {fields} of the fields dtype, shape, data_offsets"))),
        }
    }
}

/// An array of at most that many numbers.
struct Numbers(usize);

seed!(Numbers, Vec<u64>);

impl<'de> Visitor<'de> for Numbers {
    type Value = Vec<u64>;

    expecting!("an array of numbers", not text);

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<u64>, A::Error> {
        let mut numbers = Vec::new();
        while numbers.len() < self.0 {
            let Some(number) = sequence.next_element_seed(Number)? else {
                numbers.shrink_to_fit();
                return Ok(numbers);
            };
            numbers.push(number);
        }
        match sequence.next_element::<IgnoredAny>()? {
            None => Ok(numbers),
            Some(_) => Err(A::Error::custom(format_args!("an array of more than {} numbers", self.0))),
        }
    }
}

struct Number;

seed!(Number, u64);

impl Visitor<'_> for Number {
    type Value = u64;

    expecting!("a whole number that is not negative", not text);

    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }
}
