//! A surgery's clinical input, sent through the matching doors: a few samples about nobody in this file, or everything
//! below the directory that `PGW_DATA` names.
//!
//! HL7 v2 is sent by MLLP, FHIR by HTTP (messages to `$process-message`, other resources to the generic route),
//! EDIFACT by folder and, if its folder is called `nhais`, by the command line.
#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot continue fails"
)]

pub mod secrets;

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::senders::{connect, exchange, positive};
use crate::harness::site::Site;
use crate::harness::{eventually_blocking, ports};
use crate::http_kit::{curl, uuid};

const PATIENCE: Duration = Duration::from_secs(120);

/// The matching way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    Mllp,
    Http,
    Folder,
    CommandLine,
}

/// A name and its bytes.
pub type Named = (String, Vec<u8>);

/// One sender: what it sends one by one, in this order.
#[derive(Debug, Clone)]
pub struct Sender {
    pub name: String,
    pub way: Way,
    /// Name of the file, and the bytes.
    pub files: Vec<Named>,
}

/// The directory of the real samples, if this run uses them.
pub fn directory() -> Option<PathBuf> {
    std::env::var_os("PGW_DATA").filter(|text| !text.is_empty()).map(PathBuf::from)
}

/// From that directory, or the samples of this file.
pub fn corpus() -> Vec<Sender> {
    let Some(directory) = directory() else { return built_in() };
    let mut senders = Vec::new();
    collect(&directory, &mut senders);
    assert!(!senders.is_empty(), "{} holds no samples", directory.display());
    senders
}

/// One sender for each directory, and one for each file of MLLP frames.
fn collect(directory: &Path, senders: &mut Vec<Sender>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).expect("the samples").map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut here: Vec<(Way, Vec<Named>)> = Vec::new();
    for path in entries {
        if path.is_dir() {
            collect(&path, senders);
            continue;
        }
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let way = match path.extension().and_then(|extension| extension.to_str()) {
            Some("mllp") => {
                let frames = frames(&fs::read(&path).unwrap());
                let files = frames.into_iter().map(|frame| (file.clone(), frame)).collect();
                senders.push(Sender { name: file, way: Way::Mllp, files });
                continue;
            }
            Some("hl7") => Way::Mllp,
            Some("json") => Way::Http,
            Some("dat") if name == "nhais" => Way::CommandLine,
            Some("dat") => Way::Folder,
            _ => continue,
        };
        let bytes = fs::read(&path).unwrap();
        match here.iter_mut().find(|(known, _)| *known == way) {
            Some((_, files)) => files.push((file, bytes)),
            None => here.push((way, vec![(file, bytes)])),
        }
    }
    senders.extend(here.into_iter().map(|(way, files)| Sender { name: name.clone(), way, files }));
}

/// The messages between `0B` and `1C`.
fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes
        .split(|b| *b == 0x0b)
        .filter_map(|frame| frame.iter().rposition(|b| *b == 0x1c).map(|end| frame[..end].to_vec()))
        .collect()
}

/// The doors of a site, besides its MLLP door.
pub struct Doors {
    pub http: SocketAddr,
    pub folder: PathBuf,
}

impl Doors {
    /// Adds them to the site's configuration, before anything runs.
    pub fn open(site: &Site) -> Self {
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::reserve()));
        let folder = site.path("in");
        fs::create_dir(&folder).expect("made");
        let config = fs::read_to_string(site.gateway_config()).unwrap();
        let more = format!(
            "{config}\n[[http]]\nlisten = \"{http}\"\n[[folder]]\npath = {folder:?}\nsettle_seconds = 0\nrescan_seconds = 1\n"
        );
        fs::write(site.gateway_config(), more).unwrap();
        Self { http, folder }
    }

    /// Sends everything of one sender. Returns what was accepted and not stored before, in order.
    ///
    /// `accepted` holds the HL7 messages that were accepted: the same message again, from any file, is the same
    /// transaction.
    pub fn send(&self, site: &Site, sender: &Sender, accepted: &mut HashSet<Vec<u8>>) -> Vec<Vec<u8>> {
        match sender.way {
            Way::Mllp => Self::by_mllp(site, sender, accepted),
            Way::Http => self.by_http(sender),
            Way::Folder => self.by_folder(site, sender),
            Way::CommandLine => by_command_line(site, sender),
        }
    }

    fn by_mllp(site: &Site, sender: &Sender, accepted: &mut HashSet<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut stream = connect(site.door).expect("the door");
        let mut safe = Vec::new();
        for (file, message) in &sender.files {
            let answer = exchange(&mut stream, message).expect("an answer");
            assert!(positive(&answer), "{}: {file}: {}", sender.name, String::from_utf8_lossy(&answer));
            if accepted.insert(message.clone()) {
                safe.push(message.clone());
            }
        }
        safe
    }

    fn by_http(&self, sender: &Sender) -> Vec<Vec<u8>> {
        let mut safe = Vec::new();
        for (number, (file, body)) in sender.files.iter().enumerate() {
            let path = if is_message(body) { "/fhir/$process-message" } else { "/v1/transactions" };
            // A key for each file: two files with the same content are two transactions here.
            let id = uuid::Uuid::now_v7();
            let headers = [
                "Content-Type: application/fhir+json".to_owned(),
                format!("X-Request-ID: {id}"),
                format!("X-Correlation-ID: {}", self::uuid(u32::try_from(number).unwrap())),
            ];
            let answer = curl(&format!("http://{}{path}", self.http), &headers, Some(body), &[]);
            assert_eq!(answer.status, 202, "{}: {file}: {}", sender.name, answer.text());
            safe.push(body.clone());
        }
        safe
    }

    fn by_folder(&self, site: &Site, sender: &Sender) -> Vec<Vec<u8>> {
        let accepted = self.folder.join("accepted");
        let receipts = || fs::read_dir(&accepted).map_or(0, Iterator::count);
        let before = receipts();
        for (file, bytes) in &sender.files {
            let draft = site.path("draft");
            fs::write(&draft, bytes).expect("written");
            fs::rename(&draft, self.folder.join(file)).expect("renamed into place");
        }
        let what = format!("a receipt for each of {} files", sender.files.len());
        eventually_blocking(&what, PATIENCE, || (receipts() == before + sender.files.len()).then_some(()));
        sender.files.iter().map(|(_, bytes)| bytes.clone()).collect()
    }
}

fn by_command_line(site: &Site, sender: &Sender) -> Vec<Vec<u8>> {
    let by_hand = site.path("by-hand");
    fs::create_dir_all(&by_hand).expect("made");
    let mut command = Command::new(env!("CARGO_BIN_EXE_practice-gateway"));
    command.args(["submit", "--json", "--lane", "clinical", "--type", "edifact.interchange"]);
    command.args(["--content-type", "application/edifact", "--config"]).arg(site.gateway_config());
    for (file, bytes) in &sender.files {
        fs::write(by_hand.join(file), bytes).expect("written");
        command.arg(by_hand.join(file));
    }
    let output = command.stdin(Stdio::null()).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), sender.files.len() + 1, "a line for each, and one for all");
    let fresh = sender.files.iter().zip(&lines).filter(|(_, line)| line["repeated"] == false);
    fresh.map(|((_, bytes), _)| bytes.clone()).collect()
}

fn is_message(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body)
        .is_ok_and(|json| json["resourceType"] == "Bundle" && json["type"] == "message")
}

/// About nobody: the numbers have a valid check digit but are not in use, and the names are made up.
fn built_in() -> Vec<Sender> {
    let hl7 = |number: u32, kind: &str, pid: &str, end: &str| {
        let text = format!(
            "MSH|^~\\&|LABSYS|SURGERY|PGW|B86022|20261122101500||{kind}|{number}|P|2.4|||AL|||8859/1\r{pid}\r\
             OBX|1|NM|tt-0003-01^Creatinine||95|UMOLL|49 - 92|H|||F{end}"
        );
        (
            format!("{number}.hl7"),
            text.chars().map(|c| u8::try_from(u32::from(c)).expect("Latin-1")).collect(),
        )
    };
    let one = "PID|1|4857773456^^^SURGERY^MRN|9434765919^^^NHS^NH||Quetzalbrook^Thandiwe^Imogen^^Mrs||19481130|F|||\
               17 Larkspur Terrace^^Heckmondwike^^WF16 0QX^GBR||07700 900461|||||8866442200";
    let two = "PID|1|4857773457^^^SURGERY^MRN|9876543210^^^NHS^NH||M\u{fc}llersby^J\u{fc}rgen||19631224|M|||3 Oswaldtwistle Row^^Ossett";
    let fhir = |number: u32, family: &str, nhs: &str| {
        let text = format!(
            r#"{{"resourceType":"Bundle","type":"message","identifier":{{"system":"urn:x","value":"{number}"}},"entry":[
            {{"resource":{{"resourceType":"MessageHeader","eventCoding":{{"code":"servicerequest-request"}}}}}},
            {{"resource":{{"resourceType":"Patient","identifier":[{{"system":"https://fhir.nhs.uk/Id/nhs-number","value":"{nhs}"}}],
            "name":[{{"family":"{family}","given":["Blessington","Ottoline"]}}],"birthDate":"1957-02-28",
            "address":[{{"line":["Flat 9","Wuthering Mansions"],"postalCode":"HX7 8XX"}}]}}}}]}}"#
        );
        (format!("{number}.json"), text.into_bytes())
    };
    let edifact = |number: u32, family: &str, nhs: &str| {
        let text = format!(
            "UNB+UNOA:2+XX11+TES5+260101:1235+0000000{number}'UNH+0000000{number}+FHSREG:0:1:FH:FHS001'\
             PNA+PAT+{nhs}:OPI+++SU:{family}+FO:WINTERBOURNE+TI:MR'DTM+329:19391102:102'\
             NAD+PAT++??:CROMWELLBOTTOM LODGE:ELLAND'UNT+5+0000000{number}'UNZ+1+0000000{number}'"
        );
        (format!("{number}_{family}_{nhs}.dat"), text.into_bytes())
    };
    let patient =
        br#"{"resourceType":"Patient","name":[{"family":"Featherstonehaugh","given":["Persephone"]}],
        "identifier":[{"system":"https://fhir.nhs.uk/Id/nhs-number","value":"9000000009"}]}"#;
    let sender = |name: &str, way: Way, files: Vec<Named>| Sender { name: name.to_owned(), way, files };
    vec![
        sender(
            "laboratory",
            Way::Mllp,
            vec![
                hl7(1, "ADT^A01", one, "\r"),
                hl7(2, "ORU^R01", one, ""),
                hl7(3, "ORU^R01", two, "\r"),
                // The counter has started again.
                hl7(1, "ORU^R01", two, "\r"),
                // A repetition.
                hl7(2, "ORU^R01", one, ""),
            ],
        ),
        sender(
            "referrals",
            Way::Http,
            vec![
                fhir(1, "Grimthorpe", "9912003888"),
                ("patient.json".to_owned(), patient.to_vec()),
                fhir(2, "Abercrombie-Fitzwarren", "9449306621"),
            ],
        ),
        sender(
            "pathology",
            Way::Folder,
            vec![edifact(1, "HIGGINBOTTOM", "9435797881"), edifact(2, "HIGGINBOTTOM", "9435797881")],
        ),
        sender(
            "registrations",
            Way::CommandLine,
            vec![edifact(3, "SNODGRASS", "9435732992"), edifact(4, "RAMSBOTHAM", "9435754422")],
        ),
    ]
}
