//! How to fold.

use std::collections::BTreeSet;
use std::fmt;

use crate::naming::LayerKind;
use crate::plan::Sharing;
use crate::tensor::DType;

/// What happens to biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BiasMode {
    /// The target's stay (as in the reference implementation).
    #[default]
    Keep,
    /// `b + lambda * b'` (as in the paper's formula).
    Fold,
}

/// What happens if target and auxiliary have different numbers of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DepthMismatch {
    /// It is an error.
    #[default]
    Error,
    /// The blocks that both have are folded, by their number (as the reference implementation pairs them).
    First,
}

/// A set of block numbers, written `0-5,8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSet(pub(super) BTreeSet<usize>);

impl BlockSet {
    /// The most blocks that one range of a text may name.
    const MAX: usize = 4096;

    /// Reads numbers and ranges, both ends included, separated by commas; `None` if it is none of that.
    #[must_use]
    pub fn parse(text: &str) -> Option<BlockSet> {
        let mut blocks = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            if first > last || last - first >= Self::MAX {
                return None;
            }
            blocks.extend(first..=last);
        }
        Some(BlockSet(blocks))
    }

    /// The set of these numbers.
    #[must_use]
    pub fn of(blocks: &[usize]) -> BlockSet {
        BlockSet(blocks.iter().copied().collect())
    }
}

impl fmt::Display for BlockSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for &block in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == block => *last = block,
                _ => ranges.push((block, block)),
            }
        }
        for (i, (first, last)) in ranges.into_iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// How to fold.
#[derive(Clone, Debug)]
pub(crate) struct FoldOptions {
    /// The kinds of layer to fold; all of them if `None`.
    pub(crate) kinds: Option<Vec<LayerKind>>,
    /// The blocks to fold; all of them if `None`.
    pub(crate) blocks: Option<BlockSet>,
    /// What happens to biases.
    pub(crate) bias: BiasMode,
    /// What happens if the models differ in depth.
    pub(crate) depth_mismatch: DepthMismatch,
    /// The type to which every float64, float32, float16 and bfloat16 tensor is cast after the fold.
    pub(crate) dtype: Option<DType>,
    /// Whether shared storages stay shared.
    pub(crate) sharing: Sharing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sets_are_read_and_written() {
        let text = |text: &str| BlockSet::parse(text).map(|set| set.to_string());
        assert_eq!(text("0-5,8"), Some("0-5,8".into()));
        assert_eq!(text("8, 3,4,5 ,0"), Some("0,3-5,8".into()));
        for bad in ["", "a", "3-1", "1,,2", "-1", "0-99999999999"] {
            assert_eq!(text(bad), None, "{bad}");
        }
    }
}
