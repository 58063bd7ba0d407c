//! Wakes the door when something was written or renamed in its folder, where the system tells of it (inotify).
//!
//! A help only: a shared file system tells nothing of what happens elsewhere, and the door scans every few seconds anyway.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Hears of a folder's changes.
pub(super) struct FolderWatcher {
    told: AsyncFd<OwnedFd>,
}

/// Begins to watch a folder. Blocks.
pub(super) fn watch(folder: &Path) -> io::Result<OwnedFd> {
    let told = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
    inotify::add_watch(&told, folder, what)?;
    Ok(told)
}

impl FolderWatcher {
    /// Of what [`watch`] gave; inside the runtime.
    pub(super) fn new(told: OwnedFd) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe; a descriptor that is owned is registered soundly"
        )]
        let told = AsyncFd::new(told)?;
        Ok(Self { told })
    }

    /// Returns when something has changed; what, a scan shows. Loses nothing when it is cancelled.
    pub(super) async fn wait(&self) -> io::Result<()> {
        let mut ready = self.told.readable().await?;
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.told.get_ref(), &mut space);
        loop {
            match reader.next() {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
