//! The report as a person reads it.

use std::collections::BTreeMap;

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Color};
use m2pt_surgery::data::{CropMode, Interpolation, Preprocessing};
use m2pt_surgery::model::Known;
use m2pt_surgery::verify::{Accuracy, ClassAccuracy, Comparison, Source, TOP};

use super::words::{architecture, between, compared, percent};
use super::{Against, Args, Compared, Model, Report, Scored, Unfolded, shown};
use crate::cli::printer::{Printer, right};
use crate::cli::text::{bytes, counted, printable, shortened, significant};

/// Classes up to which the whole confusion matrix is shown.
const MATRIX: usize = 12;
/// Characters of a class's name in a table.
const NAME: usize = 24;

pub(super) fn report(args: &Args, report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    header(args, report, printer)?;
    unreadable(args, report, printer)?;
    if let Some(scored) = &report.accuracy {
        accuracy(args, scored, report, printer)?;
    }
    for against in &report.against {
        other(args, against, report, printer)?;
    }
    if report.pathway.is_some() || report.reference.is_some() {
        distances(report, printer)?;
    }
    verdict(args, report, printer)
}

/// A line of the header: its title, and what it says.
fn line(title: &str, text: &str, printer: &mut Printer) -> Result<()> {
    Ok(printer.line(format!("{title:<10} {text}"))?)
}

fn model(title: &str, model: &Model<'_>, what: &str, printer: &mut Printer) -> Result<()> {
    let checkpoint = model.tensors.checkpoint();
    let root = match model.tensors.root() {
        "" => String::new(),
        root => format!(", root {}", printable(root)),
    };
    line(title, &format!("{}  {}{root}{what}", shown(checkpoint.path()), bytes(checkpoint.file_bytes())), printer)?;
    // A configuration may start from an architecture and change all of it.
    let named = model.detected.known.as_ref().filter(|known| {
        let plain = Known::find(&known.name).map(|plain| plain.config);
        plain.is_ok_and(|plain| (plain.depth, plain.width) == (known.config.depth, known.config.width))
    });
    let named = named.map_or(String::new(), |known| format!("{}: ", known.name));
    line("", &format!("{named}{}", architecture(&model.detected.config)), printer)
}

fn header(args: &Args, report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    let folded = if report.folded { ", its pathways folded in memory" } else { "" };
    model("model", report.model, folded, printer)?;
    for against in &report.against {
        model("against", against.model, "", printer)?;
    }
    if let Some(pathway) = &report.pathway {
        let layers = counted(pathway.layers, "layer");
        let what = format!(", {layers} run as two branches");
        if report.folded {
            line("pathway", &format!("the same, unfolded{what}"), printer)?;
        } else {
            model("pathway", pathway.model, &what, printer)?;
        }
        for aux in &pathway.aux {
            line("auxiliary", &shown(aux), printer)?;
        }
        if let Some((path, names)) = pathway.replaced {
            line("replacing", &format!("{}  {} of the pathway", shown(path), counted(names.len(), "tensor")), printer)?;
        }
    }
    if let Some(compared) = &report.reference {
        let logits = &compared.reference.logits;
        let what = format!("{} x {} logits, {}", logits.len(), logits.classes(), compared.reference.dtype);
        line("reference", &format!("{}  {what}", shown(&compared.reference.path)), printer)?;
    }
    match &report.source {
        Source::Noise { images, seed, .. } => {
            line("inputs", &format!("{} of noise, seed {seed}", counted(*images, "image")), printer)?;
        }
        Source::Samples { set, preprocessing } => {
            let of = if set.len() < set.total() { format!(" of {}", set.total()) } else { String::new() };
            line("samples", &format!("{}: {}{of}", shown(set.path()), counted(set.len(), "image")), printer)?;
            if set.is_preprocessed() {
                line("images", "preprocessed already", printer)?;
            } else {
                line("images", &prepared(preprocessing), printer)?;
                line("", &format!("({})", printable(&report.model.prepared_as)), printer)?;
            }
        }
    }
    let seconds = report.run.computing.first().map_or(0.0, std::time::Duration::as_secs_f64);
    let run = counted(report.run.read.len(), "image");
    line(
        "run",
        &format!(
            "{run} in {seconds:.2} s: {} images/s ({}, {}, batches of {})",
            significant(report.run.read.len() as f64 / seconds.max(1e-9), 3),
            report.device,
            args.run.dtype.dtype(),
            args.run.batch
        ),
        printer,
    )?;
    Ok(printer.line("")?)
}

pub(super) fn interpolation(filter: Interpolation) -> &'static str {
    match filter {
        Interpolation::Nearest => "nearest",
        Interpolation::Box => "box",
        Interpolation::Bilinear => "bilinear",
        Interpolation::Hamming => "hamming",
        Interpolation::Bicubic => "bicubic",
        Interpolation::Lanczos => "lanczos",
    }
}

pub(super) fn crop_mode(mode: CropMode) -> &'static str {
    match mode {
        CropMode::Center => "center",
        CropMode::Squash => "squash",
        CropMode::Border => "border",
    }
}

fn prepared(preprocessing: &Preprocessing) -> String {
    let [channels, height, width] = preprocessing.input_size;
    let numbers = |values: &[f64]| match values {
        [first, rest @ ..] if rest.iter().all(|x| x == first) => significant(*first, 4),
        values => values.iter().map(|&x| significant(x, 4)).collect::<Vec<_>>().join(" "),
    };
    format!(
        "{channels} x {height} x {width}, {}, {} crop {}, mean {}, std {}",
        interpolation(preprocessing.interpolation),
        crop_mode(preprocessing.crop_mode),
        significant(preprocessing.crop_pct, 4),
        numbers(&preprocessing.mean),
        numbers(&preprocessing.std),
    )
}

/// How many of `all` are shown.
fn first(all: usize, top: usize) -> usize {
    if top == 0 { all } else { all.min(top) }
}

fn rest(all: usize, top: usize, printer: &mut Printer) -> Result<()> {
    if first(all, top) < all {
        printer.line(format!("  ... and {} more; --top 0 shows all.", all - first(all, top)))?;
    }
    Ok(printer.line("")?)
}

fn unreadable(args: &Args, report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    let failed = &report.run.failed;
    if !failed.is_empty() {
        printer.line(format!(
            "{} cannot be read, and {} left out:",
            counted(failed.len(), "sample"),
            verb(failed.len())
        ))?;
        for (_, error) in &failed[..first(failed.len(), args.top)] {
            printer.line(format!("  {}", printable(&error.to_string())))?;
        }
        rest(failed.len(), args.top, printer)?;
    }
    let bad = &report.non_finite;
    if !bad.is_empty() {
        printer.line(format!("NaN or infinity in the logits of {}:", counted(bad.len(), "image")))?;
        for &index in &bad[..first(bad.len(), args.top)] {
            printer.line(format!("  {}", printable(&report.source.name(index))))?;
        }
        rest(bad.len(), args.top, printer)?;
    }
    Ok(())
}

fn verb(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

fn accuracy(args: &Args, scored: &Scored, report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    let accuracy = &scored.accuracy;
    let mut table = printer.new_table(&["", "value", "95% interval", ""]);
    let of = |right: usize, all: usize| format!("{right} of {all}");
    let rates = [("top-1".to_owned(), Some(accuracy.top1)), (format!("top-{TOP}"), accuracy.top5)];
    for (title, rate) in rates.into_iter().filter_map(|(title, rate)| Some((title, rate?))) {
        let value = percent(rate.value(), rate.samples);
        let interval = between(rate.interval(), rate.samples);
        table.add_row([Cell::new(title), right(value), right(interval), Cell::new(of(rate.right, rate.samples))]);
    }
    let without = match accuracy.no_loss {
        0 => String::new(),
        some => format!("without {} where it is not finite", counted(some, "sample")),
    };
    if let Some((mean, interval)) = accuracy.loss {
        let interval = interval.map_or(String::new(), |i| format!("{:.4} to {:.4}", i.low, i.high));
        let value = right(format!("{mean:.4}"));
        table.add_row([Cell::new("loss"), value, right(interval), Cell::new(without)]);
    }
    printer.table(&table)?;
    if accuracy.classes.len() <= MATRIX {
        matrix(accuracy, report, printer)
    } else {
        classes(args, accuracy, report, printer)
    }
}

/// The name of a class, or its number.
fn class(class: usize, report: &Report<'_>) -> String {
    let name = match &report.source {
        Source::Samples { set, .. } => set.classes().get(&class).cloned(),
        Source::Noise { .. } => None,
    };
    match name {
        Some(name) => printable(&shortened(&name, NAME)),
        None => class.to_string(),
    }
}

fn prediction(prediction: Option<usize>, report: &Report<'_>) -> String {
    prediction.map_or("none (NaN)".to_owned(), |number| class(number, report))
}

/// A row for each class, a column for each prediction.
fn matrix(accuracy: &Accuracy, report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    let names: Vec<String> = accuracy.classes.iter().map(|c| shortened(&class(c.class, report), 8)).collect();
    let mut columns: Vec<Option<usize>> = accuracy.classes.iter().map(|class| Some(class.class)).collect();
    let mut header: Vec<&str> = vec!["is \\ taken for"];
    header.extend(names.iter().map(String::as_str));
    if accuracy.confusion.keys().any(|(_, prediction)| prediction.is_none()) {
        columns.push(None);
        header.push("NaN");
    }
    header.extend(["accuracy", "95% interval"]);
    let mut table = printer.new_table(&header);
    for class in accuracy.classes.iter().filter(|class| class.rate.samples > 0) {
        let mut row = vec![right(self::class(class.class, report))];
        for &column in &columns {
            let count = accuracy.confusion.get(&(class.class, column)).copied().unwrap_or(0);
            let text = if count == 0 { "·".to_owned() } else { count.to_string() };
            let wrong = count > 0 && column != Some(class.class);
            row.push(if wrong { right(text).fg(Color::Yellow) } else { right(text) });
        }
        row.extend(rate(class));
        table.add_row(row);
    }
    Ok(printer.table(&table)?)
}

fn rate(class: &ClassAccuracy) -> [Cell; 2] {
    let samples = class.rate.samples;
    [right(percent(class.rate.value(), samples)), right(between(class.rate.interval(), samples))]
}

/// The classes that are recognised worst, and the commonest mistakes.
fn classes(args: &Args, accuracy: &Accuracy, report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    let mut worst: Vec<&ClassAccuracy> = accuracy.classes.iter().filter(|class| class.rate.samples > 0).collect();
    worst.sort_by(|a, b| a.rate.value().total_cmp(&b.rate.value()));
    let mut table = printer.new_table(&["worst classes", "samples", "accuracy", "95% interval", "taken for it"]);
    for &class in &worst[..first(worst.len(), args.top)] {
        let mut row = vec![Cell::new(self::class(class.class, report)), right(class.rate.samples)];
        row.extend(rate(class));
        row.push(right(class.predicted));
        table.add_row(row);
    }
    printer.table(&table)?;
    let mistakes = accuracy.mistakes();
    if !mistakes.is_empty() {
        let mut table = printer.new_table(&["commonest mistakes", "taken for", "times"]);
        for &(label, taken, times) in &mistakes[..first(mistakes.len(), args.top)] {
            table.add_row([Cell::new(class(label, report)), Cell::new(prediction(taken, report)), right(times)]);
        }
        printer.table(&table)?;
    }
    Ok(())
}

fn other(args: &Args, against: &Against<'_>, report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    let name = |model: &Model<'_>| {
        let name = model.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        printable(&name)
    };
    let (ours, theirs) = (name(report.model), name(against.model));
    match (&report.accuracy, &against.accuracy, &against.paired) {
        (Some(scored), Some(accuracy), Some(paired)) => {
            printer.line(format!("{ours} against {theirs}: {}", compared(&scored.accuracy, accuracy, paired)))?;
            printer.line(format!(
                "  both right {}, only {ours} {}, only {theirs} {}, neither {}",
                paired.both, paired.only_first, paired.only_second, paired.neither
            ))?;
        }
        _ => printer.line(format!("{ours} against {theirs}: no labels, so only predictions are compared"))?,
    }
    let flips = &against.flips;
    let changed = percent(flips.len() as f64 / against.inputs.len().max(1) as f64, against.inputs.len());
    printer.line(format!("  {} predicted differently ({changed})", counted(flips.len(), "sample")))?;
    printer.line("")?;
    if flips.is_empty() {
        return Ok(());
    }
    let mut table = printer.new_table(&["sample", "label", &ours, &theirs]);
    for flip in &flips[..first(flips.len(), args.top)] {
        let index = against.inputs[flip.sample];
        let label = report.source.label(index);
        let cell = |taken: Option<usize>| {
            let right = label.is_some() && taken == label;
            let cell = Cell::new(prediction(taken, report));
            if right { cell.fg(Color::Green) } else { cell }
        };
        table.add_row([
            Cell::new(printable(&report.source.name(index))),
            Cell::new(label.map_or(String::new(), |label| class(label, report))),
            cell(flip.first),
            cell(flip.second),
        ]);
    }
    for line in table.lines() {
        printer.line(line.trim_end())?;
    }
    rest(flips.len(), args.top, printer)
}

/// How far the logits are from what they should be.
fn distances(report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    let mut table =
        printer.new_table(&["compared with", "max |d|", "mean |d|", "of largest", "tolerance", "cosine", "same top-1"]);
    let mut add = |title: &str, comparison: &Comparison, tolerance: f64| {
        let relative = comparison.relative();
        let cell = right(if relative.is_finite() { format!("{relative:.1e}") } else { "NaN, inf".to_owned() });
        let within = comparison.within(tolerance);
        table.add_row([
            Cell::new(title),
            right(format!("{:.1e}", comparison.max_abs)),
            right(comparison.mean_abs().map_or(String::new(), |mean| format!("{mean:.1e}"))),
            if within { cell } else { cell.fg(Color::Red) },
            right(format!("{tolerance:.0e}")),
            right(comparison.cosine().map_or(String::new(), |cosine| format!("{cosine:.7}"))),
            Cell::new(format!("{} of {}", comparison.same_top1, comparison.rows)).set_alignment(CellAlignment::Right),
        ]);
    };
    if let Some(pathway) = &report.pathway {
        add("pathway", &pathway.equivalence.logits, pathway.equivalence.tolerance);
    }
    if let Some(compared) = &report.reference {
        add("reference", &compared.comparison, compared.tolerance);
    }
    printer.table(&table)?;
    if let Some(pathway) = &report.pathway {
        blocks(pathway, report, printer)?;
    }
    Ok(())
}

/// Where two models part: block by block, if any is past the tolerance; otherwise a line.
fn blocks(pathway: &Unfolded<'_>, report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    let equivalence = &pathway.equivalence;
    let Some(worst) = equivalence.worst else { return Ok(()) };
    let name = printable(&report.source.name(worst));
    let Some(parted) = equivalence.first_block() else {
        let largest = equivalence.blocks.iter().map(Comparison::relative).fold(0.0, f64::max);
        let blocks = counted(equivalence.blocks.len(), "block");
        printer.line(format!("All {blocks} are within the tolerance too, up to {largest:.1e} for {name}."))?;
        return Ok(printer.line("")?);
    };
    printer.line(format!("The outputs of the blocks for {name}, which differs most:"))?;
    let mut table = printer.new_table(&["block", "max |d|", "of largest", "cosine", ""]);
    for (number, block) in equivalence.blocks.iter().enumerate() {
        table.add_row([
            right(number),
            right(format!("{:.1e}", block.max_abs)),
            right(format!("{:.1e}", block.relative())),
            right(block.cosine().map_or(String::new(), |cosine| format!("{cosine:.7}"))),
            Cell::new(if number == parted { "<- the first past the tolerance" } else { "" }),
        ]);
    }
    Ok(printer.table(&table)?)
}

/// What it comes to: one line each.
fn verdict(args: &Args, report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    let mut findings = BTreeMap::new();
    if let Some(pathway) = &report.pathway {
        let equivalence = &pathway.equivalence;
        let place = match (equivalence.holds(), equivalence.first_block()) {
            (false, Some(block)) => format!(", from block {block} on"),
            _ => String::new(),
        };
        findings.insert(0, (equivalence.holds(), "the pathway", place));
    }
    if let Some(Compared { comparison, tolerance, .. }) = &report.reference {
        findings.insert(1, (comparison.within(*tolerance), "the reference", String::new()));
    }
    for (holds, with, place) in findings.values() {
        let not = if *holds { "Equivalent" } else { "Not equivalent" };
        printer.line(format!("{not} to {with}{place}."))?;
    }
    if let Some(path) = &args.save_logits {
        printer.line(format!("Wrote {}.", shown(path)))?;
    }
    if !report.run.failed.is_empty() {
        printer.line(format!("{} could not be read.", counted(report.run.failed.len(), "sample")))?;
    }
    if !report.non_finite.is_empty() {
        printer.line("Logits are not all finite.")?;
    }
    Ok(())
}
