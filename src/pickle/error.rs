//! What can be wrong with a pickle.

/// A pickle that cannot be read, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset} of the pickle: {kind}")]
pub struct Error {
    /// Offset of the opcode at fault from the start of the pickle, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub kind: ErrorKind,
}

/// What is wrong with a pickle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The stream ends before its STOP opcode.
    #[error("the stream ends here, before its end mark")]
    Truncated,
    /// A byte that is no opcode of protocols 0 to 5.
    #[error("0x{0:02x} is no pickle opcode")]
    UnknownOpcode(u8),
    /// A protocol newer than 5.
    #[error("protocol {0} is newer than 5, the newest known")]
    Protocol(u8),
    /// An opcode needs more values than the stack holds.
    #[error("the opcode {0} finds too few values on the stack")]
    StackUnderflow(&'static str),
    /// An opcode needs a mark that is not there.
    #[error("the opcode {0} finds no mark on the stack")]
    NoMark(&'static str),
    /// A memo entry that was never stored.
    #[error("memo entry {0} was never stored")]
    NoSuchMemo(u64),
    /// An argument that cannot be what the opcode says it is.
    #[error("the argument of {0} is malformed")]
    BadArgument(&'static str),
    /// Text that is not UTF-8.
    #[error("the text of {0} is not UTF-8")]
    NotUtf8(&'static str),
    /// An opcode is applied to a value of the wrong type.
    #[error("the opcode {opcode} is applied to {found}")]
    WrongType {
        /// The opcode's name in Python's `pickletools`.
        opcode: &'static str,
        /// What the value is.
        found: &'static str,
    },
    /// A documented limit of this reader is exceeded.
    #[error("more than {limit} {what}, the limit of this reader")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}
