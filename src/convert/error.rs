//! Why a conversion cannot be done.

use crate::container::MAX_NAME_BYTES;
use crate::model::ModelError;
use crate::naming::MapProblem;

/// Why a conversion cannot be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertProblem {
    /// An expression that nothing matches.
    #[error("{option} {pattern:?} matches no tensor's name")]
    NothingMatches {
        /// The option.
        option: &'static str,
        /// The expression.
        pattern: String,
    },
    /// Nothing is left to write.
    #[error("no tensor is left to write")]
    NothingLeft,
    /// No family is recognised.
    #[error(
        "its names are of no family that is known; name one with --family (m2pt-surgery convert --families lists them), write a table \
         file of your own, or rename tensors with --rename"
    )]
    NoFamily,
    /// The names do not fit the family.
    #[error(transparent)]
    Map(#[from] MapProblem),
    /// An option that is for timm's names only.
    #[error("{option} is for models under timm's names; add --to timm")]
    NeedsTimm {
        /// The option.
        option: &'static str,
    },
    /// An option that is about a model of timm's, where the output has a family's names.
    #[error(
        "{option} is about models under timm's names, and the output has those of {family}: convert with it --to timm first, and what \
         that writes to the family"
    )]
    NotForFamilies {
        /// The option.
        option: &'static str,
        /// The family's title.
        family: String,
    },
    /// A head that is asked for and left out.
    #[error(
        "--head drop and --num-classes 0 leave the head out; --head zero and other --num-classes ask for one: choose one of both"
    )]
    HeadOrNone,
    /// Another way to make positions, of which none are made.
    #[error("--positions ast would do nothing: the positions are those of the output's grid already")]
    NothingResampled,
    /// `.pth` has no place for values.
    #[error(
        "--keep-values writes into the header of a safetensors file, and a .pth file has none: write .safetensors, or leave it out"
    )]
    ValuesInPth,
    /// Nor for provenance.
    #[error("{option} is for the header of a safetensors file, and a .pth file has none: leave it out")]
    NoHeader {
        /// The option.
        option: &'static str,
    },
    /// Two tensors would have one name.
    #[error("both {first:?} and {second:?} would be called {name:?}")]
    Collision {
        /// The name.
        name: String,
        /// What the first is made of.
        first: String,
        /// What the second is made of.
        second: String,
    },
    /// A name that no reader would take.
    #[error(
        "--rename or --add-prefix makes a name of {bytes} bytes of {from:?}; names have {MAX_NAME_BYTES} bytes at most"
    )]
    LongName {
        /// What the tensor is made of.
        from: String,
        /// The length of its name.
        bytes: usize,
    },
    /// A tensor of a shape that an option is not for.
    #[error("{option} does not fit: {name:?} is {shape:?}, {wanted}")]
    Shape {
        /// The option.
        option: &'static str,
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What is needed.
        wanted: String,
    },
    /// An option that needs another one.
    #[error("{option} does nothing by itself: add {other}")]
    Alone {
        /// The option.
        option: &'static str,
        /// What it needs.
        other: &'static str,
    },
    /// A tensor that an option needs is not there.
    #[error("{option} needs {name:?}, which the model has not got")]
    Lacks {
        /// The option.
        option: &'static str,
        /// The tensor.
        name: String,
    },
    /// A trained pathway.
    #[error(
        "{name:?} is the lambda of a trained pathway, which timm's VisionTransformer has no place for: fold it first (m2pt-surgery fold)"
    )]
    Pathway {
        /// The tensor.
        name: String,
    },
    /// Patches over frames.
    #[error(
        "its patches reach over {frames} frames, and timm's VisionTransformer takes images: say how the frames become one with --tubelet \
         sum (a video that stands still keeps its features), mean or center, or take the tokenizer of another model with --drop \
         'patch_embed' --fill-from FILE"
    )]
    Frames {
        /// How many.
        frames: usize,
    },
    /// Frames for timm.
    #[error("timm's VisionTransformer takes images: --inflate is for families of videos, --to videomae for example")]
    Inflated,
    /// A grid that cannot be told.
    #[error("{positions} positions of patches are no square grid: give its rows and columns with --grid ROWSxCOLUMNS")]
    Grid {
        /// How many.
        positions: usize,
    },
    /// What the architecture needs is missing.
    #[error(
        "{architecture} needs {}, which the input has not got: take it from a model that has with --fill-from FILE",
        list(missing)
    )]
    Missing {
        /// The architecture.
        architecture: String,
        /// The tensors.
        missing: Vec<String>,
    },
    /// It is no model of timm's.
    #[error("{0}")]
    Model(#[source] ModelError, String),
    /// Rows that a family does not keep are not zero.
    #[error("{name:?} has numbers where {family} keeps none (the key's bias): they would be lost")]
    NotZero {
        /// The tensor.
        name: String,
        /// The family's title.
        family: String,
    },
    /// A folder for timm needs to know the model.
    #[error(
        "the architecture is none that timm knows by name, and its {what} cannot be said in a config.json: name it with --arch"
    )]
    NotInJson {
        /// What cannot be said.
        what: &'static str,
    },
    /// Names of other classes than the model's.
    #[error(
        "--labels has {labels} names and the model {}: give one name a line, in the order of the classes",
        if *classes == 0 { "no head".to_owned() } else { format!("{classes} classes") }
    )]
    Labels {
        /// How many names.
        labels: usize,
        /// How many classes.
        classes: usize,
    },
    /// A cast of a type that nothing has.
    #[error("--dtype {pattern:?} matches no floating-point tensor")]
    NothingCast {
        /// The expression.
        pattern: String,
    },
}

fn list(names: &[String]) -> String {
    const LISTED: usize = 6;
    let shown: Vec<String> = names.iter().take(LISTED).map(|name| format!("{name:?}")).collect();
    let more = if names.len() > LISTED { format!(" and {} more", names.len() - LISTED) } else { String::new() };
    shown.join(", ") + &more
}
