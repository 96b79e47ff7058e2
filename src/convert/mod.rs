//! Conversions: the same tensors in another container, under other names, or made to fit another model.
//!
//! A conversion is decided on as a list of tensors and what each is made of; nothing is read until it is run, when the plan
//! is streamed as that of a fold is.

mod complete;
mod error;
mod items;
mod remake;
mod rename;
mod request;
mod run;
mod timm_dir;

pub use error::ConvertProblem;
pub use items::Item;
pub use request::{ConvertRequest, Head, Names, Renames};
pub use run::{ConvertReport, PlannedConversion};

use std::sync::Arc;

use crate::checkpoint::{Checkpoint, StateDict};
use crate::error::{Error, Result};
use crate::model::Detected;
use crate::naming::{Family, Recognised};
use crate::plan;
use crate::write::{Destination, Format};

use items::Items;

/// The open inputs of a conversion.
#[derive(Debug)]
pub struct ConvertInputs {
    request: ConvertRequest,
    input: Checkpoint,
    donor: Option<Checkpoint>,
}

/// A tensor of the input that is left out: its name, and why.
type Dropped = (String, String);

/// What was found out and decided on the way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decided {
    /// The family of the input.
    pub(crate) family: Option<Recognised>,
    /// Tensors that are left out.
    pub(crate) dropped: Vec<Dropped>,
    /// The model that the output is for.
    pub(crate) model: Option<Detected>,
    /// What else the user should know.
    pub(crate) notes: Vec<String>,
}

impl ConvertInputs {
    fn wrong(&self, problem: ConvertProblem) -> Error {
        Error::Convert { path: self.input.path().to_owned(), problem: Box::new(problem) }
    }

    /// Decides on every tensor of the output, lays it out, and checks that it can be put where it should go. Writes nothing, and
    /// reads no more than the few numbers that have to be zero.
    ///
    /// # Errors
    /// [`Error`]: whatever stands in the way of the conversion.
    pub fn plan(&self) -> Result<PlannedConversion<'_>> {
        let request = &self.request;
        let mut decided = Decided::default();
        decided.notes.extend(self.input.lone_shard().map(|shard| format!("{}: {shard}", self.input.path().display())));
        self.refuse_unused()?;
        let mut items = self.take(&mut decided)?;
        if let Names::Keep = request.names {
            self.family(items.inputs[0].specs(), &mut decided)?;
        } else {
            self.to_timm(&mut items, &mut decided)?;
            self.remake(&mut items, &mut decided)?;
            self.complete(&mut items, &mut decided)?;
            if let Names::Family(family) = &request.names {
                self.to_family(&mut items, family, &mut decided)?;
            }
        }
        self.rename(&mut items)?;
        self.cast(&mut items, &mut decided)?;
        let dict = items.dict()?;
        let placements: Vec<_> = (0..dict.specs().len()).map(|index| dict.placement(index)).collect();
        let mut plan = plan::copy(dict.specs(), &placements, &items.dtypes(&dict), request.format.sharing());
        drop(placements);
        plan.notes.splice(..0, std::mem::take(&mut decided.notes));
        let destination = Destination {
            path: if request.timm_dir { request.output.join(timm_dir::WEIGHTS) } else { request.output.clone() },
            format: request.format,
            replace: request.force,
            sync: !request.run.no_sync,
            shard_bytes: request.max_shard_bytes,
            root: request.wrap.clone().unwrap_or_default(),
        };
        PlannedConversion::new(self, dict, items.all, plan, decided, destination)
    }

    /// The tensors of the input that are wanted, by their own names but for a prefix.
    fn take(&self, decided: &mut Decided) -> Result<Items<'_>> {
        let renames = &self.request.renames;
        let dict = self.input.state_dict(&self.request.root)?;
        if dict.outside() > 0 {
            let root =
                if dict.root().is_empty() { "the top of the file".to_owned() } else { format!("{:?}", dict.root()) };
            decided.notes.push(format!("taken from {root}: {} tensors of the file are elsewhere", dict.outside()));
        }
        let mut all = Vec::new();
        let mut used = vec![false; renames.keep.len() + renames.drop.len()];
        for (index, spec) in dict.specs().iter().enumerate() {
            let mut matches = |first: usize, expressions: &[regex::Regex]| {
                let found: Vec<usize> =
                    (0..expressions.len()).filter(|&n| expressions[n].is_match(&spec.name)).collect();
                found.iter().for_each(|n| used[first + n] = true);
                !found.is_empty()
            };
            let kept = renames.keep.is_empty() || matches(0, &renames.keep);
            let reason = match (kept, matches(renames.keep.len(), &renames.drop)) {
                (false, _) => "not among what --keep names",
                (true, true) => "--drop",
                (true, false) => {
                    all.push(items::Item::plain(index, spec));
                    continue;
                }
            };
            decided.dropped.push((spec.name.clone(), reason.to_owned()));
        }
        let texts = renames.keep.iter().map(|r| ("--keep", r)).chain(renames.drop.iter().map(|r| ("--drop", r)));
        if let Some(((option, regex), _)) = texts.zip(&used).find(|(_, used)| !**used) {
            return Err(self.wrong(ConvertProblem::NothingMatches { option, pattern: regex.as_str().to_owned() }));
        }
        if let Some(prefix) = &renames.strip_prefix {
            let (with, without): (Vec<_>, Vec<_>) = all.into_iter().partition(|item| item.name.starts_with(prefix));
            if with.is_empty() {
                let pattern = prefix.clone();
                return Err(self.wrong(ConvertProblem::NothingMatches { option: "--strip-prefix", pattern }));
            }
            let reason = || format!("without the prefix {prefix:?}");
            decided.dropped.extend(without.into_iter().map(|item| (item.name, reason())));
            all = with;
            all.iter_mut().for_each(|item| item.name = item.name[prefix.len()..].to_owned());
        }
        if all.is_empty() {
            return Err(self.wrong(ConvertProblem::NothingLeft));
        }
        // Tensors that are no plain arrays cannot be written; those that are left out need not be.
        let left_out = |name: &str| {
            let kept = renames.keep.is_empty() || renames.keep.iter().any(|r| r.is_match(name));
            !kept || renames.drop.iter().any(|r| r.is_match(name))
        };
        if !dict.others().iter().all(|(name, _)| left_out(name)) {
            dict.require_dense()?;
        }
        // Names without the prefix, and without what is dropped: the state dict that everything else speaks of.
        let names = all.iter().map(|item| (item.name.clone(), item.expr.clone())).collect();
        let dict = dict.derived(Vec::new(), names)?;
        for (index, item) in all.iter_mut().enumerate() {
            item.expr = crate::checkpoint::Expr::tensor(index);
        }
        Ok(Items { inputs: vec![dict], all })
    }

    /// The family of the input: the one that was given, or the one that is recognised.
    fn family(&self, specs: &[crate::tensor::TensorSpec], decided: &mut Decided) -> Result<Option<Arc<Family>>> {
        decided.family = match &self.request.family {
            Some(family) => {
                let because = vec!["--family".to_owned()];
                Some(Recognised { family: Arc::clone(family), because, runners_up: Vec::new() })
            }
            None => Family::recognise(specs),
        };
        Ok(decided.family.as_ref().map(|found| Arc::clone(&found.family)))
    }

    /// The tensors of a state dict under timm's names: which family it is of, and what is left out.
    fn mapped(
        &self,
        dict: &StateDict<'_>,
        family: &Family,
        path: &std::path::Path,
    ) -> Result<(Vec<Item>, Vec<Dropped>)> {
        let wrong = |problem| Error::Convert { path: path.to_owned(), problem: Box::new(ConvertProblem::Map(problem)) };
        let specs = dict.specs();
        let mapping = family.map(specs).map_err(wrong)?;
        mapping.require_complete(family, specs).map_err(wrong)?;
        let named = |index: &usize| specs[*index].name.clone();
        let items = mapping.tensors.into_iter().map(|mapped| {
            let from: Vec<String> = mapped.sources.iter().flatten().map(named).collect();
            let mut changes = Vec::new();
            if mapped.sources.len() > 1 {
                let zeros = if mapped.sources.contains(&None) { ", zeros where the family has none" } else { "" };
                changes.push(format!("stacked{zeros}"));
            } else if !mapped.keeps_elements {
                changes.push("put in PyTorch's order".to_owned());
            }
            Item { name: mapped.name, from, changes, filled: false, dtype: None, expr: mapped.expr }
        });
        let dropped = mapping.dropped.iter().map(|(index, because)| (named(index), because.clone())).collect();
        Ok((items.collect(), dropped))
    }

    fn to_timm(&self, items: &mut Items<'_>, decided: &mut Decided) -> Result<()> {
        let specs = items.inputs[0].specs();
        let Some(family) = self.family(specs, decided)? else {
            return Err(self.wrong(ConvertProblem::NoFamily));
        };
        decided.notes.extend(family.note().map(str::to_owned));
        let before: std::collections::BTreeMap<String, Vec<String>> =
            items.all.iter().map(|item| (item.name.clone(), item.from.clone())).collect();
        let (all, dropped) = self.mapped(&items.inputs[0], &family, self.input.path())?;
        let original = |name: &String| before.get(name).cloned().unwrap_or_else(|| vec![name.clone()]);
        items.all = all;
        for item in &mut items.all {
            item.from = item.from.iter().flat_map(original).collect();
        }
        decided.dropped.extend(dropped.into_iter().map(|(name, why)| (original(&name).concat(), why)));
        Ok(())
    }

    /// Refuses options that would do nothing, as the names of the output are.
    fn refuse_unused(&self) -> Result<()> {
        let request = &self.request;
        let timm = matches!(request.names, Names::Timm);
        let mapped = !matches!(request.names, Names::Keep);
        let given = [
            ("--family", request.family.is_some(), mapped),
            ("--img-size", request.image.is_some(), mapped),
            ("--patch-size", request.patch.is_some(), mapped),
            ("--grid", request.grid.is_some(), mapped),
            ("--positions", request.ast_positions, mapped),
            ("--tubelet", request.tubelet.is_some(), mapped),
            ("--inflate", request.inflate.is_some(), mapped),
            ("--in-chans", request.channels.is_some(), mapped),
            ("--num-classes", request.classes.is_some(), mapped),
            ("--head", request.head != Head::Keep, mapped),
            ("--global-pool", request.pool.is_some(), mapped),
            // These are about the model of timm that the tensors are checked against.
            ("--arch", request.arch.is_some(), timm),
            ("--fill-from", request.fill_from.is_some(), timm),
            ("--heads", request.heads.is_some(), timm),
            ("--act", request.activation.is_some(), timm),
        ];
        if let Some((option, ..)) = given.iter().find(|(_, given, used)| *given && !used) {
            return Err(self.wrong(match &request.names {
                Names::Family(family) => ConvertProblem::NotForFamilies { option, family: family.title().to_owned() },
                _ => ConvertProblem::NeedsTimm { option },
            }));
        }
        if request.keep_values && request.format == Format::Pth {
            return Err(self.wrong(ConvertProblem::ValuesInPth));
        }
        if request.format == Format::Pth && (!request.metadata || request.run.hash_inputs) {
            let option = if request.metadata { "--hash-inputs" } else { "--no-metadata" };
            return Err(self.wrong(ConvertProblem::NoHeader { option }));
        }
        let dropped = request.head == Head::Drop || request.classes == Some(0);
        if dropped && (request.head == Head::Zero || request.classes.is_some_and(|classes| classes > 0)) {
            return Err(self.wrong(ConvertProblem::HeadOrNone));
        }
        Ok(())
    }
}
