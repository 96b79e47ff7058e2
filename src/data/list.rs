//! Lists of images: CSV, TSV, JSON and JSON Lines.

use serde_json::Value;

use super::SetProblem;
use super::labels::{Label, MAX_LABEL, shorten};

/// Names of the column or key of the path.
const PATHS: [&str; 5] = ["path", "file", "file_name", "filename", "image"];

/// Names of the column or key of the label.
const LABELS: [&str; 3] = ["label", "class", "target"];

/// An entry of a list.
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) label: Option<Label>,
    /// The line or entry, for messages.
    pub(super) place: String,
}

/// The entries of a table with one line per image, the first line naming the columns.
pub(super) fn table(text: &str, delimiter: u8) -> Result<Vec<Entry>, SetProblem> {
    let syntax = |error: csv::Error| SetProblem::Syntax { reason: error.to_string() };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().map_err(syntax)?;
    let columns = |names: &[&str]| -> Vec<usize> {
        let known = |name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
        header.iter().enumerate().filter(|(_, name)| known(name)).map(|(at, _)| at).collect()
    };
    let (paths, labels) = (columns(&PATHS), columns(&LABELS));
    let ([path], [] | [_]) = (paths.as_slice(), labels.as_slice()) else {
        let found: Vec<&str> = header.iter().collect();
        return Err(SetProblem::Columns { found: shorten(&format!("{found:?}")) });
    };
    let mut entries = Vec::new();
    for record in reader.records() {
        let record = record.map_err(syntax)?;
        let place = format!("line {}", record.position().map_or(0, csv::Position::line));
        let text = |column: usize| record.get(column).unwrap_or_default().to_owned();
        if text(*path).is_empty() {
            return Err(SetProblem::Syntax { reason: format!("{place} has no path") });
        }
        let label = labels.first().map(|label| text(*label)).filter(|label| !label.is_empty()).map(Label::Text);
        entries.push(Entry { path: text(*path), label, place });
    }
    Ok(entries)
}

/// The entries of a JSON list.
pub(super) fn json(text: &str) -> Result<Vec<Entry>, SetProblem> {
    let values: Vec<Value> =
        serde_json::from_str(text).map_err(|error| SetProblem::Syntax { reason: error.to_string() })?;
    values.iter().enumerate().map(|(at, value)| entry(value, format!("entry {at}"))).collect()
}

/// The entries of a file with a JSON value per line.
pub(super) fn json_lines(text: &str) -> Result<Vec<Entry>, SetProblem> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let value = |(at, line): (usize, &str)| {
        let place = format!("line {}", at + 1);
        let value =
            serde_json::from_str(line).map_err(|error| SetProblem::Syntax { reason: format!("{place}: {error}") })?;
        entry(&value, place)
    };
    lines.map(value).collect()
}

fn entry(value: &Value, place: String) -> Result<Entry, SetProblem> {
    match parts(value) {
        Some((path, label)) if !path.is_empty() => Ok(Entry { path: path.to_owned(), label, place }),
        _ => Err(SetProblem::Entry { place, found: shorten(&value.to_string()) }),
    }
}

/// The path and the label of an entry; `None` if it is none.
fn parts(value: &Value) -> Option<(&str, Option<Label>)> {
    let (path, given) = match value {
        Value::String(path) => (path.as_str(), None),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(path), given] => (path.as_str(), Some(given)),
            _ => return None,
        },
        Value::Object(object) => {
            let find = |names: &[&str]| -> Vec<&Value> { names.iter().filter_map(|name| object.get(*name)).collect() };
            match (find(&PATHS).as_slice(), find(&LABELS).as_slice()) {
                ([Value::String(path)], []) => (path.as_str(), None),
                ([Value::String(path)], [given]) => (path.as_str(), Some(*given)),
                _ => return None,
            }
        }
        _ => return None,
    };
    let label = match given {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(Label::Text(text.clone())),
        Some(number) => {
            let id = usize::try_from(number.as_u64()?).ok()?;
            Some(Label::Number((id <= MAX_LABEL).then_some(id)?))
        }
    };
    Some((path, label))
}
