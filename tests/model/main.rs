//! Tests within one process: the models of delivery and of the outbox, the hub's store and its thread, the wire
//! vectors and the fuzz corpus.
//!
//! **No test here starts a process.** These tests close a store and open it again at once; a child that another test is
//! starting at that moment still holds a copy of the store's lock until it executes its program. `tests/tidy/main.rs` checks it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops at the first thing that goes wrong, and prints"
)]

#[path = "../hub_kit/mod.rs"]
mod hub_kit;
#[path = "../seeds.rs"]
mod seeds;
mod world;

mod exhaustive;
mod fuzz_corpus;
mod hand_carry;

mod hub_archive;
mod hub_backup;
mod hub_holes;
mod hub_import;
mod hub_late;
mod hub_line;
mod hub_store;
mod hub_store_thread;
mod hub_verify;
mod outbox_model;
mod simulation;
mod wire_vectors;
