//! The gateway's program: see `pgw_gateway::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgw_gateway::cli::main(std::env::args_os())
}
