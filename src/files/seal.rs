//! Sealed documents: JSON whose last member is `"sha256"` over every byte before the comma in front of
//! it. Carriage returns are skipped, so that a checkout with other line ends stays valid.
//!
//! A reader accepts only what the writer produces: a cut, edited or bit-flipped file fails its
//! checksum, whatever it would say.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::strict;
use crate::error::plain_json;
use crate::{Error, Result};

pub(crate) const SEAL: &str = ",\n  \"sha256\": \"";
pub(crate) const END: &str = "\"\n}\n";

/// SHA-256 of some bytes as 64 lower-case hexadecimal digits.
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The sealed document of a value that serialises as a JSON object and is not read back. `what` names it in
/// messages.
///
/// # Errors
/// [`Error::Unfit`] when it is not an object.
pub fn sealed<T: Serialize>(what: &str, value: &T) -> Result<Vec<u8>> {
    let unfit = |reason: String| Error::unfit(what, reason);
    let body = serde_json::to_string_pretty(value).map_err(|e| unfit(e.to_string()))?;
    let body = plain_json(body);
    let body = body.strip_suffix("\n}").ok_or_else(|| unfit("it is not a JSON object".into()))?;
    Ok(format!("{body}{SEAL}{}{END}", sha256_hex(body)).into_bytes())
}

/// The sealed document of a value that serialises as a JSON object. `what` names it in messages.
///
/// # Errors
/// [`Error::Unfit`] when the value does not survive being written and read: JSON has no NaN.
pub fn to_sealed<T: Serialize + DeserializeOwned + PartialEq>(
    what: &str,
    value: &T,
) -> Result<Vec<u8>> {
    let unfit = |reason: String| Error::unfit(what, reason);
    let document = sealed(what, value)?;
    // serde_json writes NaN as null without a word; reading back is the only complete check.
    match from_sealed::<T>(Path::new(what), document.clone(), u64::MAX) {
        Ok(read) if read == *value => Ok(document),
        Ok(_) => Err(unfit("it reads back as another value".into())),
        Err(error) => Err(unfit(format!("it cannot be read back: {error}"))),
    }
}

/// Reads a sealed document, of a reader that takes at most `cap` bytes; `path` is for messages only.
///
/// # Errors
/// [`Error::BadFile`] with line and column.
pub fn from_sealed<T: DeserializeOwned>(path: &Path, bytes: Vec<u8>, cap: u64) -> Result<T> {
    if bytes.is_empty() {
        return Err(Error::bad_file(path, "empty"));
    }
    strict::from_slice(&unseal(path, without_returns(bytes))?, cap).map_err(|e| at(path, &e))
}

/// The bytes without carriage returns.
pub(crate) fn without_returns(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.retain(|byte| *byte != b'\r');
    bytes
}

/// The document without its seal, after checking it. Positions in it are those of the file.
pub(crate) fn unseal(path: &Path, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    let last_line = bytes.split(|b| *b == b'\n').count();
    let broken = |reason: &str| Error::bad_file_at(path, last_line, 1, reason);
    let head_len = bytes.len().checked_sub(SEAL.len() + 64 + END.len());
    let (body, seal) = head_len
        .and_then(|n| bytes.split_at_checked(n))
        .filter(|(_, seal)| seal.starts_with(SEAL.as_bytes()) && seal.ends_with(END.as_bytes()))
        .ok_or_else(|| broken("the file does not end with its checksum: it was cut or edited"))?;
    let hash = &seal[SEAL.len()..SEAL.len() + 64];
    if sha256_hex(body).as_bytes() != hash {
        return Err(broken("checksum mismatch: the file was edited or damaged"));
    }
    let length = body.len();
    bytes.truncate(length);
    bytes.extend(b"\n}");
    Ok(bytes)
}

/// An error of the JSON reader as one of this file, with its position.
pub(crate) fn at(path: &Path, error: &serde_json::Error) -> Error {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    Error::bad_file_at(path, error.line(), error.column(), reason)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Point {
        x: f64,
        name: String,
    }

    #[test]
    fn a_sealed_value_is_read_back_and_nothing_else_is() {
        let point = Point { x: 0.1, name: "a".into() };
        let bytes = to_sealed("point", &point).unwrap();
        let read = |bytes: &[u8]| from_sealed::<Point>(Path::new("p"), bytes.to_vec(), 1 << 20);
        assert_eq!(read(&bytes).unwrap(), point);
        for length in 0..bytes.len() {
            assert_eq!(read(&bytes[..length]).unwrap_err().exit_code(), 3, "{length}");
        }
        let edited = String::from_utf8(bytes).unwrap().replace("0.1", "0.2");
        assert!(read(edited.as_bytes()).unwrap_err().to_string().contains("checksum mismatch"));
        let infinite = Point { x: f64::INFINITY, name: String::new() };
        assert_eq!(to_sealed("point", &infinite).unwrap_err().exit_code(), 4);
    }
}
