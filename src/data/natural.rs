//! The order of names in timm: `timm.utils.misc.natural_key`.

use std::cmp::Ordering;

/// Compares as timm sorts classes and files: case is ignored, runs of decimal digits count as numbers.
///
/// Names that are equal so (`a1`, `A01`), and have no defined order there, are compared character by character.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    compare_keys(&a.to_lowercase(), &b.to_lowercase()).then_with(|| a.cmp(b))
}

fn compare_keys(mut a: &str, mut b: &str) -> Ordering {
    // There, a name is split into text, number, text, number, ..., each part possibly an empty text.
    loop {
        let (text_a, text_b) = (take(&mut a, |c| !c.is_ascii_digit()), take(&mut b, |c| !c.is_ascii_digit()));
        let (number_a, number_b) = (take(&mut a, |c| c.is_ascii_digit()), take(&mut b, |c| c.is_ascii_digit()));
        let order = text_a
            .cmp(text_b)
            // A list that is shorter comes first.
            .then_with(|| number_a.is_empty().cmp(&number_b.is_empty()).reverse())
            .then_with(|| compare_numbers(number_a, number_b));
        if order.is_ne() || number_a.is_empty() {
            return order;
        }
    }
}

/// Decimal numbers of any length.
fn compare_numbers(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Takes the longest beginning of such characters.
fn take<'t>(text: &mut &'t str, is: impl Fn(char) -> bool) -> &'t str {
    let end = text.find(|c| !is(c)).unwrap_or(text.len());
    let (taken, rest) = text.split_at(end);
    *text = rest;
    taken
}
