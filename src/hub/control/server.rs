//! What the running hub does for its commands.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, sync_channel};
use std::time::{Duration, Instant};

use pgw_bundle::keys::Identity;
use pgw_bundle::receipts::SignedReceipt;
use pgw_core::consequence::Consequence;
use pgw_core::transaction::Lane;
use pgw_host::control::server::{PROGRESS, SendReply};
use pgw_host::control::{Conversation, Handler, NotDone};
use pgw_host::secret;
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{PIECE_BYTES, Reply, Request};
use crate::HubSettings;
use crate::backup::{self, BackupError, BegunBackup, NewBackup};
use crate::gateways::current::CurrentGateways;
use crate::import::{self, BundleFile, ImportError, ImportedLane, KeysError};
use crate::imported::{Part, Tally};
use crate::keys;
use crate::resend::{CopiesProgress, ResendRequest};
use crate::store::{LaneName, archived};
use crate::store_thread::Arrival;
use crate::unsigned::{self, Kept};
use crate::waits::{Admission, WaitReason};

/// Shortest time between two lines about an import's progress.
const BETWEEN: Duration = Duration::from_secs(1);
/// How much of the store's disk an import leaves free, bytes: a full disk would stop every surgery's transactions.
const RESERVE_BYTES: u64 = 1 << 30;
/// The answer while the hub stops; the client may ask again.
const HUB_STOPS: &str = "the hub is stopping: run this command again once it has restarted";

const BUG: &str = "internal error: a bug in this program";

/// The hub's side of its control socket.
#[derive(Debug, Clone)]
pub struct Commands {
    settings: HubSettings,
    arrivals: Sender<Arrival>,
    stop: watch::Receiver<bool>,
    gateways: CurrentGateways,
    /// One import at a time: each takes space on the store's disk.
    importing: Arc<Mutex<()>>,
    /// One backup at a time begins or ends.
    backing_up: Arc<Mutex<()>>,
}

impl Commands {
    /// `arrivals` leads to the store thread.
    #[must_use]
    pub fn new(
        settings: HubSettings,
        arrivals: Sender<Arrival>,
        stop: watch::Receiver<bool>,
        gateways: CurrentGateways,
    ) -> Self {
        Self { settings, arrivals, stop, gateways, importing: Arc::default(), backing_up: Arc::default() }
    }
}

impl Handler for Commands {
    type Request = Request;
    type Reply = Reply;

    async fn answer(&self, request: Request, client: &mut Conversation) -> io::Result<()> {
        match request {
            Request::Import { bytes, receipts, unsigned } => {
                self.import(bytes, Options { receipts, unsigned }, client).await
            }
            Request::Resend { practice, gateway, lane, epoch, from, through } => {
                let lane = LaneName { practice, gateway, lane };
                self.resend(ResendRequest { lane, epoch, from, through }, client).await
            }
            Request::BackupBegin { directory } => self.backup_begin(directory, client).await,
            Request::BackupDone { digest } => client.send_line(&self.backup_done(digest).await).await,
            Request::LaneAdmit { lane, reason } => {
                client.send_line(&self.lane_admit(lane, reason).await).await
            }
            Request::TakeRemains { practice, gateway, lane, file } => {
                let lane = LaneName { practice, gateway, lane };
                client.send_line(&self.take_remains(lane, file).await).await
            }
            Request::Reload {} => {
                let gateways = self.gateways.clone();
                let reply = match spawn_blocking(move || gateways.reload()).await {
                    Ok(Ok(list)) => {
                        Reply::Reloaded { serial: list.serial, gateways: list.gateways.len() as u64 }
                    }
                    Ok(Err(error)) => Reply::Failed(NotDone::of(&error, error.consequence())),
                    Err(_) => Reply::Failed(NotDone::bug(BUG)),
                };
                client.send_line(&reply).await
            }
        }
    }
}

impl Commands {
    async fn backup_begin(&self, directory: Option<PathBuf>, client: &mut Conversation) -> io::Result<()> {
        let Ok(only_one) = Arc::clone(&self.backing_up).try_lock_owned() else {
            let busy = "another backup is just beginning or ending: run this command again when it has";
            return client.send_line(&Reply::Failed(NotDone::later(busy))).await;
        };
        let commands = self.clone();
        client
            .stream_of(move |send| {
                // As long as the work takes, even where its client has gone.
                let _only_one = only_one;
                commands.begin(directory, send)
            })
            .await
    }

    fn begin(&self, directory: Option<PathBuf>, send: SendReply<'_, Reply>) -> Result<Reply, NotDone> {
        let HubSettings { directory: store, hub, signing_key_file, .. } = &self.settings;
        let key = secret::signing_key(signing_key_file)
            .map_err(|error| NotDone::of(&error, error.consequence()))?;
        let mut reported = Instant::now();
        let mut progress = |bytes| {
            if reported.elapsed() >= BETWEEN {
                reported = Instant::now();
                let _ = send(Reply::BackupProgress { bytes });
            }
        };
        let mut link = |lane: &LaneName, into: &Path| {
            let (answer, answered) = sync_channel(1);
            self.arrivals
                .send(Arrival::LinkLane(lane.clone(), into.to_owned(), answer))
                .map_err(|_| BackupError::Stopping)?;
            Ok(answered.recv().map_err(|_| BackupError::Stopping)??)
        };
        let begun = backup::begin(NewBackup { store, directory, hub, key: &key }, &mut link, &mut progress)?;
        let BegunBackup { lanes, files, bytes, ref digest, .. } = begun;
        tracing::info!(lanes, files, bytes, digest, "A backup has begun");
        Ok(Reply::BackupBegun(begun))
    }

    async fn backup_done(&self, digest: String) -> Reply {
        let Ok(_only_one) = timeout(PROGRESS, self.backing_up.lock()).await else {
            return Reply::Failed(NotDone::later(
                "a backup is just beginning: run this command again when it has",
            ));
        };
        let (directory, arrivals) = (self.settings.directory.clone(), self.arrivals.clone());
        let done = spawn_blocking(move || {
            let kept = backup::done(&directory, &digest)?;
            // If the hub is stopping, it reads the file at its next start.
            let _ = arrivals.send(Arrival::BackedUp);
            tracing::info!(digest, "A backup is done and counts");
            Ok::<_, BackupError>(kept)
        });
        match done.await {
            Ok(Ok(kept)) => Reply::BackupDone { kept },
            Ok(Err(error)) => Reply::Failed(error.into()),
            Err(_) => Reply::Failed(NotDone::bug(BUG)),
        }
    }

    async fn lane_admit(&self, lane: Option<String>, reason: WaitReason) -> Reply {
        let lane = match lane.map(|lane| lane.parse::<LaneName>()).transpose() {
            Ok(lane) => lane,
            Err(error) => return Reply::Failed(NotDone::of(&error, Consequence::Refuse)),
        };
        let arrivals = self.arrivals.clone();
        let admitted = spawn_blocking(move || {
            let (answer, answered) = sync_channel(1);
            arrivals.send(Arrival::Admit(Admission { lane, reason }, answer)).ok()?;
            answered.recv().ok()
        });
        match admitted.await {
            Ok(Some(Ok(lanes))) => Reply::Admitted { lanes },
            Ok(Some(Err(error))) => Reply::Failed(NotDone::of(&error, error.consequence())),
            Ok(None) => Reply::Failed(NotDone::later(HUB_STOPS)),
            Err(_) => Reply::Failed(NotDone::bug(BUG)),
        }
    }

    /// Compares what remains of a file with it here, so that the store thread is held up by a rename only.
    async fn take_remains(&self, lane: LaneName, file: u32) -> Reply {
        let (directory, arrivals) = (self.settings.directory.clone(), self.arrivals.clone());
        let taken = spawn_blocking(move || {
            let path = archived::path_of(&directory, &lane, file);
            archived::compare(&path, &archived::draft(&path))
                .map_err(|error| NotDone::of(&error, Consequence::FILES))?;
            let (answer, answered) = sync_channel(1);
            let stops = || NotDone::later(HUB_STOPS);
            arrivals.send(Arrival::TakeRemains(lane.clone(), file, answer)).map_err(|_| stops())?;
            let taken = answered.recv().map_err(|_| stops())?;
            taken.map_err(|error| NotDone::of(&error, error.consequence()))?;
            tracing::info!(%lane, file = %path.display(), "A file of a lane has lost its bodies to an archive");
            Ok(())
        });
        match taken.await {
            Ok(Ok(())) => Reply::RemainsTaken {},
            Ok(Err(error)) => Reply::Failed(error),
            Err(_) => Reply::Failed(NotDone::bug(BUG)),
        }
    }

    async fn import(&self, bytes: u64, options: Options, client: &mut Conversation) -> io::Result<()> {
        let directory = self.settings.directory.clone();
        // One that was just given up needs a moment to end.
        let Ok(only_one) = timeout(PROGRESS, Arc::clone(&self.importing).lock_owned()).await else {
            let busy = "another import is under way: run this command again when it has ended";
            return client.send_line(&Reply::Failed(NotDone::later(busy))).await;
        };
        let spool = match spawn_blocking(move || spool(&directory, bytes)).await {
            Ok(Ok(spool)) => spool,
            Ok(Err(error)) => return client.send_line(&cannot_keep(&error)).await,
            Err(error) => return Err(io::Error::other(error)),
        };
        client.send_line(&Reply::Send {}).await?;
        let spool = match receive(client, bytes, spool).await? {
            Ok(spool) => spool,
            Err(error) => return client.send_line(&cannot_keep(&error)).await,
        };
        tracing::info!(bytes, user = client.user()?, "A command imports a bundle");
        let import = Import { commands: self.clone(), options };
        let file = BundleFile::of(spool, "the bundle".into());
        client
            .stream_of(move |send| {
                // As long as the work takes, even where its client has gone.
                let _only_one = only_one;
                import.run(&file, send)
            })
            .await
    }

    /// Reports progress every few seconds, so that the client knows that the hub is still working.
    async fn resend(&self, request: ResendRequest, client: &mut Conversation) -> io::Result<()> {
        let (progress, mut watcher) = watch::channel(CopiesProgress::default());
        if self.arrivals.send(Arrival::Resend(request, progress)).is_err() {
            return client.send_line(&Reply::NotResent { reason: HUB_STOPS.to_owned(), kept: 0 }).await;
        }
        let mut stop = self.stop.clone();
        loop {
            let gone = tokio::select! {
                waited = timeout(PROGRESS, watcher.wait_for(|progress| progress.ended.is_some())) => {
                    waited.is_ok_and(|ended| ended.is_err())
                }
                _ = stop.wait_for(|stop| *stop) => true,
            };
            let CopiesProgress { kept, ended } = watcher.borrow().clone();
            let reply = match ended {
                Some(Ok(resent)) => Reply::Resent { sent: resent.sent, kept, detail: resent.detail },
                Some(Err(error)) => Reply::NotResent { reason: error.to_string(), kept },
                None if gone => Reply::NotResent { reason: HUB_STOPS.to_owned(), kept },
                None => Reply::Progress { transactions: kept },
            };
            client.send_line(&reply).await?;
            if pgw_host::control::Reply::is_last(&reply) {
                return Ok(());
            }
        }
    }
}

fn cannot_keep(error: &io::Error) -> Reply {
    Reply::Failed(NotDone::refused(format!("the hub cannot keep the file while it reads it: {error}")))
}

/// A file in the store's directory without a name, so that it vanishes when the import ends, however it ends. Bundles
/// are encrypted, and are read twice. Refused if the file and what it holds would not leave [`RESERVE_BYTES`] free.
fn spool(directory: &Path, bytes: u64) -> io::Result<File> {
    let facts = rustix::fs::statvfs(directory)?;
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    if bytes.saturating_mul(2) > free.saturating_sub(RESERVE_BYTES) {
        let problem = format!(
            "it has {bytes} bytes and takes about as many again when it is stored, and {} has {free} free, of which \
             {RESERVE_BYTES} are kept for what the gateways send: free some space, or carry it in parts (`export --from`)",
            directory.display()
        );
        return Err(io::Error::new(io::ErrorKind::StorageFull, problem));
    }
    let path = directory.join(format!("import-{}.part", uuid::Uuid::now_v7()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Takes the bundle's bytes. If they cannot be kept it reads them all the same, so that the client gets the reason.
async fn receive(client: &mut Conversation, bytes: u64, spool: File) -> io::Result<io::Result<File>> {
    let mut spool = Ok(spool);
    let mut at = 0;
    while at < bytes {
        let size = usize::try_from(bytes - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let mut piece = vec![0; size];
        client.read_exact(&mut piece).await?;
        if let Ok(file) = spool {
            let written = spawn_blocking(move || file.write_all_at(&piece, at).map(|()| file)).await;
            spool = written.map_err(io::Error::other)?;
        }
        at += size as u64;
    }
    Ok(spool)
}

impl From<KeysError> for NotDone {
    fn from(error: KeysError) -> Self {
        Self::of(&error, error.consequence())
    }
}

/// What a command wants of an import.
#[derive(Clone, Copy)]
struct Options {
    receipts: bool,
    unsigned: bool,
}

/// Runs one import, on its own thread.
struct Import {
    commands: Commands,
    options: Options,
}

impl Import {
    fn run(&self, file: &BundleFile, send: SendReply<'_, Reply>) -> Result<Reply, KeysError> {
        let settings = &self.commands.settings;
        let identity = keys::carry_key(&settings.carry_key_file)?;
        let mut lanes = Vec::new();
        // A client that has gone does not end the import: what it sent is stored.
        let mut reported = Instant::now();
        let mut progress = |transactions| {
            if reported.elapsed() >= BETWEEN {
                reported = Instant::now();
                let _ = send(Reply::Progress { transactions });
            }
        };
        if self.options.unsigned {
            match self.kept(file, &identity, &mut progress) {
                Ok(None) => {}
                Ok(Some(kept)) => return Ok(kept),
                Err(error) => return Ok(refused(&error)),
            }
        }
        let imported = import::check(file, &identity, &mut progress).and_then(|_| {
            let mut stored = 0;
            let mut take = |part: Part| {
                stored += part.transactions.len() as u64;
                let tally = self.take(part)?;
                progress(stored);
                Ok(tally)
            };
            import::import(file, &identity, &mut take, &mut lanes)
        });
        let total = |of: fn(&ImportedLane) -> u64| lanes.iter().map(of).sum::<u64>();
        let ends = self.ends(&import::elsewhere(&lanes, imported.as_ref().err()))?;
        let last = match imported {
            Ok(()) => {
                let (stored, repeated) = (total(|l| l.stored), total(|l| l.repeated + l.renumbered));
                tracing::info!(stored, repeated, "Imported a bundle");
                Reply::Imported {}
            }
            Err(error) => refused(&error),
        };
        for (lane, end) in ends {
            let _ = send(Reply::End { lane, end });
        }
        for line in self.signed(&lanes)? {
            let _ = send(Reply::Receipt(line));
        }
        for lane in lanes {
            let _ = send(Reply::Lane(lane));
        }
        Ok(last)
    }

    /// Keeps the bundle beside its lanes, if it is not signed.
    fn kept(
        &self,
        file: &BundleFile,
        identity: &Identity,
        read: &mut dyn FnMut(u64),
    ) -> Result<Option<Reply>, ImportError> {
        let list = self.commands.gateways.subscribe().borrow().clone();
        let kept = unsigned::keep(file, identity, &list, &self.commands.settings.directory, read)?;
        Ok(kept.map(|Kept { new, reason }| {
            tracing::warn!(reason, new, "A bundle that is not signed is kept beside its lanes");
            Reply::Kept { new, reason }
        }))
    }

    /// Stores a part through the store thread.
    fn take(&self, part: Part) -> Result<Tally, ImportError> {
        let Commands { arrivals, stop, .. } = &self.commands;
        if *stop.borrow() {
            return Err(ImportError::Ended);
        }
        let (answer, answered) = sync_channel(1);
        arrivals.send(Arrival::Import(Box::new(part), answer)).map_err(|_| ImportError::Ended)?;
        Ok(answered.recv().map_err(|_| ImportError::Ended)??)
    }

    /// The hub's ends of these lanes, signed.
    fn ends(&self, lanes: &[LaneName]) -> Result<Vec<(Lane, SignedReceipt)>, KeysError> {
        let mut answers = Vec::new();
        for lane in lanes {
            let (answer, answered) = sync_channel(1);
            let asked = self.commands.arrivals.send(Arrival::End(lane.clone(), answer));
            answers.extend(
                asked.ok().and_then(|()| answered.recv().ok()?).map(|answer| (lane.lane.clone(), answer)),
            );
        }
        import::signed_ends(&self.commands.settings, answers)
    }

    fn signed(&self, lanes: &[ImportedLane]) -> Result<Vec<SignedReceipt>, KeysError> {
        if !self.options.receipts {
            return Ok(Vec::new());
        }
        import::signed_receipts(&self.commands.settings, lanes)
    }
}

fn refused(error: &ImportError) -> Reply {
    let reason = error.sentence();
    tracing::error!(error = reason, "A bundle was refused");
    Reply::NotImported { reason, consequence: error.consequence() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_leaves_room_for_the_gateways_and_no_file_behind() {
        let directory = tempfile::tempdir().unwrap();
        for bytes in [u64::MAX, u64::MAX / 2, 1 << 60] {
            let error = spool(directory.path(), bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert!(error.to_string().contains("free some space"), "{error}");
        }
        let file = spool(directory.path(), 7).unwrap();
        file.write_all_at(b"bundle!", 0).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
