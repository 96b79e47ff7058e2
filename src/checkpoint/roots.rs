//! Which of the mappings in a nested checkpoint holds the model.

use std::fmt;

use crate::container::Reached;

/// Names that training code gives to the mapping of the model's weights, the likeliest first.
const USUAL: &[&str] =
    &["model", "module", "state_dict", "base_model", "model_state_dict", "model_state", "net", "encoder"];

/// A mapping that directly holds tensors under text keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    path: String,
    tensors: usize,
}

impl Root {
    /// The dotted path; empty for the top of the file.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// How many tensors it directly holds.
    #[must_use]
    pub fn tensors(&self) -> usize {
        self.tensors
    }

    /// Whether its name says that it holds an exponential moving average of the weights.
    #[must_use]
    pub fn is_ema(&self) -> bool {
        self.path.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part.eq_ignore_ascii_case("ema"))
    }
}

/// Which root to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RootChoice {
    /// The one that obviously holds the model; an error if none does.
    ///
    /// Of the roots that hold at least half as many tensors as the largest, the only one, or else the one with a name
    /// that training code usually gives to the model's weights. Averaged weights (EMA) are never taken by themselves.
    #[default]
    Auto,
    /// All tensors below that dotted path; below the top of the file (every tensor) if the path is empty.
    Path(String),
}

/// Why no root was taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootProblem {
    /// The file holds no tensor at all.
    #[error("it holds no tensors")]
    NoTensors,
    /// The file holds tensors, but in no mapping by name.
    #[error("its tensors are in no dictionary by name; --root '' takes all by their full paths")]
    NoMapping,
    /// Several roots could hold the model.
    #[error("several parts of it could be the model; choose one with --root:\n{}", Listing(.0))]
    Ambiguous(Vec<Root>),
    /// Only averaged weights are there.
    #[error("it holds averaged (EMA) weights only, which are never taken silently; name them with --root:\n{}", Listing(.0))]
    OnlyEma(Vec<Root>),
    /// There is no such root.
    #[error("it has nothing at {path:?}; {}", if .roots.is_empty() { "its tensors are in no dictionary by name, and '' takes all by their full paths".to_owned() } else { format!("what there is:\n{}", Listing(.roots)) })]
    NoSuchRoot {
        /// The path asked for.
        path: String,
        /// The roots there are.
        roots: Vec<Root>,
    },
}

/// What chooses a root, as messages have it.
pub(super) const OPTION: &str = "--root";

impl RootProblem {
    /// The message, with another option as the way out.
    pub(crate) fn with(&self, option: &str) -> String {
        match self {
            RootProblem::NoTensors | RootProblem::NoSuchRoot { .. } => self.to_string(),
            // What comes first is ours, the names of the file follow.
            _ => self.to_string().replacen(OPTION, option, 1),
        }
    }
}

struct Listing<'r>(&'r [Root]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Roots that a message lists.
        const SHOWN: usize = 20;
        for (i, root) in self.0.iter().take(SHOWN).enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            let tensors = if root.tensors == 1 { "tensor" } else { "tensors" };
            write!(f, "{newline}  '{}'  ({} {tensors})", root.path.escape_debug(), root.tensors)?;
        }
        if self.0.len() > SHOWN {
            write!(f, "\n  and {} more", self.0.len() - SHOWN)?;
        }
        Ok(())
    }
}

/// The roots among the tensors of a file, in file order.
pub(super) fn find(reached: &[Reached]) -> Vec<Root> {
    let mut roots: Vec<Root> = Vec::new();
    let mut by_path = std::collections::HashMap::new();
    for tensor in reached.iter().filter(|t| t.named && !t.path.is_empty()) {
        let path = &tensor.path[..tensor.parent];
        let index = *by_path.entry(path).or_insert_with(|| {
            roots.push(Root { path: path.to_owned(), tensors: 0 });
            roots.len() - 1
        });
        roots[index].tensors += 1;
    }
    roots
}

/// A root that was taken: its path, and its tensors by relative name.
pub(super) struct Selected {
    pub(super) path: String,
    pub(super) tensors: Vec<(String, usize)>,
}

pub(super) fn select(roots: &[Root], reached: &[Reached], choice: &RootChoice) -> Result<Selected, RootProblem> {
    if reached.is_empty() {
        return Err(RootProblem::NoTensors);
    }
    let below = |path: &str, direct: bool| -> Vec<(String, usize)> {
        let relative = |t: &Reached| match path {
            "" => Some(t.path.clone()),
            _ => Some(t.path.strip_prefix(path)?.strip_prefix('.')?.to_owned()),
        };
        let wanted = reached.iter().filter(|t| !direct || t.named && t.parent == path.len());
        wanted.filter_map(|t| Some((relative(t)?, t.tensor))).collect()
    };
    match choice {
        RootChoice::Auto => {
            let root = obvious(roots)?;
            Ok(Selected { path: root.path.clone(), tensors: below(&root.path, true) })
        }
        RootChoice::Path(path) => {
            let tensors = below(path, false);
            if tensors.is_empty() {
                return Err(RootProblem::NoSuchRoot { path: path.clone(), roots: roots.to_vec() });
            }
            Ok(Selected { path: path.clone(), tensors })
        }
    }
}

fn obvious(roots: &[Root]) -> Result<&Root, RootProblem> {
    let plain: Vec<&Root> = roots.iter().filter(|r| !r.is_ema()).collect();
    if roots.is_empty() {
        return Err(RootProblem::NoMapping);
    }
    let (Some(largest), Some(overall)) = (plain.iter().map(|r| r.tensors).max(), roots.iter().map(|r| r.tensors).max())
    else {
        return Err(RootProblem::OnlyEma(roots.to_vec()));
    };
    if largest * 2 < overall {
        return Err(RootProblem::OnlyEma(roots.iter().filter(|r| r.is_ema()).cloned().collect()));
    }
    let large: Vec<&Root> = plain.into_iter().filter(|r| r.tensors * 2 >= largest).collect();
    let usual = USUAL.iter().find_map(|name| large.iter().copied().find(|r| r.path == *name));
    match (large.as_slice(), usual) {
        (&[root], _) | (_, Some(root)) => Ok(root),
        _ => Err(RootProblem::Ambiguous(large.into_iter().cloned().collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(path: &str, tensors: usize) -> Root {
        Root { path: path.into(), tensors }
    }

    #[test]
    fn the_obvious_root_is_taken() {
        let chosen = |roots: &[Root]| obvious(roots).map(|r| r.path.clone());
        assert_eq!(chosen(&[root("", 150)]), Ok(String::new()));
        assert_eq!(chosen(&[root("", 1), root("model", 150)]), Ok("model".into()));
        assert_eq!(chosen(&[root("state_dict_ema", 150), root("state_dict", 150)]), Ok("state_dict".into()));
        assert_eq!(chosen(&[root("net", 100), root("model", 150)]), Ok("model".into()));
        assert_eq!(chosen(&[root("", 150), root("ema", 150)]), Ok(String::new()));
        assert_eq!(chosen(&[root("generator", 10), root("weird", 100)]), Ok("weird".into()));
    }

    #[test]
    fn ambiguity_and_averages_are_refused() {
        assert!(matches!(obvious(&[root("teacher", 100), root("student", 100)]), Err(RootProblem::Ambiguous(_))));
        assert!(matches!(obvious(&[root("model_ema", 100)]), Err(RootProblem::OnlyEma(_))));
        assert!(matches!(obvious(&[root("model-EMA", 100), root("extras", 2)]), Err(RootProblem::OnlyEma(_))));
        assert!(!root("schema", 1).is_ema());
    }
}
