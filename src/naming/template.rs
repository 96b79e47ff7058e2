//! Names with places for numbers and other parts that differ, in both directions: matched, and written out.

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// Text that is there.
    Text(String),
    /// Text that may be there: `[vit.]`.
    Optional(String),
    /// `{N}`: a number; `{leaf}`: `weight`, `bias`, or the last part of a pathway's tensors; `{*}`: anything.
    Slot(Slot),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Number,
    Leaf,
    Any,
}

/// The values of the slots of a template, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots {
    number: Option<String>,
    leaf: Option<String>,
    any: Option<String>,
}

impl Slots {
    fn of(&mut self, slot: Slot) -> &mut Option<String> {
        match slot {
            Slot::Number => &mut self.number,
            Slot::Leaf => &mut self.leaf,
            Slot::Any => &mut self.any,
        }
    }

    /// These, with that number.
    pub(super) fn with_number(&self, number: usize) -> Slots {
        Slots { number: Some(number.to_string()), ..self.clone() }
    }

    /// The number.
    pub(super) fn number(&self) -> Option<usize> {
        self.number.as_ref()?.parse().ok()
    }
}

/// A name such as `[vit.]encoder.layer.{N}.output.dense.{leaf}`.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pieces: Vec<Piece>,
    /// What `{leaf}` stands for.
    leaves: &'static [&'static str],
}

/// What `{leaf}` stands for; the last two only where a layer may have a pathway.
const LEAVES: [&str; 4] = ["weight", "bias", "aux_weight", "cross_modal_scale"];

/// Digits of the longest number: longer ones are no numbers of blocks.
const MOST_DIGITS: usize = 6;

/// Texts that may be there, in one template: each doubles what is tried.
const MOST_OPTIONAL: usize = 4;

/// What the slots have in a name that is being matched, by kind.
type Found<'n> = [Option<&'n str>; 3];

impl Template {
    /// Reads a template. With `pathways`, `{leaf}` also stands for the tensors that a trained pathway has beside a weight.
    ///
    /// # Errors
    /// A sentence, for an unknown or a repeated slot, or an open bracket.
    pub(super) fn new(text: &str, pathways: bool) -> Result<Template, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let close = |open: char, close: char| {
                let end = rest.find(close).ok_or_else(|| format!("{text:?} has a {open:?} without a {close:?}"))?;
                Ok::<_, String>((&rest[1..end], &rest[end + 1..]))
            };
            match first {
                '{' => {
                    let (name, after) = close('{', '}')?;
                    let slot = match name {
                        "N" => Slot::Number,
                        "leaf" => Slot::Leaf,
                        "*" => Slot::Any,
                        _ => return Err(format!("{text:?} has the slot {name:?}; there are N, leaf and *")),
                    };
                    if pieces.contains(&Piece::Slot(slot)) {
                        return Err(format!("{text:?} has the slot {name:?} twice"));
                    }
                    pieces.push(Piece::Slot(slot));
                    rest = after;
                }
                '[' => {
                    let (optional, after) = close('[', ']')?;
                    pieces.push(Piece::Optional(optional.to_owned()));
                    rest = after;
                }
                _ => {
                    let end = rest.find(['{', '[']).unwrap_or(rest.len());
                    pieces.push(Piece::Text(rest[..end].to_owned()));
                    rest = &rest[end..];
                }
            }
        }
        if pieces.iter().filter(|piece| matches!(piece, Piece::Optional(_))).count() > MOST_OPTIONAL {
            return Err(format!("{text:?} has more than {MOST_OPTIONAL} parts in brackets"));
        }
        Ok(Template { pieces, leaves: if pathways { &LEAVES } else { &LEAVES[..2] } })
    }

    /// The values that the slots have in `name`, if it is of this form: from left to right, a number or anything as
    /// long as it can be, and of leaves the first that fits.
    pub(super) fn matches(&self, name: &str) -> Option<Slots> {
        let mut found = Found::default();
        if !self.fill(&self.pieces, name, &mut found) {
            return None;
        }
        let [number, leaf, any] = found.map(|found| found.map(str::to_owned));
        Some(Slots { number, leaf, any })
    }

    /// Whether `name` consists of these pieces; what the slots then have.
    fn fill<'n>(&self, pieces: &[Piece], name: &'n str, found: &mut Found<'n>) -> bool {
        let Some((piece, pieces)) = pieces.split_first() else { return name.is_empty() };
        if pieces.is_empty()
            && let Piece::Text(text) = piece
        {
            return name == text;
        }
        let mut fill = |slot: Slot, end: usize| {
            let (value, rest) = name.split_at(end);
            found[slot as usize] = Some(value);
            self.fill(pieces, rest, found)
        };
        match piece {
            Piece::Text(text) => name.strip_prefix(text.as_str()).is_some_and(|rest| self.fill(pieces, rest, found)),
            Piece::Optional(text) => {
                name.strip_prefix(text.as_str()).is_some_and(|rest| self.fill(pieces, rest, found))
                    || self.fill(pieces, name, found)
            }
            Piece::Slot(slot @ Slot::Number) => {
                let digits = name.bytes().take(MOST_DIGITS).take_while(u8::is_ascii_digit).count();
                (1..=digits).rev().any(|end| fill(*slot, end))
            }
            Piece::Slot(slot @ Slot::Leaf) => {
                self.leaves.iter().any(|leaf| name.starts_with(leaf) && fill(*slot, leaf.len()))
            }
            Piece::Slot(slot @ Slot::Any) => {
                let longest = name.find('\n').unwrap_or(name.len());
                (1..=longest).rev().any(|end| name.is_char_boundary(end) && fill(*slot, end))
            }
        }
    }

    /// The name with those values; `None` if it has a slot without one. Text that may be there is.
    pub(super) fn write(&self, slots: &Slots) -> Option<String> {
        let mut slots = slots.clone();
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) | Piece::Optional(text) => Some(text.clone()),
                Piece::Slot(slot) => slots.of(*slot).clone(),
            })
            .collect()
    }

    /// Names of this form: each with and without the text that may be there, for each leaf.
    #[cfg(test)]
    pub(super) fn samples(&self) -> Vec<String> {
        let mut samples = Vec::new();
        for leaf in ["weight", "bias"] {
            for optional in [true, false] {
                let part = |piece: &Piece| match piece {
                    Piece::Text(text) => text.clone(),
                    Piece::Optional(text) => {
                        if optional {
                            text.clone()
                        } else {
                            String::new()
                        }
                    }
                    Piece::Slot(Slot::Number) => "3".to_owned(),
                    Piece::Slot(Slot::Leaf) => leaf.to_owned(),
                    Piece::Slot(Slot::Any) => "something".to_owned(),
                };
                samples.push(self.pieces.iter().map(part).collect());
            }
        }
        samples
    }

    /// What stands before this form in `name`, which ends in it.
    pub(super) fn suffix_of<'n>(&self, name: &'n str) -> Option<&'n str> {
        // Most names end otherwise, which costs little to see.
        if self.pieces.last().is_some_and(|last| matches!(last, Piece::Text(text) if !name.ends_with(text))) {
            return None;
        }
        let starts = std::iter::once(0).chain(name.match_indices(['.', '/']).map(|(dot, _)| dot + 1));
        starts
            .map(|start| name.split_at(start))
            .find(|(_, rest)| self.fill(&self.pieces, rest, &mut Found::default()))
            .map(|(before, _)| before)
    }

    /// Whether every slot of this template is one of `other`.
    pub(super) fn slots_are_in(&self, other: &Template) -> bool {
        let mut slots = self.pieces.iter().filter(|piece| matches!(piece, Piece::Slot(_)));
        slots.all(|slot| other.pieces.contains(slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_and_written() {
        let from = Template::new("[vit.]encoder.layer.{N}.output.dense.{leaf}", false).unwrap();
        let to = Template::new("blocks.{N}.mlp.fc2.{leaf}", false).unwrap();
        for name in ["vit.encoder.layer.11.output.dense.bias", "encoder.layer.11.output.dense.bias"] {
            let slots = from.matches(name).unwrap();
            assert_eq!(to.write(&slots).unwrap(), "blocks.11.mlp.fc2.bias");
        }
        let slots = to.matches("blocks.3.mlp.fc2.weight").unwrap();
        assert_eq!(from.write(&slots).unwrap(), "vit.encoder.layer.3.output.dense.weight");
        assert_eq!(from.matches("vit.encoder.layer.x.output.dense.bias"), None);
        assert_eq!(from.matches("vit.encoder.layer.1.output.dense.aux_weight"), None);
    }

    #[test]
    fn slots_have_what_a_regular_expression_captures() {
        let templates = [
            "blocks.{N}.{leaf}",
            "[vit.]layer{N}0.{leaf}",
            "{*}",
            "{*}.{leaf}",
            "a{*}a",
            "[a][a]a{N}[1]1",
            "{leaf}_{*}{N}",
            "{leaf}[_weight]",
            "x.{*}.{N}[0].y",
            "cls(token)",
        ];
        let names = [
            "",
            "blocks.0.weight",
            "blocks.1234567.bias",
            "blocks.123456.bias",
            "blocks..bias",
            "layer100.weight",
            "vit.layer00.bias",
            "layer0.bias",
            "a",
            "aa",
            "aaa",
            "aaa1",
            "aa11",
            "a111",
            "aaaa12345671",
            "weight",
            "weight_weight",
            "bias_x9",
            "bias_x123",
            "bias_9",
            "aux_weight",
            "x.cross_modal_scale",
            "\u{e9}.weight",
            "x.\u{e9}\u{e9}.00.y",
            "x.a.1.y.20.y",
            "a\na",
            "a\n.weight",
            "cls(token)",
        ];
        for (template, pathways) in templates.iter().flat_map(|text| [(text, false), (text, true)]) {
            let ours = Template::new(template, pathways).unwrap();
            let leaf = if pathways { "weight|bias|aux_weight|cross_modal_scale" } else { "weight|bias" };
            let pieces = ours.pieces.iter().map(|piece| match piece {
                Piece::Text(text) => regex::escape(text),
                Piece::Optional(text) => format!("(?:{})?", regex::escape(text)),
                Piece::Slot(Slot::Number) => "(?<N>[0-9]{1,6})".to_owned(),
                Piece::Slot(Slot::Leaf) => format!("(?<leaf>{leaf})"),
                Piece::Slot(Slot::Any) => "(?<any>.+)".to_owned(),
            });
            let theirs = regex::Regex::new(&format!("^(?:{})$", pieces.collect::<String>())).unwrap();
            for name in names {
                let found = |captures: &regex::Captures<'_>, group| captures.name(group).map(|m| m.as_str().to_owned());
                let expected = theirs.captures(name).map(|captures| Slots {
                    number: found(&captures, "N"),
                    leaf: found(&captures, "leaf"),
                    any: found(&captures, "any"),
                });
                assert_eq!(ours.matches(name), expected, "{template} {name}");
            }
        }
    }

    #[test]
    fn what_stands_before_a_form_is_found() {
        let anchor = Template::new("[vit.]blocks.{N}.attn.qkv.weight", false).unwrap();
        assert_eq!(anchor.suffix_of("module.vit.blocks.0.attn.qkv.weight"), Some("module."));
        assert_eq!(anchor.suffix_of("blocks.0.attn.qkv.weight"), Some(""));
        assert_eq!(anchor.suffix_of("decoder_blocks.0.attn.qkv.weight"), None);
    }

    #[test]
    fn rejects_bad_slots() {
        for bad in ["blocks.{M}", "blocks.{N", "a.{N}.{N}", "[x", "[a][b][c][d][e]"] {
            assert!(Template::new(bad, false).is_err(), "{bad}");
        }
    }
}
