//! The pickle machine: what must hold of everything that it reads.

use m2pt_surgery::pickle::{Emitter, Node, NodeId, Pickle, parse};

/// Reads a pickle. Every id and offset in it must be valid, what follows its end must not matter, and what the writer can
/// write must come back as it was.
pub(crate) fn pickle(input: &[u8]) -> bool {
    let read = match parse(input) {
        Ok(read) => read,
        Err(error) => {
            assert!(error.offset <= input.len() as u64, "{error}");
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    assert!(0 < read.end() && read.end() <= input.len());
    assert!(!read.is_empty());
    let ids = reachable(&read);
    for &id in &ids {
        assert!(read.offset(id) < read.end() as u64);
        assert!(!read.node(id).kind().is_empty());
        assert_eq!(read.global(id).is_some(), matches!(read.node(id), Node::Global { .. }));
        assert_eq!(read.sequence(id).is_some(), matches!(read.node(id), Node::Tuple(_) | Node::List(_)));
    }
    let Ok(alone) = parse(&input[..read.end()]) else { panic!("it needs what follows its end") };
    assert_eq!(alone.len(), read.len());
    for &id in &ids {
        assert!(same(read.node(id), alone.node(id)), "value {} differs", id.index());
    }
    if read.end() > 1 {
        assert!(parse(&input[..read.end() - 1]).is_err(), "it does not need its end mark");
    }
    let mut emitter = Emitter::new();
    if emit(&read, read.root(), &mut emitter, &mut 1000, 0) {
        let Ok(again) = parse(&emitter.stop()) else { panic!("what was written cannot be read") };
        equal(&read, read.root(), &again, again.root());
    }
    true
}

/// Equal, where NaN equals itself.
fn same(one: &Node, other: &Node) -> bool {
    match (one, other) {
        (Node::Float(one), Node::Float(other)) => one.to_bits() == other.to_bits(),
        _ => one == other,
    }
}

/// Every value that the root leads to.
pub(super) fn reachable(pickle: &Pickle) -> Vec<NodeId> {
    let mut seen = vec![false; pickle.len()];
    let mut ids = vec![pickle.root()];
    seen[pickle.root().index()] = true;
    let mut next = 0;
    while let Some(&id) = ids.get(next) {
        next += 1;
        for child in children(pickle.node(id)) {
            assert!(child.index() < pickle.len(), "value {} leads to {}", id.index(), child.index());
            if !std::mem::replace(&mut seen[child.index()], true) {
                ids.push(child);
            }
        }
    }
    ids
}

fn children(node: &Node) -> Vec<NodeId> {
    let pairs = |pairs: &[(NodeId, NodeId)]| pairs.iter().flat_map(|&(key, value)| [key, value]).collect();
    match node {
        Node::Tuple(items) | Node::FrozenSet(items) => items.to_vec(),
        Node::List(items) | Node::Set(items) => items.to_vec(),
        Node::Dict(entries) => pairs(entries),
        Node::Persistent(id) => vec![*id],
        Node::Object(object) => {
            let mut ids = vec![object.callable, object.args];
            ids.extend(object.kwargs);
            ids.extend(object.state.iter().chain(&*object.items));
            ids.extend::<Vec<_>>(pairs(&object.entries));
            ids
        }
        _ => Vec::new(),
    }
}

/// Writes a value; false if the writer has no words for it, or `room` for fewer values.
fn emit(pickle: &Pickle, id: NodeId, out: &mut Emitter, room: &mut usize, depth: usize) -> bool {
    if *room == 0 || depth > 50 {
        return false;
    }
    *room -= 1;
    let mut each = |ids: &[NodeId], out: &mut Emitter| ids.iter().all(|&id| emit(pickle, id, out, room, depth + 1));
    match pickle.node(id) {
        Node::Bool(false) => drop(out.false_()),
        Node::Str(text) => drop(out.str(text)),
        Node::Int(value) => match u64::try_from(*value) {
            Ok(value) => drop(out.int(value)),
            Err(_) => return false,
        },
        Node::Tuple(items) if items.is_empty() => drop(out.empty_tuple()),
        Node::Tuple(items) => {
            out.mark();
            let done = each(items, out);
            out.tuple();
            return done;
        }
        // As `torch.save` writes an OrderedDict.
        Node::Dict(entries) => {
            out.global("collections", "OrderedDict").empty_tuple().reduce().mark();
            let done = entries.iter().all(|&(key, value)| each(&[key, value], out));
            out.set_items();
            return done;
        }
        Node::Persistent(id) => {
            let done = each(&[*id], out);
            out.persistent();
            return done;
        }
        _ => return false,
    }
    true
}

/// Checks that a value came back as it was written.
fn equal(one: &Pickle, a: NodeId, other: &Pickle, b: NodeId) {
    match (one.node(a), other.node(b)) {
        (Node::Tuple(a), Node::Tuple(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(&a, &b)| equal(one, a, other, b));
        }
        (Node::Dict(a), Node::Object(b)) => {
            assert_eq!(other.global(b.callable), Some(("collections", "OrderedDict")));
            assert_eq!(a.len(), b.entries.len());
            for (a, b) in a.iter().zip(&*b.entries) {
                equal(one, a.0, other, b.0);
                equal(one, a.1, other, b.1);
            }
        }
        (Node::Persistent(a), Node::Persistent(b)) => equal(one, *a, other, *b),
        (a, b) => assert_eq!(a, b),
    }
}
