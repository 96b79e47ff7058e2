//! What a fold will do, or did, in words and tables.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use comfy_table::Cell;
use m2pt_surgery::tensor::shape_text;
use m2pt_surgery::{
    Architecture, DType, Device, FoldReport, FoldedLayer, LayerKind, Norms, Parameter, Part, PartsReport, PlannedFold,
    Replaced, Understood,
};

use super::Args;
use crate::cli::inspect::root_text;
use crate::cli::printer::{Printer, right};
use crate::cli::text::{bytes, counted, printable, significant};

pub(super) fn print(
    args: &Args,
    fold: &PlannedFold<'_>,
    done: Option<&FoldReport>,
    printer: &mut Printer,
) -> Result<()> {
    if args.json {
        printer.json(&super::json::report(fold, done))?;
    } else {
        models(fold.target(), fold.aux(), printer)?;
        match done {
            None => dry_run(fold, printer)?,
            Some(done) => match &done.parts {
                Some(parts) => in_parts(fold, done, parts, printer)?,
                None => report(fold, done, printer)?,
            },
        }
    }
    Ok(printer.flush()?)
}

/// What each file was taken for.
pub(in crate::cli) fn models(target: &Understood<'_>, aux: &[Understood<'_>], printer: &mut Printer) -> Result<()> {
    let roles = std::iter::once("target").chain(std::iter::repeat("auxiliary"));
    for (role, model) in roles.zip(std::iter::once(target).chain(aux)) {
        let checkpoint = model.tensors.checkpoint();
        let root = match model.tensors.root() {
            "" => String::new(),
            root => format!(", root {root}"),
        };
        let path = printable(&checkpoint.path().display().to_string());
        printer.line(format!("{role:<10} {path}  {}{root}", bytes(checkpoint.file_bytes())))?;
        let family = match &model.family {
            Some(family) => format!("{} ({})", family.family.title(), family.because.join("; ")),
            None => "layers found by pattern".to_owned(),
        };
        printer.line(format!("{:<10} {family}", ""))?;
        if let Some(architecture) = architecture(model) {
            printer.line(format!("{:<10} {architecture}", ""))?;
        }
        if model.tensors.outside() > 0 {
            let others: Vec<String> = checkpoint
                .roots()
                .iter()
                .filter(|root| root.path() != model.tensors.root())
                .map(|root| format!("{} ({})", root_text(root), root.tensors()))
                .collect();
            let roots = if others.is_empty() { String::new() } else { format!("; other roots: {}", others.join(", ")) };
            let elsewhere = counted(model.tensors.outside(), "tensor");
            printer.line(format!("{:<10} {elsewhere} of the file not taken{roots}", ""))?;
        }
    }
    if let Some(replaced) = &target.replaced {
        self::replaced(replaced, printer)?;
    }
    printer.line("")?;
    Ok(())
}

/// The file whose tensors replace some of the target's, and which.
fn replaced(replaced: &Replaced<'_>, printer: &mut Printer) -> Result<()> {
    /// Names that are listed.
    const LISTED: usize = 8;
    let checkpoint = replaced.tensors.checkpoint();
    let root = match replaced.tensors.root() {
        "" => String::new(),
        root => format!(", root {root}"),
    };
    let path = printable(&checkpoint.path().display().to_string());
    printer.line(format!("{:<10} {path}  {}{root}", "replacing", bytes(checkpoint.file_bytes())))?;
    let names: Vec<String> = replaced.names.iter().take(LISTED).map(|name| printable(name)).collect();
    let more = replaced.names.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let count = counted(replaced.names.len(), "tensor");
    printer.line(format!("{:<10} {count} of the target: {}{more}", "", names.join(", ")))?;
    if replaced.tensors.outside() > 0 {
        let elsewhere = counted(replaced.tensors.outside(), "tensor");
        printer.line(format!("{:<10} {elsewhere} of the file not taken", ""))?;
    }
    Ok(())
}

pub(super) fn architecture(model: &Understood<'_>) -> Option<Architecture> {
    Architecture::guess(model.tensors.specs(), &model.layers)
}

/// The plan as a table: one row for each parameter and term.
fn dry_run(fold: &PlannedFold<'_>, printer: &mut Printer) -> Result<()> {
    let plan = fold.plan();
    let mut table = printer.new_table(&["target layer", "auxiliary layer", "shape", "dtype", "lambda", "bytes"]);
    for folded in &plan.folded {
        for (i, term) in folded.terms.iter().enumerate() {
            let step = &plan.steps[folded.step];
            let number = if fold.aux().len() > 1 { format!(" ({})", term.source.input) } else { String::new() };
            table.add_row([
                Cell::new(if i == 0 { printable(&folded.name) } else { String::new() }),
                Cell::new(format!("{}{number}", printable(&term.name))),
                Cell::new(shape_text(&folded.shape)),
                Cell::new(dtype_text(folded, step.dtype)),
                right(significant(term.lambda, 6)),
                right(if i == 0 { bytes(step.bytes()) } else { String::new() }),
            ]);
        }
    }
    printer.table(&table)?;
    summary(fold, "would be folded", printer)?;
    printer.line(format!(
        "Would write {}: {} of {}. Nothing was written.",
        output_text(fold),
        bytes(fold.file_bytes()),
        fold.request().format.name(),
    ))?;
    Ok(())
}

/// The output: its file, or the index and how many shards.
fn output_text(fold: &PlannedFold<'_>) -> String {
    let shards = fold.files().len().saturating_sub(1);
    let last = fold.files().last().map_or(&fold.request().output, |(path, _)| path);
    let name = printable(&last.display().to_string());
    if shards == 0 { name } else { format!("{name} and {}", counted(shards, "shard")) }
}

fn dtype_text(folded: &FoldedLayer, output: DType) -> String {
    if folded.dtype == output { output.to_string() } else { format!("{} -> {output}", folded.dtype) }
}

fn summary(fold: &PlannedFold<'_>, verb: &str, printer: &mut Printer) -> Result<()> {
    let plan = fold.plan();
    let weights = plan.folded.iter().filter(|f| f.parameter == Parameter::Weight).count();
    let biases = plan.folded.len() - weights;
    let mut text = format!("{} of {} {verb}", weights, counted(fold.target().layers.as_slice().len(), "layer"));
    if biases > 0 {
        text += &format!(", and {}", if biases == 1 { "1 bias".to_owned() } else { format!("{biases} biases") });
    }
    let unchanged = plan.folded.iter().filter(|f| !f.changes()).count();
    if unchanged > 0 {
        text += &format!(" ({unchanged} of them with a lambda of 0, which changes nothing)");
    }
    let mut copied = plan.outputs.len() - plan.folded.len();
    if let Some(replaced) = &fold.target().replaced {
        let folded = plan.folded.iter().map(|folded| folded.name.as_str());
        let elsewhere: BTreeSet<&str> = folded.chain(plan.dropped.iter().map(|d| d.name.as_str())).collect();
        let beside = replaced.names.iter().filter(|name| !elsewhere.contains(name.as_str())).count();
        copied -= beside;
        text += &format!("; {} replaced", counted(replaced.names.len(), "tensor"));
        if beside < replaced.names.len() {
            text += &format!(" ({} of them part of a fold)", replaced.names.len() - beside);
        }
    }
    text += &match copied {
        1 => "; 1 tensor kept as it is".to_owned(),
        _ => format!("; {} kept as they are", counted(copied, "tensor")),
    };
    if let Some(dtype) = fold.request().dtype {
        text += &format!(" but for the cast to {dtype}");
    }
    let merged = plan.dropped.iter().filter(|dropped| dropped.folded).count();
    if merged > 0 {
        text += &format!("; {} left out, now in the weights", counted(merged, "pathway tensor"));
    }
    if plan.dropped.len() > merged {
        let lost = counted(plan.dropped.len() - merged, "pathway tensor");
        text += &format!("; {lost} of layers that are not folded left out, not in any weight");
    }
    printer.line(text + ".")?;
    Ok(())
}

/// The norms of all folded parameters of a kind, added up.
fn norms_by_kind(fold: &PlannedFold<'_>, done: &FoldReport) -> BTreeMap<(LayerKind, bool), (usize, Vec<f64>, Norms)> {
    let mut kinds: BTreeMap<(LayerKind, bool), (usize, Vec<f64>, Norms)> = BTreeMap::new();
    for folded in &fold.plan().folded {
        let (count, lambdas, sums) = kinds.entry((folded.id.kind, folded.parameter == Parameter::Bias)).or_default();
        *count += 1;
        lambdas.extend(folded.terms.iter().map(|term| term.lambda));
        if let Some(norms) = done.run.norms.get(folded.step).copied().flatten() {
            sums.source += norms.source;
            sums.change += norms.change;
        }
    }
    kinds
}

pub(super) fn relative(norms: Norms) -> Option<f64> {
    (norms.source > 0.0).then(|| (norms.change / norms.source).sqrt())
}

fn report(fold: &PlannedFold<'_>, done: &FoldReport, printer: &mut Printer) -> Result<()> {
    let mut table = printer.new_table(&["layers", "folded", "lambda", "|lambda W'| / |W|"]);
    for ((kind, bias), (count, lambdas, norms)) in norms_by_kind(fold, done) {
        let low = lambdas.iter().copied().fold(f64::INFINITY, f64::min);
        let high = lambdas.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut values = lambdas;
        values.dedup();
        let range = match values.as_slice() {
            [one] => significant(*one, 4),
            _ if fold.aux().len() > 1 => format!("{} to {}", significant(low, 4), significant(high, 4)),
            _ => format!("{} .. {}", significant(low, 4), significant(high, 4)),
        };
        let change = relative(norms).map_or("-".to_owned(), |r| format!("{}%", significant(r * 100.0, 3)));
        let name = if bias { format!("{kind} biases") } else { kind.to_string() };
        table.add_row([Cell::new(name), right(count), right(range), right(change)]);
    }
    printer.table(&table)?;
    summary(fold, "folded", printer)?;
    let seconds = done.elapsed.as_secs_f64();
    printer.line(format!(
        "Wrote {}: {} in {:.2} s ({}/s{}).",
        output_text(fold),
        bytes(done.file_bytes),
        seconds,
        bytes((done.file_bytes as f64 / seconds.max(1e-9)) as u64),
        device(done),
    ))?;
    Ok(())
}

/// What computed, unless it was the processor.
fn device(done: &FoldReport) -> String {
    let device = done.run.device.as_str();
    if device == Device::Cpu.to_string() { String::new() } else { format!(", {device}") }
}

/// What became of shards that are written one by one.
fn in_parts(fold: &PlannedFold<'_>, done: &FoldReport, parts: &PartsReport, printer: &mut Printer) -> Result<()> {
    for path in &parts.written {
        printer.line(format!("wrote {}", printable(&path.display().to_string())))?;
    }
    let seconds = done.elapsed.as_secs_f64();
    let there = if parts.found > 0 { format!("; {} there already", parts.found) } else { String::new() };
    printer.line(format!(
        "{} of {} written: {} in {seconds:.2} s{}{there}.",
        parts.written.len(),
        counted(parts.of, "shard"),
        bytes(done.file_bytes),
        device(done),
    ))?;
    let output = printable(&fold.request().output.display().to_string());
    match (fold.request().part, parts.missing) {
        (Some(Part::Number { .. }), 0) => printer.line(format!("All are there: m2pt-surgery join {output}"))?,
        (Some(Part::Number { .. }), missing) => {
            printer.line(format!("{} missing still.", counted(missing, "shard")))?;
        }
        _ => printer.line(format!("{} is complete.", output_text(fold)))?,
    }
    Ok(())
}
