//! timm's evaluation transform: resize, crop, to floats, normalise.

use serde_json::{Map, Value};

use super::decode::Pixels;
use super::resample::{self, Window};

/// The largest input of a model, in bytes of float32.
pub const MAX_INPUT_BYTES: usize = 512 << 20;

/// How an image is fitted to the input, as timm's `crop_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CropMode {
    /// The shorter side is scaled to the input's over `crop_pct`, and the center is cut out.
    #[default]
    Center,
    /// Both sides are scaled to the input's over `crop_pct`, whatever that does to the aspect ratio.
    Squash,
    /// The longer side is scaled to the input's over `crop_pct`, and the rest is filled with the mean colour.
    Border,
}

/// How pixels are resampled: Pillow's filters, by the names that timm has for them. All but `Nearest` are antialiased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interpolation {
    /// One source pixel.
    Nearest,
    /// The mean of the source pixels.
    Box,
    /// A triangle of two pixels.
    Bilinear,
    /// A Hamming-windowed sinc of two pixels.
    Hamming,
    /// Keys' cubic convolution with a = -0.5.
    #[default]
    Bicubic,
    /// A sinc of six pixels, windowed by its own center.
    Lanczos,
}

/// Names and values, for parsing and messages.
const CROP_MODES: [(&str, CropMode); 3] =
    [("center", CropMode::Center), ("squash", CropMode::Squash), ("border", CropMode::Border)];
const INTERPOLATIONS: [(&str, Interpolation); 6] = [
    ("nearest", Interpolation::Nearest),
    ("box", Interpolation::Box),
    ("bilinear", Interpolation::Bilinear),
    ("hamming", Interpolation::Hamming),
    ("bicubic", Interpolation::Bicubic),
    ("lanczos", Interpolation::Lanczos),
];

fn by_name<T: Copy>(names: &[(&str, T)], name: &str) -> Option<T> {
    names.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

fn listed<T>(names: &[(&str, T)]) -> String {
    names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

impl CropMode {
    /// The mode that timm calls so: `center`, `squash` or `border`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<CropMode> {
        by_name(&CROP_MODES, name)
    }
}

impl Interpolation {
    /// The filter that timm calls so: `nearest`, `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Interpolation> {
        by_name(&INTERPOLATIONS, name)
    }
}

/// What is wrong with a preprocessing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PreprocessingProblem {
    /// The configuration is no JSON object.
    #[error("the preprocessing is no JSON object; give timm's config.json, or its pretrained_cfg")]
    NotAnObject,
    /// A key has a value of another kind.
    #[error("{key:?} is {found}, where {needed} is needed")]
    Value {
        /// The key.
        key: &'static str,
        /// The value, as JSON.
        found: String,
        /// What is needed.
        needed: String,
    },
    /// No image has so many channels.
    #[error("the input has {0} channels; images have 3 (RGB) or 1 (grey). Give preprocessed inputs instead")]
    Channels(usize),
    /// The input has no pixels, or too many.
    #[error("an input of {} x {} is empty, or more than {MAX_INPUT_BYTES} bytes", .0[1], .0[2])]
    Size([usize; 3]),
    /// No image can be scaled so.
    #[error(
        "crop_pct is {0}: the input's height and width over it should be 1 to {MAX_SCALED_SIDE} pixels (0.875 and 1.0 are usual)"
    )]
    CropPct(f64),
    /// Mean or standard deviation are not one number per channel.
    #[error("{key} has {found} values for {channels} channels; give one for each")]
    Statistics {
        /// `mean` or `std`.
        key: &'static str,
        /// Values there are.
        found: usize,
        /// Channels of the input.
        channels: usize,
    },
    /// Mean or standard deviation cannot be computed with.
    #[error("{key} holds {value}; mean has to be finite, and std finite and not 0, as float32")]
    Number {
        /// `mean` or `std`.
        key: &'static str,
        /// The value.
        value: f64,
    },
}

/// What is done to an image before a model sees it: timm's `create_transform(..., is_training=False)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessing {
    /// Channels (1 or 3), height and width of the input. With one channel images are converted to grey first.
    pub input_size: [usize; 3],
    /// The part of the resized image that is kept, along each side.
    pub crop_pct: f64,
    /// How an image is fitted to the input.
    pub crop_mode: CropMode,
    /// How pixels are resampled.
    pub interpolation: Interpolation,
    /// The mean of each channel, on the scale from 0 to 1.
    pub mean: Vec<f64>,
    /// The standard deviation of each channel, on that scale.
    pub std: Vec<f64>,
}

impl Default for Preprocessing {
    /// What timm does where a model says nothing: 3 x 224 x 224, bicubic, the center at 0.875, ImageNet's mean and
    /// standard deviation.
    fn default() -> Preprocessing {
        Preprocessing {
            input_size: [3, 224, 224],
            crop_pct: 0.875,
            crop_mode: CropMode::Center,
            interpolation: Interpolation::Bicubic,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
        }
    }
}

impl Preprocessing {
    /// The preprocessing that a model's configuration asks for: timm's `config.json` as on the Hugging Face hub, or a
    /// `pretrained_cfg`.
    ///
    /// Read are `input_size`, `crop_pct`, `crop_mode`, `interpolation`, `mean` and `std`, from the object
    /// `pretrained_cfg` if there is one, else from the top. Other keys are ignored, also those for a second test
    /// (`test_input_size`, `test_crop_pct`). A key that is missing or null has the value in [`Preprocessing::default`].
    ///
    /// # Errors
    /// [`PreprocessingProblem`]: a value of another type, or one that [`Preprocessing::check`] refuses.
    pub fn from_timm(config: &Value) -> Result<Preprocessing, PreprocessingProblem> {
        let top = config.as_object().ok_or(PreprocessingProblem::NotAnObject)?;
        let config = match top.get("pretrained_cfg").filter(|value| !value.is_null()) {
            Some(inner) => inner.as_object().ok_or(PreprocessingProblem::NotAnObject)?,
            None => top,
        };
        let mut found = Preprocessing::default();
        let size = |value: &Value| {
            let sizes: Option<Vec<usize>> =
                value.as_array()?.iter().map(|size| usize::try_from(size.as_u64()?).ok()).collect();
            sizes?.try_into().ok()
        };
        let numbers = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect();
        read(config, "input_size", "[channels, height, width]", size, &mut found.input_size)?;
        read(config, "crop_pct", "a number", Value::as_f64, &mut found.crop_pct)?;
        let modes = format!("one of {}", listed(&CROP_MODES));
        read(config, "crop_mode", &modes, |value| CropMode::from_name(value.as_str()?), &mut found.crop_mode)?;
        let filters = format!("one of {}", listed(&INTERPOLATIONS));
        let filter = |value: &Value| Interpolation::from_name(value.as_str()?);
        read(config, "interpolation", &filters, filter, &mut found.interpolation)?;
        read(config, "mean", "a list of numbers", numbers, &mut found.mean)?;
        read(config, "std", "a list of numbers", numbers, &mut found.std)?;
        found.check()?;
        Ok(found)
    }

    /// Checks that images can be preprocessed so.
    ///
    /// # Errors
    /// [`PreprocessingProblem`].
    pub fn check(&self) -> Result<(), PreprocessingProblem> {
        let [channels, height, width] = self.input_size;
        if channels != 1 && channels != 3 {
            return Err(PreprocessingProblem::Channels(channels));
        }
        let bytes = height.checked_mul(width).and_then(|area| area.checked_mul(channels * size_of::<f32>()));
        if bytes.is_none_or(|bytes| bytes == 0 || bytes > MAX_INPUT_BYTES) {
            return Err(PreprocessingProblem::Size(self.input_size));
        }
        let scaled = [self.scaled(height), self.scaled(width)];
        // Casts of floats saturate, and turn NaN and what is negative into 0.
        if scaled.iter().any(|side| !(1..=MAX_SCALED_SIDE).contains(side)) {
            return Err(PreprocessingProblem::CropPct(self.crop_pct));
        }
        for (key, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != channels {
                return Err(PreprocessingProblem::Statistics { key, found: values.len(), channels });
            }
            let bad = |&&value: &&f64| !(value as f32).is_finite() || (key == "std" && value as f32 == 0.0);
            if let Some(&value) = values.iter().find(bad) {
                return Err(PreprocessingProblem::Number { key, value });
            }
        }
        Ok(())
    }

    /// A side of the input, scaled up so that the crop brings it back.
    fn scaled(&self, side: usize) -> usize {
        (side as f64 / self.crop_pct).floor() as usize
    }

    /// The height and width that an image of this height and width is resized to. One of them is 0 for an image that is so
    /// long and narrow that nothing would be left of it.
    fn resized(&self, height: usize, width: usize) -> (usize, usize) {
        let (scaled_height, scaled_width) = (self.scaled(self.input_size[1]), self.scaled(self.input_size[2]));
        let ratios = (height as f64 / scaled_height as f64, width as f64 / scaled_width as f64);
        // timm's `ResizeKeepRatio`; Python rounds halves to even.
        let by = |ratio: f64| {
            let side = |side: usize| (side as f64 / ratio).round_ties_even() as usize;
            (side(height), side(width))
        };
        match self.crop_mode {
            CropMode::Squash => (scaled_height, scaled_width),
            CropMode::Border => by(ratios.0.max(ratios.1)),
            CropMode::Center if scaled_height != scaled_width => by(ratios.0.min(ratios.1)),
            // torchvision's `Resize` of the shorter side truncates the longer one.
            CropMode::Center => {
                let longer = |long: usize, short: usize| ((scaled_height * long) as f64 / short as f64) as usize;
                if width <= height {
                    (longer(height, width), scaled_height)
                } else {
                    (scaled_height, longer(width, height))
                }
            }
        }
    }

    /// The input [C, H, W] that is made of an image; `None` if nothing is left of it. The preprocessing has been checked.
    pub(super) fn apply(&self, image: Pixels) -> Option<Vec<f32>> {
        let [channels, height, width] = self.input_size;
        let image = if channels == 1 { image.into_grey() } else { image.into_rgb() };
        let resized = self.resized(image.height, image.width);
        if resized.0 == 0 || resized.1 == 0 {
            return None;
        }
        let (rows, columns) = (Crop::new(resized.0, height), Crop::new(resized.1, width));
        let window = Window { rows: rows.kept(resized.0, height), columns: columns.kept(resized.1, width) };
        let part = resample::resize(&image, resized, self.interpolation, &window);
        drop(image);
        let mut input = Vec::with_capacity(channels * height * width);
        for channel in 0..channels {
            let table = self.table(channel);
            let fill = if self.crop_mode == CropMode::Border { self.fill(channel) } else { 0 };
            let start = input.len();
            input.resize(start + height * width, table[usize::from(fill)]);
            let plane = &mut input[start..];
            let stored = part.data.chunks_exact(part.width * channels);
            for (out, row) in plane.chunks_exact_mut(width).skip(rows.padding).zip(stored) {
                let pixels = row.iter().skip(channel).step_by(channels);
                for (value, &pixel) in out[columns.padding..].iter_mut().zip(pixels) {
                    *value = table[usize::from(pixel)];
                }
            }
        }
        Some(input)
    }

    /// What each grey level of a channel becomes, in float32: divided by 255, less the mean, divided by the deviation.
    fn table(&self, channel: usize) -> [f32; 256] {
        let (mean, std) = (self.mean[channel] as f32, self.std[channel] as f32);
        std::array::from_fn(|level| (level as f32 / 255.0 - mean) / std)
    }

    /// The grey level of a border.
    fn fill(&self, channel: usize) -> u8 {
        (255.0 * self.mean[channel]).round_ties_even() as u8
    }
}

/// The largest side that an image is scaled to before it is cropped.
const MAX_SCALED_SIDE: usize = 64 << 10;

/// Where the input lies in the resized image, along one axis.
struct Crop {
    /// Pixels of the resized image before it.
    first: usize,
    /// Pixels of the input before the resized image, where that is smaller.
    padding: usize,
}

impl Crop {
    fn new(resized: usize, side: usize) -> Crop {
        if side > resized {
            Crop { first: 0, padding: (side - resized) / 2 }
        } else {
            Crop { first: ((resized - side) as f64 / 2.0).round_ties_even() as usize, padding: 0 }
        }
    }

    /// The pixels of the resized image that the input shows.
    fn kept(&self, resized: usize, side: usize) -> std::ops::Range<usize> {
        self.first..self.first + resized.min(side)
    }
}

/// Reads a key of the configuration into `place`, if it is there and not null.
fn read<T>(
    config: &Map<String, Value>,
    key: &'static str,
    needed: &str,
    parse: impl Fn(&Value) -> Option<T>,
    place: &mut T,
) -> Result<(), PreprocessingProblem> {
    let Some(value) = config.get(key).filter(|value| !value.is_null()) else { return Ok(()) };
    let problem = || PreprocessingProblem::Value { key, found: value.to_string(), needed: needed.to_owned() };
    *place = parse(value).ok_or_else(problem)?;
    Ok(())
}
