//! Headers: what is taken, and one test for each way of being malformed.

use super::*;

/// An array of version `major` with that dictionary and no padding.
fn array(major: u8, dictionary: &str) -> Vec<u8> {
    let mut array = [&MAGIC[..], &[major, 0]].concat();
    match major {
        1 => array.extend((dictionary.len() as u16).to_le_bytes()),
        _ => array.extend((dictionary.len() as u32).to_le_bytes()),
    }
    array.extend(dictionary.as_bytes());
    array
}

fn header(dictionary: &str) -> Header {
    read(&array(1, dictionary)).unwrap()
}

/// What is said of a dictionary, and at which of its bytes.
fn refused(dictionary: &str) -> (usize, &'static str) {
    match read(&array(1, dictionary)) {
        Err(NumpyProblem::Header { offset, what }) => (offset - 10, what),
        other => panic!("{other:?}"),
    }
}

#[test]
fn takes_what_numpy_writes() {
    let found = header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }      \n");
    let expected =
        Header { shape: vec![2, 3], strides: vec![3, 1], element: Element::Number(DType::F32, ByteOrder::Little) };
    assert_eq!(found, expected);
    // Python 2, other keys first, other quotes, no blanks.
    let found = header("{\"shape\":(4L,2L,3),'fortran_order':True,'descr':'>c16'}");
    let expected =
        Header { shape: vec![4, 2, 3], strides: vec![1, 4, 8], element: Element::Number(DType::C128, ByteOrder::Big) };
    assert_eq!(found, expected);
    assert_eq!(header("{'descr': '|b1', 'fortran_order': False, 'shape': ()}").shape, [0usize; 0]);
    assert_eq!(header("{'descr': '|b1', 'fortran_order': False, 'shape': (7,)}").shape, [7]);
    assert_eq!(read(&array(2, "{'descr': 'f8', 'fortran_order': False, 'shape': (0,)}")).unwrap().shape, [0]);
}

#[test]
fn everything_but_plain_numbers_is_other() {
    for descr in ["<V2", "|V2", "<V1", "<f1", "<f16", "<U5", "|S3", "|O", "<M8[ns]", "<c32", "", "<", "f3"] {
        let found = header(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,)}}"));
        assert_eq!(found.element, Element::Other(descr.into()));
    }
    let structured = "[('a', '<f4'), ('\u{fc}', [('b\\'c', '|u1', (2,)), (('t', 'n'), '<i2')])]";
    let found = read(&array(3, &format!("{{'descr': {structured}, 'fortran_order': False, 'shape': (1,)}}")));
    assert_eq!(found.unwrap().element, Element::Other(structured.into()));
    let mut latin = array(1, "{'descr': [('u', '<f4')], 'fortran_order': False, 'shape': (1,)}");
    latin[10 + 13] = 0xfc;
    assert_eq!(read(&latin).unwrap().element, Element::Other("[('\u{fc}', '<f4')]".into()));
}

#[test]
fn rejects_what_is_no_array() {
    assert_eq!(read(b"\x93NUMPZ\x01\0"), Err(NumpyProblem::Magic));
    assert_eq!(read(b""), Err(NumpyProblem::Magic));
}

#[test]
fn rejects_unknown_versions() {
    assert_eq!(read(&array(4, "{}")), Err(NumpyProblem::Version { major: 4, minor: 0 }));
    assert_eq!(read(b"\x93NUMPY\x01\x01\x02\0{}"), Err(NumpyProblem::Version { major: 1, minor: 1 }));
}

#[test]
fn rejects_headers_that_are_cut_off() {
    let whole = array(2, "{'descr': '<f4', 'fortran_order': False, 'shape': ()}");
    for length in 6..whole.len() {
        let expected = NumpyProblem::HeaderTruncated { available: length as u64 };
        assert_eq!(read(&whole[..length]), Err(expected));
    }
}

#[test]
fn rejects_headers_past_the_limit() {
    let mut huge = array(2, "{}");
    huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(read(&huge), Err(NumpyProblem::HeaderTooLarge { declared: u64::from(u32::MAX) }));
}

#[test]
fn rejects_what_is_no_dictionary() {
    assert_eq!(refused(""), (0, "a dictionary was expected"));
    assert_eq!(refused("['descr']"), (0, "a dictionary was expected"));
}

#[test]
fn rejects_a_dictionary_that_does_not_end() {
    assert_eq!(refused("{'descr': '<f4'"), (15, "',' or '}' was expected"));
    assert_eq!(refused("{'descr': '<f4',"), (16, "a value was expected"));
}

#[test]
fn rejects_missing_keys() {
    let expected = "one of the keys descr, fortran_order and shape is missing";
    assert_eq!(refused("{}"), (2, expected));
    assert_eq!(refused("{'descr': '<f4', 'shape': ()}").1, expected);
    assert_eq!(refused("{'fortran_order': True, 'shape': ()}").1, expected);
    assert_eq!(refused("{'descr': '<f4', 'fortran_order': True}").1, expected);
}

#[test]
fn rejects_unknown_and_repeated_keys() {
    assert_eq!(refused("{'align': True}"), (1, "its keys are not descr, fortran_order and shape"));
    assert_eq!(refused("{1: True}"), (1, "a key was expected"));
    assert_eq!(refused("{'descr': '<f4', 'descr': '<f4'}"), (17, "a key occurs twice"));
    assert_eq!(refused("{'shape': (), 'shape': ()}").1, "a key occurs twice");
    assert_eq!(refused("{'fortran_order': True, 'fortran_order': True}").1, "a key occurs twice");
}

#[test]
fn rejects_missing_punctuation() {
    assert_eq!(refused("{'descr' '<f4'}"), (9, "':' was expected"));
    assert_eq!(refused("{'descr': '<f4' 'shape': ()}"), (16, "',' or '}' was expected"));
    assert_eq!(refused("{'shape': (1 2)}"), (13, "',' or a closing bracket was expected"));
    assert_eq!(refused("{'shape': (1,, 2)}"), (13, "a value was expected"));
}

#[test]
fn rejects_texts_that_do_not_end() {
    assert_eq!(refused("{'descr': '<f4}"), (10, "a text does not end"));
    assert_eq!(refused("{'descr': '<f4\\'}"), (10, "a text does not end"));
    assert_eq!(refused("{'descr': '<f4\n'}"), (10, "a text does not end"));
    assert_eq!(refused("{'descr': '<f4\\"), (10, "a text does not end"));
}

#[test]
fn rejects_shapes_that_are_none() {
    assert_eq!(refused("{'shape': 3}"), (10, "shape is no tuple"));
    assert_eq!(refused("{'shape': [3]}"), (10, "shape is no tuple"));
    assert_eq!(refused("{'shape': (3)}"), (10, "a tuple of one value lacks its comma"));
    assert_eq!(refused("{'shape': (-1,)}"), (11, "a value was expected"));
    assert_eq!(refused("{'shape': (1.5,)}"), (12, "',' or a closing bracket was expected"));
    let whole = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}");
    assert_eq!(refused(&whole("('a',)")).1, "a dimension is no number");
    assert_eq!(refused(&whole("(True,)")).1, "a dimension is no number");
    assert_eq!(refused(&whole("(18446744073709551616,)")).1, "a number is too large");
    assert_eq!(refused(&whole(&format!("({})", "1,".repeat(65)))).1, "it has more dimensions than any array");
}

#[test]
fn rejects_orders_and_types_that_are_none() {
    assert_eq!(refused("{'fortran_order': 0}"), (18, "fortran_order is neither True nor False"));
    assert_eq!(refused("{'fortran_order': true}"), (18, "a value was expected"));
    assert_eq!(refused("{'descr': 4, 'fortran_order': True, 'shape': ()}"), (10, "descr describes no type"));
    assert_eq!(
        refused("{'descr': ('<f4', (2,)), 'fortran_order': True, 'shape': ()}"),
        (10, "descr describes no type")
    );
}

#[test]
fn rejects_calls_and_expressions() {
    assert_eq!(refused("{'descr': __import__('os')}"), (10, "a value was expected"));
    assert_eq!(refused("{'descr': '<f4' + 'x'}"), (16, "',' or '}' was expected"));
}

#[test]
fn rejects_nesting_without_end() {
    assert_eq!(refused(&format!("{{'descr': {}", "[".repeat(1000))).1, "it nests too deeply");
}

#[test]
fn rejects_what_follows_the_dictionary() {
    let whole = "{'descr': '<f4', 'fortran_order': False, 'shape': ()}";
    assert_eq!(refused(&format!("{whole} x\n")), (whole.len() + 1, "something follows the dictionary"));
}
