//! Regular expressions that find layers by name.

use regex::Regex;

use super::{LayerId, LayerKind};

/// What is wrong with a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternProblem {
    /// It is no regular expression.
    #[error("it is no regular expression: {0}")]
    Syntax(String),
    /// It lacks a named group that is needed.
    #[error(
        "it needs the named groups (?<block>...) for the block's number and (?<layer>...) for qkv, proj, fc1 or fc2 \
         (or groups named qkv, proj, fc1, fc2 in place of `layer`)"
    )]
    Groups,
}

/// A compiled pattern over full tensor names, such as
/// `blocks\.(?<block>\d+)\.(?<layer>attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.weight$`.
///
/// The group `block` captures the block's number. The group `layer` captures a text that is `qkv`, `proj`, `fc1` or
/// `fc2`, or ends in one of them after a dot. Models with other names use a group for each kind instead:
/// `h\.(?<block>\d+)\.(?:(?<qkv>attn\.c_attn)|(?<proj>attn\.c_proj)|(?<fc1>mlp\.c_fc)|(?<fc2>mlp\.c_proj))\.weight$`.
#[derive(Clone, Debug)]
pub struct Selector {
    regex: Regex,
}

impl Selector {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// [`PatternProblem`].
    pub fn new(pattern: &str) -> Result<Selector, PatternProblem> {
        let regex = Regex::new(pattern).map_err(|error| PatternProblem::Syntax(error.to_string()))?;
        let has = |group: &str| regex.capture_names().flatten().any(|name| name == group);
        if !has("block") || !(has("layer") || LayerKind::ALL.iter().any(|kind| has(kind.name()))) {
            return Err(PatternProblem::Groups);
        }
        Ok(Selector { regex })
    }

    /// The pattern as written.
    #[must_use]
    pub fn pattern(&self) -> &str {
        self.regex.as_str()
    }

    /// The layer that the tensor `name` is the weight of; `None` if the pattern does not match, or what its groups
    /// capture is no block number and layer.
    #[must_use]
    pub fn layer(&self, name: &str) -> Option<LayerId> {
        let captures = self.regex.captures(name)?;
        let block = captures.name("block")?.as_str().parse().ok()?;
        let kind = match captures.name("layer") {
            Some(text) => LayerKind::from_name(text.as_str())?,
            None => LayerKind::ALL.into_iter().find(|kind| captures.name(kind.name()).is_some())?,
        };
        Some(LayerId { block, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_tell_block_and_layer() {
        let selector = Selector::new(r"blocks\.(?<block>\d+)\.(?<layer>attn\.qkv|mlp\.fc1)\.weight$").unwrap();
        assert_eq!(selector.layer("x.blocks.11.attn.qkv.weight"), Some(LayerId { block: 11, kind: LayerKind::Qkv }));
        assert_eq!(selector.layer("blocks.1.mlp.fc2.weight"), None);
        let kinds = Selector::new(r"h\.(?<block>\d+)\.(?:(?<qkv>attn\.c_attn)|(?<fc2>mlp\.c_proj))\.weight").unwrap();
        assert_eq!(kinds.layer("h.3.mlp.c_proj.weight"), Some(LayerId { block: 3, kind: LayerKind::Fc2 }));
    }

    #[test]
    fn rejects_patterns_without_groups_and_bad_syntax() {
        assert_eq!(Selector::new(r"blocks\.(\d+)").unwrap_err(), PatternProblem::Groups);
        assert_eq!(Selector::new(r"(?<block>\d+)").unwrap_err(), PatternProblem::Groups);
        assert!(matches!(Selector::new("(").unwrap_err(), PatternProblem::Syntax(_)));
    }
}
