//! The hub's program: see `pgw_hub::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgw_hub::cli::main(std::env::args_os())
}
