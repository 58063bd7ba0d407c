//! What of the samples must never appear in the clear (numbers, names, addresses of the people in them), and the
//! search for it.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Sender, Way};

/// Shorter ones occur by chance: as text in our own words, as bytes in sealed data.
const LEAST_IN_TEXT: usize = 5;
const LEAST_IN_BYTES: usize = 8;

/// Words of the samples that say nothing about anybody and that our programs also print.
const HARMLESS: &[&str] = &[
    "TEST", "Test", "test", "PATIENT", "Patient", "patient", "CURRENT", "SURGERY", "NONE", "None", "home",
    "TRACE",
];

/// Values to look for, by their first four bytes.
pub struct Secrets {
    by_start: HashMap<[u8; 4], Vec<Vec<u8>>>,
    pub count: usize,
}

/// A value that was found.
#[derive(Debug)]
pub struct Leak {
    pub place: String,
    pub value: String,
    pub around: String,
}

impl Secrets {
    /// Everything about people in the input.
    pub fn of(corpus: &[Sender]) -> Self {
        let mut values = BTreeSet::new();
        for sender in corpus {
            for (file, bytes) in &sender.files {
                numbers(bytes, &mut values);
                if sender.way == Way::Folder {
                    // File names contain patient names.
                    values.insert(file.clone().into_bytes());
                }
                match (sender.way, serde_json::from_slice::<Value>(bytes)) {
                    (_, Ok(json)) => resource(&json, &mut values),
                    (Way::Mllp, _) => segments(bytes, &mut values),
                    _ => interchange(bytes, &mut values),
                }
            }
        }
        Self::from_values(values)
    }

    fn from_values(values: BTreeSet<Vec<u8>>) -> Self {
        let mut by_start: HashMap<[u8; 4], Vec<Vec<u8>>> = HashMap::new();
        let mut count = 0;
        for value in values {
            let value = value.trim_ascii().to_vec();
            if value.len() < LEAST_IN_TEXT || HARMLESS.iter().any(|word| word.as_bytes() == value) {
                continue;
            }
            count += 1;
            // As it is, and in the forms of `{:?}` of bytes and of hexadecimal digits.
            let listed = value.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
            let digits = pgw_core::text::hex(&value);
            for form in [value, listed.into_bytes(), digits.into_bytes()] {
                let start = [form[0], form[1], form[2], form[3]];
                by_start.entry(start).or_default().push(form);
            }
        }
        Self { by_start, count }
    }

    /// Adds further values.
    pub fn with(mut self, more: [&str; 2]) -> Self {
        let values = more.into_iter().map(|value| value.as_bytes().to_vec()).collect();
        for (start, more) in Self::from_values(values).by_start {
            let known = self.by_start.entry(start).or_default();
            known.extend(more);
            known.sort();
            known.dedup();
        }
        self
    }

    /// Searches text for people and programs.
    pub fn in_text(&self, place: &str, text: &[u8]) -> Vec<Leak> {
        self.search(place, text, LEAST_IN_TEXT)
    }

    /// Searches every file below a directory, and the file names.
    pub fn in_files(&self, directory: &Path) -> Vec<Leak> {
        let mut leaks = Vec::new();
        let Ok(entries) = fs::read_dir(directory) else { return leaks };
        for entry in entries {
            let path = entry.expect("an entry").path();
            let place = path.display().to_string();
            let name = path.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
            leaks.extend(self.search(&place, &name, LEAST_IN_BYTES));
            if path.is_dir() {
                leaks.extend(self.in_files(&path));
            } else if path.is_file() {
                // A running daemon removes files.
                let bytes = fs::read(&path).unwrap_or_default();
                leaks.extend(self.search(&place, &bytes, LEAST_IN_BYTES));
            }
        }
        leaks
    }

    fn search(&self, place: &str, bytes: &[u8], least: usize) -> Vec<Leak> {
        let mut leaks = Vec::new();
        for (at, window) in bytes.windows(4).enumerate() {
            let Some(values) = self.by_start.get(window) else { continue };
            for value in values {
                let end = at + value.len();
                if value.len() < least || bytes.get(at..end) != Some(value) {
                    continue;
                }
                // A part of a longer word or number does not count: `Rose` in `Roserver`.
                let joins = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
                if least == LEAST_IN_TEXT
                    && (joins(at.checked_sub(1).and_then(|b| bytes.get(b))) || joins(bytes.get(end)))
                {
                    continue;
                }
                let around = &bytes[at.saturating_sub(80)..(end + 40).min(bytes.len())];
                leaks.push(Leak {
                    place: place.to_owned(),
                    value: String::from_utf8_lossy(value).into_owned(),
                    around: String::from_utf8_lossy(around).into_owned(),
                });
            }
        }
        leaks
    }
}

/// NHS numbers: separate groups of ten digits with a valid check digit.
fn numbers(bytes: &[u8], values: &mut BTreeSet<Vec<u8>>) {
    for run in bytes.split(|b| !b.is_ascii_digit()) {
        if run.len() == 10 && is_nhs_number(run) {
            values.insert(run.to_vec());
        }
    }
}

fn is_nhs_number(digits: &[u8]) -> bool {
    let sum: u32 =
        digits.iter().take(9).zip((2..=10).rev()).map(|(d, weight)| u32::from(d - b'0') * weight).sum();
    let check = (11 - sum % 11) % 11;
    check == u32::from(digits[9] - b'0')
}

/// PID and NK1 of HL7 v2: the whole fields, and the components of numbers, names, addresses and telephones.
fn segments(message: &[u8], values: &mut BTreeSet<Vec<u8>>) {
    for segment in message.split(|b| matches!(b, b'\r' | b'\n')) {
        let fields: Vec<&[u8]> = segment.split(|b| *b == b'|').collect();
        let chosen: &[usize] = match fields[0] {
            b"PID" => &[2, 3, 4, 5, 6, 7, 9, 11, 13, 14, 18, 19, 20],
            b"NK1" => &[2, 4, 5, 6],
            _ => continue,
        };
        for field in chosen.iter().filter_map(|number| fields.get(*number)) {
            for repetition in field.split(|b| *b == b'~') {
                values.insert(repetition.to_vec());
                // The components after the fifth give the kind of number or name.
                values.extend(
                    repetition.split(|b| *b == b'^').take(5).filter(|part| tells(part)).map(<[u8]>::to_vec),
                );
            }
        }
    }
}

/// Names, dates and addresses of EDIFACT's PNA, NAD and DTM+329.
fn interchange(bytes: &[u8], values: &mut BTreeSet<Vec<u8>>) {
    for segment in bytes.split(|b| *b == b'\'') {
        let segment = segment.trim_ascii();
        let is = |start: &[u8]| segment.starts_with(start);
        if is(b"PNA+PAT") || is(b"NAD+PAT") || is(b"DTM+329") {
            values.insert(segment.to_vec());
            values.extend(
                segment.split(|b| matches!(b, b'+' | b':')).filter(|part| tells(part)).map(<[u8]>::to_vec),
            );
        }
    }
}

/// Everything in a Patient or RelatedPerson, at any depth of a resource.
fn resource(json: &Value, values: &mut BTreeSet<Vec<u8>>) {
    match json {
        Value::Array(items) => items.iter().for_each(|item| resource(item, values)),
        Value::Object(map) => {
            if matches!(map.get("resourceType").and_then(Value::as_str), Some("Patient" | "RelatedPerson")) {
                for key in ["name", "address", "telecom", "birthDate", "identifier"] {
                    leaves(key, json.get(key).unwrap_or(&Value::Null), values);
                }
            }
            map.values().for_each(|value| resource(value, values));
        }
        _ => {}
    }
}

fn leaves(key: &str, json: &Value, values: &mut BTreeSet<Vec<u8>>) {
    match json {
        Value::Array(items) => items.iter().for_each(|item| leaves(key, item, values)),
        Value::Object(map) => map.iter().for_each(|(key, value)| leaves(key, value, values)),
        Value::String(text) => {
            let about_someone =
                ["family", "given", "text", "line", "city", "district", "postalCode", "value", "birthDate"];
            if about_someone.contains(&key) && tells(text.as_bytes()) {
                values.insert(text.as_bytes().to_vec());
            }
        }
        _ => {}
    }
}

/// Shorter words are titles, kinds and house numbers.
fn tells(part: &[u8]) -> bool {
    part.trim_ascii().len() >= 5
}
