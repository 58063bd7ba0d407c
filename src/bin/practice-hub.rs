//! The hub's program: see `practice_gateway::cli::hub`.

use std::process::ExitCode;

/// The same as the gateway's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    practice_gateway::cli::hub::main(std::env::args_os())
}
