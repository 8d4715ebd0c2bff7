//! How data stands in the page: JSON, deflated in zlib's format, in base64. None of its characters means
//! anything in HTML.

use circuit_framework::{Error, Result};
use miniz_oxide::deflate::compress_to_vec_zlib;
use serde::Serialize;

/// zlib's middle between speed and size.
const LEVEL: u8 = 6;

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A value as the page's script reads it.
///
/// # Errors
/// If it can't be written as JSON.
pub fn encode(value: &impl Serialize) -> Result<String> {
    let json = serde_json::to_vec(value)
        .map_err(|error| Error::input(format!("the page's data: {error}")))?;
    Ok(base64(&compress_to_vec_zlib(&json, LEVEL)))
}

/// Bytes in base64 (RFC 4648), padded.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bits);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            let is_padding = digit > group.len();
            text.push(if is_padding { '=' } else { DIGITS[index as usize] as char });
        }
    }
    text
}

/// A number with as many significant digits as a page can show.
pub fn rounded(value: f64) -> f64 {
    if !value.is_finite() || value == 0.0 {
        return value;
    }
    // A number that was written is read.
    format!("{value:.5e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use miniz_oxide::inflate::decompress_to_vec_zlib;
    use proptest::prelude::*;

    use super::*;

    /// RFC 4648, section 10.
    #[test]
    fn base64_is_the_standards() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    fn decoded(text: &str) -> Vec<u8> {
        let value = |digit: u8| DIGITS.iter().position(|&known| known == digit);
        let digits: Vec<u32> = text.bytes().filter_map(value).map(|value| value as u32).collect();
        let mut bytes = Vec::new();
        for group in digits.chunks(4) {
            let bits =
                group.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - group.len()));
            bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
        }
        bytes
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(text in ".*", numbers in prop::collection::vec(any::<u32>(), 0..50)) {
            let encoded = encode(&(&text, &numbers)).unwrap();
            prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)));
            let json = decompress_to_vec_zlib(&decoded(&encoded)).unwrap();
            let read: (String, Vec<u32>) = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(read, (text, numbers));
        }

        #[test]
        fn rounding_keeps_five_digits(value in -1e9..1e9f64) {
            prop_assert!((rounded(value) - value).abs() <= 1e-5 * value.abs());
        }
    }
}
