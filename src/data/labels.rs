//! Classes: their names and numbers.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::{DataError, SetProblem};

/// The largest list of samples or classes.
pub const MAX_LIST_BYTES: u64 = 256 << 20;

/// The largest number of a class.
pub const MAX_LABEL: usize = i32::MAX as usize;

/// Which number each class has.
///
/// Several names may have the same number, and numbers may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelMap {
    ids: HashMap<String, usize>,
    names: BTreeMap<usize, String>,
}

impl LabelMap {
    /// The classes in this order, the first being number 0.
    ///
    /// # Errors
    /// [`SetProblem::DuplicateClass`]; [`SetProblem::ClassList`] if there are none.
    pub fn from_names(names: impl IntoIterator<Item = String>) -> Result<LabelMap, SetProblem> {
        LabelMap::from_pairs(names.into_iter().enumerate().map(|(id, name)| (name, id)))
    }

    /// Classes with their numbers.
    ///
    /// # Errors
    /// As [`LabelMap::from_names`], and [`SetProblem::ClassList`] for a number above [`MAX_LABEL`].
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, usize)>) -> Result<LabelMap, SetProblem> {
        let mut map = LabelMap::default();
        for (name, id) in pairs {
            if id > MAX_LABEL {
                return Err(SetProblem::ClassList { found: format!("{name:?} has the number {id}") });
            }
            if map.ids.contains_key(&name) {
                return Err(SetProblem::DuplicateClass { name });
            }
            map.names.entry(id).or_insert_with(|| name.clone());
            map.ids.insert(name, id);
        }
        if map.ids.is_empty() { Err(SetProblem::ClassList { found: "it is empty".to_owned() }) } else { Ok(map) }
    }

    /// Reads a list of classes: a text file with one name per line, the first being number 0; a JSON list of names; or a
    /// JSON object of names and numbers. Files that end in `.json` are JSON, all others are text.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn open(path: impl AsRef<Path>) -> Result<LabelMap, DataError> {
        let path = path.as_ref();
        let text = read_text(path)?;
        let json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let map = if json { LabelMap::from_json(&text) } else { LabelMap::from_lines(&text) };
        map.map_err(|problem| DataError::Set { path: path.to_owned(), problem })
    }

    fn from_lines(text: &str) -> Result<LabelMap, SetProblem> {
        let lines = text.trim_end().lines().map(|line| line.trim().to_owned());
        let names: Vec<String> = lines.collect();
        match names.iter().position(String::is_empty) {
            Some(blank) => Err(SetProblem::ClassList { found: format!("line {} is blank", blank + 1) }),
            None => LabelMap::from_names(names),
        }
    }

    fn from_json(text: &str) -> Result<LabelMap, SetProblem> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| SetProblem::Syntax { reason: error.to_string() })?;
        let wrong = |value: &Value| SetProblem::ClassList { found: shorten(&value.to_string()) };
        match &value {
            Value::Array(names) => {
                let name = |name: &Value| name.as_str().map(str::to_owned).ok_or_else(|| wrong(name));
                LabelMap::from_names(names.iter().map(name).collect::<Result<Vec<_>, _>>()?)
            }
            Value::Object(ids) => {
                let number = |(name, id): (&String, &Value)| {
                    let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
                    id.map(|id| (name.clone(), id)).ok_or_else(|| wrong(&value))
                };
                LabelMap::from_pairs(ids.iter().map(number).collect::<Result<Vec<_>, _>>()?)
            }
            _ => Err(wrong(&value)),
        }
    }

    /// The number of a class.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<usize> {
        self.ids.get(name).copied()
    }

    /// The names of the classes by number; of several names for one number the first that was given.
    #[must_use]
    pub fn names(&self) -> &BTreeMap<usize, String> {
        &self.names
    }
}

/// A label as a list gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Number(usize),
    Text(String),
}

/// The number of a class that a list names or numbers. A name that is in the map is that class, even if it looks like a
/// number.
pub(super) fn resolve(label: Label, map: Option<&LabelMap>, place: impl Fn() -> String) -> Result<usize, SetProblem> {
    let (id, text) = match label {
        Label::Number(id) => (Some(id), id.to_string()),
        Label::Text(text) => match map.and_then(|map| map.id(&text)) {
            Some(id) => return Ok(id),
            None => (number(&text), text),
        },
    };
    id.filter(|id| map.is_none_or(|map| map.names.contains_key(id))).ok_or_else(|| SetProblem::UnknownClass {
        place: place(),
        label: text,
        listed: map.is_some(),
    })
}

/// A number of a class in plain digits.
pub(super) fn number(text: &str) -> Option<usize> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&id| plain && id <= MAX_LABEL)
}

/// A text file, without a byte order mark.
pub(super) fn read_text(path: &Path) -> Result<String, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let wrong = |problem| DataError::Set { path: path.to_owned(), problem };
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(wrong(SetProblem::Kind));
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_LIST_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_LIST_BYTES {
        return Err(wrong(SetProblem::ListTooLarge));
    }
    let text = String::from_utf8(bytes);
    let text = text.map_err(|error| wrong(SetProblem::Syntax { reason: error.utf8_error().to_string() }))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The beginning of a text, for messages.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
