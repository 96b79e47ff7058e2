//! A light run through a pickle: what would be imported and called, without values.
//!
//! Every opcode is followed the way Python's unpickler does, on a stack that knows just enough of each value to tell
//! names, callables and the arguments of allowed calls. At the first error Python would stop; the run goes on behind it,
//! without a stack, and still reports every name that is written out. Next to it goes the question whether
//! torch's restricted unpickler would have refused by then.

use std::borrow::Cow;
use std::collections::HashMap;

use super::calls;
use super::judge::{Judgement, judge};
use super::report::{Level, Name, Rule, Use, UseKind};
use super::walk::{End, Step, Walk};
use crate::pickle::{Op, quoted, raw_unicode};

/// The most values on the stack of a scanned pickle.
pub const MAX_STACK: usize = 2 << 20;
/// The most entries of its memo.
pub const MAX_MEMO: usize = 2 << 20;
/// The most elements of all its tuples.
pub const MAX_ITEMS: usize = 2 << 20;
/// The most names that it uses.
pub const MAX_NAMES: usize = 1 << 14;
/// The most globals, calls and persistent ids in a file.
pub const MAX_USES: usize = 1 << 20;
/// The most bytes of texts that have to be decoded first.
pub const MAX_DECODED: usize = 32 << 20;
/// The most pieces of bytes of a pickle that are looked into.
pub const MAX_PAYLOADS: usize = 1 << 18;
/// The longest name, in bytes, that is shown in full.
const MAX_NAME: usize = 512;

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
    /// Whether all names look like names of Python.
    pub(super) plausible: bool,
}

/// How to look at a pickle.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    /// It belongs to a TorchScript archive.
    pub(super) script: bool,
    /// Give up after so many opcodes without a name, and at the first error: the bytes may only look like a pickle.
    pub(super) patience: Option<usize>,
    /// How many more uses may be recorded.
    pub(super) uses: usize,
}

/// What is known of a name beside its judgement.
#[derive(Clone, Debug)]
struct Known {
    rule: Rule,
    first: usize,
    calls: usize,
    first_call: usize,
    preview: String,
    behind: bool,
}

pub(super) struct Trace<'a> {
    pub(super) data: &'a [u8],
    options: Options,
    pub(super) stack: Vec<Val>,
    marks: Vec<usize>,
    memo: Vec<Option<Val>>,
    memo_far: HashMap<u64, Val>,
    memo_len: usize,
    pub(super) items: Vec<Val>,
    pub(super) owned: Vec<Vec<u8>>,
    owned_bytes: usize,
    index: HashMap<(String, Rule), u32>,
    known: Vec<Known>,
    frame_end: Option<usize>,
    tricks: Vec<(&'static str, usize)>,
    idle: usize,
    /// No stack any more: Python would have stopped.
    lost: bool,
    out: Outcome,
}

/// Python would stop here.
pub(super) struct Break(pub(super) String);

type Flow<T = ()> = Result<T, Break>;

fn underflow(op: Op) -> Break {
    Break(format!("{} finds too few values on the stack", op.name()))
}

/// Follows the pickle that begins at `start` of `data`.
pub(super) fn trace(data: &[u8], start: usize, options: Options) -> Outcome {
    let out = Outcome {
        end: start,
        complete: false,
        broken: None,
        limit: None,
        protocol: 0,
        ops: 0,
        names: vec![],
        uses: vec![],
        findings: vec![],
        refused: None,
        storages: vec![],
        payloads: vec![],
        top: Top::Other,
        calls: 0,
        plausible: true,
    };
    let mut trace = Trace {
        data,
        options,
        stack: vec![],
        marks: vec![],
        memo: vec![],
        memo_far: HashMap::new(),
        memo_len: 0,
        items: vec![],
        owned: vec![],
        owned_bytes: 0,
        index: HashMap::new(),
        known: vec![],
        frame_end: None,
        tricks: vec![],
        idle: 0,
        lost: false,
        out,
    };
    trace.run(start);
    trace.finish()
}

impl<'a> Trace<'a> {
    fn run(&mut self, start: usize) {
        let mut walk = Walk { data: self.data, at: start };
        loop {
            let step = match walk.next() {
                Ok(step) => step,
                Err(end) => {
                    let why = match end {
                        End::Data => "the data ends before the end mark".to_owned(),
                        End::Argument(op) => format!("the argument of {} reaches past the end of the data", op.name()),
                        End::Unknown(byte) => format!("0x{byte:02x} is no opcode"),
                    };
                    self.stop(walk.at, why);
                    break;
                }
            };
            self.out.ops += 1;
            self.out.end = step.end;
            self.idle += 1;
            if self.options.patience.is_some_and(|patience| self.idle > patience) {
                self.stop(step.offset, "it goes on without a name".to_owned());
                break;
            }
            self.frames(&step, start);
            if step.op == Op::STOP && !self.lost {
                match self.pop(Op::STOP) {
                    Ok(value) => {
                        self.out.top = self.top(value);
                        self.out.complete = true;
                    }
                    Err(Break(why)) => self.stop(step.offset, why),
                }
                break;
            }
            if step.op == Op::STOP {
                break;
            }
            if self.out.refused.is_none() && !calls::supported(step.op) {
                self.refuse(
                    step.offset,
                    format!("its restricted unpickler does not know the opcode {}", step.op.name()),
                );
            }
            if self.lost {
                self.behind(&step);
                continue;
            }
            if step.op == Op::PROTO && step.offset != start {
                self.trick("it says its protocol more than once, or not at its beginning", step.offset);
            }
            if let Err(Break(why)) = self.step(&step) {
                self.stop(step.offset, why);
                if self.options.patience.is_some() {
                    // What stands behind a break means nothing where only chance says that it is a pickle.
                    break;
                }
                self.behind(&step);
            }
            self.check_limits(step.offset);
        }
    }

    /// Python stops here with an error; from here on there is no stack.
    fn stop(&mut self, offset: usize, why: String) {
        if self.out.broken.is_none() {
            self.refuse(offset, format!("the pickle breaks off: {why}"));
            self.out.broken = Some((offset, why));
        }
        self.lost = true;
    }

    pub(super) fn refuse(&mut self, offset: usize, why: String) {
        if self.out.refused.is_none() {
            self.out.refused = Some((offset, why));
        }
    }

    fn check_limits(&mut self, offset: usize) {
        let what = if self.stack.len() > MAX_STACK || self.marks.len() > MAX_STACK {
            "values on its stack"
        } else if self.memo.len() + self.memo_far.len() > MAX_MEMO {
            "entries in its memo"
        } else if self.items.len() > MAX_ITEMS {
            "elements in its tuples"
        } else if self.out.names.len() >= MAX_NAMES {
            "names"
        } else if self.out.uses.len() >= self.options.uses {
            "globals, calls and persistent ids"
        } else if self.owned_bytes > MAX_DECODED {
            "bytes of text to decode"
        } else if self.out.payloads.len() > MAX_PAYLOADS {
            "pieces of bytes"
        } else {
            return;
        };
        if self.out.limit.is_none() {
            self.out.limit =
                Some(format!("from byte {offset} on it was only skimmed: it has more {what} than are followed"));
        }
        self.lost = true;
        (self.stack, self.marks, self.memo, self.items, self.owned) = (vec![], vec![], vec![], vec![], vec![]);
        self.memo_far = HashMap::new();
        self.owned_bytes = 0;
    }

    fn frames(&mut self, step: &Step<'_>, _start: usize) {
        const STRADDLES: &str =
            "a frame ends inside of an opcode, or begins inside of another: readers disagree on what is executed";
        if let Some(end) = self.frame_end {
            if step.offset >= end {
                self.frame_end = None;
            } else if step.end > end || step.op == Op::FRAME {
                self.trick(STRADDLES, step.offset);
                self.frame_end = None;
            }
        }
        if step.op == Op::FRAME {
            let length = step.a.iter().rev().fold(0u64, |sum, &b| sum << 8 | u64::from(b));
            match usize::try_from(length).ok().and_then(|length| step.end.checked_add(length)) {
                Some(end) if end <= self.data.len() => self.frame_end = Some(end),
                _ if !self.lost => self.stop(step.offset, "its frame reaches past the end of the data".to_owned()),
                _ => {}
            }
        }
    }

    pub(super) fn trick(&mut self, what: &'static str, offset: usize) {
        if self.tricks.iter().all(|(other, _)| *other != what) {
            self.tricks.push((what, offset));
        }
    }

    pub(super) fn find(&mut self, level: Level, rule: Rule, offset: usize, message: String) {
        /// Findings of one pickle; more of them say nothing more.
        const MAX: usize = 200;
        if self.out.findings.len() < MAX {
            self.out.findings.push(Local { level, rule, offset, message });
        }
    }

    /// Without a stack: the names that are written out.
    fn behind(&mut self, step: &Step<'_>) {
        match step.op {
            Op::GLOBAL | Op::INST => {
                if let (Ok(module), Ok(name)) = (std::str::from_utf8(step.a), std::str::from_utf8(step.b)) {
                    self.global(module, name, step.offset);
                }
            }
            Op::STACK_GLOBAL => {
                self.computed(step.offset);
            }
            Op::EXT1 | Op::EXT2 | Op::EXT4 => {
                self.extension(step);
            }
            Op::BINBYTES
            | Op::SHORT_BINBYTES
            | Op::BINBYTES8
            | Op::BYTEARRAY8
            | Op::BINSTRING
            | Op::SHORT_BINSTRING => {
                self.payload(step);
            }
            _ => {}
        }
    }

    // ----- stack

    fn fence(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self, op: Op) -> Flow<Val> {
        if self.stack.len() <= self.fence() {
            return Err(underflow(op));
        }
        self.stack.pop().ok_or_else(|| underflow(op))
    }

    fn peek(&self, op: Op) -> Flow<Val> {
        if self.stack.len() <= self.fence() {
            return Err(underflow(op));
        }
        self.stack.last().copied().ok_or_else(|| underflow(op))
    }

    fn pop_mark(&mut self, op: Op) -> Flow<Vec<Val>> {
        let at = self.marks.pop().ok_or_else(|| Break(format!("{} finds no mark on the stack", op.name())))?;
        Ok(self.stack.split_off(at))
    }

    fn tuple(&mut self, values: &[Val]) -> Val {
        let at = self.items.len() as u32;
        self.items.extend_from_slice(values);
        Val::Tuple { at, len: values.len() as u32 }
    }

    /// The elements of a tuple; nothing for other values.
    pub(super) fn elements(&self, value: Val) -> Option<Vec<Val>> {
        match value {
            Val::Tuple { at, len } => self.items.get(at as usize..at as usize + len as usize).map(<[Val]>::to_vec),
            _ => None,
        }
    }

    fn range(&self, at: usize, len: usize) -> Option<(u32, u32)> {
        Some((u32::try_from(at).ok()?, u32::try_from(len).ok()?))
    }

    fn own(&mut self, bytes: Vec<u8>) -> u32 {
        self.owned_bytes += bytes.len();
        self.owned.push(bytes);
        self.owned.len() as u32 - 1
    }

    /// The bytes of a text or of bytes.
    pub(super) fn raw(&self, value: Val) -> Option<&[u8]> {
        match value {
            Val::Text { at, len } | Val::Bytes { at, len } | Val::Long { at, len } => {
                self.data.get(at as usize..at as usize + len as usize)
            }
            Val::OwnText(i) | Val::OwnBytes(i) => self.owned.get(i as usize).map(Vec::as_slice),
            _ => None,
        }
    }

    pub(super) fn text(&self, value: Val) -> Option<&str> {
        match value {
            Val::Text { .. } | Val::OwnText(_) => self.raw(value).and_then(|bytes| std::str::from_utf8(bytes).ok()),
            _ => None,
        }
    }

    /// The name of a global or of what it made.
    pub(super) fn path(&self, name: u32) -> &str {
        self.out.names.get(name as usize).map_or("", |name| name.name.as_str())
    }

    pub(super) fn level(&self, name: u32) -> Level {
        self.out.names.get(name as usize).map_or(Level::Unknown, |name| name.level)
    }

    pub(super) fn storage(&self, index: u32) -> Option<&StorageRef> {
        self.out.storages.get(index as usize)
    }

    fn top(&self, value: Val) -> Top {
        match value {
            Val::Int(value) => Top::Int(value),
            Val::Long { .. } => self.raw(value).map_or(Top::Other, |bytes| Top::Long(bytes.to_vec())),
            Val::List => Top::List,
            Val::Dict => Top::Dict,
            _ => Top::Other,
        }
    }

    // ----- names

    fn intern(&mut self, path: String, level: Level, because: Cow<'static, str>, rule: Rule, offset: usize) -> u32 {
        self.idle = 0;
        let mut shown = path;
        if shown.len() > MAX_NAME {
            let cut = (0..=MAX_NAME).rev().find(|&at| shown.is_char_boundary(at)).unwrap_or(0);
            shown.truncate(cut);
            shown.push('…');
        }
        let key = (shown, rule);
        if let Some(&index) = self.index.get(&key) {
            return index;
        }
        if self.out.names.len() >= MAX_NAMES {
            return self.out.names.len() as u32 - 1;
        }
        let index = self.out.names.len() as u32;
        self.out.names.push(Name { name: key.0.clone(), level, because });
        self.known.push(Known {
            rule,
            first: offset,
            calls: 0,
            first_call: 0,
            preview: String::new(),
            behind: self.lost,
        });
        self.index.insert(key, index);
        index
    }

    fn used(&mut self, kind: UseKind, name: u32, offset: usize) {
        if self.out.uses.len() < self.options.uses {
            self.out.uses.push(Use { kind, offset: offset as u64, name });
        }
    }

    fn global(&mut self, module: &str, name: &str, offset: usize) -> u32 {
        self.out.plausible &= super::judge::is_identifier(module) && super::judge::is_identifier(name);
        let Judgement { path, level, because } = judge(module, name, self.options.script);
        let rule = if level == Level::Dangerous { Rule::DangerousGlobal } else { Rule::UnknownGlobal };
        let index = self.intern(path, level, because, rule, offset);
        self.used(UseKind::Global, index, offset);
        index
    }

    /// A global whose name cannot be told.
    fn computed(&mut self, offset: usize) -> u32 {
        let because = "its name is computed, so that it can be anything".into();
        let index = self.intern("<computed name>".to_owned(), Level::Dangerous, because, Rule::HiddenGlobal, offset);
        self.used(UseKind::Global, index, offset);
        index
    }

    fn extension(&mut self, step: &Step<'_>) -> u32 {
        let code = step.a.iter().rev().fold(0u64, |sum, &b| sum << 8 | u64::from(b));
        let because = "the registry of the program that loads it decides what that is".into();
        let path = format!("<extension {code}>");
        let index = self.intern(path, Level::Unknown, because, Rule::ExtensionCode, step.offset);
        self.used(UseKind::Global, index, step.offset);
        index
    }

    /// Notes bytes that could hold something.
    fn payload(&mut self, step: &Step<'_>) {
        /// Shorter bytes hold no pickle that does anything.
        const SHORTEST: usize = 5;
        if step.a.len() >= SHORTEST && self.out.payloads.len() <= MAX_PAYLOADS {
            self.out.payloads.push(Payload::Range(step.a_at, step.a_at + step.a.len()));
        }
    }

    pub(super) fn decoded(&mut self, offset: usize, bytes: &[u8]) {
        self.out.payloads.push(Payload::Decoded(offset, bytes.to_vec()));
    }

    /// Bytes made of a text.
    pub(super) fn own_bytes(&mut self, bytes: Vec<u8>) -> Val {
        Val::OwnBytes(self.own(bytes))
    }

    /// Something is called.
    fn call(&mut self, op: Op, callee: Val, args: Val, offset: usize) -> Flow<Val> {
        // The C unpickler takes tuples only; the one written in Python, lists and other collections too.
        let callable = !matches!(
            args,
            Val::Global(_) | Val::Text { .. } | Val::OwnText(_) | Val::Int(_) | Val::None | Val::Bool | Val::Float
        );
        self.out.calls += usize::from(callable);
        let index = match callee {
            Val::Global(index) => index,
            Val::Made(_) | Val::Unknown | Val::Storage(_) => {
                let what = match callee {
                    Val::Made(made) => format!("<what {} gave>", self.path(made)),
                    _ => "<something computed>".to_owned(),
                };
                let because = "it is no name, so that it can be anything".into();
                self.intern(what, Level::Unknown, because, Rule::UnknownCall, offset)
            }
            _ => return Err(Break(format!("{} calls something that cannot be called", op.name()))),
        };
        let preview = if self.known.get(index as usize).is_some_and(|known| known.calls == 0) {
            self.preview(args)
        } else {
            String::new()
        };
        if let Some(known) = self.known.get_mut(index as usize) {
            if known.calls == 0 {
                (known.first_call, known.preview) = (offset, preview);
            }
            known.calls += 1;
        }
        self.used(UseKind::Call, index, offset);
        Ok(calls::call(self, op, index, args, offset))
    }

    /// The arguments of a call as a person reads them, as far as they are texts and numbers.
    fn preview(&self, args: Val) -> String {
        const LONGEST: usize = 60;
        let show = |value: &Val| match *value {
            Val::Int(value) => value.to_string(),
            Val::None => "None".to_owned(),
            Val::Text { .. } | Val::OwnText(_) => self.text(*value).map_or("…".to_owned(), |text| {
                let short: String = text.chars().take(LONGEST).collect();
                if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
            }),
            Val::Global(name) => self.path(name).to_owned(),
            _ => "…".to_owned(),
        };
        let elements = self.elements(args).unwrap_or_default();
        let shown: Vec<String> = elements.iter().take(4).map(show).collect();
        format!("({}{})", shown.join(", "), if elements.len() > 4 { ", …" } else { "" })
    }

    /// A global is changed, where honest pickles change objects.
    fn change(&mut self, target: Val, op: Op, offset: usize) {
        if let Val::Global(name) = target {
            let message = format!("{} changes {} itself, for everything that uses it", op.name(), self.path(name));
            self.find(Level::Dangerous, Rule::PatchedGlobal, offset, message);
            self.refuse(offset, format!("{} is applied to a class or function", op.name()));
        }
    }

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

    fn step(&mut self, step: &Step<'a>) -> Flow {
        let (op, offset) = (step.op, step.offset);
        let number = || step.a.iter().rev().fold(0u64, |sum, &b| sum << 8 | u64::from(b));
        let value = match op {
            Op::PROTO => {
                let protocol = step.a.first().copied().unwrap_or(0);
                if protocol > 5 {
                    return Err(Break(format!("protocol {protocol} is newer than 5, the newest there is")));
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
                    (false, _) if step.a.contains(&0xed) => Val::Unknown,
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

    fn finish(mut self) -> Outcome {
        let names: Vec<(Name, Known)> = self.out.names.iter().cloned().zip(self.known.drain(..)).collect();
        for (name, known) in names.into_iter().filter(|(name, _)| name.level > Level::Allowed) {
            let Name { name, level, because } = name;
            let times = |n: usize| if n == 1 { String::new() } else { format!(" {n} times") };
            let behind = if known.behind { "; it stands behind the break" } else { "" };
            let message = match known.rule {
                Rule::OddPersistentId => format!("asks for {name}: {because}{behind}"),
                Rule::UnknownCall => format!("calls {name}{}{}: {because}{behind}", known.preview, times(known.calls)),
                _ if known.calls > 0 => {
                    format!("calls {name}{}{}: {because}{behind}", known.preview, times(known.calls))
                }
                _ => format!("imports {name}: {because}{behind}"),
            };
            let offset = if known.calls > 0 { known.first_call } else { known.first };
            self.out.findings.push(Local { level, rule: known.rule, offset, message });
        }
        for (what, offset) in std::mem::take(&mut self.tricks) {
            let level = if what.contains("readers disagree") { Level::Unknown } else { Level::Suspicious };
            self.out.findings.push(Local { level, rule: Rule::PickleTrick, offset, message: what.to_owned() });
        }
        self.out
    }
}
