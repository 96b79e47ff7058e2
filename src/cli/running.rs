//! How a plan is run: what all commands that write checkpoints have in common.

use std::num::{NonZeroU64, NonZeroUsize};

use m2pt_surgery::{Device, RunOptions};

use super::text::{positive, size};

/// Options of commands that write checkpoints.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Running")]
pub(super) struct RunArgs {
    /// How many threads compute and write [default: as many as there are processors, at most 16]
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,

    /// Write at most so many bytes a second: 200MB, 1GiB
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    limit_rate: Option<NonZeroU64>,

    /// Do not wait for the disk: faster, but a power failure soon afterwards may leave a damaged file under the output's name
    #[arg(long)]
    no_sync: bool,

    /// Put SHA-256 of every input into the provenance in a safetensors header: a second or so for each gigabyte
    #[arg(long, conflicts_with = "no_metadata")]
    hash_inputs: bool,
}

fn rate(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(size(text)?).ok_or_else(|| "at that rate it would never be done".to_owned())
}

impl RunArgs {
    pub(super) fn options(&self, allow_non_finite: bool) -> RunOptions {
        let RunArgs { threads, limit_rate, no_sync, hash_inputs } = *self;
        let threads = threads.and_then(NonZeroUsize::new);
        RunOptions { allow_non_finite, threads, limit_rate, no_sync, hash_inputs, device: Device::Cpu }
    }
}

/// `--device` in words; what it may be is the same for all commands that have it.
pub(super) fn device(text: &str) -> anyhow::Result<Device> {
    Device::parse(text).ok_or_else(|| anyhow::anyhow!("--device {text}: the devices are cpu, cuda, cuda:N, auto"))
}
