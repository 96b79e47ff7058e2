//! Pickles in bytes that should hold none: weights, pictures, gaps between entries.
//!
//! Random bytes often look like the beginning of a pickle. A place counts only if the opcodes that begin there import a
//! name that looks like one of Python, and go on to call it or to reach the end mark. Three bytes give such places away:
//! 0x80 (PROTO), the newline behind a name (GLOBAL, INST), and 0x93 (STACK_GLOBAL).

use super::report::Level;
use super::trace::{Options, Outcome, trace};

/// Opcodes without a name after which a place is given up.
const PATIENCE: usize = 256;
/// The longest name that is looked for behind a GLOBAL without PROTO, in bytes.
const NAME: usize = 128;
/// How much of the data a pickle may take that begins at one place, in bytes.
const WINDOW: usize = 1 << 20;

/// What is left to spend on places that look like pickles, in bytes of opcodes followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget(pub(super) u64);

/// A pickle, where it begins, and what it does.
pub(super) struct Hit {
    pub(super) at: usize,
    pub(super) outcome: Outcome,
}

/// Follows the opcodes at `at`, if that is worth it.
fn attempt(data: &[u8], at: usize, options: Options, marked: bool, budget: &mut Budget) -> Option<Hit> {
    let window = &data[..data.len().min(at.saturating_add(WINDOW))];
    let outcome = trace(window, at, Options { patience: Some(PATIENCE), ..options });
    budget.0 = budget.0.saturating_sub((outcome.end - at) as u64 + 16);
    let worst = outcome.names.iter().map(|name| name.level).max().unwrap_or(Level::Allowed);
    let acts = outcome.complete || outcome.calls > 0 || (marked && worst == Level::Dangerous);
    let named = outcome.names.iter().any(|name| !name.name.starts_with('<'));
    (named && outcome.plausible && acts).then_some(Hit { at, outcome })
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.'
}

/// Where a GLOBAL or INST begins whose second line ends with the newline at `newline`.
fn global_before(data: &[u8], newline: usize) -> Option<usize> {
    let lowest = newline.saturating_sub(2 * NAME);
    let back = |from: usize| (lowest..from).rev().take_while(|&i| is_name(data[i])).last();
    let name = back(newline)?;
    let middle = name.checked_sub(1).filter(|&i| i >= lowest && data[i] == b'\n')?;
    let module = back(middle)?;
    // The opcode is a letter too, so that the run of letters begins with it.
    (lowest..middle).find(|&i| i >= module && matches!(data[i], b'c' | b'i') && i + 1 < middle)
}

/// Finds the pickles in `data`. Places before `from` are only context.
pub(super) fn carve(data: &[u8], from: usize, options: Options, budget: &mut Budget, hit: &mut dyn FnMut(Hit)) {
    let mut skip_to = from;
    let mut at = from;
    while let Some(found) = memchr::memchr3(0x80, b'\n', 0x93, &data[at..]) {
        let place = at + found;
        at = place + 1;
        if place < skip_to || budget.0 == 0 {
            if budget.0 == 0 {
                return;
            }
            continue;
        }
        let taken = match data[place] {
            0x80 => match data.get(place + 1) {
                Some(&protocol) if protocol <= 5 => attempt(data, place, options, true, budget),
                _ => None,
            },
            b'\n' => {
                if place == 0 || !is_name(data[place - 1]) {
                    continue;
                }
                text_global(data, place, skip_to, options, budget)
            }
            _ => stack_global(data, place, skip_to, options, budget),
        };
        if let Some(found) = taken {
            skip_to = found.outcome.end.max(place + 1);
            hit(found);
        }
    }
}

/// A pickle around the GLOBAL or INST whose name ends at `newline`.
fn text_global(data: &[u8], newline: usize, lowest: usize, options: Options, budget: &mut Budget) -> Option<Hit> {
    /// How far before an INST its mark may be.
    const BEFORE: usize = 256;
    let start = global_before(data, newline)?;
    // Runs of letters: the opcode may be any `c` or `i` among them.
    let candidates = (start..newline).take_while(|&i| data[i] != b'\n').filter(|&i| matches!(data[i], b'c' | b'i'));
    for at in candidates.take(4) {
        if data[at] == b'c' {
            let marked = at.checked_sub(1).filter(|&mark| mark >= lowest && data[mark] == b'(');
            for start in marked.into_iter().chain([at]) {
                if let Some(found) =
                    attempt(data, start, options, false, budget).filter(|found| found.outcome.calls > 0)
                {
                    return Some(found);
                }
            }
        } else {
            let marks = (lowest.max(at.saturating_sub(BEFORE))..at).rev().filter(|&mark| data[mark] == b'(');
            for mark in marks.take(8) {
                if let Some(found) = attempt(data, mark, options, false, budget).filter(|found| found.outcome.calls > 0)
                {
                    return Some(found);
                }
            }
        }
    }
    None
}

/// A pickle without PROTO around the STACK_GLOBAL at `place`: two short texts before it.
fn stack_global(data: &[u8], place: usize, lowest: usize, options: Options, budget: &mut Budget) -> Option<Hit> {
    let lowest = lowest.max(place.saturating_sub(NAME));
    // SHORT_BINUNICODE length name [MEMOIZE] STACK_GLOBAL
    let end = if place > lowest && data[place - 1] == 0x94 { place - 1 } else { place };
    let text_before = |end: usize| {
        let fits = |&i: &usize| {
            data[i] == 0x8c && i + 2 + usize::from(data[i + 1]) == end && data[i + 2..end].iter().all(|&b| is_name(b))
        };
        (lowest..end.saturating_sub(2)).rev().find(fits)
    };
    let name = text_before(end)?;
    let module = text_before(if name > lowest && data[name - 1] == 0x94 { name - 1 } else { name })?;
    attempt(data, module, options, false, budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(data: &[u8]) -> Vec<(usize, String)> {
        let mut hits = vec![];
        let options = Options { uses: 1000, ..Options::default() };
        carve(data, 0, options, &mut Budget(1 << 20), &mut |hit| {
            hits.push((hit.at, hit.outcome.names[0].name.clone()))
        });
        hits
    }

    #[test]
    fn pickles_are_found_in_the_middle_of_bytes() {
        for (pickle, at) in [
            (&b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R."[..], 0),
            (b"cos\nsystem\n(S'x'\ntR.", 0),
            (b"(S'x'\nios\nsystem\n.", 0),
            (b"(cos\nsystem\nS'x'\no.", 0),
            (b"\x8c\x02os\x94\x8c\x06system\x94\x93\x8c\x01x\x85R.", 0),
        ] {
            let data = [&[0x11; 300][..], pickle, &[0xff; 100]].concat();
            assert_eq!(found(&data), [(300 + at, "os.system".to_owned())], "{pickle:?}");
        }
    }

    #[test]
    fn random_bytes_and_texts_hold_no_pickle() {
        let mut state = 1u64;
        let random: Vec<u8> = (0..4 << 20)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        assert_eq!(found(&random), []);
        assert_eq!(found(b"cat\ndog\nRover\nclass\nname\nitem\n"), []);
        assert_eq!(found(&[0x80; 5000]), []);
        assert_eq!(found(&b"a\n".repeat(5000)), []);
    }
}
