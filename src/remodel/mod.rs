//! The numeric operations of a conversion: tables of positions, patch embeddings, input channels and heads, made to fit
//! another model.
//!
//! Pure functions of slices in C order, float32 in and out. Sums are computed in f64 and rounded once. Each does what a
//! published reference does (timm, AST, MAE, VideoMAE), and is tested against its values; where nothing has to change,
//! the values come back bit for bit. Shapes that do not fit are a [`RemodelError`], never a panic.

mod channels;
mod error;
mod frames;
mod head;
mod interpolate;
mod patch;
mod positions;
mod sincos;

pub use channels::{Channels, input_channels};
pub use error::RemodelError;
pub use frames::{Collapse, Inflate, conv2d_to_conv3d, conv3d_to_conv2d};
pub use head::fold_batch_norm;
pub use interpolate::{Mode, Resampling, interpolate};
pub use patch::patch_embedding;
pub use positions::{Positions, ast_positions, position_embedding};
pub use sincos::{sincos_2d, sinusoid_table};

/// The most elements of a tensor here, given or made: 1 GiB of float32.
pub const MAX_ELEMENTS: usize = 1 << 28;
/// The longest side of a grid.
pub const MAX_SIDE: usize = 1 << 16;
/// The longest side of a patch that [`patch_embedding`] resamples: the cost of the pseudo-inverse grows with its cube.
pub const MAX_PATCH_SIDE: usize = 512;

type Result<T> = std::result::Result<T, RemodelError>;

/// The number of elements of a tensor; `what` it is, for the message.
fn elements(what: &'static str, shape: &[usize]) -> Result<usize> {
    if shape.contains(&0) {
        return Err(RemodelError::Empty { what, shape: shape.into() });
    }
    let product = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
    match product {
        Some(elements) if elements <= MAX_ELEMENTS => Ok(elements),
        _ => Err(RemodelError::TooLarge { what, shape: shape.into() }),
    }
}

/// Checks that values are those of a tensor of that shape.
fn expect(what: &'static str, values: &[f32], shape: &[usize]) -> Result<()> {
    let expected = elements(what, shape)?;
    if values.len() == expected {
        return Ok(());
    }
    Err(RemodelError::Length { what, shape: shape.into(), expected, found: values.len() })
}

/// Checks the sides of a grid.
fn sides(what: &'static str, (height, width): (usize, usize), limit: usize) -> Result<()> {
    if height == 0 || width == 0 {
        return Err(RemodelError::Empty { what, shape: [height, width].into() });
    }
    if height.max(width) > limit {
        return Err(RemodelError::Side { what, height, width, limit });
    }
    Ok(())
}
