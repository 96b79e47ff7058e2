//! `inspect`: what is inside a checkpoint.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::Cell;
use m2pt_surgery::tensor::{Stats, decode_f64, shape_text};
use m2pt_surgery::{
    Architecture, BlockSet, Checkpoint, Error, Examined, Family, Flags, LayerId, LayerKind, Layers, MatchProblem,
    OtherTensor, Recognised, Root, RootChoice, RootProblem, StateDict, TensorSpec,
};
use regex::Regex;
use serde_json::{Value, json};

use super::printer::{Printer, Text, right};
use super::progress::Bar;
use super::text::{bytes, count, counted, printable, shortened, significant};
use super::{DONE, lambdas};

/// Show what is inside a checkpoint: container, roots, architecture, tensors, other values
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  m2pt-surgery inspect model.pth
  m2pt-surgery inspect model.pth --root '' --match 'exp_avg'   every tensor of the file, by full path
  m2pt-surgery inspect model.pth --stats --sort bytes
  m2pt-surgery inspect trained_pathway.pth --lambdas
  m2pt-surgery inspect model.pth --hash --json | jq '.tensors[].sha256'")]
pub(super) struct Args {
    /// The checkpoint
    checkpoint: PathBuf,

    /// The part of the file to list, as a dotted path; '' lists every tensor by its full path
    #[arg(long, value_name = "PATH")]
    root: Option<String>,

    /// List only tensors whose name this regular expression finds
    #[arg(long = "match", value_name = "REGEX")]
    pattern: Option<String>,

    /// The order of the tensors
    #[arg(long, value_enum, default_value_t = Sort::File)]
    sort: Sort,

    /// List every tensor, where repeated blocks are otherwise shown as one
    #[arg(long)]
    full: bool,

    /// Mean, standard deviation, extremes, zeros and non-finite values of every tensor
    #[arg(long)]
    stats: bool,

    /// SHA-256 of every tensor's contiguous little-endian bytes
    #[arg(long)]
    hash: bool,

    /// The learned scales of a trained pathway, as a table of blocks and layers
    #[arg(long, conflicts_with_all = ["stats", "hash", "pattern", "full"])]
    lambdas: bool,

    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
enum Sort {
    /// As in the file
    File,
    /// By name
    Name,
    /// The largest first
    Bytes,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Report<'r, 's> {
    file: Cow<'r, str>,
    bytes: u64,
    container: &'static str,
    shard: Option<Value>,
    root: Option<&'r str>,
    roots: Each<'r, Root>,
    family: Option<&'r str>,
    architecture: Option<String>,
    tensors: Each<'r, Listed<'s>>,
    others: Each<'r, (String, &'r OtherTensor)>,
    lambdas: serde_json::Map<String, Value>,
    values: serde_json::Map<String, Value>,
}

/// A list of which the JSON is made as it is printed, one item at a time: files may hold very many.
struct Each<'r, T>(&'r [T], fn(&T) -> Value);

impl<T> serde::Serialize for Each<'_, T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(self.1))
    }
}

/// A tensor to list, with what was asked for.
struct Listed<'s> {
    spec: &'s TensorSpec,
    sha256: Option<String>,
    /// Of tensors whose elements are no real numbers there are none.
    stats: Option<Option<Box<Stats>>>,
}

pub(super) fn run(args: &Args, printer: &mut Printer) -> Result<ExitCode> {
    let pattern = args.pattern.as_deref().map(Regex::new).transpose().context("--match")?;
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    if let Some(shard) = checkpoint.lone_shard() {
        printer.note(&shard.to_string());
    }
    let tensors = select(args, &checkpoint, printer)?;
    let specs = tensors.as_ref().map_or(&[][..], StateDict::specs);
    let family = Family::recognise(specs);
    let layers = match family.as_ref().map(|r| Layers::of_family(specs, &r.family, Flags::TARGET)) {
        Some(Ok(layers)) => layers,
        Some(Err(MatchProblem::Nothing { .. })) | None => Layers::default(),
        Some(Err(problem)) => {
            printer.note(&problem.to_string());
            Layers::default()
        }
    };
    let architecture = Architecture::guess(specs, &layers);
    let learned = match &tensors {
        Some(tensors) if args.lambdas || args.json => learned(tensors, &layers)?,
        _ => BTreeMap::new(),
    };
    let listed = match &tensors {
        Some(tensors) => list(args, tensors, pattern.as_ref(), printer)?,
        None => Vec::new(),
    };

    if args.json {
        printer.json(&Report {
            file: args.checkpoint.to_string_lossy(),
            bytes: checkpoint.file_bytes(),
            container: checkpoint.container().name(),
            shard: checkpoint.lone_shard().map(|shard| json!({"number": shard.number, "of": shard.of})),
            root: tensors.as_ref().map(StateDict::root),
            roots: Each(checkpoint.roots(), root_json),
            family: family.as_ref().map(|r| r.family.name()),
            architecture: architecture.as_ref().map(ToString::to_string),
            tensors: Each(&listed, tensor_json),
            others: Each(tensors.as_ref().map_or(&[][..], |tensors| tensors.others()), other_json),
            lambdas: learned.iter().map(|(id, &lambda)| (id.to_string(), lambda.into())).collect(),
            values: checkpoint.values(),
        })?;
        return Ok(DONE);
    }
    header(&checkpoint, tensors.as_ref(), family.as_ref(), architecture.as_ref(), printer)?;
    if args.lambdas {
        if learned.is_empty() {
            printer.line(match layers.learned() {
                0 => "No learned lambdas: no layer has a cross_modal_scale.",
                _ => "No learned lambdas: the layers' cross_modal_scale are not one number each.",
            })?;
        } else {
            printer.table(&lambdas::table(&learned, printer))?;
        }
        return Ok(DONE);
    }
    let one_by_one = args.full || args.stats || args.hash || args.sort != Sort::File;
    tensor_table(&listed, one_by_one, printer)?;
    other_table(tensors.as_ref(), printer)?;
    totals(&listed, &layers, specs, printer)?;
    values(&checkpoint, printer)?;
    Ok(DONE)
}

/// The tensors to show: of the root asked for, or of the obvious one, or of the whole file if none is obvious.
fn select<'c>(args: &Args, checkpoint: &'c Checkpoint, printer: &mut Printer) -> Result<Option<StateDict<'c>>> {
    let choice = args.root.clone().map_or(RootChoice::Auto, RootChoice::Path);
    match checkpoint.state_dict(&choice) {
        Ok(tensors) => Ok(Some(tensors)),
        Err(Error::Root { problem: RootProblem::NoTensors, .. }) => Ok(None),
        Err(error @ Error::Root { .. }) if choice == RootChoice::Auto => {
            printer.note_lines(&format!("{error}\n      All tensors are shown by their full paths."));
            Ok(Some(checkpoint.state_dict(&RootChoice::Path(String::new()))?))
        }
        Err(error) => Err(error.into()),
    }
}

fn list<'s>(
    args: &Args,
    tensors: &'s StateDict<'_>,
    pattern: Option<&Regex>,
    printer: &mut Printer,
) -> Result<Vec<Listed<'s>>> {
    let wanted: Vec<(usize, &TensorSpec)> = tensors
        .specs()
        .iter()
        .enumerate()
        .filter(|(_, spec)| pattern.is_none_or(|pattern| pattern.is_match(&spec.name)))
        .collect();
    if let Some(pattern) = pattern.filter(|_| wanted.is_empty()) {
        anyhow::bail!("--match {:?} finds none of the {}", pattern.as_str(), counted(tensors.specs().len(), "tensor"));
    }
    let reads = args.stats || args.hash;
    let total = wanted.iter().map(|(_, spec)| spec.bytes()).sum();
    let mut bar = Bar::new(total, "reading", printer.quiet() || !reads);
    let indices: Vec<usize> = wanted.iter().map(|(index, _)| *index).collect();
    let examined = match reads {
        true => tensors.examine(&indices, args.stats, args.hash, &mut bar)?,
        false => vec![Examined::default(); wanted.len()],
    };
    let tensor = |((_, spec), Examined { sha256, stats }): ((usize, &'s TensorSpec), Examined)| Listed {
        spec,
        sha256,
        stats: args.stats.then(|| stats.map(Box::new)),
    };
    let mut listed: Vec<Listed<'s>> = wanted.into_iter().zip(examined).map(tensor).collect();
    match args.sort {
        Sort::File => {}
        Sort::Name => listed.sort_by(|a, b| a.spec.name.cmp(&b.spec.name)),
        Sort::Bytes => listed.sort_by_key(|tensor| std::cmp::Reverse(tensor.spec.bytes())),
    }
    Ok(listed)
}

/// The learned lambda of every layer that carries one.
fn learned(tensors: &StateDict<'_>, layers: &Layers) -> Result<BTreeMap<LayerId, f64>> {
    let mut found = BTreeMap::new();
    for layer in layers.as_slice() {
        let Some(scale) = layer.scale.filter(|&scale| tensors.specs()[scale].numel() == 1) else { continue };
        let data = tensors.tensor(scale)?;
        let mut value = Vec::new();
        if decode_f64(data.dtype(), &data.view().to_vec(), &mut value).is_ok()
            && let &[value] = value.as_slice()
        {
            found.insert(layer.id, value);
        }
    }
    Ok(found)
}

/// A root's path as a person reads it.
pub(super) fn root_text(root: &Root) -> String {
    if root.path().is_empty() { "(top of the file)".to_owned() } else { printable(root.path()) }
}

/// A root as JSON output describes it.
pub(super) fn root_json(root: &Root) -> Value {
    json!({"path": root.path(), "tensors": root.tensors(), "ema": root.is_ema()})
}

fn tensor_json(tensor: &Listed<'_>) -> Value {
    let spec = tensor.spec;
    let mut object = json!({
        "name": spec.name, "dtype": spec.dtype.name(), "shape": spec.shape, "bytes": spec.bytes(),
    });
    if let Some(hash) = &tensor.sha256 {
        object["sha256"] = json!(hash);
    }
    if let Some(stats) = &tensor.stats {
        object["stats"] = stats.as_ref().map_or(Value::Null, |stats| {
            json!({
                "mean": stats.mean(), "std": stats.std(), "min": stats.min(), "max": stats.max(),
                "zeros": stats.zeros(), "nan": stats.nan(), "inf": stats.inf(),
            })
        });
    }
    object
}

fn other_json((name, other): &(String, &OtherTensor)) -> Value {
    json!({"name": name, "kind": other.kind.name(), "dtype": other.dtype, "shape": other.shape})
}

/// The tensors that are no plain arrays.
fn other_table(tensors: Option<&StateDict<'_>>, printer: &mut Printer) -> Result<()> {
    let Some(others) = tensors.map(StateDict::others).filter(|others| !others.is_empty()) else { return Ok(()) };
    let columns = ["not a plain tensor", "dtype", "shape", "what it is"];
    printer.rows(&columns, others, |(name, other)| {
        let shape = shape_text(&other.shape);
        let cells = [printable(name), printable(&other.dtype), shape, printable(&other.kind.to_string())];
        cells.map(Text::left).into()
    })?;
    Ok(())
}

fn header(
    checkpoint: &Checkpoint,
    tensors: Option<&StateDict<'_>>,
    family: Option<&Recognised>,
    architecture: Option<&Architecture>,
    printer: &mut Printer,
) -> Result<()> {
    let name = printable(&checkpoint.path().display().to_string());
    printer.line(format!("{name}  {}  {}", bytes(checkpoint.file_bytes()), checkpoint.container()))?;
    if checkpoint.files().ne([checkpoint.path()]) {
        printer.line(format!("  files         {}", files(checkpoint)))?;
    }
    let chosen = tensors.map(StateDict::root);
    for root in checkpoint.roots() {
        let taken = if chosen == Some(root.path()) { "  <- shown" } else { "" };
        let ema = if root.is_ema() { ", averaged" } else { "" };
        let tensors = counted(root.tensors(), "tensor");
        printer.line(format!("  root          {}: {tensors}{ema}{taken}", root_text(root)))?;
    }
    match tensors {
        None => printer.line("  no tensors")?,
        Some(tensors) if tensors.outside() > 0 => {
            printer.line(format!("  elsewhere     {}", counted(tensors.outside(), "tensor")))?;
        }
        Some(_) => {}
    }
    if let Some(family) = family {
        printer.line(format!("  family        {} ({})", family.family.title(), family.because.join("; ")))?;
    }
    if let Some(architecture) = architecture {
        printer.line(format!("  architecture  {architecture}"))?;
    }
    printer.line("")?;
    Ok(())
}

/// The names of the files of a checkpoint, the first and the last if there are many.
fn files(checkpoint: &Checkpoint) -> String {
    let name = |path: &Path| printable(&path.file_name().unwrap_or_default().to_string_lossy());
    let names: Vec<String> = checkpoint.files().map(name).collect();
    match names.as_slice() {
        [first, second, .., last] if names.len() > 4 => format!("{first}, {second}, ..., {last} ({})", names.len()),
        names => names.join(", "),
    }
}

/// Tensors that are alike but for one number in their names.
struct Row<'s> {
    parts: (&'s str, &'s str),
    numbers: Vec<usize>,
    first: &'s Listed<'s>,
}

impl Row<'_> {
    fn name(&self) -> String {
        match self.numbers.as_slice() {
            [] | [_] => printable(&self.first.spec.name),
            numbers => printable(&format!("{}{{{}}}{}", self.parts.0, BlockSet::of(numbers), self.parts.1)),
        }
    }

    /// How many tensors it stands for.
    fn tensors(&self) -> usize {
        self.numbers.len().max(1)
    }

    /// What is shown of it; how often the tensor occurs only if that is shown of any.
    fn cells(&self, repeated: bool) -> Vec<Text> {
        let spec = self.first.spec;
        let times = self.tensors() as u64;
        let mut cells = vec![Text::left(self.name())];
        if repeated {
            cells.push(Text::right(if times > 1 { format!("x{times}") } else { String::new() }));
        }
        cells.extend([Text::left(spec.dtype.to_string()), Text::left(shape_text(&spec.shape))]);
        cells.extend([Text::right(count(times * spec.numel() as u64)), Text::right(bytes(times * spec.bytes()))]);
        if let Some(stats) = &self.first.stats {
            let number = |x: Option<f64>| Text::right(x.map_or("-".to_owned(), |x| significant(x, 4)));
            let counts = |n: fn(&Stats) -> u64| Text::right(stats.as_ref().map_or("-".to_owned(), |s| count(n(s))));
            let real = stats.as_deref();
            cells.extend([number(real.and_then(Stats::mean)), number(real.and_then(Stats::std))]);
            cells.extend([number(real.and_then(Stats::min)), number(real.and_then(Stats::max))]);
            cells.extend([counts(Stats::zeros), counts(Stats::nan), counts(Stats::inf)]);
        }
        cells.extend(self.first.sha256.clone().map(Text::left));
        cells
    }
}

/// The parts of a name around its first part that is a number.
fn split_number(name: &str) -> Option<(&str, usize, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        if part.starts_with(|c: char| c.is_ascii_digit())
            && let Ok(number) = part.parse::<usize>()
            && part == number.to_string()
        {
            return Some((&name[..start], number, &name[start + part.len()..]));
        }
        start += part.len() + 1;
    }
    None
}

fn rows<'s>(listed: &'s [Listed<'s>], one_by_one: bool) -> Vec<Row<'s>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for tensor in listed {
        let spec = tensor.spec;
        let split = if one_by_one { None } else { split_number(&spec.name) };
        if let Some((before, number, after)) = split {
            let key = (before, after, spec.dtype, spec.shape.as_slice());
            let place = *places.entry(key).or_insert(rows.len());
            if place == rows.len() {
                rows.push(Row { parts: (before, after), numbers: vec![], first: tensor });
            }
            rows[place].numbers.push(number);
        } else {
            rows.push(Row { parts: ("", ""), numbers: vec![], first: tensor });
        }
    }
    rows
}

fn tensor_table(listed: &[Listed<'_>], one_by_one: bool, printer: &mut Printer) -> Result<()> {
    let (Some(first), rows) = (listed.first(), rows(listed, one_by_one)) else { return Ok(()) };
    let repeated = rows.iter().any(|row| row.tensors() > 1);
    let mut columns = vec!["tensor"];
    columns.extend(repeated.then_some("times"));
    columns.extend(["dtype", "shape", "parameters", "bytes"]);
    if first.stats.is_some() {
        columns.extend(["mean", "std", "min", "max", "zeros", "NaN", "Inf"]);
    }
    columns.extend(first.sha256.is_some().then_some("sha256"));
    printer.rows(&columns, &rows, |row| row.cells(repeated))?;
    Ok(())
}

fn totals(listed: &[Listed<'_>], layers: &Layers, specs: &[TensorSpec], printer: &mut Printer) -> Result<()> {
    if listed.is_empty() {
        return Ok(());
    }
    let kinds: BTreeMap<&str, LayerKind> =
        layers.as_slice().iter().map(|l| (specs[l.weight].name.as_str(), l.id.kind)).collect();
    let kind_of = |spec: &TensorSpec| kinds.get(spec.name.as_str()).map_or("other", |kind| kind.name());
    let mut by_dtype: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
    let mut by_kind: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
    let mut all = [0; 3];
    for Listed { spec, .. } in listed {
        for sums in
            [by_dtype.entry(spec.dtype.name()).or_default(), by_kind.entry(kind_of(spec)).or_default(), &mut all]
        {
            sums[0] += 1;
            sums[1] += spec.numel() as u64;
            sums[2] += spec.bytes();
        }
    }
    let mut table = printer.new_table(&["total", "tensors", "parameters", "bytes"]);
    let mut add = |name: &str, [tensors, parameters, size]: [u64; 3]| {
        table.add_row([Cell::new(name), right(count(tensors)), right(count(parameters)), right(bytes(size))]);
    };
    for (name, sums) in &by_dtype {
        add(name, *sums);
    }
    if !layers.as_slice().is_empty() {
        for kind in LayerKind::ALL.iter().map(|kind| kind.name()).chain(["other"]) {
            if let Some(sums) = by_kind.get(kind) {
                add(&if kind == "other" { kind.to_owned() } else { format!("{kind} weights") }, *sums);
            }
        }
    }
    if by_dtype.len() > 1 || !layers.as_slice().is_empty() {
        add("all", all);
    }
    printer.table(&table)?;
    Ok(())
}

fn values(checkpoint: &Checkpoint, printer: &mut Printer) -> Result<()> {
    const WIDTH: usize = 100;
    let values = checkpoint.values();
    if values.is_empty() {
        return Ok(());
    }
    let mut table = printer.new_table(&["other values", ""]);
    for (key, value) in values {
        table.add_row([printable(&key), shortened(&printable(&value.to_string()), WIDTH)]);
    }
    printer.table(&table)?;
    Ok(())
}
