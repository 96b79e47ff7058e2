//! The opcodes of a pickle one after the other, as Python's C unpickler cuts them.

use crate::pickle::{Arg, Op};

/// One opcode with its argument.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'a> {
    pub(super) offset: usize,
    /// Just past the argument.
    pub(super) end: usize,
    pub(super) op: Op,
    /// The argument, or the first line of two.
    pub(super) a: &'a [u8],
    /// The second line of two.
    pub(super) b: &'a [u8],
    /// Where `a` begins.
    pub(super) a_at: usize,
}

/// Why there is no further opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The data ends before a STOP.
    Data,
    /// The argument of the opcode reaches past the end.
    Argument(Op),
    /// No opcode.
    Unknown(u8),
}

/// Reads opcodes from `data`, beginning at `at`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk<'a> {
    pub(super) data: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn next(&mut self) -> Result<Step<'a>, End> {
        let (data, offset) = (self.data, self.at);
        let byte = *data.get(offset).ok_or(End::Data)?;
        let op = Op::from_byte(byte).ok_or(End::Unknown(byte))?;
        let start = offset + 1;
        let rest = data.get(start..).unwrap_or(&[]);
        let cut = End::Argument(op);
        let (a, b, a_at, end) = match op.arg() {
            Arg::None => (&rest[..0], &rest[..0], start, start),
            Arg::Fixed(n) => (rest.get(..n).ok_or(cut)?, &rest[..0], start, start + n),
            Arg::Line => {
                let length = memchr::memchr(b'\n', rest).ok_or(cut)?;
                (&rest[..length], &rest[..0], start, start + length + 1)
            }
            Arg::TwoLines => {
                let first = memchr::memchr(b'\n', rest).ok_or(cut)?;
                let tail = &rest[first + 1..];
                // Python takes a last line without its newline for the name, less its last character.
                let (second, end) = match memchr::memchr(b'\n', tail) {
                    Some(second) => (&tail[..second], start + first + 1 + second + 1),
                    None if tail.len() > 1 => (&tail[..tail.len() - 1], data.len()),
                    None => return Err(cut),
                };
                (&rest[..first], second, start, end)
            }
            Arg::Counted(n) => {
                let length = rest.get(..n).ok_or(cut)?.iter().rev().fold(0u64, |sum, &b| sum << 8 | u64::from(b));
                let length = usize::try_from(length).map_err(|_| cut)?;
                let a = rest.get(n..).and_then(|tail| tail.get(..length)).ok_or(cut)?;
                (a, &rest[..0], start + n, start + n + length)
            }
        };
        self.at = end;
        Ok(Step { offset, end, op, a, b, a_at })
    }
}
