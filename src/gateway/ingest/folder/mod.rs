//! The folder door: files that a sender leaves in a folder, a local or a shared one (design section 8).
//!
//! A file is read, submitted, and only then taken out of the folder, so that at any moment it is in the folder or behind
//! the outbox's barrier, and after a crash in both: it is found again, known by its name, time and content, and stored once.
//!
//! | in the folder | what |
//! |---|---|
//! | `*` | what the sender leaves; the oldest is taken first |
//! | `.taken/` | ours alone: files that are stored, until their receipt is written |
//! | `accepted/` | a receipt for each; the file too, if the site says so |
//! | `rejected/` | refused files, each with its reason |
//!
//! File names carry patient names: they are in no log, no health, no error and no transaction.
//!
//! - [`rules`], [`papers`] and `settle` are pure: which names are taken, what is written beside them, what is still written to
//! - `scan` looks into the folder, `read` reads one file, `shelf` moves files and writes receipts; all of that blocks
//! - `rounds` brings them together, [`door`] begins a round every few seconds, `news` earlier where the system tells of changes

pub mod door;
#[cfg(test)]
mod door_tests;
mod news;
pub mod papers;
mod read;
mod rounds;
pub mod rules;
mod scan;
mod settle;
mod shelf;
