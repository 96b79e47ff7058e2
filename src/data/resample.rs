//! Resizing as Pillow does it, bit for bit.
//!
//! Pillow resizes 8-bit images in two passes, along the rows and along the columns, and rounds to 8 bits after each. The weights of a pass are computed in f64, normalised to a sum of 1 and rounded to fixed point. Where an image
//! gets smaller, the filter gets wider, so that every source pixel counts (antialiasing). Nearest neighbour is another
//! algorithm there: an affine transformation that takes one pixel.

use std::ops::Range;

use super::decode::Pixels;
use super::preprocess::Interpolation;

/// Fraction bits of the weights: 32, less 8 for the pixel and 2 for sums that overshoot.
const PRECISION: u32 = 32 - 8 - 2;

/// The part of a resized image that is wanted, in its pixels.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

/// The part `window` of `image`, resized to `height` x `width`; `window` lies inside of that, and has pixels.
///
/// Only what the window needs is computed, so that time and memory do not grow with the part that is cropped away.
pub(super) fn resize(
    image: &Pixels,
    (height, width): (usize, usize),
    interpolation: Interpolation,
    window: &Window,
) -> Pixels {
    let Some((filter, support)) = filter(interpolation) else {
        let rows = nearest(image.height, height, &window.rows);
        return pick(image, &rows, &nearest(image.width, width, &window.columns));
    };
    // A pass that would change nothing is left out.
    let weights = |from, to, wanted| (from != to).then(|| Weights::new(from, to, filter, support, wanted));
    let (down, across) = (weights(image.height, height, &window.rows), weights(image.width, width, &window.columns));
    let rows = down.as_ref().map_or(window.rows.clone(), Weights::reach);
    let columns = across.as_ref().map_or(window.columns.clone(), Weights::reach);
    let part = image.part(&rows, &columns);
    let vertical = |part: Pixels| match &down {
        Some(weights) => vertical(&part, weights, rows.start),
        None => part,
    };
    let horizontal = |part: Pixels| match &across {
        Some(weights) if part.channels == 1 => horizontal::<1>(&part, weights, columns.start),
        Some(weights) => horizontal::<3>(&part, weights, columns.start),
        None => part,
    };
    if columns_first(image, height, width) { horizontal(vertical(part)) } else { vertical(horizontal(part)) }
}

/// Whether the pass along the columns comes first: since Pillow 13, where the height shrinks by more than twice as many
/// pixels as the width. The order shows in the rounding between the passes.
fn columns_first(image: &Pixels, height: usize, width: usize) -> bool {
    let shrinks = |from: usize, to: usize| from as i64 - to as i64;
    let (lines, columns) = (shrinks(image.height, height), shrinks(image.width, width));
    lines > 0 && lines > 2 * columns
}

/// A filter, as a function of the distance in source pixels (over the scale, where the image gets smaller).
type Filter = fn(f64) -> f64;

/// The filter and how far it reaches; `None` for nearest neighbour.
fn filter(interpolation: Interpolation) -> Option<(Filter, f64)> {
    match interpolation {
        Interpolation::Nearest => None,
        Interpolation::Box => Some((|x| if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }, 0.5)),
        Interpolation::Bilinear => Some((|x| (1.0 - x.abs()).max(0.0), 1.0)),
        Interpolation::Hamming => Some((hamming, 1.0)),
        Interpolation::Bicubic => Some((bicubic, 2.0)),
        Interpolation::Lanczos => Some((|x| if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }, 3.0)),
    }
}

/// Keys' cubic convolution with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn hamming(x: f64) -> f64 {
    let x = x.abs();
    if x == 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    let x = x * std::f64::consts::PI;
    // The constants are float32 there.
    x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// The source pixels that one pixel of the result is made of.
struct Span {
    first: usize,
    weights: Vec<i32>,
}

/// The spans of a run of pixels of one axis.
struct Weights {
    spans: Vec<Span>,
}

impl Weights {
    fn new(from: usize, to: usize, filter: Filter, support: f64, wanted: &Range<usize>) -> Weights {
        let scale = from as f64 / to as f64;
        let widened = scale.max(1.0);
        let support = support * widened;
        let inverse = 1.0 / widened;
        let mut values: Vec<f64> = Vec::new();
        let span = |out: usize| {
            let center = (out as f64 + 0.5) * scale;
            // Casts of floats saturate: below 0 becomes 0.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            values.clear();
            values.extend((first..end).map(|x| filter((x as f64 - center + 0.5) * inverse)));
            let sum = values.iter().fold(0.0, |sum, value| sum + value);
            let fixed = |value: &f64| {
                let value = if sum == 0.0 { *value } else { value / sum } * f64::from(1u32 << PRECISION);
                if value < 0.0 { (value - 0.5) as i32 } else { (value + 0.5) as i32 }
            };
            Span { first, weights: values.iter().map(fixed).collect() }
        };
        Weights { spans: wanted.clone().map(span).collect() }
    }

    /// The source pixels that are needed.
    fn reach(&self) -> Range<usize> {
        let first = self.spans.iter().map(|span| span.first).min().unwrap_or(0);
        let end = self.spans.iter().map(|span| span.first + span.weights.len()).max().unwrap_or(first);
        first..end
    }
}

/// Rounds a sum of products to a pixel.
fn pixel(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Half a grey level, so that the shift rounds.
const HALF: i32 = 1 << (PRECISION - 1);

// The weights of a span sum to 1, and of those that overshoot to at most 1.8 in magnitude: times 255, that fits an i32.
// The wrapping operations only keep builds that check for overflow from doing so in the inner loop.

/// The pass along the rows, of which the image has the pixels from `first` on.
fn horizontal<const C: usize>(image: &Pixels, weights: &Weights, first: usize) -> Pixels {
    let mut out = Vec::with_capacity(image.height * weights.spans.len() * C);
    for row in image.data.chunks_exact(image.width * C) {
        let row = row.as_chunks::<C>().0;
        for span in &weights.spans {
            let mut sums = [HALF; C];
            for (source, &weight) in row[span.first - first..].iter().zip(&span.weights) {
                for (sum, &value) in sums.iter_mut().zip(source) {
                    *sum = sum.wrapping_add(i32::from(value).wrapping_mul(weight));
                }
            }
            out.extend(sums.map(pixel));
        }
    }
    Pixels { width: weights.spans.len(), height: image.height, channels: C, data: out }
}

/// The pass along the columns, of which the image has the pixels from `first` on.
fn vertical(image: &Pixels, weights: &Weights, first: usize) -> Pixels {
    let length = image.width * image.channels;
    let mut out = Vec::with_capacity(weights.spans.len() * length);
    let mut sums = vec![HALF; length];
    for span in &weights.spans {
        sums.fill(HALF);
        let rows = image.data[(span.first - first) * length..].chunks_exact(length.max(1));
        for (row, &weight) in rows.zip(&span.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(i32::from(value).wrapping_mul(weight));
            }
        }
        out.extend(sums.iter().map(|&sum| pixel(sum)));
    }
    Pixels { width: image.width, height: weights.spans.len(), channels: image.channels, data: out }
}

/// For each wanted pixel of an axis the source pixel it is. The position is a running sum there, and so it is here: its
/// rounding errors decide which of two neighbours is taken.
fn nearest(from: usize, to: usize, wanted: &Range<usize>) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut at = step * 0.5;
    let mut taken = Vec::with_capacity(wanted.len());
    for out in 0..wanted.end {
        if out >= wanted.start {
            taken.push((at as usize).min(from.saturating_sub(1)));
        }
        at += step;
    }
    taken
}

/// Those rows and columns of an image.
fn pick(image: &Pixels, rows: &[usize], columns: &[usize]) -> Pixels {
    let channels = image.channels;
    let mut data = Vec::with_capacity(rows.len() * columns.len() * channels);
    for &row in rows {
        let row = &image.data[row * image.width * channels..(row + 1) * image.width * channels];
        for &column in columns {
            data.extend_from_slice(&row[column * channels..(column + 1) * channels]);
        }
    }
    Pixels { width: columns.len(), height: rows.len(), channels, data }
}
