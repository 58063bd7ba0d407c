//! Which of a sender's keys may leave the box: on the wire a key stands beside the body, where the broker can read it. Pure.

use pgw_core::wire::limits::Text;

/// Whether a key may go on the wire: it is there, the wire can carry it, and it contains no valid NHS number.
#[must_use]
pub fn may_be_shown(key: &str) -> bool {
    !key.is_empty() && Text::Key.check(key).is_ok() && !contains_nhs_number(key)
}

/// Whether a valid NHS number stands in it (NHS Data Dictionary, modulus 11): ten digits, or three, three and four with a
/// space or a hyphen between them. Ten digits of a longer row, as in a time, are none.
fn contains_nhs_number(text: &str) -> bool {
    let bytes = text.as_bytes();
    let begins = |at: usize| at == 0 || !bytes[at - 1].is_ascii_digit();
    (0..bytes.len()).filter(|at| begins(*at)).any(|at| {
        let rest = &bytes[at..];
        [&[10][..], &[3, 3, 4]].into_iter().any(|groups| digits(rest, groups).is_some_and(|d| is_valid(&d)))
    })
}

/// The ten digits with which `bytes` begins, in groups of these lengths.
fn digits(bytes: &[u8], groups: &[usize]) -> Option<[u8; 10]> {
    let (mut digits, mut found, mut rest) = ([0; 10], 0, bytes);
    for (index, length) in groups.iter().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix(b" ").or_else(|| rest.strip_prefix(b"-"))?;
        }
        let (group, after) = rest.split_at_checked(*length)?;
        for byte in group {
            *digits.get_mut(found)? = byte.is_ascii_digit().then(|| byte - b'0')?;
            found += 1;
        }
        rest = after;
    }
    let ends = rest.first().is_none_or(|byte| !byte.is_ascii_digit());
    ends.then_some(digits)
}

fn is_valid(digits: &[u8; 10]) -> bool {
    let weighted: u32 = (2..=10).rev().zip(digits).map(|(weight, digit)| weight * u32::from(*digit)).sum();
    let check = 11 - weighted % 11;
    // Health and care numbers of Scotland begin with a day, the others with 3 and higher: never with 00.
    digits[..2] != [0, 0] && check != 10 && check % 11 == u32::from(digits[9])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_name_nobody_are_shown() {
        for key in [
            "MSG00001",
            "20261127053000123",
            "00000000-0000-4000-8000-000000000001",
            "9434765910",
            "19434765919",
            "943 4765919",
            "1",
        ] {
            assert!(may_be_shown(key), "{key}");
        }
    }

    #[test]
    fn a_valid_nhs_number_hides_its_key() {
        for key in ["9434765919", "943 476 5919", "943-476-5919", "NHS9434765919/1", "4010232137"] {
            assert!(!may_be_shown(key), "{key}");
        }
    }

    #[test]
    fn what_the_wire_cannot_carry_is_not_shown() {
        assert!(!may_be_shown("") && !may_be_shown("a\nb") && !may_be_shown(&"k".repeat(257)));
    }
}
