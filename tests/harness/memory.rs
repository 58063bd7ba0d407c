//! A process's memory, according to the kernel.

use std::path::Path;

/// `VmRSS` or `VmHWM` of a process, bytes.
fn status(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).expect("a line");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

/// Resident now, bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    status(pid, "VmRSS")
}

/// The peak of resident memory since the start or the last [`forget_peak`], bytes.
pub(crate) fn peak(pid: u32) -> u64 {
    status(pid, "VmHWM")
}

/// Resets the peak.
pub(crate) fn forget_peak(pid: u32) {
    std::fs::write(Path::new("/proc").join(pid.to_string()).join("clear_refs"), "5").expect("written");
}
