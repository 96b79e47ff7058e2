//! Fixed tables of positions, made of sines and cosines. Computed in f64 and rounded once.

use super::{MAX_SIDE, RemodelError, Result, elements, sides};

/// The base of the wavelengths.
const BASE: f64 = 10_000.0;

/// MAE's fixed table of positions, `[class_token + h * w, width]`: `get_2d_sincos_pos_embed(width, grid, cls_token)`,
/// for grids (h, w) that are not square as Audio-MAE's `get_2d_sincos_pos_embed_flexible`. The position of the class
/// token is 0.
///
/// The first half of a row encodes the column of the patch, the second its row: `sin(p w_i)` for all i, then `cos(p
/// w_i)`, with `w_i = 10000^(-4 i / width)` and i < width / 4.
///
/// # Errors
/// A width that is no multiple of 4, a side of 0 or longer than [`MAX_SIDE`], more than
/// [`MAX_ELEMENTS`](super::MAX_ELEMENTS).
pub fn sincos_2d(width: usize, grid: (usize, usize), class_token: bool) -> Result<Vec<f32>> {
    if !width.is_multiple_of(4) {
        return Err(RemodelError::Width { width });
    }
    sides("grid", grid, MAX_SIDE)?;
    // Sides are short: the product cannot overflow.
    let size = elements("table of positions", &[grid.0 * grid.1 + usize::from(class_token), width])?;
    let quarter = width / 4;
    let encode = |position: usize| -> Vec<f32> {
        let angle = |i: usize| position as f64 * (1.0 / BASE.powf(i as f64 / quarter as f64));
        let (sines, cosines) = ((0..quarter).map(|i| angle(i).sin()), (0..quarter).map(|i| angle(i).cos()));
        sines.chain(cosines).map(|value| value as f32).collect()
    };
    let columns: Vec<_> = (0..grid.1).map(encode).collect();
    let mut table = Vec::with_capacity(size);
    table.resize(if class_token { width } else { 0 }, 0.0);
    for row in (0..grid.0).map(encode) {
        for column in &columns {
            table.extend_from_slice(column);
            table.extend_from_slice(&row);
        }
    }
    Ok(table)
}

/// VideoMAE's fixed table of positions, `[positions, width]`: `get_sinusoid_encoding_table(positions, width)`. Even
/// columns are `sin(p / 10000^(j / width))`, odd ones `cos(p / 10000^((j - 1) / width))` (Vaswani et al., 2017).
///
/// # Errors
/// No positions, no width, more than [`MAX_ELEMENTS`](super::MAX_ELEMENTS).
pub fn sinusoid_table(positions: usize, width: usize) -> Result<Vec<f32>> {
    let size = elements("table of positions", &[positions, width])?;
    let wavelengths: Vec<f64> = (0..width).map(|j| BASE.powf((j / 2 * 2) as f64 / width as f64)).collect();
    let mut table = Vec::with_capacity(size);
    for position in 0..positions {
        table.extend(wavelengths.iter().enumerate().map(|(j, wavelength)| {
            let angle = position as f64 / wavelength;
            (if j.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
        }));
    }
    Ok(table)
}
