//! The fault matrix: one row a fault, each against the real gateway, a real Mosquitto over mutual TLS and the real hub,
//! judged by the oracle of `harness::road`, with every health message at the broker looked at. A row runs alone by its name; random moments follow `PGW_SEED`, which is printed.
//!
//! Power cuts are in `tests/powercut`. Rows that need root and a loop device are ignored here and run by `tests/all.sh --long`.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness;
use crate::harness::road::{PATIENCE, Random, Road, copy_directory};
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

/// A road whose gateway runs below the shim.
fn shimmed() -> (Road, Shim) {
    let mut road = Road::prepare(small_segments(), &MosquittoOptions::default());
    let shim = Shim::new(&road.site.path("data"), road.site.path("gateway.shim"));
    road.site.gateway_environment = shim.environment();
    road.site.start_hub();
    road.site.start_gateway();
    (road, shim)
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a process"), signal).expect("signalled");
}

/// Keeps the hub running as systemd would, until `enough`.
fn restart_hub_until(road: &mut Road, what: &str, mut enough: impl FnMut(&Road) -> bool) {
    let start = std::time::Instant::now();
    while !enough(road) {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        if road.site.hub_ended().is_some() {
            road.site.start_hub();
        }
        std::thread::sleep(Duration::from_millis(50)); // systemd's pause
    }
}

fn restart_gateway_if_ended(road: &mut Road) {
    if road.site.gateway_ended().is_some() {
        road.site.spawn_gateway();
    }
}

// ---- processes -------------------------------------------------------------------------------------------------------

#[test]
fn stopped_and_continued() {
    let road = Road::start(SiteOptions { uplink: "stall_seconds = 1.0\n".into(), ..small_segments() });
    let safe = road.backlog(300);
    road.proxy.set(Fault::Throttle(400_000));
    for (round, pid) in
        [road.site.gateway_pid(), road.site.hub_pid(), road.broker.pid()].into_iter().enumerate()
    {
        road.site.wait_for("confirmed_total", 100 + 200 * round as u64, PATIENCE);
        signal(pid, Signal::STOP);
        std::thread::sleep(Duration::from_secs(2)); // the fault is this time
        signal(pid, Signal::CONT);
    }
    road.proxy.set(Fault::Pass);
    road.judge(&safe);
}

#[test]
fn hub_killed_between_store_and_receipt() {
    let mut road = Road::start(SiteOptions::default());
    let wire = Wire::watch(road.broker.plain_port());
    let mut random = Random::seeded();
    let kills = if long() { 100 } else { 8 };
    let safe = road.backlog(150 * kills.min(20));
    road.proxy.set(Fault::Throttle(1_000_000));
    let file = road.site.store().join("B86022/gw1/clinical.ndjson");
    let stored = || std::fs::metadata(&file).map_or(0, |file| file.len());
    for _ in 0..kills {
        // Each kill falls into the stream: on a busy machine a hub may take a second to come to work.
        let before = stored();
        let more = eventually_blocking("the hub to store something", PATIENCE, || {
            (stored() > before).then_some(true).or((road.site.status()?["waiting"] == 0).then_some(false))
        });
        if !more {
            break;
        }
        std::thread::sleep(Duration::from_millis(random.below(30))); // the random moment
        road.site.kill_hub();
        road.site.start_hub();
    }
    road.proxy.set(Fault::Pass);
    road.site.wait_for("confirmed_total", safe.iter().map(Vec::len).sum::<usize>() as u64, PATIENCE);
    assert!(
        wire.repeated() > 0,
        "nothing went over the wire twice: no kill fell between the store and the receipt"
    );
    road.judge(&safe);
}

#[test]
fn two_hubs_by_mistake() {
    let mut road = Road::start(SiteOptions::default());
    let mut safe = road.more_from(4, 0..50);
    road.site.wait_for("confirmed_total", 200, PATIENCE);
    // The same name, certificate and key, and a store of its own that is empty.
    let text = std::fs::read_to_string(road.site.hub_config()).expect("hub.toml");
    let other = road.site.path("other.toml");
    let mut theirs = text;
    for (ours, name) in [(road.site.store(), "other"), (road.site.path("hub.sock"), "other.sock")] {
        let (ours, other) = (format!("{ours:?}"), format!("{:?}", road.site.path(name)));
        assert!(theirs.contains(&ours), "{theirs}");
        theirs = theirs.replacen(&ours, &other, 1);
    }
    std::fs::write(&other, theirs).expect("written");
    std::fs::create_dir(road.site.path("other")).expect("made");
    let log = std::fs::File::create(road.site.path("other.log")).expect("a log");
    // The first does not answer for a while; that is when somebody starts another.
    signal(road.site.hub_pid(), Signal::STOP);
    let mut twin = Running(
        Command::new(env!("CARGO_BIN_EXE_practice-hub"))
            .args(["run", "--config"])
            .arg(&other)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("started"),
    );
    let senders = Senders::start(road.site.door, 2, 100);
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 50..150)) {
        sender.append(&mut more);
    }
    eventually_blocking("the second hub to have taken its part", PATIENCE, || {
        assert!(twin.0.try_wait().expect("waited").is_none(), "the second hub has ended");
        ndjson_below(&road.site.path("other")).then_some(())
    });
    signal(road.site.hub_pid(), Signal::CONT);
    let others = senders.join();
    drop(twin);
    // One of the two ended the other's connections again and again; systemd keeps the first running.
    restart_hub_until(&mut road, "the first hub to have all", |road| {
        road.site.status().is_some_and(|status| {
            adds_up(&status);
            status["waiting"] == 0
        })
    });
    // Senders 0 and 1 sent the same bytes twice: as many as the oracle asks for are one each.
    for (sender, mut all) in others.into_iter().enumerate() {
        all.retain(|body| !safe[sender].contains(body));
        safe.push(all);
    }
    road.judge(&safe);
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
    let mut road = Road::start(SiteOptions::default());
    let mut safe = road.more_from(2, 0..50);
    road.site.wait_for("confirmed_total", 100, PATIENCE);
    road.site.kill_gateway();
    let image = road.site.path("image");
    copy_directory(&road.site.path("data"), &image);
    road.site.start_gateway();
    // This life is lost with the box; its hub has it.
    let lost_life = road.more_from(2, 50..90);
    road.site.wait_for("confirmed_total", 180, PATIENCE);
    road.site.kill_gateway();
    std::fs::remove_dir_all(road.site.path("data")).expect("removed");
    std::fs::rename(&image, road.site.path("data")).expect("restored");
    road.site.start_gateway();
    let after = road.more_from(2, 90..150);
    for ((sender, mut middle), mut end) in safe.iter_mut().zip(lost_life).zip(after) {
        sender.append(&mut middle);
        sender.append(&mut end);
    }
    let accepted_here = 100 + 120;
    road.site.wait_for("confirmed_total", accepted_here, PATIENCE);
    let status = road.site.status().expect("a status");
    assert_eq!(status["accepted_total"], accepted_here, "{status}");
    let mut stream = connect(road.site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, &message(99, 1, 10)).expect("an answer")));
    safe.push(vec![message(99, 1, 10)]);
    road.site.wait_for("confirmed_total", accepted_here + 1, PATIENCE);
    road.site.stop();
    let verified = road.site.hub_command(&["verify"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let proof = harness::proof::Proof::of(&road.site.store(), &safe).expect("the hub's files");
    assert_eq!(
        (proof.lost, proof.repeated, proof.out_of_order, proof.chain_ok),
        (0, 0, 0, true),
        "{proof:?}"
    );
}

// ---- the gateway's disk ----------------------------------------------------------------------------------------------

/// Senders at work; the fault comes, is met, and goes; the daemon may end and is started again as systemd would.
fn disk_row(failing: Failing, may_end: bool) {
    let (mut road, shim) = shimmed();
    let senders = Senders::start(road.site.door, 4, usize::MAX);
    for round in 0..3 {
        road.site.wait_for("confirmed_total", 200 * (round + 1), PATIENCE);
        let before = shim.met();
        shim.fail(failing);
        eventually_blocking("the fault to be met", PATIENCE, || {
            restart_gateway_if_ended(&mut road);
            (shim.met() > before + 3).then_some(())
        });
        std::thread::sleep(Duration::from_millis(700)); // the fault lasts
        if !may_end {
            eventually_blocking("the gateway to refuse", PATIENCE, || {
                assert!(
                    road.site.gateway_ended().is_none(),
                    "the gateway ended\n{}",
                    road.site.log("gateway")
                );
                let status = road.site.status().expect("a status while the disk fails");
                adds_up(&status);
                (status["state"] == "refusing").then_some(())
            });
        }
        shim.heal();
        let after = eventually_blocking("the gateway to answer", PATIENCE, || {
            restart_gateway_if_ended(&mut road);
            road.site.status()
        });
        let accepted = after["accepted_total"].as_u64().expect("a number");
        road.site.wait_for("accepted_total", accepted + 100, PATIENCE);
    }
    let safe = senders.stop();
    let status = road.site.status().expect("a status");
    assert_eq!(status["damaged"], 0, "{status}");
    road.judge(&safe);
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

/// A small ext4 of its own on a loop device.
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

    fn unmount(&self) -> bool {
        Command::new("umount").arg(self.mounted.path()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has a file open there is killed by now; the kernel may take a moment to know it.
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
    let mut road = Road::prepare(on(&disk), &MosquittoOptions::default());
    road.site.start_gateway();
    let senders = Senders::start(road.site.door, 4, usize::MAX);
    for round in 0..3 {
        let accepted = road.site.status().expect("a status")["accepted_total"].as_u64().expect("a number");
        road.site.wait_for("accepted_total", accepted + 100, PATIENCE);
        let filler = disk.mounted.path().join("filler");
        let file = std::fs::File::create(&filler).expect("a file");
        // Somebody else fills the disk, to the last byte in the second round and beyond the outbox's own limit in the others.
        let mut at = 0;
        while file.write_all_at(&[7; 65_536], at).is_ok() && (round == 1 || at < 140 << 20) {
            at += 65_536;
        }
        eventually_blocking("the gateway to refuse", PATIENCE, || {
            assert!(road.site.gateway_ended().is_none(), "the gateway ended\n{}", road.site.log("gateway"));
            let status = road.site.status()?;
            adds_up(&status);
            (status["state"] == "refusing").then_some(())
        });
        std::fs::remove_file(&filler).expect("removed");
    }
    let accepted = road.site.status().expect("a status")["accepted_total"].as_u64().expect("a number");
    road.site.wait_for("accepted_total", accepted + 100, PATIENCE);
    let safe = senders.stop();
    road.site.start_hub();
    road.judge(&safe);
}

#[test]
#[ignore = "needs root and a loop device: tests/all.sh --long"]
fn a_disk_that_the_kernel_remounts_read_only() {
    let disk = SmallDisk::new(160);
    let mut road = Road::prepare(on(&disk), &MosquittoOptions::default());
    road.site.start_gateway();
    let senders = Senders::start(road.site.door, 4, usize::MAX);
    road.site.wait_for("accepted_total", 300, PATIENCE);
    std::fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", disk.device()), "1")
        .expect("a file system error");
    eventually_blocking("the gateway to refuse, or to end", PATIENCE, || {
        if road.site.gateway_ended().is_some() {
            return Some(());
        }
        let status = road.site.status()?;
        adds_up(&status);
        (status["state"] == "refusing").then_some(())
    });
    // A person repairs the file system and starts the box again.
    road.site.kill_gateway();
    assert!(disk.unmount(), "nobody has a file open there");
    let checked = Command::new("e2fsck").args(["-f", "-y"]).arg(disk.path()).output().expect("e2fsck");
    assert!(
        checked.status.code().is_some_and(|code| code < 4),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
    disk.mount();
    road.site.start_gateway();
    let safe = senders.stop();
    road.site.start_hub();
    road.judge(&safe);
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

/// What is done to one file of a stopped gateway's store.
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

/// Every file of the store, one at a time: whatever is done to it, the gateway starts (or says what is wrong, where without that
/// file nothing can be known), loses no more than it reports, and the rest arrives once and in order.
fn damage_row(damage: Damage) {
    let mut random = Random::seeded();
    let mut road = Road::start(small_segments());
    let mut safe = road.backlog(50);
    // Half of it is sealed with an earlier key: what is salvaged, or made again, is so with both.
    let rotated = road.site.gateway_command(&["key", "rotate"]);
    assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
    road.site.stop_gateway();
    road.site.start_gateway();
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 50..100)) {
        sender.append(&mut more);
    }
    // A clean stop: the sidecar follows the barrier by a moment, and what is younger nothing on this disk can miss.
    road.site.stop_gateway();
    let whole = road.site.path("whole");
    copy_directory(&road.site.path("data"), &whole);
    let files: Vec<PathBuf> = files_below(&whole)
        .into_iter()
        .map(|path| path.strip_prefix(&whole).expect("below").to_owned())
        .filter(|path| !["lock", "ballast"].iter().any(|name| path.ends_with(name)))
        .collect();
    assert!(files.len() > 12, "a store of a few segments: {files:?}");
    for file in &files {
        let case = format!("{damage:?} of {}", file.display());
        let data = road.site.path("data");
        std::fs::remove_dir_all(&data).expect("removed");
        copy_directory(&whole, &data);
        damage.inflict(&data.join(file), &mut random);
        road.site.spawn_gateway();
        let status = eventually_blocking(&format!("{case}: an answer or an end"), PATIENCE, || {
            if let Some(ended) = road.site.gateway_ended() {
                // A sentence that names it, and a status that systemd or a person can act on.
                assert!(ended.code().is_some_and(|code| [74, 77, 78].contains(&code)), "{case}: {ended}");
                return Some(None);
            }
            road.site.status().map(Some)
        });
        let Some(status) = status else {
            println!("{case}: does not start");
            // With the file put back all is there: nothing was made worse.
            std::fs::copy(whole.join(file), data.join(file)).expect("put back");
            road.site.start_gateway();
            let status = road.site.status().expect("a status");
            assert_eq!(
                (&status["accepted_total"], &status["damaged"]),
                (&400.into(), &0.into()),
                "{case}: {status}"
            );
            road.site.kill_gateway();
            continue;
        };
        adds_up(&status);
        let number = |key: &str| status[key].as_u64().expect("a number");
        assert_eq!(number("accepted_total"), 400, "{case}: {status}");
        if number("damaged") > 0 {
            println!("{case}: {} damaged", number("damaged"));
        }
        assert!(number("damaged") <= 100, "{case}: more than a segment: {status}");
        road.site.kill_gateway();
    }
    // The last word: the whole store again, to the end of the road.
    std::fs::remove_dir_all(road.site.path("data")).expect("removed");
    std::fs::rename(&whole, road.site.path("data")).expect("restored");
    road.site.start_gateway();
    road.proxy.set(Fault::Pass);
    road.judge(&safe);
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
    let mut road = Road::prepare(SiteOptions::default(), &MosquittoOptions::default());
    let shim = Shim::new(&road.site.store(), road.site.path("hub.shim"));
    road.site.hub_environment = shim.environment();
    road.site.start_hub();
    road.site.start_gateway();
    let mut safe = road.more_from(4, 0..50);
    road.site.wait_for("confirmed_total", 200, PATIENCE);
    shim.fail(Failing::Space);
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 50..100)) {
        sender.append(&mut more);
    }
    restart_hub_until(&mut road, "the full disk to be met", |_| shim.met() > 0);
    let status = road.site.status().expect("a status");
    assert_eq!(status["confirmed_total"], 200, "a receipt for what the hub could not store: {status}");
    shim.heal();
    restart_hub_until(&mut road, "all to be confirmed", |road| {
        road.site.status().is_some_and(|status| status["waiting"] == 0)
    });
    road.judge(&safe);
}

// ---- the broker ------------------------------------------------------------------------------------------------------

#[test]
fn broker_answers_puback_with_a_failure_code() {
    // Everything is allowed but transactions: Mosquitto answers their publishes with 0x87.
    let hub = "user hub1\ntopic readwrite #\n";
    // Nobody by name is who reads the books.
    let acl = format!("topic read #\nuser B86022.gw1\ntopic deny pgw/v1/+/+/txn/#\ntopic readwrite #\n{hub}");
    let options = MosquittoOptions { acl: Some(acl), ..MosquittoOptions::default() };
    let mut road = Road::prepare(SiteOptions::default(), &options);
    road.site.start_hub();
    road.site.start_gateway();
    let safe = road.more_from(4, 0..50);
    eventually_blocking("the refusal to be told", PATIENCE, || {
        let log = road.site.log("gateway");
        (log.contains("0x87") || log.contains("135") || log.contains("Not authorized")).then_some(())
    });
    assert_eq!(road.site.status().expect("a status")["confirmed_total"], 0);
    road.broker.set_acl(&format!("topic read #\nuser B86022.gw1\ntopic readwrite #\n{hub}"));
    road.judge(&safe);
}

#[test]
fn broker_refuses_the_connection() {
    let strangers = Certificates::new();
    let options = MosquittoOptions { client_ca: Some(strangers.ca()), ..MosquittoOptions::default() };
    let mut road = Road::prepare(SiteOptions::default(), &options);
    road.site.start_hub();
    road.site.start_gateway();
    let safe = road.more_from(4, 0..50);
    eventually_blocking("the refusal to be told", PATIENCE, || {
        road.site.log("gateway").contains("phase=\"tls\"").then_some(())
    });
    road.broker.set_client_ca(&road.certificates.ca());
    road.judge(&safe);
}

#[test]
fn broker_shrinks_its_limits() {
    let mut road = Road::start(SiteOptions::default());
    let mut safe = road.backlog(100);
    let large = message(50, 1, 5_000);
    let mut stream = connect(road.site.door).expect("the door");
    assert!(positive(&exchange(&mut stream, &large).expect("an answer")));
    safe.push(vec![large]);
    // Receive Maximum 3, and less bytes a packet than the last: it stays, held by name.
    road.broker.set("max_inflight_messages", "3");
    road.broker.set("max_packet_size", "3000");
    road.proxy.set(Fault::Pass);
    eventually_blocking("what is too large to be held", PATIENCE, || {
        let status = road.site.status()?;
        adds_up(&status);
        (status["held"] == 1).then_some(())
    });
    let status = road.site.status().expect("a status");
    assert_eq!((&status["confirmed_total"], &status["waiting"]), (&400.into(), &1.into()), "{status}");
    road.broker.set("max_packet_size", "25165824");
    road.judge(&safe);
}

#[test]
fn broker_killed_again_and_again() {
    let mut road = Road::start(SiteOptions::default());
    let mut random = Random::seeded();
    let safe = road.backlog(400);
    road.proxy.set(Fault::Throttle(1_000_000));
    for _ in 0..if long() { 60 } else { 6 } {
        std::thread::sleep(Duration::from_millis(random.below(400))); // the random moment
        road.broker.restart();
    }
    road.proxy.set(Fault::Pass);
    road.judge(&safe);
}

// ---- the link --------------------------------------------------------------------------------------------------------

#[test]
fn one_percent_of_bytes_comes_seconds_late() {
    let road = Road::start(SiteOptions::default());
    let safe = road.backlog(250);
    road.proxy.set(Fault::Hiccups { one_in: 100, late: Duration::from_secs(2) });
    road.judge(&safe);
}

#[test]
fn a_name_that_is_looked_up_for_ever() {
    let (road, shim) = shimmed();
    let mut safe = road.backlog(50);
    shim.fail(Failing::Resolver);
    // Refused until it looks the name up: an attempt that was on its way already had it.
    eventually_blocking("the name to be looked up", PATIENCE, || (shim.met() > 0).then_some(()));
    road.proxy.set(Fault::Pass);
    // It goes on accepting, and answers those who ask.
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 50..100)) {
        sender.append(&mut more);
    }
    let status = road.site.status().expect("a status");
    assert_eq!((&status["link_up"], &status["confirmed_total"]), (&0.into(), &0.into()), "{status}");
    shim.heal();
    road.judge(&safe);
}

#[test]
fn certificate_expired_and_renewed_while_running() {
    let certificates = Certificates::new();
    let expired = certificates.expired_client("B86022.gw1");
    let broker = harness::Mosquitto::start(&certificates);
    let options = SiteOptions { certificate: Some(expired.clone()), ..SiteOptions::default() };
    let mut road = Road::between(certificates, broker, options);
    road.site.start_hub();
    road.site.start_gateway();
    let safe = road.more_from(4, 0..50);
    eventually_blocking("the expiry to be told", PATIENCE, || {
        road.site.log("gateway").to_lowercase().contains("expired").then_some(())
    });
    let renewed = road.certificates.client("B86022.gw1");
    std::fs::copy(&renewed.certificate, &expired.certificate).expect("renewed");
    std::fs::copy(&renewed.key, &expired.key).expect("renewed");
    signal(road.site.gateway_pid(), Signal::HUP);
    road.judge(&safe);
}

// ---- the clock -------------------------------------------------------------------------------------------------------

const DAY: i64 = 86_400;

/// The wall clock jumps, and back; nothing that waits is pruned, forgotten or stopped for good by it.
fn clock_row(shift: i64, delivers_meanwhile: bool) {
    let (road, shim) = shimmed();
    let mut safe = road.backlog(60);
    shim.shift_clock(shift);
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 60..90)) {
        sender.append(&mut more);
    }
    road.proxy.set(Fault::Pass);
    if delivers_meanwhile {
        road.site.wait_for("confirmed_total", 360, PATIENCE);
    } else {
        eventually_blocking("the certificates' dates to be named", PATIENCE, || {
            road.site.log("gateway").contains("phase=\"tls\"").then_some(())
        });
        let status = road.site.status().expect("a status");
        adds_up(&status);
        assert_eq!((&status["waiting"], &status["damaged"]), (&360.into(), &0.into()), "{status}");
        shim.shift_clock(0);
    }
    for (sender, mut more) in safe.iter_mut().zip(road.more_from(4, 90..110)) {
        sender.append(&mut more);
    }
    road.judge(&safe);
}

#[test]
fn clock_set_to_1970() {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    // It still connects: certificates are judged by the last time that the hub and the box agreed on.
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
