//! Image files as pixels: what Pillow's `Image.open(file).convert("RGB")` gives.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::Path;

use image::ImageDecoder;

use super::SampleProblem;

/// The largest image file.
pub const MAX_IMAGE_FILE_BYTES: u64 = 512 << 20;

/// The largest width or height of an image, in pixels.
pub const MAX_IMAGE_SIDE: usize = 16 << 10;

/// The largest decoded image, and the most that its decoder may use.
pub const MAX_IMAGE_BYTES: u64 = 512 << 20;

/// Scans of a progressive JPEG. Encoders write about ten; each takes as long as the image is large.
const MAX_SCANS: usize = 500;

/// An image of 8 bits per channel: row by row, the channels of a pixel side by side.
#[derive(Clone, Debug)]
pub(super) struct Pixels {
    pub(super) width: usize,
    pub(super) height: usize,
    /// 1 (grey) or 3 (RGB).
    pub(super) channels: usize,
    pub(super) data: Vec<u8>,
}

impl Pixels {
    /// Some of its rows and columns.
    pub(super) fn part(&self, rows: &Range<usize>, columns: &Range<usize>) -> Pixels {
        let channels = self.channels;
        let mut data = Vec::with_capacity(rows.len() * columns.len() * channels);
        for row in rows.clone() {
            let start = (row * self.width + columns.start) * channels;
            data.extend_from_slice(&self.data[start..start + columns.len() * channels]);
        }
        Pixels { width: columns.len(), height: rows.len(), channels, data }
    }

    /// One channel of luma, by the weights of ITU-R 601-2 in 16-bit fixed point. Grey stays what it is.
    pub(super) fn into_grey(self) -> Pixels {
        if self.channels == 1 {
            return self;
        }
        let luma = |&[r, g, b]: &[u8; 3]| {
            ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
        };
        let data = self.data.as_chunks::<3>().0.iter().map(luma).collect();
        Pixels { channels: 1, data, ..self }
    }

    /// Three channels, those of grey being equal.
    pub(super) fn into_rgb(self) -> Pixels {
        if self.channels == 3 {
            return self;
        }
        let data = self.data.iter().flat_map(|&grey| [grey; 3]).collect();
        Pixels { channels: 3, data, ..self }
    }

    /// Pixels of `stored` channels (grey, grey and alpha, RGB, RGB and alpha), without the alpha.
    pub(super) fn without_alpha(width: usize, height: usize, stored: usize, data: Vec<u8>) -> Pixels {
        let channels = if stored < 3 { 1 } else { 3 };
        let data = if stored == channels {
            data
        } else {
            data.chunks_exact(stored.max(1)).flat_map(|pixel| &pixel[..channels]).copied().collect()
        };
        Pixels { width, height, channels, data }
    }
}

/// The bytes of an image file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, SampleProblem> {
    // Asked before it is opened: opening a pipe waits for somebody to write.
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(SampleProblem::NotAFile);
    }
    if meta.len() > MAX_IMAGE_FILE_BYTES {
        return Err(SampleProblem::FileTooLarge);
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    File::open(path)?.take(MAX_IMAGE_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The pixels of an image file, recognised by its content; grey or RGB, as it is stored.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, SampleProblem> {
    match bytes {
        [] => Err(SampleProblem::EmptyFile),
        [0x89, b'P', b'N', b'G', ..] => png(bytes),
        [0xff, 0xd8, 0xff, ..] => jpeg(bytes),
        [b'B', b'M', ..] => {
            let decoder = image::codecs::bmp::BmpDecoder::new(Cursor::new(bytes));
            of_image(decoder.map_err(|error| damaged("BMP", error))?, "BMP")
        }
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            let decoder = image::codecs::webp::WebPDecoder::new(Cursor::new(bytes));
            of_image(decoder.map_err(|error| damaged("WebP", error))?, "WebP")
        }
        _ => Err(SampleProblem::Format),
    }
}

fn damaged(format: &'static str, error: impl std::fmt::Display) -> SampleProblem {
    SampleProblem::Decode { format, reason: error.to_string() }
}

/// Checks the size of an image before anything is allocated for it.
fn check(width: usize, height: usize) -> Result<(), SampleProblem> {
    if width > MAX_IMAGE_SIDE || height > MAX_IMAGE_SIDE || (width * height) as u64 * 3 > MAX_IMAGE_BYTES {
        return Err(SampleProblem::TooLarge { width, height });
    }
    if width == 0 || height == 0 {
        return Err(SampleProblem::NoPixels);
    }
    Ok(())
}

fn png(bytes: &[u8]) -> Result<Pixels, SampleProblem> {
    let limits = png::Limits { bytes: MAX_IMAGE_BYTES as usize };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    // Palettes become colours, fewer than 8 bits become 8.
    decoder.set_transformations(png::Transformations::EXPAND);
    let header = decoder.read_header_info().map_err(|error| damaged("PNG", error))?;
    let (width, height) = (header.width as usize, header.height as usize);
    let grey = header.color_type == png::ColorType::Grayscale;
    check(width, height)?;
    let mut reader = decoder.read_info().map_err(|error| damaged("PNG", error))?;
    let size = reader.output_buffer_size().filter(|&size| size as u64 <= MAX_IMAGE_BYTES);
    let mut data = vec![0; size.ok_or(SampleProblem::TooLarge { width, height })?];
    reader.next_frame(&mut data).map_err(|error| damaged("PNG", error))?;
    let (color, depth) = reader.output_color_type();
    if depth == png::BitDepth::Sixteen {
        // Pillow keeps 16 bits of grey alone, and clips what is above 255 when it converts; of everything else it reads the
        // high bytes.
        let narrow = |&[high, low]: &[u8; 2]| {
            if !grey {
                high
            } else if high == 0 {
                low
            } else {
                255
            }
        };
        data = data.as_chunks::<2>().0.iter().map(narrow).collect();
    }
    Ok(Pixels::without_alpha(width, height, color.samples(), data))
}

fn jpeg(bytes: &[u8]) -> Result<Pixels, SampleProblem> {
    use libjpeg_turbo_rs::{DecodeLimits, Decoder, JpegError, PixelFormat};
    let problem = |error: JpegError| damaged("JPEG", error);
    let limits = DecodeLimits { max_memory: Some(MAX_IMAGE_BYTES), max_scans: MAX_SCANS, ..DecodeLimits::default() };
    let mut decoder = Decoder::new_with_limits(bytes, limits).map_err(problem)?;
    let header = decoder.header();
    check(header.width.into(), header.height.into())?;
    // The decoder takes the fourth component (black) to be as large as the first, and panics where it is smaller.
    if let [first, _, _, black] = header.components.as_slice()
        && (first.horizontal_sampling, first.vertical_sampling) != (black.horizontal_sampling, black.vertical_sampling)
    {
        return Err(damaged("JPEG", "its black is stored at another resolution than its first colour"));
    }
    decoder.set_output_format(PixelFormat::Rgb);
    let image = decoder.decode_image().map_err(problem)?;
    if image.data.len() != image.width * image.height * 3 {
        return Err(damaged("JPEG", "the decoder gave another number of pixels than the header says"));
    }
    Ok(Pixels { width: image.width, height: image.height, channels: 3, data: image.data })
}

/// An image of 8 bits per channel that the crate `image` reads.
fn of_image(mut decoder: impl ImageDecoder, format: &'static str) -> Result<Pixels, SampleProblem> {
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check(width, height)?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_IMAGE_BYTES);
    decoder.set_limits(limits).map_err(|error| damaged(format, error))?;
    let color = decoder.color_type();
    if color.bytes_per_pixel() != color.channel_count() {
        return Err(damaged(format, "it has more than 8 bits per channel"));
    }
    let size = width * height * usize::from(color.channel_count());
    if size as u64 > MAX_IMAGE_BYTES {
        return Err(SampleProblem::TooLarge { width, height });
    }
    let mut data = vec![0; size];
    decoder.read_image(&mut data).map_err(|error| damaged(format, error))?;
    Ok(Pixels::without_alpha(width, height, color.channel_count().into(), data))
}
