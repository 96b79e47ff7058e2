//! The arguments of opcodes, decoded: numbers and texts in all the ways that pickles write them.

use super::error::ErrorKind;
use super::node::Node;
use super::opcode::Op;

type Step<T> = Result<T, ErrorKind>;

/// A little-endian unsigned integer of at most 8 bytes.
pub(super) fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
}

pub(super) fn text(op: Op, bytes: &[u8]) -> Step<&str> {
    std::str::from_utf8(bytes).map_err(|_| ErrorKind::NotUtf8(op.name()))
}

/// UTF-8 text with the lone surrogates that Python also writes (file names that are not UTF-8); they become the text
/// `\udcXX`.
pub(super) fn surrogates(op: Op, bytes: &[u8]) -> Step<String> {
    let mut out = String::new();
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                return Ok(out);
            }
            Err(error) => {
                let (valid, invalid) = rest.split_at(error.valid_up_to());
                out.push_str(&String::from_utf8_lossy(valid));
                let &[0xed, high @ 0xa0..=0xbf, low @ 0x80..=0xbf, ref tail @ ..] = invalid else {
                    return Err(ErrorKind::NotUtf8(op.name()));
                };
                let code = 0xd000 | u32::from(high & 0x3f) << 6 | u32::from(low & 0x3f);
                out.push_str(&format!("\\u{code:04x}"));
                rest = tail;
            }
        }
    }
}

pub(super) fn memo_key(op: Op, line: &[u8]) -> Step<u64> {
    text(op, line)?.trim().parse().map_err(|_| ErrorKind::BadArgument(op.name()))
}

/// A Python 2 string: text where it is UTF-8, as `torch.load` reads it, bytes otherwise.
pub(super) fn string(bytes: &[u8]) -> Node {
    match std::str::from_utf8(bytes) {
        Ok(text) => Node::Str(text.into()),
        Err(_) => Node::Bytes(bytes.into()),
    }
}

/// Two's complement, least significant byte first.
pub(super) fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::BigInt(bytes.into());
    }
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(wide))
}

/// The argument of INT, which protocol 0 also uses for the booleans.
pub(super) fn int_line(op: Op, line: &[u8]) -> Step<Node> {
    match line {
        b"00" => Ok(Node::Bool(false)),
        b"01" => Ok(Node::Bool(true)),
        _ => integer_text(op, line),
    }
}

/// A decimal integer of any length.
pub(super) fn integer_text(op: Op, line: &[u8]) -> Step<Node> {
    /// Decimal digits of the longest integer read: conversion takes quadratic time.
    const MAX_DIGITS: usize = 4300;
    let bad = ErrorKind::BadArgument(op.name());
    let text = text(op, line)?.trim();
    // Of Python's two unpicklers, one reads such a number as octal, and one refuses it.
    if text.trim_start_matches(['+', '-']).strip_prefix('0').is_some_and(|more| !more.is_empty()) {
        return Err(bad);
    }
    if let Ok(value) = text.parse() {
        return Ok(Node::Int(value));
    }
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad);
    }
    // Nineteen digits at a time into limbs of 64 bits.
    let mut limbs: Vec<u64> = Vec::new();
    for chunk in digits.as_bytes().chunks(19) {
        let mut carry = chunk.iter().fold(0u64, |n, digit| n * 10 + u64::from(digit - b'0'));
        let scale = u128::from(10u64.pow(chunk.len() as u32));
        for limb in &mut limbs {
            let value = u128::from(*limb) * scale + u128::from(carry);
            *limb = value as u64;
            carry = (value >> 64) as u64;
        }
        if carry > 0 {
            limbs.push(carry);
        }
    }
    let mut bytes: Vec<u8> = limbs.into_iter().flat_map(u64::to_le_bytes).collect();
    bytes.push(0);
    if negative {
        let mut carry = true;
        for byte in &mut bytes {
            let (value, over) = (!*byte).overflowing_add(u8::from(carry));
            (*byte, carry) = (value, over);
        }
    }
    // As short as Python writes it: no byte that only repeats the sign.
    while let [.., low, high] = *bytes
        && high == if low & 0x80 == 0 { 0 } else { 0xff }
    {
        bytes.pop();
    }
    Ok(Node::BigInt(bytes.into()))
}

/// The bytes of a quoted Python 2 `repr` of a string: `'...'` or `"..."` with backslash escapes.
pub(crate) fn quoted(line: &[u8]) -> Option<Vec<u8>> {
    let (first, last) = (line.first()?, line.last()?);
    if line.len() < 2 || first != last || !matches!(first, b'\'' | b'"') {
        return None;
    }
    let mut rest = line[1..line.len() - 1].iter().copied();
    let mut out = Vec::new();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let unescaped = match rest.next()? {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'v' => 11,
            b'x' => {
                let high = (rest.next()? as char).to_digit(16)?;
                let low = (rest.next()? as char).to_digit(16)?;
                (high * 16 + low) as u8
            }
            digit @ b'0'..=b'7' => {
                let mut value = u32::from(digit - b'0');
                for _ in 0..2 {
                    match rest.clone().next() {
                        Some(next @ b'0'..=b'7') => {
                            value = value * 8 + u32::from(next - b'0');
                            rest.next();
                        }
                        _ => break,
                    }
                }
                value as u8
            }
            quote @ (b'\'' | b'"' | b'\\') => quote,
            other => {
                out.push(b'\\');
                other
            }
        };
        out.push(unescaped);
    }
    Some(out)
}

/// Python's raw-unicode-escape: Latin-1 text with `\uXXXX` and `\UXXXXXXXX`; lone surrogates as [`surrogates`] has them.
pub(crate) fn raw_unicode(line: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = match (byte, tail.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            (b'\\', Some(&next)) => {
                // Of two backslashes, the second begins nothing.
                out.extend(['\\', char::from(next)]);
                rest = &tail[1..];
                continue;
            }
            _ => {
                out.push(char::from(byte));
                rest = tail;
                continue;
            }
        };
        let hex = tail.get(1..1 + digits).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
        let hex = std::str::from_utf8(hex).ok()?;
        match u32::from_str_radix(hex, 16).ok()? {
            code @ 0xd800..=0xdfff => out.push_str(&format!("\\u{code:04x}")),
            code => out.push(char::from_u32(code)?),
        }
        rest = &tail[1 + digits..];
    }
    Some(out)
}
