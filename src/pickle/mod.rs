//! Python's pickle, read without executing anything, and written at protocol 2.
//!
//! [`parse`] runs the stack machine that a pickle is written for and stops short of the one thing that makes pickles
//! dangerous: a global stays a name, a call stays a record of what would be called with what. The result is an arena
//! of [`Node`]s; values that the pickle shares stay shared (same [`NodeId`]), dictionaries keep their order and their
//! duplicates, and every node remembers the byte offset of the opcode that made it. Values that cannot change and that
//! pickles repeat (`None`, booleans, integers, globals, the empty tuple) may be shared where Python would not.
//!
//! Every opcode of protocols 0 to 5 is understood. Nothing here knows of PyTorch.

mod argument;
mod budget;
mod emit;
mod error;
mod machine;
mod memo;
mod node;
mod opcode;

pub(crate) use argument::{quoted, raw_unicode};
pub use budget::MAX_VALUE_BYTES;
pub(crate) use budget::{Budget, Full, allocated};
pub use emit::Emitter;
pub use error::{Error, ErrorKind};
pub(crate) use machine::parse_within;
pub use machine::{MAX_GLOBAL_BYTES, MAX_GLOBALS, MAX_MEMO, MAX_NODES, MAX_PICKLE_BYTES, MAX_STACK, parse};
pub use node::{Call, Global, Items, Node, NodeId, Object, Pickle};
pub(crate) use opcode::{Arg, Op};
