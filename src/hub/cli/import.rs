//! `practice-hub import` and `verify --bundle`: hand-carry, on the hub's side.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use pgw_bundle::keys::Identity;
use pgw_bundle::receipts;
use pgw_core::consequence::Consequence;
use pgw_core::text::chain;
use pgw_core::transaction::{Lane, LaneName};
use pgw_host::control::ClientError;
use pgw_host::exit::{Exit, fail};

use crate::HubSettings;
use crate::answers::Answers;
use crate::backup::Backups;
use crate::bundle_signatures::{self, SignedLane, Unsigned};
use crate::cli::not_answering;
use crate::config::HubConfig;
use crate::control::{Client, PIECE_BYTES, Reply, Request};
use crate::fleet::Fleet;
use crate::gateways::Gateways;
use crate::gateways::current::CurrentGateways;
use crate::import::{self, BundleFile, ImportError, ImportedLane};
use crate::keys;
use crate::store::ndjson::NdjsonStore;
use crate::store::{StoreError, replacement};
use crate::store_thread::{GroupLimits, StoreThread};
use crate::unsigned::{self, Kept};

/// Store the transactions of hand-carried files exactly once, like those from the broker. Exit 0: all are stored.
#[derive(Debug, Clone, Args)]
pub struct Import {
    /// The files, in the order of their export.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Write the hub's signed receipts for these lanes to this file, for `practice-gateway receipts`.
    #[arg(long, value_name = "FILE")]
    pub receipts_to: Option<PathBuf>,
    /// Keep a file that is not signed, or by a key that is unknown or revoked, beside its lanes: it advances nothing, makes no id known,
    /// and gets no receipt. What is signed is imported as without this option.
    #[arg(long)]
    pub unsigned: bool,
}

/// Who stores the bundles.
enum Destination {
    /// This command: no hub is running, and the command locks the store until it ends.
    Store(Box<StoreThread>, Identity, CurrentGateways),
    /// The running hub.
    Hub(Client),
}

/// What the command wants of each file.
#[derive(Clone, Copy)]
struct Wanted {
    receipts: bool,
    unsigned: bool,
}

/// The result for a file.
#[derive(Default)]
struct Imported {
    lanes: Vec<ImportedLane>,
    receipts: Vec<receipts::SignedReceipt>,
    /// The hub's ends of lanes that it does not continue.
    ends: Vec<(Lane, receipts::SignedReceipt)>,
    /// It is not signed, and is kept beside its lanes.
    kept: Option<Kept>,
    /// Why it was not imported, or not completely.
    failed: Option<(String, Consequence)>,
}

impl Imported {
    fn failed(reason: String, consequence: Consequence) -> Self {
        Self { failed: Some((reason, consequence)), ..Self::default() }
    }
}

/// Runs `import`.
pub fn import(config: &HubConfig, command: &Import, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let settings = &config.settings;
    let mut destination = match destination(settings, err) {
        Ok(destination) => destination,
        Err(exit) => return exit,
    };
    let (mut exit, mut receipts) = (Exit::Done, Vec::new());
    let wanted = Wanted { receipts: command.receipts_to.is_some(), unsigned: command.unsigned };
    for file in &command.files {
        let imported = match &mut destination {
            Destination::Store(store, identity, gateways) => {
                match beside(file, identity, gateways, settings, wanted) {
                    Some(done) => done,
                    None => into_store(file, identity, store, settings, wanted.receipts),
                }
            }
            Destination::Hub(hub) => by_hub(file, hub, wanted, err),
        };
        write_lanes(out, file, &imported);
        for (lane, end) in &imported.ends {
            let path = end_path(file, lane);
            match write_end(end, &path) {
                Ok(()) => {
                    let _ = writeln!(
                        out,
                        "  where {lane} ends here is in {}, signed, for `practice-gateway export --end`",
                        path.display()
                    );
                }
                Err(error) => {
                    let _ = writeln!(err, "cannot write {}: {error}", path.display());
                }
            }
        }
        receipts.extend(imported.receipts);
        if let Some((reason, failed)) = imported.failed {
            let word = if failed == Consequence::Refuse { "refused" } else { "not imported" };
            let _ = writeln!(err, "{}: {word}: {reason}", file.display());
            // The files are in order: after a failure the next ones would only show a gap.
            exit = failed.into();
            break;
        }
    }
    if let Some(to) = &command.receipts_to
        && let Err(error) = write_receipts(&receipts, to)
    {
        let _ = writeln!(err, "cannot write {}: {error}", to.display());
        return Exit::Files;
    }
    exit
}

fn destination(settings: &HubSettings, err: &mut dyn Write) -> Result<Destination, Exit> {
    match Client::connect(&settings.control_socket) {
        Ok(hub) => return Ok(Destination::Hub(hub)),
        Err(error) if error.is_not_running() => {}
        Err(error) => {
            return Err(fail(err, &error, error.consequence()));
        }
    }
    let identity =
        keys::carry_key(&settings.carry_key_file).map_err(|error| fail(err, &error, error.consequence()))?;
    let gateways = CurrentGateways::load(&settings.gateways_file)
        .map_err(|error| fail(err, &error, error.consequence()))?;
    match NdjsonStore::open(&settings.directory, settings.rotate_bytes) {
        Ok(store) => {
            let limits =
                GroupLimits { transactions: settings.group_transactions, bytes: settings.group_bytes };
            let fleet = Fleet::open(&settings.directory);
            let (answers, backups) = (Answers::default(), Backups::default());
            let listed = gateways.subscribe();
            let store = StoreThread::new(Box::new(store), answers, listed, fleet, backups, limits);
            Ok(Destination::Store(Box::new(store), identity, gateways))
        }
        Err(StoreError::InUse(_)) => Err(not_answering(&settings.control_socket, err)),
        Err(error) => Err(fail(err, &error, error.consequence())),
    }
}

/// Keeps the file beside its lanes, if that is wanted and it is not signed. `None`: it is to be imported.
fn beside(
    file: &Path,
    identity: &Identity,
    gateways: &CurrentGateways,
    settings: &HubSettings,
    wanted: Wanted,
) -> Option<Imported> {
    if !wanted.unsigned {
        return None;
    }
    let list = gateways.subscribe().borrow().clone();
    let kept = BundleFile::open(file.to_owned())
        .and_then(|file| unsigned::keep(&file, identity, &list, &settings.directory, &mut |_| {}));
    match kept {
        Ok(None) => None,
        Ok(kept) => Some(Imported { kept, ..Imported::default() }),
        Err(error) => Some(Imported::failed(error.sentence(), error.consequence())),
    }
}

fn into_store(
    file: &Path,
    identity: &Identity,
    store: &mut StoreThread,
    settings: &HubSettings,
    signed: bool,
) -> Imported {
    let mut imported = Imported::default();
    let mut take = |part| store.import(part).map_err(ImportError::from);
    let done = BundleFile::open(file.to_owned()).and_then(|file| {
        import::check(&file, identity, &mut |_| {})?;
        import::import(&file, identity, &mut take, &mut imported.lanes)
    });
    let elsewhere = import::elsewhere(&imported.lanes, done.as_ref().err());
    imported.failed = done.err().map(|error| (error.sentence(), error.consequence()));
    let end = |lane: LaneName| Some((lane.lane.clone(), store.end_of(lane)?));
    match import::signed_ends(settings, elsewhere.into_iter().filter_map(end).collect()) {
        Ok(ends) => imported.ends = ends,
        Err(error) => imported.failed = Some((chain(&error), error.consequence())),
    }
    if signed {
        match import::signed_receipts(settings, &imported.lanes) {
            Ok(receipts) => imported.receipts = receipts,
            Err(error) => imported.failed = Some((chain(&error), error.consequence())),
        }
    }
    imported
}

fn by_hub(file: &Path, hub: &mut Client, wanted: Wanted, err: &mut dyn Write) -> Imported {
    let opened = File::open(file).and_then(|open| Ok((open.metadata()?.len(), open)));
    let (bytes, open) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let error = ImportError::File(file.to_owned(), error);
            return Imported::failed(error.sentence(), error.consequence());
        }
    };
    let _ = writeln!(err, "the running hub imports {}", file.display());
    let mut imported = Imported::default();
    match send(hub, open, bytes, wanted, &mut imported) {
        Ok(()) => imported,
        Err(SendError::File(error)) => {
            let error = ImportError::File(file.to_owned(), error);
            Imported::failed(error.sentence(), error.consequence())
        }
        Err(SendError::Hub(error)) => {
            Imported { failed: Some((chain(&error), error.consequence())), ..imported }
        }
    }
}

/// Why a file did not reach the hub, or its answer did not reach this command.
enum SendError {
    File(io::Error),
    Hub(ClientError),
}

impl From<ClientError> for SendError {
    fn from(error: ClientError) -> Self {
        Self::Hub(error)
    }
}

/// The hub's user may have no right to read the file, so its bytes go over the socket.
fn send(
    hub: &mut Client,
    mut open: File,
    bytes: u64,
    wanted: Wanted,
    imported: &mut Imported,
) -> Result<(), SendError> {
    let Wanted { receipts, unsigned } = wanted;
    hub.send(&Request::Import { bytes, receipts, unsigned })?;
    if hub.reply()? != (Reply::Send {}) {
        return Err(ClientError::Broken(io::ErrorKind::InvalidData.into()).into());
    }
    let (mut piece, mut left) = (vec![0; PIECE_BYTES], bytes);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let read = open.read(&mut piece[..most]).map_err(SendError::File)?;
        if read == 0 {
            return Err(SendError::File(io::ErrorKind::UnexpectedEof.into()));
        }
        hub.send_bytes(&piece[..read])?;
        left -= read as u64;
    }
    hub.replies(|reply| match reply {
        Reply::Lane(lane) => imported.lanes.push(lane),
        Reply::Receipt(line) => imported.receipts.push(line),
        Reply::End { lane, end } => imported.ends.push((lane, end)),
        Reply::Kept { new, reason } => imported.kept = Some(Kept { new, reason }),
        Reply::NotImported { reason, consequence } => imported.failed = Some((reason, consequence)),
        _ => {}
    })?;
    Ok(())
}

fn write_lanes(out: &mut dyn Write, file: &Path, imported: &Imported) {
    if let Some(Kept { new, reason }) = &imported.kept {
        let kept = if *new { "kept beside its lanes" } else { "lies beside its lanes already" };
        let _ = writeln!(out, "{}: {kept}, NOT imported: {reason}", file.display());
        return;
    }
    let state = if imported.failed.is_none() { "imported" } else { "NOT imported" };
    let _ = writeln!(out, "{}: {state}", file.display());
    for lane in &imported.lanes {
        let ImportedLane { count, stored, renumbered, repeated, late, .. } = lane;
        let beside = if *late > 0 { format!(", {late} beside the lane") } else { String::new() };
        let _ = writeln!(
            out,
            "  {}: {count} transactions: {stored} new, {} already stored{beside}",
            lane.name(),
            renumbered + repeated
        );
    }
}

/// Beside the bundle.
fn end_path(bundle: &Path, lane: &Lane) -> PathBuf {
    let mut name = bundle.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{lane}.end.json"));
    bundle.with_file_name(name)
}

fn write_end(end: &receipts::SignedReceipt, to: &Path) -> io::Result<()> {
    let mut file = replacement(to)?;
    pgw_bundle::end::write(&mut file, end)?;
    file.commit()
}

/// For each lane, the last file's receipt is the newest.
fn write_receipts(lines: &[receipts::SignedReceipt], to: &Path) -> io::Result<()> {
    let mut file = BufWriter::new(replacement(to)?);
    for (index, line) in lines.iter().enumerate() {
        if lines.iter().skip(index + 1).all(|later| later.topic != line.topic) {
            receipts::write(&mut file, line)?;
        }
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.commit()
}

/// Runs `verify --bundle`.
pub fn verify(config: &HubConfig, file: &Path, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let settings = &config.settings;
    let identity = match keys::carry_key(&settings.carry_key_file) {
        Ok(identity) => identity,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let list = match Gateways::load(&settings.gateways_file) {
        Ok(list) => settings.gateways_file.exists().then_some(list),
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let checked = BundleFile::open(file.to_owned()).and_then(|bundle| {
        let lanes = import::check(&bundle, &identity, &mut |_| {})?;
        let signed =
            list.map(|list| bundle_signatures::read(&bundle, &identity, &list, &mut |_| {})).transpose()?;
        Ok((lanes, signed))
    });
    let (lanes, signed) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            let _ = writeln!(err, "{}: NOT OK: {}", file.display(), error.sentence());
            return error.consequence().into();
        }
    };
    let mut exit = Exit::Done;
    for (at, lane) in lanes.iter().enumerate() {
        let ImportedLane { epoch, first, last, count, .. } = lane;
        let signed = signed.as_ref().and_then(|signed| signed.get(at));
        let ok = if signed.is_some_and(|signed| signed.unsigned.is_some()) { "NOT signed" } else { "ok" };
        let _ = writeln!(
            out,
            "{}: {ok}: {count} transactions, from sequence {first} of epoch {epoch} to sequence {last}",
            lane.name()
        );
        if signed.is_some_and(|signed| !write_signed(signed, out)) {
            exit = Exit::Refused;
        }
    }
    let _ = writeln!(out, "{}: complete, in order and unaltered", file.display());
    if signed.is_none() {
        let list = settings.gateways_file.display();
        let _ = writeln!(err, "its signatures were NOT checked: there is no list of gateways {list}");
        return Exit::Configuration;
    }
    exit
}

/// By which keys a lane is signed, and where that ends. True: with the lane.
fn write_signed(lane: &SignedLane, out: &mut dyn Write) -> bool {
    for (epoch, key, through) in &lane.signed {
        let _ = writeln!(out, "  epoch {epoch} signed with key {key} through {through}");
    }
    let Some(Unsigned { epoch, sequence, why }) = lane.unsigned else { return true };
    let _ = writeln!(
        out,
        "  NOT signed from sequence {sequence} of epoch {epoch} on: {why}\n  \
         what to do: `import` would refuse it from there on; compare the list of gateways with `practice-gateway key signing` on the box"
    );
    false
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
