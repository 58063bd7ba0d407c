//! Bech32 (BIP 173), as age writes its keys: one case, and the checksum of BIP 173 only, not that of BIP 350.

use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use zeroize::Zeroizing;

/// Lower-case text of `bytes` under the lower-case `prefix`. Keys have 32 bytes: far below the format's limit of 1,023 characters.
pub(super) fn encode(prefix: &str, bytes: &[u8]) -> String {
    let encode = |prefix| bech32::encode_lower::<Bech32>(prefix, bytes).ok();
    Hrp::parse(prefix).ok().and_then(encode).unwrap_or_default()
}

/// The bytes of a text with this lower-case prefix; upper or lower case, never mixed.
pub(super) fn decode(prefix: &str, text: &str) -> Option<Vec<u8>> {
    let checked = CheckedHrpstring::new::<Bech32>(text).ok()?;
    let bytes: Vec<u8> = checked.byte_iter().collect();
    // The crate ignores leftover bits, whatever their value: accept only the text that we would write.
    let lower = Zeroizing::new(text.to_ascii_lowercase());
    (*Zeroizing::new(encode(prefix, &bytes)) == *lower).then_some(bytes)
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
