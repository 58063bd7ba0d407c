//! Wakes the door when something was written or renamed in its folder, if the system reports it (inotify).
//!
//! This only saves time: a shared file system does not report what other machines do, and the door scans every few
//! seconds anyway.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Receives a folder's changes.
pub(super) struct FolderWatcher {
    descriptor: AsyncFd<OwnedFd>,
}

/// Starts to watch a folder. Blocks.
pub(super) fn watch(folder: &Path) -> io::Result<OwnedFd> {
    let descriptor = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
    inotify::add_watch(&descriptor, folder, what)?;
    Ok(descriptor)
}

impl FolderWatcher {
    /// From the descriptor of [`watch`]; inside the runtime.
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe; a descriptor that is owned is registered soundly"
        )]
        let descriptor = AsyncFd::new(descriptor)?;
        Ok(Self { descriptor })
    }

    /// Returns when something has changed; a scan shows what. Cancelling it loses nothing.
    pub(super) async fn wait(&self) -> io::Result<()> {
        let mut ready = self.descriptor.readable().await?;
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.descriptor.get_ref(), &mut space);
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
