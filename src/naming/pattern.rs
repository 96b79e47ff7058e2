//! The regular expressions of tables.

use regex_automata::meta::{Builder, Config, Regex};

/// Bytes of the largest expression, compiled: what the crate `regex` allows.
const MOST: usize = 10 << 20;

/// A regular expression as the crate `regex` has them, by the same engine. It is held against a few hundred short names, so that it
/// does without what makes searches of long texts faster and compiling ten times slower.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(text: &str) -> Result<Pattern, String> {
        let config = Config::new().auto_prefilter(false).onepass(false).dfa(false).nfa_size_limit(Some(MOST));
        Builder::new().configure(config).build(text).map(Pattern).map_err(|error| match error.syntax_error() {
            Some(syntax) => syntax.to_string(),
            None if error.size_limit().is_some() => format!("compiled, it exceeds the size limit of {MOST} bytes"),
            None => error.to_string(),
        })
    }

    /// Whether it is found in `name`.
    pub(super) fn is_match(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    /// What each of the `groups` captures in `name`; `None` if the expression is not found in it.
    pub(super) fn captures<'n, const N: usize>(
        &self,
        name: &'n str,
        groups: [&str; N],
    ) -> Option<[Option<&'n str>; N]> {
        let mut captures = self.0.create_captures();
        self.0.captures(name, &mut captures);
        captures.is_match().then(|| groups.map(|group| Some(&name[captures.get_group_by_name(group)?.range()])))
    }
}

/// What every name ends with that the expression is found in, read off its text without compiling it: of expressions of the kind
/// that tables are made of, `(?:^|\.)blocks\.[0-9]+\.attn\.qkv\.weight$`. Empty of any other.
pub(super) fn tail(text: &str) -> String {
    let mut tail = String::new();
    let Some(mut rest) = text.strip_suffix('$') else { return tail };
    rest = rest.strip_prefix("(?:^|").and_then(|rest| Some(rest.split_once(')')?.1)).unwrap_or(rest);
    while let Some(first) = rest.chars().next() {
        if let Some(more) = rest.strip_prefix("[0-9]+") {
            tail.clear();
            rest = more;
        } else if let Some(more) = rest.strip_prefix(r"\.") {
            tail.push('.');
            rest = more;
        } else if first.is_ascii_alphanumeric() || "_/".contains(first) {
            tail.push(first);
            rest = &rest[1..];
        } else {
            return String::new();
        }
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_end_with_is_read_off_simple_expressions() {
        for (text, expected) in [
            (r"(?:^|\.)blocks\.[0-9]+\.attn\.qkv\.weight$", ".attn.qkv.weight"),
            (r"(?:^|/)Transformer/encoderblock_[0-9]+/query/kernel$", "/query/kernel"),
            (r"(?:^|vision_model\.)head\.probe$", "head.probe"),
            (r"^cls_token$", ""),
            (r"cls_token$", "cls_token"),
            (r"lambda_[0-9]+$", ""),
            (r"(?:^|\.)(?:a|b)$", ""),
            (r"(?:^|\(x)\)a$", ""),
            ("a|b$", ""),
            ("a?$", ""),
            ("a.b$", ""),
            (r"a\$", ""),
            ("é$", ""),
            ("(?i)a$", ""),
            ("a", ""),
            ("", ""),
        ] {
            assert_eq!(tail(text), expected, "{text}");
        }
        for key in super::super::family::tables().unwrap().iter().flat_map(super::super::family::Table::evidence_keys) {
            let name = key.split(')').next_back().unwrap().replace("[0-9]+", "11").replace(['\\', '$'], "");
            let tail = tail(&key);
            assert!(tail.is_empty() || Pattern::new(&key).unwrap().is_match(&name) && name.ends_with(&tail), "{key}");
        }
    }

    #[test]
    fn expressions_are_those_of_the_crate_regex() {
        let names = ["blocks.0.attn.qkv.weight", "module.blocks.11.mlp.fc1.bias", "é.weight", "", "decoder_blocks.0.x"];
        let texts = [
            r"(?:^|\.)blocks\.[0-9]+\.attn\.qkv\.weight$",
            r"^(?:(?<N>[0-9]{1,6}))$",
            r"(?<any>.+)\.(?<leaf>\w+)$",
            "",
            "é",
        ];
        for text in texts {
            let (ours, theirs) = (Pattern::new(text).unwrap(), regex::Regex::new(text).unwrap());
            for name in names {
                assert_eq!(ours.is_match(name), theirs.is_match(name), "{text} {name}");
                let groups = ["N", "any", "leaf"];
                let expected =
                    theirs.captures(name).map(|found| groups.map(|group| found.name(group).map(|m| m.as_str())));
                assert_eq!(ours.captures(name, groups), expected, "{text} {name}");
            }
        }
        for wrong in ["(", r"\x", "(?<N>a)(?<N>b)", "[z-a]", r"(?:\w{1000}){1000}"] {
            let ours = Pattern::new(wrong).unwrap_err();
            match regex::Regex::new(wrong).unwrap_err() {
                regex::Error::CompiledTooBig(most) => assert!(ours.contains(&format!("size limit of {most} bytes"))),
                theirs => assert_eq!(ours, theirs.to_string()),
            }
        }
    }
}
