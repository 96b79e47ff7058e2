//! Regular expressions that are compiled when they are first used: all tables together have hundreds, and a run needs few of them.

use std::sync::OnceLock;

use regex::Regex;

/// A regular expression.
#[derive(Clone, Debug)]
pub(super) struct LazyRegex {
    text: String,
    compiled: OnceLock<Result<Regex, String>>,
}

impl LazyRegex {
    pub(super) fn new(text: impl Into<String>) -> LazyRegex {
        LazyRegex { text: text.into(), compiled: OnceLock::new() }
    }

    /// The expression, compiled.
    ///
    /// # Errors
    /// What is wrong with it. Those of the program's own tables are right: a test compiles them.
    pub(super) fn get(&self) -> Result<&Regex, String> {
        self.compiled
            .get_or_init(|| Regex::new(&self.text).map_err(|error| error.to_string()))
            .as_ref()
            .map_err(Clone::clone)
    }

    /// Whether it is found in `text`.
    pub(super) fn is_match(&self, text: &str) -> bool {
        self.get().is_ok_and(|regex| regex.is_match(text))
    }
}
