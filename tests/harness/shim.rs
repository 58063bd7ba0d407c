//! A process of ours under `shim.c`: its disk, its resolver and its clock fail when a test says so.

use std::ffi::OsString;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What fails; several may at once.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Failing {
    /// Every write to a file: EIO.
    Write = 1,
    /// Every fsync, fdatasync and sync_file_range: EIO.
    Sync = 2,
    /// Every write and every new file: ENOSPC.
    Space = 4,
    /// Every write, open for writing and change of a directory: EROFS.
    Remounted = 8,
    /// Looking up a name takes as long as this lasts.
    Resolver = 16,
}

/// One process's shim.
pub struct Shim {
    page: std::fs::File,
    path: PathBuf,
    under: PathBuf,
}

impl Shim {
    /// For a process whose files are below `under`; the shim's own page is next to them.
    pub fn new(under: &Path, page: PathBuf) -> Self {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&page)
            .expect("the shim's page");
        file.write_all_at(&[0; 16], 0).expect("written");
        Self { page: file, path: page, under: under.to_owned() }
    }

    /// The environment for starting the process.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        [
            ("LD_PRELOAD", library().as_os_str()),
            ("PGW_SHIM", self.path.as_os_str()),
            ("PGW_SHIM_UNDER", self.under.as_os_str()),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .to_vec()
    }

    /// From now on this fails, and nothing else.
    pub fn fail(&self, failing: Failing) {
        self.page.write_all_at(&(failing as u32).to_ne_bytes(), 0).expect("written");
    }

    /// Everything works again.
    pub fn heal(&self) {
        self.page.write_all_at(&0_u32.to_ne_bytes(), 0).expect("written");
    }

    /// How often the process has met a fault: a row without one proves nothing.
    pub fn met(&self) -> u32 {
        let mut bytes = [0; 4];
        self.page.read_exact_at(&mut bytes, 4).expect("read");
        u32::from_ne_bytes(bytes)
    }

    /// Shifts the wall clock by this much; the monotonic clock stays as it is.
    pub fn shift_clock(&self, seconds: i64) {
        self.page.write_all_at(&seconds.to_ne_bytes(), 8).expect("written");
    }
}

/// Built once for each test program, with the C compiler that Rust links with.
fn library() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let directory = tempfile::TempDir::with_prefix("pgw-shim-").expect("a directory");
        let path = directory.path().join("shim.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/harness/shim.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .arg(&path)
            .arg(source)
            .arg("-ldl")
            .output()
            .expect("these tests need a C compiler: apt-get install gcc libc6-dev");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        (directory, path)
    });
    path
}
