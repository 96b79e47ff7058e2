//! Families of checkpoints, each described by one table file.

use std::sync::LazyLock;

use regex::Regex;

use super::Selector;
use crate::tensor::TensorSpec;

/// The tables, most specific first: the first one of which all evidence is found is taken.
const TABLES: &[(&str, &str)] = &[
    ("pointmae.toml", include_str!("families/pointmae.toml")),
    ("videomae.toml", include_str!("families/videomae.toml")),
    ("audiomae.toml", include_str!("families/audiomae.toml")),
    ("mae.toml", include_str!("families/mae.toml")),
    ("timm.toml", include_str!("families/timm.toml")),
];

/// A table file as written.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    title: String,
    /// The pattern of its layers.
    #[serde(default)]
    pattern: Option<String>,
    /// The family of which it shares the pattern.
    #[serde(default)]
    like: Option<String>,
    evidence: Vec<EvidenceRow>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct EvidenceRow {
    key: String,
    #[serde(default)]
    shape: Option<Vec<usize>>,
    #[serde(default)]
    oblong_grid: bool,
    because: String,
}

struct Evidence {
    key: Regex,
    shape: Option<Vec<usize>>,
    oblong_grid: bool,
    because: String,
}

impl Evidence {
    fn new(row: &EvidenceRow) -> Result<Evidence, String> {
        let key = Regex::new(&row.key).map_err(|error| error.to_string())?;
        Ok(Evidence { key, shape: row.shape.clone(), oblong_grid: row.oblong_grid, because: row.because.clone() })
    }

    fn holds(&self, spec: &TensorSpec) -> bool {
        let shape_fits = self.shape.as_ref().is_none_or(|shape| {
            shape.len() == spec.shape.len() && shape.iter().zip(&spec.shape).all(|(&want, &is)| want == 0 || want == is)
        });
        self.key.is_match(&spec.name) && shape_fits && (!self.oblong_grid || oblong_grid(&spec.shape))
    }
}

/// Whether a position embedding `[1, tokens, width]` fits no square grid, with or without a class token.
fn oblong_grid(shape: &[usize]) -> bool {
    let square = |n: usize| n.isqrt().pow(2) == n;
    matches!(*shape, [_, tokens, _] if !square(tokens) && !square(tokens.saturating_sub(1)))
}

/// A family of checkpoints: how it names its layers, and what it is recognised by.
pub struct Family {
    name: String,
    title: String,
    selector: Selector,
    evidence: Vec<Evidence>,
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Family").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A family that a checkpoint was recognised as, and why.
#[derive(Clone, Debug)]
pub struct Recognised {
    /// The family.
    pub family: &'static Family,
    /// The reasons, in the words of its table.
    pub because: Vec<&'static str>,
}

static FAMILIES: LazyLock<Vec<Family>> = LazyLock::new(|| match read(TABLES) {
    Ok(families) => families,
    // The tables are part of the program, and a test reads each of them.
    Err(error) => unreachable!("{error}"),
});

/// Reads the tables `(file, text)`, in order.
fn read(tables: &[(&str, &str)]) -> Result<Vec<Family>, String> {
    let parse = |&(file, text): &(&str, &str)| toml::from_str(text).map_err(|error| format!("{file}: {error}"));
    let tables = tables.iter().map(parse).collect::<Result<Vec<Table>, _>>()?;
    tables
        .iter()
        .map(|table| {
            let like = table.like.as_ref().and_then(|name| tables.iter().find(|t| t.name == *name));
            let pattern = table.pattern.as_ref().or(like.and_then(|t| t.pattern.as_ref()));
            let pattern = pattern.ok_or_else(|| format!("{}: it has no pattern", table.name))?;
            let selector = Selector::new(pattern).map_err(|error| format!("{}: {error}", table.name))?;
            let evidence = table.evidence.iter().map(Evidence::new).collect::<Result<_, _>>()?;
            Ok(Family { name: table.name.clone(), title: table.title.clone(), selector, evidence })
        })
        .collect()
}

impl Family {
    /// Every family known, in the order in which they are tried.
    #[must_use]
    pub fn all() -> &'static [Family] {
        &FAMILIES
    }

    /// The family that the tensors `specs` are recognised as: the first of which each piece of evidence is found.
    #[must_use]
    pub fn recognise(specs: &[TensorSpec]) -> Option<Recognised> {
        Family::all().iter().find_map(|family| {
            family.evidence.iter().all(|evidence| specs.iter().any(|spec| evidence.holds(spec))).then(|| Recognised {
                family,
                because: family.evidence.iter().map(|evidence| evidence.because.as_str()).collect(),
            })
        })
    }

    /// The short, stable name: `timm`, `mae`, `audio-mae`, `videomae`, `point-mae`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is, in a few words.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The pattern that finds its linear layers.
    #[must_use]
    pub fn selector(&self) -> &Selector {
        &self.selector
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn specs(names: &[(&str, &[usize])]) -> Vec<TensorSpec> {
        names
            .iter()
            .map(|(name, shape)| TensorSpec { name: (*name).into(), dtype: DType::F32, shape: shape.to_vec() })
            .collect()
    }

    fn name(specs: &[TensorSpec]) -> Option<&'static str> {
        Family::recognise(specs).map(|r| r.family.name())
    }

    #[test]
    fn every_table_is_read() {
        assert_eq!(Family::all().len(), TABLES.len());
        for family in Family::all() {
            assert!(!family.evidence.is_empty() && !family.title.is_empty(), "{}", family.name);
        }
    }

    #[test]
    fn families_are_told_apart() {
        let block: &[(&str, &[usize])] = &[("blocks.0.attn.qkv.weight", &[192, 64])];
        let with = |more: &[(&str, &[usize])]| name(&specs(&[block, more].concat()));
        assert_eq!(with(&[("patch_embed.proj.weight", &[64, 3, 4, 4])]), Some("timm"));
        assert_eq!(with(&[("patch_embed.proj.weight", &[64, 3, 4, 4]), ("mask_token", &[1, 1, 8])]), Some("mae"));
        let grid: &[(&str, &[usize])] = &[("patch_embed.proj.weight", &[64, 1, 16, 16]), ("pos_embed", &[1, 513, 64])];
        assert_eq!(with(grid), Some("audio-mae"));
        assert_eq!(with(&[("patch_embed.proj.weight", &[64, 3, 2, 16, 16])]), Some("videomae"));
        assert_eq!(name(&specs(&[("module.MAE_encoder.blocks.blocks.0.attn.qkv.weight", &[3, 1])])), Some("point-mae"));
        assert_eq!(name(&specs(&[("layer1.0.conv1.weight", &[64, 64, 3, 3])])), None);
    }

    #[test]
    fn decoders_are_not_taken_for_encoders() {
        for family in Family::all() {
            for decoder in ["decoder_blocks.0", "decoder.blocks.0", "module.MAE_decoder.blocks.0"] {
                assert_eq!(family.selector.layer(&format!("{decoder}.attn.qkv.weight")), None, "{}", family.name);
            }
        }
    }
}
