//! The report as JSON: `docs/json.md`.

use m2pt_surgery::model::Config;
use m2pt_surgery::verify::{Accuracy, Comparison, Interval, Rate, Source};
use serde_json::{Value, json};

use super::show::{crop_mode, interpolation};
use super::{Against, Args, Model, Report};

pub(super) fn report(args: &Args, report: &Report<'_>) -> Value {
    let name = |index: usize| report.source.name(index);
    let unreadable = report
        .run
        .failed
        .iter()
        .map(|(index, error)| json!({"sample": name(*index), "why": error.problem.to_string()}));
    let non_finite = report.non_finite.iter().map(|&index| name(index));
    json!({
        "model": model(report.model),
        "folded_in_memory": report.folded,
        "inputs": inputs(report),
        "unreadable": unreadable.collect::<Vec<_>>(),
        "run": run(args, report),
        "accuracy": report.accuracy.as_ref().map(|scored| accuracy(&scored.accuracy, report)),
        "against": report.against.iter().map(|other| against(other, report)).collect::<Vec<_>>(),
        "pathway": report.pathway.as_ref().map(|pathway| {
            let equivalence = &pathway.equivalence;
            let blocks = equivalence.blocks.iter().enumerate().map(|(number, block)| {
                let mut object = distance(block, equivalence.tolerance);
                object["block"] = json!(number);
                object
            });
            let mut object = distance(&equivalence.logits, equivalence.tolerance);
            object["model"] = model(pathway.model);
            object["aux"] = json!(pathway.aux.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>());
            object["replaced"] = json!(
                pathway.replaced.map(|(path, names)| json!({"file": path.to_string_lossy(), "tensors": names}))
            );
            object["layers"] = json!(pathway.layers);
            object["worst"] = json!(equivalence.worst.map(name));
            object["first_block"] = json!(equivalence.first_block());
            object["blocks"] = blocks.collect();
            object
        }),
        "reference": report.reference.as_ref().map(|compared| {
            let mut object = distance(&compared.comparison, compared.tolerance);
            object["file"] = json!(compared.reference.path.to_string_lossy());
            object["dtype"] = json!(compared.reference.dtype.name());
            object
        }),
        "non_finite": non_finite.collect::<Vec<_>>(),
        "saved": args.save_logits.as_ref().map(|path| path.to_string_lossy()),
        "sound": report.sound,
    })
}

fn model(model: &Model<'_>) -> Value {
    let Config { depth, width, heads, patch, image, channels, classes, .. } = &model.detected.config;
    json!({
        "file": model.path().to_string_lossy(),
        "root": model.tensors.root(),
        "architecture": model.detected.known.as_ref().map(|known| &known.name),
        "depth": depth, "width": width, "heads": heads, "patch": [patch.0, patch.1], "image": [image.0, image.1],
        "channels": channels, "classes": classes,
        "activation": model.detected.config.activation.name(),
        "pool": model.detected.config.pool.name(),
        "pathways": model.learned(),
        "guesses": model.detected.guesses,
    })
}

fn inputs(report: &Report<'_>) -> Value {
    match &report.source {
        Source::Noise { images, shape, seed } => json!({"noise": {"images": images, "seed": seed, "shape": shape}}),
        Source::Samples { set, preprocessing } => json!({
            "file": set.path().to_string_lossy(),
            "samples": set.len(),
            "total": set.total(),
            "preprocessing": (!set.is_preprocessed()).then(|| json!({
                "input_size": preprocessing.input_size,
                "crop_pct": preprocessing.crop_pct,
                "crop_mode": crop_mode(preprocessing.crop_mode),
                "interpolation": interpolation(preprocessing.interpolation),
                "mean": preprocessing.mean,
                "std": preprocessing.std,
                "from": report.model.prepared_as,
            })),
        }),
    }
}

fn run(args: &Args, report: &Report<'_>) -> Value {
    let seconds = report.run.computing.first().map_or(0.0, std::time::Duration::as_secs_f64);
    json!({
        "images": report.run.read.len(),
        "device": report.device,
        "dtype": args.run.dtype.dtype().name(),
        "batch": args.run.batch,
        "seconds": seconds,
        "images_per_second": report.run.read.len() as f64 / seconds.max(1e-9),
        "elapsed": report.run.elapsed.as_secs_f64(),
    })
}

fn bounds(object: &mut Value, interval: Interval) {
    object["low"] = json!(interval.low);
    object["high"] = json!(interval.high);
}

fn rate(rate: Rate) -> Value {
    let mut object = json!({"right": rate.right, "samples": rate.samples, "value": rate.value()});
    bounds(&mut object, rate.interval());
    object
}

fn summary(accuracy: &Accuracy) -> Value {
    let loss = accuracy.loss.map(|(mean, interval)| {
        let (low, high) = interval.map(|i| (i.low, i.high)).unzip();
        json!({"mean": mean, "low": low, "high": high, "without": accuracy.no_loss})
    });
    json!({"top1": rate(accuracy.top1), "top5": accuracy.top5.map(rate), "loss": loss})
}

fn accuracy(accuracy: &Accuracy, report: &Report<'_>) -> Value {
    let name = |class: usize| match &report.source {
        Source::Samples { set, .. } => set.classes().get(&class).cloned(),
        Source::Noise { .. } => None,
    };
    let mut object = summary(accuracy);
    let classes = accuracy.classes.iter().map(|class| {
        let mut object = json!({
            "class": class.class, "name": name(class.class), "right": class.rate.right, "samples": class.rate.samples,
            // JSON has no NaN: a class may be predicted and have no samples.
            "value": Some(class.rate.value()).filter(|x| x.is_finite()), "predicted": class.predicted,
        });
        bounds(&mut object, class.rate.interval());
        object
    });
    object["classes"] = classes.collect();
    let cells = accuracy.confusion.iter();
    let cells =
        cells.map(|(&(label, predicted), count)| json!({"label": label, "predicted": predicted, "count": count}));
    object["confusion"] = cells.collect();
    object
}

fn against(other: &Against<'_>, report: &Report<'_>) -> Value {
    let flips = other.flips.iter().map(|flip| {
        let index = other.inputs[flip.sample];
        json!({
            "sample": report.source.name(index), "label": report.source.label(index),
            "model": flip.first, "against": flip.second,
        })
    });
    json!({
        "model": model(other.model),
        "seconds": other.seconds,
        "accuracy": other.accuracy.as_ref().map(summary),
        "paired": other.paired.map(|paired| {
            let mut object = json!({
                "both": paired.both, "only_model": paired.only_first, "only_against": paired.only_second,
                "neither": paired.neither, "difference": paired.difference, "p": paired.p,
                "significant": paired.significant(),
            });
            bounds(&mut object, paired.interval);
            object
        }),
        "flips": flips.collect::<Vec<_>>(),
    })
}

fn distance(comparison: &Comparison, tolerance: f64) -> Value {
    json!({
        "max_abs": comparison.max_abs,
        "mean_abs": comparison.mean_abs(),
        "largest": comparison.largest,
        // JSON has no infinity.
        "relative": Some(comparison.relative()).filter(|x| x.is_finite()),
        "cosine": comparison.cosine(),
        "same_top1": comparison.same_top1,
        "rows": comparison.rows,
        "unordered": comparison.unordered,
        "tolerance": tolerance,
        "equivalent": comparison.within(tolerance),
    })
}
