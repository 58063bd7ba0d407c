//! The gateway's program alone, from the point of view of its senders, its operators and systemd: doors, command line,
//! daemon, configuration, and what is shipped in `deploy/`.
//!
//! Every test has its own site (directory, ports, certificates, processes). Nothing here changes this process: a
//! daemon's environment is given to that daemon.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops at the first thing that goes wrong, and prints"
)]

mod corpus_kit;
#[allow(dead_code, unused_imports, reason = "all of it is used, and what is not is found, in tests/pipeline")]
#[path = "../harness/mod.rs"]
mod harness;
mod http_kit;
#[path = "../harness/memory.rs"]
mod memory;

mod bad_input;
mod clients;
mod command_line;
mod configuration;
mod corpus;
mod daemon;
mod deploy;
mod doors;
mod folder;
mod gateway_list;
mod http;
mod limits;
mod release;
mod sequence_order;
mod signing_key;
