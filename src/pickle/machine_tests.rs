//! The pickles here were written by Python's own `pickle` and `pickletools`; the values are Python's.

use super::super::{Emitter, ErrorKind, Node, parse};
use super::{MAX_GLOBAL_BYTES, MAX_GLOBALS, MAX_NODES, MAX_VALUE_BYTES};

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn root(bytes: &[u8]) -> Node {
    let pickle = parse(bytes).unwrap();
    assert_eq!(pickle.end(), bytes.len());
    pickle.node(pickle.root()).clone()
}

fn refused(bytes: &[u8]) -> (u64, ErrorKind) {
    let error = parse(bytes).unwrap_err();
    (error.offset, error.kind)
}

#[test]
fn integers_of_every_protocol_are_pythons() {
    assert_eq!(root(b"I-42\n."), Node::Int(-42));
    assert_eq!(root(b"I01\n."), Node::Bool(true));
    assert_eq!(root(b"L123456789L\n."), Node::Int(123_456_789));
    assert_eq!(root(b"\x80\x02J\xfe\xff\xff\xff."), Node::Int(-2));
    assert_eq!(root(b"\x80\x02M\x00\x01."), Node::Int(256));
    // pickle.dumps(2**40, 2), pickle.dumps(-2**40, 2), pickle.dumps(2**63, 2), pickle.dumps(0, 2) as LONG1
    assert_eq!(root(&hex("80028a060000000000012e")), Node::Int(1 << 40));
    assert_eq!(root(&hex("80028a060000000000ff2e")), Node::Int(-(1 << 40)));
    let big = vec![0, 0, 0, 0, 0, 0, 0, 0x80, 0];
    assert_eq!(root(&hex("80028a090000000000000080002e")), Node::BigInt(big.clone().into()));
    assert_eq!(root(b"L9223372036854775808L\n."), Node::BigInt(big.into()));
    assert_eq!(root(b"\x8a\x00."), Node::Int(0));
    // (-2**64).to_bytes(9, "little", signed=True)
    assert_eq!(root(b"L-18446744073709551616L\n."), Node::BigInt([0, 0, 0, 0, 0, 0, 0, 0, 0xff].into()));
}

#[test]
fn integers_that_python_reads_in_two_ways_are_refused() {
    // 8 to pickle.loads, an error to pickle._loads.
    assert_eq!(refused(b"I010\n."), (0, ErrorKind::BadArgument("INT")));
    assert_eq!(refused(b"L-010L\n."), (0, ErrorKind::BadArgument("LONG")));
    assert_eq!(root(b"I0\n."), Node::Int(0));
}

#[test]
fn text_and_bytes_are_pythons() {
    // pickle.dumps("a\\b\u00e9\u4e2d\n", 0)
    assert_eq!(root(b"Va\\u005cb\xe9\\u4e2d\\u000a\np0\n."), Node::Str("a\\b\u{e9}\u{4e2d}\n".into()));
    // pickle.loads(rb"V\\u0041\\\u0041\" + b"\n.")
    assert_eq!(root(b"V\\\\u0041\\\\\\u0041\\\n."), Node::Str("\\\\u0041\\\\A\\".into()));
    assert_eq!(refused(b"V\\U+001f600\n."), (0, ErrorKind::BadArgument("UNICODE")));
    assert_eq!(refused(b"S'a' \n."), (0, ErrorKind::BadArgument("STRING")));
    assert_eq!(root(b"S'it\\'s \\x41\\101\\n'\n."), Node::Str("it's AA\n".into()));
    assert_eq!(root(b"U\x02\xff\x00."), Node::Bytes([0xff, 0].into()));
    assert_eq!(root(b"G\x3f\xb9\x99\x99\x99\x99\x99\x9a."), Node::Float(0.1));
    assert_eq!(root(b"F-1e-3\n."), Node::Float(-0.001));
}

#[test]
fn long_integers_are_exact() {
    // str(3 ** 100), (3 ** 100).to_bytes(20, "little")
    let three_to_100 = b"L515377520732011331036461129765621272702107522001L\n.";
    assert_eq!(root(three_to_100), Node::BigInt(hex("d11338cf557d94d675f7415b56683767ca53465a").into()));
    assert_eq!(root(b"L18446744073709551616L\n."), Node::BigInt([0, 0, 0, 0, 0, 0, 0, 0, 1].into()));
}

#[test]
fn lone_surrogates_are_kept_as_text() {
    // pickle.dumps("a\udce9b", 2) is X 05000000 61 ed b3 a9 62
    assert_eq!(root(b"X\x05\x00\x00\x00a\xed\xb3\xa9b."), Node::Str("a\\udce9b".into()));
    // pickle.dumps("a\udce9b", 0)
    assert_eq!(root(b"Va\\udce9b\np0\n."), Node::Str("a\\udce9b".into()));
    assert_eq!(refused(b"X\x01\x00\x00\x00\xff.").1, ErrorKind::NotUtf8("BINUNICODE"));
}

#[test]
fn shared_values_stay_shared_and_dictionaries_keep_their_order() {
    // x = [1]; pickle.dumps({"b": x, "a": x}, 4)
    let bytes = hex("80049514000000000000007d94288c0162945d944b01618c0161946802752e");
    let pickle = parse(&bytes).unwrap();
    let Node::Dict(entries) = pickle.node(pickle.root()) else { panic!("not a dict") };
    assert_eq!(*pickle.node(entries[0].0), Node::Str("b".into()));
    assert_eq!(*pickle.node(entries[1].0), Node::Str("a".into()));
    assert_eq!(entries[0].1, entries[1].1);
}

#[test]
fn calls_are_recorded_and_not_made() {
    let pickle = parse(b"cos\nsystem\n(S'echo hi'\ntR.").unwrap();
    let Node::Object(object) = pickle.node(pickle.root()) else { panic!("not an object") };
    assert_eq!(pickle.global(object.callable), Some(("os", "system")));
    assert_eq!(pickle.offset(object.callable), 0);
    assert_eq!(pickle.sequence(object.args).map(<[_]>::len), Some(1));
}

#[test]
fn cycles_are_kept() {
    // x = []; x.append(x); pickle.dumps(x, 2)
    let pickle = parse(&hex("80025d71006800612e")).unwrap();
    assert_eq!(*pickle.node(pickle.root()), Node::List(vec![pickle.root()].into()));
}

#[test]
fn rejects_every_truncation_of_a_pickle() {
    let mut whole = Emitter::new();
    whole.global("collections", "OrderedDict").empty_tuple().reduce().mark().str("key").int(1 << 40).set_items();
    let whole = whole.stop();
    assert!(parse(&whole).is_ok());
    for end in 0..whole.len() {
        assert!(parse(&whole[..end]).is_err(), "{end}");
    }
}

#[test]
fn rejects_unknown_opcodes_and_protocols() {
    assert_eq!(refused(b"N\xfe."), (1, ErrorKind::UnknownOpcode(0xfe)));
    assert_eq!(refused(b"\x80\x06N."), (0, ErrorKind::Protocol(6)));
}

#[test]
fn rejects_pops_below_the_stack_or_a_mark() {
    assert_eq!(refused(b"."), (0, ErrorKind::StackUnderflow("STOP")));
    assert_eq!(refused(b"N(R."), (2, ErrorKind::StackUnderflow("REDUCE")));
    assert_eq!(refused(b"Nt."), (1, ErrorKind::NoMark("TUPLE")));
    assert_eq!(refused(b"}(Nu."), (3, ErrorKind::StackUnderflow("SETITEMS")));
}

#[test]
fn rejects_missing_memo_entries_and_wrong_types() {
    assert_eq!(refused(b"h\x05."), (0, ErrorKind::NoSuchMemo(5)));
    assert_eq!(refused(b"NNa."), (2, ErrorKind::WrongType { opcode: "APPEND", found: "None" }));
    assert_eq!(refused(b"N}b."), (2, ErrorKind::WrongType { opcode: "BUILD", found: "None" }));
}

#[test]
fn declared_lengths_do_not_drive_allocations() {
    assert_eq!(refused(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f"), (0, ErrorKind::Truncated));
    assert_eq!(refused(b"X\xff\xff\xff\xffabc"), (0, ErrorKind::Truncated));
}

#[test]
fn rejects_more_values_than_the_limit() {
    let mut bytes = b"]0".repeat(MAX_NODES);
    bytes.extend_from_slice(b"].");
    assert_eq!(refused(&bytes).1, ErrorKind::Limit { what: "values", limit: MAX_NODES });
}

#[test]
fn rejects_more_classes_and_memory_than_the_limits() {
    let mut bytes: Vec<u8> = (0..MAX_GLOBALS).flat_map(|i| format!("cm\n{i}\n0").into_bytes()).collect();
    assert!(parse(&[&bytes[..], b"cm\n0\n."].concat()).is_ok());
    bytes.extend_from_slice(b"cm\nx\n.");
    assert_eq!(refused(&bytes).1, ErrorKind::Limit { what: "different classes and functions", limit: MAX_GLOBALS });
    let long = ["c", &"m".repeat(MAX_GLOBAL_BYTES), "\nx\n."].concat();
    assert_eq!(
        refused(long.as_bytes()).1,
        ErrorKind::Limit { what: "bytes in the name of a class", limit: MAX_GLOBAL_BYTES }
    );
    let tuples = b"N\x85".repeat(MAX_NODES - 1);
    assert!(matches!(refused(&tuples).1, ErrorKind::Limit { limit: MAX_VALUE_BYTES, .. }));
}

#[test]
fn values_that_cannot_change_are_kept_once() {
    let pickle = parse(b"(NNI01\nI01\n))K\x07L7L\nJ\x07\x00\x00\x00cm\nx\n\x8c\x01m\x8c\x01x\x93]]l.").unwrap();
    let ids = pickle.sequence(pickle.root()).unwrap();
    for (first, last) in [(0, 1), (2, 3), (4, 5), (6, 8), (9, 10)] {
        assert_eq!(ids[first], ids[last], "{first}");
    }
    assert_eq!(ids[6], ids[7]);
    // Lists can change.
    assert_ne!(ids[11], ids[12]);
    assert_eq!(pickle.global(ids[10]), Some(("m", "x")));
}

#[test]
fn classes_whose_parts_hold_newlines_are_told_apart() {
    let pickle = parse(b"(\x8c\x03a\nb\x8c\x01c\x93\x8c\x01a\x8c\x03b\nc\x93l.").unwrap();
    let ids = pickle.sequence(pickle.root()).unwrap();
    assert_eq!(pickle.global(ids[0]), Some(("a\nb", "c")));
    assert_eq!(pickle.global(ids[1]), Some(("a", "b\nc")));
}

#[test]
fn memo_keys_need_no_order() {
    // Python's own unpickler returns [1, 2, 3, 2, 1] for this, and the next MEMOIZE has the key 4.
    let pickle = parse(b"\x80\x04(K\x01q\x02K\x02r\xff\xff\xff\xffK\x03q\x00j\xff\xff\xff\xffh\x02l.").unwrap();
    let numbers: Vec<_> = pickle.sequence(pickle.root()).unwrap().iter().map(|&id| pickle.node(id).clone()).collect();
    assert_eq!(numbers, [1, 2, 3, 2, 1].map(Node::Int));
    // A key that was hashed is found again once the keys before it are there, and so is what replaces it.
    let pickle = parse(b"(K\x01q\x01K\x02q\x00h\x01K\x03q\x01h\x01l.").unwrap();
    let numbers: Vec<_> = pickle.sequence(pickle.root()).unwrap().iter().map(|&id| pickle.node(id).clone()).collect();
    assert_eq!(numbers, [1, 2, 1, 3, 3].map(Node::Int));
}

#[cfg(target_pointer_width = "64")]
#[test]
fn a_value_takes_24_bytes() {
    assert_eq!(size_of::<Node>(), 24);
}

#[test]
fn emitted_integers_are_pythons() {
    for (value, expected) in [
        (0u64, "4b00"),
        (255, "4bff"),
        (256, "4d0001"),
        (65_536, "4a00000100"),
        (1 << 31, "8a050000008000"),
        (1 << 40, "8a06000000000001"),
        ((1 << 55) - 1, "8a07ffffffffffff7f"),
    ] {
        let mut emitter = Emitter::new();
        emitter.int(value);
        assert_eq!(emitter.stop(), hex(&format!("8002{expected}2e")), "{value}");
    }
}
