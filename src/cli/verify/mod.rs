//! `verify`: run a model, and say what came of it.

mod args;
mod json;
mod models;
mod show;
pub(super) mod words;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use m2pt_surgery::data::{ClassIds, LabelMap, SampleOptions, SampleSet};
use m2pt_surgery::model::Branches;
use m2pt_surgery::verify::{
    Accuracy, Comparison, Equivalence, Flip, Paired, Pathway, Reference, Run, SavedLogits, Source, Subject,
    default_tolerance, flips, run as run_models,
};
use m2pt_surgery::{Checkpoint, DType};

pub(super) use args::{Args, Ids, ImageArgs, ModelArgs};
use models::request;
pub(super) use models::{Model, device, root};

use super::printer::Printer;
use super::progress::Bar;
use super::text::{counted, printable};
use super::{DONE, FINDING};

/// Images of noise, where there is nothing else to run.
const NOISE: usize = 16;

const ONLY_ON_SAMPLES: &str = "models can only be compared on samples: give them with --samples";

/// What came of it all.
struct Report<'r> {
    model: &'r Model<'r>,
    /// Whether the model's pathways were folded in memory.
    folded: bool,
    device: String,
    source: Source,
    run: Run,
    accuracy: Option<Scored>,
    against: Vec<Against<'r>>,
    pathway: Option<Unfolded<'r>>,
    reference: Option<Compared>,
    /// Inputs with NaN or infinity in their logits.
    non_finite: Vec<usize>,
    sound: bool,
}

/// How often the model is right, and the labels that were counted.
struct Scored {
    accuracy: Accuracy,
    labels: Vec<usize>,
}

/// Another model on the same samples.
struct Against<'r> {
    model: &'r Model<'r>,
    accuracy: Option<Accuracy>,
    paired: Option<Paired>,
    /// Inputs that both were run on, in order.
    inputs: Vec<usize>,
    /// Of these, those that they predict differently.
    flips: Vec<Flip>,
    seconds: f64,
}

/// The pathway that the model should be the fold of.
struct Unfolded<'r> {
    model: &'r Model<'r>,
    aux: Vec<PathBuf>,
    /// The file whose tensors replace some of its own, and their names.
    replaced: Option<(&'r Path, &'r [String])>,
    layers: usize,
    equivalence: Equivalence,
}

/// Logits computed elsewhere.
struct Compared {
    reference: Reference,
    comparison: Comparison,
    tolerance: f64,
}

pub(super) fn run(args: &Args, printer: &mut Printer) -> Result<ExitCode> {
    let (device, device_name) = device(&args.run.device)?;
    if let Some(path) = &args.save_logits {
        SavedLogits::check(path, args.force)?;
    }
    let reference = match &args.reference {
        Some(path) => Some(Reference::open(path, args.reference_array.as_deref())?),
        None => None,
    };

    // The files stay open as long as their models run.
    let file = Checkpoint::open(&args.checkpoint)?;
    let other_files = args.against.iter().map(Checkpoint::open).collect::<Result<Vec<_>, _>>()?;
    let fold =
        args.pathway.as_ref().map(|path| Ok::<_, anyhow::Error>(request(path, &args.fold)?.open()?)).transpose()?;
    let pairing = fold.as_ref().map(Pathway::new).transpose().context("--pathway")?;

    let model = Model::new(&args.model, &args.images, file.state_dict(&root(args.model.root.as_ref()))?, printer)?;
    let other_root = root(args.against_root.as_ref());
    let others = other_files
        .iter()
        .map(|file| Model::new(&args.model, &args.images, file.state_dict(&other_root)?, printer))
        .collect::<Result<Vec<_>>>()?;
    let target = match &pairing {
        Some(pairing) => Some(Model::new(&args.model, &args.images, pairing.target.tensors.clone(), printer)?),
        None => None,
    };
    for note in pairing.iter().flat_map(Pathway::notes) {
        printer.note(note);
    }
    // A pathway alone is compared with its own fold.
    let folded = target.is_none() && model.learned() > 0;
    let unfolded = if folded { Some(&model) } else { target.as_ref() };

    let set = samples(args, reference.as_ref(), printer)?;
    if let Some(set) = &set {
        let by_place = args.set.labels.is_none() && args.set.class_ids.is_none();
        check_classes(by_place, set, std::iter::once(&model).chain(&others))?;
    }
    let source = source(args, set.clone(), &model, unfolded.is_some(), printer)?;

    let vit = model.load(args, &device, Branches::default(), folded)?;
    let branches = pairing.as_ref().map(Pathway::branches).unwrap_or_default();
    let reference_vit = unfolded.map(|unfolded| unfolded.load(args, &device, branches, false)).transpose()?;
    let vits = others.iter().map(|other| other.load(args, &device, Branches::default(), false));
    let other_vits = vits.collect::<Result<Vec<_>>>()?;

    // Models for which images are prepared alike share them.
    let shared: Vec<bool> = others.iter().map(|other| prepared_alike(&source, &model, other)).collect();
    let paths: Vec<PathBuf> =
        std::iter::once(&model).chain(unfolded).chain(&others).map(|m| m.path().to_owned()).collect();
    let first_other = 1 + usize::from(unfolded.is_some());
    let subject = |vit, number: usize| Subject { vit, path: &paths[number] };
    let mut subjects = vec![subject(&vit, 0)];
    subjects.extend(reference_vit.iter().map(|vit| subject(vit, 1)));
    let sharing = (0..others.len()).filter(|&number| shared[number]);
    subjects.extend(sharing.map(|number| subject(&other_vits[number], first_other + number)));
    let run = go(args, &subjects, &source, printer)?;
    if run.read.is_empty() {
        match run.failed.first() {
            Some((_, error)) => bail!("none of {} can be read: {error}", counted(source.len(), "sample")),
            None => bail!("there are no samples to run"),
        }
    }

    let scored = scored(&source, &run, model.detected.config.classes, printer);
    let mut against = Vec::new();
    let mut place = first_other;
    for (number, other) in others.iter().enumerate() {
        let scored = scored.as_ref().map(|scored| scored.labels.as_slice());
        if shared[number] {
            against.push(compare(other, &run, (&run, place), scored, &source));
            place += 1;
        } else {
            let source = Source::Samples { set: need_set(set.as_ref())?, preprocessing: other.preprocessing.clone() };
            let own = go(args, &[subject(&other_vits[number], first_other + number)], &source, printer)?;
            against.push(compare(other, &run, (&own, 0), scored, &source));
        }
    }

    let types = |models: &[&Model<'_>]| tolerance(args, models, &[]);
    let pathway = match (unfolded, subjects.get(1).filter(|_| unfolded.is_some())) {
        (Some(unfolded), Some(&reference)) => {
            let tolerance = types(&[&model, unfolded]);
            let equivalence = Equivalence::new(&run, [(1, reference), (0, subjects[0])], &source, tolerance)?;
            let aux = args.fold.aux.len();
            let files = pairing.iter().flat_map(|pairing| &pairing.aux).take(aux);
            let aux = files.map(|aux| aux.tensors.checkpoint().path().to_owned()).collect();
            let layers = pairing.as_ref().map_or_else(|| model.learned(), Pathway::layers);
            let replaced = pairing.as_ref().and_then(|pairing| pairing.target.replaced.as_ref());
            let replaced = replaced.map(|replaced| (replaced.tensors.checkpoint().path(), replaced.names.as_slice()));
            Some(Unfolded { model: unfolded, aux, replaced, layers, equivalence })
        }
        _ => None,
    };
    let reference = match reference {
        Some(reference) => {
            let rows = reference.rows_of(&source, &run.read, run.logits[0].classes())?;
            let comparison = Comparison::of(&rows, &run.logits[0]);
            let tolerance = tolerance(args, &[&model], &[reference.dtype]);
            Some(Compared { reference, comparison, tolerance })
        }
        None => None,
    };
    let non_finite: Vec<usize> = run.logits[0].non_finite().into_iter().map(|row| run.read[row]).collect();
    if let Some(path) = &args.save_logits {
        save(args, path, &source, &run)?;
    }
    let sound = run.failed.is_empty()
        && non_finite.is_empty()
        && pathway.as_ref().is_none_or(|pathway| pathway.equivalence.holds())
        && reference.as_ref().is_none_or(|compared| compared.comparison.within(compared.tolerance));
    let model = &model;
    let report = Report {
        model,
        folded,
        device: device_name,
        source,
        run,
        accuracy: scored,
        against,
        pathway,
        reference,
        non_finite,
        sound,
    };
    if args.json {
        printer.json(&json::report(args, &report))?;
    } else {
        show::report(args, &report, printer)?;
    }
    Ok(if sound { DONE } else { ExitCode::from(FINDING) })
}

/// The sample set: the one that was named, or that in the file of the reference.
fn samples(args: &Args, reference: Option<&Reference>, printer: &mut Printer) -> Result<Option<SampleSet>> {
    let path = match (&args.samples, reference) {
        (Some(path), _) => path,
        (None, Some(reference)) if reference.has_inputs => {
            printer.note(&format!("the inputs are those in {}", reference.path.display()));
            &reference.path
        }
        (None, Some(reference)) => bail!(
            "{} has logits and no `inputs`: give the samples that they were computed from with --samples",
            reference.path.display()
        ),
        (None, None) => return Ok(None),
    };
    let labels = args.set.labels.as_ref().map(LabelMap::open).transpose().context("--labels")?;
    let options = SampleOptions {
        labels,
        class_ids: args.set.class_ids.map(ClassIds::from).unwrap_or_default(),
        shuffle_seed: args.set.shuffle_seed,
        limit: args.set.limit,
    };
    Ok(Some(SampleSet::open(path, &options)?))
}

fn need_set(set: Option<&SampleSet>) -> Result<SampleSet> {
    set.cloned().context(ONLY_ON_SAMPLES)
}

/// What the models are run on.
fn source(
    args: &Args,
    set: Option<SampleSet>,
    model: &Model<'_>,
    equivalence: bool,
    printer: &mut Printer,
) -> Result<Source> {
    match set {
        Some(set) => Ok(Source::Samples { set, preprocessing: model.preprocessing.clone() }),
        None if !args.against.is_empty() => bail!("{ONLY_ON_SAMPLES}"),
        None if equivalence => {
            let images = args.set.limit.unwrap_or(NOISE);
            let seed = args.set.noise_seed;
            printer.note(&format!(
                "no --samples: run on {} of seeded noise (seed {seed}), which shows whether the models compute the same \
                 and not how good they are",
                counted(images, "image")
            ));
            Ok(Source::Noise { images, shape: model.preprocessing.input_size, seed })
        }
        None => bail!(
            "there is nothing to verify: give --samples, or what the model should be equal to (--pathway, --reference)"
        ),
    }
}

/// Checks that the labels are classes of the models; `by_place` is whether folders have their numbers by no more than their places.
pub(super) fn check_classes<'m>(
    by_place: bool,
    set: &SampleSet,
    models: impl Iterator<Item = &'m Model<'m>>,
) -> Result<()> {
    for model in models {
        let Some(classes) = model.detected.config.classes else { continue };
        let path = model.path().display();
        let folders = set.classes().len();
        if by_place && folders > 0 && folders != classes {
            bail!(
                "{} has {}, and {path} has {}: say which class each folder is (--labels FILE), that their names are the \
                 numbers (--class-ids numbers), or that they are the first classes in order (--class-ids places)",
                set.path().display(),
                counted(folders, "class folder"),
                words::classes(classes),
            );
        }
        let beyond = set.samples().iter().find(|sample| sample.label().is_some_and(|label| label >= classes));
        if let Some((sample, label)) = beyond.and_then(|sample| Some((sample, sample.label()?))) {
            bail!(
                "{}: {:?} has the class {label}, and {path} has {} (0 to {}): say which class is which number with \
                 --labels FILE",
                set.path().display(),
                sample.name(),
                words::classes(classes),
                classes.saturating_sub(1),
            );
        }
    }
    Ok(())
}

/// Whether two models take the same inputs.
fn prepared_alike(source: &Source, a: &Model<'_>, b: &Model<'_>) -> bool {
    match source {
        Source::Samples { set, .. } if set.is_preprocessed() => true,
        Source::Samples { .. } => a.preprocessing == b.preprocessing,
        Source::Noise { .. } => true,
    }
}

fn go(args: &Args, subjects: &[Subject<'_>], source: &Source, printer: &Printer) -> Result<Run> {
    let threads = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.run.threads.unwrap_or_else(threads);
    let mut bar = Bar::counting(source.len() as u64, "running", printer.quiet() || args.json);
    Ok(run_models(subjects, source, args.run.batch, threads, &mut bar)?)
}

/// Scores the inputs that have a label.
fn scored(source: &Source, run: &Run, classes: Option<usize>, printer: &mut Printer) -> Option<Scored> {
    let labelled = run.read.iter().enumerate().filter_map(|(row, &index)| Some((row, source.label(index)?)));
    let (rows, labels): (Vec<usize>, Vec<usize>) = labelled.unzip();
    if rows.is_empty() {
        return None;
    }
    if classes.is_none() {
        printer.note("the model has no head: its features are compared, and labels are not looked at");
        return None;
    }
    if rows.len() < run.read.len() {
        let without = run.read.len() - rows.len();
        printer.note(&format!("{} without a label: run, and not counted", counted(without, "sample")));
    }
    let accuracy = Accuracy::new(&run.logits[0].select(&rows), &labels);
    Some(Scored { accuracy, labels })
}

/// Compares predictions on the inputs that both models were run on.
fn compare<'r>(
    other: &'r Model<'r>,
    ours: &Run,
    (theirs, number): (&Run, usize),
    labels: Option<&[usize]>,
    source: &Source,
) -> Against<'r> {
    let row_of: HashMap<usize, usize> = theirs.read.iter().enumerate().map(|(row, &index)| (index, row)).collect();
    let both = ours.read.iter().enumerate().filter_map(|(row, index)| Some((row, *row_of.get(index)?)));
    let rows: Vec<(usize, usize)> = both.collect();
    let inputs: Vec<usize> = rows.iter().map(|&(row, _)| ours.read[row]).collect();
    let (our_rows, their_rows): (Vec<usize>, Vec<usize>) = rows.into_iter().unzip();
    let (a, b) = (ours.logits[0].select(&our_rows), theirs.logits[number].select(&their_rows));
    let (first, second) = (a.predictions(), b.predictions());
    let paired = labels.map(|_| {
        let labelled: Vec<(usize, usize)> =
            inputs.iter().enumerate().filter_map(|(row, &index)| Some((row, source.label(index)?))).collect();
        let (rows, labels): (Vec<usize>, Vec<usize>) = labelled.into_iter().unzip();
        let of = |predictions: &[Option<usize>]| rows.iter().map(|&row| predictions[row]).collect::<Vec<_>>();
        (Paired::new(&of(&first), &of(&second), &labels), Accuracy::new(&b.select(&rows), &labels))
    });
    let (paired, accuracy) = paired.unzip();
    let seconds = theirs.computing[number].as_secs_f64();
    Against { model: other, accuracy, paired, inputs, flips: flips(&first, &second), seconds }
}

/// What may be between logits: what was asked for, or what the coarsest type among weights, run and `others` asks for.
fn tolerance(args: &Args, models: &[&Model<'_>], others: &[DType]) -> f64 {
    let stored = [DType::F16, DType::BF16].into_iter().filter(|&dtype| models.iter().any(|model| model.has(dtype)));
    let types = stored.chain([args.run.dtype.dtype()]).chain(others.iter().copied());
    args.tolerance.unwrap_or_else(|| types.map(default_tolerance).fold(0.0, f64::max))
}

fn save(args: &Args, path: &Path, source: &Source, run: &Run) -> Result<()> {
    let names: Vec<String> = run.read.iter().map(|&index| source.name(index)).collect();
    let labels: Option<Vec<usize>> = run.read.iter().map(|&index| source.label(index)).collect();
    let saved = SavedLogits { logits: &run.logits[0], labels: labels.as_deref(), samples: &names };
    Ok(saved.write(path, args.force)?)
}

/// A file's path for printing.
fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}
