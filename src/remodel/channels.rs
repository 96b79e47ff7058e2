//! Input channels of a patch embedding.

use super::{RemodelError, Result, elements, expect};

/// How the weight of a patch embedding with N input channels becomes one with M. Below, W is the old weight, W' the
/// new, `n` < N and `m` < M. The same number of channels leaves every value as it is, whatever the rule.
///
/// The response to an image whose channels are all equal is kept by `Sum`; by `Repeat`, where N divides M; by `Timm`,
/// where 3 divides M, and for one channel. `First` keeps the response to the channels that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// timm's `adapt_input_conv`, for weights of 3 channels: to 1 channel as `Sum`, to others as `Repeat`.
    ///
    /// Weights of more channels, a multiple of 3, are those of a stem that moves space to depth: for images of 1
    /// channel, each group of 3 is summed, which leaves N / 3 channels; for images of 3 channels nothing changes. A
    /// weight of 2 channels is summed for images of 1. All else is refused.
    Timm,
    /// `W'[m] = sum(W[n]) / N`: every channel gets the mean filter. The response to equal channels becomes M / N of
    /// what it was.
    Mean,
    /// `W'[m] = sum(W[n]) / M`: the channels share the sum of all filters. For one channel this is the plain sum.
    Sum,
    /// `W'[m] = W[m mod N] * N / M`: the filters in turn, scaled.
    Repeat,
    /// `W'[m] = W[m]` for m < N, and 0 beyond: the first channels keep their filters, further ones count for nothing
    /// until they are trained.
    First,
}

/// What is done, once the rule is understood.
#[derive(Clone, Copy)]
enum Action {
    Keep,
    /// Sums of groups of that many channels.
    Groups(usize),
    /// The sum of all, divided, as many times as wanted.
    Shared(f64),
    Repeat,
    First,
}

impl Channels {
    /// The number of input channels that [`input_channels`] makes of `from` for images of `to`: `to`, but with
    /// [`Channels::Timm`] and a stem that moves space to depth.
    ///
    /// # Errors
    /// Numbers that the rule does not know; no channels.
    pub fn count(self, from: usize, to: usize) -> Result<usize> {
        Ok(match self.action(from, to)? {
            Action::Keep => from,
            Action::Groups(group) => from / group,
            Action::Shared(_) | Action::Repeat | Action::First => to,
        })
    }

    fn action(self, from: usize, to: usize) -> Result<Action> {
        elements("number of input channels, old and new,", &[from, to])?;
        Ok(match self {
            _ if from == to => Action::Keep,
            Channels::Timm if to == 3 && from.is_multiple_of(3) => Action::Keep,
            Channels::Timm if to == 1 && from <= 3 => Action::Groups(from),
            Channels::Timm if to == 1 && from.is_multiple_of(3) => Action::Groups(3),
            Channels::Timm if from == 3 => Action::Repeat,
            Channels::Timm => return Err(RemodelError::Channels { from, to }),
            Channels::Mean => Action::Shared(from as f64),
            Channels::Sum => Action::Shared(to as f64),
            Channels::Repeat => Action::Repeat,
            Channels::First => Action::First,
        })
    }
}

/// The weight of a patch embedding, `[out, in, h, w]`, for images of `to` channels: `[out, rule.count(in, to), h, w]`.
/// The bias stays as it is.
///
/// # Errors
/// A shape that the weight does not have, numbers of channels that the rule does not know, more than
/// [`MAX_ELEMENTS`](super::MAX_ELEMENTS).
pub fn input_channels(weight: &[f32], shape: [usize; 4], to: usize, rule: Channels) -> Result<Vec<f32>> {
    let [out, from, height, width] = shape;
    expect("weight of the patch embedding", weight, &shape)?;
    let action = rule.action(from, to)?;
    let size = elements("new weight of the patch embedding", &[out, rule.count(from, to)?, height, width])?;
    let area = height * width;
    let mut new = Vec::with_capacity(size);
    for kernels in weight.chunks_exact(from * area) {
        match action {
            Action::Keep => new.extend_from_slice(kernels),
            Action::Groups(group) => {
                new.extend(kernels.chunks_exact(group * area).flat_map(|kernels| shared(kernels, area, 1.0)));
            }
            Action::Shared(divisor) => {
                let kernel = shared(kernels, area, divisor);
                (0..to).for_each(|_| new.extend_from_slice(&kernel));
            }
            Action::Repeat => {
                let scale = (from as f64 / to as f64) as f32;
                new.extend(kernels.iter().cycle().take(to * area).map(|value| value * scale));
            }
            Action::First => new.extend(kernels.iter().copied().chain(std::iter::repeat(0.0)).take(to * area)),
        }
    }
    Ok(new)
}

/// The sum of kernels, divided.
fn shared(kernels: &[f32], area: usize, divisor: f64) -> Vec<f32> {
    let sum = |at: usize| kernels[at..].iter().step_by(area).map(|&value| f64::from(value)).sum::<f64>();
    (0..area).map(|at| (sum(at) / divisor) as f32).collect()
}
