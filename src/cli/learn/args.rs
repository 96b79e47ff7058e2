//! What is written on the command line.

use std::path::PathBuf;

use clap::ValueEnum;
use m2pt_surgery::learn::{Method, Objective, Search, Share};
use m2pt_surgery::{BlockSet, LayerKind};

use crate::cli::fold::{Bias, Depth, block_set, layer_kind};
use crate::cli::text::positive;
use crate::cli::verify::{Ids, ImageArgs, ModelArgs};

/// Learn the lambdas of a fold from samples, and say whether they are any good
///
/// Everything but the lambdas is frozen, unless --train-head or --train-norms say otherwise. A part of the samples is held out and tells how good lambdas are; another part tells after which
/// epoch they are best; gradients come from the rest. In float32. The lambda file is for `fold --lambda-file`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  m2pt-surgery learn image.pth --aux audio.pth --samples train/ -o lambda.json
  m2pt-surgery learn image.pth --aux audio.pth --samples train/ --val val/ -o lambda.json --fold merged.pth
  m2pt-surgery learn image.pth --aux audio.pth --samples photos/ --objective entropy -o lambda.json
  m2pt-surgery learn image.pth --aux audio.pth --aux video.pth --samples train/ -o lambda.json --state run.state --resume
  m2pt-surgery learn image.pth --aux audio.pth --samples train/ -o lambda.json --train-head --tensors head.safetensors
  m2pt-surgery learn image.pth --aux audio.pth --samples train/ --search golden -o lambda.json     one lambda for all layers

Exit status: 0 better than lambda = 0 on the held-out samples, by more than chance explains (with --train-head or --train-norms: than the
target as it is, and than what was trained with lambda = 0); 1 not so, or stopped at a loss that is not finite; 2 it could not be done.")]
pub(in crate::cli) struct Args {
    /// The checkpoint that is improved
    pub(super) target: PathBuf,

    /// An auxiliary checkpoint; several have lambdas of their own each
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) aux: Vec<PathBuf>,

    /// Images with labels: a folder of class folders, a list (.csv, .tsv, .json, .jsonl), or arrays (.npz, .npy, .safetensors,
    /// .pth)
    #[arg(long, value_name = "PATH")]
    pub(super) samples: PathBuf,

    /// The lambda file to write
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: PathBuf,

    /// Fold with what was learned, too: .pth or .safetensors. Nothing is written if it is not better than lambda = 0
    #[arg(long, value_name = "FILE")]
    pub(super) fold: Option<PathBuf>,

    /// Write the files also if it is not better than lambda = 0
    #[arg(long, requires = "fold")]
    pub(super) accept: bool,

    /// The parameters that --train-head and --train-norms trained: safetensors, for `fold --replace`
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "search")]
    pub(super) tensors: Option<PathBuf>,

    /// Replace files that exist
    #[arg(long)]
    pub(super) force: bool,

    #[command(flatten)]
    pub(super) learning: LearningArgs,
    #[command(flatten)]
    pub(super) set: SetArgs,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) images: ImageArgs,

    /// A line of JSON for every epoch
    #[arg(long, value_name = "FILE", help_heading = "Output", conflicts_with = "search")]
    pub(super) log: Option<PathBuf>,

    /// A drawing of the losses and the lambdas, for pages of either colour
    #[arg(long, value_name = "FILE.svg", help_heading = "Output", conflicts_with = "search")]
    pub(super) plot: Option<PathBuf>,

    /// Keep here, after every epoch, what is needed to go on
    #[arg(long, value_name = "FILE", help_heading = "Output", conflicts_with = "search")]
    pub(super) state: Option<PathBuf>,

    /// Go on from --state, with the same options and samples: the same lambdas as without an interruption
    #[arg(long, requires = "state", help_heading = "Output")]
    pub(super) resume: bool,

    /// One JSON object on standard output
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
}

/// How lambdas are learned.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Learning")]
pub(super) struct LearningArgs {
    /// Layers that have one lambda together: none, those of a kind, those of a block, all
    #[arg(long, value_enum, default_value_t = Sharing::Layer, conflicts_with = "search")]
    pub(super) share: Sharing,

    /// Learn lambdas only of these kinds of layer
    #[arg(long, value_delimiter = ',', value_name = "qkv,proj,fc1,fc2", value_parser = layer_kind)]
    pub(super) layers: Option<Vec<LayerKind>>,

    /// Learn lambdas only of these blocks, counted from 0
    #[arg(long, value_name = "0-5,8", value_parser = block_set)]
    pub(super) blocks: Option<BlockSet>,

    /// If the models differ in depth: refuse, or learn those of the blocks that both have
    #[arg(long, value_enum, default_value_t = Depth::Error, value_name = "WHAT")]
    pub(super) depth_mismatch: Depth,

    /// Keep the target's biases, or scale the auxiliary's by their layers' lambdas, too: b + lambda * b'. To be folded with the same
    #[arg(long, value_enum, default_value_t = Bias::Keep)]
    pub(super) bias: Bias,

    /// Train the target's head, too
    #[arg(long, requires = "tensors", conflicts_with = "search")]
    pub(super) train_head: bool,

    /// Train weights and biases of the target's normalisations, too
    #[arg(long, requires = "tensors", conflicts_with = "search")]
    pub(super) train_norms: bool,

    /// What is to become small: cross-entropy of the labels, or the predictions' entropy, which needs no labels
    #[arg(long, value_enum, default_value_t = Goal::Ce)]
    pub(super) objective: Goal,

    /// Try one lambda for all layers between -MAX_ABS and MAX_ABS, with forward passes only, in place of gradients
    #[arg(long, value_enum, value_name = "HOW")]
    pub(super) search: Option<How>,

    /// Where lambda starts
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true, conflicts_with = "search")]
    pub(super) init: f32,

    /// How steps are taken: AdamW (betas 0.9 and 0.999), or SGD with a momentum of 0.9
    #[arg(long, value_enum, default_value_t = Steps::Adamw, conflicts_with = "search")]
    pub(super) optimizer: Steps,

    /// Mirror half of the samples, left and right, before each step
    #[arg(long, conflicts_with = "search")]
    pub(super) flip: bool,

    /// Move samples by up to so many pixels before each step, repeating their edge
    #[arg(long, value_name = "PIXELS", default_value_t = 0, conflicts_with = "search")]
    pub(super) crop: usize,

    /// The learning rate at the first step; it falls to 0 along half a cosine
    #[arg(long, value_name = "X", default_value_t = 0.002, conflicts_with = "search")]
    pub(super) lr: f64,

    /// Weight decay, toward 0
    #[arg(long, value_name = "X", default_value_t = 0.01, conflicts_with = "search")]
    pub(super) weight_decay: f64,

    /// The weight of the sum of |lambda| in the loss
    #[arg(long, value_name = "X", default_value_t = 0.0, conflicts_with = "search")]
    pub(super) l1: f64,

    /// No |lambda| becomes larger
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub(super) max_abs: f64,

    /// The largest norm of a gradient; longer ones are shortened
    #[arg(long, value_name = "X", default_value_t = 1.0, conflicts_with = "search")]
    pub(super) clip: f64,

    /// How often each sample is seen, at most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = positive, conflicts_with = "search")]
    pub(super) epochs: usize,

    /// Epochs without a smaller loss on the samples that choose the epoch, after which it ends
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive, conflicts_with = "search")]
    pub(super) patience: usize,

    /// Samples for each step
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive, conflicts_with = "search")]
    pub(super) batch: usize,

    /// Keep only what goes into each block, and run blocks again on the way back: a third more work, and much less memory
    #[arg(long, conflicts_with = "search")]
    pub(super) checkpoint_activations: bool,

    /// Where to run: cpu, cuda, cuda:N, or auto for a GPU if there is one
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(super) device: String,

    /// The seed of the split and of the order of the samples
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
}

/// Which samples, and which class each is.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "The samples")]
pub(super) struct SetArgs {
    /// The part of every class that is held out
    #[arg(long, value_name = "X", default_value_t = 0.3, value_parser = part, conflicts_with = "val")]
    pub(super) held_out: f64,

    /// The part of the samples that are not held out which chooses the epoch, and takes no part in the gradient
    #[arg(long, value_name = "X", default_value_t = 0.2, value_parser = part, conflicts_with = "search")]
    pub(super) stop_part: f64,

    /// Other samples, to hold out instead
    #[arg(long, value_name = "PATH")]
    pub(super) val: Option<PathBuf>,

    /// The numbers of the classes, as `verify` takes them
    #[arg(long, value_name = "FILE")]
    pub(super) labels: Option<PathBuf>,

    /// How class folders get their numbers without --labels
    #[arg(long, value_enum, value_name = "HOW", conflicts_with = "labels")]
    pub(super) class_ids: Option<Ids>,
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(super) enum Sharing {
    Layer,
    Kind,
    Block,
    All,
}

impl From<Sharing> for Share {
    fn from(sharing: Sharing) -> Share {
        match sharing {
            Sharing::Layer => Share::Layer,
            Sharing::Kind => Share::Kind,
            Sharing::Block => Share::Block,
            Sharing::All => Share::All,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(super) enum Goal {
    Ce,
    Entropy,
}

impl From<Goal> for Objective {
    fn from(goal: Goal) -> Objective {
        match goal {
            Goal::Ce => Objective::CrossEntropy,
            Goal::Entropy => Objective::Entropy,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(super) enum Steps {
    Adamw,
    Sgd,
}

impl From<Steps> for Method {
    fn from(steps: Steps) -> Method {
        match steps {
            Steps::Adamw => Method::AdamW,
            Steps::Sgd => Method::Sgd { momentum: 0.9 },
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(super) enum How {
    /// The best of 21
    Grid,
    /// Golden sections, 24 of them; supposes one valley
    Golden,
}

impl From<How> for Search {
    fn from(how: How) -> Search {
        match how {
            How::Grid => Search::Grid,
            How::Golden => Search::Golden,
        }
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x < 1.0 => Ok(x),
        _ => Err("it is no number between 0 and 1".to_owned()),
    }
}
