//! Every family's fixture: recognised, mapped to what the reference conversion made of it, and back.

use std::collections::{BTreeMap, BTreeSet};

use m2pt_surgery::{Checkpoint, Family, MapProblem, RootChoice, StateDict, TensorSpec};
use serde_json::Value;

use crate::support::{expected, fixture};

/// What the files are recognised as, where it is not what the generator calls their family.
const RECOGNISED: &[(&str, &str)] = &[
    // The names are timm's, and nothing else tells.
    ("mae_finetune", "timm"),
    ("mae_linear_probe", "timm"),
    ("deit", "timm"),
    ("ijepa_encoder", "timm"),
    ("ijepa_target_encoder", "timm"),
    // One channel can be a grey image, and 8 x 2 positions can be a square's; so can those of 512 frames.
    ("audiomae_finetune", "timm"),
    ("pathway", "timm"),
    // Names that differ have tables of their own.
    ("dinov2_swiglu", "dinov2-swiglu"),
    ("hf_vit_v5", "hf-vit-5"),
    ("hf_dinov2_v5", "hf-dinov2-5"),
    ("hf_dinov2_registers_v5", "hf-dinov2-5"),
    ("hf_dinov2_swiglu", "hf-dinov2-swiglu"),
    ("hf_dinov2_swiglu_v5", "hf-dinov2-swiglu-5"),
    ("hf_beit_v5", "hf-beit-5"),
    ("hf_beit_shared_v5", "hf-beit-5"),
    ("hf_videomae_v5", "hf-videomae-5"),
    ("hf_ast_v5", "hf-ast-5"),
    ("jax_big_vision", "jax-big-vision"),
    ("jax_siglip", "jax-siglip"),
];

/// Which of the tensors that the reference conversion leaves out change what is computed: those are refused.
const REFUSED: &[&str] = &["relative_position_bias_table", "pre_logits/kernel", "pre_logits/bias"];

/// What the reference conversion adds for timm: a head that has no bias in the family gets one of zeros.
const ADDED: &str = "head.bias";

/// Files whose tensors do not come back, and why.
const ONE_WAY: &[(&str, &str)] = &[
    ("dinov2_registers", "the class token and its position have become one sum"),
    ("hf_dinov2_registers", "the class token and its position have become one sum"),
    ("hf_dinov2_registers_v5", "the class token and its position have become one sum"),
    ("hf_siglip", "the queries of the pooling head are apart from its keys and values"),
    ("hf_siglip_vision", "the queries of the pooling head are apart from its keys and values"),
    ("jax_vit", "the number of heads is in the shape of JAX's kernels, and in none of timm's"),
    ("jax_vit_21k", "the number of heads is in the shape of JAX's kernels, and in none of timm's"),
    ("jax_big_vision", "the number of heads is in the shape of JAX's kernels, and in none of timm's"),
    ("jax_siglip", "the number of heads is in the shape of JAX's kernels, and in none of timm's"),
];

/// A fixture, and what is recorded of it.
struct Entry {
    name: String,
    recorded: Value,
    converted: BTreeMap<String, String>,
}

fn entries() -> Vec<Entry> {
    let all = expected("families.json");
    let entry = |(name, recorded): (&String, &Value)| {
        let of = recorded["converted_of"].as_str().map_or(recorded, |of| &all[of]);
        let converted = of["converted"].as_object().unwrap().iter();
        let converted = converted.map(|(name, hash)| (name.clone(), hash.as_str().unwrap().to_owned())).collect();
        Entry { name: name.clone(), recorded: recorded.clone(), converted }
    };
    let entries: Vec<Entry> = all.as_object().unwrap().iter().map(entry).collect();
    assert!(entries.len() > 40, "{}", entries.len());
    entries
}

impl Entry {
    fn open(&self) -> Checkpoint {
        Checkpoint::open(fixture(self.recorded["file"].as_str().unwrap())).unwrap()
    }

    fn tensors<'c>(&self, checkpoint: &'c Checkpoint) -> StateDict<'c> {
        let root = self.recorded["root"].as_str().unwrap_or_default();
        checkpoint.state_dict(&RootChoice::Path(root.to_owned())).unwrap()
    }

    /// The names of the family that it is recognised as and, where that is timm's, of the one that a user would name.
    fn families(&self) -> BTreeSet<String> {
        let recorded = self.recorded["family"].as_str().unwrap();
        let recognised = RECOGNISED.iter().find(|(name, _)| *name == self.name).map_or(recorded, |(_, family)| family);
        let named = if recognised == "timm" { recorded } else { recognised };
        [recognised, named].map(str::to_owned).into_iter().collect()
    }

    fn is_pathway(&self) -> bool {
        self.name == "pathway"
    }
}

fn hashes(tensors: &StateDict<'_>) -> BTreeMap<String, String> {
    let hash = |(index, spec): (usize, &TensorSpec)| {
        (spec.name.clone(), m2pt_surgery::tensor::sha256(&tensors.tensor(index).unwrap().view()))
    };
    tensors.specs().iter().enumerate().map(hash).collect()
}

/// The tensors of a file under timm's names.
fn mapped<'c>(tensors: &StateDict<'c>, family: &Family) -> StateDict<'c> {
    let mapping = family.map(tensors.specs()).unwrap();
    assert!(mapping.unknown.is_empty(), "{}: {:?}", family.name(), mapping.unknown);
    let items = mapping.tensors.into_iter().map(|mapped| (mapped.name, mapped.expr)).collect();
    tensors.clone().derived(Vec::new(), items).unwrap()
}

#[test]
fn every_family_is_recognised() {
    for entry in entries() {
        let checkpoint = entry.open();
        let found = Family::recognise(entry.tensors(&checkpoint).specs()).unwrap();
        assert!(entry.families().contains(found.family.name()), "{}: {}", entry.name, found.family.name());
        assert_eq!(found.runners_up, Vec::<String>::new(), "{}", entry.name);
        let differs = entry.recorded["family"] != found.family.name();
        assert_eq!(differs, RECOGNISED.iter().any(|(name, _)| *name == entry.name), "{}", entry.name);
    }
}

#[test]
fn every_family_becomes_what_the_reference_conversion_makes_of_it() {
    for entry in entries() {
        let checkpoint = entry.open();
        let tensors = entry.tensors(&checkpoint);
        for family in entry.families() {
            let found = hashes(&mapped(&tensors, &Family::named(&family).unwrap()));
            let mut wanted = entry.converted.clone();
            if !found.contains_key(ADDED) {
                wanted.remove(ADDED).filter(|_| entry.name.contains("clip"));
            }
            if entry.is_pathway() {
                // The conversion folds the auxiliary weights, which here are kept beside their targets.
                let plain: BTreeSet<&String> = found.keys().filter(|name| !is_of_a_pathway(name)).collect();
                assert_eq!(plain, wanted.keys().collect());
                assert_eq!(found, hashes(&tensors));
            } else if entry.name == "mae_linear_probe" {
                // The conversion folds the BatchNorm.
                wanted.remove("head.weight");
                let probe: BTreeSet<&String> = found.keys().filter(|name| !wanted.contains_key(*name)).collect();
                let parts = ["0.num_batches_tracked", "0.running_mean", "0.running_var", "1.bias", "1.weight"];
                assert_eq!(probe, parts.map(|part| format!("head.{part}")).iter().collect());
                assert!(wanted.iter().all(|(name, hash)| found.get(name) == Some(hash)));
            } else if family.contains("videomae") {
                // timm's model has no layer for tubes of frames: what becomes of them is for a conversion to say.
                for leaf in ["weight", "bias"] {
                    wanted
                        .insert(format!("patch_embed.proj.{leaf}"), found[&format!("patch_embed.proj.{leaf}")].clone());
                }
                assert_eq!(found, wanted, "{} as {family}", entry.name);
                let own = hashes(&tensors);
                let embedding = own.iter().filter(|(name, _)| name.contains("patch_embed")).map(|(_, hash)| hash);
                assert_eq!(
                    embedding.collect::<BTreeSet<_>>(),
                    [&found["patch_embed.proj.weight"], &found["patch_embed.proj.bias"]].into()
                );
            } else {
                assert_eq!(found, wanted, "{} as {family}", entry.name);
            }
        }
    }
}

fn is_of_a_pathway(name: &str) -> bool {
    name.ends_with(".aux_weight") || name.ends_with(".cross_modal_scale")
}

/// The name as the reference conversions of Point-MAE and DINO record it.
fn without_wrappers(name: &str) -> String {
    let name = name.strip_prefix("module.").unwrap_or(name);
    name.strip_prefix("MAE_encoder.").unwrap_or(name).to_owned()
}

#[test]
fn what_is_dropped_and_refused_is_what_the_reference_conversion_leaves_out() {
    for entry in entries() {
        let checkpoint = entry.open();
        let tensors = entry.tensors(&checkpoint);
        let recorded = entry.recorded["dropped"].as_object().unwrap();
        // Tubes are mapped, since a conversion can make a layer of them that timm has.
        let left_out = recorded.keys().filter(|name| !name.contains("patch_embed"));
        let refused = |name: &str| REFUSED.iter().any(|end| name.ends_with(end));
        let (wanted_refused, wanted_dropped): (BTreeSet<String>, BTreeSet<String>) =
            left_out.cloned().partition(|name| refused(name));
        for family in entry.families() {
            let mapping = Family::named(&family).unwrap().map(tensors.specs()).unwrap();
            let names = |left: &[(usize, String)]| -> BTreeSet<String> {
                left.iter().map(|(index, _)| without_wrappers(&tensors.specs()[*index].name)).collect()
            };
            assert_eq!(names(&mapping.dropped), wanted_dropped, "{} as {family}", entry.name);
            assert_eq!(names(&mapping.no_place), wanted_refused, "{} as {family}", entry.name);
            let reasons = mapping.dropped.iter().chain(&mapping.no_place);
            assert!(reasons.clone().all(|(_, because)| because.len() > 10), "{}", entry.name);
        }
    }
}

#[test]
fn what_timm_has_goes_back() {
    let mut stayed = BTreeSet::new();
    for entry in entries() {
        let checkpoint = entry.open();
        let tensors = entry.tensors(&checkpoint);
        for family in entry.families() {
            let family = Family::named(&family).unwrap();
            let mapping = family.map(tensors.specs()).unwrap();
            let timm = mapped(&tensors, &family);
            let unmapped = match family.unmap(timm.specs()) {
                Ok(unmapped) => unmapped,
                Err(MapProblem::NoWayBack { .. }) => {
                    stayed.insert(entry.name.clone());
                    continue;
                }
                Err(problem) => panic!("{}: {problem}", entry.name),
            };
            let zeros = unmapped.zeros.into_iter().enumerate().map(|(n, expr)| (format!("zero {n}"), expr)).collect();
            let zeros = timm.clone().derived(Vec::new(), zeros).unwrap();
            for index in 0..zeros.specs().len() {
                assert!(zeros.tensor(index).unwrap().view().to_vec().iter().all(|&byte| byte == 0), "{}", entry.name);
            }
            let left: BTreeSet<usize> =
                mapping.dropped.iter().chain(&mapping.no_place).map(|(index, _)| *index).collect();
            let own = tensors.specs().iter().enumerate().filter(|(index, _)| !left.contains(index));
            let own: BTreeSet<String> = own.map(|(_, spec)| spec.name.clone()).collect();
            let wanted: BTreeMap<_, _> = hashes(&tensors).into_iter().filter(|(name, _)| own.contains(name)).collect();
            let found = hashes(&timm.derived(Vec::new(), unmapped.tensors).unwrap());
            // A wrapper does not come back; a module that a bare encoder is part of in larger models does.
            let full = |name: String| {
                let name = format!("{}{name}", mapping.prefix);
                let bare = || name.split_once('.').map(|(_, rest)| rest.to_owned()).filter(|rest| own.contains(rest));
                if own.contains(&name) { name } else { bare().unwrap_or(name) }
            };
            let found: BTreeMap<_, _> = found.into_iter().map(|(name, hash)| (full(name), hash)).collect();
            assert_eq!(found, wanted, "{} as {}", entry.name, family.name());
        }
    }
    assert_eq!(stayed, ONE_WAY.iter().map(|(name, _)| (*name).to_owned()).collect());
}

#[test]
fn a_whole_file_of_ijepa_tells_its_family_and_not_which_encoder() {
    let checkpoint = Checkpoint::open(fixture("families/ijepa.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Path(String::new())).unwrap();
    let found = Family::recognise(tensors.specs()).unwrap();
    assert_eq!((found.family.name(), found.runners_up), ("ijepa", Vec::new()));
    let encoders: Vec<&str> = match found.family.map(tensors.specs()) {
        Err(MapProblem::SeveralModels { .. }) => Vec::new(),
        Err(problem) => panic!("{problem}"),
        Ok(mapping) => mapping.unknown.iter().map(|&tensor| tensors.specs()[tensor].name.as_str()).collect(),
    };
    assert!(encoders.iter().any(|name| name.starts_with("target_encoder.")), "{encoders:?}");
}

#[test]
fn both_names_of_a_tensor_in_one_file_are_an_error() {
    let checkpoint = Checkpoint::open(fixture("families/beit_finetune.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Path("model".into())).unwrap();
    let mut specs = tensors.specs().to_vec();
    let mut both = specs.iter().find(|spec| spec.name == "blocks.0.attn.q_bias").unwrap().clone();
    both.name = "blocks.0.attn.qkv.bias".into();
    specs.push(both);
    let problem = Family::named("beit").unwrap().map(&specs).unwrap_err();
    let MapProblem::Twice { to, second, .. } = problem else { panic!("{problem}") };
    assert_eq!((to.as_str(), second.as_str()), ("blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.bias"));
}

#[test]
fn several_models_are_an_error() {
    let checkpoint = Checkpoint::open(fixture("families/dino.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Path(String::new())).unwrap();
    let found = Family::recognise(tensors.specs()).unwrap();
    let problem = found.family.map(tensors.specs()).unwrap_err();
    let MapProblem::SeveralModels { prefixes } = problem else { panic!("{problem}") };
    assert_eq!(prefixes, ["student.module.backbone.", "teacher.backbone."]);
}
