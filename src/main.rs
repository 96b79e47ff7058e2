//! The program `m2pt-surgery`: parses its arguments, calls the library, prints what came of it.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
