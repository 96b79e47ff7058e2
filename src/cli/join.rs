//! `join`: the index of an output that was written in parts.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::DONE;
use super::printer::Printer;
use super::text::{bytes, counted, printable};

/// Complete an output whose shards were written in parts: check that all are there, and write the index
///
/// It reads the plan that `fold --shard` has left beside the shards, compares their sizes and headers with it, writes the index, and
/// removes the plan.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  m2pt-surgery join merged/
  m2pt-surgery join merged.safetensors

Exit status: 0 complete; 2 shards are missing, or are not those of the plan.")]
pub(super) struct Args {
    /// The output as `fold` was given it, or the plan: *.index.json.parts
    output: PathBuf,

    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, printer: &mut Printer) -> Result<ExitCode> {
    let joined = m2pt_surgery::join(&args.output)?;
    if args.json {
        let index = joined.index.to_string_lossy();
        printer.json(&json!({"index": index, "shards": joined.shards, "bytes": joined.bytes}))?;
    } else {
        let index = printable(&joined.index.display().to_string());
        printer.line(format!("{index}: {}, {}", counted(joined.shards, "shard"), bytes(joined.bytes)))?;
    }
    Ok(DONE)
}
