use super::*;

const KEYS: [&str; 3] = [
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "AgECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
];
const LIST: &str = r#"serial = 12
[[gateway]]
name = "B86022.gw1"
display_name = "Chapeltown Surgery"
district = "Bradford"
lanes = ["clinical", "letters"]
quota_bytes_per_day = 5000
window = 0
[[gateway.key]]
public_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
state = "verifying"
added = "2026-11-27T10:00:00Z"
[[gateway.key]]
public_key = "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
state = "signing"
[[gateway]]
name = "B86023.gw1"
[[gateway.key]]
public_key = "AgECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
state = "revoked"
"#;

fn load(text: &str) -> Result<Gateways, ListError> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateways.toml");
    std::fs::write(&file, text).unwrap();
    Gateways::load(&file)
}

fn mode(file: &Path) -> u32 {
    std::fs::metadata(file).unwrap().mode() & 0o777
}

/// Adds a gateway whose key nobody else has.
fn added(practice: u8) -> impl FnOnce(&mut Gateways) -> Result<(), ChangeError> {
    use base64::Engine as _;
    let key = base64::engine::general_purpose::STANDARD.encode([practice; 32]).parse().unwrap();
    let name = common_name(&format!("B{practice:05}.gw1")).unwrap();
    move |list| list.add(&name, ListedGateway::default(), key, 0)
}

#[test]
fn a_list_is_read_as_it_was_written() {
    let list = load(LIST).unwrap();
    let chapeltown = &list.gateways[&common_name("B86022.gw1").unwrap()];
    assert_eq!((list.serial, list.gateways.len()), (12, 2));
    assert_eq!((&*chapeltown.display_name, &*chapeltown.district), ("Chapeltown Surgery", "Bradford"));
    assert_eq!(chapeltown.lanes.iter().map(Lane::as_str).collect::<Vec<_>>(), ["clinical", "letters"]);
    assert_eq!((chapeltown.quota_bytes_per_day, chapeltown.window), (Some(5000), Some(0)));
    assert_eq!(chapeltown.signing().unwrap().to_string(), KEYS[1]);
    assert_eq!(chapeltown.keys[0].added, Some(1_795_773_600_000));
    assert_eq!(list.gateways[&common_name("B86023.gw1").unwrap()].signing(), None);
    let text = text(&list).unwrap();
    assert!(text.starts_with("# The gateways of this hub"), "{text}");
    assert_eq!(load(&text).unwrap(), list, "{text}");
    assert_eq!(load("").unwrap(), Gateways::default());
}

#[test]
fn an_error_names_file_line_key_and_what_is_allowed() {
    for (line, new, key, allowed) in [
        (3, "name = \"B86022\"", "gateway.name", "PRACTICE.GATEWAY"),
        (3, "name = \"b86022.gw1\"", "gateway.name", "an ODS code"),
        (3, "name = \"B86022.gw/1\"", "gateway.name", "lower-case letters"),
        (3, "name = \"+.+\"", "gateway.name", "an ODS code"),
        (17, "name = \"B86022.gw1\"", "gateway.name", "different from the other gateways' names"),
        (4, "display_name = \"a\\nb\"", "gateway.display_name", "on one line"),
        (5, "district = \"\\u001b[2J\"", "gateway.district", "on one line"),
        (6, "lanes = [\"clinical\", \"+\"]", "gateway.lanes", "lower-case letters"),
        (6, "lanes = [\"clinical\", \"clinical\"]", "gateway.lanes", "other lanes"),
        (6, "lanes = []", "gateway.lanes", "leave the key out to allow any lane"),
        (7, "quota_bytes_per_day = 0", "gateway.quota_bytes_per_day", "from 1 to"),
        (8, "window = 65536", "gateway.window", "from 0 to 65535"),
        (10, "public_key = \"AAAA\"", "gateway.key.public_key", "32 bytes in base64"),
        (14, &format!("public_key = \"{}\"", KEYS[0]), "gateway.key.public_key", "B86022.gw1 has it already"),
        (19, &format!("public_key = \"{}\"", KEYS[0]), "gateway.key.public_key", "B86022.gw1 has it already"),
        (15, "state = \"stolen\"", "gateway.key.state", "\"revoked\""),
        (12, "added = \"yesterday\"", "gateway.key.added", "a time like"),
    ] {
        let text: Vec<&str> =
            LIST.lines().enumerate().map(|(index, old)| if index + 1 == line { new } else { old }).collect();
        let error = load(&text.join("\n")).expect_err(new).to_string();
        assert!(error.contains(&format!("gateways.toml:{line}: {key} = ")), "{new}: {error}");
        assert!(error.contains(allowed), "{new}: {error}");
        assert_eq!(error.matches("it must be ").count(), 1, "{new}: {error}");
    }
}

#[test]
fn two_signing_keys_are_refused_with_the_line_of_the_second() {
    let error = load(&LIST.replace("verifying", "signing")).unwrap_err().to_string();
    assert!(error.contains("gateways.toml:15: gateway.key.state = \"signing\""), "{error}");
    assert!(error.contains("B86022.gw1 has another signing key"), "{error}");
}

#[test]
fn an_unknown_or_missing_key_is_named_with_its_line() {
    for (old, new, line, says) in [
        ("district", "town", 5, "`town`"),
        ("state = \"revoked\"", "", 18, "`state`"),
        ("name = \"B86023.gw1\"", "", 16, "`name`"),
        ("serial = 12", "serial = \"12\"", 1, "serial"),
        ("serial = 12", "serial = ", 1, ""),
    ] {
        let error = load(&LIST.replace(old, new)).expect_err(new).to_string();
        assert!(error.contains(&format!("gateways.toml:{line}: ")) && error.contains(says), "{new}: {error}");
    }
}

#[test]
fn each_change_has_the_next_serial_and_no_change_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (file, like) = (directory.path().join("gateways.toml"), directory.path());
    assert_eq!(Gateways::load(&file).unwrap(), Gateways::default(), "no file is an empty list");
    edit(&file, like, added(1)).unwrap();
    assert_eq!((Gateways::load(&file).unwrap().serial, mode(&file)), (1, 0o640));
    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let edited = edit(&file, like, added(2)).unwrap();
    assert_eq!((edited.before.serial, edited.after.serial, mode(&file)), (1, 2, 0o644));
    assert_eq!(Gateways::load(&file).unwrap(), edited.after);
    let before = std::fs::metadata(&file).unwrap().ino();
    assert!(matches!(edit(&file, like, added(2)), Err(ListError::Refused(_))));
    edit(&file, like, |_| Ok(())).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().ino(), before, "it was not written");
}

#[test]
fn a_list_that_is_wrong_is_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateways.toml");
    std::fs::write(&file, "serial = 3\nnonsense").unwrap();
    assert!(matches!(edit(&file, directory.path(), added(1)), Err(ListError::Wrong(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "serial = 3\nnonsense");
}

#[test]
fn what_the_hub_could_not_read_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let (file, like) = (directory.path().join("gateways.toml"), directory.path());
    edit(&file, like, added(1)).unwrap();
    let before = std::fs::read(&file).unwrap();
    let twice = |list: &mut Gateways| {
        let lane = Lane::new("clinical").unwrap();
        list.listed_mut(&common_name("B00001.gw1").unwrap())?.lanes = vec![lane.clone(), lane];
        Ok(())
    };
    assert!(matches!(edit(&file, like, twice), Err(ListError::Wrong(_))));
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn two_commands_at_once_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (file, like) = (directory.path().join("gateways.toml"), directory.path());
    std::thread::scope(|threads| {
        for first in [10, 20, 30, 40] {
            let file = &file;
            threads.spawn(move || {
                for practice in first..first + 10 {
                    // Slow enough that without the lock the others would read the same list meanwhile.
                    let change = |list: &mut Gateways| {
                        std::thread::sleep(Duration::from_millis(2));
                        added(practice)(list)
                    };
                    edit(file, like, change).unwrap();
                }
            });
        }
    });
    let list = Gateways::load(&file).unwrap();
    assert_eq!((list.serial, list.gateways.len()), (40, 40));
}
