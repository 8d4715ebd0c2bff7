//! The program: the command line with the plugins that the repository ships.

use std::process::ExitCode;

fn main() -> ExitCode {
    circuit_tuning::main()
}
