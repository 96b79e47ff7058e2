//! Numbers in words.

use m2pt_surgery::model::Config;
use m2pt_surgery::verify::{Accuracy, Interval, Paired};

use crate::cli::text::{counted, significant};

/// Samples from which on a tenth of a percent says too little.
const MANY: usize = 2000;

/// A proportion as a percentage, with as many decimals as so many samples give it.
pub(in crate::cli) fn percent(value: f64, samples: usize) -> String {
    format!("{:.*}%", if samples < MANY { 1 } else { 2 }, value * 100.0)
}

/// An interval of proportions.
pub(in crate::cli) fn between(interval: Interval, samples: usize) -> String {
    format!("{} to {}", percent(interval.low, samples), percent(interval.high, samples))
}

/// A difference of proportions: `+0.3 points`.
pub(in crate::cli) fn points(value: f64, samples: usize) -> String {
    let decimals = if samples < MANY { 1 } else { 2 };
    // No `-0.0`.
    let rounded = format!("{:+.decimals$}", value * 100.0);
    if rounded.trim_start_matches(['+', '-', '0', '.']).is_empty() { "0.0".to_owned() } else { rounded }
}

/// A probability: `p = 0.62`, `p < 0.001`.
pub(in crate::cli) fn probability(p: f64) -> String {
    if p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {}", significant(p, 2)) }
}

pub(in crate::cli) fn classes(classes: usize) -> String {
    if classes == 1 { "1 class".to_owned() } else { format!("{classes} classes") }
}

/// What a model is, in one line.
pub(in crate::cli) fn architecture(config: &Config) -> String {
    let side = |(high, wide): (usize, usize)| if high == wide { high.to_string() } else { format!("{high} x {wide}") };
    let head = config.classes.map_or("no head".to_owned(), classes);
    format!(
        "{} x {}, {}, patch {}, images {} of {}, {}",
        counted(config.depth, "block"),
        config.width,
        counted(config.heads, "head"),
        side(config.patch),
        side(config.image),
        counted(config.channels, "channel"),
        head,
    )
}

/// Two models on the same samples, in a sentence: `97.4% vs 97.1%: +0.3 points (-0.4 to +1.0), not significant (p = 0.62)`.
pub(in crate::cli) fn compared(ours: &Accuracy, theirs: &Accuracy, paired: &Paired) -> String {
    let samples = paired.both + paired.only_first + paired.only_second + paired.neither;
    let verdict = if paired.only_first + paired.only_second == 0 {
        "the same samples right".to_owned()
    } else {
        let significant = if paired.significant() { "significant" } else { "not significant" };
        format!("{significant} ({})", probability(paired.p))
    };
    format!(
        "{} vs {}: {} points ({} to {}), {verdict}",
        percent(ours.top1.value(), samples),
        percent(theirs.top1.value(), samples),
        points(paired.difference, samples),
        points(paired.interval.low, samples),
        points(paired.interval.high, samples),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proportions_have_the_decimals_that_samples_give() {
        assert_eq!(percent(0.971_15, 520), "97.1%");
        assert_eq!(percent(0.971_15, 50_000), "97.11%");
        assert_eq!(points(0.003, 520), "+0.3");
        assert_eq!(points(-0.0001, 520), "0.0");
        assert_eq!(points(-0.0101, 520), "-1.0");
        assert_eq!(probability(0.6198), "p = 0.62");
        assert_eq!(probability(1.0), "p = 1");
        assert_eq!(probability(1e-40), "p < 0.001");
    }
}
