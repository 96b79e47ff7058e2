//! Names with places for numbers and other parts that differ, in both directions: matched, and written out.

use super::pattern::Pattern;

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
    pattern: Pattern,
}

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
        let leaf = if pathways { "weight|bias|aux_weight|cross_modal_scale" } else { "weight|bias" };
        let pattern: String = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => regex::escape(text),
                Piece::Optional(text) => format!("(?:{})?", regex::escape(text)),
                // Longer numbers are no numbers of blocks.
                Piece::Slot(Slot::Number) => r"(?<N>[0-9]{1,6})".to_owned(),
                Piece::Slot(Slot::Leaf) => format!("(?<leaf>{leaf})"),
                Piece::Slot(Slot::Any) => "(?<any>.+)".to_owned(),
            })
            .collect();
        let pattern = Pattern::new(&format!("^(?:{pattern})$"))?;
        Ok(Template { pieces, pattern })
    }

    /// The values that the slots have in `name`, if it is of this form.
    pub(super) fn matches(&self, name: &str) -> Option<Slots> {
        let captures = self.pattern.captures(name, ["N", "leaf", "any"])?;
        let [number, leaf, any] = captures.map(|found| found.map(str::to_owned));
        Some(Slots { number, leaf, any })
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
        starts.map(|start| name.split_at(start)).find(|(_, rest)| self.pattern.is_match(rest)).map(|(before, _)| before)
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
    fn what_stands_before_a_form_is_found() {
        let anchor = Template::new("[vit.]blocks.{N}.attn.qkv.weight", false).unwrap();
        assert_eq!(anchor.suffix_of("module.vit.blocks.0.attn.qkv.weight"), Some("module."));
        assert_eq!(anchor.suffix_of("blocks.0.attn.qkv.weight"), Some(""));
        assert_eq!(anchor.suffix_of("decoder_blocks.0.attn.qkv.weight"), None);
    }

    #[test]
    fn rejects_bad_slots() {
        for bad in ["blocks.{M}", "blocks.{N", "a.{N}.{N}", "[x"] {
            assert!(Template::new(bad, false).is_err(), "{bad}");
        }
    }
}
