//! `diff`: what changed from one checkpoint to another.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use comfy_table::Cell;
use m2pt_surgery::tensor::shape_text;
use m2pt_surgery::{Checkpoint, Diff, Numbers, Outcome, Pair, RootChoice, StateDict, TensorSpec};
use regex::Regex;
use serde_json::{Value, json};

use super::printer::{Printer, right};
use super::progress::Bar;
use super::text::{bytes, counted, printable, significant};
use super::{DONE, FINDING};

/// Compare two checkpoints: names, shapes, types and values, whatever their containers
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  m2pt-surgery diff image.pth merged.pth
  m2pt-surgery diff model.pth model.safetensors && echo the same
  m2pt-surgery diff model.pth model_fp16.pth --fail-above 1e-3
  m2pt-surgery diff old.ckpt new.ckpt --root-a state_dict --root-b ema --match 'attn' --top 0

Exit status: 0 the tensors are equal (or within --fail-above); 1 they differ; 2 they could not be compared.")]
pub(super) struct Args {
    /// The first checkpoint
    a: PathBuf,

    /// The second checkpoint
    b: PathBuf,

    /// The part of the first to compare, as a dotted path; '' takes every tensor of the file
    #[arg(long, value_name = "PATH")]
    root_a: Option<String>,

    /// The part of the second to compare
    #[arg(long, value_name = "PATH")]
    root_b: Option<String>,

    /// Compare only tensors whose name this regular expression finds
    #[arg(long = "match", value_name = "REGEX")]
    pattern: Option<String>,

    /// Show that many of the tensors that changed most; 0 shows all
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,

    /// Exit with status 1 only if a tensor changed by more than this: ||B - A|| / ||A||. Types may differ then; names and
    /// shapes may not
    #[arg(long, value_name = "X", value_parser = limit)]
    fail_above: Option<f64>,

    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

fn limit(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(limit) if limit >= 0.0 => Ok(limit),
        _ => Err("it is no number from 0 up".to_owned()),
    }
}

pub(super) fn run(args: &Args, printer: &mut Printer) -> Result<ExitCode> {
    let pattern = args.pattern.as_deref().map(Regex::new).transpose().context("--match")?;
    let (file_a, file_b) = (Checkpoint::open(&args.a)?, Checkpoint::open(&args.b)?);
    for file in [&file_a, &file_b] {
        if let Some(shard) = file.lone_shard() {
            printer.note(&format!("{}: {shard}", file.path().display()));
        }
    }
    let choice = |root: &Option<String>| root.clone().map_or(RootChoice::Auto, RootChoice::Path);
    let a = file_a.state_dict(&choice(&args.root_a)).context("A (--root-a chooses a part)")?;
    let b = file_b.state_dict(&choice(&args.root_b)).context("B (--root-b chooses a part)")?;
    let wanted = |name: &str| pattern.as_ref().is_none_or(|pattern| pattern.is_match(name));
    if let Some(pattern) = &pattern
        && ![&a, &b].iter().any(|side| names(side).any(|name| pattern.is_match(name)))
    {
        anyhow::bail!("--match {:?} finds no tensor in either file", pattern.as_str());
    }
    let total = a.specs().iter().filter(|spec| wanted(&spec.name)).map(TensorSpec::bytes).sum();
    let mut bar = Bar::new(total, "comparing", printer.quiet());
    let diff = Diff::new(&a, &b, wanted, &mut bar)?;
    drop(bar);
    let sound = args.fail_above.map_or_else(|| diff.is_equal(), |limit| diff.is_within(limit));
    let mut order: Vec<&Pair> = diff.pairs.iter().filter(|pair| pair.outcome != Outcome::Equal).collect();
    order.sort_by(|x, y| y.size().total_cmp(&x.size()));

    if args.json {
        printer.json(&report(args, &diff, &order, (&a, &b), sound))?;
    } else {
        for (label, side) in [("A", &a), ("B", &b)] {
            header(label, side, printer)?;
        }
        printer.line("")?;
        changes(&order, args.top, printer)?;
        lists(&diff, args.top, printer)?;
        verdict(args, &diff, &order, sound, printer)?;
    }
    Ok(if sound { DONE } else { ExitCode::from(FINDING) })
}

fn names<'s>(side: &'s StateDict<'_>) -> impl Iterator<Item = &'s str> {
    side.specs().iter().map(|spec| spec.name.as_str()).chain(side.others().iter().map(|(name, _)| name.as_str()))
}

fn header(label: &str, side: &StateDict<'_>, printer: &mut Printer) -> Result<()> {
    let file = side.checkpoint();
    let root = if side.root().is_empty() { String::new() } else { format!(", root {}", printable(side.root())) };
    let path = printable(&file.path().display().to_string());
    let (size, tensors) = (bytes(file.file_bytes()), counted(side.specs().len() + side.others().len(), "tensor"));
    printer.line(format!("{label}  {path}  {size}  {}{root}, {tensors}", file.container()))?;
    Ok(())
}

/// How many of `all` are shown.
fn shown(all: usize, top: usize) -> usize {
    if top == 0 { all } else { all.min(top) }
}

fn changes(order: &[&Pair], top: usize, printer: &mut Printer) -> Result<()> {
    if order.is_empty() {
        return Ok(());
    }
    let mut table =
        printer.new_table(&["tensor", "dtype", "shape", "max |B-A|", "relative L2", "cosine", "ULP", "elements"]);
    for pair in &order[..shown(order.len(), top)] {
        let arrow = |a: String, b: String| if a == b { a } else { format!("{a} -> {b}") };
        let mut cells = vec![
            Cell::new(printable(&pair.a.name)),
            Cell::new(arrow(pair.a.dtype.to_string(), pair.b.dtype.to_string())),
            Cell::new(arrow(shape_text(&pair.a.shape), shape_text(&pair.b.shape))),
        ];
        match &pair.outcome {
            Outcome::Changed(change) => {
                let numbers = change.numbers.as_ref();
                let text = |f: &dyn Fn(&Numbers) -> Option<String>| right(numbers.and_then(f).unwrap_or("-".into()));
                cells.push(text(&|n| Some(significant(n.max_abs, 3))));
                cells.push(text(&|n| Some(significant(n.relative_l2, 3))));
                cells.push(text(&|n| n.cosine.map(|cosine| format!("{cosine:.6}"))));
                cells.push(text(&|n| n.max_ulp.map(|ulp| ulp.to_string())));
                cells.push(right(percentage(change.different, pair.a.numel() as u64)));
            }
            Outcome::Shape | Outcome::Equal => cells.extend((0..5).map(|_| right("-"))),
        }
        table.add_row(cells);
    }
    printer.table(&table)?;
    if shown(order.len(), top) < order.len() {
        printer.line(format!("... and {} more; --top 0 shows all.\n", order.len() - shown(order.len(), top)))?;
    }
    Ok(())
}

/// The part of the elements that changed: `100%`, `0.012%`.
fn percentage(part: u64, whole: u64) -> String {
    if part == whole { "100%".to_owned() } else { format!("{}%", significant(100.0 * part as f64 / whole as f64, 2)) }
}

fn lists(diff: &Diff, top: usize, printer: &mut Printer) -> Result<()> {
    let spec = |spec: &TensorSpec| format!("{}  {} {}", printable(&spec.name), spec.dtype, shape_text(&spec.shape));
    let moved = |pair: &Pair| format!("{} -> {}", printable(&pair.a.name), printable(&pair.b.name));
    let other = |other: &m2pt_surgery::NotCompared| {
        format!("{} ({}): {}", printable(&other.name), if other.in_b { "B" } else { "A" }, printable(&other.kind))
    };
    for (title, lines) in [
        ("only in A", diff.only_a.iter().map(spec).collect::<Vec<_>>()),
        ("only in B", diff.only_b.iter().map(spec).collect()),
        ("equal under another name", diff.pairs.iter().filter(|pair| pair.moved()).map(moved).collect()),
        ("not compared, being no plain arrays", diff.not_compared.iter().map(other).collect()),
    ] {
        if lines.is_empty() {
            continue;
        }
        printer.line(format!("{} {title}:", counted(lines.len(), "tensor")))?;
        for line in &lines[..shown(lines.len(), top)] {
            printer.line(format!("  {line}"))?;
        }
        if shown(lines.len(), top) < lines.len() {
            printer.line(format!("  ... and {} more; --top 0 shows all.", lines.len() - shown(lines.len(), top)))?;
        }
        printer.line("")?;
    }
    Ok(())
}

fn verdict(args: &Args, diff: &Diff, order: &[&Pair], sound: bool, printer: &mut Printer) -> Result<()> {
    let equal = diff.pairs.len() - order.len();
    let mut parts = Vec::new();
    if equal > 0 || order.is_empty() {
        parts.push(format!("{} equal, byte for byte", counted(equal, "tensor")));
    }
    if !order.is_empty() {
        parts.push(format!("{} changed", counted(order.len(), "tensor")));
    }
    let alone = diff.only_a.len() + diff.only_b.len();
    if alone > 0 {
        parts.push(format!("{alone} on one side only"));
    }
    if !diff.not_compared.is_empty() {
        parts.push(format!("{} not compared", diff.not_compared.len()));
    }
    let within = args.fail_above.map(|limit| {
        let word = if sound { "within" } else { "not within" };
        format!("; {word} {}", significant(limit, 6))
    });
    let word = match () {
        () if diff.is_equal() => "Equal",
        () if order.is_empty() && alone == 0 && !diff.pairs.iter().any(Pair::moved) => "Not known to be equal",
        () => "Different",
    };
    printer.line(format!("{word}: {}{}.", parts.join(", "), within.unwrap_or_default()))?;
    Ok(())
}

fn report(args: &Args, diff: &Diff, order: &[&Pair], (a, b): (&StateDict<'_>, &StateDict<'_>), sound: bool) -> Value {
    let side = |side: &StateDict<'_>| {
        let file = side.checkpoint();
        json!({
            "file": file.path().to_string_lossy(), "bytes": file.file_bytes(), "container": file.container().name(),
            "root": side.root(), "tensors": side.specs().len() + side.others().len(),
        })
    };
    let spec = |spec: &TensorSpec| json!({"name": spec.name, "dtype": spec.dtype.name(), "shape": spec.shape});
    let changed = |pair: &&Pair| {
        let mut object = json!({
            "name": pair.a.name,
            "dtype": [pair.a.dtype.name(), pair.b.dtype.name()],
            "shape": [pair.a.shape, pair.b.shape],
        });
        if let Outcome::Changed(change) = &pair.outcome {
            object["different"] = json!(change.different);
            if let Some(numbers) = &change.numbers {
                object["max_abs"] = json!(numbers.max_abs);
                // JSON has no infinity.
                object["relative_l2"] = json!(Some(numbers.relative_l2).filter(|x| x.is_finite()));
                object["cosine"] = json!(numbers.cosine);
                object["max_ulp"] = json!(numbers.max_ulp);
                object["unordered"] = json!(numbers.unordered);
            }
        }
        object
    };
    let moved = diff.pairs.iter().filter(|pair| pair.moved());
    json!({
        "a": side(a),
        "b": side(b),
        "equal": diff.is_equal(),
        "fail_above": args.fail_above,
        "sound": sound,
        "equal_tensors": diff.pairs.len() - order.len(),
        "changed": order.iter().map(changed).collect::<Vec<_>>(),
        "only_a": diff.only_a.iter().map(spec).collect::<Vec<_>>(),
        "only_b": diff.only_b.iter().map(spec).collect::<Vec<_>>(),
        "moved": moved.map(|pair| json!({"from": pair.a.name, "to": pair.b.name})).collect::<Vec<_>>(),
        "not_compared": diff.not_compared.iter()
            .map(|other| json!({"name": other.name, "kind": other.kind, "in_b": other.in_b})).collect::<Vec<_>>(),
    })
}
