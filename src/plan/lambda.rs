//! Lambda: the scale of the auxiliary weights, given in one of several ways.

use std::collections::BTreeMap;

use crate::naming::{Layer, LayerId, LayerKind};

/// Why lambdas cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LambdaProblem {
    /// The text is no lambda.
    #[error(
        "{text:?} is no lambda: give a number (0.1), a range over the blocks (0.0..0.2), or one for each kind (qkv=0.1,fc1=0.02)"
    )]
    Syntax {
        /// The text.
        text: String,
    },
    /// A lambda that is no finite number.
    #[error("lambda {text:?} is not finite")]
    NotFinite {
        /// The text.
        text: String,
    },
    /// A kind of layer is given twice, or is none.
    #[error("{text:?} names {kind:?}, which is {what}; the kinds are qkv, proj, fc1, fc2")]
    Kind {
        /// The whole text.
        text: String,
        /// The kind as written.
        kind: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A lambda file is no JSON object of numbers.
    #[error("it is no JSON object of numbers by layer: {reason}")]
    File {
        /// What is wrong.
        reason: String,
    },
    /// An entry of a lambda file names no layer that is folded.
    #[error("its entry {key:?} names no layer that is folded; layers are named like {example:?} or {short:?}")]
    UnusedEntry {
        /// The entry.
        key: String,
        /// A layer's module name.
        example: String,
        /// The same layer as `block.kind`.
        short: String,
    },
    /// Two entries of a lambda file name the same layer.
    #[error("its entries {first:?} and {second:?} name the same layer")]
    TwiceEntry {
        /// The entry that comes first.
        first: String,
        /// The other one.
        second: String,
    },
    /// A lambda for a kind of layer that is not folded.
    #[error(
        "a lambda is given for {0} layers, but none of them is chosen; leave out {0}=NUMBER or change --layers and --blocks"
    )]
    UnusedKind(LayerKind),
    /// A chosen kind of layer has no lambda.
    #[error("{0} layers are chosen, but no lambda is given for them; add {0}=NUMBER or leave them out with --layers")]
    NoneFor(LayerKind),
}

/// A lambda that may change with depth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// The same in every block.
    Constant(f64),
    /// From the first value in the first block to the second in the last, linearly.
    Ramp(f64, f64),
}

impl Schedule {
    /// The value in block `index` of `depth`: for a ramp `from + (to - from) * index / (depth - 1)`, in f64 and in this
    /// order of operations; `from` if there is only one block.
    #[must_use]
    pub fn at(self, index: usize, depth: usize) -> f64 {
        match self {
            Schedule::Constant(value) => value,
            Schedule::Ramp(from, _) if depth < 2 => from,
            Schedule::Ramp(from, to) => from + (to - from) * index as f64 / (depth - 1) as f64,
        }
    }

    fn parse(text: &str, whole: &str) -> Result<Schedule, LambdaProblem> {
        let number = |part: &str| -> Result<f64, LambdaProblem> {
            let value: f64 = part.trim().parse().map_err(|_| LambdaProblem::Syntax { text: whole.to_owned() })?;
            if value.is_finite() { Ok(value) } else { Err(LambdaProblem::NotFinite { text: whole.to_owned() }) }
        };
        match text.split_once("..") {
            Some((from, to)) => Ok(Schedule::Ramp(number(from)?, number(to)?)),
            None => Ok(Schedule::Constant(number(text)?)),
        }
    }
}

/// Lambdas as the user gives them.
#[derive(Clone, Debug, PartialEq)]
pub enum LambdaSpec {
    /// One schedule for all layers.
    All(Schedule),
    /// A schedule for each of some kinds of layer; the other kinds are not folded.
    Kinds(BTreeMap<LayerKind, Schedule>),
    /// A value for each of some layers, by module name or `block.kind`; the other layers are not folded.
    Layers {
        /// The file they come from, for messages.
        file: String,
        /// The entries, in order.
        entries: Vec<(String, f64)>,
    },
}

impl LambdaSpec {
    /// Reads `0.1`, `0.0..0.2`, or `qkv=0.1,fc1=0.0..0.2`.
    ///
    /// # Errors
    /// [`LambdaProblem`].
    pub fn parse(text: &str) -> Result<LambdaSpec, LambdaProblem> {
        if !text.contains('=') {
            return Schedule::parse(text, text).map(LambdaSpec::All);
        }
        let mut kinds = BTreeMap::new();
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(|| LambdaProblem::Syntax { text: text.to_owned() })?;
            let wrong = |what| LambdaProblem::Kind { text: text.to_owned(), kind: name.trim().to_owned(), what };
            let kind = LayerKind::ALL.into_iter().find(|k| k.name() == name.trim());
            let kind = kind.ok_or_else(|| wrong("no kind of layer"))?;
            if kinds.insert(kind, Schedule::parse(value, text)?).is_some() {
                return Err(wrong("given twice"));
            }
        }
        Ok(LambdaSpec::Kinds(kinds))
    }

    /// Reads the text of a lambda file of that name: one JSON object of finite numbers by layer, each layer named by its module
    /// (`blocks.0.attn.qkv`) or by `block.kind` (`0.qkv`).
    ///
    /// # Errors
    /// [`LambdaProblem::File`].
    pub fn from_json(file: &str, text: &str) -> Result<LambdaSpec, LambdaProblem> {
        let wrong = |reason: String| LambdaProblem::File { reason };
        let Entries(entries) = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if entries.is_empty() {
            return Err(wrong("it is empty".to_owned()));
        }
        Ok(LambdaSpec::Layers { file: file.to_owned(), entries })
    }

    /// What a message about these lambdas names: their file, or else the auxiliary they are for.
    pub(super) fn origin<'s>(&'s self, aux: &'s str) -> &'s str {
        match self {
            LambdaSpec::Layers { file, .. } => file,
            _ => aux,
        }
    }

    /// The lambda for each of `layers`, `None` for those that are not folded. `blocks` are the numbers of all blocks of
    /// the target, which ramps run over; `chosen` are the kinds that the user named, if any.
    ///
    /// # Errors
    /// [`LambdaProblem`] if an entry of a file is used not exactly once, or a chosen kind has no lambda.
    pub(super) fn resolve(
        &self,
        layers: &[&Layer],
        blocks: &[usize],
        chosen: Option<&[LayerKind]>,
    ) -> Result<Vec<Option<f64>>, LambdaProblem> {
        let at = |schedule: Schedule, id: LayerId| {
            schedule.at(blocks.iter().position(|&b| b == id.block).unwrap_or(0), blocks.len())
        };
        match self {
            LambdaSpec::All(schedule) => Ok(layers.iter().map(|layer| Some(at(*schedule, layer.id))).collect()),
            LambdaSpec::Kinds(kinds) => {
                if let Some(kind) = chosen.into_iter().flatten().find(|kind| !kinds.contains_key(kind)) {
                    return Err(LambdaProblem::NoneFor(*kind));
                }
                if let Some(kind) = kinds.keys().find(|kind| !layers.iter().any(|layer| layer.id.kind == **kind)) {
                    return Err(LambdaProblem::UnusedKind(*kind));
                }
                let lambda = |layer: &&Layer| Some(at(*kinds.get(&layer.id.kind)?, layer.id));
                Ok(layers.iter().map(lambda).collect())
            }
            LambdaSpec::Layers { entries, .. } => by_entry(entries, layers),
        }
    }
}

fn by_entry(entries: &[(String, f64)], layers: &[&Layer]) -> Result<Vec<Option<f64>>, LambdaProblem> {
    let mut lambdas = vec![None; layers.len()];
    let mut keys: Vec<Option<&str>> = vec![None; layers.len()];
    for (key, value) in entries {
        // Queries, keys and values that are kept apart are three layers of one id.
        let named = |layer: &&Layer| layer.module == *key || layer.id.to_string() == *key;
        let found: Vec<usize> = (0..layers.len()).filter(|&index| named(&layers[index])).collect();
        if found.is_empty() {
            let (example, short) =
                layers.first().map_or_else(Default::default, |l| (l.module.clone(), l.id.to_string()));
            return Err(LambdaProblem::UnusedEntry { key: key.clone(), example, short });
        }
        for index in found {
            if let Some(first) = keys[index].replace(key) {
                return Err(LambdaProblem::TwiceEntry { first: first.to_owned(), second: key.clone() });
            }
            lambdas[index] = Some(*value);
        }
    }
    Ok(lambdas)
}

/// The entries of a JSON object in order, duplicates kept.
struct Entries(Vec<(String, f64)>);

impl<'de> serde::Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> serde::de::Visitor<'de> for Visit {
            type Value = Entries;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of numbers")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read() {
        assert_eq!(LambdaSpec::parse("0.1"), Ok(LambdaSpec::All(Schedule::Constant(0.1))));
        assert_eq!(LambdaSpec::parse("-1e-3"), Ok(LambdaSpec::All(Schedule::Constant(-0.001))));
        assert_eq!(LambdaSpec::parse("0.0..0.2"), Ok(LambdaSpec::All(Schedule::Ramp(0.0, 0.2))));
        assert_eq!(LambdaSpec::parse("-.1..1."), Ok(LambdaSpec::All(Schedule::Ramp(-0.1, 1.0))));
        let kinds = [(LayerKind::Qkv, Schedule::Constant(0.1)), (LayerKind::Fc1, Schedule::Ramp(0.0, 1.0))];
        assert_eq!(LambdaSpec::parse("qkv=0.1, fc1=0..1"), Ok(LambdaSpec::Kinds(kinds.into())));
    }

    #[test]
    fn rejects_what_is_no_lambda() {
        for text in ["", "x", "0.1..", "0.1,0.2", "qkv=", "qkv=0.1,", "1..2..3"] {
            assert!(matches!(LambdaSpec::parse(text), Err(LambdaProblem::Syntax { .. })), "{text}");
        }
        assert!(matches!(LambdaSpec::parse("nan"), Err(LambdaProblem::NotFinite { .. })));
        assert!(matches!(LambdaSpec::parse("0..inf"), Err(LambdaProblem::NotFinite { .. })));
        assert!(matches!(LambdaSpec::parse("fc3=1"), Err(LambdaProblem::Kind { .. })));
        assert!(matches!(LambdaSpec::parse("fc1=1,fc1=1"), Err(LambdaProblem::Kind { .. })));
        for text in ["[]", "{}", "{\"a\": \"b\"}", "{\"a\": NaN}", "{\"a\": 1e999}"] {
            assert!(matches!(LambdaSpec::from_json("x.json", text), Err(LambdaProblem::File { .. })), "{text}");
        }
    }

    #[test]
    fn every_entry_of_a_file_is_used_once() {
        let layer = |block, kind: LayerKind| Layer {
            part: None,
            id: LayerId { block, kind },
            module: format!("blocks.{block}.attn.{kind}"),
            weight: 0,
            bias: None,
            scale: None,
            aux_weight: None,
        };
        let layers = [layer(0, LayerKind::Qkv), layer(0, LayerKind::Proj), layer(1, LayerKind::Qkv)];
        let layers: Vec<&Layer> = layers.iter().collect();
        let resolve = |json: &str| LambdaSpec::from_json("x.json", json).unwrap().resolve(&layers, &[0, 1], None);
        assert_eq!(resolve(r#"{"1.qkv": 2, "blocks.0.attn.qkv": 1}"#), Ok(vec![Some(1.0), None, Some(2.0)]));
        assert!(matches!(resolve(r#"{"2.qkv": 2}"#), Err(LambdaProblem::UnusedEntry { .. })));
        assert!(matches!(resolve(r#"{"0.qkv": 2, "blocks.0.attn.qkv": 1}"#), Err(LambdaProblem::TwiceEntry { .. })));
        assert!(matches!(resolve(r#"{"0.qkv": 2, "0.qkv": 1}"#), Err(LambdaProblem::TwiceEntry { .. })));
    }
}
