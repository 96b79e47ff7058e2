//! Patch embeddings, for another size of patch.

use super::interpolate::{Axis, Span, map};
use super::{MAX_PATCH_SIDE, RemodelError, Resampling, Result, elements, expect, sides};

/// Resamples the weight of a patch embedding, `[out, in, h, w]`, to patches of `to` = (height, width), as FlexiViT does
/// (Beyer et al., 2023): patches resized by the same interpolation give tokens that differ as little as possible. The
/// bias stays as it is.
///
/// The weight is multiplied by the pseudo-inverse of the interpolation. The same size gives the same bits. With the
/// default [`Resampling`] this is timm's `resample_patch_embed(weight, to)`, with the pseudo-inverse in f64 instead of
/// float32 (whose rounding is up to 1.5e-6 of the largest weight), and with patches of width 1 interpolated as
/// [`interpolate`](super::interpolate()) does it.
///
/// # Errors
/// A shape that the weight does not have, a side of 0 or longer than [`MAX_PATCH_SIDE`], more than
/// [`MAX_ELEMENTS`](super::MAX_ELEMENTS), an interpolation without a pseudo-inverse.
pub fn patch_embedding(weight: &[f32], shape: [usize; 4], to: (usize, usize), how: Resampling) -> Result<Vec<f32>> {
    let [out, input, height, width] = shape;
    expect("weight of the patch embedding", weight, &shape)?;
    sides("patch", (height, width), MAX_PATCH_SIDE)?;
    sides("new patch", to, MAX_PATCH_SIDE)?;
    elements("new weight of the patch embedding", &[out, input, to.0, to.1])?;
    // The resize of a patch is the Kronecker product of those of its sides, and so is its pseudo-inverse.
    let inverse = |from, to| Axis::interpolation(from, to, how).map(|resize| pseudo_inverse(&resize)).transpose();
    let (down, across) = (inverse(height, to.0)?, inverse(width, to.1)?);
    Ok(map(weight, width, 1, down.as_ref(), across.as_ref()))
}

/// The pseudo-inverse of a resize matrix R `[to, from]`, as the map `weight @ pinv(R)` of an axis of a weight.
///
/// Interpolation loses nothing but what the shorter side has no room for: R has full rank. Its pseudo-inverse is (R^T
/// R)^-1 R^T where it has more rows, else R^T (R R^T)^-1. Squaring does no harm, as its condition is small: below 6 for
/// all sides up to 64.
fn pseudo_inverse(resize: &Axis) -> Result<Axis> {
    let (from, to) = (resize.from, resize.spans.len());
    let rows: Vec<Vec<f64>> = resize.spans.iter().map(|span| dense(span, from)).collect();
    let columns: Vec<Vec<f64>> = (0..from).map(|column| rows.iter().map(|row| row[column]).collect()).collect();
    let singular = || RemodelError::Singular { from, to };
    let column = if to > from {
        let factor = cholesky(&columns).ok_or_else(singular)?;
        (0..to).map(|column| solve(&factor, rows[column].clone())).collect::<Vec<_>>()
    } else {
        let factor = cholesky(&rows).ok_or_else(singular)?;
        let unit = |at: usize| (0..to).map(|row| if row == at { 1.0 } else { 0.0 }).collect();
        let solved = (0..to).map(|column| solve(&factor, unit(column)));
        solved.map(|solved| columns.iter().map(|column| dot(column, &solved)).collect()).collect()
    };
    Ok(Axis { from, spans: column.into_iter().map(|weights| Span { first: 0, weights }).collect() })
}

/// A row of a matrix.
fn dense(span: &Span, length: usize) -> Vec<f64> {
    let mut row = vec![0.0; length];
    row[span.first..span.first + span.weights.len()].copy_from_slice(&span.weights);
    row
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The rows of the lower triangular L with L L^T = V V^T, for the rows V of a matrix; `None` if they are not
/// independent.
fn cholesky(vectors: &[Vec<f64>]) -> Option<Vec<Vec<f64>>> {
    let mut factor: Vec<Vec<f64>> = Vec::with_capacity(vectors.len());
    for vector in vectors {
        let mut row = Vec::with_capacity(factor.len() + 1);
        for (above, other) in factor.iter().zip(vectors) {
            let rest = dot(vector, other) - dot(&row, above);
            row.push(rest / above[row.len()]);
        }
        let square = dot(vector, vector);
        let rest = square - dot(&row, &row);
        // What is left of a vector that depends on the others is rounding.
        if rest.is_nan() || rest <= square * 1e-10 {
            return None;
        }
        row.push(rest.sqrt());
        factor.push(row);
    }
    Some(factor)
}

/// The solution of L L^T x = b.
fn solve(factor: &[Vec<f64>], mut b: Vec<f64>) -> Vec<f64> {
    for (at, row) in factor.iter().enumerate() {
        b[at] = (b[at] - dot(&row[..at], &b[..at])) / row[at];
    }
    for (at, row) in factor.iter().enumerate().rev() {
        b[at] /= row[at];
        let x = b[at];
        for (b, l) in b.iter_mut().zip(&row[..at]) {
            *b -= l * x;
        }
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_that_forgets_is_refused() {
        let span = || Span { first: 1, weights: vec![0.25, 0.75] };
        let twice = Axis { from: 4, spans: vec![span(), span()] };
        assert_eq!(pseudo_inverse(&twice).err(), Some(RemodelError::Singular { from: 4, to: 2 }));
    }
}
