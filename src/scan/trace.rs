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
pub(super) use super::values::{Local, Outcome, Payload, StorageRef, Top, Val};
use super::walk::{End, Step, Walk};
use crate::pickle::Op;

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
/// What stands for the names beyond the limit.
const MORE: &str = "<more names>";
/// The longest name, in bytes, that is shown in full.
const MAX_NAME: usize = 512;

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
    pub(super) options: Options,
    pub(super) stack: Vec<Val>,
    pub(super) marks: Vec<usize>,
    pub(super) memo: Vec<Option<Val>>,
    pub(super) memo_far: HashMap<u64, Val>,
    pub(super) memo_len: usize,
    pub(super) items: Vec<Val>,
    pub(super) owned: Vec<Vec<u8>>,
    owned_bytes: usize,
    index: HashMap<(String, Rule), u32>,
    /// Names as they are written, to judge each once.
    written: HashMap<String, u32>,
    known: Vec<Known>,
    frame_end: Option<usize>,
    tricks: Vec<(&'static str, usize)>,
    idle: usize,
    /// No stack any more: Python would have stopped.
    lost: bool,
    pub(super) out: Outcome,
}

/// Python would stop here.
pub(super) struct Break(pub(super) String);

pub(super) type Flow<T = ()> = Result<T, Break>;

pub(super) fn underflow(op: Op) -> Break {
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
        written: HashMap::new(),
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
        self.refuse(offset, format!("the pickle breaks off: {why}"));
        self.out.broken.get_or_insert((offset, why));
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

    pub(super) fn fence(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    pub(super) fn pop(&mut self, op: Op) -> Flow<Val> {
        if self.stack.len() <= self.fence() {
            return Err(underflow(op));
        }
        self.stack.pop().ok_or_else(|| underflow(op))
    }

    pub(super) fn peek(&self, op: Op) -> Flow<Val> {
        if self.stack.len() <= self.fence() {
            return Err(underflow(op));
        }
        self.stack.last().copied().ok_or_else(|| underflow(op))
    }

    pub(super) fn pop_mark(&mut self, op: Op) -> Flow<Vec<Val>> {
        let at = self.marks.pop().ok_or_else(|| Break(format!("{} finds no mark on the stack", op.name())))?;
        Ok(self.stack.split_off(at))
    }

    pub(super) fn tuple(&mut self, values: &[Val]) -> Val {
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

    pub(super) fn range(&self, at: usize, len: usize) -> Option<(u32, u32)> {
        Some((u32::try_from(at).ok()?, u32::try_from(len).ok()?))
    }

    pub(super) fn own(&mut self, bytes: Vec<u8>) -> u32 {
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

    pub(super) fn intern(
        &mut self,
        path: String,
        level: Level,
        because: Cow<'static, str>,
        rule: Rule,
        offset: usize,
    ) -> u32 {
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
        let full = self.out.names.len() >= if level == Level::Dangerous { 2 * MAX_NAMES } else { MAX_NAMES };
        if full && key.0 != MORE {
            let because = "there are too many to list them".into();
            return self.intern(MORE.to_owned(), Level::Unknown, because, Rule::UnknownGlobal, offset);
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

    pub(super) fn used(&mut self, kind: UseKind, name: u32, offset: usize) {
        if self.out.uses.len() < self.options.uses {
            self.out.uses.push(Use { kind, offset: offset as u64, name });
        }
    }

    pub(super) fn global(&mut self, module: &str, name: &str, offset: usize) -> u32 {
        self.idle = 0;
        let key = [module, name].join("\n");
        let index = match self.written.get(&key) {
            Some(&index) => index,
            None => {
                // A name that cannot be imported comes too late for what was called before.
                self.out.plausible &=
                    self.out.calls > 0 || super::judge::is_identifier(module) && super::judge::is_identifier(name);
                let Judgement { path, level, because } = judge(module, name, self.options.script);
                let rule = if level == Level::Dangerous { Rule::DangerousGlobal } else { Rule::UnknownGlobal };
                let index = self.intern(path, level, because, rule, offset);
                if key.len() <= 2 * MAX_NAME && self.written.len() < MAX_NAMES {
                    self.written.insert(key, index);
                }
                index
            }
        };
        self.used(UseKind::Global, index, offset);
        index
    }

    /// A global whose name cannot be told.
    pub(super) fn computed(&mut self, offset: usize) -> u32 {
        let because = "its name is computed, so that it can be anything".into();
        let index = self.intern("<computed name>".to_owned(), Level::Dangerous, because, Rule::HiddenGlobal, offset);
        self.used(UseKind::Global, index, offset);
        index
    }

    pub(super) fn extension(&mut self, step: &Step<'_>) -> u32 {
        let code = step.a.iter().rev().fold(0u64, |sum, &b| sum << 8 | u64::from(b));
        let because = "the registry of the program that loads it decides what that is".into();
        let path = format!("<extension {code}>");
        let index = self.intern(path, Level::Unknown, because, Rule::ExtensionCode, step.offset);
        self.used(UseKind::Global, index, step.offset);
        index
    }

    /// Notes bytes that could hold something.
    pub(super) fn payload(&mut self, step: &Step<'_>) {
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
    pub(super) fn call(&mut self, op: Op, callee: Val, args: Val, offset: usize) -> Flow<Val> {
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
    pub(super) fn change(&mut self, target: Val, op: Op, offset: usize) {
        if let Val::Global(name) = target {
            let message = format!("{} changes {} itself, for everything that uses it", op.name(), self.path(name));
            self.find(Level::Dangerous, Rule::PatchedGlobal, offset, message);
            self.refuse(offset, format!("{} is applied to a class or function", op.name()));
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
