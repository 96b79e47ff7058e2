//! Headers of safetensors files that lie.

use super::make::{header, safetensors};
use super::{Bomb, Refused};

pub(super) const BOMBS: &[Bomb] = &[
    ("million-tensors", Refused("more than 262144 tensors"), || {
        safetensors(&header(1_000_000, |i| i.to_string()), 1_000_000)
    }),
    ("million-metadata", Refused("65536 entries in __metadata__"), || {
        let pairs: Vec<_> = (0..1_000_000).map(|i| format!(r#""{i}":"{i}""#)).collect();
        safetensors(&format!(r#"{{"__metadata__":{{{}}}}}"#, pairs.join(",")), 0)
    }),
    ("long-metadata", Refused("is the limit"), || {
        safetensors(&format!(r#"{{"__metadata__":{{"a":"{}"}}}}"#, "x".repeat(95_000_000)), 0)
    }),
    ("long-escaped-metadata", Refused("is the limit"), || {
        safetensors(&format!(r#"{{"__metadata__":{{"a":"\n{}"}}}}"#, "x".repeat(95_000_000)), 0)
    }),
    ("long-name", Refused("4096 is the limit"), || safetensors(&header(1, |_| "x".repeat(95_000_000)), 1)),
    ("long-escaped-name", Refused("4096 is the limit"), || {
        safetensors(&header(1, |_| r"\u00e9".repeat(15_000_000)), 1)
    }),
    ("long-names", Refused("25165824 bytes of names"), || {
        safetensors(&header(20_000, |i| format!("{i}{}", "x".repeat(4000))), 20_000)
    }),
    ("long-type", Refused("a text of 90000000 bytes"), || {
        safetensors(&format!(r#"{{"a":{{"dtype":"{}"}}}}"#, "F".repeat(90_000_000)), 0)
    }),
    ("long-field", Refused("a text of 90000000 bytes"), || {
        safetensors(&format!(r#"{{"a":{{"{}":1}}}}"#, "F".repeat(90_000_000)), 0)
    }),
    ("text-for-a-tensor", Refused("a text where"), || {
        safetensors(&format!(r#"{{"a":"{}"}}"#, "x".repeat(90_000_000)), 0)
    }),
    ("text-for-a-shape", Refused("a text where"), || {
        safetensors(&format!(r#"{{"a":{{"dtype":"U8","shape":"{}"}}}}"#, "x".repeat(90_000_000)), 0)
    }),
    ("text-for-a-number", Refused("a text where"), || {
        safetensors(&format!(r#"{{"a":{{"dtype":"U8","shape":["{}"]}}}}"#, "x".repeat(90_000_000)), 0)
    }),
    ("many-dimensions", Refused("more than 64 numbers"), || {
        let shape = "1,".repeat(30_000_000);
        safetensors(&format!(r#"{{"a":{{"dtype":"U8","shape":[{shape}1],"data_offsets":[0,1]}}}}"#), 1)
    }),
    ("wide-tensors", Refused("bytes of memory, the limit of this reader"), || {
        let shape = "1,".repeat(63);
        let entry = |i| format!(r#""{i}":{{"dtype":"U8","shape":[{shape}1],"data_offsets":[{i},{}]}}"#, i + 1);
        let entries: Vec<String> = (0..250_000).map(entry).collect();
        safetensors(&format!("{{{}}}", entries.join(",")), 250_000)
    }),
    ("huge-number", Refused("header is malformed"), || {
        safetensors(r#"{"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,1]}}"#, 1)
    }),
    ("negative-shape", Refused("header is malformed"), || {
        safetensors(r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1)
    }),
    ("huge-shape", Refused("needs 18446744073709551615 bytes"), || {
        safetensors(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0)
    }),
    ("nested", Refused("header is malformed"), || safetensors(&format!(r#"{{"a":{}"#, "[".repeat(90_000_000)), 0)),
    ("nested-shape", Refused("header is malformed"), || {
        safetensors(&format!(r#"{{"a":{{"dtype":"U8","shape":{}"#, r#"{"a":"#.repeat(15_000_000)), 0)
    }),
    ("many-fields", Refused("unknown or occurs twice"), || {
        safetensors(&format!(r#"{{"a":{{{}}}}}"#, r#""dtype":"U8","#.repeat(5_000_000)), 0)
    }),
    ("same-name", Refused(r#"the name "7" occurs twice"#), || {
        safetensors(&header(200_000, |i| if i == 199_999 { "7".into() } else { i.to_string() }), 200_000)
    }),
    ("same-name-escaped", Refused(r#"the name "a" occurs twice"#), || {
        safetensors(&header(2, |i| if i == 0 { "a".into() } else { r"\u0061".into() }), 2)
    }),
    ("metadata-twice", Refused("occurs twice"), || {
        safetensors(r#"{"__metadata__":{"a":"1"},"__metadata__":{"b":"2"}}"#, 0)
    }),
    ("gap", Refused("a gap or an overlap"), || {
        safetensors(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, 2)
    }),
    ("overlap", Refused("a gap or an overlap"), || {
        let entry = r#"{"dtype":"U8","shape":[2],"data_offsets":[0,2]}"#;
        safetensors(&format!(r#"{{"a":{entry},"b":{entry}}}"#), 2)
    }),
    ("backwards", Refused("its offsets span 0"), || {
        safetensors(r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[4,0]}}"#, 4)
    }),
    ("past-the-end", Refused("was cut off"), || {
        safetensors(r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#, 4)
    }),
    ("bytes-left-over", Refused("something was appended"), || {
        safetensors(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 4)
    }),
    ("declared-header", Refused("its header is said to be 99999999 bytes long"), || {
        [&99_999_999u64.to_le_bytes()[..], br#"{"a":{}}"#].concat()
    }),
    ("huge-declared-header", Refused("no format that is known"), || {
        [&(u64::MAX >> 1).to_le_bytes()[..], br#"{"a":{}}"#].concat()
    }),
];
