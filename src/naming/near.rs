//! Names that were probably meant.

/// Distances of longer lists, and of longer names, would take long.
const COMPARED: usize = 4096;
const LONGEST: usize = 256;

/// The one of `names` that is nearly `name`: the same last parts, or few letters of difference.
pub(crate) fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str> + Clone) -> Option<&'n str> {
    let same_end = |other: &&str| other.strip_suffix(name).is_some_and(|before| before.ends_with('.'));
    if let Some(found) = names.clone().find(same_end) {
        return Some(found);
    }
    if name.len() > LONGEST {
        return None;
    }
    let short = names.filter(|other| other.len() <= LONGEST).take(COMPARED);
    let scored = short.map(|other| (strsim::normalized_levenshtein(name, other), other));
    let (score, best) = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (score > 0.7).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_end_comes_first_then_few_letters_then_nothing() {
        let names = ["head.bias", "head.weight", "module.norm.weight"];
        let near = |name: &str| nearest(name, names.into_iter());
        assert_eq!(near("norm.weight"), Some("module.norm.weight"));
        assert_eq!(near("head.wieght"), Some("head.weight"));
        assert_eq!(near("x"), None);
        assert_eq!(near(&"head.weight".repeat(50)), None);
    }
}
