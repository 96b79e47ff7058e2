//! What each opcode does to the stack and the memo of a run.

use super::calls;
use super::report::{Level, Rule, UseKind};
use super::trace::{Break, Flow, Payload, Trace, Val, underflow};
use super::walk::Step;
use crate::pickle::{Op, quoted, raw_unicode};

/// Whether bytes are UTF-8 but for lone surrogates, which Python writes and reads in texts.
fn only_surrogates(mut bytes: &[u8]) -> bool {
    while let Err(error) = std::str::from_utf8(bytes) {
        match &bytes[error.valid_up_to()..] {
            [0xed, 0xa0..=0xbf, 0x80..=0xbf, rest @ ..] => bytes = rest,
            _ => return false,
        }
    }
    true
}

impl<'a> Trace<'a> {
    // ----- memo

    fn memo_key(op: Op, line: &[u8]) -> Flow<u64> {
        let bad = || Break(format!("the argument of {} is no number", op.name()));
        let text = std::str::from_utf8(line).map_err(|_| bad())?.trim();
        let digits = text.strip_prefix('+').unwrap_or(text);
        let parts: Vec<&str> = digits.split('_').collect();
        if parts.iter().any(|part| part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit())) {
            return Err(bad());
        }
        parts.concat().parse().map_err(|_| bad())
    }

    fn put(&mut self, op: Op, key: u64, offset: usize) -> Flow {
        let value = self.peek(op)?;
        let dense = usize::try_from(key).ok().filter(|&key| key <= self.memo.len() * 2 + 1024);
        let before = match dense {
            Some(key) => {
                if key >= self.memo.len() {
                    self.memo.resize(key + 1, None);
                }
                self.memo[key].replace(value)
            }
            None => {
                self.trick(
                    "it stores at a memo index far beyond all others, for which Python sets memory aside",
                    offset,
                );
                self.memo_far.insert(key, value)
            }
        };
        match before {
            None => self.memo_len += 1,
            Some(before) if before != value => self.trick("it stores two values at one memo index", offset),
            Some(_) => {}
        }
        Ok(())
    }

    fn get(&mut self, op: Op, key: u64) -> Flow<Val> {
        let dense = usize::try_from(key).ok().and_then(|key| self.memo.get(key).copied().flatten());
        dense
            .or_else(|| self.memo_far.get(&key).copied())
            .ok_or_else(|| Break(format!("{} asks for memo entry {key}, which was never stored", op.name())))
    }

    // ----- opcodes

    pub(super) fn step(&mut self, step: &Step<'a>) -> Flow {
        let (op, offset) = (step.op, step.offset);
        let number = || step.a.iter().rev().fold(0u64, |sum, &b| sum << 8 | u64::from(b));
        let value = match op {
            Op::PROTO => {
                let protocol = step.a.first().copied().unwrap_or(0);
                if protocol > 5 && self.out.broken.is_none() {
                    // Python stops here; torch's restricted unpickler goes on.
                    self.out.broken =
                        Some((offset, format!("protocol {protocol} is newer than 5, the newest there is")));
                }
                self.out.protocol = self.out.protocol.max(protocol);
                return Ok(());
            }
            Op::FRAME | Op::STOP => return Ok(()),
            Op::MARK => {
                self.marks.push(self.stack.len());
                return Ok(());
            }
            Op::POP => {
                if self.stack.len() > self.fence() {
                    self.stack.pop();
                } else {
                    self.marks.pop().ok_or_else(|| underflow(op))?;
                }
                return Ok(());
            }
            Op::POP_MARK => {
                self.pop_mark(op)?;
                return Ok(());
            }
            Op::DUP => self.peek(op)?,
            Op::NONE => Val::None,
            Op::NEWTRUE | Op::NEWFALSE => Val::Bool,
            Op::INT => match std::str::from_utf8(step.a).map(str::trim) {
                Ok("00" | "01") => Val::Bool,
                Ok(text) => text.parse().map_or(Val::Unknown, Val::Int),
                Err(_) => return Err(Break("the argument of INT is no number".to_owned())),
            },
            Op::LONG => {
                let text = std::str::from_utf8(step.a).unwrap_or("").trim_end_matches('L').trim();
                text.parse().map_or(Val::Unknown, Val::Int)
            }
            Op::BININT => Val::Int(i64::from(number() as u32 as i32)),
            Op::BININT1 | Op::BININT2 => Val::Int(number() as i64),
            Op::LONG1 | Op::LONG4 => match step.a {
                [] => Val::Int(0),
                bytes if bytes.len() <= 8 => {
                    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
                    let mut wide = [fill; 8];
                    wide[..bytes.len()].copy_from_slice(bytes);
                    Val::Int(i64::from_le_bytes(wide))
                }
                _ => self.range(step.a_at, step.a.len()).map_or(Val::Unknown, |(at, len)| Val::Long { at, len }),
            },
            Op::FLOAT | Op::BINFLOAT => Val::Float,
            Op::STRING => {
                let bytes =
                    quoted(step.a).ok_or_else(|| Break("the argument of STRING is not in quotes".to_owned()))?;
                self.out.payloads.push(Payload::Decoded(offset, bytes.clone()));
                if std::str::from_utf8(&bytes).is_err() { self.own_bytes(bytes) } else { Val::OwnText(self.own(bytes)) }
            }
            Op::UNICODE => match raw_unicode(step.a) {
                Some(text) => Val::OwnText(self.own(text.into_bytes())),
                None => Val::Unknown,
            },
            Op::BINSTRING | Op::SHORT_BINSTRING => {
                self.payload(step);
                let utf8 = std::str::from_utf8(step.a).is_ok();
                match self.range(step.a_at, step.a.len()) {
                    Some((at, len)) if utf8 => Val::Text { at, len },
                    Some((at, len)) => {
                        self.refuse(offset, "a text in it is not UTF-8".to_owned());
                        Val::Bytes { at, len }
                    }
                    None => Val::Unknown,
                }
            }
            Op::BINUNICODE | Op::SHORT_BINUNICODE | Op::BINUNICODE8 => {
                match (std::str::from_utf8(step.a).is_ok(), self.range(step.a_at, step.a.len())) {
                    (true, Some((at, len))) => Val::Text { at, len },
                    (true, None) => Val::Unknown,
                    // Lone surrogates are allowed, and are no name.
                    (false, _) if only_surrogates(step.a) => Val::Unknown,
                    (false, _) => return Err(Break(format!("the text of {} is not UTF-8", op.name()))),
                }
            }
            Op::BINBYTES | Op::SHORT_BINBYTES | Op::BINBYTES8 => {
                self.payload(step);
                self.range(step.a_at, step.a.len()).map_or(Val::Unknown, |(at, len)| Val::Bytes { at, len })
            }
            Op::BYTEARRAY8 => {
                self.payload(step);
                Val::ByteArray
            }
            Op::NEXT_BUFFER => return Err(Break("NEXT_BUFFER asks for a buffer from outside of the file".to_owned())),
            Op::READONLY_BUFFER => {
                self.peek(op)?;
                return Ok(());
            }
            Op::EMPTY_DICT => Val::Dict,
            Op::EMPTY_LIST => Val::List,
            Op::EMPTY_SET => Val::Set,
            Op::EMPTY_TUPLE => self.tuple(&[]),
            Op::TUPLE1 | Op::TUPLE2 | Op::TUPLE3 => {
                let n = match op {
                    Op::TUPLE1 => 1,
                    Op::TUPLE2 => 2,
                    _ => 3,
                };
                if self.stack.len() < self.fence() + n {
                    return Err(underflow(op));
                }
                let values = self.stack.split_off(self.stack.len() - n);
                self.tuple(&values)
            }
            Op::TUPLE => {
                let values = self.pop_mark(op)?;
                self.tuple(&values)
            }
            Op::LIST => {
                self.pop_mark(op)?;
                Val::List
            }
            Op::DICT => {
                self.pop_mark(op)?;
                Val::Dict
            }
            Op::FROZENSET => {
                self.pop_mark(op)?;
                Val::FrozenSet
            }
            Op::APPEND | Op::APPENDS | Op::SETITEM | Op::SETITEMS | Op::ADDITEMS => return self.fill(op, offset),
            Op::GET | Op::PUT => {
                let key = Self::memo_key(op, step.a)?;
                if op == Op::PUT {
                    return self.put(op, key, offset);
                }
                self.get(op, key)?
            }
            Op::BINGET | Op::LONG_BINGET => self.get(op, number())?,
            Op::BINPUT | Op::LONG_BINPUT => return self.put(op, number(), offset),
            Op::MEMOIZE => return self.put(op, self.memo_len as u64, offset),
            Op::GLOBAL | Op::INST => {
                let not_utf8 = |_| Break(format!("the name that {} imports is not UTF-8", op.name()));
                let module = std::str::from_utf8(step.a).map_err(not_utf8)?;
                let name = std::str::from_utf8(step.b).map_err(not_utf8)?;
                if op == Op::GLOBAL {
                    calls::check_global(self, module, name, offset);
                    Val::Global(self.global(module, name, offset))
                } else {
                    let args = self.pop_mark(op)?;
                    let callee = Val::Global(self.global(module, name, offset));
                    let args = self.tuple(&args);
                    self.call(op, callee, args, offset)?
                }
            }
            Op::STACK_GLOBAL => {
                let name = self.pop(op)?;
                let module = self.pop(op)?;
                match (self.text(module).map(str::to_owned), self.text(name).map(str::to_owned)) {
                    (Some(module), Some(name)) => Val::Global(self.global(&module, &name, offset)),
                    _ => {
                        let index = self.computed(offset);
                        if matches!(
                            (module, name),
                            (
                                Val::Made(_) | Val::Unknown | Val::Text { .. } | Val::OwnText(_),
                                Val::Made(_) | Val::Unknown | Val::Text { .. } | Val::OwnText(_)
                            )
                        ) {
                            Val::Global(index)
                        } else {
                            return Err(Break("STACK_GLOBAL wants two texts, and finds something else".to_owned()));
                        }
                    }
                }
            }
            Op::EXT1 | Op::EXT2 | Op::EXT4 => Val::Global(self.extension(step)),
            Op::REDUCE => {
                let args = self.pop(op)?;
                let callee = self.pop(op)?;
                self.call(op, callee, args, offset)?
            }
            Op::NEWOBJ => {
                let args = self.pop(op)?;
                let callee = self.pop(op)?;
                self.call(op, callee, args, offset)?
            }
            Op::NEWOBJ_EX => {
                self.pop(op)?;
                let args = self.pop(op)?;
                let callee = self.pop(op)?;
                self.call(op, callee, args, offset)?
            }
            Op::OBJ => {
                let values = self.pop_mark(op)?;
                let (&callee, args) = values.split_first().ok_or_else(|| underflow(op))?;
                let args = self.tuple(args);
                self.call(op, callee, args, offset)?
            }
            Op::BUILD => {
                let state = self.pop(op)?;
                let target = self.peek(op)?;
                self.change(target, op, offset);
                calls::build(self, target, state, offset);
                return Ok(());
            }
            Op::PERSID => {
                let id = String::from_utf8_lossy(step.a).into_owned();
                self.persistent_text(&id, offset)
            }
            Op::BINPERSID => {
                let id = self.pop(op)?;
                self.persistent(id, offset)
            }
        };
        self.stack.push(value);
        Ok(())
    }

    fn fill(&mut self, op: Op, offset: usize) -> Flow {
        let key = match op {
            Op::APPEND => {
                self.pop(op)?;
                None
            }
            Op::SETITEM => {
                self.pop(op)?;
                Some(self.pop(op)?)
            }
            _ => {
                let values = self.pop_mark(op)?;
                if op == Op::SETITEMS && values.len() % 2 == 1 {
                    return Err(Break("SETITEMS finds a key without a value".to_owned()));
                }
                values
                    .iter()
                    .step_by(2)
                    .copied()
                    .find(|key| matches!(key, Val::List | Val::Dict | Val::Set))
                    .filter(|_| op == Op::SETITEMS)
            }
        };
        let target = self.peek(op)?;
        self.change(target, op, offset);
        calls::fill(self, op, target, key, offset);
        Ok(())
    }

    fn persistent_text(&mut self, id: &str, offset: usize) -> Val {
        let because = "the program that loads it decides what that is".into();
        let shown: String = id.chars().take(60).collect();
        let index = self.intern(format!("<id {shown:?}>"), Level::Unknown, because, Rule::OddPersistentId, offset);
        self.used(UseKind::PersistentId, index, offset);
        Val::Unknown
    }

    fn persistent(&mut self, id: Val, offset: usize) -> Val {
        if let Some(class) = calls::module_class(self, id) {
            let because = "PyTorch up to 1.5 gives the class of a module back, which is judged by itself".into();
            let index =
                self.intern("<module class>".to_owned(), Level::Allowed, because, Rule::OddPersistentId, offset);
            self.used(UseKind::PersistentId, index, offset);
            return class;
        }
        match calls::storage(self, id, offset) {
            Ok(storage) => {
                let because = "PyTorch reads a storage by it".into();
                let index = self.intern("<storage>".to_owned(), Level::Allowed, because, Rule::OddPersistentId, offset);
                self.used(UseKind::PersistentId, index, offset);
                self.out.storages.push(storage);
                Val::Storage(self.out.storages.len() as u32 - 1)
            }
            Err(why) => {
                self.refuse(offset, why.clone());
                let because = "the program that loads it decides what that is".into();
                let index = self.intern(format!("<id: {why}>"), Level::Unknown, because, Rule::OddPersistentId, offset);
                self.used(UseKind::PersistentId, index, offset);
                Val::Unknown
            }
        }
    }
}
