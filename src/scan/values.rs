//! What a run through a pickle knows of values, and what comes of it.

use super::report::{Level, Name, Rule, Use};

/// What is known of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Val {
    None,
    Bool,
    Int(i64),
    /// A long integer, by its bytes.
    Long {
        at: u32,
        len: u32,
    },
    Float,
    Text {
        at: u32,
        len: u32,
    },
    /// A text that had to be decoded.
    OwnText(u32),
    Bytes {
        at: u32,
        len: u32,
    },
    OwnBytes(u32),
    ByteArray,
    Tuple {
        at: u32,
        len: u32,
    },
    List,
    Dict,
    Set,
    FrozenSet,
    /// An imported name.
    Global(u32),
    /// What calling that name gave.
    Made(u32),
    /// What the persistent id of that storage gave.
    Storage(u32),
    /// Something else.
    Unknown,
}

/// A storage that a pickle asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StorageRef {
    pub(super) offset: usize,
    pub(super) key: String,
    /// Elements.
    pub(super) numel: i64,
    /// Bytes of an element; 0 where the type is none.
    pub(super) element: u8,
    /// Elements of the tuple: 5 in archives, 6 in legacy files.
    pub(super) fields: u32,
}

/// Bytes in a pickle that could hold something themselves.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// Of the stream itself.
    Range(usize, usize),
    /// Decoded from a text; the offset is that of the text.
    Decoded(usize, Vec<u8>),
}

/// A finding, its offset counted from the start of the stream.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) level: Level,
    pub(super) rule: Rule,
    pub(super) offset: usize,
    pub(super) message: String,
}

/// What is known of the value that a pickle stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Top {
    Int(i64),
    Long(Vec<u8>),
    List,
    Dict,
    Other,
}

/// What came of a run.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Just past the last opcode that was read.
    pub(super) end: usize,
    pub(super) complete: bool,
    /// Where Python would stop with an error, and why.
    pub(super) broken: Option<(usize, String)>,
    /// A limit of this program that was exceeded.
    pub(super) limit: Option<String>,
    pub(super) protocol: u8,
    pub(super) ops: usize,
    pub(super) names: Vec<Name>,
    pub(super) uses: Vec<Use>,
    pub(super) findings: Vec<Local>,
    /// Why torch's restricted unpickler refuses it.
    pub(super) refused: Option<(usize, String)>,
    pub(super) storages: Vec<StorageRef>,
    pub(super) payloads: Vec<Payload>,
    pub(super) top: Top,
    /// Calls that Python would make before it stops.
    pub(super) calls: usize,
    /// Whether all names up to the first call look like names of Python.
    pub(super) plausible: bool,
}
