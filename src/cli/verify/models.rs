//! The models to run: what they are, and how images are prepared for them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use m2pt_surgery::data::Preprocessing;
use m2pt_surgery::model::{Branches, Config, Detected, Hints, Known, Load, Vit};
use m2pt_surgery::verify::VerifyError;
use m2pt_surgery::{
    AUX_WEIGHT, AuxRequest, Checkpoint, DType, Device as Wanted, FoldRequest, LambdaSpec, RootChoice, StateDict,
};
use serde_json::Value;

use super::Args;
use super::args::{FoldArgs, ImageArgs, ModelArgs};
use crate::cli::fold;
use crate::cli::printer::Printer;
use crate::cli::running;
use crate::cli::text::bytes;

/// A checkpoint and what it was taken for.
pub(in crate::cli) struct Model<'c> {
    pub(super) tensors: StateDict<'c>,
    pub(in crate::cli) detected: Detected,
    pub(in crate::cli) preprocessing: Preprocessing,
    /// Where the preprocessing is from, in words.
    pub(super) prepared_as: String,
}

/// The part of a file that a flag names.
pub(in crate::cli) fn root(path: Option<&String>) -> RootChoice {
    path.cloned().map_or(RootChoice::Auto, RootChoice::Path)
}

impl<'c> Model<'c> {
    /// Finds out what the model is. Guesses are printed as such.
    pub(in crate::cli) fn new(
        args: &ModelArgs,
        images: &ImageArgs,
        tensors: StateDict<'c>,
        printer: &mut Printer,
    ) -> Result<Model<'c>> {
        let checkpoint = tensors.checkpoint();
        let path = checkpoint.path();
        let known = known(args, path, printer).with_context(|| path.display().to_string())?;
        let said_by = known.as_ref().map(|(_, by)| by.clone());
        let hints = Hints {
            known: known.map(|(known, _)| known),
            mentioned: mentioned(checkpoint),
            heads: args.heads,
            activation: args.act,
            pool: args.pool,
            image: images.input_size,
        };
        let detected = Config::detect(&tensors, &hints).map_err(|source| refused(path, source))?;
        for guess in &detected.guesses {
            printer.note(&format!("{}: {guess}", path.display()));
        }
        let (preprocessing, prepared_as) = prepare(images, &detected, said_by)?;
        Ok(Model { tensors, detected, preprocessing, prepared_as })
    }

    /// Reads the weights.
    pub(super) fn load(&self, args: &Args, device: &Device, branches: Branches<'_, 'c>, fold: bool) -> Result<Vit<'c>> {
        let precision = args.run.dtype.precision();
        let load = Load { precision, branches, fold, ..Load::new(device) };
        let vit = Vit::load(&self.detected.config, &self.tensors, &load);
        Ok(vit.map_err(|source| refused(self.path(), source))?)
    }

    pub(super) fn path(&self) -> &'c Path {
        self.tensors.checkpoint().path()
    }

    /// How many layers have a learned pathway.
    pub(super) fn learned(&self) -> usize {
        let auxiliary = |name: &str| name.strip_suffix(AUX_WEIGHT).is_some_and(|rest| rest.ends_with('.'));
        self.tensors.specs().iter().filter(|spec| auxiliary(&spec.name)).count()
    }

    /// Whether a weight is of that type.
    pub(super) fn has(&self, dtype: DType) -> bool {
        self.tensors.specs().iter().any(|spec| spec.dtype == dtype)
    }
}

fn refused(path: &Path, source: m2pt_surgery::model::ModelError) -> VerifyError {
    VerifyError::Model { path: path.to_owned(), source: Box::new(source) }
}

/// The architecture that a flag or a configuration names, and which of them does.
fn known(args: &ModelArgs, path: &Path, printer: &mut Printer) -> Result<Option<(Known, String)>> {
    if let Some(name) = &args.arch {
        return Ok(Some((Known::find(name).context("--arch")?, format!("--arch {name}"))));
    }
    if let Some(config) = &args.config {
        let known = Known::from_json(&read_json(config)?).with_context(|| config.display().to_string())?;
        return Ok(Some((known, config.display().to_string())));
    }
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let beside = folder.join("config.json");
    if !beside.is_file() {
        return Ok(None);
    }
    let unused = |why: anyhow::Error| format!("{} is not used: {why:#}", beside.display());
    match read_json(&beside).and_then(|json| Ok(Known::from_json(&json)?)) {
        Ok(known) => Ok(Some((known, beside.display().to_string()))),
        Err(why) => {
            printer.note(&unused(why));
            Ok(None)
        }
    }
}

fn read_json(path: &Path) -> Result<Value> {
    /// Bytes of the longest configuration read; timm's have a few thousand.
    const LONGEST: u64 = 16 << 20;
    let read = || -> Result<Value> {
        let length = std::fs::metadata(path)?.len();
        if length > LONGEST {
            bail!("it is no configuration: it is larger than {}", bytes(LONGEST));
        }
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// The name of an architecture that training scripts leave in a checkpoint: timm's `arch`, or their arguments' `model`.
fn mentioned(checkpoint: &Checkpoint) -> Option<String> {
    let values = checkpoint.values();
    let arguments = ["args", "hyper_parameters"].iter().filter_map(|key| values.get(*key)?.as_object());
    let name = |map: &serde_json::Map<String, Value>| {
        ["arch", "architecture", "model"].iter().find_map(|key| map.get(*key)?.as_str().map(str::to_owned))
    };
    name(&values).or_else(|| arguments.into_iter().find_map(name))
}

/// How images are prepared: as the architecture's configuration says, and then as the flags do.
fn prepare(flags: &ImageArgs, detected: &Detected, said_by: Option<String>) -> Result<(Preprocessing, String)> {
    let config = &detected.config;
    let (mut preprocessing, mut origin) = match &detected.known {
        Some(known) => {
            let said = Value::Object(known.preprocessing.clone());
            let preprocessing = Preprocessing::from_timm(&said)?;
            (preprocessing, said_by.unwrap_or_else(|| format!("guessed: as timm's {}", known.name)))
        }
        None => (Preprocessing::default(), "guessed: timm's defaults".to_owned()),
    };
    preprocessing.input_size = [config.channels, config.image.0, config.image.1];
    let mut given = Vec::new();
    if let Some(crop_pct) = flags.crop_pct {
        preprocessing.crop_pct = crop_pct;
        given.push("--crop-pct");
    }
    if let Some(mode) = flags.crop_mode {
        preprocessing.crop_mode = mode;
        given.push("--crop-mode");
    }
    if let Some(filter) = flags.interpolation {
        preprocessing.interpolation = filter;
        given.push("--interpolation");
    }
    for (name, flag, values) in
        [("--mean", &flags.mean, &mut preprocessing.mean), ("--std", &flags.std, &mut preprocessing.std)]
    {
        if let Some(flag) = flag {
            values.clone_from(flag);
            given.push(name);
        }
        // One number is that of all channels.
        if let &[one] = values.as_slice() {
            *values = vec![one; config.channels];
        }
        // ImageNet's numbers are for three channels; a model of one takes grey images.
        if flag.is_none() && config.channels == 1 && values.len() == 3 {
            *values = vec![values.iter().sum::<f64>() / 3.0];
        }
    }
    if !given.is_empty() {
        origin = format!("{origin}; {}", given.join(", "));
    }
    Ok((preprocessing, origin))
}

/// Where models are run, and its name.
pub(in crate::cli) fn device(name: &str) -> Result<(Device, String)> {
    let cuda = |number: usize| -> Result<(Device, String)> {
        if !cfg!(feature = "cuda") {
            bail!("--device {name}: this program was built without CUDA; build it with --features cuda");
        }
        let device = Device::new_cuda(number).with_context(|| format!("--device {name}"))?;
        Ok((device, format!("cuda:{number}")))
    };
    match running::device(name)? {
        Wanted::Cuda(number) => cuda(number),
        Wanted::Auto if candle_core::utils::cuda_is_available() => cuda(0),
        Wanted::Cpu | Wanted::Auto => Ok((Device::Cpu, "cpu".to_owned())),
    }
}

/// The fold that the checkpoint should be, as the flags describe it.
pub(super) fn request(path: &Path, flags: &FoldArgs) -> Result<FoldRequest> {
    let mut request = FoldRequest::without_output(path);
    request.aux = flags.aux.iter().map(|text| fold::aux(text)).collect::<Result<Vec<AuxRequest>>>()?;
    request.lambda = match (&flags.lambda, &flags.lambda_file) {
        (Some(text), _) => Some(LambdaSpec::parse(text).context("--lambda")?),
        (None, Some(path)) => Some(fold::lambda_file(path)?),
        (None, None) => None,
    };
    request.kinds.clone_from(&flags.layers);
    request.blocks.clone_from(&flags.blocks);
    request.bias = flags.bias.into();
    request.depth_mismatch = flags.depth_mismatch.into();
    request.target_root = root(flags.pathway_root.as_ref());
    request.aux_root = root(flags.aux_root.as_ref());
    request.replace.clone_from(&flags.replace);
    request.replace_root = root(flags.replace_root.as_ref());
    Ok(request)
}
