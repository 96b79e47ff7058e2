//! The regular expressions of tables.

use regex::Regex;

/// Sequences of the largest plain expression, and how deep groups are in one another.
const MOST_WAYS: usize = 16;
const DEEPEST: usize = 3;
/// Bytes of the longest plain expression: what is made of one grows faster than it does.
const LONGEST: usize = 1000;

/// A regular expression as the crate `regex` has them. Nearly all that tables have are plain, and are held against names without
/// being compiled: there are hundreds of them, and compiling one takes longer than holding it against a few hundred names.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    Plain(Plain),
    Other(Regex),
}

/// An expression such as `(?:^|\.)blocks\.[0-9]+\.attn\.(?:qkv|proj)\.weight$`.
#[derive(Clone, Debug)]
pub(super) struct Plain {
    begin: Begin,
    /// The sequences that it stands for, one for each choice of alternatives.
    ways: Vec<Vec<Piece>>,
    /// Whether the name has to end with it.
    to_end: bool,
}

/// Where an expression may be found.
#[derive(Clone, Debug)]
enum Begin {
    Anywhere,
    /// Where the name begins.
    Start,
    /// There, or behind that text.
    After(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// All digits that follow, one or more: what comes then is no digit.
    Digits,
}

impl Pattern {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(text: &str) -> Result<Pattern, String> {
        if let Some(plain) = Plain::read(text) {
            return Ok(Pattern::Plain(plain));
        }
        Regex::new(text).map(Pattern::Other).map_err(|error| error.to_string())
    }

    /// Whether it is found in `name`.
    pub(super) fn is_match(&self, name: &str) -> bool {
        match self {
            Pattern::Plain(plain) => plain.is_match(name),
            Pattern::Other(regex) => regex.is_match(name),
        }
    }
}

impl Plain {
    /// Reads an expression, if it is a plain one.
    fn read(text: &str) -> Option<Plain> {
        if text.len() > LONGEST {
            return None;
        }
        let (begin, rest) = if let Some(rest) = text.strip_prefix("(?:^|") {
            let mut rest = rest;
            let before = literal(&mut rest);
            let rest = rest.strip_prefix(')').filter(|_| !before.is_empty())?;
            (Begin::After(before), rest)
        } else if let Some(rest) = text.strip_prefix('^') {
            (Begin::Start, rest)
        } else {
            (Begin::Anywhere, text)
        };
        let end = rest.strip_suffix('$');
        let mut rest = end.unwrap_or(rest);
        let ways = sequences(&mut rest, 0)?;
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        // After all digits that there are comes no digit, so that nothing has to be tried with fewer of them.
        let greedy = |way: &Vec<Piece>| {
            !way.windows(2).any(|pair| match pair {
                [Piece::Digits, Piece::Text(text)] => text.starts_with(|c: char| c.is_ascii_digit()),
                [Piece::Digits, Piece::Digits] => true,
                _ => false,
            })
        };
        // No digit is gone through for more than one place to begin at.
        let starts = |way: &Vec<Piece>| {
            let apart = match &begin {
                Begin::Start => true,
                Begin::After(before) => !is_digits(before),
                Begin::Anywhere => false,
            };
            match way.as_slice() {
                [] => !matches!(begin, Begin::Anywhere),
                [Piece::Text(text), ..] => apart || !is_digits(text) || !way.contains(&Piece::Digits),
                [Piece::Digits, ..] => apart,
            }
        };
        (rest.is_empty() && ways.iter().all(greedy) && ways.iter().all(starts)).then_some(Plain {
            begin,
            ways,
            to_end: end.is_some(),
        })
    }

    fn is_match(&self, name: &str) -> bool {
        let ends = |way: &&Vec<Piece>| match way.last() {
            Some(Piece::Text(text)) if self.to_end => name.ends_with(text.as_str()),
            _ => true,
        };
        self.ways.iter().filter(ends).any(|way| {
            let fits = |start: usize| self.fits(way, &name[start..]);
            match &self.begin {
                Begin::Start => fits(0),
                Begin::Anywhere => (0..name.len()).filter(|at| name.is_char_boundary(*at)).any(fits),
                Begin::After(before) => {
                    let mut behind =
                        (before.len()..=name.len()).filter(|at| name.as_bytes()[..*at].ends_with(before.as_bytes()));
                    fits(0) || behind.any(fits)
                }
            }
        })
    }

    /// Whether a name goes on with these pieces.
    fn fits(&self, way: &[Piece], name: &str) -> bool {
        let mut rest = name;
        for piece in way {
            let after = match piece {
                Piece::Text(text) => rest.strip_prefix(text.as_str()),
                Piece::Digits => {
                    Some(rest.trim_start_matches(|c: char| c.is_ascii_digit())).filter(|after| after.len() < rest.len())
                }
            };
            let Some(after) = after else { return false };
            rest = after;
        }
        !self.to_end || rest.is_empty()
    }
}

/// The sequences that what comes first of `rest` stands for, as far as it is plain; `depth` groups are open.
fn sequences(rest: &mut &str, depth: usize) -> Option<Vec<Vec<Piece>>> {
    let mut ways = vec![Vec::new()];
    loop {
        let text = literal(rest);
        if !text.is_empty() {
            ways.iter_mut().for_each(|way| push(way, &Piece::Text(text.clone())));
        } else if let Some(after) = rest.strip_prefix("[0-9]+") {
            *rest = after;
            ways.iter_mut().for_each(|way| way.push(Piece::Digits));
        } else if let Some(inner) = rest.strip_prefix("(?:").filter(|_| depth < DEEPEST) {
            *rest = inner;
            let more = choices(rest, depth + 1)?;
            if ways.len() * more.len() > MOST_WAYS {
                return None;
            }
            let with = |way: &Vec<Piece>, more: &Vec<Piece>| {
                let mut way = way.clone();
                more.iter().for_each(|piece| push(&mut way, piece));
                way
            };
            ways = ways.iter().flat_map(|way| more.iter().map(|more| with(way, more))).collect();
        } else if rest.is_empty() || depth > 0 && rest.starts_with(['|', ')']) {
            return Some(ways);
        } else {
            return None;
        }
    }
}

/// The sequences of a group's alternatives, up to its end.
fn choices(rest: &mut &str, depth: usize) -> Option<Vec<Vec<Piece>>> {
    let mut ways = sequences(rest, depth)?;
    while let Some(next) = rest.strip_prefix('|') {
        *rest = next;
        ways.extend(sequences(rest, depth)?);
    }
    *rest = rest.strip_prefix(')')?;
    if let Some(after) = rest.strip_prefix('?') {
        *rest = after;
        ways.push(Vec::new());
    }
    Some(ways)
}

/// The text that `rest` begins with.
fn literal(rest: &mut &str) -> String {
    let mut text = String::new();
    loop {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_/".contains(c)).unwrap_or(rest.len());
        let (plain, after) = rest.split_at(end);
        text.push_str(plain);
        *rest = after;
        let Some(after) = after.strip_prefix(r"\.") else { return text };
        text.push('.');
        *rest = after;
    }
}

/// Adds a piece to a sequence.
fn push(way: &mut Vec<Piece>, piece: &Piece) {
    match (way.last_mut(), piece) {
        (Some(Piece::Text(text)), Piece::Text(more)) => text.push_str(more),
        _ => way.push(piece.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expressions of the tables, and others of both kinds.
    fn expressions() -> Vec<String> {
        let tables = super::super::family::tables().unwrap();
        let mut all: Vec<String> = tables.iter().flat_map(|table| table.expressions()).collect();
        all.extend(PLAIN.iter().chain(OTHERS).map(|text| (*text).to_owned()));
        all
    }

    const PLAIN: &[&str] = &[
        "^",
        "^$",
        "a",
        "aa$",
        "^a[0-9]+",
        "a[0-9]+$",
        r"a[0-9]+\.[0-9]+b",
        "(?:^|ab)c(?:d|e|)$",
        "(?:^|aba)x",
        "x(?:a(?:b|c)|[0-9]+)y",
        "(?:a|b)(?:c|d)[0-9]+$",
        "^(?:a)",
        "(?:a)?b",
        r"^(?:a\.)?(?:b|c)$",
        "^[0-9]+b",
        r"(?:^|\.)[0-9]+b$",
        r"(?:^|\.)1[0-9]+",
        "a1[0-9]+b",
        "11",
        "(?:^|1)2b",
    ];

    const OTHERS: &[&str] = &[
        "",
        "$",
        "a|b",
        "a|b$",
        "a?$",
        "a+",
        "a[0-9]+?",
        "a[0-9]++",
        "a[0-9]+1",
        "[0-9]+a",
        "1[0-9]+b",
        "(?:a|1)[0-9]+b",
        "(?:^|1)[0-9]+b",
        "(?:^|1)2[0-9]+b",
        "(?:a[0-9]+)(?:1|b)",
        "a{2}",
        "a.b$",
        r"a\$",
        r"\d",
        r"(?:^|\(x)\)a$",
        "(?:^|a|b)c",
        "(?:^|)c",
        "(?:|b)$",
        "(?:a)??b",
        "(?:a)?",
        "(?i)a$",
        "(a)",
        "\u{e9}$",
        "(?:(?:(?:(?:a))))",
        "(?:a|b)(?:a|b)(?:a|b)(?:a|b)(?:a|b)",
        "(?<N>[0-9]{1,6})",
        "a$b",
        "a^b",
    ];

    #[test]
    fn plain_expressions_are_told_from_others() {
        for (texts, plain) in [(PLAIN, true), (OTHERS, false)] {
            for text in texts {
                assert_eq!(matches!(Pattern::new(text), Ok(Pattern::Plain(_))), plain, "{text}");
            }
        }
        let long = "a".repeat(LONGEST);
        assert!(Plain::read(&long).is_some() && Plain::read(&format!("{long}a")).is_none());
        let tables = super::super::family::tables().unwrap();
        for text in tables.iter().flat_map(|table| table.expressions()) {
            assert!(Plain::read(&text).is_some(), "{text}");
        }
    }

    #[test]
    fn names_are_found_as_the_crate_regex_finds_them() {
        // What each expression is found in, as it is, with something before and behind it, and without one of its first bytes.
        let expressions = expressions();
        let mut names: Vec<String> = [
            "", "a", "aa", "aab", "11", "2b", "112b", ".123b", "12b.11b", "a1", "a12.3b", "ababa", "abac", "ababax",
            "abcd", "c", "xaby", "x12y", "\u{e9}", "bd7\n",
        ]
        .map(str::to_owned)
        .to_vec();
        for text in &expressions {
            let plain = text.replace("(?:^|", "").replace(['^', '$', '\\'], "").replace("[0-9]+", "11");
            for way in [0, 1, 2] {
                let chosen: String = plain
                    .split("(?:")
                    .map(|part| match part.split_once(')') {
                        Some((choices, rest)) if choices.contains('|') => {
                            format!("{}{rest}", choices.split('|').nth(way).unwrap_or_default())
                        }
                        _ => part.replace(')', ""),
                    })
                    .collect();
                names.extend(["module.", "x", "\u{e9}.", "1"].map(|before| format!("{before}{chosen}")));
                names.extend([".weight", "x", "1", "\n"].map(|behind| format!("{chosen}{behind}")));
                names.extend((0..chosen.len().min(40)).filter(|at| chosen.is_ascii() && *at < chosen.len()).map(
                    |at| {
                        let mut shorter = chosen.clone();
                        shorter.remove(at);
                        shorter
                    },
                ));
                names.push(chosen);
            }
        }
        names.sort_unstable();
        names.dedup();
        let mut found = 0;
        for text in &expressions {
            let (ours, theirs) = (Pattern::new(text).unwrap(), Regex::new(text).unwrap());
            for name in &names {
                assert_eq!(ours.is_match(name), theirs.is_match(name), "{text} {name}");
                found += usize::from(theirs.is_match(name) && matches!(ours, Pattern::Plain(_)));
            }
        }
        assert!(found > 1000, "{found}");
    }

    #[test]
    fn what_is_wrong_is_said_as_the_crate_regex_does() {
        for wrong in ["(", r"\x", "(?<N>a)(?<N>b)", "[z-a]", r"(?:\w{1000}){1000}", "(?:a", "a)"] {
            assert_eq!(Pattern::new(wrong).unwrap_err(), Regex::new(wrong).unwrap_err().to_string());
        }
    }
}
