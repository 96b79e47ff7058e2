//! Heads of linear probes.

use super::{RemodelError, Result, expect};

/// The weight `[classes, width]` and bias `[classes]` of one linear layer that does what a `BatchNorm1d(width,
/// affine=False)` in evaluation and the linear layer behind it do, as in the linear probes of MAE: `W' = W /
/// sqrt(variance + eps)`, `b' = b - W' mean`.
///
/// `classes` is the length of `bias`, and `width` that of `mean`. W' is rounded after b' is computed.
///
/// # Errors
/// Lengths that do not go together, a variance that with `eps` is not above 0 and finite.
pub fn fold_batch_norm(
    weight: &[f32],
    bias: &[f32],
    mean: &[f32],
    variance: &[f32],
    eps: f64,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let (classes, width) = (bias.len(), mean.len());
    expect("weight of the head", weight, &[classes, width])?;
    expect("running variance of the head", variance, &[width])?;
    let scale = |(feature, &variance): (usize, &f32)| {
        let sum = f64::from(variance) + eps;
        // NaN is not above 0 either.
        if sum > 0.0 && sum.is_finite() {
            Ok(1.0 / sum.sqrt())
        } else {
            Err(RemodelError::Variance { feature, variance, eps })
        }
    };
    let scales = variance.iter().enumerate().map(scale).collect::<Result<Vec<f64>>>()?;
    let mut folded = Vec::with_capacity(weight.len());
    let mut shifted = Vec::with_capacity(classes);
    for (row, &bias) in weight.chunks_exact(width).zip(bias) {
        let mut shift = 0.0;
        for ((&weight, &scale), &mean) in row.iter().zip(&scales).zip(mean) {
            let weight = f64::from(weight) * scale;
            shift += weight * f64::from(mean);
            folded.push(weight as f32);
        }
        shifted.push((f64::from(bias) - shift) as f32);
    }
    Ok((folded, shifted))
}
