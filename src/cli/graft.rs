//! `graft`: a target with trainable pathways.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::builder::NonEmptyStringValueParser;
use m2pt_surgery::{BlockSet, FoldRequest, Format, LambdaSpec, LayerKind, RootChoice};
use serde_json::json;

use super::DONE;
use super::fold::{OutputFormat, Written, aux, block_set, lambda_file, layer_kind, models};
use super::printer::{Printer, Text};
use super::progress::Bar;
use super::running::RunArgs;
use super::text::{bytes, counted, files, printable};

/// Put an auxiliary's weights beside a target's, to be trained: the opposite of fold
///
/// The output has the target's tensors as they are, and beside each linear layer `aux_weight`, the auxiliary's weight, and
/// `cross_modal_scale`, its lambda, which is 0 unless --lambda says otherwise. These are the names of the reference code of Multimodal
/// Pathway: it loads with `strict=True` into a model whose layers were made re-parameterizable. After training, fold takes it back.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  m2pt-surgery graft image.pth --aux audio.pth -o trainable.pth
  m2pt-surgery graft image.pth --aux audio.pth --wrap model -o trainable.pth
  m2pt-surgery graft image.pth --aux audio.pth --lambda 0.1 --layers qkv,proj -o trainable.pth
  m2pt-surgery fold trained.pth -o plain.pth")]
pub(super) struct Args {
    /// The checkpoint that is to be improved
    target: PathBuf,

    /// The auxiliary checkpoint; its own lambda may follow
    #[arg(long, value_name = "FILE[=LAMBDA]")]
    aux: OsString,

    /// The file to write: .pth (also .pt, .bin, .ckpt) or .safetensors
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// The lambdas to start from, as for fold; 0 without
    #[arg(long, value_name = "LAMBDA", allow_hyphen_values = true, conflicts_with = "lambda_file")]
    lambda: Option<String>,

    /// A JSON object of lambdas by layer to start from
    #[arg(long, value_name = "FILE")]
    lambda_file: Option<PathBuf>,

    /// Only these kinds of layer
    #[arg(long, value_delimiter = ',', value_name = "qkv,proj,fc1,fc2", value_parser = layer_kind)]
    layers: Option<Vec<LayerKind>>,

    /// Only these blocks, counted from 0
    #[arg(long, value_name = "0-5,8", value_parser = block_set)]
    blocks: Option<BlockSet>,

    /// If the models differ in depth: refuse, or take the blocks that both have
    #[arg(long, value_enum, default_value_t = super::fold::Depth::Error, value_name = "WHAT")]
    depth_mismatch: super::fold::Depth,

    /// The part of the target that holds the model, as a dotted path
    #[arg(long, value_name = "PATH")]
    root: Option<String>,

    /// The part of the auxiliary that holds the model
    #[arg(long, value_name = "PATH")]
    aux_root: Option<String>,

    /// Write the tensors of a .pth file under this key, as training scripts expect: {'model': {...}}
    #[arg(long, visible_alias = "with-state-dict-prefix", value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    wrap: Option<String>,

    /// The output's format, where its extension does not tell
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<OutputFormat>,

    /// Replace the output if it exists; it may be one of the inputs
    #[arg(long)]
    force: bool,

    /// Let NaN and infinity pass into the output
    #[arg(long)]
    allow_non_finite: bool,

    /// Keep provenance (hashes of the inputs, lambdas) out of a safetensors header
    #[arg(long)]
    no_metadata: bool,

    #[command(flatten)]
    run: RunArgs,

    /// Print what would be done, layer by layer, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

fn request(args: &Args) -> Result<FoldRequest> {
    let mut request = match args.format {
        Some(OutputFormat::Pth) => FoldRequest::with_format(&args.target, &args.output, Format::Pth),
        Some(OutputFormat::Safetensors) => FoldRequest::with_format(&args.target, &args.output, Format::Safetensors),
        None => FoldRequest::new(&args.target, &args.output)?,
    };
    let aux = aux(&args.aux)?;
    request.lambda = match (&args.lambda_file, &args.lambda) {
        (Some(path), _) => Some(lambda_file(path)?),
        (None, Some(text)) => Some(LambdaSpec::parse(text).context("--lambda")?),
        // As the reference module begins.
        (None, None) if aux.lambda.is_none() => Some(LambdaSpec::parse("0")?),
        (None, None) => None,
    };
    request.aux = vec![aux];
    let root = |path: &Option<String>| path.clone().map_or(RootChoice::Auto, RootChoice::Path);
    (request.target_root, request.aux_root) = (root(&args.root), root(&args.aux_root));
    request.kinds.clone_from(&args.layers);
    request.blocks.clone_from(&args.blocks);
    request.depth_mismatch = args.depth_mismatch.into();
    request.run = args.run.options(args.allow_non_finite);
    request.force = args.force;
    request.metadata = !args.no_metadata;
    request.wrap = args.wrap.clone().unwrap_or_default();
    Ok(request)
}

pub(super) fn run(args: &Args, printer: &mut Printer) -> Result<ExitCode> {
    let inputs = request(args)?.open()?;
    let graft = inputs.graft().inspect_err(|_| inputs.notes().iter().for_each(|note| printer.note(note)))?;
    for note in &graft.plan().notes {
        printer.note(note);
    }
    let done = if args.dry_run {
        None
    } else {
        let mut bar = Bar::new(graft.work_bytes(), "grafting", printer.quiet() || args.json);
        Some(graft.run(&mut bar)?)
    };
    let output = printable(&args.output.display().to_string());
    let printed = (|| -> Result<()> {
        let size: u64 = graft.files().iter().map(|(_, bytes)| bytes).sum();
        if args.json {
            let layers = graft.layers().iter().map(|layer| {
                let term = layer.terms.first();
                json!({
                    "name": layer.name, "block": layer.id.block, "kind": layer.id.kind.name(), "shape": layer.shape,
                    "aux": term.map(|term| term.name.clone()), "lambda": term.map(|term| term.lambda),
                })
            });
            let value = json!({
                "target": args.target.display().to_string(),
                "aux": graft.aux().iter().map(|aux| aux.tensors.checkpoint().path().display().to_string()).collect::<Vec<_>>(),
                "output": {
                    "file": args.output.display().to_string(), "tensors": graft.plan().outputs.len(), "bytes": size,
                    "written": done.is_some(), "files": files(graft.files()),
                },
                "layers": layers.collect::<Vec<_>>(),
                "notes": graft.plan().notes,
                "seconds": done.as_ref().map(|done| done.elapsed.as_secs_f64()),
            });
            return Ok(printer.json(&value)?);
        }
        models(graft.target(), graft.aux(), printer)?;
        if done.is_none() {
            printer.rows(&["layer", "auxiliary", "lambda"], graft.layers(), |layer| {
                let term = layer.terms.first();
                let lambda = term.map_or(String::new(), |term| term.lambda.to_string());
                let aux = term.map_or(String::new(), |term| term.name.clone());
                vec![Text::left(layer.name.clone()), Text::left(aux), Text::right(lambda)]
            })?;
        }
        let layers = counted(graft.layers().len(), "linear layer");
        let would = if done.is_some() { "Wrote" } else { "Would write" };
        printer.line(format!("{layers} with a pathway; everything else as it is."))?;
        printer.line(format!("{would} {output}: {}.", bytes(size)))?;
        Ok(())
    })();
    if done.is_some() {
        // Whatever becomes of the printing: the file is there.
        printed.context(Written(output.clone()))?;
    } else {
        printed?;
    }
    Ok(DONE)
}
