//! Why a tensor could not be made to fit.

use super::MAX_ELEMENTS;

/// Why a tensor could not be made to fit: shapes that do not go together.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum RemodelError {
    /// The values are not as many as the shape says.
    #[error(
        "the {what} has {found} values, but its shape {shape:?} takes {expected}; \
         give all values of the tensor, and its own shape"
    )]
    Length {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        shape: Box<[usize]>,
        /// The product of its shape.
        expected: usize,
        /// The number of values.
        found: usize,
    },
    /// A tensor or a grid without elements.
    #[error("the {what} of shape {shape:?} has no elements; every side must be at least 1")]
    Empty {
        /// Which tensor or grid.
        what: &'static str,
        /// Its shape.
        shape: Box<[usize]>,
    },
    /// More elements than [`MAX_ELEMENTS`](super::MAX_ELEMENTS).
    #[error("the {what} of shape {shape:?} is too large: more than {MAX_ELEMENTS} elements; choose smaller sides")]
    TooLarge {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        shape: Box<[usize]>,
    },
    /// A side that is too long.
    #[error("the {what} of {height} x {width} has a side of more than {limit}; choose a smaller one")]
    Side {
        /// Which grid or patch.
        what: &'static str,
        /// Its height.
        height: usize,
        /// Its width.
        width: usize,
        /// The longest side that is allowed.
        limit: usize,
    },
    /// A resize that loses so much that it cannot be inverted.
    #[error(
        "resizing {from} values to {to} has no pseudo-inverse in float64: its rows are not independent; \
         choose another size or antialias"
    )]
    Singular {
        /// The length of the side.
        from: usize,
        /// Its new length.
        to: usize,
    },
    /// A number of channels that timm's rule does not know.
    #[error(
        "timm's rule does not make {to} input channels of {from}: it knows 3 to any number, and groups of 3 to 1; \
         choose another rule: mean, sum, repeat or first"
    )]
    Channels {
        /// The number of channels of the weight.
        from: usize,
        /// The wanted number.
        to: usize,
    },
    /// A width that sines and cosines do not fill.
    #[error(
        "a 2-D table of sines and cosines has a width that is a multiple of 4, not {width}; use the width of the model"
    )]
    Width {
        /// The width.
        width: usize,
    },
    /// A variance that has no inverse root.
    #[error(
        "feature {feature} has the running variance {variance}, and with eps {eps} no finite inverse root; \
         use the head of a model that was trained, and the eps it was trained with"
    )]
    Variance {
        /// The index of the feature.
        feature: usize,
        /// Its running variance.
        variance: f32,
        /// What is added to it.
        eps: f64,
    },
}
