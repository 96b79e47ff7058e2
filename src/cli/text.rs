//! Numbers as people read them.

use std::path::PathBuf;

use serde_json::{Value, json};

/// Bytes with a decimal unit: `346 MB`, `1.26 MB`, `512 B`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A number of things of which there has to be one at least.
pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("it is no number from 1 up".to_owned()),
    }
}

/// A size as the Hugging Face libraries take it: `2GB`, `500MB` (decimal), `1GiB` (binary), or bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 11] = [
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
        ("kb", 1000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
        ("bytes", 1),
        ("b", 1),
        ("", 1),
    ];
    let lower = text.trim().to_ascii_lowercase();
    let parsed =
        UNITS.iter().find_map(|(unit, factor)| lower.strip_suffix(unit).map(|number| (number.trim(), *factor)));
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let size = parsed.filter(|(number, _)| plain(number)).and_then(|(number, factor)| match number.parse::<u64>() {
        Ok(number) => number.checked_mul(factor),
        // A float of this size, once cut off, is a whole number.
        Err(_) => {
            number.parse::<f64>().ok().map(|number| number * factor as f64).filter(|n| *n < 1e18).map(|n| n as u64)
        }
    });
    size.filter(|&size| size > 0).ok_or_else(|| "write a size as 2GB, 500MB, 1GiB, or in bytes".to_owned())
}

/// Files of an output with their sizes, for `--json`.
pub(super) fn files(files: &[(PathBuf, u64)]) -> Value {
    files.iter().map(|(path, bytes)| json!({"file": path.to_string_lossy(), "bytes": bytes})).collect()
}

/// An integer with commas: `85,798,656`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count and its noun: `1 layer`, `24 layers`.
pub(super) fn counted(n: usize, noun: &str) -> String {
    format!("{} {noun}{}", count(n as u64), if n == 1 { "" } else { "s" })
}

/// A number of up to `digits` significant digits, without trailing zeros.
pub(super) fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-4..7).contains(&magnitude) {
        return format!("{value:.*e}", digits.saturating_sub(1));
    }
    let decimals = usize::try_from(digits as i32 - 1 - magnitude).unwrap_or(0);
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// At most `width` characters of a text, the rest replaced by an ellipsis.
pub(super) fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Control characters, and those that change the direction of text, made visible, so that a name or value from a file
/// cannot steer the terminal.
pub(super) fn printable(text: &str) -> String {
    let steers = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().flat_map(|c| if steers(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_256_351), "1.26 MB");
        assert_eq!(bytes(346_284_714), "346 MB");
        assert_eq!(bytes(999_999), "1.00 MB");
        assert_eq!((size("2GB"), size("500 mb"), size("1GiB")), (Ok(2_000_000_000), Ok(500_000_000), Ok(1 << 30)));
        // huggingface_hub 2.4: int(float("1.1") * 10**9), and so on.
        assert_eq!((size("1.1GB"), size("0.3KB"), size("1000")), (Ok(1_100_000_000), Ok(300), Ok(1000)));
        for text in ["", "GB", "0", "0.1B", "-1GB", "1e3", "nan", "2 PB", "1..2MB", "99999999999TB"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(count(85_798_656), "85,798,656");
        assert_eq!(count(7), "7");
        assert_eq!(counted(1, "layer"), "1 layer");
        assert_eq!(significant(0.1, 4), "0.1");
        assert_eq!(significant(-0.352_123, 4), "-0.3521");
        assert_eq!(significant(1e-9, 3), "1.00e-9");
        assert_eq!(significant(123_456.0, 3), "123456");
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(printable("a\x1b[31m\u{202e}"), "a\\u{1b}[31m\\u{202e}");
    }
}
