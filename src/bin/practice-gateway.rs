//! The gateway's program: see `practice_gateway::cli::gateway`.

use std::process::ExitCode;

fn main() -> ExitCode {
    practice_gateway::cli::gateway::main(std::env::args_os())
}
