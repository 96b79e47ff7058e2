//! `learn`: lambdas from samples, and what they are worth.

mod args;
mod plot;
mod saved;
mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use m2pt_surgery::data::{ClassIds, LabelMap, SampleOptions, SampleSet};
use m2pt_surgery::learn::{
    Augment, Ended, Epoch, Evaluation, FitOptions, Fitted, Learner, Objective, Samples, Search, Share, State, TextFile,
    Train, safetensors, split,
};
use m2pt_surgery::verify::{Interval, Paired, Pathway, Source, statistics};
use m2pt_surgery::{AuxRequest, FoldRequest, LambdaSpec, Schedule};
use serde_json::Value;

pub(super) use args::Args;

use super::printer::Printer;
use super::progress::Bar;
use super::text::{bytes, counted};
use super::verify::{Model, check_classes, device, root};
use super::{DONE, FINDING};

/// What came of it all.
struct Report<'r> {
    learner: &'r Learner<'r, 'r>,
    fit: &'r Samples,
    /// They choose the epoch; none with a search.
    stop: &'r Samples,
    held_out: &'r Samples,
    options: &'r FitOptions,
    fitted: Fitted,
    history: Vec<Epoch>,
    /// The best lambda for all layers, chosen on the samples that were fitted.
    single: f32,
    /// On the held-out samples: lambda = 0, the single one, the learned ones.
    zero: Evaluation,
    of_single: Evaluation,
    learned: Evaluation,
    /// The trained parameters without the lambdas, if there are such.
    without: Option<Evaluation>,
    /// The learned ones' accuracy less that of lambda = 0.
    paired: Option<Paired>,
    /// The learned ones' loss less that of lambda = 0, and its interval.
    difference: (f64, Option<Interval>),
    /// The same, less that of the trained parameters without the lambdas, if there are such.
    of_lambdas: Option<(f64, Option<Interval>)>,
    better: bool,
    written: bool,
    /// Whether the fold was made, where one was asked for and written.
    folded: bool,
}

pub(super) fn run(args: &Args, printer: &mut Printer) -> Result<ExitCode> {
    let flags = &args.learning;
    let options = FitOptions {
        objective: flags.objective.into(),
        init: flags.init,
        lr: flags.lr,
        epochs: flags.epochs,
        batch: flags.batch,
        seed: Some(flags.seed),
        method: flags.optimizer.into(),
        augment: Augment { flip: flags.flip, crop: flags.crop },
        weight_decay: flags.weight_decay,
        l1: flags.l1,
        max_abs: flags.max_abs,
        clip: flags.clip,
        patience: flags.patience,
    };
    options.check()?;
    check_outputs(args)?;
    // Both are started before anything is computed, so that hours are not spent on what cannot be written.
    let mut output = TextFile::create(&args.output, args.force)?;
    let mut log = args.log.as_ref().map(|path| TextFile::create(path, args.force)).transpose()?;
    let mut picture = args.plot.as_ref().map(|path| TextFile::create(path, args.force)).transpose()?;
    let mut tensors = args.tensors.as_ref().map(|path| TextFile::create(path, args.force)).transpose()?;
    let merged = args.fold.as_ref().map(|path| fold_request(args, path)).transpose()?;
    if let Some(merged) = merged.clone() {
        // What the fold refuses is refused now: its plan does not depend on the lambdas.
        merged.open()?.plan().context("--fold")?;
    }

    let mut request = FoldRequest::without_output(&args.target);
    choose(&mut request, args, 0.0);
    let inputs = request.open()?;
    let pathway = Pathway::new(&inputs)?;
    pathway.notes().iter().for_each(|note| printer.note(note));
    let model = Model::new(&args.model, &args.images, pathway.target.tensors.clone(), printer)?;
    let share = if flags.search.is_some() { Share::All } else { flags.share.into() };
    let (device, _) = device(&flags.device)?;
    let what = Train { head: flags.train_head, norms: flags.train_norms };
    let mut learner = Learner::new(&pathway, &model.detected.config, share)?;
    if what != Train::default() {
        learner = learner.train(what)?;
    }
    let on_cpu = device.is_cpu();
    let learner = learner.on(device).again(flags.checkpoint_activations);

    let Sets { fit, stop, held_out } = samples(args, &model, options.objective, printer)?;
    let of_samples = (fit.len() + stop.len() + held_out.len()) as u64 * input_bytes(&model);
    // A state is written as text, of which this is room for one.
    let of_state = if args.state.is_some() { 140 * (learner.numbers() - learner.lambdas()) as u64 } else { 0 };
    let needed = learner.bytes(options.batch.min(fit.len())) + of_samples + of_state;
    let what = match flags.search {
        None => {
            let lambdas = format!("{} of {}", counted(learner.lambdas(), "lambda"), counted(learner.layers(), "layer"));
            match learner.trained().len() {
                0 => lambdas,
                many => format!("{lambdas}, and {} of the target's own,", counted(many, "parameter")),
            }
        }
        Some(_) => format!("one lambda of {}", counted(learner.layers(), "layer")),
    };
    printer.note(&format!(
        "learning {what} from {}, {} to choose the epoch, {} held out; about {} of memory",
        counted(fit.len(), "sample"),
        stop.len(),
        held_out.len(),
        bytes(needed)
    ));
    if let Some(free) = free_memory().filter(|&free| on_cpu && free < needed) {
        let way_out = match flags.checkpoint_activations || flags.search.is_some() {
            true => "a smaller --batch needs less",
            false => "--checkpoint-activations needs less, and so does a smaller --batch",
        };
        printer.note(&format!("{} of memory are free, which is less: {way_out}", bytes(free)));
    }
    let quiet = printer.quiet() || args.json;
    let mut history = Vec::new();
    let fitted = match flags.search {
        None => {
            let run = Run { learner: &learner, fit: &fit, stop: &stop, options: &options, quiet };
            let saved = args.state.as_ref().map(|path| saved::Saved::new(path, &pathway, &run, args)).transpose()?;
            run.learn(saved, log.as_mut(), &mut history, printer)?
        }
        Some(how) => {
            let mut bar = Bar::counting(25, "searching", quiet);
            let lambda = learner.search(&fit, how.into(), &options, &mut bar)?;
            Fitted { values: learner.start(lambda), best: 0, ended: Ended::Done, losses: Vec::new(), seconds: 0.0 }
        }
    };
    let ended = fitted.ended;
    if ended == Ended::Cancelled {
        printer.note("stopped: these are the best lambdas so far");
    }
    // Once asked to stop it does no more than it has to: what it has is reported.
    let mut bar = Bar::counting(21, "comparing with one lambda", quiet);
    let mut uninterrupted = Uninterrupted(&mut bar);
    let single = match flags.search {
        None if ended == Ended::Cancelled => 0.0,
        None => learner.search(&evenly(&fit, COMPARED), Search::Grid, &options, &mut uninterrupted)?,
        Some(_) => fitted.values[0],
    };
    let evaluate = |values: &[f32]| learner.evaluate(values, &held_out, options.objective, &());
    let (zero, of_single) = (evaluate(&learner.start(0.0))?, evaluate(&learner.start(single))?);
    let learned = evaluate(&fitted.values)?;
    // Which part of it is due to the lambdas.
    let without = match learner.trained().is_empty() {
        true => None,
        false => {
            let (none, own) = (vec![0.0; learner.lambdas()], &fitted.values[learner.lambdas()..]);
            Some(evaluate(&[&none[..], own].concat())?)
        }
    };
    drop(bar);

    let less = |other: &Evaluation| {
        let differences: Vec<f64> = learned.losses.iter().zip(&other.losses).map(|(a, b)| a - b).collect();
        statistics::mean(&differences).unwrap_or((f64::NAN, None))
    };
    let below = |difference: &(f64, Option<Interval>)| difference.1.is_some_and(|interval| interval.high < 0.0);
    let (difference, of_lambdas) = (less(&zero), without.as_ref().map(less));
    // Where a head was trained, a better model says nothing of lambdas.
    let better = below(&difference) && of_lambdas.as_ref().is_none_or(below);
    let labels: Option<Vec<usize>> = held_out.labels().iter().copied().collect();
    let paired = labels.map(|labels| Paired::new(&learned.logits.predictions(), &zero.logits.predictions(), &labels));
    warn(&learner, &fitted, &options, printer);

    let written = better || args.fold.is_none() || args.accept;
    if written {
        if let Some(mut tensors) = tensors.take() {
            tensors.write_bytes(&safetensors(learner.trained(), &fitted.values))?;
            tensors.publish()?;
        }
        output.write(&lambda_file(&learner, &fitted.values)?)?;
        output.publish()?;
    }
    if let Some(log) = log {
        log.publish()?;
    }
    if let Some(mut picture) = picture.take() {
        picture.write(&plot::draw(&learner, &fitted, &history, (zero.loss(), learned.loss()))?)?;
        picture.publish()?;
    }
    let folded = match merged.filter(|_| written) {
        Some(merged) => fold(merged, args, quiet).context("the lambda file was written, but not the fold"),
        None => Ok(()),
    };
    let report = Report {
        learner: &learner,
        fit: &fit,
        stop: &stop,
        held_out: &held_out,
        options: &options,
        fitted,
        history,
        single,
        zero,
        of_single,
        learned,
        without,
        paired,
        difference,
        of_lambdas,
        better,
        written,
        folded: folded.is_ok(),
    };
    if args.json {
        printer.json(&show::json(args, &report))?
    } else {
        show::report(args, &report, printer)?
    }
    folded?;
    let sound = better && !matches!(ended, Ended::NotFinite(_));
    Ok(if sound { DONE } else { ExitCode::from(FINDING) })
}

/// Folds what was learned and written.
fn fold(mut request: FoldRequest, args: &Args, quiet: bool) -> Result<()> {
    for (aux, lambdas) in request.aux.iter_mut().zip(super::fold::lambda_sets(&args.output)?) {
        aux.lambda = Some(lambdas);
    }
    request.replace.clone_from(&args.tensors);
    let inputs = request.open()?;
    let fold = inputs.plan()?;
    fold.run(&mut Bar::new(fold.work_bytes(), "folding", quiet))?;
    Ok(())
}

/// Counts, and is not asked to stop.
struct Uninterrupted<'b>(&'b mut Bar);

impl m2pt_surgery::Progress for Uninterrupted<'_> {
    fn advance(&mut self, count: u64) {
        self.0.advance(count);
    }
}

/// Samples, at most, that choose the one lambda which learned ones are compared with: it takes 21 passes over them.
const COMPARED: usize = 512;

/// At most `most` of the samples, as far apart as they can be.
fn evenly(samples: &Samples, most: usize) -> Samples {
    let taken = samples.len().min(most);
    samples.select(&(0..taken).map(|n| n * samples.len() / taken).collect::<Vec<_>>())
}

/// Bytes that can be had without swapping, where the system tells.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The files to write have to be different ones, and none that is read.
fn check_outputs(args: &Args) -> Result<()> {
    if args.tensors.is_some() && !args.learning.train_head && !args.learning.train_norms {
        bail!("--tensors is for what --train-head or --train-norms trains, and neither is given");
    }
    if let Some(path) = args.tensors.as_ref().filter(|path| path.extension().is_none_or(|ext| ext != "safetensors")) {
        bail!("--tensors {}: it has to be a .safetensors file", path.display());
    }
    let outputs = [
        ("-o", Some(&args.output)),
        ("--log", args.log.as_ref()),
        ("--fold", args.fold.as_ref()),
        ("--plot", args.plot.as_ref()),
        ("--state", args.state.as_ref()),
        ("--tensors", args.tensors.as_ref()),
    ];
    let outputs: Vec<(&str, &Path)> =
        outputs.into_iter().filter_map(|(flag, path)| Some((flag, path?.as_path()))).collect();
    let others = [args.set.val.as_ref(), args.set.labels.as_ref(), args.model.config.as_ref()];
    let inputs = [&args.target, &args.samples].into_iter().chain(&args.aux).chain(others.into_iter().flatten());
    let inputs: Vec<PathBuf> = inputs.filter_map(|input| input.canonicalize().ok()).collect();
    for (number, (flag, path)) in outputs.iter().enumerate() {
        let place = place(path);
        if let Some((other, _)) = outputs[..number].iter().find(|(_, other)| self::place(other) == place) {
            bail!("{other} and {flag} are the same file");
        }
        // Files of a folder that is read, too: a sharded target's, an image's.
        if path.canonicalize().is_ok_and(|path| inputs.iter().any(|input| path.starts_with(input))) {
            bail!("{flag} would replace {}, which is read", path.display());
        }
    }
    Ok(())
}

/// The path by its folder's one true name, so that two spellings of it are the same.
fn place(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

/// The auxiliaries, all with that lambda, and the layers that are to have some.
fn choose(request: &mut FoldRequest, args: &Args, lambda: f64) {
    let lambda = LambdaSpec::All(Schedule::Constant(lambda));
    request.aux = args.aux.iter().map(|path| AuxRequest { path: path.clone(), lambda: Some(lambda.clone()) }).collect();
    request.target_root = root(args.model.root.as_ref());
    request.kinds.clone_from(&args.learning.layers);
    request.blocks.clone_from(&args.learning.blocks);
    request.depth_mismatch = args.learning.depth_mismatch.into();
    request.bias = args.learning.bias.into();
}

fn fold_request(args: &Args, path: &Path) -> Result<FoldRequest> {
    let mut request = FoldRequest::new(&args.target, path).context("--fold")?;
    choose(&mut request, args, 0.1);
    request.force = args.force;
    Ok(request)
}

fn input_bytes(model: &Model<'_>) -> u64 {
    model.preprocessing.input_size.iter().product::<usize>() as u64 * 4
}

/// Samples that have nothing in common.
struct Sets {
    /// For the gradient.
    fit: Samples,
    /// To choose the epoch; none with a search, which has no epochs.
    stop: Samples,
    /// To judge.
    held_out: Samples,
}

fn samples(args: &Args, model: &Model<'_>, objective: Objective, printer: &mut Printer) -> Result<Sets> {
    let labels = args.set.labels.as_ref().map(LabelMap::open).transpose().context("--labels")?;
    let class_ids = args.set.class_ids.map(ClassIds::from).unwrap_or_default();
    let by_place = args.set.labels.is_none() && args.set.class_ids.is_none();
    let quiet = printer.quiet() || args.json;
    let read = |path: &Path| -> Result<Samples> {
        let set =
            SampleSet::open(path, &SampleOptions { labels: labels.clone(), class_ids, ..SampleOptions::default() })?;
        check_classes(by_place, &set, std::iter::once(model))?;
        set.check(&model.preprocessing)?;
        let source = Source::Samples { set, preprocessing: model.preprocessing.clone() };
        let samples = Samples::read(&source, &mut Bar::counting(source.len() as u64, "reading", quiet))?;
        samples.check(objective, model.detected.config.classes.unwrap_or_default())?;
        Ok(samples)
    };
    let all = read(&args.samples)?;
    let (fit, held_out) = match &args.set.val {
        Some(val) => (all, read(val).context("--val")?),
        None => {
            let (fit, held_out) = split(all.labels(), args.set.held_out, args.learning.seed)?;
            let parts = (all.select(&fit), all.select(&held_out));
            drop(all);
            parts
        }
    };
    let classes: std::collections::BTreeSet<_> = fit.labels().iter().flatten().collect();
    if objective == Objective::CrossEntropy && classes.len() == 1 {
        printer.note("all samples are of one class: lambdas learn to say that class, whatever the image");
    }
    if args.learning.search.is_some() {
        return Ok(Sets { stop: fit.select(&[]), fit, held_out });
    }
    let (fitted, stop) = split(fit.labels(), args.set.stop_part, args.learning.seed).context("--stop-part")?;
    Ok(Sets { stop: fit.select(&stop), fit: fit.select(&fitted), held_out })
}

/// What is fitted, to what, and how.
struct Run<'r> {
    learner: &'r Learner<'r, 'r>,
    fit: &'r Samples,
    stop: &'r Samples,
    options: &'r FitOptions,
    quiet: bool,
}

impl Run<'_> {
    /// Fits, and tells of every epoch: the bar, the log, `history`, and what is `saved` to go on from.
    fn learn(
        &self,
        saved: Option<saved::Saved>,
        mut log: Option<&mut TextFile>,
        history: &mut Vec<Epoch>,
        printer: &mut Printer,
    ) -> Result<Fitted> {
        let mut from = None;
        if let Some((epochs, state)) = saved.as_ref().map(saved::Saved::read).transpose()?.flatten() {
            printer.note(&format!("going on after epoch {}", state.epoch()));
            (*history, from) = (epochs, Some(state));
        } else if saved.as_ref().is_some_and(saved::Saved::resumes) {
            printer.note("there is no state to go on from yet: beginning at the first epoch");
        }
        if let Some(log) = &mut log {
            for epoch in history.iter() {
                log.write(&format!("{}\n", serde_json::to_string(epoch)?))?;
            }
        }
        let bar = Bar::counting((self.fit.len() * self.options.epochs) as u64, "learning", self.quiet);
        let said = bar.clone();
        let mut bar = bar;
        let mut failed = None;
        let mut each = |epoch: &Epoch, state: &State| {
            let accuracy = epoch.stop_accuracy.map_or(String::new(), |x| format!(", {:.1} %", x * 100.0));
            said.say(format!(
                "epoch {} loss {:.4} stop {:.4}{accuracy} lr {:.1e}",
                epoch.epoch,
                epoch.fit_loss.unwrap_or(f64::NAN),
                epoch.stop_loss,
                epoch.lr
            ));
            if let Some(log) = &mut log {
                log.write(&format!("{}\n", serde_json::to_string(epoch).unwrap_or_default()))?;
            }
            history.push(epoch.clone());
            if let Some(saved) = &saved
                && let Err(error) = saved.write(history, state)
                && failed.is_none()
            {
                failed = Some(error);
            }
            Ok(())
        };
        let fitted = self.learner.fit(self.fit, self.stop, self.options, from, &mut bar, &mut each)?;
        if let Some(error) = failed {
            printer.note(&format!("{error:#}; what was learned is not lost"));
        }
        Ok(fitted)
    }
}

/// What should make a reader of the lambdas careful.
fn warn(learner: &Learner<'_, '_>, fitted: &Fitted, options: &FitOptions, printer: &mut Printer) {
    if let Ended::NotFinite(step) = fitted.ended {
        printer.note(&format!(
            "the loss or its gradient was NaN or infinite at step {step}: stopped there; these are the last good lambdas. Try a \
             smaller --lr or --max-abs"
        ));
    }
    if fitted.values[..learner.lambdas()].iter().all(|lambda| *lambda == options.init) {
        printer.note(&format!("the lambdas did not move from {}: nothing that was tried is better", options.init));
    }
    let bound = f64::from(options.max_abs as f32);
    let entries = |aux| learner.entries(aux, &fitted.values).filter(|entry| f64::from(entry.2.abs()) >= bound).count();
    let hit: usize = (0..learner.auxiliaries()).map(entries).sum();
    if hit > 0 {
        printer.note(&format!("{} at the bound of --max-abs {}", counted(hit, "layer"), options.max_abs));
    }
}

/// The lambdas as `fold` reads them, each the decimal that is exactly the float32: an object, or a list of one for each auxiliary.
fn lambda_file(learner: &Learner<'_, '_>, lambdas: &[f32]) -> Result<String> {
    let sets = lambda_sets(learner, lambdas);
    let value = if sets.len() == 1 { sets[0].clone() } else { Value::Array(sets) };
    Ok(format!("{}\n", serde_json::to_string_pretty(&value)?))
}

/// The lambdas of each auxiliary by the names of layers.
fn lambda_sets(learner: &Learner<'_, '_>, lambdas: &[f32]) -> Vec<Value> {
    let entries = |aux| learner.entries(aux, lambdas).map(|(name, _, l)| (name.to_owned(), Value::from(f64::from(l))));
    (0..learner.auxiliaries()).map(|aux| Value::Object(entries(aux).collect())).collect()
}
