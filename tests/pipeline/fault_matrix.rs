//! The fault matrix: one row for each fault, against the real gateway, a real Mosquitto over mutual TLS and the real
//! hub, with the oracle of `harness::pipeline`, which also checks every health message at the broker. A row can run
//! alone by its name; random moments follow `PGW_SEED`, which is printed.
//!
//! Power cuts are in `tests/powercut`. Rows that need root and a loop device are ignored here and run by `tests/all.sh --long`.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::backup;
use crate::harness;
use crate::harness::pipeline::{PATIENCE, Pipeline, Random, copy_directory};
use crate::harness::senders::{Senders, connect, exchange, message, positive};
use crate::harness::shim::{Failing, Shim};
use crate::harness::site::{SiteOptions, adds_up};
use crate::harness::wire::Wire;
use crate::harness::{Certificates, Fault, MosquittoOptions, eventually_blocking};

fn long() -> bool {
    std::env::var_os("PGW_LONG").is_some()
}

fn small_segments() -> SiteOptions {
    SiteOptions {
        outbox: "segment_records = 100\nretention_days = 0\nmin_free_bytes = 1_048_576\n".into(),
        ..SiteOptions::default()
    }
}

/// A pipeline whose gateway runs under the shim.
fn shimmed() -> (Pipeline, Shim) {
    let mut pipeline = Pipeline::prepare(small_segments(), &MosquittoOptions::default());
    let shim = Shim::new(&pipeline.site.path("data"), pipeline.site.path("gateway.shim"));
    pipeline.site.gateway_environment = shim.environment();
    pipeline.site.start_hub();
    pipeline.site.start_gateway();
    (pipeline, shim)
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a process"), signal).expect("signalled");
}

/// Keeps the hub running as systemd would, until `enough`.
fn restart_hub_until(pipeline: &mut Pipeline, what: &str, mut enough: impl FnMut(&Pipeline) -> bool) {
    let start = std::time::Instant::now();
    while !enough(pipeline) {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        if pipeline.site.hub_ended().is_some() {
            pipeline.site.start_hub();
        }
        std::thread::sleep(Duration::from_millis(50)); // systemd's pause
    }
}

fn restart_gateway_if_ended(pipeline: &mut Pipeline) {
    if pipeline.site.gateway_ended().is_some() {
        pipeline.site.spawn_gateway();
    }
}

// ---- processes -------------------------------------------------------------------------------------------------------

#[test]
fn stopped_and_continued() {
    let pipeline =
        Pipeline::start(SiteOptions { uplink: "stall_seconds = 1.0\n".into(), ..small_segments() });
    let safe = pipeline.backlog(300);
    pipeline.proxy.set(Fault::Throttle(400_000));
    for (round, pid) in
        [pipeline.site.gateway_pid(), pipeline.site.hub_pid(), pipeline.broker.pid()].into_iter().enumerate()
    {
        pipeline.site.wait_for("confirmed_total", 100 + 200 * round as u64, PATIENCE);
        signal(pid, Signal::STOP);
        std::thread::sleep(Duration::from_secs(2)); // the fault is this time
        signal(pid, Signal::CONT);
    }
    pipeline.proxy.set(Fault::Pass);
    pipeline.check(&safe);
}

#[test]
fn hub_killed_between_store_and_receipt() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let wire = Wire::watch(pipeline.broker.plain_port());
    let mut random = Random::seeded();
    let kills = if long() { 100 } else { 8 };
    let safe = pipeline.backlog(150 * kills.min(20));
    pipeline.proxy.set(Fault::Throttle(1_000_000));
    let file = pipeline.site.store().join("B86022/gw1/clinical.ndjson");
    let stored = || std::fs::metadata(&file).map_or(0, |file| file.len());
    for _ in 0..kills {
        // Each kill comes during the stream: on a busy machine a hub may take a second to start working.
        let before = stored();
        let more = eventually_blocking("the hub to store something", PATIENCE, || {
            (stored() > before).then_some(true).or((pipeline.site.status()?["waiting"] == 0).then_some(false))
        });
        if !more {
            break;
        }
        std::thread::sleep(Duration::from_millis(random.below(30))); // the random moment
        pipeline.site.kill_hub();
        pipeline.site.start_hub();
    }
    pipeline.proxy.set(Fault::Pass);
    pipeline.site.wait_for("confirmed_total", safe.iter().map(Vec::len).sum::<usize>() as u64, PATIENCE);
    assert!(
        wire.repeated() > 0,
        "nothing went over the wire twice: no kill fell between the store and the receipt"
    );
    pipeline.check(&safe);
}

#[test]
fn hub_backed_up_and_restored_while_its_files_rotate() {
    let hub = "[store]\nrotate_bytes = 65_536\n".to_owned();
    let mut pipeline = Pipeline::start(SiteOptions { hub, ..SiteOptions::default() });
    let senders = Senders::start(pipeline.site.door, 4, usize::MAX);
    let lane = pipeline.site.store().join("B86022/gw1");
    let files = || std::fs::read_dir(&lane).map_or(0, Iterator::count);
    let rotated = |more: usize| {
        let before = files();
        eventually_blocking("the lane's files to rotate", PATIENCE, || {
            (files() >= before + more).then_some(())
        });
    };
    rotated(3);
    let begun = backup::begin(&pipeline.site, &[]);
    // The copy runs for long: before each file the lane has another one.
    let copy = pipeline.site.path("copy");
    for path in files_below(&begun.directory) {
        rotated(1);
        let to = copy.join(path.strip_prefix(&begun.directory).expect("below"));
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("made");
        std::fs::copy(&path, to).expect("copied");
    }
    let digest = backup::check(&pipeline.site, &copy);
    let done = pipeline.site.hub_command(&["backup", "done", &digest]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    rotated(2);
    pipeline.site.kill_hub();
    std::fs::remove_dir_all(pipeline.site.store()).expect("lost");
    std::fs::rename(&copy, pipeline.site.store()).expect("restored");
    let restored = pipeline.site.hub_command(&["verify"]);
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stdout));
    pipeline.site.start_hub();
    rotated(2);
    let safe = senders.stop();
    pipeline.check(&safe);
}

#[test]
fn files_of_a_lane_are_missing_at_the_hub() {
    let hub = "[store]\nrotate_bytes = 65_536\n".to_owned();
    let mut pipeline = Pipeline::start(SiteOptions { hub, ..SiteOptions::default() });
    let senders = Senders::start(pipeline.site.door, 4, usize::MAX);
    let lane = pipeline.site.store().join("B86022/gw1");
    let file = |number: usize| lane.join(format!("clinical.{number:06}.ndjson"));
    // The first, one in the middle, and the newest that has rotated: that one a copy of a running store lacks.
    let mut newest = 0;
    for round in 0..3 {
        eventually_blocking("the lane's files to rotate", PATIENCE, || {
            // Something is in the file after the newest: without that the store would only be older.
            let growing = std::fs::metadata(lane.join("clinical.ndjson")).map_or(0, |file| file.len());
            (file(newest + 6).exists() && (1_000..30_000).contains(&growing)).then_some(())
        });
        pipeline.site.kill_hub();
        newest = (newest..).find(|number| !file(number + 1).exists()).expect("a number");
        let number = [1, newest - 2, newest][round];
        std::fs::remove_file(file(number)).expect("a file");
        let verified = pipeline.site.hub_command(&["verify"]);
        assert!(!verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        let list = pipeline.site.hub_command(&["list"]);
        let text = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(
            !list.status.success() && text.contains(&format!("file number {number} is missing")),
            "{text}"
        );
        // A backup of it is named as what it is, so that no job removes the one before.
        let links = pipeline.site.path(&format!("links-{round}")).display().to_string();
        let begun = pipeline.site.hub_command(&["backup", "begin", &links]);
        let text = String::from_utf8_lossy(&begun.stdout).into_owned();
        assert_eq!(begun.status.code(), Some(65), "{text}");
        assert!(text.contains("NOT whole in this backup: B86022/gw1/clinical: file number"), "{text}");
        pipeline.site.start_hub();
        eventually_blocking("the gateway to send it again", PATIENCE, || {
            pipeline.site.hub_command(&["list"]).status.success().then_some(())
        });
    }
    let safe = senders.stop();
    // The files are whole a moment before the hub says so.
    eventually_blocking("the hub to have said so three times", PATIENCE, || {
        let said = pipeline.site.log("hub").matches("What was missing of a lane has come again").count();
        (said == 3).then_some(())
    });
    pipeline.check(&safe);
}

#[test]
fn two_hubs_by_mistake() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let mut safe = pipeline.more_from(4, 0..50);
    pipeline.site.wait_for("confirmed_total", 200, PATIENCE);
    // The same name, certificate and key, and its own empty store.
    let text = std::fs::read_to_string(pipeline.site.hub_config()).expect("hub.toml");
    let other = pipeline.site.path("other.toml");
    let mut theirs = text;
    for (ours, name) in [(pipeline.site.store(), "other"), (pipeline.site.path("hub.sock"), "other.sock")] {
        let (ours, other) = (format!("{ours:?}"), format!("{:?}", pipeline.site.path(name)));
        assert!(theirs.contains(&ours), "{theirs}");
        theirs = theirs.replacen(&ours, &other, 1);
    }
    std::fs::write(&other, theirs).expect("written");
    std::fs::create_dir(pipeline.site.path("other")).expect("made");
    let log = std::fs::File::create(pipeline.site.path("other.log")).expect("a log");
    // The first does not answer for a while; then an operator starts another.
    signal(pipeline.site.hub_pid(), Signal::STOP);
    let mut second = Running(
        Command::new(env!("CARGO_BIN_EXE_practice-hub"))
            .args(["run", "--config"])
            .arg(&other)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("started"),
    );
    let senders = Senders::start(pipeline.site.door, 2, 100);
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 50..150)) {
        sender.append(&mut more);
    }
    eventually_blocking("the second hub to have taken its part", PATIENCE, || {
        assert!(second.0.try_wait().expect("waited").is_none(), "the second hub has ended");
        ndjson_below(&pipeline.site.path("other")).then_some(())
    });
    signal(pipeline.site.hub_pid(), Signal::CONT);
    let others = senders.join();
    drop(second);
    // They ended each other's connections again and again; systemd keeps the first one running.
    restart_hub_until(&mut pipeline, "the first hub to have all", |pipeline| {
        pipeline.site.status().is_some_and(|status| {
            adds_up(&status);
            status["waiting"] == 0
        })
    });
    // Senders 0 and 1 sent the same bytes twice: the oracle counts each pair as one.
    for (sender, mut all) in others.into_iter().enumerate() {
        all.retain(|body| !safe[sender].contains(body));
        safe.push(all);
    }
    pipeline.check(&safe);
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ndjson_below(directory: &Path) -> bool {
    files_below(directory).iter().any(|path| {
        path.extension().is_some_and(|e| e == "ndjson") && path.metadata().is_ok_and(|data| data.len() > 0)
    })
}

#[test]
fn box_restored_from_an_older_image() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let mut safe = pipeline.more_from(2, 0..50);
    pipeline.site.wait_for("confirmed_total", 100, PATIENCE);
    pipeline.site.kill_gateway();
    let image = pipeline.site.path("image");
    copy_directory(&pipeline.site.path("data"), &image);
    pipeline.site.start_gateway();
    // The box's history since then is lost; its hub has it.
    let lost_life = pipeline.more_from(2, 50..90);
    pipeline.site.wait_for("confirmed_total", 180, PATIENCE);
    pipeline.site.kill_gateway();
    std::fs::remove_dir_all(pipeline.site.path("data")).expect("removed");
    std::fs::rename(&image, pipeline.site.path("data")).expect("restored");
    pipeline.site.start_gateway();
    let after = pipeline.more_from(2, 90..150);
    for ((sender, mut middle), mut end) in safe.iter_mut().zip(lost_life).zip(after) {
        sender.append(&mut middle);
        sender.append(&mut end);
    }
    let accepted_here = 100 + 120;
    pipeline.site.wait_for("confirmed_total", accepted_here, PATIENCE);
    let status = pipeline.site.status().expect("a status");
    assert_eq!(status["accepted_total"], accepted_here, "{status}");
    let mut stream = connect(pipeline.site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, &message(99, 1, 10)).expect("an answer")));
    safe.push(vec![message(99, 1, 10)]);
    pipeline.site.wait_for("confirmed_total", accepted_here + 1, PATIENCE);
    pipeline.site.stop();
    let verified = pipeline.site.hub_command(&["verify"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let proof = harness::proof::Proof::of(&pipeline.site.store(), &safe).expect("the hub's files");
    assert_eq!(
        (proof.lost, proof.repeated, proof.out_of_order, proof.chain_ok),
        (0, 0, 0, true),
        "{proof:?}"
    );
}

// ---- the gateway's disk ----------------------------------------------------------------------------------------------

/// Senders at work; the fault comes, is met, and goes; the daemon may end and is restarted as systemd would.
fn disk_row(failing: Failing, may_end: bool) {
    let (mut pipeline, shim) = shimmed();
    let senders = Senders::start(pipeline.site.door, 4, usize::MAX);
    for round in 0..3 {
        pipeline.site.wait_for("confirmed_total", 200 * (round + 1), PATIENCE);
        let before = shim.met();
        shim.fail(failing);
        eventually_blocking("the fault to be met", PATIENCE, || {
            restart_gateway_if_ended(&mut pipeline);
            (shim.met() > before + 3).then_some(())
        });
        std::thread::sleep(Duration::from_millis(700)); // the fault lasts
        if !may_end {
            eventually_blocking("the gateway to refuse", PATIENCE, || {
                assert!(
                    pipeline.site.gateway_ended().is_none(),
                    "the gateway ended\n{}",
                    pipeline.site.log("gateway")
                );
                let status = pipeline.site.status().expect("a status while the disk fails");
                adds_up(&status);
                (status["state"] == "refusing").then_some(())
            });
        }
        shim.heal();
        let after = eventually_blocking("the gateway to answer", PATIENCE, || {
            restart_gateway_if_ended(&mut pipeline);
            pipeline.site.status()
        });
        let accepted = after["accepted_total"].as_u64().expect("a number");
        pipeline.site.wait_for("accepted_total", accepted + 100, PATIENCE);
    }
    let safe = senders.stop();
    let status = pipeline.site.status().expect("a status");
    assert_eq!(status["damaged"], 0, "{status}");
    pipeline.check(&safe);
}

#[test]
fn disk_full_and_free_again_without_a_restart() {
    disk_row(Failing::Space, false);
}

#[test]
fn eio_on_write() {
    disk_row(Failing::Write, false);
}

#[test]
fn eio_on_fsync() {
    disk_row(Failing::Sync, false);
}

#[test]
fn remounted_read_only() {
    disk_row(Failing::Remounted, true);
}

/// A small ext4 file system on a loop device.
struct SmallDisk {
    image: tempfile::TempDir,
    mounted: tempfile::TempDir,
}

impl SmallDisk {
    fn new(mebibytes: u64) -> Self {
        let disk = Self {
            image: tempfile::tempdir().expect("a directory"),
            mounted: tempfile::tempdir().expect("a directory"),
        };
        let image = std::fs::File::create(disk.path()).expect("an image");
        image.set_len(mebibytes << 20).expect("its size");
        run("mkfs.ext4", &["-q", "-F", &disk.path().display().to_string()]);
        disk.mount();
        disk
    }

    fn path(&self) -> PathBuf {
        self.image.path().join("image")
    }

    fn mount(&self) {
        let (image, at) = (self.path().display().to_string(), self.mounted.path().display().to_string());
        run("mount", &["-o", "loop,errors=remount-ro", &image, &at]);
    }

    /// The device, for `/sys/fs/ext4`.
    fn device(&self) -> String {
        let mounts = std::fs::read_to_string("/proc/mounts").expect("the mounts");
        let at = self.mounted.path().display().to_string();
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(&at)).expect("it is mounted");
        line.split(' ').next().and_then(|device| device.strip_prefix("/dev/")).expect("a device").to_owned()
    }

    /// A process that another test starts just now has every file open for a moment.
    fn unmount_when_free(&self) {
        eventually_blocking("nobody to have a file open there", PATIENCE, || self.unmount().then_some(()));
    }

    fn repair(&self) {
        let checked = Command::new("e2fsck").args(["-f", "-y"]).arg(self.path()).output().expect("e2fsck");
        let repaired = checked.status.code().is_some_and(|code| code < 4);
        assert!(repaired, "{}", String::from_utf8_lossy(&checked.stdout));
    }

    fn unmount(&self) -> bool {
        Command::new("umount").arg(self.mounted.path()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Any process that still has a file open there has been killed; the kernel may take a moment.
        for _ in 0..100 {
            if self.unmount() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn run(program: &str, words: &[&str]) {
    let done = Command::new(program).args(words).output().expect("this row needs root and a loop device");
    assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
}

fn on(disk: &SmallDisk) -> SiteOptions {
    SiteOptions {
        outbox: "segment_records = 200\nsegment_bytes = 1_048_576\nretention_days = 0\nmin_free_bytes = 8_388_608\n".into(),
        data: Some(disk.mounted.path().join("data")),
        ..SiteOptions::default()
    }
}

#[test]
#[ignore = "needs root and a loop device: tests/all.sh --long"]
fn a_small_disk_full_to_the_last_byte_and_free_again_without_a_restart() {
    let disk = SmallDisk::new(160);
    let mut pipeline = Pipeline::prepare(on(&disk), &MosquittoOptions::default());
    pipeline.site.start_gateway();
    let senders = Senders::start(pipeline.site.door, 4, usize::MAX);
    for round in 0..3 {
        let accepted =
            pipeline.site.status().expect("a status")["accepted_total"].as_u64().expect("a number");
        pipeline.site.wait_for("accepted_total", accepted + 100, PATIENCE);
        let filler = disk.mounted.path().join("filler");
        let file = std::fs::File::create(&filler).expect("a file");
        // Another program fills the disk, to the last byte in the second round and beyond the outbox's own limit in
        // the others.
        let mut at = 0;
        while file.write_all_at(&[7; 65_536], at).is_ok() && (round == 1 || at < 140 << 20) {
            at += 65_536;
        }
        eventually_blocking("the gateway to refuse", PATIENCE, || {
            assert!(
                pipeline.site.gateway_ended().is_none(),
                "the gateway ended\n{}",
                pipeline.site.log("gateway")
            );
            let status = pipeline.site.status()?;
            adds_up(&status);
            (status["state"] == "refusing").then_some(())
        });
        std::fs::remove_file(&filler).expect("removed");
    }
    let accepted = pipeline.site.status().expect("a status")["accepted_total"].as_u64().expect("a number");
    pipeline.site.wait_for("accepted_total", accepted + 100, PATIENCE);
    let safe = senders.stop();
    pipeline.site.start_hub();
    pipeline.check(&safe);
}

#[test]
#[ignore = "needs root and a loop device: tests/all.sh --long"]
fn a_disk_that_the_kernel_remounts_read_only() {
    let disk = SmallDisk::new(160);
    let mut pipeline = Pipeline::prepare(on(&disk), &MosquittoOptions::default());
    pipeline.site.start_gateway();
    let senders = Senders::start(pipeline.site.door, 4, usize::MAX);
    pipeline.site.wait_for("accepted_total", 300, PATIENCE);
    std::fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", disk.device()), "1")
        .expect("a file system error");
    eventually_blocking("the gateway to refuse, or to end", PATIENCE, || {
        if pipeline.site.gateway_ended().is_some() {
            return Some(());
        }
        let status = pipeline.site.status()?;
        adds_up(&status);
        (status["state"] == "refusing").then_some(())
    });
    // A person repairs the file system and starts the box again.
    pipeline.site.kill_gateway();
    disk.unmount_when_free();
    disk.repair();
    disk.mount();
    pipeline.site.start_gateway();
    let safe = senders.stop();
    pipeline.site.start_hub();
    pipeline.check(&safe);
}

/// The kernel calls a sync that is under way at such an error a success now and then, although the data is gone.
#[test]
#[ignore = "needs root and a loop device: tests/all.sh --long"]
fn what_was_synced_while_the_file_system_failed_is_on_the_disk() {
    const BLOCK: usize = 4096;
    let block = |number: usize| format!("{number:08}").repeat(BLOCK / 8).into_bytes();
    let mut random = Random::seeded();
    for round in 0..40 {
        let disk = SmallDisk::new(32);
        let path = |writer: usize| disk.mounted.path().join(writer.to_string());
        let writer = |writer: usize| {
            let file = std::fs::File::create(path(writer)).expect("a file");
            std::thread::spawn(move || {
                let mut synced = 0;
                while file.write_all_at(&block(synced), (synced * BLOCK) as u64).is_ok()
                    && pgw_durable::sync_data(&file).is_ok()
                {
                    synced += 1;
                }
                synced
            })
        };
        let writers: Vec<_> = (0..4).map(writer).collect();
        std::thread::sleep(Duration::from_millis(50 + random.below(100))); // the random moment
        std::fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", disk.device()), "1")
            .expect("a file system error");
        let synced: Vec<usize> = writers.into_iter().map(|writer| writer.join().expect("it ends")).collect();
        disk.unmount_when_free();
        disk.repair();
        disk.mount();
        for (writer, synced) in synced.into_iter().enumerate() {
            let found = std::fs::read(path(writer)).expect("the file");
            for (number, there) in found.chunks(BLOCK).take(synced).enumerate() {
                assert_eq!(there, block(number), "round {round}, writer {writer}, block {number}");
            }
            assert!(
                found.len() >= synced * BLOCK,
                "round {round}, writer {writer}: of {synced} blocks {}",
                found.len() / BLOCK
            );
        }
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The damage to one file of a stopped gateway's store.
#[derive(Debug, Clone, Copy)]
enum Damage {
    BitFlip,
    ZeroedPage,
    CutTail,
    Deleted,
}

impl Damage {
    fn inflict(self, path: &Path, random: &mut Random) {
        let length = path.metadata().expect("its length").len();
        let file = std::fs::File::options().read(true).write(true).open(path).expect("opened");
        match self {
            Self::Deleted => std::fs::remove_file(path).expect("deleted"),
            _ if length == 0 => {}
            Self::BitFlip => {
                let at = random.below(length);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).expect("read");
                byte[0] ^= 1 << random.below(8);
                file.write_all_at(&byte, at).expect("written");
            }
            Self::ZeroedPage => {
                let at = random.below(length.div_ceil(4096)) * 4096;
                let size = usize::try_from(4096.min(length - at)).expect("small");
                file.write_all_at(&vec![0; size], at).expect("written");
            }
            Self::CutTail => file.set_len(length - random.below(length) - 1).expect("cut"),
        }
    }
}

/// Every file of the store, one at a time: whatever the damage, the gateway starts (or names what is wrong, if it
/// cannot work without that file), loses no more than it reports, and the rest arrives once and in order.
fn damage_row(damage: Damage) {
    let mut random = Random::seeded();
    let mut pipeline = Pipeline::start(small_segments());
    let mut safe = pipeline.backlog(50);
    // Half of it is sealed with an earlier key: rebuilt and recreated data must work with both.
    let rotated = pipeline.site.gateway_command(&["key", "rotate"]);
    assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
    pipeline.site.stop_gateway();
    pipeline.site.start_gateway();
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 50..100)) {
        sender.append(&mut more);
    }
    // A clean stop: the tail checkpoint follows the barrier by a moment, and nothing on this disk could show that a
    // newer record is missing.
    pipeline.site.stop_gateway();
    let whole = pipeline.site.path("whole");
    copy_directory(&pipeline.site.path("data"), &whole);
    let files: Vec<PathBuf> = files_below(&whole)
        .into_iter()
        .map(|path| path.strip_prefix(&whole).expect("below").to_owned())
        .filter(|path| !["lock", "ballast"].iter().any(|name| path.ends_with(name)))
        .collect();
    assert!(files.len() > 12, "a store of a few segments: {files:?}");
    for file in &files {
        let case = format!("{damage:?} of {}", file.display());
        let data = pipeline.site.path("data");
        std::fs::remove_dir_all(&data).expect("removed");
        copy_directory(&whole, &data);
        damage.inflict(&data.join(file), &mut random);
        pipeline.site.spawn_gateway();
        let status = eventually_blocking(&format!("{case}: an answer or an end"), PATIENCE, || {
            if let Some(ended) = pipeline.site.gateway_ended() {
                // An error that names the file, and an exit code that systemd or a person can act on.
                assert!(ended.code().is_some_and(|code| [74, 77, 78].contains(&code)), "{case}: {ended}");
                return Some(None);
            }
            pipeline.site.status().map(Some)
        });
        let Some(status) = status else {
            println!("{case}: does not start");
            // With the file put back everything is there: nothing was made worse.
            std::fs::copy(whole.join(file), data.join(file)).expect("put back");
            pipeline.site.start_gateway();
            let status = pipeline.site.status().expect("a status");
            assert_eq!(
                (&status["accepted_total"], &status["damaged"]),
                (&400.into(), &0.into()),
                "{case}: {status}"
            );
            pipeline.site.kill_gateway();
            continue;
        };
        adds_up(&status);
        let number = |key: &str| status[key].as_u64().expect("a number");
        assert_eq!(number("accepted_total"), 400, "{case}: {status}");
        if number("damaged") > 0 {
            println!("{case}: {} damaged", number("damaged"));
        }
        assert!(number("damaged") <= 100, "{case}: more than a segment: {status}");
        pipeline.site.kill_gateway();
    }
    // Finally the whole store again, to the end of the pipeline.
    std::fs::remove_dir_all(pipeline.site.path("data")).expect("removed");
    std::fs::rename(&whole, pipeline.site.path("data")).expect("restored");
    pipeline.site.start_gateway();
    pipeline.proxy.set(Fault::Pass);
    pipeline.check(&safe);
}

#[test]
fn bit_flip_in_each_file() {
    damage_row(Damage::BitFlip);
}

#[test]
fn zeroed_page_in_each_file() {
    damage_row(Damage::ZeroedPage);
}

#[test]
fn cut_tail_of_each_file() {
    damage_row(Damage::CutTail);
}

#[test]
fn each_file_deleted() {
    damage_row(Damage::Deleted);
}

// ---- the hub's disk --------------------------------------------------------------------------------------------------

#[test]
fn hub_disk_full() {
    let mut pipeline = Pipeline::prepare(SiteOptions::default(), &MosquittoOptions::default());
    let shim = Shim::new(&pipeline.site.store(), pipeline.site.path("hub.shim"));
    pipeline.site.hub_environment = shim.environment();
    pipeline.site.start_hub();
    pipeline.site.start_gateway();
    let mut safe = pipeline.more_from(4, 0..50);
    pipeline.site.wait_for("confirmed_total", 200, PATIENCE);
    shim.fail(Failing::Space);
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 50..100)) {
        sender.append(&mut more);
    }
    restart_hub_until(&mut pipeline, "the full disk to be met", |_| shim.met() > 0);
    let status = pipeline.site.status().expect("a status");
    assert_eq!(status["confirmed_total"], 200, "a receipt for what the hub could not store: {status}");
    shim.heal();
    restart_hub_until(&mut pipeline, "all to be confirmed", |pipeline| {
        pipeline.site.status().is_some_and(|status| status["waiting"] == 0)
    });
    pipeline.check(&safe);
}

// ---- the broker ------------------------------------------------------------------------------------------------------

#[test]
fn broker_answers_puback_with_a_failure_code() {
    // Everything is allowed except transactions: Mosquitto answers their publishes with 0x87.
    let hub = "user hub1\ntopic readwrite #\n";
    // The test's own observer has no user name.
    let acl = format!("topic read #\nuser B86022.gw1\ntopic deny pgw/v1/+/+/txn/#\ntopic readwrite #\n{hub}");
    let options = MosquittoOptions { acl: Some(acl), ..MosquittoOptions::default() };
    let mut pipeline = Pipeline::prepare(SiteOptions::default(), &options);
    pipeline.site.start_hub();
    pipeline.site.start_gateway();
    let safe = pipeline.more_from(4, 0..50);
    eventually_blocking("the refusal to be reported", PATIENCE, || {
        let log = pipeline.site.log("gateway");
        (log.contains("0x87") || log.contains("135") || log.contains("Not authorized")).then_some(())
    });
    assert_eq!(pipeline.site.status().expect("a status")["confirmed_total"], 0);
    pipeline.broker.set_acl(&format!("topic read #\nuser B86022.gw1\ntopic readwrite #\n{hub}"));
    pipeline.check(&safe);
}

#[test]
fn broker_refuses_the_connection() {
    let strangers = Certificates::new();
    let options = MosquittoOptions { client_ca: Some(strangers.ca()), ..MosquittoOptions::default() };
    let mut pipeline = Pipeline::prepare(SiteOptions::default(), &options);
    pipeline.site.start_hub();
    pipeline.site.start_gateway();
    let safe = pipeline.more_from(4, 0..50);
    eventually_blocking("the refusal to be reported", PATIENCE, || {
        pipeline.site.log("gateway").contains("phase=\"tls\"").then_some(())
    });
    pipeline.broker.set_client_ca(&pipeline.certificates.ca());
    pipeline.check(&safe);
}

#[test]
fn broker_shrinks_its_limits() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let mut safe = pipeline.backlog(100);
    let large = message(50, 1, 5_000);
    let mut stream = connect(pipeline.site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, &large).expect("an answer")));
    safe.push(vec![large]);
    // Receive Maximum 3, and a packet limit below the last message's size: it is held, and the status names it.
    pipeline.broker.set("max_inflight_messages", "3");
    pipeline.broker.set("max_packet_size", "3000");
    pipeline.proxy.set(Fault::Pass);
    eventually_blocking("what is too large to be held", PATIENCE, || {
        let status = pipeline.site.status()?;
        adds_up(&status);
        (status["held"] == 1).then_some(())
    });
    let status = pipeline.site.status().expect("a status");
    assert_eq!((&status["confirmed_total"], &status["waiting"]), (&400.into(), &1.into()), "{status}");
    pipeline.broker.set("max_packet_size", "25165824");
    pipeline.check(&safe);
}

#[test]
fn broker_killed_again_and_again() {
    let mut pipeline = Pipeline::start(SiteOptions::default());
    let mut random = Random::seeded();
    let safe = pipeline.backlog(400);
    pipeline.proxy.set(Fault::Throttle(1_000_000));
    for _ in 0..if long() { 60 } else { 6 } {
        std::thread::sleep(Duration::from_millis(random.below(400))); // the random moment
        pipeline.broker.restart();
    }
    pipeline.proxy.set(Fault::Pass);
    pipeline.check(&safe);
}

// ---- the link --------------------------------------------------------------------------------------------------------

#[test]
fn one_percent_of_bytes_comes_seconds_late() {
    let pipeline = Pipeline::start(SiteOptions::default());
    let safe = pipeline.backlog(250);
    pipeline.proxy.set(Fault::Hiccups { one_in: 100, late: Duration::from_secs(2) });
    pipeline.check(&safe);
}

#[test]
fn a_name_that_is_looked_up_for_ever() {
    let (pipeline, shim) = shimmed();
    let mut safe = pipeline.backlog(50);
    shim.fail(Failing::Resolver);
    // Refused until it looks the name up: an attempt in progress already had the address.
    eventually_blocking("the name to be looked up", PATIENCE, || (shim.met() > 0).then_some(()));
    pipeline.proxy.set(Fault::Pass);
    // It keeps accepting, and answers requests.
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 50..100)) {
        sender.append(&mut more);
    }
    let status = pipeline.site.status().expect("a status");
    assert_eq!((&status["link_up"], &status["confirmed_total"]), (&0.into(), &0.into()), "{status}");
    shim.heal();
    pipeline.check(&safe);
}

#[test]
fn certificate_expired_and_renewed_while_running() {
    let certificates = Certificates::new();
    let expired = certificates.expired_client("B86022.gw1");
    let broker = harness::Mosquitto::start(&certificates);
    let options = SiteOptions { certificate: Some(expired.clone()), ..SiteOptions::default() };
    let mut pipeline = Pipeline::between(certificates, broker, options);
    pipeline.site.start_hub();
    pipeline.site.start_gateway();
    let safe = pipeline.more_from(4, 0..50);
    eventually_blocking("the expiry to be reported", PATIENCE, || {
        pipeline.site.log("gateway").to_lowercase().contains("expired").then_some(())
    });
    let renewed = pipeline.certificates.client("B86022.gw1");
    std::fs::copy(&renewed.certificate, &expired.certificate).expect("renewed");
    std::fs::copy(&renewed.key, &expired.key).expect("renewed");
    signal(pipeline.site.gateway_pid(), Signal::HUP);
    pipeline.check(&safe);
}

// ---- the clock -------------------------------------------------------------------------------------------------------

const DAY: i64 = 86_400;

/// The wall clock jumps, and back; no waiting transaction is pruned, forgotten or blocked by it.
fn clock_row(shift: i64, delivers_meanwhile: bool) {
    let (pipeline, shim) = shimmed();
    let mut safe = pipeline.backlog(60);
    shim.shift_clock(shift);
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 60..90)) {
        sender.append(&mut more);
    }
    pipeline.proxy.set(Fault::Pass);
    if delivers_meanwhile {
        pipeline.site.wait_for("confirmed_total", 360, PATIENCE);
    } else {
        eventually_blocking("the certificates' dates to be named", PATIENCE, || {
            pipeline.site.log("gateway").contains("phase=\"tls\"").then_some(())
        });
        let status = pipeline.site.status().expect("a status");
        adds_up(&status);
        assert_eq!((&status["waiting"], &status["damaged"]), (&360.into(), &0.into()), "{status}");
        shim.shift_clock(0);
    }
    for (sender, mut more) in safe.iter_mut().zip(pipeline.more_from(4, 90..110)) {
        sender.append(&mut more);
    }
    pipeline.check(&safe);
}

#[test]
fn clock_set_to_1970() {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    // It still connects: certificates are checked by the last time that the hub and the box agreed on.
    clock_row(-now.cast_signed(), true);
}

#[test]
fn clock_two_days_ahead() {
    clock_row(2 * DAY, true);
}

#[test]
fn clock_forty_days_ahead() {
    clock_row(40 * DAY, true);
}

#[test]
fn clock_two_years_ahead() {
    clock_row(730 * DAY, false);
}
