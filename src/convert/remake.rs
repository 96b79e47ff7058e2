//! Tensors made to fit another model: patches, channels, positions, heads.

use super::items::{Item, Items};
use super::{ConvertInputs, ConvertProblem, Decided, Head, Names};
use crate::checkpoint::{Expr, Operation};
use crate::error::Result;
use crate::model::Pool;
use crate::tensor::DType;

pub(super) const PATCHES: &str = "patch_embed.proj.weight";
const POSITIONS: &str = "pos_embed";

impl ConvertInputs {
    /// Does what was asked for, to tensors under timm's names.
    pub(super) fn remake(&self, items: &mut Items<'_>, decided: &mut Decided) -> Result<()> {
        self.frames(items)?;
        self.inflate(items)?;
        self.channels(items)?;
        let old_patch = items.shape(PATCHES).and_then(|shape| Some((*shape.get(2)?, *shape.get(3)?)));
        self.patches(items)?;
        self.fixed_positions(items, decided)?;
        self.positions(items, old_patch)?;
        self.probe(items)?;
        self.head(items, decided)?;
        self.norms(items)
    }

    pub(super) fn bad_shape(&self, option: &'static str, name: &str, shape: &[usize], wanted: &str) -> crate::Error {
        let (name, shape, wanted) = (name.to_owned(), shape.to_vec(), wanted.to_owned());
        self.wrong(ConvertProblem::Shape { option, name, shape, wanted })
    }

    pub(super) fn lacks(&self, option: &'static str, name: &str) -> crate::Error {
        self.wrong(ConvertProblem::Lacks { option, name: name.to_owned() })
    }

    /// Patches over frames become patches of images.
    fn frames(&self, items: &mut Items<'_>) -> Result<()> {
        let shape = items.shape(PATCHES);
        match (self.request.tubelet, shape.as_deref()) {
            (None, Some(&[_, _, frames, _, _])) if matches!(self.request.names, Names::Timm) => {
                Err(self.wrong(ConvertProblem::Frames { frames }))
            }
            (None, _) => Ok(()),
            (Some(how), Some([_, _, _, _, _])) => {
                if let Some(item) = items.get_mut(PATCHES) {
                    item.compute(Operation::Collapse(how));
                }
                Ok(())
            }
            (Some(_), Some(shape)) => {
                Err(self.bad_shape("--tubelet", PATCHES, shape, "not [width, channels, frames, height, width]"))
            }
            (Some(_), None) => Err(self.lacks("--tubelet", PATCHES)),
        }
    }

    /// Patches of images reach over frames, in a family that has such.
    fn inflate(&self, items: &mut Items<'_>) -> Result<()> {
        let Some((frames, how)) = self.request.inflate else { return Ok(()) };
        if matches!(self.request.names, Names::Timm) {
            return Err(self.wrong(ConvertProblem::Inflated));
        }
        let shape = items.shape(PATCHES).ok_or_else(|| self.lacks("--inflate", PATCHES))?;
        if shape.len() != 4 {
            return Err(self.bad_shape("--inflate", PATCHES, &shape, "not [width, channels, height, width]"));
        }
        items.get_mut(PATCHES).into_iter().for_each(|item| item.compute(Operation::Inflate { frames, how }));
        Ok(())
    }

    fn channels(&self, items: &mut Items<'_>) -> Result<()> {
        let Some((to, rule)) = self.request.channels else { return Ok(()) };
        let shape = items.shape(PATCHES).ok_or_else(|| self.lacks("--in-chans", PATCHES))?;
        match shape.as_slice() {
            &[_, from, _, _] if from == to => Ok(()),
            [_, _, _, _] => {
                items.get_mut(PATCHES).into_iter().for_each(|item| item.compute(Operation::Channels { to, rule }));
                Ok(())
            }
            shape => Err(self.bad_shape("--in-chans", PATCHES, shape, "not [width, channels, height, width]")),
        }
    }

    fn patches(&self, items: &mut Items<'_>) -> Result<()> {
        let asked = self.request.patch.map(|to| ("--patch-size", to));
        let known = self.request.arch.as_ref().map(|known| ("--arch", known.config.patch));
        let Some((option, to)) = asked.or(known) else { return Ok(()) };
        let shape = match items.shape(PATCHES) {
            Some(shape) => shape,
            // Another model may give it.
            None if asked.is_none() => return Ok(()),
            None => return Err(self.lacks(option, PATCHES)),
        };
        match shape.as_slice() {
            &[_, _, high, wide] if (high, wide) == to => Ok(()),
            [_, _, _, _] => {
                items.get_mut(PATCHES).into_iter().for_each(|item| item.compute(Operation::Patch { to }));
                Ok(())
            }
            shape => Err(self.bad_shape(option, PATCHES, shape, "not [width, channels, height, width]")),
        }
    }

    /// The grid of the patches that the output is for, if that was said.
    fn wanted_grid(&self, items: &Items<'_>, patch: Option<(usize, usize)>) -> Option<(usize, usize)> {
        let request = &self.request;
        let known = request.arch.as_ref().map(|known| &known.config);
        let now = items.shape(PATCHES).and_then(|shape| Some((*shape.get(2)?, *shape.get(3)?)));
        let (high, wide) = known.map(|config| config.patch).or(now).or(patch)?;
        let image = request.image.or(known.map(|config| config.image))?;
        Some((image.0.checked_div(high)?, image.1.checked_div(wide)?))
    }

    /// The table of a family that stores none.
    fn fixed_positions(&self, items: &mut Items<'_>, decided: &mut Decided) -> Result<()> {
        let sinusoid = decided.family.as_ref().is_some_and(|found| found.family.has_sinusoid_positions());
        if !sinusoid || items.position(POSITIONS).is_some() || !matches!(self.request.names, Names::Timm) {
            return Ok(());
        }
        if self.request.fill_from.is_some() {
            // The table has no row for a class token; where one is taken from a donor, so are the positions.
            return Ok(());
        }
        let Some(&[width, _, high, wide]) = items.shape(PATCHES).as_deref() else { return Ok(()) };
        /// The images of nearly all models, in pixels.
        const IMAGE: usize = 224;
        let grid = match self.wanted_grid(items, None) {
            Some(grid) => grid,
            None => {
                decided.notes.push(format!(
                    "positions are made for images of {IMAGE} x {IMAGE}, since the file does not tell: give --img-size if they \
                     are others"
                ));
                (IMAGE / high.max(1), IMAGE / wide.max(1))
            }
        };
        let positions = grid.0.saturating_mul(grid.1);
        let mut item = Item::made(POSITIONS, Expr::Stacked(Vec::new()));
        item.expr = Expr::Computed { op: Operation::Sinusoid { positions, width }, of: Vec::new() };
        item.changes
            .push(format!("the first {positions} rows of the fixed sin-cos table, which the family does not store"));
        items.all.insert(0, item);
        Ok(())
    }

    fn positions(&self, items: &mut Items<'_>, patch: Option<(usize, usize)>) -> Result<()> {
        let Some(to) = self.wanted_grid(items, patch) else {
            let option = match (&self.request.grid, self.request.ast_positions) {
                (Some(_), _) => "--grid",
                (None, true) => "--positions ast",
                (None, false) => return Ok(()),
            };
            let other = "--img-size (or --arch) for the grid that is wanted";
            return Err(self.wrong(ConvertProblem::Alone { option, other }));
        };
        let Some(shape) = items.shape(POSITIONS) else {
            // A donor's positions are taken as they are.
            let asked = [
                ("--grid", self.request.grid.is_some()),
                ("--positions ast", self.request.ast_positions),
                ("--img-size", self.request.image.is_some() && self.request.fill_from.is_none()),
            ];
            return match asked.iter().find(|(_, asked)| *asked) {
                Some((option, _)) => Err(self.lacks(option, POSITIONS)),
                None => Ok(()),
            };
        };
        let &[1, count, _] = shape.as_slice() else {
            return Err(self.bad_shape("--img-size", POSITIONS, &shape, "not [1, positions, width]"));
        };
        let tokens = |name: &str| items.shape(name).and_then(|shape| shape.get(1).copied()).unwrap_or(0);
        let first = tokens("cls_token") + tokens("dist_token");
        let prefixes = [first, first + tokens("reg_token"), 0];
        let square = |n: usize| n > 0 && n.isqrt().pow(2) == n;
        let (prefix, from) = match self.request.grid {
            Some(grid) => {
                let patches = grid.0.saturating_mul(grid.1);
                let fits = prefixes.iter().find(|&&prefix| prefix.checked_add(patches) == Some(count));
                let wanted =
                    || format!("and {} x {} patches, with {first} for tokens before them, are others", grid.0, grid.1);
                (*fits.ok_or_else(|| self.bad_shape("--grid", POSITIONS, &shape, &wanted()))?, grid)
            }
            None => {
                let exact =
                    prefixes.iter().find(|&&p| to.0.checked_mul(to.1).and_then(|n| n.checked_add(p)) == Some(count));
                if let (Some(_), true, false) = (exact, to.0 == to.1, self.request.ast_positions) {
                    return Ok(());
                }
                let found = prefixes.iter().find(|&&prefix| count.checked_sub(prefix).is_some_and(square));
                let Some(&prefix) = found else {
                    return Err(self.wrong(ConvertProblem::Grid { positions: count.saturating_sub(first) }));
                };
                (prefix, ((count - prefix).isqrt(), (count - prefix).isqrt()))
            }
        };
        if from == to {
            let nothing = self.request.ast_positions.then(|| self.wrong(ConvertProblem::NothingResampled));
            return nothing.map_or(Ok(()), Err);
        }
        if let Some(item) = items.get_mut(POSITIONS) {
            item.compute(Operation::Positions { prefix, from, to, ast: self.request.ast_positions });
        }
        Ok(())
    }

    /// MAE's linear-probe head, `BatchNorm1d` and `Linear`, as one linear layer.
    fn probe(&self, items: &mut Items<'_>) -> Result<()> {
        let parts = ["head.1.weight", "head.1.bias", "head.0.running_mean", "head.0.running_var"];
        if !matches!(self.request.names, Names::Timm) || parts.iter().any(|part| items.position(part).is_none()) {
            return Ok(());
        }
        items.remove("head.0.num_batches_tracked");
        let taken: Vec<Item> = parts.iter().filter_map(|part| items.remove(part)).collect();
        let of: Vec<Expr> = taken.iter().map(|item| item.expr.clone()).collect();
        let from: Vec<String> = taken.iter().flat_map(|item| item.from.clone()).collect();
        for (name, op) in [("head.weight", Operation::ProbeWeight), ("head.bias", Operation::ProbeBias)] {
            let mut item = Item::made(name, Expr::Computed { op: op.clone(), of: of.clone() });
            (item.from, item.changes) = (from.clone(), vec![op.to_string()]);
            items.all.push(item);
        }
        Ok(())
    }

    fn head(&self, items: &mut Items<'_>, decided: &mut Decided) -> Result<()> {
        let request = &self.request;
        let there = items.shape("head.weight").and_then(|shape| shape.first().copied());
        let drop = request.head == Head::Drop || request.classes == Some(0);
        if drop || request.head == Head::Zero {
            for name in ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"] {
                if let Some(item) = items.remove(name) {
                    decided.dropped.push((item.from.concat(), "the head is not wanted (--head)".to_owned()));
                }
            }
        }
        match (request.head, request.classes.or(there)) {
            _ if drop => Ok(()),
            (Head::Zero, Some(classes)) => {
                let width =
                    items.shape(PATCHES).or_else(|| items.shape("norm.weight")).and_then(|s| s.first().copied());
                let width = width.ok_or_else(|| self.lacks("--head zero", PATCHES))?;
                let dtype = items.stored_dtype(PATCHES).filter(|dtype| dtype.is_foldable()).unwrap_or(DType::F32);
                for (name, shape) in [("head.weight", vec![classes, width]), ("head.bias", vec![classes])] {
                    let mut item = Item::made(name, Expr::Filled { dtype, shape, value: 0.0 });
                    item.changes.push("zeros, to be trained (--head zero)".to_owned());
                    items.all.push(item);
                }
                Ok(())
            }
            (Head::Zero, None) => {
                let (option, other) = ("--head zero", "--num-classes, since there is no head that tells how many");
                Err(self.wrong(ConvertProblem::Alone { option, other }))
            }
            (_, Some(wanted)) if there.is_some_and(|there| there != wanted) => {
                let shape = items.shape("head.weight").unwrap_or_default();
                let way = "another number of classes needs another head: --head zero, or --head drop";
                Err(self.bad_shape("--num-classes", "head.weight", &shape, way))
            }
            // Without a head there is none to check, unless a donor gives one.
            (_, Some(_)) if there.is_none() && request.fill_from.is_none() => {
                let (option, other) = ("--num-classes", "--head zero, since there is no head");
                Err(self.wrong(ConvertProblem::Alone { option, other }))
            }
            _ => Ok(()),
        }
    }

    /// The last norm has the name that goes with the pooling.
    fn norms(&self, items: &mut Items<'_>) -> Result<()> {
        let (from, to) = match self.request.pool {
            None => return Ok(()),
            Some(Pool::Token | Pool::Map | Pool::Prr) => ("fc_norm", "norm"),
            Some(Pool::Average | Pool::Max | Pool::AverageMax) => ("norm", "fc_norm"),
        };
        for leaf in ["weight", "bias"] {
            if let Some(item) = items.get_mut(&format!("{from}.{leaf}")) {
                item.name = format!("{to}.{leaf}");
            }
        }
        Ok(())
    }
}
