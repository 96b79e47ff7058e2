//! The stack machine that reads a pickle and calls nothing.

use std::collections::HashMap;

use super::argument::{int_line, integer_text, long, memo_key, quoted, raw_unicode, string, text, unicode, unsigned};
use super::error::{Error, ErrorKind};
use super::node::{Call, Node, NodeId, Object, Pickle};
use super::opcode::{Arg, Op};

/// The largest pickle read, in bytes. PyTorch keeps tensor data outside of the pickle; 64 MiB holds the names of a
/// few hundred thousand tensors.
pub const MAX_PICKLE_BYTES: usize = 64 << 20;
/// The largest number of values in a pickle.
pub const MAX_NODES: usize = 4 << 20;
/// The largest number of values on the stack at one time.
pub const MAX_STACK: usize = 4 << 20;
/// The largest number of memo entries.
pub const MAX_MEMO: usize = 4 << 20;

/// Reads one pickle from the start of `bytes`; what follows its STOP opcode is left alone (see [`Pickle::end`]).
///
/// Time and memory are linear in the length of the input, texts that it uses again are shared, and no length that it
/// declares is trusted.
///
/// # Errors
/// [`Error`] with the offset of the opcode at fault: a malformed or truncated stream, or one of the limits
/// [`MAX_PICKLE_BYTES`], [`MAX_NODES`], [`MAX_STACK`], [`MAX_MEMO`].
pub fn parse(bytes: &[u8]) -> Result<Pickle, Error> {
    let (nodes, offsets) = (Vec::new(), Vec::new());
    let mut machine = Machine {
        bytes,
        at: 0,
        op_at: 0,
        nodes,
        offsets,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        buffers: 0,
    };
    let root = machine.run().map_err(|kind| Error { offset: machine.op_at as u64, kind })?;
    Ok(Pickle { nodes: machine.nodes, offsets: machine.offsets, root, end: machine.at })
}

type Step<T> = Result<T, ErrorKind>;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    op_at: usize,
    nodes: Vec<Node>,
    offsets: Vec<u32>,
    stack: Vec<NodeId>,
    marks: Vec<usize>,
    memo: HashMap<u64, NodeId>,
    buffers: u32,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Step<NodeId> {
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
        if self.nodes.len() >= MAX_NODES {
            return Err(ErrorKind::Limit { what: "values", limit: MAX_NODES });
        }
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(node);
        self.offsets.push(self.op_at as u32);
        Ok(id)
    }

    fn push_id(&mut self, id: NodeId) -> Step<()> {
        if self.stack.len() >= MAX_STACK {
            return Err(ErrorKind::Limit { what: "values on the stack", limit: MAX_STACK });
        }
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, node: Node) -> Step<()> {
        let id = self.node(node)?;
        self.push_id(id)
    }

    /// The stack may not be popped below the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
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
        Ok(self.stack.split_off(mark))
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
        match (&mut self.nodes[target.index()], op) {
            (Node::List(list), Op::APPEND | Op::APPENDS) => list.extend_from_slice(items),
            (Node::Set(set), Op::ADDITEMS) => set.extend_from_slice(items),
            (Node::Object(object), _) => object.items.extend_from_slice(items),
            (other, _) => return Err(ErrorKind::WrongType { opcode: op.name(), found: other.kind() }),
        }
        Ok(())
    }

    fn set(&mut self, op: Op, pairs: &[(NodeId, NodeId)]) -> Step<()> {
        let target = self.top(op)?;
        match &mut self.nodes[target.index()] {
            Node::Dict(entries) => entries.extend_from_slice(pairs),
            Node::Object(object) => object.entries.extend_from_slice(pairs),
            other => return Err(ErrorKind::WrongType { opcode: op.name(), found: other.kind() }),
        }
        Ok(())
    }

    fn object(&mut self, call: Call, callable: NodeId, args: NodeId, kwargs: Option<NodeId>) -> Step<()> {
        let (state, items, entries) = (Vec::new(), Vec::new(), Vec::new());
        self.push(Node::Object(Box::new(Object { call, callable, args, kwargs, state, items, entries })))
    }

    fn put(&mut self, op: Op, key: u64) -> Step<()> {
        let value = self.top(op)?;
        if self.memo.len() >= MAX_MEMO {
            return Err(ErrorKind::Limit { what: "memo entries", limit: MAX_MEMO });
        }
        self.memo.insert(key, value);
        Ok(())
    }

    fn get(&mut self, key: u64) -> Step<()> {
        let value = *self.memo.get(&key).ok_or(ErrorKind::NoSuchMemo(key))?;
        self.push_id(value)
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
                self.marks.push(self.stack.len());
                Ok(())
            }
            Op::POP if self.marks.last() == Some(&self.stack.len()) => self.pop_mark(op).map(drop),
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
            Op::LONG1 | Op::LONG4 => self.push(long(arg)),
            Op::FLOAT => {
                let value = text(op, arg)?.trim().parse().map_err(|_| ErrorKind::BadArgument(op.name()))?;
                self.push(Node::Float(value))
            }
            Op::BINFLOAT => {
                let bits = arg.iter().fold(0u64, |n, &b| n << 8 | u64::from(b));
                self.push(Node::Float(f64::from_bits(bits)))
            }
            Op::STRING => {
                let bytes = quoted(arg).ok_or(ErrorKind::BadArgument(op.name()))?;
                self.push(string(bytes))
            }
            Op::BINSTRING | Op::SHORT_BINSTRING => self.push(string(arg.to_vec())),
            Op::UNICODE => {
                let text = raw_unicode(arg).ok_or(ErrorKind::BadArgument(op.name()))?;
                self.push(Node::Str(text.into()))
            }
            Op::BINUNICODE | Op::SHORT_BINUNICODE | Op::BINUNICODE8 => self.push(Node::Str(unicode(op, arg)?.into())),
            Op::BINBYTES | Op::SHORT_BINBYTES | Op::BINBYTES8 => self.push(Node::Bytes(arg.into())),
            Op::BYTEARRAY8 => self.push(Node::ByteArray(arg.into())),
            Op::EMPTY_LIST => self.push(Node::List(Vec::new())),
            Op::EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            Op::EMPTY_SET => self.push(Node::Set(Vec::new())),
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
                self.push(Node::List(items))
            }
            Op::DICT => {
                let items = self.pop_mark(op)?;
                self.push(Node::Dict(Self::pairs(op, &items)?))
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
                match &mut self.nodes[target.index()] {
                    Node::Object(object) => object.state.push(state),
                    other => return Err(ErrorKind::WrongType { opcode: op.name(), found: other.kind() }),
                }
                Ok(())
            }
            Op::GLOBAL => self.push(Node::Global { module: text(op, arg)?.into(), name: text(op, second)?.into() }),
            Op::STACK_GLOBAL => {
                let name = self.pop(op)?;
                let module = self.pop(op)?;
                match (&self.nodes[module.index()], &self.nodes[name.index()]) {
                    (Node::Str(module), Node::Str(name)) => {
                        let (module, name) = (module.clone(), name.clone());
                        self.push(Node::Global { module, name })
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
                let global = Node::Global { module: text(op, arg)?.into(), name: text(op, second)?.into() };
                let callable = self.node(global)?;
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
