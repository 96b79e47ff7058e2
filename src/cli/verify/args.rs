//! What is written on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ValueEnum;
use m2pt_surgery::data::{ClassIds, CropMode, Interpolation};
use m2pt_surgery::model::{Activation, Pool, Precision};
use m2pt_surgery::{BlockSet, LayerKind};

use crate::cli::fold;
use crate::cli::text::positive;

/// Run a model: how often it is right, whether it differs from others, whether a fold computes what its pathway did
///
/// The checkpoint has to hold exactly the tensors of a timm vision transformer. What weights do not tell (heads, activation)
/// comes from --arch, from a config.json beside the checkpoint, or from the architectures of timm with these weights; a
/// guess is said to be one. A trained pathway is folded in memory and compared with its two branches.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  m2pt-surgery verify merged.pth --samples val/                                accuracy on class folders
  m2pt-surgery verify merged.pth --samples val/ --against image.pth            is the difference more than chance?
  m2pt-surgery verify merged.pth --pathway image.pth --aux audio.pth --lambda 0.1     is the fold what was meant?
  m2pt-surgery verify plain.pth --pathway trained_pathway.pth --samples val/
  m2pt-surgery verify trained_pathway.pth                                      folded against unfolded, on noise
  m2pt-surgery verify merged.pth --samples val/ --reference logits.npz         against what PyTorch computed
  m2pt-surgery verify merged.pth --samples val/ --save-logits merged.npz --json

Tolerance: the largest |difference| of a logit, as a part of the largest |logit| of the reference. By default 1e-4; 4e-3 if
weights or --dtype are float16, 3e-2 if bfloat16. What is smaller than that does not show: run in f32 where you can.

Exit status: 0 sound; 1 past the tolerance, NaN or infinity in logits, or samples that cannot be read; 2 it could not be run.
A lower accuracy than another model's is no finding.")]
pub(in crate::cli) struct Args {
    /// The checkpoint to run
    pub(super) checkpoint: PathBuf,

    /// Images with labels: a folder of class folders, a list (.csv, .tsv, .json, .jsonl), or arrays (.npz, .npy, .safetensors,
    /// .pth)
    #[arg(long, value_name = "PATH")]
    pub(super) samples: Option<PathBuf>,

    /// Another model, run on the same samples and compared with the first, sample by sample; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(super) against: Vec<PathBuf>,

    /// The part of every --against that holds the model
    #[arg(long, value_name = "PATH", requires = "against")]
    pub(super) against_root: Option<String>,

    /// The model that the checkpoint was folded from, run unfolded: a target (with --aux), or a trained pathway
    #[arg(long, value_name = "FILE")]
    pub(super) pathway: Option<PathBuf>,

    /// Logits that were computed elsewhere: .npz, .npy, .safetensors or .pth, one row for each sample in the set's order. If it
    /// has an array `inputs` too and there is no --samples, these are run
    #[arg(long, value_name = "FILE")]
    pub(super) reference: Option<PathBuf>,

    /// The array of logits in --reference, where it is not called `logits` and not the only matrix
    #[arg(long, value_name = "NAME", requires = "reference")]
    pub(super) reference_array: Option<String>,

    /// What may be between logits that should be the same
    #[arg(long, value_name = "X", value_parser = tolerance)]
    pub(super) tolerance: Option<f64>,

    #[command(flatten)]
    pub(super) fold: FoldArgs,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) set: SetArgs,
    #[command(flatten)]
    pub(super) images: ImageArgs,
    #[command(flatten)]
    pub(super) run: RunArgs,

    /// Keep the logits, labels and names of the samples: .safetensors or .npz
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) save_logits: Option<PathBuf>,

    /// Replace the file of --save-logits if it exists
    #[arg(long, help_heading = "Output")]
    pub(super) force: bool,

    /// Show that many classes, mistakes, and samples that changed sides; 0 shows all
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Output")]
    pub(super) top: usize,

    /// One JSON object on standard output
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
}

/// How the checkpoint was folded, in the words of `fold`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "How it was folded (with --pathway)")]
pub(super) struct FoldArgs {
    /// An auxiliary checkpoint, with its own lambda if need be
    #[arg(long, value_name = "FILE[=LAMBDA]", requires = "pathway")]
    pub(super) aux: Vec<OsString>,

    /// The scale, as `fold` takes it
    #[arg(long, value_name = "LAMBDA", allow_hyphen_values = true, requires = "aux", conflicts_with = "lambda_file")]
    pub(super) lambda: Option<String>,

    /// A JSON object of scales by layer
    #[arg(long, value_name = "FILE", requires = "aux")]
    pub(super) lambda_file: Option<PathBuf>,

    /// Only these kinds of layer were folded
    #[arg(long, value_delimiter = ',', value_name = "qkv,proj,fc1,fc2", value_parser = fold::layer_kind, requires = "aux")]
    pub(super) layers: Option<Vec<LayerKind>>,

    /// Only these blocks were folded
    #[arg(long, value_name = "0-5,8", value_parser = fold::block_set, requires = "aux")]
    pub(super) blocks: Option<BlockSet>,

    /// Whether biases were folded too
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = fold::Bias::Keep)]
    pub(super) bias: fold::Bias,

    /// If the models differ in depth
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = fold::Depth::Error)]
    pub(super) depth_mismatch: fold::Depth,

    /// The part of the pathway's file that holds the model
    #[arg(long, value_name = "PATH", requires = "pathway")]
    pub(super) pathway_root: Option<String>,

    /// The part of each auxiliary that holds the model
    #[arg(long, value_name = "PATH", requires = "aux")]
    pub(super) aux_root: Option<String>,

    /// The file whose tensors took the place of the pathway's
    #[arg(long, value_name = "FILE", requires = "pathway")]
    pub(super) replace: Option<PathBuf>,

    /// The part of that file that holds the tensors
    #[arg(long, value_name = "PATH", requires = "replace")]
    pub(super) replace_root: Option<String>,
}

/// What the weights do not tell.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "The model")]
pub(in crate::cli) struct ModelArgs {
    /// Its name in timm, with a tag if you like: vit_base_patch16_224.augreg_in21k
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) arch: Option<String>,

    /// timm's config.json, where none lies beside the checkpoint
    #[arg(long, value_name = "FILE", conflicts_with = "arch")]
    pub(in crate::cli) config: Option<PathBuf>,

    /// Attention heads
    #[arg(long, value_name = "N")]
    pub(in crate::cli) heads: Option<usize>,

    /// The function in the MLPs
    #[arg(long, value_name = "gelu|gelu_tanh|quick_gelu|silu|relu", value_parser = activation)]
    pub(in crate::cli) act: Option<Activation>,

    /// How tokens are pooled
    #[arg(long, value_name = "token|avg|max|avgmax|map|prr", value_parser = pool)]
    pub(in crate::cli) pool: Option<Pool>,

    /// The part of the checkpoint that holds the model, as a dotted path
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) root: Option<String>,
}

/// Which samples, and which class each is.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "The samples")]
pub(super) struct SetArgs {
    /// The numbers of the classes: a text with one name per line, the first being class 0; a JSON list; a JSON object of
    /// names and numbers
    #[arg(long, value_name = "FILE", requires = "samples")]
    pub(super) labels: Option<PathBuf>,

    /// How class folders get their numbers without --labels
    #[arg(long, value_enum, value_name = "HOW", requires = "samples", conflicts_with = "labels")]
    pub(super) class_ids: Option<Ids>,

    /// Run only so many samples (or images of noise)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(super) limit: Option<usize>,

    /// Take samples at random before the limit, the same for the same number
    #[arg(long, value_name = "N")]
    pub(super) shuffle_seed: Option<u64>,

    /// The seed of the noise that is run where there are no samples
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) noise_seed: u64,
}

/// How images are prepared.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Images (by default as the configuration says)")]
pub(in crate::cli) struct ImageArgs {
    /// Height and width of the model's input
    #[arg(long, value_name = "N or HxW", value_parser = input_size)]
    pub(in crate::cli) input_size: Option<(usize, usize)>,

    /// The part of the resized image that is kept
    #[arg(long, value_name = "X")]
    pub(in crate::cli) crop_pct: Option<f64>,

    /// How an image is fitted to the input
    #[arg(long, value_name = "center|squash|border", value_parser = crop_mode)]
    pub(in crate::cli) crop_mode: Option<CropMode>,

    /// The filter
    #[arg(long, value_name = "bicubic|bilinear|...", value_parser = interpolation)]
    pub(in crate::cli) interpolation: Option<Interpolation>,

    /// The mean of each channel, or one for all, on the scale from 0 to 1
    #[arg(long, value_name = "X,...", value_delimiter = ',', allow_hyphen_values = true)]
    pub(in crate::cli) mean: Option<Vec<f64>>,

    /// The standard deviation of each channel, or one for all
    #[arg(long, value_name = "X,...", value_delimiter = ',')]
    pub(in crate::cli) std: Option<Vec<f64>>,
}

/// How models are run.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "The run")]
pub(super) struct RunArgs {
    /// Where to run: cpu, cuda, cuda:N, or auto for a GPU if there is one
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(super) device: String,

    /// The type to run in; bf16 and f16 on the CPU are rounded after every operation, and no faster
    #[arg(long, value_enum, default_value_t = Type::F32)]
    pub(super) dtype: Type,

    /// Images run at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub(super) batch: usize,

    /// Threads that read images; by default as many as there are processors
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(super) threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum Ids {
    /// By their places; if all names are numbers, these have to be the same
    Checked,
    /// By their places, whatever their names
    Places,
    /// Their names are the numbers
    Numbers,
}

impl From<Ids> for ClassIds {
    fn from(ids: Ids) -> ClassIds {
        match ids {
            Ids::Checked => ClassIds::Checked,
            Ids::Places => ClassIds::Places,
            Ids::Numbers => ClassIds::Numbers,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(super) enum Type {
    #[value(alias = "float32")]
    F32,
    #[value(alias = "float16")]
    F16,
    #[value(alias = "bfloat16")]
    Bf16,
}

impl Type {
    pub(super) fn precision(self) -> Precision {
        match self {
            Type::F32 => Precision::F32,
            Type::F16 => Precision::F16,
            Type::Bf16 => Precision::BF16,
        }
    }

    pub(super) fn dtype(self) -> m2pt_surgery::DType {
        match self {
            Type::F32 => m2pt_surgery::DType::F32,
            Type::F16 => m2pt_surgery::DType::F16,
            Type::Bf16 => m2pt_surgery::DType::BF16,
        }
    }
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x >= 0.0 && x.is_finite() => Ok(x),
        _ => Err("it is no number from 0 up".to_owned()),
    }
}

fn activation(text: &str) -> Result<Activation, String> {
    Activation::parse(text).ok_or_else(|| "the functions are gelu, gelu_tanh, quick_gelu, silu, relu".to_owned())
}

fn pool(text: &str) -> Result<Pool, String> {
    Pool::parse(text).ok_or_else(|| "the ways of pooling are token, avg, max, avgmax, map, prr".to_owned())
}

fn crop_mode(text: &str) -> Result<CropMode, String> {
    CropMode::from_name(text).ok_or_else(|| "the modes are center, squash, border".to_owned())
}

fn interpolation(text: &str) -> Result<Interpolation, String> {
    let names = "the filters are nearest, box, bilinear, hamming, bicubic, lanczos";
    Interpolation::from_name(text).ok_or_else(|| names.to_owned())
}

fn input_size(text: &str) -> Result<(usize, usize), String> {
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    match (height.trim().parse(), width.trim().parse()) {
        (Ok(height), Ok(width)) if height > 0 && width > 0 => Ok((height, width)),
        _ => Err("write one side, or height x width: 224, 224x192".to_owned()),
    }
}
