//! Learned tables of positions, for another grid.

use super::interpolate::{Axis, Mode, map};
use super::{MAX_SIDE, RemodelError, Resampling, Result, elements, expect, sides};

/// The shape of a table of positions, `[1, prefix + grid.0 * grid.1, width]`: the tokens of the grid row by row, after
/// those of no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// The number of tokens before the grid: class, distillation and register tokens that have positions.
    pub prefix: usize,
    /// Rows and columns.
    pub grid: (usize, usize),
    /// The width of the model.
    pub width: usize,
}

impl Positions {
    /// The shape `[tokens, width]`.
    fn shape(&self, what: &'static str) -> Result<[usize; 2]> {
        sides(what, self.grid, MAX_SIDE)?;
        let patches = self.grid.0.checked_mul(self.grid.1);
        let shape = patches.and_then(|patches| patches.checked_add(self.prefix)).map(|tokens| [tokens, self.width]);
        shape.ok_or_else(|| RemodelError::TooLarge {
            what,
            shape: [self.prefix, self.grid.0, self.grid.1, self.width].into(),
        })
    }

    /// The table with its grid mapped along both axes, and its prefix as it is.
    fn map(&self, table: &[f32], down: Option<&Axis>, across: Option<&Axis>) -> Vec<f32> {
        let (prefix, grid) = table.split_at(self.prefix * self.width);
        let mut out = prefix.to_vec();
        out.extend(map(grid, self.grid.1, self.width, down, across));
        out
    }

    /// Checks a table and its new shape.
    fn check(&self, table: &[f32], to: (usize, usize)) -> Result<()> {
        expect("table of positions", table, &self.shape("table of positions")?)?;
        elements("new table of positions", &Positions { grid: to, ..*self }.shape("new table of positions")?)?;
        Ok(())
    }
}

/// Resamples a table of positions `[1, prefix + h * w, C]` to the grid `to`, `[1, prefix + h2 * w2, C]`. The prefix is
/// kept; the same grid gives the same bits.
///
/// With the default [`Resampling`] this is timm's `resample_abs_pos_embed(table, new_size=to, old_size=shape.grid,
/// num_prefix_tokens=shape.prefix)`.
///
/// # Errors
/// A shape that the table does not have, a side of 0 or longer than [`MAX_SIDE`], more than
/// [`MAX_ELEMENTS`](super::MAX_ELEMENTS).
pub fn position_embedding(table: &[f32], shape: Positions, to: (usize, usize), how: Resampling) -> Result<Vec<f32>> {
    shape.check(table, to)?;
    let down = Axis::interpolation(shape.grid.0, to.0, how);
    let across = Axis::interpolation(shape.grid.1, to.1, how);
    Ok(shape.map(table, down.as_ref(), across.as_ref()))
}

/// Fits a table of positions `[1, prefix + f * t, C]` to a spectrogram of `to` = (frequency, time) patches, as the
/// Audio Spectrogram Transformer does (Gong, Chung and Glass, 2021) with that of an image model. The prefix is kept
/// (there: class and distillation token).
///
/// Along each axis, where the new side is not longer, its middle is taken as it is, from `old / 2 - new / 2` on (whole
/// numbers); where it is longer, the axis is interpolated bilinearly, without antialiasing.
///
/// # Errors
/// As [`position_embedding`].
pub fn ast_positions(table: &[f32], shape: Positions, to: (usize, usize)) -> Result<Vec<f32>> {
    shape.check(table, to)?;
    let axis = |from: usize, to: usize| {
        if to < from {
            return Some(Axis::cut(from, from / 2 - to / 2, to));
        }
        Axis::interpolation(from, to, Resampling { mode: Mode::Bilinear, antialias: false })
    };
    let (frequency, time) = (axis(shape.grid.0, to.0), axis(shape.grid.1, to.1));
    Ok(shape.map(table, frequency.as_ref(), time.as_ref()))
}
