//! Counts and rows of logits: what can be said of them, and how surely.
//!
//! All intervals are of 95 %. Tests compare with SciPy's values.

/// The quantile of the normal distribution that bounds 95 % around its mean.
const Z: f64 = 1.959_963_984_540_054;

/// A 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

/// Wilson's score interval of a proportion, as `scipy.stats.binomtest(...).proportion_ci(method="wilson")`. Of no trials
/// nothing is known: 0 to 1.
#[must_use]
pub fn wilson(successes: usize, trials: usize) -> Interval {
    if trials == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let n = trials as f64;
    let p = successes as f64 / n;
    let centre = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let reach = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    // Rounding may leave a remainder where the bound is exactly 0 or 1.
    let low = if successes == 0 { 0.0 } else { centre - reach };
    let high = if successes == trials { 1.0 } else { centre + reach };
    Interval { low, high }
}

/// McNemar's test, exact and two-sided: the probability that samples on which exactly one of two models is right are
/// divided at least as unevenly as `first` to `second` if both are equally good. Equal to
/// `scipy.stats.binomtest(first, first + second, 0.5).pvalue`; 1 if there are no such samples.
///
/// The sum is exact for any counts: its largest term is computed as a logarithm, the others by their ratios to it.
/// Probabilities below 1e-308 become 0.
#[must_use]
pub fn mcnemar(first: usize, second: usize) -> f64 {
    if first == second {
        return 1.0;
    }
    let (n, k) = ((first + second) as f64, first.min(second));
    // ln(C(n, k) / 2^n), with the roundings of the sum summed beside it: of a million terms they would cost eight digits.
    let (mut logarithm, mut lost) = (-n * std::f64::consts::LN_2, 0.0);
    for i in 1..=k {
        let term = ((n - k as f64 + i as f64) / i as f64).ln();
        let next = logarithm + term;
        lost += if logarithm.abs() >= term.abs() { (logarithm - next) + term } else { (term - next) + logarithm };
        logarithm = next;
    }
    let largest = (logarithm + lost).exp();
    let (mut sum, mut term) = (1.0, 1.0);
    for i in (1..=k).rev() {
        // C(n, i - 1) / C(n, i)
        term *= i as f64 / (n - i as f64 + 1.0);
        sum += term;
        if term < sum * f64::EPSILON / 16.0 {
            break;
        }
    }
    (2.0 * largest * sum).min(1.0)
}

/// The interval of the difference of two accuracies on the same samples, where `first` of `samples` are right in the first
/// model alone and `second` in the second alone: Wald's, with half a sample added to each cell of the table (Agresti and
/// Min, "Simple improved confidence intervals for comparing matched proportions", 2005).
#[must_use]
pub fn difference(first: usize, second: usize, samples: usize) -> Interval {
    let (b, c, n) = (first as f64 + 0.5, second as f64 + 0.5, samples as f64 + 2.0);
    let centre = (b - c) / n;
    let reach = Z * ((b + c - (b - c) * (b - c) / n).max(0.0)).sqrt() / n;
    Interval { low: (centre - reach).max(-1.0), high: (centre + reach).min(1.0) }
}

/// The mean of some values, and its interval by their standard deviation (Bessel's correction), for which there have to be
/// two; `None` of no values.
#[must_use]
pub fn mean(values: &[f64]) -> Option<(f64, Option<Interval>)> {
    if values.is_empty() {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    let reach = Z * (squares / (n - 1.0) / n).sqrt();
    let interval = (values.len() > 1).then_some(Interval { low: mean - reach, high: mean + reach });
    Some((mean, interval))
}

/// The class of the largest logit, the first of several that are equal; `None` if the row is empty or holds NaN, since a
/// model that computes NaN predicts nothing.
#[must_use]
pub fn prediction(logits: &[f32]) -> Option<usize> {
    let mut best = None;
    for (class, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, largest)| logit > largest) {
            best = Some((class, logit));
        }
    }
    best.map(|(class, _)| class)
}

/// Whether `label` is among the `k` classes of the largest logits; among equal logits the first classes count as larger.
/// Never if the row holds NaN.
#[must_use]
pub fn is_among_top(logits: &[f32], label: usize, k: usize) -> bool {
    let Some(&own) = logits.get(label) else { return false };
    if logits.iter().any(|logit| logit.is_nan()) {
        return false;
    }
    let larger = |(class, &logit): (usize, &f32)| logit > own || (logit == own && class < label);
    logits.iter().enumerate().filter(|&pair| larger(pair)).count() < k
}

/// The cross-entropy of a row, in nats: `-log_softmax(logits)[label]`, computed in float64. NaN or infinite where the logits
/// leave it so; NaN if there is no such class.
#[must_use]
pub fn cross_entropy(logits: &[f32], label: usize) -> f64 {
    let Some(&own) = logits.get(label) else { return f64::NAN };
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - f64::from(largest)).exp()).sum();
    sum.ln() + f64::from(largest) - f64::from(own)
}
