//! The commands: arguments -> options -> one library call -> rendering. Nothing else prints.

#[cfg(feature = "verify")]
mod convert;
mod diff;
mod fold;
mod graft;
mod inspect;
mod join;
mod lambdas;
#[cfg(feature = "verify")]
mod learn;
mod printer;
mod progress;
mod running;
mod scan;
mod text;
#[cfg(feature = "verify")]
mod verify;

use std::io::{self, ErrorKind};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use printer::Printer;

/// Done, and sound.
const DONE: ExitCode = ExitCode::SUCCESS;
/// Done, with a finding.
const FINDING: u8 = 1;
/// Could not be done.
const FAILED: u8 = 2;

/// Surgery on model checkpoints: look into them, fold auxiliary weights into vision transformers, convert, scan for what would execute.
///
/// Nothing in a checkpoint is ever executed. Results go to standard output, everything else to standard error.
#[derive(Parser, Debug)]
#[command(
    name = "m2pt-surgery",
    version,
    after_help = "Examples:
  m2pt-surgery inspect image.pth
  m2pt-surgery fold image.pth --aux audio.pth --lambda 0.1 -o merged.pth
  m2pt-surgery fold trained_pathway.pth -o plain.safetensors
  m2pt-surgery convert pytorch_model.bin --to timm -o vit.pth
  m2pt-surgery diff image.pth merged.pth
  m2pt-surgery scan downloads/
  m2pt-surgery verify merged.pth --samples val/ --against image.pth
  m2pt-surgery learn image.pth --aux audio.pth --samples train/ -o lambda.json

Exit status: 0 done; 1 done, with a finding; 2 could not be done."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, value_name = "WHEN", help_heading = "Output")]
    color: Colour,

    /// Print nothing but results and errors: no notes, no progress
    #[arg(short, long, global = true, help_heading = "Output")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

#[derive(Subcommand, Debug)]
enum Command {
    Inspect(inspect::Args),
    Fold(Box<fold::Args>),
    Graft(Box<graft::Args>),
    Join(join::Args),
    #[cfg(feature = "verify")]
    Convert(Box<convert::Args>),
    Diff(diff::Args),
    Scan(scan::Args),
    #[cfg(feature = "verify")]
    Verify(Box<verify::Args>),
    #[cfg(feature = "verify")]
    Learn(Box<learn::Args>),
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut printer = Printer::new(cli.color, cli.quiet);
    // Without it the system ends the program in that case, which leaves a scratch file behind and no more.
    let _ = m2pt_surgery::exit_on_shrunk_file(i32::from(FAILED));
    let result = match &cli.command {
        Command::Inspect(args) => inspect::run(args, &mut printer),
        Command::Fold(args) => fold::run(args, &mut printer),
        Command::Graft(args) => graft::run(args, &mut printer),
        Command::Join(args) => join::run(args, &mut printer),
        #[cfg(feature = "verify")]
        Command::Convert(args) => convert::run(args, &mut printer),
        Command::Diff(args) => diff::run(args, &mut printer),
        Command::Scan(args) => scan::run(args, &mut printer),
        #[cfg(feature = "verify")]
        Command::Verify(args) => verify::run(args, &mut printer),
        #[cfg(feature = "verify")]
        Command::Learn(args) => learn::run(args, &mut printer),
    };
    match result.and_then(|code| Ok(printer.flush().map(|()| code)?)) {
        Ok(code) => code,
        // Whoever read the output has seen enough.
        Err(error) if is_broken_pipe(&error) => DONE,
        // All other errors of the operating system come with their file.
        Err(error) if error.is::<io::Error>() => {
            let written = error.downcast_ref::<fold::Written>().map_or(String::new(), |file| format!(", but {file}"));
            printer.error(&format!("cannot write to standard output{written}: {}", error.root_cause()));
            ExitCode::from(FAILED)
        }
        // Lists the roots, one a line, their names escaped.
        Err(error) if matches!(error.downcast_ref(), Some(m2pt_surgery::Error::Root { .. })) => {
            printer.error_lines(&format!("{error:#}"));
            ExitCode::from(FAILED)
        }
        Err(error) => {
            printer.error(&format!("{error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}
