//! The folder door: files that a sender leaves in a folder, a local or a shared one (design section 8).
//!
//! A file is read, submitted, and only then taken out of the folder, so that at any moment it is in the folder or behind
//! the outbox's barrier, and after a crash in both: it is found again, known by its name, time and content, and stored once.
//!
//! | in the folder | what |
//! |---|---|
//! | `*` | what the sender leaves; the oldest is taken first |
//! | `.taken/` | ours alone: files that are stored, until their slip is written |
//! | `accepted/` | an acceptance slip for each; the file too, if the site says so |
//! | `rejected/` | refused files, each with its reason |
//!
//! File names carry patient names: they are in no log, no health, no error and no transaction.
//!
//! - [`rules`], [`documents`] and `debounce` are pure: which names are taken, what is written beside them, what is still written to
//! - `list` and `scan` list the folder, `read` reads one file, `settled_files` moves files and writes slips; all of that blocks
//! - `scanner` brings them together, [`door`] begins a scan every few seconds, `watcher` earlier where the system tells of changes
//! - [`config`]: what one door is told

pub mod config;
mod debounce;
pub mod documents;
pub mod door;
#[cfg(test)]
mod door_tests;
#[cfg(test)]
mod faults_for_tests;
mod list;
mod read;
pub mod rules;
mod scan;
mod scanner;
mod settled_files;
mod watcher;
