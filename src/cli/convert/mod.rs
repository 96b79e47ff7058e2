//! `convert`: another container, other names, another shape.

mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use clap::builder::NonEmptyStringValueParser;
use m2pt_surgery::convert::{ConvertRequest, Head, Names};
use m2pt_surgery::model::{Activation, Known, Pool};
use m2pt_surgery::remodel::{Channels, Collapse, Inflate};
use m2pt_surgery::{DType, Family, Format, RootChoice};
use regex::Regex;

use super::DONE;
use super::fold::{OutputFormat, Written};
use super::printer::Printer;
use super::progress::Bar;
use super::running::RunArgs;
use super::text::{printable, size};

/// Convert a checkpoint: another container, other names, or a model of another shape
///
/// Without --to, names and values stay as they are, bit for bit, and only the container changes. With --to timm, the family of the
/// checkpoint is recognised and its tensors get timm's names and forms: what is written loads with `strict=True` into timm's
/// VisionTransformer. Nothing is filled, resampled or left out without being told.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  m2pt-surgery convert old.bin -o new.safetensors
  m2pt-surgery convert pytorch_model.bin --to timm -o vit.pth
  m2pt-surgery convert mae_pretrain.pth --timm-dir vit/ --arch vit_base_patch16_224
  m2pt-surgery convert videomae.pth --to timm --tubelet sum --fill-from image.pth --arch vit_base_patch16_224 -o video.pth
  m2pt-surgery convert vit.pth --to timm --img-size 384 --dtype float16 -o vit384.safetensors
  m2pt-surgery convert vit.pth --to hf-vit -o pytorch_model.bin
  m2pt-surgery convert odd.pth --rename 's/^net\\.//' --drop '^ema\\.' --dry-run -o even.pth")]
pub(super) struct Args {
    /// The checkpoint to convert
    #[arg(required_unless_present = "families")]
    input: Option<PathBuf>,

    /// The file to write: .pth (also .pt, .bin, .ckpt) or .safetensors; with --max-shard-size it may be a folder
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["timm_dir", "families"], conflicts_with = "timm_dir")]
    output: Option<PathBuf>,

    /// The names of the output: timm, or those of a family (--families lists them)
    #[arg(long, value_name = "timm|FAMILY")]
    to: Option<String>,

    /// Back from timm's names to those of the family that --family names
    #[arg(long, requires = "family", conflicts_with = "to")]
    reverse: bool,

    /// The family of the input, by name or as a table file of your own, where it is not recognised
    #[arg(long, value_name = "NAME|FILE")]
    family: Option<String>,

    /// The architecture in timm that the output is for; positions and patches are resampled to its own
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,

    /// Take what the architecture needs and the input lacks from this checkpoint
    #[arg(long, value_name = "FILE")]
    fill_from: Option<PathBuf>,

    /// Write a folder that timm opens by itself: timm.create_model("local-dir:DIR", pretrained=True)
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["rename", "add_prefix", "max_shard_size", "wrap", "format"]
    )]
    timm_dir: Option<PathBuf>,

    /// Names of the classes for that folder's config.json: a text file, one name a line, in their order
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,

    /// Take only tensors whose name this matches
    #[arg(long, value_name = "REGEX", value_parser = regex, help_heading = "Names")]
    keep: Vec<Regex>,

    /// Leave out tensors whose name this matches
    #[arg(long, value_name = "REGEX", value_parser = regex, help_heading = "Names")]
    drop: Vec<Regex>,

    /// Take this from the beginning of names; tensors without it are left out
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), help_heading = "Names")]
    strip_prefix: Option<String>,

    /// Replace what a regular expression matches, after the family's mapping; several are done in order
    #[arg(long, value_name = "s/REGEX/TEXT/", value_parser = rename, help_heading = "Names")]
    rename: Vec<(Regex, String)>,

    /// Put this before every name
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), help_heading = "Names")]
    add_prefix: Option<String>,

    /// Resample positions for images of this size: 384, or 224x448 (height x width)
    #[arg(long, value_name = "SIZE", value_parser = sides, help_heading = "Shapes")]
    img_size: Option<(usize, usize)>,

    /// Resample the patch embedding to patches of this size
    #[arg(long, value_name = "SIZE", value_parser = sides, help_heading = "Shapes")]
    patch_size: Option<(usize, usize)>,

    /// Rows and columns of the input's positions, where they are not square
    #[arg(long, value_name = "ROWSxCOLUMNS", value_parser = sides, help_heading = "Shapes")]
    grid: Option<(usize, usize)>,

    /// How positions are made for another grid: bicubic as timm does, or cut and interpolated as AST does
    #[arg(long, value_enum, default_value_t = Resampling::Timm, value_name = "HOW", help_heading = "Shapes")]
    positions: Resampling,

    /// How patches over several frames become patches of images
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Shapes")]
    tubelet: Option<Tubelet>,

    /// Spread patches of images over so many frames, for a family of videos: the weight over all of them, or :center
    #[arg(long, value_name = "FRAMES[:center]", value_parser = inflate, help_heading = "Shapes")]
    inflate: Option<(usize, Inflate)>,

    /// Input channels of the output
    #[arg(long, value_name = "N", help_heading = "Shapes")]
    in_chans: Option<usize>,

    /// How input channels are made of those that there are
    #[arg(long, value_enum, default_value_t = ChannelRule::Timm, requires = "in_chans", value_name = "HOW", help_heading = "Shapes")]
    channels: ChannelRule,

    /// Classes of the output; 0 leaves the head out
    #[arg(long, value_name = "N", help_heading = "Shapes")]
    num_classes: Option<usize>,

    /// What becomes of the head
    #[arg(long, value_enum, default_value_t = HeadChoice::Keep, value_name = "WHAT", help_heading = "Shapes")]
    head: HeadChoice,

    /// Attention heads, which the weights do not tell
    #[arg(long, value_name = "N", help_heading = "Shapes")]
    heads: Option<usize>,

    /// The function in the MLPs, which the weights do not tell
    #[arg(long, value_name = "NAME", value_parser = activation, help_heading = "Shapes")]
    act: Option<Activation>,

    /// How the output pools: the last norm is called `norm` (token, map) or `fc_norm` (avg, max)
    #[arg(long, value_name = "token|avg|max|avgmax|map", value_parser = pool, help_heading = "Shapes")]
    global_pool: Option<Pool>,

    /// Cast floating-point tensors, all or those that an expression matches; several are done in order
    #[arg(long, value_name = "[REGEX=]TYPE", value_parser = cast, help_heading = "Output file")]
    dtype: Vec<(Option<Regex>, DType)>,

    /// Keep what the input holds besides tensors (epoch, arguments) as JSON in a safetensors header
    #[arg(long, help_heading = "Output file")]
    keep_values: bool,

    /// Keep provenance (hashes of the inputs, what was changed) out of a safetensors header
    #[arg(long, help_heading = "Output file")]
    no_metadata: bool,

    /// Shards of at most this many bytes of tensors, with an index, as Hugging Face writes them: 2GB, 500MB
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Output file")]
    max_shard_size: Option<u64>,

    /// Write the tensors of a .pth file under this key, as training scripts expect: {'model': {...}}
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new(), help_heading = "Output file")]
    wrap: Option<String>,

    /// The output's format, where its extension does not tell
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Output file")]
    format: Option<OutputFormat>,

    /// Replace the output if it exists; it may be the input
    #[arg(long, help_heading = "Output file")]
    force: bool,

    /// Let NaN and infinity pass into the output
    #[arg(long, help_heading = "Output file")]
    allow_non_finite: bool,

    #[command(flatten)]
    run: RunArgs,

    /// The part of the input that holds the model, as a dotted path
    #[arg(long, value_name = "PATH")]
    root: Option<String>,

    /// Print what would be done, tensor by tensor, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// List the families that are known, and end
    #[arg(long, exclusive = true)]
    families: bool,

    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Resampling {
    Timm,
    Ast,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tubelet {
    /// Add them up: a video that stands still keeps its features
    Sum,
    /// Their mean
    Mean,
    /// The one in the middle
    Center,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ChannelRule {
    /// As timm's adapt_input_conv, from 3 channels
    Timm,
    /// The mean over the channels, for each
    Mean,
    /// The sum over the channels, shared among the new ones
    Sum,
    /// The channels in turn
    Repeat,
    /// The first ones
    First,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HeadChoice {
    Keep,
    /// Without a head the model gives features
    Drop,
    /// Zeros, to be trained
    Zero,
}

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| error.to_string())
}

/// `s/REGEX/TEXT/`, with any character in place of the slashes.
fn rename(text: &str) -> Result<(Regex, String), String> {
    let wrong = || "write it as s/REGEX/TEXT/, with $1 for the first group".to_owned();
    let rest = text.strip_prefix('s').ok_or_else(wrong)?;
    let separator = rest.chars().next().filter(|c| !c.is_alphanumeric()).ok_or_else(wrong)?;
    let parts: Vec<&str> = rest[separator.len_utf8()..].split(separator).collect();
    match parts.as_slice() {
        [pattern, replacement, ""] if !pattern.is_empty() => Ok((regex(pattern)?, (*replacement).to_owned())),
        _ => Err(wrong()),
    }
}

/// `384` or `224x448`.
fn sides(text: &str) -> Result<(usize, usize), String> {
    let side = |text: &str| text.trim().parse::<usize>().ok().filter(|side| (1..=1 << 16).contains(side));
    let both = match text.split_once(['x', 'X']) {
        Some((height, width)) => side(height).zip(side(width)),
        None => side(text).map(|side| (side, side)),
    };
    both.ok_or_else(|| "write a size as 384, or as 224x448 (height x width)".to_owned())
}

fn pool(text: &str) -> Result<Pool, String> {
    Pool::parse(text).ok_or_else(|| "there are token, avg, max, avgmax, map".to_owned())
}

/// `2` or `2:center`.
fn inflate(text: &str) -> Result<(usize, Inflate), String> {
    let (frames, how) = match text.split_once(':') {
        None => (text, Some(Inflate::Repeat)),
        Some((frames, how)) => (frames, (how == "center").then_some(Inflate::Centre)),
    };
    let frames = frames.parse::<usize>().ok().filter(|frames| (1..=1 << 10).contains(frames));
    frames.zip(how).ok_or_else(|| "write the number of frames, as 2, or 2:center".to_owned())
}

fn activation(text: &str) -> Result<Activation, String> {
    Activation::parse(text).ok_or_else(|| "there are gelu, gelu_tanh, quick_gelu, silu, relu".to_owned())
}

/// `TYPE` or `REGEX=TYPE`.
fn cast(text: &str) -> Result<(Option<Regex>, DType), String> {
    let (pattern, name) = text.rsplit_once('=').map_or((None, text), |(pattern, name)| (Some(pattern), name));
    let dtype = DType::from_name(name).filter(|dtype| dtype.is_foldable());
    let dtype = dtype.ok_or_else(|| "the types are float32, float16, bfloat16, float64".to_owned())?;
    Ok((pattern.map(regex).transpose()?, dtype))
}

/// The text of a file that is no larger than 1 MiB; `what` it should be.
fn small_text(path: &Path, what: &str) -> Result<String> {
    /// Bytes of the longest file that is read.
    const LONGEST: u64 = 1 << 20;
    let name = path.display();
    let io = |source| m2pt_surgery::Error::Io { action: "read", path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(io)?.len() > LONGEST {
        bail!("{name} is no {what}: it is larger than 1 MiB");
    }
    let bytes = std::fs::read(path).map_err(io)?;
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{name} is no {what}: it is no text in UTF-8"))
}

/// The lines of a file, each the name of a class.
fn labels(path: &Path) -> Result<Vec<String>> {
    let text = small_text(path, "list of labels")?;
    let labels: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    match labels.iter().position(String::is_empty) {
        Some(line) => bail!("{}: line {} is empty; give one name a line", path.display(), line + 1),
        None => Ok(labels),
    }
}

fn family(text: &str) -> Result<Arc<Family>> {
    if let Some(family) = Family::named(text) {
        return Ok(family);
    }
    let path = Path::new(text);
    if !path.exists() {
        let known: Vec<&str> = Family::all().iter().map(|family| family.name()).collect();
        bail!("there is no family {text:?}, and no such file; known are {}", known.join(", "));
    }
    match Family::parse(&small_text(path, "table of a family")?) {
        Ok(family) => Ok(Arc::new(family)),
        Err(problem) => bail!("{text} is no table of a family: {problem}"),
    }
}

fn request(args: &Args) -> Result<ConvertRequest> {
    let input = args.input.clone().unwrap_or_default();
    let format = match args.format {
        _ if args.timm_dir.is_some() => Some(Format::Safetensors),
        Some(OutputFormat::Pth) => Some(Format::Pth),
        Some(OutputFormat::Safetensors) => Some(Format::Safetensors),
        // A folder of shards has the format that transformers prefers.
        None => {
            let folder = |path: &PathBuf| path.is_dir() || Format::from_extension(path).is_none();
            let folder = args.max_shard_size.is_some() && args.output.as_ref().is_some_and(folder);
            folder.then_some(Format::Safetensors)
        }
    };
    let output = args.timm_dir.clone().or(args.output.clone()).unwrap_or_default();
    let mut request = match format {
        Some(format) => ConvertRequest::with_format(input, output, format),
        None => ConvertRequest::new(input, output)?,
    };
    request.names = match (args.to.as_deref(), args.reverse) {
        (Some("timm"), _) => Names::Timm,
        (Some(name), _) => Names::Family(family(name).context("--to")?),
        (None, true) => Names::Family(family(args.family.as_deref().unwrap_or_default()).context("--family")?),
        (None, false) if args.timm_dir.is_some() => Names::Timm,
        (None, false) => Names::Keep,
    };
    if args.timm_dir.is_some() && !matches!(request.names, Names::Timm) {
        bail!("--timm-dir writes a model under timm's names; leave --to out");
    }
    request.timm_dir = args.timm_dir.is_some();
    if let (Some(text), false) = (&args.family, args.reverse) {
        request.family = Some(family(text).context("--family")?);
    }
    request.arch = args.arch.as_deref().map(Known::find).transpose().context("--arch")?;
    request.root = args.root.clone().map_or(RootChoice::Auto, RootChoice::Path);
    request.fill_from.clone_from(&args.fill_from);
    request.renames.keep.clone_from(&args.keep);
    request.renames.drop.clone_from(&args.drop);
    request.renames.strip_prefix.clone_from(&args.strip_prefix);
    request.renames.rename.clone_from(&args.rename);
    request.renames.add_prefix.clone_from(&args.add_prefix);
    (request.image, request.patch, request.grid) = (args.img_size, args.patch_size, args.grid);
    request.ast_positions = args.positions == Resampling::Ast;
    request.tubelet = args.tubelet.map(|how| match how {
        Tubelet::Sum => Collapse::Sum,
        Tubelet::Mean => Collapse::Mean,
        Tubelet::Center => Collapse::Centre,
    });
    request.inflate = args.inflate;
    request.channels = args.in_chans.map(|to| {
        let rule = match args.channels {
            ChannelRule::Timm => Channels::Timm,
            ChannelRule::Mean => Channels::Mean,
            ChannelRule::Sum => Channels::Sum,
            ChannelRule::Repeat => Channels::Repeat,
            ChannelRule::First => Channels::First,
        };
        (to, rule)
    });
    request.classes = args.num_classes;
    request.head = match args.head {
        HeadChoice::Keep => Head::Keep,
        HeadChoice::Drop => Head::Drop,
        HeadChoice::Zero => Head::Zero,
    };
    request.pool = args.global_pool;
    (request.heads, request.activation) = (args.heads, args.act);
    request.dtypes.clone_from(&args.dtype);
    request.keep_values = args.keep_values;
    request.max_shard_bytes = args.max_shard_size;
    request.wrap.clone_from(&args.wrap);
    if args.labels.is_some() && args.timm_dir.is_none() {
        bail!("--labels is for the config.json of a folder: write one with --timm-dir DIR");
    }
    request.labels = args.labels.as_deref().map(labels).transpose()?;
    request.metadata = !args.no_metadata;
    request.force = args.force;
    request.run = args.run.options(args.allow_non_finite);
    Ok(request)
}

pub(super) fn run(args: &Args, printer: &mut Printer) -> Result<ExitCode> {
    if args.families {
        show::families(printer)?;
        return Ok(DONE);
    }
    let request = request(args)?;
    let output = printable(&request.output.display().to_string());
    let inputs = request.open()?;
    let conversion = inputs.plan()?;
    for note in conversion.plan().notes.iter().chain(&conversion.check_output()?) {
        printer.note(note);
    }
    let done = if args.dry_run {
        None
    } else {
        let mut bar = Bar::new(conversion.work_bytes(), "converting", printer.quiet() || args.json);
        Some(conversion.run(&mut bar)?)
    };
    for name in done.iter().flat_map(|done| &done.non_finite) {
        printer.note(&format!("{name} holds NaN or infinity"));
    }
    printer.note_lost(done.as_ref().map_or(&[], |done| &done.lost));
    let printed = show::result(&conversion, done.as_ref(), args.json, printer);
    if done.is_some() {
        // Whatever becomes of the printing: the file is there.
        printed.context(Written(output))?;
    } else {
        printed?;
    }
    Ok(DONE)
}
