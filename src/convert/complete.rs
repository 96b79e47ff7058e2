//! What the model needs and the input lacks; what a family keeps of it.

use std::path::Path;

use super::items::{Item, Items};
use super::{ConvertInputs, ConvertProblem, Decided};
use crate::checkpoint::{Expr, StateDict};
use crate::error::Result;
use crate::model::{Config, Detected, Hints, ModelError};
use crate::naming::{Family, MapProblem};

use super::remake::PATCHES;

/// An architecture without a name.
const ANY: &str = "a model of timm's VisionTransformer";

/// Whether all values of a tensor are zero, bit for bit.
fn is_zero(dict: &StateDict<'_>, tensor: Expr) -> Result<bool> {
    let part = dict.clone().derived(Vec::new(), vec![("zeros".to_owned(), tensor)])?;
    let mut zero = true;
    part.tensor(0)?.view().for_each_piece(&mut Vec::new(), |bytes| zero &= bytes.iter().all(|&b| b == 0));
    Ok(zero)
}

/// The tensors of a model and, where it has none of that name, a donor's: but no further blocks, and no second last norm.
fn whole<'c>(dict: &StateDict<'c>, donor: &StateDict<'c>) -> Result<StateDict<'c>> {
    let block = |name: &str| name.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok();
    let depth = dict.specs().iter().filter_map(|spec| block(&spec.name)).max();
    let norm = |name: &str| name.starts_with("norm.") || name.starts_with("fc_norm.");
    let normed = dict.specs().iter().any(|spec| norm(&spec.name));
    let own = dict.specs().iter().enumerate().map(|(index, spec)| (spec.name.clone(), Expr::tensor(index)));
    let wanted = |name: &str| {
        dict.find(name).is_none() && !(normed && norm(name)) && depth.zip(block(name)).is_none_or(|(last, n)| n <= last)
    };
    let other = donor.specs().iter().enumerate().filter(|(_, spec)| wanted(&spec.name));
    let other = other.map(|(tensor, spec)| (spec.name.clone(), Expr::Tensor { input: 1, tensor }));
    dict.clone().derived(vec![donor.clone()], own.chain(other).collect())
}

impl ConvertInputs {
    fn hints(&self) -> Hints {
        let request = &self.request;
        Hints {
            known: request.arch.clone(),
            heads: request.heads,
            activation: request.activation,
            pool: request.pool,
            image: request.image,
            ..Hints::default()
        }
    }

    fn model(&self, problem: ModelError) -> crate::Error {
        let text = problem.to_string();
        self.wrong(ConvertProblem::Model(problem, text))
    }

    /// Fills in what the architecture needs, and checks that the tensors are exactly its own.
    ///
    /// A bias that is missing beside a weight that is there is zero, which changes nothing; everything else is the donor's.
    pub(super) fn complete<'c>(&'c self, items: &mut Items<'c>, decided: &mut Decided) -> Result<()> {
        if !matches!(self.request.names, super::Names::Timm) {
            return Ok(());
        }
        let donor = self.donor()?;
        let hints = self.hints();
        let dict = items.dict()?;
        let detected = match &donor {
            // What is missing may be what would tell the architecture.
            Some((donor, _)) if hints.known.is_none() => Config::detect(&whole(&dict, donor)?, &hints),
            _ => Config::detect(&dict, &hints),
        };
        let mut detected = match (detected, &hints.known) {
            (Ok(detected), _) => detected,
            // Without patches nothing can be detected, but the architecture is known by name.
            (Err(ModelError::NoVit(_)), Some(known)) => {
                let config = Config { classes: None, ..known.config.clone() };
                Detected { config, known: Some(known.clone()), guesses: Vec::new() }
            }
            (Err(ModelError::NoVit(_)), None) if dict.find(PATCHES).is_none() => {
                let (architecture, missing) = (ANY.to_owned(), vec![PATCHES.to_owned()]);
                return Err(self.wrong(ConvertProblem::Missing { architecture, missing }));
            }
            (Err(problem), _) => return Err(self.model(problem)),
        };
        if donor.is_some() || dict.find("head.weight").is_some() {
            let head = |dict: &StateDict<'_>| dict.specs()[dict.find("head.weight")?].shape.first().copied();
            let own = head(&dict);
            detected.config.classes = match self.request.head {
                super::Head::Drop => None,
                _ if self.request.classes == Some(0) => None,
                _ => own.or(detected.config.classes).or_else(|| donor.as_ref().and_then(|(donor, _)| head(donor))),
            };
        }
        if let Some(item) = items.all.iter().find(|item| item.name.ends_with(crate::naming::SCALE)) {
            return Err(self.wrong(ConvertProblem::Pathway { name: item.name.clone() }));
        }
        self.fill(items, &detected, donor, decided)?;
        if let (Some(wanted), shape) = (self.request.classes.filter(|&classes| classes > 0), items.shape("head.weight"))
        {
            // A donor's head has as many as it has.
            let shape = shape.ok_or_else(|| self.lacks("--num-classes", "head.weight"))?;
            if shape.first() != Some(&wanted) {
                let way = "and it is no head of so many classes: --head zero makes one";
                return Err(self.bad_shape("--num-classes", "head.weight", &shape, way));
            }
        }
        let dict = items.dict()?;
        let detected = Config::detect(&dict, &hints).map_err(|problem| self.model(problem))?;
        detected.config.check_tensors(&dict).map_err(|problem| self.model(problem))?;
        // What weights do not tell matters where the file says it, and only there.
        if self.request.timm_dir {
            decided.notes.extend(detected.guesses.iter().cloned());
        }
        decided.model = Some(detected);
        Ok(())
    }

    /// The donor's tensors under timm's names, and how each is made of those in its file.
    fn donor(&self) -> Result<Option<(StateDict<'_>, Vec<Item>)>> {
        let Some(donor) = &self.donor else { return Ok(None) };
        /// There is no option for it: a donor is nearly always a model by itself.
        const ALONE: &str = "a conversion of its own (convert FILE --root PATH), and fill from what that writes";
        let dict = donor.state_dict(&crate::checkpoint::RootChoice::Auto);
        let dict = dict.map_err(|error| error.root_chosen_by(ALONE))?;
        dict.require_dense()?;
        let family = Family::recognise(dict.specs()).map_or_else(Family::timm, |found| found.family);
        let (items, _) = self.mapped(&dict, &family, donor.path())?;
        let named = items.iter().map(|item| (item.name.clone(), item.expr.clone())).collect();
        Ok(Some((dict.derived(Vec::new(), named)?, items)))
    }

    fn fill<'c>(
        &'c self,
        items: &mut Items<'c>,
        detected: &Detected,
        donor: Option<(StateDict<'c>, Vec<Item>)>,
        decided: &mut Decided,
    ) -> Result<()> {
        let dict = items.dict()?;
        let needed = detected.config.tensors(&dict).map_err(|problem| self.model(problem))?;
        let mut missing = Vec::new();
        let donor_path = self.donor.as_ref().map_or_else(|| Path::new("").to_owned(), |donor| donor.path().to_owned());
        let mut zeroed = Vec::new();
        for (name, shape) in needed.into_iter().filter(|(name, _)| dict.find(name).is_none()) {
            let weight = name.strip_suffix(".bias").map(|module| format!("{module}.weight"));
            if let Some(weight) = weight.filter(|weight| dict.find(weight).is_some()) {
                let dtype = items.stored_dtype(&weight).unwrap_or(crate::tensor::DType::F32);
                let mut item = Item::made(&name, Expr::Filled { dtype, shape, value: 0.0 });
                item.changes.push("zeros: the architecture has a bias here, the input has none".to_owned());
                zeroed.push(name);
                items.all.push(item);
                continue;
            }
            let found =
                donor.as_ref().and_then(|(dict, of)| Some((dict.find(&name)?, of.iter().find(|i| i.name == name)?)));
            match found {
                None => missing.push(name),
                Some((tensor, of)) => {
                    let mut item = Item::made(&name, Expr::Tensor { input: 1, tensor });
                    (item.from, item.filled) = (of.from.clone(), true);
                    item.changes.push(format!("from {}", donor_path.display()));
                    items.all.push(item);
                }
            }
        }
        if !missing.is_empty() {
            let known = detected.known.as_ref().map_or(ANY, |known| known.name.as_str());
            return Err(self.wrong(ConvertProblem::Missing { architecture: known.to_owned(), missing }));
        }
        if !zeroed.is_empty() {
            decided
                .notes
                .push(format!("biases filled with zeros, as the architecture needs them: {}", zeroed.join(", ")));
        }
        match donor {
            Some((donor, _)) if items.all.iter().any(|item| item.filled) => items.inputs.push(donor),
            Some(_) => {
                decided.notes.push(format!("nothing was taken from {}: nothing is missing", donor_path.display()))
            }
            None => {}
        }
        Ok(())
    }

    /// The same tensors under the names of a family.
    pub(super) fn to_family(&self, items: &mut Items<'_>, family: &Family, decided: &mut Decided) -> Result<()> {
        let mut dict = items.dict()?;
        let mut back = family.unmap(dict.specs());
        if let Err(MapProblem::NoWayBack { names, .. }) = &back {
            // A bias that a family has no place for may be one that was filled with zeros on the way to timm.
            let mut none = Vec::new();
            for name in names.iter().filter(|name| name.ends_with(".bias")) {
                if let Some(index) = dict.find(name)
                    && is_zero(&dict, Expr::tensor(index))?
                {
                    none.push(name.clone());
                }
            }
            for item in none.iter().filter_map(|name| items.remove(name)) {
                let reason = "all zeros, and the family has no bias here";
                decided.dropped.push((item.name, reason.to_owned()));
            }
            dict = items.dict()?;
            back = family.unmap(dict.specs());
        }
        let back = back.map_err(|problem| self.wrong(ConvertProblem::Map(problem)))?;
        for zeros in back.zeros {
            if !is_zero(&dict, zeros.clone())? {
                let name = zeros.tensors().first().map(|&(_, index)| dict.specs()[index].name.clone());
                let (name, family) = (name.unwrap_or_default(), family.title().to_owned());
                return Err(self.wrong(ConvertProblem::NotZero { name, family }));
            }
        }
        let old = std::mem::take(&mut items.all);
        let dtypes = old.iter().map(|item| item.dtype).collect::<Vec<_>>();
        for (name, expr) in back.tensors {
            let of: Vec<usize> = expr.tensors().into_iter().map(|(_, index)| index).collect();
            let mut item = Item::made(&name, expr);
            item.from = of.iter().flat_map(|&index| old[index].from.clone()).collect();
            item.changes = of.iter().flat_map(|&index| old[index].changes.clone()).collect();
            item.dtype = of.first().and_then(|&index| dtypes[index]);
            item.filled = of.iter().all(|&index| old[index].filled);
            items.all.push(item);
        }
        items.inputs = vec![dict];
        Ok(())
    }
}
