//! The gateway's program: see `practice_gateway::cli::gateway`.

use std::process::ExitCode;

/// Gives memory back after each dropped segment, which glibc's allocator does not.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    practice_gateway::cli::gateway::main(std::env::args_os())
}
