//! What both daemons need from the machine they run on.
//!
//! - [`config`]: a configuration file as text, and checks that name file, line and key; [`log_config`]: its `[log]` table
//! - [`secret`]: key files, read with their modes checked, created once and never overwritten; [`next_key`]: the one that comes next
//! - [`logs`]: where logs go; [`systemd`]: ready, status, watchdog
//! - [`daemon`]: why a daemon ends, and with which exit code; [`tasks`]: named tasks, stopped stage by stage
//! - [`accept`]: the accept loop of every listener
//! - [`control`]: the socket over which a daemon's commands talk to it, both sides
//! - [`args`], [`exit`], [`progress`]: command lines, exit codes for scripts, progress for people
//! - [`check`]: the report of the `check` commands; [`init`]: what the `init` commands share

pub mod accept;
pub mod args;
pub mod check;
pub mod config;
pub mod control;
pub mod daemon;
pub mod exit;
pub mod init;
pub mod log_config;
pub mod logs;
pub mod next_key;
pub mod progress;
pub mod secret;
pub mod systemd;
pub mod tasks;
