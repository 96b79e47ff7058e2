//! The opcode table: Python's `pickletools.opcodes`, protocols 0 to 5.

/// How an opcode's argument is stored after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arg {
    /// No argument.
    None,
    /// That many bytes, little-endian.
    Fixed(usize),
    /// A line of text, up to and without the newline.
    Line,
    /// Two lines.
    TwoLines,
    /// A little-endian length of that many bytes, then as many bytes.
    Counted(usize),
}

macro_rules! opcodes {
    ($( $name:ident $byte:literal $arg:expr; )*) => {
        /// A pickle opcode.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(clippy::upper_case_acronyms, non_camel_case_types, reason = "the names pickletools gives them")]
        pub(crate) enum Op { $( $name, )* }

        impl Op {
            pub(crate) fn from_byte(byte: u8) -> Option<Op> {
                match byte { $( $byte => Some(Op::$name), )* _ => None }
            }

            pub(crate) fn name(self) -> &'static str {
                match self { $( Op::$name => stringify!($name), )* }
            }

            pub(crate) fn arg(self) -> Arg {
                match self { $( Op::$name => $arg, )* }
            }
        }
    };
}

opcodes! {
    MARK b'(' Arg::None;
    STOP b'.' Arg::None;
    POP b'0' Arg::None;
    POP_MARK b'1' Arg::None;
    DUP b'2' Arg::None;
    FLOAT b'F' Arg::Line;
    INT b'I' Arg::Line;
    BININT b'J' Arg::Fixed(4);
    BININT1 b'K' Arg::Fixed(1);
    LONG b'L' Arg::Line;
    BININT2 b'M' Arg::Fixed(2);
    NONE b'N' Arg::None;
    PERSID b'P' Arg::Line;
    BINPERSID b'Q' Arg::None;
    REDUCE b'R' Arg::None;
    STRING b'S' Arg::Line;
    BINSTRING b'T' Arg::Counted(4);
    SHORT_BINSTRING b'U' Arg::Counted(1);
    UNICODE b'V' Arg::Line;
    BINUNICODE b'X' Arg::Counted(4);
    APPEND b'a' Arg::None;
    BUILD b'b' Arg::None;
    GLOBAL b'c' Arg::TwoLines;
    DICT b'd' Arg::None;
    EMPTY_DICT b'}' Arg::None;
    APPENDS b'e' Arg::None;
    GET b'g' Arg::Line;
    BINGET b'h' Arg::Fixed(1);
    INST b'i' Arg::TwoLines;
    LONG_BINGET b'j' Arg::Fixed(4);
    LIST b'l' Arg::None;
    EMPTY_LIST b']' Arg::None;
    OBJ b'o' Arg::None;
    PUT b'p' Arg::Line;
    BINPUT b'q' Arg::Fixed(1);
    LONG_BINPUT b'r' Arg::Fixed(4);
    SETITEM b's' Arg::None;
    TUPLE b't' Arg::None;
    EMPTY_TUPLE b')' Arg::None;
    SETITEMS b'u' Arg::None;
    BINFLOAT b'G' Arg::Fixed(8);
    BINBYTES b'B' Arg::Counted(4);
    SHORT_BINBYTES b'C' Arg::Counted(1);
    PROTO 0x80 Arg::Fixed(1);
    NEWOBJ 0x81 Arg::None;
    EXT1 0x82 Arg::Fixed(1);
    EXT2 0x83 Arg::Fixed(2);
    EXT4 0x84 Arg::Fixed(4);
    TUPLE1 0x85 Arg::None;
    TUPLE2 0x86 Arg::None;
    TUPLE3 0x87 Arg::None;
    NEWTRUE 0x88 Arg::None;
    NEWFALSE 0x89 Arg::None;
    LONG1 0x8a Arg::Counted(1);
    LONG4 0x8b Arg::Counted(4);
    SHORT_BINUNICODE 0x8c Arg::Counted(1);
    BINUNICODE8 0x8d Arg::Counted(8);
    BINBYTES8 0x8e Arg::Counted(8);
    EMPTY_SET 0x8f Arg::None;
    ADDITEMS 0x90 Arg::None;
    FROZENSET 0x91 Arg::None;
    NEWOBJ_EX 0x92 Arg::None;
    STACK_GLOBAL 0x93 Arg::None;
    MEMOIZE 0x94 Arg::None;
    FRAME 0x95 Arg::Fixed(8);
    BYTEARRAY8 0x96 Arg::Counted(8);
    NEXT_BUFFER 0x97 Arg::None;
    READONLY_BUFFER 0x98 Arg::None;
}
