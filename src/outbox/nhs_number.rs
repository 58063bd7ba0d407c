//! NHS numbers in texts. A patient's number stays in the body: what stands beside the body can be read by every broker on the way.
//! Pure.
//!
//! The rule is the NHS Data Dictionary's: ten digits, the last of which is the check digit of the others (modulus 11), in one row
//! or in groups of three, three and four with one [separator](SEPARATORS) between them. Ten digits of a longer row, as in a time,
//! are none, nor are groups that fields keep apart (`943|476|5919`).
//!
//! A text is read as it is and percent-decoded (once, as UTF-8; what is not UTF-8 as Latin-1). Digits are those of ASCII, the
//! full-width ones and those of the scripts in [`ZEROS`]; others of Unicode (superscript, circled, mathematical, of further
//! scripts) are not recognised.
//!
//! Not searched, because their random digits would match by chance in one of some hundreds: a UUID in its form of 8, 4, 4, 4 and
//! 12 hexadecimal digits, a W3C trace parent, and the boundary of a multipart media type, which must be the body's.

use std::ops::Range;

/// What stands in the place of a number in a text that may not be left out.
pub(crate) const WITHHELD: &str = "withheld";

/// How many digits a number has.
const DIGITS: usize = 10;

/// What people and forms write between the groups of a number: spaces, hyphens, dashes, `.`, `_`, and `+` for a space.
const SEPARATORS: &str =
    " -._+\u{a0}\u{ad}\u{2007}\u{2009}\u{2010}\u{2011}\u{2012}\u{2013}\u{2014}\u{202f}\u{2212}";

/// The zeros before whose nine successors the other digits are: ASCII, Arabic-Indic and its eastern form, Devanagari, Bengali,
/// Gurmukhi, Gujarati, Tamil, full-width.
const ZEROS: [char; 9] =
    ['0', '\u{660}', '\u{6f0}', '\u{966}', '\u{9e6}', '\u{a66}', '\u{ae6}', '\u{be6}', '\u{ff10}'];

/// The groups of hexadecimal digits of the ids that are not searched: a UUID and a trace parent.
const RANDOM_IDS: [&[usize]; 2] = [&[8, 4, 4, 4, 12], &[2, 32, 16, 2]];

/// One character of a text as it is read, and the bytes that it takes there.
struct Sign {
    character: char,
    bytes: Range<usize>,
}

/// Whether a text contains a valid number, as it is or percent-encoded.
#[must_use]
pub(crate) fn is_in(text: &str) -> bool {
    find(text).is_some()
}

/// The text with [`WITHHELD`] in the place of each valid number; `None`: it contains none. Never longer than the text.
#[must_use]
pub(crate) fn withheld(text: &str) -> Option<String> {
    let mut found = find(text)?;
    let mut text = text.to_owned();
    loop {
        text.replace_range(found, WITHHELD);
        match find(&text) {
            Some(next) => found = next,
            None => return Some(text),
        }
    }
}

/// As [`withheld`], for a media type with its parameters: a multipart boundary stays, or nobody could read the body.
#[must_use]
pub(crate) fn withheld_of_media_type(text: &str) -> Option<String> {
    let kept = boundary(text).unwrap_or(text.len()..text.len());
    let (before, after) = (&text[..kept.start], &text[kept.end..]);
    let parts = [withheld(before), withheld(after)];
    if parts.iter().all(Option::is_none) {
        return None;
    }
    let [first, last] = parts;
    Some([first.as_deref().unwrap_or(before), &text[kept], last.as_deref().unwrap_or(after)].concat())
}

/// Where the value of a multipart type's parameter `boundary` stands, in bytes.
fn boundary(text: &str) -> Option<Range<usize>> {
    if !text.get(..10)?.eq_ignore_ascii_case("multipart/") {
        return None;
    }
    let (mut begin, mut is_quoted, mut is_escaped) = (0, false, false);
    for (at, byte) in text.bytes().chain([b';']).enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b';' if !is_quoted || at == text.len() => {
                if let Some((name, value)) = text[begin..at].split_once('=')
                    && name.trim().eq_ignore_ascii_case("boundary")
                {
                    return Some(at - value.len()..at);
                }
                begin = at + 1;
            }
            _ => {}
        }
    }
    None
}

/// Where the first number stands, in bytes.
fn find(text: &str) -> Option<Range<usize>> {
    // Every transaction passes here, and few texts have so many digits. Each that is percent-encoded has one of ASCII at least.
    if text.len() < DIGITS || text.chars().filter(|character| digit(*character).is_some()).count() < DIGITS {
        return None;
    }
    // `%20` may be a space, or a percent sign before the digits of a number.
    let as_it_is = || first(&read(text, false)).map(|found| escape_before(text, found.start)..found.end);
    as_it_is().or_else(|| text.contains('%').then(|| first(&read(text, true))).flatten())
}

/// Where the percent sign stands whose escape a number that is read as it is would cut: nothing is left of it.
fn escape_before(text: &str, start: usize) -> usize {
    let before = &text.as_bytes()[..start];
    match before {
        [.., b'%'] => start - 1,
        [.., b'%', digit] if digit.is_ascii_hexdigit() => start - 2,
        _ => start,
    }
}

/// The value of a decimal digit.
fn digit(character: char) -> Option<u32> {
    let value = |zero: &char| u32::from(character).checked_sub(u32::from(*zero)).filter(|value| *value < 10);
    ZEROS.iter().find_map(value)
}

/// The signs of a text; with `decodes` those that are percent-encoded are the characters that they stand for. Each id that is
/// not searched is one sign.
fn read(text: &str, decodes: bool) -> Vec<Sign> {
    let (mut signs, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(character) = text[at..].chars().next() {
        let escaped = if decodes && character == '%' { decoded(&text.as_bytes()[at..]) } else { None };
        let (character, length) = match (random_id(text, at), escaped) {
            (Some(length), _) => ('x', length),
            (None, Some(escaped)) => escaped,
            (None, None) => (character, character.len_utf8()),
        };
        signs.push(Sign { character, bytes: at..at + length });
        at += length;
    }
    signs
}

/// The byte of the escape `%XX` with which these begin; `None`: they begin with none, or with one that is cut off.
fn escape(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let value = |digit: &u8| char::from(*digit).to_digit(16);
    u8::try_from(value(high)? * 16 + value(low)?).ok()
}

/// The character that the escapes stand for with which these bytes begin, and how many bytes they take.
fn decoded(text: &[u8]) -> Option<(char, usize)> {
    let first = escape(text)?;
    let (mut bytes, mut count) = ([first, 0, 0, 0], 1);
    loop {
        if let Ok(decoded) = std::str::from_utf8(&bytes[..count]) {
            return decoded.chars().next().map(|character| (character, 3 * count));
        }
        let next = text.get(3 * count..).and_then(escape);
        match (next, bytes.get_mut(count)) {
            (Some(next), Some(byte)) => *byte = next,
            _ => return Some((char::from(first), 3)),
        }
        count += 1;
    }
}

/// How many bytes the random id takes that stands at this place; `None`: there is none, or it is a part of something longer.
fn random_id(text: &str, at: usize) -> Option<usize> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    let (before, rest) = text.as_bytes().split_at(at);
    let is_after_escape = before.len() >= 3 && escape(&before[before.len() - 3..]).is_some();
    if before.last().is_some_and(is_part) && !is_after_escape {
        return None;
    }
    RANDOM_IDS.iter().find_map(|groups| {
        let length = groups.iter().sum::<usize>() + groups.len() - 1;
        let mut parts = rest.get(..length)?.split(|byte| *byte == b'-');
        let is_group = |part: &[u8], digits| part.len() == digits && part.iter().all(u8::is_ascii_hexdigit);
        let has_form = groups.iter().all(|digits| parts.next().is_some_and(|part| is_group(part, *digits)));
        (has_form && !rest.get(length).is_some_and(is_part)).then_some(length)
    })
}

/// Where the first number of these signs stands, in bytes.
fn first(signs: &[Sign]) -> Option<Range<usize>> {
    let mut is_in_row = false;
    for (at, sign) in signs.iter().enumerate() {
        let is_digit = digit(sign.character).is_some();
        if is_digit && !is_in_row {
            let found = [&[10][..], &[3, 3, 4]].into_iter().find_map(|groups| end(&signs[at..], groups));
            if let Some(end) = found {
                return Some(sign.bytes.start..end);
            }
        }
        is_in_row = is_digit;
    }
    None
}

/// Where the valid number ends, in bytes, with which these signs begin in groups of these lengths.
fn end(signs: &[Sign], groups: &[usize]) -> Option<usize> {
    let (mut digits, mut found) = ([0; DIGITS], 0);
    let mut rest = signs.iter();
    let mut end = 0;
    for (index, group) in groups.iter().enumerate() {
        if index > 0 && !SEPARATORS.contains(rest.next()?.character) {
            return None;
        }
        for sign in rest.by_ref().take(*group) {
            *digits.get_mut(found)? = digit(sign.character)?;
            found += 1;
            end = sign.bytes.end;
        }
    }
    let ends = rest.next().is_none_or(|sign| digit(sign.character).is_none());
    (ends && found == DIGITS && is_valid(&digits)).then_some(end)
}

fn is_valid(digits: &[u32; DIGITS]) -> bool {
    let weighted: u32 = (2..=10).rev().zip(digits).map(|(weight, digit)| weight * digit).sum();
    let check = 11 - weighted % 11;
    // Health and care numbers of Scotland begin with a day, the others with 3 and higher: never with 00.
    digits[..2] != [0, 0] && check != 10 && check % 11 == digits[9]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_found_in_one_row_and_in_groups() {
        for text in [
            "9434765919",
            "943 476 5919",
            "943-476-5919",
            "943.476.5919",
            "943_476_5919",
            "943+476+5919",
            "943 476-5919",
            "NHS9434765919/1",
            "https://fhir.nhs.uk/Id/nhs-number|9434765919|e",
            "4010232137",
            "943%20476%205919",
            "%209434765919",
            "%9434765919",
            "9434765919%2",
            "%2|9434765919",
            "9%34347%365919",
            "943%A0476%A05919",
        ] {
            assert!(is_in(text), "{text}");
        }
    }

    #[test]
    fn spaces_and_hyphens_of_every_kind_stand_between_groups_as_they_are_and_escaped() {
        for separator in SEPARATORS.chars() {
            let mut bytes = [0; 4];
            let escaped: String =
                separator.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02x}")).collect();
            for between in [separator.to_string(), escaped.to_uppercase(), escaped] {
                let text = format!("a{}:", ["943", "476", "5919"].join(&between));
                assert_eq!(withheld(&text).as_deref(), Some("awithheld:"), "{text}");
            }
        }
    }

    #[test]
    fn digits_of_other_scripts_are_digits() {
        for zero in ZEROS {
            let digits = "9434765919"
                .bytes()
                .map(|digit| char::from_u32(u32::from(zero) + u32::from(digit - b'0')).unwrap());
            let text: String = digits.collect();
            assert_eq!(withheld(&format!("a{text}b")).as_deref(), Some("awithheldb"), "{text}");
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            assert_eq!(withheld(&format!("a{escaped}b")).as_deref(), Some("awithheldb"), "{text}");
            assert!(!is_in(&format!("{zero}9434765919")) && !is_in(&format!("{text}1")), "a longer row");
        }
        assert!(!is_in("⁹⁴³⁴⁷⁶⁵⁹¹⁹"), "as the documentation says");
    }

    #[test]
    fn other_digits_are_no_numbers() {
        for text in [
            "",
            "1",
            "MSG00001",
            "20261127053000123",
            "9434765910",
            "19434765919",
            "94347659190",
            "943 4765919",
            "943  476 5919",
            "943x476x5919",
            "943|476|5919",
            "943%7C476%7C5919",
            "943/476/5919",
            "943^476&5919",
            "943,476:5919",
            "0000000000",
        ] {
            assert!(!is_in(text) && withheld(text).is_none(), "{text}");
        }
    }

    #[test]
    fn random_ids_are_not_searched() {
        let uuid = "9434765919".to_owned();
        for text in [
            "00000000-0000-4000-8000-000000000001".to_owned(),
            format!("a4f0c3de-943a-476b-8919-{uuid}ab"),
            format!("A4F0C3DE-943A-476B-8919-{uuid}AB"),
            format!("urn:uuid:a4f0c3de-943a-476b-8919-{uuid}ab|e"),
            format!("k%7Ca4f0c3de-943a-476b-8919-{uuid}ab%7Ce"),
            format!("00-a{uuid}b43dd8448eb211c80319c-b7ad6b7169203331-01"),
            format!("c:00-a{uuid}b43dd8448eb211c80319c-b7ad6b7169203331-01,x"),
        ] {
            assert!(!is_in(&text), "{text}");
        }
        for text in [
            // Not their forms.
            format!("a4f0c3de943a476b891f{uuid}ab"),
            format!("a4f0c3de-943a-476b-89190-{uuid}ab"),
            format!("a4f0c3de-943a-476b-8919-{uuid}abc"),
            format!("g4f0c3de-943a-476b-8919-{uuid}ab"),
            format!("1-a4f0c3de-943a-476b-8919-{uuid}ab"),
            format!("00-a{uuid}b43dd8448eb211c80319c-b7ad6b7169203331"),
            // Beside one.
            format!("a4f0c3de-943a-476b-8919-{uuid}ab {uuid}"),
        ] {
            assert!(is_in(&text), "{text}");
        }
    }

    #[test]
    fn the_boundary_of_a_multipart_type_stays_and_nothing_else() {
        for (text, expected) in [
            ("multipart/related; boundary=9434765919", None),
            ("Multipart/Related; a=\"x;boundary=1\"; BOUNDARY=\"943 476 5919\"; type=a/b", None),
            (
                "multipart/9434765919; boundary=9434765919; start=9434765919",
                Some("multipart/withheld; boundary=9434765919; start=withheld"),
            ),
            (
                "multipart/x; a=\"\\\"; boundary=9434765919\"",
                Some("multipart/x; a=\"\\\"; boundary=withheld\""),
            ),
            ("text/plain; boundary=9434765919", Some("text/plain; boundary=withheld")),
            ("multipart/x; a-boundary=9434765919", Some("multipart/x; a-boundary=withheld")),
            ("text/plain", None),
            ("é", None),
        ] {
            assert_eq!(withheld_of_media_type(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_stands_around_a_number_stays() {
        for (text, expected) in [
            ("hl7v2:943%20476%205919%7CSURG", "hl7v2:withheld%7CSURG"),
            ("a9434765919b943-476-5919 é", "awithheldbwithheld é"),
            ("9434765919%2", "withheld%2"),
            ("%209434765919%", "%20withheld%"),
            // No part of an escape is left, whatever it was.
            ("100%9434765919", "100withheld"),
            ("a%A9434765919", "awithheld"),
            ("%2F9434765919", "%2Fwithheld"),
        ] {
            assert_eq!(withheld(text).as_deref(), Some(expected), "{text}");
        }
    }

    /// Whether these are the digits of a number, in the other form of the rule: with the check digit the sum is a multiple of 11.
    fn adds_up(text: &str) -> bool {
        let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
        let sum: u32 = digits.iter().zip((1..=10).rev()).map(|(digit, weight)| digit * weight).sum();
        digits.len() == 10 && digits[..2] != [0, 0] && sum.is_multiple_of(11)
    }

    /// Valid numbers.
    fn numbers() -> impl Strategy<Value = String> {
        "(0[1-9]|[1-9][0-9])[0-9]{7}".prop_filter_map("no check digit", |nine| {
            (0..10).map(|check| format!("{nine}{check}")).find(|number| adds_up(number))
        })
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn a_number_is_found_wherever_it_stands_and_nothing_else_is_lost(
            number in numbers(),
            before in "([^0-9%\\p{Nd}]{0,20}[^0-9%\\p{Nd}])?",
            after in "([^0-9%\\p{Nd}][^0-9%\\p{Nd}]{0,20})?",
            between in "[ ._+\u{a0}\u{2011}-]",
            encoded in any::<bool>(),
        ) {
            let escaped = || between.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let between = if encoded { escaped() } else { between };
            let grouped = [&number[..3], &number[3..6], &number[6..]].join(&between);
            for form in [&number, &grouped] {
                let text = format!("{before}{form}{after}");
                prop_assert!(is_in(&text), "{}", text);
                prop_assert_eq!(withheld(&text), Some(format!("{before}{WITHHELD}{after}")));
            }
        }

        #[test]
        fn of_planted_numbers_no_digits_are_left(
            planted in proptest::collection::vec((numbers(), 0usize..6, "[a-z|/:]{1,8}[0-9]{0,3}[a-z|/:]"), 1..5),
        ) {
            let separators = ["", " ", "-", "%20", "\u{a0}", "%E2%80%91"];
            let (mut text, mut expected) = (String::from("a"), String::from("a"));
            for (number, separator, after) in &planted {
                text += &[&number[..3], &number[3..6], &number[6..]].join(separators[*separator]);
                text += after;
                expected += WITHHELD;
                expected += after;
            }
            let left = withheld(&text).unwrap_or_default();
            let mut bare = left.clone();
            for separator in &separators[1..] {
                bare = bare.replace(separator, "");
            }
            for (number, ..) in &planted {
                prop_assert!(!bare.contains(number.as_str()), "{} of {}: {}", number, text, left);
            }
            prop_assert_eq!(left, expected);
        }

        #[test]
        fn rows_that_are_no_numbers_stay(text in "([0-9]{1,9}|[0-9]{11,20})([a-z|/][0-9]{1,9}){0,4}") {
            prop_assert_eq!(withheld(&text), None);
        }
    }
}
