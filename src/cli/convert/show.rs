//! What a conversion did, or would do.

use std::collections::BTreeMap;

use anyhow::Result;
use m2pt_surgery::Family;
use m2pt_surgery::convert::{ConvertReport, Item, PlannedConversion};
use m2pt_surgery::tensor::shape_text;
use serde_json::{Value, json};

use crate::cli::printer::{Printer, Text};
use crate::cli::text::{bytes, counted, files, printable};

/// Names that a line lists.
const LISTED: usize = 4;

/// The families that are known.
pub(super) fn families(printer: &mut Printer) -> Result<()> {
    let row = |family: &std::sync::Arc<Family>| {
        vec![
            Text::left(family.name().to_owned()),
            Text::left(family.title().to_owned()),
            Text::left(family.reasons().join("; ")),
        ]
    };
    printer.rows(&["family", "what it is", "recognised by"], Family::all(), row)?;
    Ok(())
}

pub(super) fn result(
    conversion: &PlannedConversion<'_>,
    done: Option<&ConvertReport>,
    as_json: bool,
    printer: &mut Printer,
) -> Result<()> {
    if as_json {
        printer.json(&report(conversion, done))?;
        return Ok(());
    }
    let request = conversion.request();
    let checkpoint = conversion.input().checkpoint();
    let path = printable(&request.input.display().to_string());
    let root = match conversion.input().root() {
        "" => String::new(),
        root => format!(", root {root}"),
    };
    printer.line(format!("input      {path}  {}{root}", bytes(checkpoint.file_bytes())))?;
    if let Some(family) = conversion.family() {
        printer.line(format!("           {} ({})", family.family.title(), family.because.join("; ")))?;
        if !family.runners_up.is_empty() {
            printer.line(format!("           it could also be: {}", family.runners_up.join(", ")))?;
        }
    }
    if let Some(model) = conversion.model() {
        let config = &model.config;
        let name = model.known.as_ref().map_or("a ViT that timm has no name for", |known| known.name.as_str());
        let head = match config.classes {
            None => "no head".to_owned(),
            Some(1) => "1 class".to_owned(),
            Some(classes) => format!("{classes} classes"),
        };
        let image = format!("{} x {} x {}", config.channels, config.image.0, config.image.1);
        printer
            .line(format!("output     {name}: {} blocks x {}, images {image}, {head}", config.depth, config.width))?;
    }
    printer.line("")?;
    if done.is_none() {
        dry_run(conversion, printer)?;
    }
    coverage(conversion, printer)?;
    let files = conversion.files();
    let what = match files.as_slice() {
        [(path, _)] => printable(&path.display().to_string()),
        files => format!("{} in {} files", printable(&request.output.display().to_string()), files.len()),
    };
    let size = bytes(conversion.file_bytes());
    match done {
        None => printer.line(format!("Would write {what}: {size}."))?,
        Some(done) => {
            let seconds = done.elapsed.as_secs_f64();
            let rate = bytes((done.file_bytes as f64 / seconds.max(1e-9)) as u64);
            printer.line(format!("Wrote {what}: {size} in {seconds:.2} s ({rate}/s)."))?;
        }
    }
    if request.timm_dir {
        let folder = printable(&request.output.display().to_string());
        printer.line(format!("Open it with timm.create_model(\"local-dir:{folder}\", pretrained=True)."))?;
    }
    Ok(())
}

/// Tensor by tensor: the old name, the new one, what is done.
fn dry_run(conversion: &PlannedConversion<'_>, printer: &mut Printer) -> Result<()> {
    let items: Vec<(&Item, String, String)> = conversion
        .tensors()
        .iter()
        .zip(&conversion.plan().outputs)
        .map(|(item, output)| (item, shape_text(&output.spec.shape), output.spec.dtype.name().to_owned()))
        .collect();
    printer.rows(&["from", "to", "shape", "type", "what is done"], &items, |(item, shape, dtype)| {
        let from = if item.from.is_empty() { "-".to_owned() } else { item.from.join(" + ") };
        let changes = item.changes.join("; ");
        vec![
            Text::left(from),
            Text::left(item.name.clone()),
            Text::left(shape.clone()),
            Text::left(dtype.clone()),
            Text::left(changes),
        ]
    })?;
    Ok(())
}

/// How every tensor of the input and of the output is accounted for.
fn coverage(conversion: &PlannedConversion<'_>, printer: &mut Printer) -> Result<()> {
    let items = conversion.tensors();
    let changed = |item: &&Item| !item.changes.is_empty();
    let same = items.iter().filter(|item| !changed(item) && item.from.as_slice() == [item.name.clone()]).count();
    let renamed = items.iter().filter(|item| !changed(item)).count() - same;
    let mut parts = Vec::new();
    if same > 0 {
        parts.push(format!("{same} as they are"));
    }
    if renamed > 0 {
        parts.push(format!("{renamed} renamed"));
    }
    let mut by_change: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for item in items.iter().filter(changed) {
        by_change.entry(item.changes.join("; ")).or_default().push(&item.name);
    }
    let made = items.iter().filter(changed).count();
    if made > 0 {
        parts.push(format!("{made} changed or made"));
    }
    printer.line(format!("{}: {}.", counted(items.len(), "tensor"), parts.join(", ")))?;
    for (change, names) in by_change {
        printer.line(format!("  {change}: {}", few(&names)))?;
    }
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, reason) in conversion.dropped() {
        by_reason.entry(reason).or_default().push(name);
    }
    if !by_reason.is_empty() {
        printer.line(format!("{} left out:", counted(conversion.dropped().len(), "tensor")))?;
    }
    for (reason, names) in by_reason {
        printer.line(format!("  {reason}: {}", few(&names)))?;
    }
    let input = conversion.input().specs().iter().zip(&conversion.plan().outputs);
    let cast = items.iter().zip(input).filter(|(_, (spec, output))| spec.dtype != output.spec.dtype).count();
    if cast > 0 && !conversion.request().dtypes.is_empty() {
        printer.line(format!("{} cast.", counted(cast, "tensor")))?;
    }
    Ok(())
}

fn few(names: &[&str]) -> String {
    let shown = names.iter().take(LISTED).map(|name| printable(name)).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED { format!("{shown} and {} more", names.len() - LISTED) } else { shown }
}

fn report(conversion: &PlannedConversion<'_>, done: Option<&ConvertReport>) -> Value {
    let request = conversion.request();
    let tensors: Vec<Value> = conversion
        .tensors()
        .iter()
        .zip(&conversion.plan().outputs)
        .map(|(item, output)| {
            json!({
                "name": item.name, "from": item.from, "changes": item.changes, "filled": item.filled,
                "shape": output.spec.shape, "dtype": output.spec.dtype.name(),
            })
        })
        .collect();
    let dropped: Vec<Value> =
        conversion.dropped().iter().map(|(name, reason)| json!({"name": name, "reason": reason})).collect();
    let family = conversion.family().map(|found| {
        json!({
            "name": found.family.name(), "title": found.family.title(), "because": found.because,
            "runners_up": found.runners_up,
        })
    });
    json!({
        "input": {
            "file": request.input.display().to_string(), "root": conversion.input().root(), "family": family,
        },
        "output": {
            "file": request.output.display().to_string(),
            "format": request.format.name(),
            "tensors": conversion.tensors().len(),
            "bytes": conversion.file_bytes(),
            "written": done.is_some(),
            "files": files(&conversion.files()),
        },
        "architecture": conversion.model().map(|model| json!({
            "name": model.known.as_ref().map(|known| known.name.clone()),
            "input_size": [model.config.channels, model.config.image.0, model.config.image.1],
            "classes": model.config.classes,
            "guesses": model.guesses,
        })),
        "tensors": tensors,
        "dropped": dropped,
        "notes": conversion.plan().notes,
        "lost": done.map(|done| done.lost.iter().map(|(name, lost)| json!({
            "name": name, "overflow": lost.overflow, "underflow": lost.underflow,
        })).collect::<Vec<_>>()),
        "non_finite": done.map(|done| done.non_finite.clone()),
        "seconds": done.map(|done| done.elapsed.as_secs_f64()),
    })
}
