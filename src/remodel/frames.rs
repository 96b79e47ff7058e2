//! Patch embeddings of videos and of images.

use super::{Result, elements, expect};

/// How the frames of a video's patch embedding become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collapse {
    /// The sum over the frames: the response to a video that does not move is kept.
    Sum,
    /// The mean over the frames.
    Mean,
    /// The frame `t / 2` (a whole number).
    Centre,
}

/// How an image's patch embedding becomes that of videos. Both keep the response to a video that does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inflate {
    /// The weight over t, in each frame (I3D; Carreira and Zisserman, 2017).
    Repeat,
    /// The weight in frame `t / 2` (a whole number), and 0 in the others (ViViT's central frame; Arnab et al., 2021).
    Centre,
}

/// The weight of a Conv3d, `[out, in, t, h, w]`, as that of a Conv2d, `[out, in, h, w]`.
///
/// # Errors
/// A shape that the weight does not have, more than [`MAX_ELEMENTS`](super::MAX_ELEMENTS).
pub fn conv3d_to_conv2d(weight: &[f32], shape: [usize; 5], how: Collapse) -> Result<Vec<f32>> {
    expect("weight of the Conv3d", weight, &shape)?;
    let [_, _, frames, height, width] = shape;
    let area = height * width;
    let mut new = Vec::with_capacity(weight.len() / frames);
    for kernel in weight.chunks_exact(frames * area) {
        let sum = |at: usize| kernel[at..].iter().step_by(area).map(|&value| f64::from(value)).sum::<f64>();
        match how {
            Collapse::Sum => new.extend((0..area).map(|at| sum(at) as f32)),
            Collapse::Mean => new.extend((0..area).map(|at| (sum(at) / frames as f64) as f32)),
            Collapse::Centre => new.extend_from_slice(&kernel[frames / 2 * area..][..area]),
        }
    }
    Ok(new)
}

/// The weight of a Conv2d, `[out, in, h, w]`, as that of a Conv3d over `frames`, `[out, in, frames, h, w]`.
///
/// # Errors
/// A shape that the weight does not have, no frames, more than [`MAX_ELEMENTS`](super::MAX_ELEMENTS).
pub fn conv2d_to_conv3d(weight: &[f32], shape: [usize; 4], frames: usize, how: Inflate) -> Result<Vec<f32>> {
    expect("weight of the Conv2d", weight, &shape)?;
    let [out, input, height, width] = shape;
    let size = elements("weight of the Conv3d", &[out, input, frames, height, width])?;
    let mut new = Vec::with_capacity(size);
    for kernel in weight.chunks_exact(height * width) {
        for frame in 0..frames {
            match how {
                Inflate::Repeat => new.extend(kernel.iter().map(|value| value / frames as f32)),
                Inflate::Centre if frame == frames / 2 => new.extend_from_slice(kernel),
                Inflate::Centre => new.resize(new.len() + kernel.len(), 0.0),
            }
        }
    }
    Ok(new)
}
