//! The stack machine that reads a pickle and calls nothing.

use std::collections::HashMap;
use std::sync::Arc;

use super::argument::{
    int_line, integer_text, long, memo_key, quoted, raw_unicode, string, surrogates, text, unsigned,
};
use super::budget::{Budget, Full, MAX_VALUE_BYTES, allocated};
use super::error::{Error, ErrorKind};
use super::memo::Memo;
use super::node::{Call, Global, Items, Node, NodeId, Object, Pickle};
use super::opcode::{Arg, Op};

/// The largest pickle read, in bytes. PyTorch keeps tensor data outside of the pickle; 64 MiB holds the names of a
/// few hundred thousand tensors.
pub const MAX_PICKLE_BYTES: usize = 64 << 20;
/// The largest number of values in a pickle, those that are kept once counted once.
pub const MAX_NODES: usize = 4 << 20;
/// The largest number of values on the stack at one time.
pub const MAX_STACK: usize = 4 << 20;
/// The largest number of memo entries.
pub const MAX_MEMO: usize = 4 << 20;
/// The largest number of different classes and functions that a pickle names.
pub const MAX_GLOBALS: usize = 1 << 16;
/// The longest name of a class or function, in bytes of module and name.
pub const MAX_GLOBAL_BYTES: usize = 4096;

/// Reads one pickle from the start of `bytes`; what follows its STOP opcode is left alone (see [`Pickle::end`]).
///
/// Time is linear in the length of the input and memory is bounded: values that cannot change are kept once, and no
/// length that the input declares is trusted.
///
/// # Errors
/// [`Error`] with the offset of the opcode at fault: a malformed or truncated stream, or one of the limits
/// [`MAX_PICKLE_BYTES`], [`MAX_NODES`], [`MAX_STACK`], [`MAX_MEMO`], [`MAX_GLOBALS`], [`MAX_GLOBAL_BYTES`],
/// [`MAX_VALUE_BYTES`].
pub fn parse(bytes: &[u8]) -> Result<Pickle, Error> {
    parse_within(bytes, &mut Budget::default())
}

/// As [`parse`], of one pickle of several in a file: `budget` is what all of them share.
pub(crate) fn parse_within(bytes: &[u8], budget: &mut Budget) -> Result<Pickle, Error> {
    let before = budget.taken();
    let mut machine = Machine {
        bytes,
        at: 0,
        op_at: 0,
        nodes: Vec::new(),
        offsets: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Memo::default(),
        known: Known::default(),
        budget,
        buffers: 0,
    };
    let root = machine.read().map_err(|kind| Error { offset: machine.op_at as u64, kind })?;
    let Machine { mut nodes, mut offsets, stack, marks, memo, budget, at, .. } = machine;
    let spare = size_of::<Node>() * (nodes.capacity() - nodes.len()) + 4 * (offsets.capacity() - offsets.len());
    nodes.shrink_to_fit();
    offsets.shrink_to_fit();
    let tables = spare + 4 * (stack.capacity() + marks.capacity()) + memo.memory();
    drop((stack, marks, memo));
    budget.give_back(tables);
    Ok(Pickle { nodes, offsets, root, end: at, memory: budget.taken() - before })
}

type Step<T> = Result<T, ErrorKind>;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    op_at: usize,
    nodes: Vec<Node>,
    offsets: Vec<u32>,
    stack: Vec<NodeId>,
    marks: Vec<u32>,
    memo: Memo,
    known: Known,
    /// Memory that is left.
    budget: &'a mut Budget,
    buffers: u32,
}

/// Values that cannot change, kept once each.
#[derive(Default)]
struct Known {
    none: Option<NodeId>,
    bools: [Option<NodeId>; 2],
    empty_tuple: Option<NodeId>,
    /// The integers made last, each in a place that its value tells.
    ints: Vec<Option<NodeId>>,
    /// Classes and functions by module, newline, name.
    globals: HashMap<Arc<str>, NodeId>,
    /// Module, newline, name of the one that is looked for.
    global: String,
}

impl Known {
    /// Places for integers, at first and at most: the sizes and strides of a model's tensors are few.
    const INTS: (usize, usize) = (64, 4096);

    /// Where the value would be kept, in a pickle that has that many values so far.
    fn place(&mut self, node: &Node, values: usize) -> Option<&mut Option<NodeId>> {
        match *node {
            Node::None => Some(&mut self.none),
            Node::Bool(value) => Some(&mut self.bools[usize::from(value)]),
            Node::Tuple(ref items) if items.is_empty() => Some(&mut self.empty_tuple),
            Node::Int(value) => {
                let (first, most) = Known::INTS;
                if self.ints.len() < values.clamp(first, most) {
                    // What was kept is made once more, at most.
                    self.ints = vec![None; values.next_power_of_two().clamp(first, most)];
                }
                // The upper bits of the product depend on all bits of the value (Fibonacci hashing).
                let place = (value as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - self.ints.len().ilog2());
                self.ints.get_mut(place as usize)
            }
            _ => None,
        }
    }
}

impl From<Full> for ErrorKind {
    fn from(Full: Full) -> ErrorKind {
        ErrorKind::Limit { what: "bytes of memory for its values", limit: MAX_VALUE_BYTES }
    }
}

impl<'a> Machine<'a> {
    fn read(&mut self) -> Step<NodeId> {
        /// Values that there is room for at first: so many small pickles have.
        const FIRST: usize = 32;
        self.budget.reserve(&mut self.nodes, FIRST)?;
        self.budget.reserve(&mut self.offsets, FIRST)?;
        self.budget.reserve(&mut self.stack, FIRST)?;
        loop {
            self.op_at = self.at;
            if self.at > MAX_PICKLE_BYTES {
                return Err(ErrorKind::Limit { what: "bytes of pickle", limit: MAX_PICKLE_BYTES });
            }
            let byte = self.take(1)?[0];
            let op = Op::from_byte(byte).ok_or(ErrorKind::UnknownOpcode(byte))?;
            if op == Op::STOP {
                return self.pop(op);
            }
            let (arg, second) = self.argument(op)?;
            self.execute(op, arg, second)?;
        }
    }

    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len()).ok_or(ErrorKind::Truncated)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn line(&mut self) -> Step<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').ok_or(ErrorKind::Truncated)?;
        self.at += length + 1;
        Ok(&rest[..length])
    }

    fn argument(&mut self, op: Op) -> Step<(&'a [u8], &'a [u8])> {
        Ok(match op.arg() {
            Arg::None => (&[], &[]),
            Arg::Fixed(count) => (self.take(count)?, &[]),
            Arg::Line => (self.line()?, &[]),
            Arg::TwoLines => (self.line()?, self.line()?),
            Arg::Counted(width) => {
                let count = unsigned(self.take(width)?);
                let count = usize::try_from(count).map_err(|_| ErrorKind::Truncated)?;
                (self.take(count)?, &[])
            }
        })
    }

    fn node(&mut self, node: Node) -> Step<NodeId> {
        let id = NodeId(self.nodes.len() as u32);
        if let Some(place) = self.known.place(&node, self.nodes.len()) {
            if let Some(known) = place.filter(|known| self.nodes[known.index()] == node) {
                return Ok(known);
            }
            *place = Some(id);
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(ErrorKind::Limit { what: "values", limit: MAX_NODES });
        }
        self.budget.take(node.memory())?;
        self.budget.push(&mut self.nodes, node)?;
        self.budget.push(&mut self.offsets, self.op_at as u32)?;
        Ok(id)
    }

    /// The class or function of that name, kept once.
    fn global(&mut self, module: &str, name: &str) -> Step<NodeId> {
        if module.len() + name.len() > MAX_GLOBAL_BYTES {
            return Err(ErrorKind::Limit { what: "bytes in the name of a class", limit: MAX_GLOBAL_BYTES });
        }
        self.known.global.clear();
        self.known.global.extend([module, "\n", name]);
        let found = self.known.globals.get(self.known.global.as_str()).copied();
        if let Some(id) = found.filter(|&id| matches!(&self.nodes[id.index()], Node::Global(g) if g.module() == module))
        {
            return Ok(id);
        }
        if self.known.globals.len() >= MAX_GLOBALS {
            return Err(ErrorKind::Limit { what: "different classes and functions", limit: MAX_GLOBALS });
        }
        let global = Global::new(module, name);
        let text = Arc::clone(global.text());
        // The table's own entry, and the name as it is shown, come on top.
        self.budget.take(2 * allocated(16 + text.len()) + 192)?;
        let id = self.node(Node::Global(Box::new(global)))?;
        self.known.globals.insert(text, id);
        Ok(id)
    }

    fn push_id(&mut self, id: NodeId) -> Step<()> {
        if self.stack.len() >= MAX_STACK {
            return Err(ErrorKind::Limit { what: "values on the stack", limit: MAX_STACK });
        }
        Ok(self.budget.push(&mut self.stack, id)?)
    }

    fn push(&mut self, node: Node) -> Step<()> {
        let id = self.node(node)?;
        self.push_id(id)
    }

    /// The stack may not be popped below the last mark.
    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&mark| mark as usize)
    }

    fn pop(&mut self, op: Op) -> Step<NodeId> {
        if self.stack.len() <= self.floor() {
            return Err(ErrorKind::StackUnderflow(op.name()));
        }
        self.stack.pop().ok_or(ErrorKind::StackUnderflow(op.name()))
    }

    fn top(&self, op: Op) -> Step<NodeId> {
        if self.stack.len() <= self.floor() {
            return Err(ErrorKind::StackUnderflow(op.name()));
        }
        self.stack.last().copied().ok_or(ErrorKind::StackUnderflow(op.name()))
    }

    fn pop_mark(&mut self, op: Op) -> Step<Vec<NodeId>> {
        let mark = self.marks.pop().ok_or(ErrorKind::NoMark(op.name()))?;
        Ok(self.stack.split_off(mark as usize))
    }

    fn pop_some(&mut self, op: Op, count: usize) -> Step<Box<[NodeId]>> {
        if self.stack.len() < self.floor() + count {
            return Err(ErrorKind::StackUnderflow(op.name()));
        }
        Ok(self.stack.split_off(self.stack.len() - count).into())
    }

    fn pairs(op: Op, items: &[NodeId]) -> Step<Vec<(NodeId, NodeId)>> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(ErrorKind::StackUnderflow(op.name()));
        }
        Ok(pairs.iter().map(|&[k, v]| (k, v)).collect())
    }

    fn append(&mut self, op: Op, items: &[NodeId]) -> Step<()> {
        let target = self.top(op)?;
        let held = match (&mut self.nodes[target.index()], op) {
            (Node::List(held), Op::APPEND | Op::APPENDS) | (Node::Set(held), Op::ADDITEMS) => held,
            (Node::Object(object), _) => &mut object.items,
            (other, _) => return Err(ErrorKind::WrongType { opcode: op.name(), found: other.kind() }),
        };
        Ok(held.append(items, self.budget)?)
    }

    fn set(&mut self, op: Op, pairs: &[(NodeId, NodeId)]) -> Step<()> {
        let target = self.top(op)?;
        let held = match &mut self.nodes[target.index()] {
            Node::Dict(held) => held,
            Node::Object(object) => &mut object.entries,
            other => return Err(ErrorKind::WrongType { opcode: op.name(), found: other.kind() }),
        };
        Ok(held.append(pairs, self.budget)?)
    }

    fn object(&mut self, call: Call, callable: NodeId, args: NodeId, kwargs: Option<NodeId>) -> Step<()> {
        let (state, items, entries) = (Items::new(), Items::new(), Items::new());
        self.push(Node::Object(Box::new(Object { call, callable, args, kwargs, state, items, entries })))
    }

    fn put(&mut self, op: Op, key: u64) -> Step<()> {
        let value = self.top(op)?;
        if self.memo.len() >= MAX_MEMO {
            return Err(ErrorKind::Limit { what: "memo entries", limit: MAX_MEMO });
        }
        Ok(self.memo.put(key, value, self.budget)?)
    }

    fn get(&mut self, key: u64) -> Step<()> {
        let value = self.memo.get(key).ok_or(ErrorKind::NoSuchMemo(key))?;
        self.push_id(value)
    }

    /// Checks that there is memory to decode a line of text, which takes more than the text does in the end.
    fn room_for_line(&self, line: &[u8]) -> Step<()> {
        Ok(self.budget.room_for(line.len().saturating_mul(4))?)
    }

    /// UTF-8 text, with the lone surrogates that Python also writes.
    fn text(&mut self, op: Op, bytes: &[u8]) -> Step<()> {
        let node = match std::str::from_utf8(bytes) {
            Ok(text) => {
                self.budget.room_for(text.len())?;
                Node::Str(text.into())
            }
            Err(_) => {
                // Each may take twice its bytes as text, which is copied as it grows and once it is whole.
                self.budget.room_for(bytes.len().saturating_mul(6))?;
                Node::Str(surrogates(op, bytes)?.into())
            }
        };
        self.push(node)
    }

    /// A value that holds a copy of these bytes.
    fn copy(&mut self, bytes: &[u8], node: impl FnOnce(&[u8]) -> Node) -> Step<()> {
        self.budget.room_for(bytes.len())?;
        self.push(node(bytes))
    }

    fn execute(&mut self, op: Op, arg: &[u8], second: &[u8]) -> Step<()> {
        match op {
            Op::STOP | Op::FRAME => Ok(()),
            Op::PROTO if arg[0] > 5 => Err(ErrorKind::Protocol(arg[0])),
            Op::PROTO => Ok(()),
            Op::MARK => {
                if self.marks.len() >= MAX_STACK {
                    return Err(ErrorKind::Limit { what: "marks on the stack", limit: MAX_STACK });
                }
                Ok(self.budget.push(&mut self.marks, self.stack.len() as u32)?)
            }
            Op::POP if !self.marks.is_empty() && self.floor() == self.stack.len() => self.pop_mark(op).map(drop),
            Op::POP => self.pop(op).map(drop),
            Op::POP_MARK => self.pop_mark(op).map(drop),
            Op::DUP => self.top(op).and_then(|id| self.push_id(id)),
            Op::NONE => self.push(Node::None),
            Op::NEWTRUE => self.push(Node::Bool(true)),
            Op::NEWFALSE => self.push(Node::Bool(false)),
            Op::INT => self.push(int_line(op, arg)?),
            Op::LONG => self.push(integer_text(op, arg.strip_suffix(b"L").unwrap_or(arg))?),
            Op::BININT => self.push(Node::Int(i64::from(unsigned(arg) as u32 as i32))),
            Op::BININT1 | Op::BININT2 => self.push(Node::Int(unsigned(arg) as i64)),
            Op::LONG1 | Op::LONG4 => self.copy(arg, long),
            Op::FLOAT => {
                let value = text(op, arg)?.trim().parse().map_err(|_| ErrorKind::BadArgument(op.name()))?;
                self.push(Node::Float(value))
            }
            Op::BINFLOAT => {
                let bits = arg.iter().fold(0u64, |n, &b| n << 8 | u64::from(b));
                self.push(Node::Float(f64::from_bits(bits)))
            }
            Op::STRING => {
                self.room_for_line(arg)?;
                let bytes = quoted(arg).ok_or(ErrorKind::BadArgument(op.name()))?;
                self.push(string(&bytes))
            }
            Op::BINSTRING | Op::SHORT_BINSTRING => self.copy(arg, string),
            Op::UNICODE => {
                self.room_for_line(arg)?;
                let text = raw_unicode(arg).ok_or(ErrorKind::BadArgument(op.name()))?;
                self.push(Node::Str(text.into()))
            }
            Op::BINUNICODE | Op::SHORT_BINUNICODE | Op::BINUNICODE8 => self.text(op, arg),
            Op::BINBYTES | Op::SHORT_BINBYTES | Op::BINBYTES8 => self.copy(arg, |bytes| Node::Bytes(bytes.into())),
            Op::BYTEARRAY8 => self.copy(arg, |bytes| Node::ByteArray(bytes.into())),
            Op::EMPTY_LIST => self.push(Node::List(Items::new())),
            Op::EMPTY_DICT => self.push(Node::Dict(Items::new())),
            Op::EMPTY_SET => self.push(Node::Set(Items::new())),
            Op::EMPTY_TUPLE => self.push(Node::Tuple(Box::default())),
            Op::TUPLE1 | Op::TUPLE2 | Op::TUPLE3 => {
                let count = match op {
                    Op::TUPLE1 => 1,
                    Op::TUPLE2 => 2,
                    _ => 3,
                };
                let items = self.pop_some(op, count)?;
                self.push(Node::Tuple(items))
            }
            Op::TUPLE => {
                let items = self.pop_mark(op)?;
                self.push(Node::Tuple(items.into()))
            }
            Op::LIST => {
                let items = self.pop_mark(op)?;
                self.push(Node::List(items.into()))
            }
            Op::DICT => {
                let items = self.pop_mark(op)?;
                self.push(Node::Dict(Self::pairs(op, &items)?.into()))
            }
            Op::FROZENSET => {
                let items = self.pop_mark(op)?;
                self.push(Node::FrozenSet(items.into()))
            }
            Op::APPEND => {
                let item = self.pop(op)?;
                self.append(op, &[item])
            }
            Op::APPENDS | Op::ADDITEMS => {
                let items = self.pop_mark(op)?;
                self.append(op, &items)
            }
            Op::SETITEM => {
                let value = self.pop(op)?;
                let key = self.pop(op)?;
                self.set(op, &[(key, value)])
            }
            Op::SETITEMS => {
                let items = self.pop_mark(op)?;
                self.set(op, &Self::pairs(op, &items)?)
            }
            Op::BUILD => {
                let state = self.pop(op)?;
                let target = self.top(op)?;
                let held = match &mut self.nodes[target.index()] {
                    Node::Object(object) => &mut object.state,
                    other => return Err(ErrorKind::WrongType { opcode: op.name(), found: other.kind() }),
                };
                Ok(held.append(&[state], self.budget)?)
            }
            Op::GLOBAL => {
                let id = self.global(text(op, arg)?, text(op, second)?)?;
                self.push_id(id)
            }
            Op::STACK_GLOBAL => {
                let name = self.pop(op)?;
                let module = self.pop(op)?;
                match (&self.nodes[module.index()], &self.nodes[name.index()]) {
                    (Node::Str(module), Node::Str(name)) => {
                        let (module, name) = (module.clone(), name.clone());
                        let id = self.global(&module, &name)?;
                        self.push_id(id)
                    }
                    (Node::Str(_), other) | (other, _) => {
                        Err(ErrorKind::WrongType { opcode: op.name(), found: other.kind() })
                    }
                }
            }
            Op::REDUCE | Op::NEWOBJ => {
                let args = self.pop(op)?;
                let callable = self.pop(op)?;
                self.object(if op == Op::REDUCE { Call::Reduce } else { Call::New }, callable, args, None)
            }
            Op::NEWOBJ_EX => {
                let kwargs = self.pop(op)?;
                let args = self.pop(op)?;
                let callable = self.pop(op)?;
                self.object(Call::New, callable, args, Some(kwargs))
            }
            Op::INST => {
                let items = self.pop_mark(op)?;
                let callable = self.global(text(op, arg)?, text(op, second)?)?;
                let args = self.node(Node::Tuple(items.into()))?;
                self.object(Call::Instance, callable, args, None)
            }
            Op::OBJ => {
                let mut items = self.pop_mark(op)?;
                if items.is_empty() {
                    return Err(ErrorKind::StackUnderflow(op.name()));
                }
                let callable = items.remove(0);
                let args = self.node(Node::Tuple(items.into()))?;
                self.object(Call::Instance, callable, args, None)
            }
            Op::PERSID => {
                self.room_for_line(arg)?;
                let id = self.node(Node::Str(text(op, arg)?.into()))?;
                self.push(Node::Persistent(id))
            }
            Op::BINPERSID => {
                let id = self.pop(op)?;
                self.push(Node::Persistent(id))
            }
            Op::EXT1 | Op::EXT2 | Op::EXT4 => self.push(Node::Extension(unsigned(arg) as u32 as i32)),
            Op::NEXT_BUFFER => {
                self.buffers += 1;
                self.push(Node::Buffer(self.buffers - 1))
            }
            Op::READONLY_BUFFER => self.top(op).map(drop),
            Op::PUT => self.put(op, memo_key(op, arg)?),
            Op::BINPUT | Op::LONG_BINPUT => self.put(op, unsigned(arg)),
            Op::MEMOIZE => self.put(op, self.memo.len() as u64),
            Op::GET => self.get(memo_key(op, arg)?),
            Op::BINGET | Op::LONG_BINGET => self.get(unsigned(arg)),
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
