//! The folder door: files that a sender leaves in a folder, a local or a shared one (design section 8).
//!
//! A file is read, submitted, and only then removed from the folder. So at any moment it is in the folder or behind
//! the outbox's barrier, and after a crash perhaps in both: the door then finds it again, recognises it by name, time
//! and content, and it is stored once.
//!
//! | in the folder | what |
//! |---|---|
//! | `*` | the sender's files; the oldest is taken first |
//! | `.taken/` | only ours: stored files, until their slip is written |
//! | `accepted/` | an acceptance slip for each file; the file too, if configured |
//! | `rejected/` | refused files, each with its reason |
//!
//! File names contain patient names: they appear in no log, no health message, no error and no transaction.
//!
//! - [`rules`], [`documents`] and `debounce` are pure: which names are taken, what is written beside them, which files
//!   are still being written
//! - `list` and `scan` list the folder, `read` reads one file, `settled_files` moves files and writes slips; all of that blocks
//! - `scanner` combines them, [`door`] starts a scan every few seconds, `watcher` earlier if inotify reports a change
//! - [`config`]: the settings of one door

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
