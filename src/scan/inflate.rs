//! Compressed data, expanded within bounds.

use flate2::{Crc, Decompress, FlushDecompress, Status};

/// How deflated data is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrap {
    None,
    Zlib,
    Gzip,
}

/// What came of expanding.
pub(super) struct Inflated {
    /// The beginning, up to the bytes asked for.
    pub(super) head: Vec<u8>,
    /// All the bytes that came out.
    pub(super) total: u64,
    pub(super) crc: u32,
    /// Bytes of the input that were used.
    pub(super) used: usize,
    /// The end of the compressed data was reached.
    pub(super) complete: bool,
    /// It was given up because too much came out.
    pub(super) bomb: bool,
}

/// Where the deflated data begins behind a gzip header.
fn gzip_header(data: &[u8]) -> Option<usize> {
    let flags = *data.get(3)?;
    let mut at = 10;
    if flags & 4 != 0 {
        at += 2 + usize::from(u16::from_le_bytes(*data.get(at..)?.first_chunk()?));
    }
    for bit in [8, 16] {
        if flags & bit != 0 {
            at += memchr::memchr(0, data.get(at..)?)? + 1;
        }
    }
    Some(at + if flags & 2 != 0 { 2 } else { 0 })
}

/// Expands `data`; keeps the first `keep` bytes, shows the rest piece by piece to `rest` (each with the end of the one before), and
/// stops after `limit` bytes.
pub(super) fn inflate(
    data: &[u8],
    wrap: Wrap,
    keep: usize,
    limit: u64,
    rest: &mut dyn FnMut(&[u8], usize),
) -> Inflated {
    /// Bytes that come out at a time.
    const STEP: usize = 1 << 18;
    /// Bytes of a piece that are shown again with the next, as context.
    const OVERLAP: usize = 4096;
    let skip = match wrap {
        Wrap::Gzip => gzip_header(data).unwrap_or(data.len()).min(data.len()),
        _ => 0,
    };
    let packed = &data[skip..];
    let mut machine = Decompress::new(wrap == Wrap::Zlib);
    let mut out = Inflated { head: vec![], total: 0, crc: 0, used: 0, complete: false, bomb: false };
    let mut crc = Crc::new();
    let mut piece: Vec<u8> = Vec::with_capacity(STEP);
    let mut context: Vec<u8> = vec![];
    loop {
        piece.clear();
        let before = (machine.total_in(), machine.total_out());
        let status = machine.decompress_vec(&packed[before.0 as usize..], &mut piece, FlushDecompress::None);
        crc.update(&piece);
        out.total += piece.len() as u64;
        let room = keep.saturating_sub(out.head.len()).min(piece.len());
        out.head.extend_from_slice(&piece[..room]);
        if room < piece.len() {
            let overlap = context.len();
            context.extend_from_slice(&piece[room..]);
            rest(&context, overlap);
            let cut = context.len().saturating_sub(OVERLAP);
            context.drain(..cut);
        }
        match status {
            Ok(Status::StreamEnd) => out.complete = true,
            Ok(_) if (machine.total_in(), machine.total_out()) != before => {
                if out.total <= limit {
                    continue;
                }
                out.bomb = true;
            }
            _ => {}
        }
        break;
    }
    out.used = skip + machine.total_in() as usize;
    if out.complete && wrap == Wrap::Gzip {
        out.used = (out.used + 8).min(data.len());
    }
    out.crc = crc.sum();
    out
}
