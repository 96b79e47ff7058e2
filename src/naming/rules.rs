//! The rules of a family: what its tensors are in timm's names.

use super::pattern::Pattern;
use super::template::{Slots, Template};
use crate::checkpoint::Expr;
use crate::tensor::{DType, TensorSpec};

/// A rule as written in a table.
#[derive(Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MapRow {
    /// The name in timm.
    to: String,
    /// The names in the family: one, or those that are stacked along the first dimension; `0` stands for zeros.
    from: OneOrMore,
    /// The rows that are taken, `[first, end, of]`: `[1, 3, 3]` are the last two thirds. Other rules may take the others.
    #[serde(default)]
    rows: Option<[usize; 3]>,
    /// Dimensions that become one: `[[0], [1, 2]]`.
    #[serde(default)]
    merge: Option<Vec<Vec<usize>>>,
    /// The order that dimensions are then put in.
    #[serde(default)]
    order: Option<Vec<usize>>,
    /// Dimensions of 1 that are then put before the others.
    #[serde(default)]
    unsqueeze: usize,
    /// The tensor's first dimension counts the blocks: `{N}` of `to` runs along it, and what remains of the dimensions is what
    /// the other keys speak of. The names in the family have no `{N}`.
    #[serde(default)]
    unstack: bool,
    /// Whether the rule is for reading alone: timm's tensor has another rule back, or none.
    #[serde(default)]
    one_way: bool,
}

impl MapRow {
    /// The row with `{module}` in the names of the family replaced.
    pub(super) fn in_module(&self, module: Option<&str>) -> MapRow {
        let from = match &self.from {
            OneOrMore::One(name) => OneOrMore::One(in_module(name, module)),
            OneOrMore::More(names) => OneOrMore::More(names.iter().map(|name| in_module(name, module)).collect()),
        };
        MapRow { from, ..self.clone() }
    }
}

/// `text` with `{module}` replaced by the name of the family's module, which may be there: `[vit.]`.
pub(super) fn in_module(text: &str, module: Option<&str>) -> String {
    module.map_or_else(|| text.to_owned(), |module| text.replace("{module}", &format!("[{module}.]")))
}

#[derive(Clone, serde::Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// Tensors that are left out, or that timm's ViT has no place for.
#[derive(Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LeaveRow {
    /// A regular expression over names.
    pub(super) name: String,
    /// Why, for the user.
    because: String,
}

/// One place of a rule.
#[derive(Clone, Debug)]
enum Part {
    /// A tensor of that name.
    Name(Template),
    /// Zeros, of the type and shape of its neighbours.
    Zeros,
}

/// What becomes of a tensor's dimensions, apart from stacking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shaping {
    rows: Option<[usize; 3]>,
    merge: Option<Vec<Vec<usize>>>,
    order: Option<Vec<usize>>,
    unsqueeze: usize,
}

/// A rule: one tensor in timm, and what it is made of.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    to: Template,
    parts: Vec<Part>,
    shaping: Shaping,
    unstack: bool,
    one_way: bool,
}

/// The most blocks that one tensor is taken to hold.
const MOST_BLOCKS: usize = 1000;

/// The most dimensions of a tensor that a rule is written for.
const MOST_DIMENSIONS: usize = 8;

/// Names to leave out, and why.
#[derive(Clone, Debug)]
pub(super) struct Leave {
    pub(super) name: Pattern,
    pub(super) because: String,
}

impl Leave {
    pub(super) fn new(row: &LeaveRow) -> Result<Leave, String> {
        Ok(Leave { name: Pattern::new(&row.name)?, because: row.because.clone() })
    }
}

/// Where a tensor of a family goes: the name in timm, and which part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The rule that says so.
    pub(super) rule: usize,
    /// The name in timm.
    pub(super) to: String,
    /// Which part of it.
    pub(super) part: usize,
}

impl Rule {
    pub(super) fn new(row: &MapRow) -> Result<Rule, String> {
        let names = match &row.from {
            OneOrMore::One(name) => std::slice::from_ref(name),
            OneOrMore::More(names) => names,
        };
        // A stack of layers with a lambda each has none of its own.
        let to = Template::new(&row.to, names.len() == 1)?;
        let part = |name: &String| match name.as_str() {
            "0" => Ok(Part::Zeros),
            name => Template::new(name, names.len() == 1).map(Part::Name),
        };
        let parts: Vec<Part> = names.iter().map(part).collect::<Result<_, String>>()?;
        let named = |part: &&Part| matches!(part, Part::Name(_));
        if parts.iter().filter(named).count() == 0 {
            return Err(format!("{:?} is made of no tensor", row.to));
        }
        for part in &parts {
            if let Part::Name(name) = part
                && !(name.slots_are_in(&to) && to.slots_are_in(name) != row.unstack)
            {
                return Err(format!("{:?} and what it is made of have other slots", row.to));
            }
        }
        let dimensions =
            [row.unsqueeze, row.order.as_ref().map_or(0, Vec::len), row.merge.as_ref().map_or(0, Vec::len)];
        if dimensions.into_iter().any(|count| count > MOST_DIMENSIONS) {
            return Err(format!("{:?} has more than {MOST_DIMENSIONS} dimensions", row.to));
        }
        let shaping =
            Shaping { rows: row.rows, merge: row.merge.clone(), order: row.order.clone(), unsqueeze: row.unsqueeze };
        Ok(Rule { to, parts, shaping, unstack: row.unstack, one_way: row.one_way })
    }

    /// Where the tensor `spec` goes by this rule, whose name in the family is `name`: nowhere, to one place, or to one for
    /// each block that it holds.
    fn places(&self, rule: usize, name: &str, spec: &TensorSpec) -> Vec<Place> {
        let found = self.parts.iter().enumerate().find_map(|(part, wanted)| match wanted {
            Part::Name(template) => Some((part, template.matches(name)?)),
            Part::Zeros => None,
        });
        let Some((part, slots)) = found else { return Vec::new() };
        let place = |slots: &Slots| self.to.write(slots).map(|to| Place { rule, to, part });
        if !self.unstack {
            return place(&slots).into_iter().collect();
        }
        let blocks = spec.shape.first().copied().filter(|&blocks| blocks <= MOST_BLOCKS).unwrap_or(0);
        (0..blocks).filter_map(|block| place(&slots.with_number(block))).collect()
    }

    /// Names that it takes, and whether it takes some of their rows.
    #[cfg(test)]
    pub(super) fn samples(&self) -> (Vec<String>, bool) {
        let names = self.parts.iter().filter_map(|part| match part {
            Part::Name(name) => Some(name.samples()),
            Part::Zeros => None,
        });
        (names.flatten().collect(), self.shaping.rows.is_some())
    }

    /// How many parts it has.
    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Whether a tensor of the family is one of timm's as it is, or rows of it.
    pub(super) fn keeps_elements(&self) -> bool {
        let Shaping { rows, merge, order, unsqueeze: _ } = &self.shaping;
        !self.unstack && merge.is_none() && order.is_none() && rows.is_none()
    }

    /// The tensor in timm, of the tensors that were found for the parts; the first part that is missing, by the name that it
    /// has for `to`.
    pub(super) fn assemble(&self, to: &str, found: &[Option<usize>], specs: &[TensorSpec]) -> Result<Expr, String> {
        let slots = self.to.matches(to).unwrap_or_default();
        let sibling = found.iter().flatten().next().map(|&tensor| &specs[tensor]);
        let mut parts = Vec::with_capacity(self.parts.len());
        for (part, tensor) in self.parts.iter().zip(found) {
            parts.push(match (part, tensor) {
                (Part::Name(_), Some(tensor)) if self.unstack => {
                    let shape = specs[*tensor].shape.get(1..).unwrap_or_default();
                    let block = Expr::tensor(*tensor).rows(slots.number().unwrap_or(usize::MAX), 1);
                    self.shaping.apply(Expr::Reshaped { of: Box::new(block), shape: shape.to_vec() }, shape)
                }
                (Part::Name(_), Some(tensor)) => self.shaping.apply(Expr::tensor(*tensor), &specs[*tensor].shape),
                (Part::Name(name), None) => return Err(name.write(&slots).unwrap_or_default()),
                (Part::Zeros, _) => {
                    let (dtype, shape) = sibling.map_or((DType::F32, vec![0]), |s| (s.dtype, s.shape.clone()));
                    Expr::Filled { dtype, shape, value: 0.0 }
                }
            });
        }
        if parts.len() == 1
            && let Some(only) = parts.pop()
        {
            return Ok(only);
        }
        Ok(Expr::Stacked(parts))
    }

    /// The tensors of the family that timm's tensor `name`, of that shape and index, becomes, and the rows of it that have to be
    /// zero since the family does not keep them; `None` if the rule does not go back.
    pub(super) fn split(&self, name: &str, tensor: usize, shape: &[usize]) -> Option<Unmapped> {
        if self.one_way || self.unstack {
            return None;
        }
        let slots: Slots = self.to.matches(name)?;
        let mut split = Unmapped::default();
        if self.parts.len() == 1 {
            let Some(Part::Name(template)) = self.parts.first() else { return None };
            let back = self.shaping.undo(Expr::tensor(tensor), shape)?;
            split.tensors.push((template.write(&slots)?, back));
            return Some(split);
        }
        let rows = shape.first().filter(|rows| *rows % self.parts.len() == 0)? / self.parts.len();
        for (number, part) in self.parts.iter().enumerate() {
            let piece = Expr::tensor(tensor).rows(number * rows, rows);
            match part {
                Part::Zeros => split.zeros.push(piece),
                Part::Name(template) => {
                    let mut piece_shape = shape.to_vec();
                    piece_shape[0] = rows;
                    split.tensors.push((template.write(&slots)?, self.shaping.undo(piece, &piece_shape)?));
                }
            }
        }
        Some(split)
    }
}

/// What timm's tensors are in a family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unmapped {
    /// The family's tensors, by name, made of timm's; the family has their form, in dimensions and order.
    pub tensors: Vec<(String, Expr)>,
    /// What the family does not keep, since it is zero there: the bias of BEiT's keys. Where it is not zero, there is no way
    /// back.
    pub zeros: Vec<Expr>,
}

impl Shaping {
    /// Applies it to a tensor of that shape. What does not fit is found when the expression's shape is worked out.
    fn apply(&self, mut expr: Expr, shape: &[usize]) -> Expr {
        let mut shape = shape.to_vec();
        if let Some([first, end, of]) = self.rows {
            // Where there are no such parts, too many rows: an error that says how many there are.
            let part = shape.first().filter(|rows| of > 0 && **rows % of == 0).map(|rows| rows / of);
            let (first, count) = part.map_or((0, usize::MAX), |part| {
                (first.saturating_mul(part), end.saturating_sub(first).saturating_mul(part))
            });
            expr = expr.rows(first, count);
            shape.iter_mut().take(1).for_each(|rows| *rows = count);
        }
        if let Some(groups) = &self.merge
            && groups.iter().flatten().copied().eq(0..shape.len())
        {
            shape = groups.iter().map(|group| group.iter().map(|&d| shape[d]).product()).collect();
            expr = Expr::Reshaped { of: Box::new(expr), shape: shape.clone() };
        }
        if let Some(order) = &self.order {
            shape = order.iter().map(|&d| shape.get(d).copied().unwrap_or(0)).collect();
            expr = Expr::Permuted { of: Box::new(expr), order: order.clone() };
        }
        if self.unsqueeze > 0 {
            let shape = [vec![1; self.unsqueeze], shape].concat();
            expr = Expr::Reshaped { of: Box::new(expr), shape };
        }
        expr
    }

    /// The tensor that it was applied to; `None` if it cannot be told.
    fn undo(&self, mut expr: Expr, shape: &[usize]) -> Option<Expr> {
        if self.merge.is_some() || self.rows.is_some() {
            return None;
        }
        if self.unsqueeze > 0 {
            if shape.iter().take(self.unsqueeze).any(|&d| d != 1) || shape.len() < self.unsqueeze {
                return None;
            }
            expr = Expr::Reshaped { of: Box::new(expr), shape: shape[self.unsqueeze..].to_vec() };
        }
        if let Some(order) = &self.order {
            let back = (0..order.len()).map(|d| order.iter().position(|&o| o == d)).collect::<Option<_>>()?;
            expr = Expr::Permuted { of: Box::new(expr), order: back };
        }
        Some(expr)
    }
}

/// Where the tensor `spec` goes, whose name in the family is `name`: by the first rule that has a place for it; by all of them
/// where rules take some rows of it.
pub(super) fn places(rules: &[Rule], name: &str, spec: &TensorSpec) -> Vec<Place> {
    let mut found = rules.iter().enumerate().map(|(number, rule)| rule.places(number, name, spec));
    let Some(mut first) = found.find(|places| !places.is_empty()) else { return Vec::new() };
    let takes_rows = |place: &Place| rules[place.rule].shaping.rows.is_some();
    if first.iter().any(takes_rows) {
        first.extend(found.flatten().filter(takes_rows));
    }
    first
}
