//! Tests of the tables: each rule is used by a file, and none stands in the way of another.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::family::{Family, tables};
use super::rules::places;
use crate::checkpoint::{Checkpoint, RootChoice};
use crate::tensor::{DType, TensorSpec};

/// Names of published files that the fixtures do not have: of other models of timm's (Eva), of models that only pre-train, and
/// those that today's versions no longer write.
const PUBLISHED: &[(&str, &str)] = &[
    ("timm", "blocks.0.attn.q_bias"),
    ("hf-clip", "vision_model.embeddings.position_ids"),
    ("hf-beit", "beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_index"),
    ("hf-beit", "beit.embeddings.mask_token"),
    ("hf-beit", "lm_head.weight"),
    ("hf-vit-5", "pooler.dense.weight"),
    ("hf-beit-5", "beit.embeddings.mask_token"),
    ("hf-beit-5", "lm_head.weight"),
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// What is used of a family: rules, rules of what is dropped, and of what is refused, by number.
#[derive(Default)]
struct Used {
    rules: BTreeSet<usize>,
    drop: BTreeSet<usize>,
    refuse: BTreeSet<usize>,
}

impl Used {
    fn by(&mut self, family: &Family, prefix: &str, specs: &[TensorSpec]) {
        for spec in specs {
            let names = |rows: &[super::rules::Leave]| rows.iter().position(|row| row.name.is_match(&spec.name));
            if let Some(row) = names(&family.compiled().drop) {
                self.drop.insert(row);
            } else if let Some(row) = names(&family.compiled().refuse) {
                self.refuse.insert(row);
            } else if let Some(name) = spec.name.strip_prefix(prefix) {
                self.rules.extend(places(&family.compiled().rules, name, spec).iter().map(|place| place.rule));
            }
        }
    }
}

#[test]
fn each_rule_is_used_by_a_file() {
    let expected = std::fs::read(fixtures().join("expected/families.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let mut files = Vec::new();
    for (name, entry) in expected.as_object().unwrap() {
        let checkpoint = Checkpoint::open(fixtures().join(entry["file"].as_str().unwrap())).unwrap();
        let root = RootChoice::Path(entry["root"].as_str().unwrap_or_default().to_owned());
        let specs = checkpoint.state_dict(&root).unwrap().specs().to_vec();
        files.push((name.clone(), entry["family"].as_str().unwrap().to_owned(), specs));
    }
    // Both encoders and the predictor.
    let ijepa = Checkpoint::open(fixtures().join("families/ijepa.pth")).unwrap();
    let whole = ijepa.state_dict(&RootChoice::Path(String::new())).unwrap();
    files.push(("ijepa".into(), "ijepa".into(), whole.specs().to_vec()));
    for (family, table) in Family::all().iter().zip(&tables().unwrap()) {
        let mut used = Used::default();
        for (_, recorded, specs) in &files {
            let recognised = Family::recognise(specs).unwrap().family;
            if recognised.name() == family.name() || recorded == family.name() {
                // Which of several encoders is taken does not matter here.
                used.by(family, &family.prefix(specs).unwrap_or_default(), specs);
            }
        }
        let published = PUBLISHED.iter().filter(|(name, _)| *name == family.name());
        let published =
            published.map(|(_, name)| TensorSpec { name: (*name).into(), dtype: DType::F32, shape: vec![1] });
        used.by(family, "", &published.collect::<Vec<_>>());
        // A family's own rows come first, and those of the one that it is like are for that one to use.
        for (what, used, rows) in [
            ("map", &used.rules, table.map.len()),
            ("drop", &used.drop, table.drop.len()),
            ("refuse", &used.refuse, table.refuse.len()),
        ] {
            let idle: Vec<usize> = (0..rows).filter(|row| !used.contains(row)).collect();
            assert!(idle.is_empty(), "{}: rows {idle:?} of {what} are used by no file", family.name());
        }
    }
}

#[test]
fn no_name_is_taken_by_two_rules() {
    for (family, table) in Family::all().iter().zip(&tables().unwrap()) {
        for (number, rule) in family.compiled().rules.iter().enumerate() {
            let (names, rows) = rule.samples();
            for name in names {
                let spec = TensorSpec { name: name.clone(), dtype: DType::F32, shape: vec![2, 2] };
                let places = places(&family.compiled().rules, &name, &spec);
                // timm's last rule takes what the others leave, and a family's own rows go before those of the one that it is
                // like.
                let overridden = number >= table.map.len() && places[0].rule < table.map.len();
                let taken = places.iter().any(|place| place.rule == number);
                assert!(taken || overridden, "{}: {name} is taken by an earlier rule", family.name());
                assert!(rows || places.iter().all(|place| place.rule == places[0].rule), "{}: {name}", family.name());
            }
        }
    }
}

#[test]
fn the_table_in_the_documentation_is_read_and_each_family_is_in_it() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/families.md");
    let page = std::fs::read_to_string(page).unwrap();
    let table = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let family = Family::parse(table).unwrap();
    let spec = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), dtype: DType::F32, shape: shape.to_vec() };
    let specs = [
        spec("module.encoder.layers.0.attention.q.weight", &[8, 8]),
        spec("module.encoder.layers.0.attention.k.weight", &[8, 8]),
        spec("module.encoder.layers.0.attention.v.weight", &[8, 8]),
        spec("module.encoder.class", &[8]),
        spec("module.classifier.bias", &[5]),
    ];
    let mapping = family.map(&specs).unwrap();
    let shape = |expr: &crate::checkpoint::Expr| expr.kind(&[&specs]).unwrap().1;
    let found: Vec<_> = mapping.tensors.iter().map(|mapped| (mapped.name.as_str(), shape(&mapped.expr))).collect();
    let qkv = ("blocks.0.attn.qkv.weight", vec![24, 8]);
    assert_eq!(found, [qkv, ("cls_token", vec![1, 1, 8]), ("head.bias", vec![5])]);
    for family in Family::all() {
        assert!(page.contains(&format!("`{}`", family.name())), "{}", family.name());
    }
}
