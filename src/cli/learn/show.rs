//! What came of learning, in words and as JSON.

use std::collections::BTreeMap;

use anyhow::Result;
use comfy_table::Cell;
use m2pt_surgery::learn::{Ended, Evaluation, Objective};
use serde_json::{Value, json};

use super::{Args, Report};
use crate::cli::lambdas;
use crate::cli::printer::{Printer, right};
use crate::cli::text::{counted, printable};
use crate::cli::verify::words;

fn ended(ended: Ended) -> &'static str {
    match ended {
        Ended::Done => "done",
        Ended::Early => "early",
        Ended::Cancelled => "cancelled",
        Ended::NotFinite(_) => "not finite",
    }
}

pub(super) fn report(args: &Args, report: &Report<'_>, printer: &mut Printer) -> Result<()> {
    let fitted = &report.fitted;
    for (number, aux) in args.aux.iter().enumerate() {
        if args.aux.len() > 1 {
            printer.line(format!("auxiliary {}", printable(&aux.display().to_string())))?;
        }
        let entries = report.learner.entries(number, &fitted.values);
        let by_layer: BTreeMap<_, _> = entries.map(|(_, id, lambda)| (id, f64::from(lambda))).collect();
        printer.table(&lambdas::table(&by_layer, printer))?;
    }

    let loss = match report.options.objective {
        Objective::CrossEntropy => "cross-entropy",
        Objective::Entropy => "entropy",
    };
    let held_out = counted(report.held_out.len(), "held-out sample");
    let mut table = printer.new_table(&[&*held_out, loss, "accuracy"]);
    let cell = |evaluation: &Evaluation| match evaluation.accuracy(report.held_out.labels()) {
        Some(accuracy) => words::percent(accuracy, report.held_out.len()),
        None => "-".to_owned(),
    };
    let single = format!("{:+.4} in all", report.single);
    let trained = report.without.as_ref().map(|evaluation| ("trained, lambda = 0", evaluation));
    let rows = [("lambda = 0", &report.zero), (single.as_str(), &report.of_single), ("learned", &report.learned)];
    for (name, evaluation) in rows.into_iter().chain(trained) {
        table.add_row(vec![Cell::new(name), right(format!("{:.4}", evaluation.loss())), right(cell(evaluation))]);
    }
    printer.table(&table)?;

    if args.learning.search.is_none() {
        let steps = counted(fitted.losses.len(), "step");
        let why = match fitted.ended {
            Ended::Early => ", after which the loss on those that choose the epoch fell no more",
            Ended::Done => "",
            Ended::Cancelled => ", then stopped",
            Ended::NotFinite(_) => ", then not finite",
        };
        printer.line(format!(
            "{} of {} in {steps}{why}; lambdas of epoch {}",
            counted(report.learner.lambdas(), "lambda"),
            counted(report.fit.len(), "sample"),
            fitted.best
        ))?;
    }
    let (difference, interval) = report.difference;
    let within = interval.map_or(String::new(), |i| format!(" (95 %: {:+.4} to {:+.4})", i.low, i.high));
    printer.line(format!("{loss}, learned less lambda = 0: {difference:+.4}{within}"))?;
    if let Some((difference, interval)) = report.of_lambdas {
        let within = interval.map_or(String::new(), |i| format!(" (95 %: {:+.4} to {:+.4})", i.low, i.high));
        printer.line(format!("{loss}, learned less trained with lambda = 0: {difference:+.4}{within}"))?;
    }
    if let Some(paired) = &report.paired {
        printer.line(format!(
            "accuracy: right only with the learned lambdas {}, only with 0 {}; {}",
            paired.only_first,
            paired.only_second,
            words::probability(paired.p)
        ))?;
    }
    let than = if report.without.is_some() { "the target, and than the same with lambda = 0," } else { "lambda = 0" };
    if report.better {
        printer.line(format!("better than {than} on the held-out samples, by more than chance explains"))?;
    } else {
        printer.line(format!("NOT better than {than} on the held-out samples by more than chance explains"))?;
    }
    let mut output = printable(&args.output.display().to_string());
    if let Some(tensors) = &args.tensors {
        output = format!("{output}, {}", printable(&tensors.display().to_string()));
    }
    match (&args.fold, report.written) {
        (Some(_), false) => {
            let what = if args.tensors.is_some() {
                "neither lambda file, parameters nor"
            } else {
                "neither the lambda file nor"
            };
            printer.line(format!("{what} the fold was written; --accept writes them all the same"))?
        }
        (Some(fold), true) if report.folded => {
            printer.line(format!("wrote {output} and {}", printable(&fold.display().to_string())))?
        }
        _ => printer.line(format!("wrote {output}"))?,
    }
    Ok(())
}

pub(super) fn json(args: &Args, report: &Report<'_>) -> Value {
    let scores = |evaluation: &Evaluation| json!({"loss": evaluation.loss(), "accuracy": evaluation.accuracy(report.held_out.labels())});
    let fitted = &report.fitted;
    let step = if let Ended::NotFinite(step) = fitted.ended { Some(step) } else { None };
    let interval = report.difference.1.map(|interval| [interval.low, interval.high]);
    json!({
        "target": args.target,
        "aux": args.aux,
        "fit_samples": report.fit.len(),
        "stop_samples": report.stop.len(),
        "held_out_samples": report.held_out.len(),
        "parameters": report.learner.lambdas(),
        "trained": report.learner.trained().iter().map(|trained| trained.name()).collect::<Vec<_>>(),
        "steps": fitted.losses.len(),
        "ended": ended(fitted.ended),
        "not_finite_at_step": step,
        "best_epoch": fitted.best,
        "held_out": {
            "zero": scores(&report.zero),
            "single": {"lambda": report.single, "loss": report.of_single.loss(),
                "accuracy": report.of_single.accuracy(report.held_out.labels())},
            "learned": scores(&report.learned),
            "trained_without_lambdas": report.without.as_ref().map(scores),
        },
        "loss_difference": {"mean": report.difference.0, "interval": interval},
        "accuracy_difference": report.paired.as_ref().map(|paired| json!({
            "only_learned_right": paired.only_first, "only_zero_right": paired.only_second,
            "difference": paired.difference, "interval": [paired.interval.low, paired.interval.high], "p": paired.p,
        })),
        "of_lambdas": report.of_lambdas.map(|(mean, interval)| json!({
            "mean": mean, "interval": interval.map(|interval| [interval.low, interval.high]),
        })),
        "better": report.better,
        "written": report.written,
        "folded": args.fold.is_some() && report.written && report.folded,
        "lambdas": super::lambda_sets(report.learner, &fitted.values),
        "epochs": report.history,
        "seconds_of_steps": fitted.seconds,
    })
}
