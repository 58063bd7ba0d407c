//! From a sender to the hub's store and back, on the real programs and a real Mosquitto, while everything on the way fails.
//!
//! Every test has its own site, broker and proxy; a fault is given to one process (`harness/shim.rs`) or to one link,
//! never to this process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops at the first thing that goes wrong, and prints"
)]

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../hub_kit/mod.rs"]
mod hub_kit;
mod uplink_kit;

mod another_box;
mod archive;
mod attacks;
mod backup;
mod end_to_end;
mod fault_matrix;
mod hand_carry;
mod harness_self;
mod hub;
mod repair;
mod resend;
mod stores;
mod uplink;
