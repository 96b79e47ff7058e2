//! Families of checkpoints, each described by one table file.

use std::sync::{Arc, LazyLock, OnceLock};

use super::mapping::MapProblem;
use super::pattern::Pattern;
use super::rules::{Leave, LeaveRow, MapRow, Rule, in_module};
use super::template::Template;
use crate::tensor::TensorSpec;

/// Names of modules that models are wrapped in, or are a part of: what may stand before a family's own names.
const WRAPPERS: &[&str] = &[
    "module",
    "_orig_mod",
    "model",
    "base_model",
    "net",
    "encoder",
    "backbone",
    "vit",
    "visual",
    "trunk",
    "student",
    "teacher",
    "MAE_encoder",
];

/// Bytes of the longest name of a module.
const LONGEST_MODULE: usize = 100;

/// Tables of `families/` by name, as JSON that the build script makes of them.
macro_rules! tables {
    ($($name:literal,)*) => { &[$(($name, include_str!(concat!(env!("OUT_DIR"), "/", $name, ".json")))),*] };
}

/// The tables, most specific first: the first one of which all evidence is found is taken.
#[rustfmt::skip]
const TABLES: &[(&str, &str)] = tables![
    "pointmae", "videomae", "audiomae", "dino", "beit", "deit", "dinov2_swiglu", "dinov2", "ijepa",
    "siglip_timm", "clip", "mae", "timm", "hf_dinov2_swiglu", "hf_dinov2_swiglu_5", "hf_dinov2",
    "hf_dinov2_5", "hf_siglip", "hf_clip", "hf_videomae", "hf_videomae_5", "hf_beit", "hf_beit_5", "hf_ast",
    "hf_ast_5", "hf_vit", "hf_vit_5", "jax_siglip", "jax_big_vision", "jax_vit",
];

/// A table file as written.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    pub(super) name: String,
    title: String,
    /// The family whose rules follow its own, and which it is a special case of. What its table does not say, that one's does.
    #[serde(default)]
    like: Option<String>,
    /// The module that the encoder is where it is part of a larger model: `{module}` in names stands for it, if it is there.
    #[serde(default)]
    module: Option<String>,
    /// The name of a tensor of each block, as a template: what stands before it stands before all.
    #[serde(default)]
    anchor: Option<String>,
    evidence: Vec<EvidenceRow>,
    /// What is found of files of this family that are recognised as another one: they are said to be possible.
    #[serde(default)]
    close: Vec<EvidenceRow>,
    /// What else may stand before its names, whole: `opt/target/`.
    #[serde(default)]
    prefixes: Vec<String>,
    /// Whether the class token takes up its position where there are registers.
    #[serde(default)]
    class_position: bool,
    /// Whether positions are VideoMAE's fixed sin-cos table, which files do not have.
    #[serde(default)]
    sinusoid_positions: bool,
    /// What a user has to know of a conversion to timm, whatever is in the file.
    #[serde(default)]
    note: Option<String>,
    #[serde(default)]
    pub(super) map: Vec<MapRow>,
    #[serde(default)]
    pub(super) drop: Vec<LeaveRow>,
    #[serde(default)]
    pub(super) refuse: Vec<LeaveRow>,
}

#[cfg(test)]
impl Table {
    /// All regular expressions.
    pub(super) fn expressions(&self) -> Vec<String> {
        let keys = self.evidence.iter().chain(&self.close).map(|row| row.key.clone());
        keys.chain(self.drop.iter().chain(&self.refuse).map(|row| row.name.clone())).collect()
    }
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
    key: Pattern,
    shape: Option<Vec<usize>>,
    oblong_grid: bool,
    because: String,
}

impl Evidence {
    fn new(row: &EvidenceRow) -> Result<Evidence, String> {
        let EvidenceRow { key, shape, oblong_grid, because } = row;
        let (shape, because) = (shape.clone(), because.clone());
        Ok(Evidence { key: Pattern::new(key)?, shape, oblong_grid: *oblong_grid, because })
    }

    fn holds(&self, spec: &TensorSpec) -> bool {
        let shape_fits = self.shape.as_ref().is_none_or(|shape| {
            shape.len() == spec.shape.len() && shape.iter().zip(&spec.shape).all(|(&want, &is)| want == 0 || want == is)
        });
        shape_fits && (!self.oblong_grid || oblong_grid(&spec.shape)) && self.key.is_match(&spec.name)
    }
}

fn all_found(evidence: &[Evidence], specs: &[TensorSpec]) -> bool {
    evidence.iter().all(|evidence| specs.iter().any(|spec| evidence.holds(spec)))
}

/// Whether a position embedding `[1, tokens, width]` fits no square grid, with or without a class token.
fn oblong_grid(shape: &[usize]) -> bool {
    let square = |n: usize| n.isqrt().pow(2) == n;
    matches!(*shape, [_, tokens, _] if !square(tokens) && !square(tokens.saturating_sub(1)))
}

/// A family of checkpoints: how it names its tensors, and what it is recognised by.
pub struct Family {
    name: String,
    /// The families that it is like, the nearest first.
    like: Vec<String>,
    pub(super) title: String,
    pub(super) anchor_text: String,
    evidence: Vec<Evidence>,
    close: Vec<Evidence>,
    prefixes: Vec<String>,
    pub(super) class_position: bool,
    sinusoid_positions: bool,
    note: Option<String>,
    /// Its own table, and then those that it is like.
    line: Vec<Arc<Table>>,
    compiled: OnceLock<Compiled>,
}

/// What tensors are held against once a family is taken: hundreds of rows in all tables together, so each family's are
/// read when they are first needed.
pub(super) struct Compiled {
    pub(super) anchor: Template,
    pub(super) rules: Vec<Rule>,
    pub(super) drop: Vec<Leave>,
    pub(super) refuse: Vec<Leave>,
}

impl Compiled {
    fn new(anchor: &str, line: &[Arc<Table>]) -> Result<Compiled, String> {
        let module = module_of(line);
        let rule = |row: &MapRow| Rule::new(&row.in_module(module));
        let leave = |of: fn(&Table) -> &Vec<LeaveRow>| -> Result<Vec<Leave>, String> {
            line.iter().flat_map(|table| of(table)).map(Leave::new).collect()
        };
        Ok(Compiled {
            anchor: Template::new(anchor, false)?,
            rules: line.iter().flat_map(|table| &table.map).map(rule).collect::<Result<_, _>>()?,
            drop: leave(|table| &table.drop)?,
            refuse: leave(|table| &table.refuse)?,
        })
    }
}

/// The module of a family with these tables.
fn module_of(line: &[Arc<Table>]) -> Option<&str> {
    line.iter().find_map(|table| table.module.as_deref())
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
    pub family: Arc<Family>,
    /// The reasons, in the words of its table.
    pub because: Vec<String>,
    /// The titles of other families of which all evidence is found too, and of which this one is no special case; and of those that
    /// it could be although their evidence is not found.
    pub runners_up: Vec<String>,
}

static FAMILIES: LazyLock<Vec<Arc<Family>>> = LazyLock::new(|| match read_tables() {
    Ok(families) => families,
    // The tables are part of the program, and a test reads each of them.
    Err(error) => unreachable!("{error}"),
});

/// The tables that are part of the program.
pub(super) fn tables() -> Result<Vec<Arc<Table>>, String> {
    let parse = |&(name, text): &(&str, &str)| {
        serde_json::from_str(text).map(Arc::new).map_err(|error| format!("{name}: {error}"))
    };
    TABLES.iter().map(parse).collect()
}

fn read_tables() -> Result<Vec<Arc<Family>>, String> {
    let tables = tables()?;
    tables.iter().map(|table| Family::new(table, &tables).map(Arc::new)).collect()
}

impl Family {
    /// A family as its table describes it; `tables` are those that it may be like.
    fn new(table: &Arc<Table>, tables: &[Arc<Table>]) -> Result<Family, String> {
        let wrong = |error: String| format!("{}: {error}", table.name);
        let mut line = vec![Arc::clone(table)];
        while let Some(name) = line.last().and_then(|last| last.like.as_ref()) {
            let like = tables.iter().find(|t| t.name == *name);
            let like = like.ok_or_else(|| wrong(format!("there is no family {name}")))?;
            if line.iter().any(|known| known.name == *name) {
                return Err(wrong(format!("it is like {name}, which is like it")));
            }
            line.push(Arc::clone(like));
        }
        let from = || line.iter();
        let anchor = from().find_map(|t| t.anchor.as_deref()).ok_or_else(|| wrong("it has no anchor".into()))?;
        let module = module_of(&line);
        // It stands in every name once or more.
        if module.is_some_and(|module| module.len() > LONGEST_MODULE) {
            return Err(wrong(format!("the name of its module is longer than {LONGEST_MODULE} bytes")));
        }
        let evidence = |rows: &[EvidenceRow]| rows.iter().map(Evidence::new).collect::<Result<_, _>>().map_err(wrong);
        Ok(Family {
            name: table.name.clone(),
            like: line.iter().skip(1).map(|t| t.name.clone()).collect(),
            title: table.title.clone(),
            anchor_text: in_module(anchor, module),
            evidence: evidence(&table.evidence)?,
            close: evidence(&table.close)?,
            prefixes: from().flat_map(|t| t.prefixes.clone()).collect(),
            class_position: from().any(|t| t.class_position),
            sinusoid_positions: from().any(|t| t.sinusoid_positions),
            note: from().find_map(|t| t.note.clone()),
            line,
            compiled: OnceLock::new(),
        })
    }

    /// Reads a family's table; it may be like one of those that are known.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Family, String> {
        let table = toml::from_str(text).map(Arc::new).map_err(|error| error.to_string())?;
        let family = Family::new(&table, &tables()?)?;
        family.check()?;
        Ok(family)
    }

    /// Reads what its table says.
    fn check(&self) -> Result<(), String> {
        let wrong = |error: String| format!("{}: {error}", self.name);
        let compiled = Compiled::new(&self.anchor_text, &self.line).map_err(wrong)?;
        self.compiled.get_or_init(|| compiled);
        Ok(())
    }

    pub(super) fn compiled(&self) -> &Compiled {
        self.compiled.get_or_init(|| match Compiled::new(&self.anchor_text, &self.line) {
            Ok(compiled) => compiled,
            // All of a user's table is read at once, and a test reads those that are part of the program.
            Err(error) => unreachable!("{}: {error}", self.name),
        })
    }

    /// Every family known, in the order in which they are tried.
    #[must_use]
    pub fn all() -> &'static [Arc<Family>] {
        &FAMILIES
    }

    /// The known family of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Arc<Family>> {
        Family::all().iter().find(|family| family.name == name).cloned()
    }

    /// Plain vision transformers as timm names them: what others are told in terms of.
    #[must_use]
    pub fn timm() -> Arc<Family> {
        // A test looks for it.
        Family::named("timm").unwrap_or_else(|| unreachable!("there is a table of timm's names"))
    }

    /// Whether `prefix` may stand before this family's names: the names of modules that are known to be wrapped around models, or
    /// what its table says.
    pub(super) fn is_prefix(&self, prefix: &str) -> bool {
        let modules = prefix.strip_suffix('.');
        prefix.is_empty()
            || modules.is_some_and(|modules| modules.split('.').all(|module| WRAPPERS.contains(&module)))
            || self.prefixes.iter().any(|known| known == prefix)
    }

    /// What a user has to know of a conversion to timm, whatever is in the file.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Whether positions are VideoMAE's fixed sin-cos table, which files of this family do not have.
    #[must_use]
    pub fn has_sinusoid_positions(&self) -> bool {
        self.sinusoid_positions
    }

    /// Whether each piece of this family's evidence is found in the tensors `specs`.
    fn fits(&self, specs: &[TensorSpec]) -> bool {
        all_found(&self.evidence, specs)
    }

    /// Whether they could be this family's, although its evidence is not found.
    fn is_close(&self, specs: &[TensorSpec]) -> bool {
        !self.close.is_empty() && all_found(&self.close, specs)
    }

    /// The family that the tensors `specs` are recognised as: the first of which each piece of evidence is found.
    #[must_use]
    pub fn recognise(specs: &[TensorSpec]) -> Option<Recognised> {
        let family = Arc::clone(Family::all().iter().find(|family| family.fits(specs))?);
        // This one is a special case of a family that it is like, and of one whose evidence is part of its own.
        let general = |other: &Family| {
            let ours = |theirs: &Evidence| family.evidence.iter().any(|ours| ours.because == theirs.because);
            family.like.contains(&other.name) || other.evidence.iter().all(ours)
        };
        // What is found of a family may belong to a model that stands where this one's blocks do not: a decoder, say.
        let named = |other: &Family| !matches!(other.prefix(specs), Err(MapProblem::NotThatFamily { .. }));
        let others = Family::all().iter().filter(|other| other.name != family.name);
        let runners_up = others.filter(|other| match other.fits(specs) {
            true => !general(other) && named(other),
            false => other.is_close(specs),
        });
        let runners_up = runners_up.map(|other| other.title.clone()).collect();
        Some(Recognised { because: family.reasons(), runners_up, family })
    }

    /// What it is recognised by, in the words of its table.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        self.evidence.iter().map(|evidence| evidence.because.clone()).collect()
    }

    /// The short, stable name: `timm`, `mae`, `audio-mae`, `videomae`, `point-mae`, `hf-vit`, ...
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is, in a few words.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
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

    fn name(specs: &[TensorSpec]) -> Option<String> {
        Family::recognise(specs).map(|r| r.family.name().to_owned())
    }

    #[test]
    fn every_table_is_read() {
        assert_eq!(Family::all().len(), TABLES.len());
        for family in Family::all() {
            assert!(!family.evidence.is_empty() && !family.title.is_empty(), "{}", family.name);
            family.check().unwrap();
        }
    }

    #[test]
    fn families_are_told_apart() {
        let block: &[(&str, &[usize])] = &[("blocks.0.attn.qkv.weight", &[192, 64])];
        let with = |more: &[(&str, &[usize])]| name(&specs(&[block, more].concat()));
        assert_eq!(with(&[("patch_embed.proj.weight", &[64, 3, 4, 4])]), Some("timm".into()));
        assert_eq!(
            with(&[("patch_embed.proj.weight", &[64, 3, 4, 4]), ("mask_token", &[1, 1, 8])]),
            Some("mae".into())
        );
        let grid: &[(&str, &[usize])] = &[("patch_embed.proj.weight", &[64, 1, 16, 16]), ("pos_embed", &[1, 513, 64])];
        assert_eq!(with(grid), Some("audio-mae".into()));
        assert_eq!(with(&[("patch_embed.proj.weight", &[64, 3, 2, 16, 16])]), Some("videomae".into()));
        assert_eq!(
            name(&specs(&[("module.MAE_encoder.blocks.blocks.0.attn.qkv.weight", &[3, 1])])),
            Some("point-mae".into())
        );
        assert_eq!(name(&specs(&[("layer1.0.conv1.weight", &[64, 64, 3, 3])])), None);
    }

    #[test]
    fn a_spectrogram_on_a_square_grid_is_said_to_be_possible() {
        let found = |patches: &[usize], positions: &[usize], more: &str| {
            let names = [
                ("blocks.0.attn.qkv.weight", &[192, 64][..]),
                ("patch_embed.proj.weight", patches),
                ("pos_embed", positions),
                (more, &[1, 1, 64]),
            ];
            let found = Family::recognise(&specs(&names)).unwrap();
            (found.family.name().to_owned(), found.runners_up)
        };
        let audio = || vec!["Audio-MAE, a ViT on spectrograms".to_owned()];
        // 512 and 128 frames are 32 x 8 and 8 x 8 patches, as many as 16 x 16 and 8 x 8.
        assert_eq!(found(&[64, 1, 16, 16], &[1, 257, 64], "cls_token"), ("timm".into(), audio()));
        assert_eq!(found(&[64, 1, 16, 16], &[1, 65, 64], "mask_token"), ("mae".into(), audio()));
        assert_eq!(found(&[64, 1, 16, 16], &[1, 513, 64], "cls_token"), ("audio-mae".into(), vec![]));
        // Images of three channels, and the small patches of grey digits, are no spectrograms.
        assert_eq!(found(&[64, 3, 16, 16], &[1, 257, 64], "cls_token"), ("timm".into(), vec![]));
        assert_eq!(found(&[64, 1, 4, 4], &[1, 257, 64], "cls_token"), ("timm".into(), vec![]));
    }

    #[test]
    fn rejects_tables_that_make_no_sense() {
        let table = |more: &str| {
            let text = format!("name = 'a'\ntitle = 'b'\nanchor = 'x.{{N}}.weight'\nevidence = []\n{more}");
            Family::parse(&text).err().unwrap_or_default()
        };
        assert_eq!(table(""), "");
        assert!(table("like = 'nobody'").contains("there is no family nobody"));
        assert!(table("map = [{ to = 'b.{N}', from = 'a' }]").contains("other slots"));
        assert!(table("map = [{ to = 'b', from = '0' }]").contains("made of no tensor"));
        assert!(table("map = [{ to = 'b', from = 'a', unsqueeze = 9 }]").contains("more than 8 dimensions"));
        assert!(table("map = [{ to = 'b', from = '{module}a' }]").contains("module"));
        assert!(table("drop = [{ name = '(', because = 'c' }]").contains("regex"));
        assert!(table(&format!("module = '{}'", "a".repeat(101))).contains("module is longer than 100 bytes"));
        assert!(table("map = [{ to = 'b', from = '[a][a][a][a][a]b' }]").contains("more than 4 parts in brackets"));
        assert!(table("colour = 'red'").contains("colour"));
    }

    #[test]
    fn decoders_are_not_taken_for_encoders() {
        for family in Family::all() {
            for decoder in ["decoder_blocks.0", "decoder.blocks.0", "module.MAE_decoder.blocks.0"] {
                let specs = specs(&[(&format!("{decoder}.attn.qkv.weight"), &[3, 1])]);
                assert!(family.prefix(&specs).is_err(), "{}", family.name);
            }
        }
    }
}
