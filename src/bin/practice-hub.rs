//! The hub's program: see `practice_gateway::cli::hub`.

use std::process::ExitCode;

/// The same as the gateway's.
fn main() -> ExitCode {
    practice_gateway::cli::hub::main(std::env::args_os())
}
