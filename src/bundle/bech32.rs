//! Bech32 (BIP 173), as age writes its keys: one case, no length limit of its own.

const DIGITS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";

fn polymod(values: impl Iterator<Item = u8>) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    values.fold(1, |check, value| {
        let top = check >> 25;
        let next = ((check & 0x01ff_ffff) << 5) ^ u32::from(value);
        GENERATOR.iter().enumerate().fold(
            next,
            |sum, (bit, word)| {
                if (top >> bit) & 1 == 1 { sum ^ word } else { sum }
            },
        )
    })
}

fn expanded(prefix: &str) -> Vec<u8> {
    let high = prefix.bytes().map(|byte| byte >> 5);
    high.chain([0]).chain(prefix.bytes().map(|byte| byte & 31)).collect()
}

/// Groups of `from` bits as groups of `to` bits. `None`: bits are left over that are not padding.
fn regroup(values: &[u8], from: u32, to: u32, pad: bool) -> Option<Vec<u8>> {
    let (mut held, mut bits, mut out) = (0u32, 0u32, Vec::with_capacity(values.len() * 8 / 5 + 1));
    for value in values {
        held = ((held << from) | u32::from(*value)) & 0xfff;
        bits += from;
        while bits >= to {
            bits -= to;
            out.push(u8::try_from((held >> bits) & ((1 << to) - 1)).ok()?);
        }
    }
    let rest = (held << (to - bits.min(to))) & ((1 << to) - 1);
    if pad {
        if bits > 0 {
            out.push(u8::try_from(rest).ok()?);
        }
    } else if bits >= from || rest != 0 {
        return None;
    }
    Some(out)
}

/// Lower-case text of `bytes` under the lower-case `prefix`.
pub(super) fn encode(prefix: &str, bytes: &[u8]) -> String {
    let mut values = regroup(bytes, 8, 5, true).unwrap_or_default();
    let sum = polymod(expanded(prefix).into_iter().chain(values.iter().copied()).chain([0; 6])) ^ 1;
    values.extend((0..6).map(|index| u8::try_from((sum >> (5 * (5 - index))) & 31).unwrap_or_default()));
    let digits = values.iter().map(|value| char::from(DIGITS[usize::from(*value)]));
    format!("{prefix}1{}", digits.collect::<String>())
}

/// The bytes of a text with this lower-case prefix; upper or lower case, never mixed.
pub(super) fn decode(prefix: &str, text: &str) -> Option<Vec<u8>> {
    let lower = text.to_ascii_lowercase();
    if text != lower && text != text.to_ascii_uppercase() {
        return None;
    }
    let (found, digits) = lower.rsplit_once('1')?;
    if found != prefix || digits.len() < 6 {
        return None;
    }
    let value =
        |digit: u8| DIGITS.iter().position(|known| *known == digit).and_then(|at| u8::try_from(at).ok());
    let values: Vec<u8> = digits.bytes().map(value).collect::<Option<_>>()?;
    if polymod(expanded(prefix).into_iter().chain(values.iter().copied())) != 1 {
        return None;
    }
    regroup(values.get(..values.len() - 6)?, 5, 8, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_and_every_changed_digit_is_seen() {
        let bytes: Vec<u8> = (0..32).collect();
        let text = encode("age", &bytes);
        assert_eq!(decode("age", &text), Some(bytes.clone()));
        assert_eq!(decode("age", &text.to_uppercase()), Some(bytes));
        for at in 4..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'q' { b'p' } else { b'q' };
            assert_eq!(decode("age", std::str::from_utf8(&other).unwrap()), None, "digit {at}");
        }
        let mixed = text.replacen("age", "Age", 1);
        for bad in [mixed.as_str(), "age1", "", &text[1..], &text.replacen("age", "agf", 1)] {
            assert_eq!(decode("age", bad), None, "{bad}");
        }
    }

    #[test]
    fn vectors_of_bip_173() {
        for good in ["A12UEL5L", "a12uel5l", "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw"] {
            let prefix = good.to_ascii_lowercase();
            let prefix = prefix.rsplit_once('1').unwrap().0;
            assert!(decode(prefix, good).is_some(), "{good}");
        }
        for bad in ["A1G7SGD8", "A12UEL5M", "a12Uel5l", "1qzzfhee"] {
            let prefix = bad.to_ascii_lowercase();
            assert_eq!(decode(prefix.rsplit_once('1').unwrap().0, bad), None, "{bad}");
        }
    }
}
