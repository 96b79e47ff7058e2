//! The element types of PyTorch.

use std::fmt;

/// The byte order of stored numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// Least significant byte first: what nearly every file holds.
    Little,
    /// Most significant byte first: files written on s390x and the like.
    Big,
}

macro_rules! dtypes {
    ($( $(#[$doc:meta])* $variant:ident $torch:literal $size:literal $safetensors:expr, $storage:expr; )*) => {
        /// An element type of `torch.Tensor`; all that `torch.save` and safetensors can hold, but for quantised ones.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum DType { $( $(#[$doc])* $variant, )* }

        impl DType {
            /// Every element type, in the order of this enum.
            pub const ALL: &'static [DType] = &[ $( DType::$variant, )* ];

            /// PyTorch's name, without `torch.`: `float32`, `bfloat16`, ...
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( DType::$variant => $torch, )* }
            }

            /// Bytes per element.
            #[must_use]
            pub const fn size(self) -> usize {
                match self { $( DType::$variant => $size, )* }
            }

            /// The name in a safetensors header; `None` where the format has no such type.
            #[must_use]
            pub const fn safetensors_name(self) -> Option<&'static str> {
                match self { $( DType::$variant => $safetensors, )* }
            }

            /// The typed storage class of the `torch` module that pickles of this type refer to; `None` for the types
            /// that PyTorch pickles with an untyped storage and `_rebuild_tensor_v3`.
            #[must_use]
            pub const fn storage_class(self) -> Option<&'static str> {
                match self { $( DType::$variant => $storage, )* }
            }
        }
    };
}

dtypes! {
    /// 64-bit IEEE 754 floating point.
    F64 "float64" 8 Some("F64"), Some("DoubleStorage");
    /// 32-bit IEEE 754 floating point.
    F32 "float32" 4 Some("F32"), Some("FloatStorage");
    /// 16-bit IEEE 754 floating point.
    F16 "float16" 2 Some("F16"), Some("HalfStorage");
    /// The upper half of a 32-bit float.
    BF16 "bfloat16" 2 Some("BF16"), Some("BFloat16Storage");
    /// 8-bit float, 4 exponent and 3 mantissa bits, finite values and NaN only.
    F8E4M3Fn "float8_e4m3fn" 1 Some("F8_E4M3"), None;
    /// 8-bit float, 5 exponent and 2 mantissa bits.
    F8E5M2 "float8_e5m2" 1 Some("F8_E5M2"), None;
    /// 8-bit float, 4 exponent bits with bias 8, no infinities, no negative zero.
    F8E4M3FnUz "float8_e4m3fnuz" 1 Some("F8_E4M3FNUZ"), None;
    /// 8-bit float, 5 exponent bits with bias 16, no infinities, no negative zero.
    F8E5M2FnUz "float8_e5m2fnuz" 1 Some("F8_E5M2FNUZ"), None;
    /// 8-bit power of two: an exponent and nothing else.
    F8E8M0Fnu "float8_e8m0fnu" 1 Some("F8_E8M0"), None;
    /// A byte that holds two 4-bit floats.
    F4E2M1FnX2 "float4_e2m1fn_x2" 1 None, None;
    /// 64-bit signed integer.
    I64 "int64" 8 Some("I64"), Some("LongStorage");
    /// 32-bit signed integer.
    I32 "int32" 4 Some("I32"), Some("IntStorage");
    /// 16-bit signed integer.
    I16 "int16" 2 Some("I16"), Some("ShortStorage");
    /// 8-bit signed integer.
    I8 "int8" 1 Some("I8"), Some("CharStorage");
    /// 64-bit unsigned integer.
    U64 "uint64" 8 Some("U64"), None;
    /// 32-bit unsigned integer.
    U32 "uint32" 4 Some("U32"), None;
    /// 16-bit unsigned integer.
    U16 "uint16" 2 Some("U16"), None;
    /// 8-bit unsigned integer.
    U8 "uint8" 1 Some("U8"), Some("ByteStorage");
    /// One byte, 0 or 1.
    Bool "bool" 1 Some("BOOL"), Some("BoolStorage");
    /// Two 64-bit floats: real and imaginary part.
    C128 "complex128" 16 None, Some("ComplexDoubleStorage");
    /// Two 32-bit floats: real and imaginary part.
    C64 "complex64" 8 Some("C64"), Some("ComplexFloatStorage");
    /// Two 16-bit floats: real and imaginary part.
    C32 "complex32" 4 None, None;
    /// Two bfloat16: real and imaginary part.
    BC32 "bcomplex32" 4 None, None;
    /// 8 uninterpreted bits.
    Bits8 "bits8" 1 None, None;
    /// 16 uninterpreted bits.
    Bits16 "bits16" 2 None, None;
    /// 8 uninterpreted 1-bit values in a byte.
    Bits1x8 "bits1x8" 1 None, None;
    /// 4 uninterpreted 2-bit values in a byte.
    Bits2x4 "bits2x4" 1 None, None;
    /// 2 uninterpreted 4-bit values in a byte.
    Bits4x2 "bits4x2" 1 None, None;
}

impl DType {
    /// The type with that PyTorch name (`float32`, with or without `torch.`) or one of PyTorch's and the field's usual
    /// short forms (`float`, `half`, `f32`, `fp16`, `bf16`, `i64`, ...).
    #[must_use]
    pub fn from_name(name: &str) -> Option<DType> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        let alias = match name {
            "double" | "f64" | "fp64" => "float64",
            "float" | "f32" | "fp32" => "float32",
            "half" | "f16" | "fp16" => "float16",
            "bf16" => "bfloat16",
            "long" | "i64" => "int64",
            "int" | "i32" => "int32",
            "short" | "i16" => "int16",
            "i8" => "int8",
            "u8" => "uint8",
            "u16" => "uint16",
            "u32" => "uint32",
            "u64" => "uint64",
            "cfloat" => "complex64",
            "cdouble" => "complex128",
            "chalf" => "complex32",
            other => other,
        };
        DType::ALL.iter().copied().find(|d| d.name() == alias)
    }

    /// The type with that name in a safetensors header.
    #[must_use]
    pub fn from_safetensors_name(name: &str) -> Option<DType> {
        DType::ALL.iter().copied().find(|d| d.safetensors_name() == Some(name))
    }

    /// The type of that typed storage class (`FloatStorage`, ...) of the `torch` module.
    #[must_use]
    pub fn from_storage_class(name: &str) -> Option<DType> {
        DType::ALL.iter().copied().find(|d| d.storage_class() == Some(name))
    }

    /// Whether this is one of the four types that models compute in and that a fold can be asked for:
    /// float64, float32, float16, bfloat16.
    #[must_use]
    pub const fn is_foldable(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// Whether this is a real floating-point type, the 8-bit ones included.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            DType::F64
                | DType::F32
                | DType::F16
                | DType::BF16
                | DType::F8E4M3Fn
                | DType::F8E5M2
                | DType::F8E4M3FnUz
                | DType::F8E5M2FnUz
                | DType::F8E8M0Fnu
        )
    }

    /// Whether each element is one real number, so that statistics and casts mean something.
    #[must_use]
    pub const fn is_real(self) -> bool {
        use DType as D;
        !self.is_complex()
            && !matches!(self, D::F4E2M1FnX2 | D::Bits8 | D::Bits16 | D::Bits1x8 | D::Bits2x4 | D::Bits4x2)
    }

    /// Whether elements are pairs of a real and an imaginary part.
    #[must_use]
    pub const fn is_complex(self) -> bool {
        matches!(self, DType::C128 | DType::C64 | DType::C32 | DType::BC32)
    }

    /// The width in bytes of the numbers whose order [`ByteOrder`] speaks of: half the element for complex types.
    #[must_use]
    pub const fn swap_width(self) -> usize {
        if self.is_complex() { self.size() / 2 } else { self.size() }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
