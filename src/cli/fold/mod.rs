//! `fold`: `W + lambda * W'` into a drop-in checkpoint.

mod json;
mod show;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use m2pt_surgery::{
    AuxRequest, BiasMode, BlockSet, DType, DepthMismatch, Error, FoldRequest, Format, LambdaSpec, LayerKind, Part,
    RootChoice, Selector,
};
use serde_json::value::RawValue;

use super::DONE;
use super::printer::Printer;
use super::progress::Bar;
use super::running::{RunArgs, device};
use super::text::{bytes, printable, size};

pub(in crate::cli) use show::models;

/// Fold auxiliary weights into a target, W + lambda * W', and write a plain checkpoint
///
/// The linear layers (qkv, proj, fc1, fc2 of every block) are found in each file by its family's naming. Everything else
/// in the target is copied bit for bit. A target that was trained with cross-modal re-parameterization folds with its own
/// learned lambdas and auxiliary weights.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  m2pt-surgery fold image.pth --aux audio.pth --lambda 0.1 -o merged.pth
  m2pt-surgery fold image.pth --aux audio.pth=0.1 --aux video.pth=0.05 -o merged.safetensors
  m2pt-surgery fold image.pth --aux audio.pth --lambda 'qkv=0.1,fc1=0.02' --dry-run -o merged.pth
  m2pt-surgery fold image.pth --aux audio.pth --lambda 0.0..0.2 --blocks 0-5 -o merged.pth
  m2pt-surgery fold trained_pathway.pth -o plain.pth       learned lambdas
  m2pt-surgery fold image.pth --aux audio.pth --lambda-file lambda.json --replace trained.safetensors -o merged.pth
  m2pt-surgery fold model/ --aux audio.pth --lambda 0.1 --max-shard-size 2GB -o merged/
  m2pt-surgery fold model/ --aux audio.pth --lambda 0.1 --max-shard-size 2GB -o merged/ --shard 3/16     then: join merged/
  m2pt-surgery fold image.pth --aux audio.pth --lambda 0.1 --wrap model -o merged.pth
  m2pt-surgery fold gpt.pth --aux other.pth --lambda 0.1 -o merged.pth \\
      --target-pattern 'h\\.(?<block>\\d+)\\.(?:(?<qkv>attn\\.c_attn)|(?<fc1>mlp\\.c_fc))\\.weight$'")]
pub(in crate::cli) struct Args {
    /// The checkpoint that is improved
    target: PathBuf,

    /// An auxiliary checkpoint, with its own lambda if need be; several are folded from left to right
    #[arg(long, value_name = "FILE[=LAMBDA]")]
    aux: Vec<OsString>,

    /// The file to write: .pth (also .pt, .bin, .ckpt) or .safetensors; with --max-shard-size also a folder
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// The scale: a number, a range from the first block to the last (0.0..0.2), or one for each of some kinds of layer
    /// (qkv=0.1,fc1=0.02); kinds that are not named stay as they are
    #[arg(long, value_name = "LAMBDA", allow_hyphen_values = true, conflicts_with = "lambda_file")]
    lambda: Option<String>,

    /// A JSON object of scales by layer: {"blocks.0.attn.qkv": 0.1, "1.fc2": 0.02}; each entry has to name one layer, and
    /// layers that are not named stay as they are. A list of objects has one for each --aux
    #[arg(long, value_name = "FILE")]
    lambda_file: Option<PathBuf>,

    /// Put the tensors of this file in the place of the target's of the same names and shapes: a head or norms that were trained with
    /// the lambdas. They are written in their own types, unless --dtype casts them; a linear layer among them is replaced first, and
    /// folded then
    #[arg(long, value_name = "FILE")]
    replace: Option<PathBuf>,

    /// Fold only these kinds of layer
    #[arg(long, value_delimiter = ',', value_name = "qkv,proj,fc1,fc2", value_parser = layer_kind)]
    layers: Option<Vec<LayerKind>>,

    /// Fold only these blocks, counted from 0
    #[arg(long, value_name = "0-5,8", value_parser = block_set)]
    blocks: Option<BlockSet>,

    /// Keep the target's biases, or fold them too: b + lambda * b'
    #[arg(long, value_enum, default_value_t = Bias::Keep)]
    bias: Bias,

    /// If the models differ in depth: refuse, or fold the blocks that both have
    #[arg(long, value_enum, default_value_t = Depth::Error, value_name = "WHAT")]
    depth_mismatch: Depth,

    /// Cast the output's floating-point tensors after the fold
    #[arg(long, value_name = "float32|float16|bfloat16|float64", value_parser = dtype)]
    dtype: Option<DType>,

    /// The part of the target that holds the model, as a dotted path
    #[arg(long, value_name = "PATH")]
    root: Option<String>,

    /// The part of each auxiliary that holds the model
    #[arg(long, value_name = "PATH")]
    aux_root: Option<String>,

    /// The part of the file at --replace that holds the tensors
    #[arg(long, value_name = "PATH", requires = "replace")]
    replace_root: Option<String>,

    /// A regular expression that finds the target's layers, with named groups `block` and `layer`
    #[arg(long, value_name = "REGEX", value_parser = selector)]
    target_pattern: Option<Selector>,

    /// A regular expression that finds each auxiliary's layers
    #[arg(long, value_name = "REGEX", value_parser = selector)]
    aux_pattern: Option<Selector>,

    /// The output's format, where its extension does not tell
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<OutputFormat>,

    /// Split the output into files of at most so many bytes of tensors, with an index, as Hugging Face does: 2GB, 500MB,
    /// 1GiB, or bytes. In a folder (made if need be) they are called model-00001-of-00003.safetensors and
    /// model.safetensors.index.json, or with --format pth pytorch_model-00001-of-00003.bin and so on; OUTPUT.safetensors
    /// makes it OUTPUT-00001-of-00003.safetensors. If all fits into one file, that is model.safetensors, without an index
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_shard_size: Option<u64>,

    /// Write the shards one by one, each of which appears when it is complete, and the index at the end; those that are there
    /// already, from a run that was interrupted, stay
    #[arg(long, requires = "max_shard_size", conflicts_with_all = ["force", "report", "part"])]
    resume: bool,

    /// Write one part of N of the shards, and no index: one of N jobs that may run on different machines; `join` ends it. 0/N
    /// writes nothing but the plan, so that the jobs after it need not hash the inputs
    #[arg(long = "shard", id = "part", value_name = "K/N", value_parser = part, requires = "max_shard_size", conflicts_with_all = ["force", "report"])]
    part: Option<Part>,

    /// Put the tensors under this key of a .pth file, as training scripts expect: {'model': {...}}; several keys, outermost
    /// first, are joined by dots
    #[arg(long, value_name = "KEY")]
    wrap: Option<String>,

    /// Replace the output if it exists; it may be one of the inputs
    #[arg(long)]
    force: bool,

    /// Let NaN and infinity pass into the output
    #[arg(long)]
    allow_non_finite: bool,

    #[command(flatten)]
    run: RunArgs,

    /// Where the folded layers are computed: cpu, cuda, cuda:N, or auto for a GPU if there is one. Every bit of the output is the same;
    /// what cannot be had there, the processor computes, and it is said so
    #[arg(long, value_name = "DEVICE", default_value = "cpu", help_heading = "Running")]
    device: String,

    /// Write provenance (hashes of the inputs, lambdas, options, device) to OUTPUT.json
    #[arg(long)]
    report: bool,

    /// Keep provenance out of a safetensors header
    #[arg(long)]
    no_metadata: bool,

    /// Print what would be done, layer by layer, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum Bias {
    Keep,
    Fold,
}

impl From<Bias> for BiasMode {
    fn from(bias: Bias) -> Self {
        match bias {
            Bias::Keep => BiasMode::Keep,
            Bias::Fold => BiasMode::Fold,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum Depth {
    Error,
    First,
}

impl From<Depth> for DepthMismatch {
    fn from(depth: Depth) -> DepthMismatch {
        match depth {
            Depth::Error => DepthMismatch::Error,
            Depth::First => DepthMismatch::First,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum OutputFormat {
    Pth,
    Safetensors,
}

pub(in crate::cli) fn layer_kind(text: &str) -> Result<LayerKind, String> {
    let found = LayerKind::ALL.into_iter().find(|kind| kind.name() == text.trim());
    found.ok_or_else(|| "the kinds of layer are qkv, proj, fc1, fc2".to_owned())
}

pub(in crate::cli) fn block_set(text: &str) -> Result<BlockSet, String> {
    BlockSet::parse(text).ok_or_else(|| "write blocks as numbers and ranges of up to 4096: 0-5,8".to_owned())
}

fn dtype(text: &str) -> Result<DType, String> {
    let found = DType::from_name(text).filter(|dtype| dtype.is_foldable());
    found.ok_or_else(|| "the types are float32, float16, bfloat16, float64".to_owned())
}

fn selector(text: &str) -> Result<Selector, String> {
    Selector::new(text).map_err(|error| error.to_string())
}

/// `FILE` or `FILE=LAMBDA`; a file whose name holds `=` is taken as it is if it exists.
pub(in crate::cli) fn aux(text: &OsStr) -> Result<AuxRequest> {
    let whole = AuxRequest { path: text.into(), lambda: None };
    // A name that is not UTF-8 is taken as it is.
    let Some(text) = text.to_str().filter(|_| !whole.path.exists()) else { return Ok(whole) };
    let Some(first) = text.find('=') else { return Ok(whole) };
    let lambdas = text.match_indices('=').filter_map(|(at, _)| {
        Some(AuxRequest { path: text[..at].into(), lambda: Some(LambdaSpec::parse(&text[at + 1..]).ok()?) })
    });
    match lambdas.min_by_key(|aux| !aux.path.exists()) {
        Some(aux) => Ok(aux),
        None => {
            // Nothing after any `=` is a lambda: say what is wrong with the first.
            LambdaSpec::parse(&text[first + 1..]).with_context(|| format!("--aux {text}"))?;
            Ok(whole)
        }
    }
}

/// `K/N`
fn part(text: &str) -> Result<Part, String> {
    let found = text.split_once('/').and_then(|(number, of)| {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        Some((digits(number)?, digits(of)?))
    });
    match found {
        Some((number, of)) if of > 0 && number <= of => Ok(Part::Number { number, of }),
        _ => Err("write it as 3/16: the third of 16 parts, from 1 to 16, or 0/16 for the plan alone".to_owned()),
    }
}

fn request(args: &Args) -> Result<FoldRequest> {
    let mut sets = args.lambda_file.as_deref().map(lambda_sets).transpose()?.unwrap_or_default();
    let lambda = match &args.lambda {
        Some(text) => Some(LambdaSpec::parse(text).context("--lambda")?),
        None if sets.len() == 1 => sets.pop(),
        None => None,
    };
    let format = args.format.map(|format| match format {
        OutputFormat::Pth => Format::Pth,
        OutputFormat::Safetensors => Format::Safetensors,
    });
    // A folder of shards has the format that transformers prefers.
    let folder = args.output.is_dir() || Format::from_extension(&args.output).is_none();
    let format = format.or((args.max_shard_size.is_some() && folder).then_some(Format::Safetensors));
    let mut request = match format {
        Some(format) => FoldRequest::with_format(&args.target, &args.output, format),
        None => FoldRequest::new(&args.target, &args.output)?,
    };
    request.shard_bytes = args.max_shard_size;
    request.part = args.part.or(args.resume.then_some(Part::Rest));
    if let Some(key) = &args.wrap {
        if key.is_empty() {
            bail!("--wrap \"\" names no key; leave it out to write the tensors at the top");
        }
        request.wrap.clone_from(key);
    }
    request.aux = args.aux.iter().map(|text| aux(text)).collect::<Result<_>>()?;
    if !sets.is_empty() {
        let own = request.aux.iter().any(|aux| aux.lambda.is_some());
        if sets.len() != request.aux.len() || own {
            let why = if own { "one --aux has a lambda of its own" } else { "there are not as many --aux" };
            bail!("--lambda-file holds {} sets of lambdas, one for each auxiliary, and {why}", sets.len());
        }
        request.aux.iter_mut().zip(sets).for_each(|(aux, set)| aux.lambda = Some(set));
    }
    let root = |path: &Option<String>| path.clone().map_or(RootChoice::Auto, RootChoice::Path);
    request.target_root = root(&args.root);
    request.aux_root = root(&args.aux_root);
    request.replace.clone_from(&args.replace);
    request.replace_root = root(&args.replace_root);
    request.target_pattern.clone_from(&args.target_pattern);
    request.aux_pattern.clone_from(&args.aux_pattern);
    request.lambda = lambda;
    request.kinds.clone_from(&args.layers);
    request.blocks.clone_from(&args.blocks);
    request.bias = args.bias.into();
    request.depth_mismatch = args.depth_mismatch.into();
    request.dtype = args.dtype;
    request.run = args.run.options(args.allow_non_finite);
    request.run.device = device(&args.device)?;
    request.force = args.force;
    request.metadata = !args.no_metadata;
    request.sidecar = args.report;
    if let Some(path) = args.lambda_file.as_ref().filter(|_| args.report)
        && let (Ok(lambdas), Ok(report)) = (path.canonicalize(), request.sidecar_path().canonicalize())
        && lambdas == report
    {
        bail!("--report would replace the lambda file {}; give the output another name", path.display());
    }
    Ok(request)
}

/// The lambdas in a file, of all auxiliaries together.
pub(in crate::cli) fn lambda_file(path: &Path) -> Result<LambdaSpec> {
    match <[LambdaSpec; 1]>::try_from(lambda_sets(path)?) {
        Ok([one]) => Ok(one),
        Err(sets) => bail!("{} holds {} sets of lambdas, one for each auxiliary", path.display(), sets.len()),
    }
}

/// The lambdas in a file: an object, or a list of one for each auxiliary.
pub(in crate::cli) fn lambda_sets(path: &Path) -> Result<Vec<LambdaSpec>> {
    /// Bytes of the longest lambda file read: far more than any model has layers for.
    const LONGEST: u64 = 16 << 20;
    let io = |source| Error::Io { action: "read", path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(io)?.len() > LONGEST {
        bail!("{} is no lambda file: it is larger than {}", path.display(), bytes(LONGEST));
    }
    let text = std::fs::read(path).map_err(io)?;
    let problem = |problem| Error::LambdaFile { path: path.to_owned(), problem };
    let (name, text) = (path.display().to_string(), String::from_utf8_lossy(&text));
    let set = |text: &str| LambdaSpec::from_json(&name, text).map_err(problem);
    match serde_json::from_str::<Vec<&RawValue>>(&text) {
        Ok(sets) if !sets.is_empty() => Ok(sets.into_iter().map(|one| set(one.get())).collect::<Result<_, _>>()?),
        _ => Ok(vec![set(&text)?]),
    }
}

pub(in crate::cli) fn run(args: &Args, printer: &mut Printer) -> Result<ExitCode> {
    let inputs = request(args)?.open()?;
    let fold = inputs.plan().inspect_err(|_| inputs.notes().iter().for_each(|note| printer.note(note)))?;
    for note in &fold.plan().notes {
        printer.note(note);
    }
    let done = if args.dry_run {
        None
    } else {
        let mut bar = Bar::new(fold.work_bytes(), "folding", printer.quiet() || args.json);
        Some(fold.run(&mut bar)?)
    };
    if let Some(done) = &done {
        done.run.notes.iter().for_each(|note| printer.note(note));
        for name in &done.run.non_finite {
            printer.note(&format!("{name} holds NaN or infinity"));
        }
        printer.note_lost(&done.run.lost);
    }
    let printed = show::print(args, &fold, done.as_ref(), printer);
    if done.is_some() {
        // Whatever becomes of the printing: the file is there.
        printed.context(Written(printable(&args.output.display().to_string())))?;
    } else {
        printed?;
    }
    Ok(DONE)
}

/// The name of the file that was written before something else failed.
#[derive(Debug)]
pub(in crate::cli) struct Written(pub(in crate::cli) String);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was written", self.0)
    }
}
