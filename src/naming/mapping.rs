//! A family's tensors under timm's names, and timm's under those of a family.

use std::collections::{BTreeMap, BTreeSet};

use super::Family;
use super::family::Compiled;
use super::rules::{Unmapped, places};
use crate::checkpoint::{Expr, Operation};
use crate::tensor::TensorSpec;

/// Names that a message lists.
const LISTED: usize = 6;

/// Why tensors have no names in timm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapProblem {
    /// The family is another one.
    #[error(
        "no tensor is named as in {family} ({anchor}); choose the family with --family, or another part of the file with --root"
    )]
    NotThatFamily {
        /// The family's title.
        family: String,
        /// What is looked for.
        anchor: String,
    },
    /// Several models in one part of the file.
    #[error(
        "there is a model under each of {}; take one with --strip-prefix or --keep, or choose a part of the file with --root",
        list(prefixes)
    )]
    SeveralModels {
        /// What stands before their names.
        prefixes: Vec<String>,
    },
    /// Two tensors would be one.
    #[error("both {first:?} and {second:?} are {to:?} in timm; drop one of them with --drop")]
    Twice {
        /// The name in timm.
        to: String,
        /// The tensor that comes first in the file.
        first: String,
        /// The other one.
        second: String,
    },
    /// A part of a stacked tensor is missing.
    #[error("{missing:?} is missing: with {found:?} it makes {to:?}; the file is incomplete")]
    Part {
        /// The name in timm.
        to: String,
        /// A tensor that is there.
        found: String,
        /// The one that is not.
        missing: String,
    },
    /// Tensors that the family has no rule for.
    #[error(
        "{} of the file {} no rule in the family {family:?}: leave out what is no part of the model with --drop REGEX, or name another family \
         with --family",
        list(names),
        have(names)
    )]
    Unknown {
        /// The family's title.
        family: String,
        /// Their names.
        names: Vec<String>,
    },
    /// Tensors that timm's ViT has no place for.
    #[error(
        "{name:?} has no place in timm's VisionTransformer: {because}; without it the model computes something else (--drop REGEX leaves it out all the same)"
    )]
    NoPlace {
        /// The tensor.
        name: String,
        /// Why.
        because: String,
    },
    /// A tensor of timm's that the family has no name for.
    #[error("{} {} no name in {family}; leave out what is not needed with --drop REGEX", list(names), have(names))]
    NoWayBack {
        /// The family's title.
        family: String,
        /// Their names.
        names: Vec<String>,
    },
}

/// Names in a row, and how many more there are.
fn list(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(LISTED).map(|name| format!("{name:?}")).collect();
    let more = if names.len() > LISTED { format!(" and {} more", names.len() - LISTED) } else { String::new() };
    shown.join(", ") + &more
}

fn have(names: &[String]) -> &'static str {
    if names.len() == 1 { "has" } else { "have" }
}

/// A tensor under its name in timm.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapped {
    /// The name in timm.
    pub name: String,
    /// What it is made of.
    pub expr: Expr,
    /// The indices of the tensors it is made of, by part; none where a part is zeros.
    pub sources: Vec<Option<usize>>,
    /// Whether a source has its very elements, in that order.
    pub keeps_elements: bool,
}

/// The tensors of a checkpoint under timm's names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mapping {
    /// What stands before the family's names in the file, such as `module.`.
    pub prefix: String,
    /// The tensors, in the order in which the file has their first parts.
    pub tensors: Vec<Mapped>,
    /// Tensors that are left out: index and reason.
    pub dropped: Vec<(usize, String)>,
    /// Tensors that timm's ViT has no place for: index and reason.
    pub no_place: Vec<(usize, String)>,
    /// Tensors without a rule.
    pub unknown: Vec<usize>,
}

impl Mapping {
    /// Checks that every tensor has a place in timm, or a reason not to need one.
    ///
    /// # Errors
    /// [`MapProblem::Unknown`] and [`MapProblem::NoPlace`].
    pub fn require_complete(&self, family: &Family, specs: &[TensorSpec]) -> Result<(), MapProblem> {
        if let Some((tensor, because)) = self.no_place.first() {
            return Err(MapProblem::NoPlace { name: specs[*tensor].name.clone(), because: because.clone() });
        }
        if !self.unknown.is_empty() {
            let names = self.unknown.iter().map(|&tensor| specs[tensor].name.clone()).collect();
            return Err(MapProblem::Unknown { family: family.title().to_owned(), names });
        }
        Ok(())
    }
}

impl Mapping {
    /// DINOv2 adds a position to the class token; timm's model with registers has positions of the patches alone. There the
    /// token takes up its position, which is the same sum.
    fn give_class_its_position(&mut self, specs: &[TensorSpec]) {
        let find = |name: &str| self.tensors.iter().position(|mapped| mapped.name == name);
        let (Some(_), Some(token), Some(table)) = (find("reg_token"), find("cls_token"), find("pos_embed")) else {
            return;
        };
        let Ok((_, shape)) = self.tensors[table].expr.kind(&[specs]) else { return };
        let &[_, positions, _] = shape.as_slice() else { return };
        let positions_from = |first: usize, count: usize| Expr::Narrow {
            of: Box::new(self.tensors[table].expr.clone()),
            dim: 1,
            first,
            count,
        };
        let sum = vec![self.tensors[token].expr.clone(), positions_from(0, 1)];
        let patches = positions_from(1, positions.saturating_sub(1));
        self.tensors[token].expr = Expr::Computed { op: Operation::Sum, of: sum };
        self.tensors[table].expr = patches;
        for changed in [token, table] {
            self.tensors[changed].keeps_elements = false;
        }
    }
}

impl Family {
    /// What stands before this family's names among `specs`: nothing, or the names of modules that are known to be
    /// wrapped around models.
    ///
    /// # Errors
    /// [`MapProblem::NotThatFamily`], [`MapProblem::SeveralModels`].
    pub fn prefix(&self, specs: &[TensorSpec]) -> Result<String, MapProblem> {
        let anchor = &self.compiled().anchor;
        let found = specs.iter().filter_map(|spec| anchor.suffix_of(&spec.name));
        let prefixes: BTreeSet<&str> = found.filter(|prefix| self.is_prefix(prefix)).collect();
        let mut prefixes: Vec<String> = prefixes.into_iter().map(str::to_owned).collect();
        match (prefixes.pop(), prefixes.is_empty()) {
            (Some(prefix), true) => Ok(prefix),
            (Some(prefix), false) => {
                prefixes.push(prefix);
                Err(MapProblem::SeveralModels { prefixes })
            }
            (None, _) => {
                Err(MapProblem::NotThatFamily { family: self.title.clone(), anchor: self.anchor_text.clone() })
            }
        }
    }

    /// The tensors `specs`, named as in this family, under timm's names.
    ///
    /// # Errors
    /// [`MapProblem`], but for tensors without a place: see [`Mapping::require_complete`].
    pub fn map(&self, specs: &[TensorSpec]) -> Result<Mapping, MapProblem> {
        let prefix = self.prefix(specs)?;
        let Compiled { rules, drop, refuse, .. } = self.compiled();
        let mut found: Vec<(String, usize, Vec<Option<usize>>)> = Vec::new();
        let mut by_name: BTreeMap<String, usize> = BTreeMap::new();
        let mut mapping = Mapping { prefix, ..Mapping::default() };
        for (index, spec) in specs.iter().enumerate() {
            let named = |leave: &&super::rules::Leave| leave.name.is_match(&spec.name);
            if let Some(leave) = drop.iter().find(named) {
                mapping.dropped.push((index, leave.because.clone()));
                continue;
            }
            if let Some(leave) = refuse.iter().find(named) {
                mapping.no_place.push((index, leave.because.clone()));
                continue;
            }
            let own = spec.name.strip_prefix(mapping.prefix.as_str());
            let places = own.map(|name| places(rules, name, spec)).unwrap_or_default();
            if places.is_empty() {
                mapping.unknown.push(index);
            }
            for at in places {
                let entry = *by_name.entry(at.to.clone()).or_insert(found.len());
                if entry == found.len() {
                    found.push((at.to.clone(), at.rule, vec![None; rules[at.rule].parts()]));
                }
                let (_, rule, parts) = &mut found[entry];
                let taken = if *rule == at.rule { parts[at.part] } else { parts.iter().flatten().next().copied() };
                if let Some(first) = taken {
                    let (first, second) = (specs[first].name.clone(), spec.name.clone());
                    return Err(MapProblem::Twice { to: at.to, first, second });
                }
                parts[at.part] = Some(index);
            }
        }
        for (to, rule, sources) in found {
            let rule = &rules[rule];
            let expr = rule.assemble(&to, &sources, specs).map_err(|missing| MapProblem::Part {
                to: to.clone(),
                found: sources.iter().flatten().next().map(|&first| specs[first].name.clone()).unwrap_or_default(),
                missing: format!("{}{missing}", mapping.prefix),
            })?;
            mapping.tensors.push(Mapped { name: to, expr, sources, keeps_elements: rule.keeps_elements() });
        }
        if self.class_position {
            mapping.give_class_its_position(specs);
        }
        Ok(mapping)
    }

    /// The tensors `specs`, named as in timm, under this family's names, in order. Names have the module that the family's
    /// encoder is part of (`vit.`), and no wrapper before that.
    ///
    /// # Errors
    /// [`MapProblem::NoWayBack`] if some have no name there: the family has no such layer, its table has no rule for it, or
    /// the rule cannot be undone, as that of JAX's kernels, whose shape has the number of heads.
    pub fn unmap(&self, specs: &[TensorSpec]) -> Result<Unmapped, MapProblem> {
        let mut back = Unmapped::default();
        let mut lost = Vec::new();
        for (index, spec) in specs.iter().enumerate() {
            match self.compiled().rules.iter().find_map(|rule| rule.split(&spec.name, index, &spec.shape)) {
                Some(unmapped) => {
                    back.tensors.extend(unmapped.tensors);
                    back.zeros.extend(unmapped.zeros);
                }
                None => lost.push(spec.name.clone()),
            }
        }
        if lost.is_empty() {
            return Ok(back);
        }
        Err(MapProblem::NoWayBack { family: self.title.clone(), names: lost })
    }
}
