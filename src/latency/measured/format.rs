//! The profile file: JSON, versioned, sealed, read strictly and written as one step.
//!
//! The last member of the document is `"sha256"` over every byte before the comma in front of it
//! (carriage returns are skipped, so that a checkout with other line ends stays valid). A reader
//! accepts only what the writer produces: every field once, no unknown field, no `null` for a number.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::validate;
use crate::files::seal::{at, sealed, unseal, without_returns};
use crate::files::{read_capped, strict, write_atomic};
use crate::record::{PROFILE_SCHEMA, PROFILE_VERSION, Profile, READABLE_VERSIONS};
use crate::{Error, Result};

/// Longest profile that is read, in bytes: a sweep of 10^5 cells has some 300 MB.
pub(crate) const CAP: u64 = 1 << 30;

/// Reads a profile file and checks that what it says can be true.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::BadFile`] when it is not what the writer
/// produces, [`Error::Unfit`] when it is well-formed but cannot be true.
pub fn read(path: &Path) -> Result<Profile> {
    let profile = from_owned(path, read_capped(path, CAP)?)?;
    validate::validate(&path.display().to_string(), &profile)?;
    Ok(profile)
}

/// Writes a profile file as one step.
///
/// # Errors
/// [`Error::Unfit`] when the profile cannot be true (a number that is not finite, for example),
/// [`Error::Io`] when it cannot be written or exists and `force` is not set.
pub fn write(path: &Path, profile: &Profile, force: bool) -> Result<()> {
    validate::validate(&path.display().to_string(), profile)?;
    write_atomic(path, &to_bytes(profile)?, force)
}

/// The sealed document.
///
/// # Errors
/// [`Error::Unfit`] when the profile does not survive being written and read: JSON has no NaN.
pub fn to_bytes(profile: &Profile) -> Result<Vec<u8>> {
    let unfit = |reason: String| Error::unfit("profile", reason);
    let document = sealed("profile", profile)?;
    // serde_json writes NaN as null without a word; reading back is the only complete check.
    match from_bytes(Path::new("profile"), &document) {
        Ok(read) if read == *profile => Ok(document),
        Ok(_) => Err(unfit("it reads back as another profile".into())),
        Err(error) => Err(unfit(format!("it cannot be read back: {error}"))),
    }
}

/// Parses the bytes of a profile file; `path` is for messages only.
///
/// # Errors
/// [`Error::BadFile`] with line and column.
pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Profile> {
    from_owned(path, bytes.to_vec())
}

/// The same without a second copy of a long file.
fn from_owned(path: &Path, bytes: Vec<u8>) -> Result<Profile> {
    if bytes.is_empty() {
        return Err(Error::bad_file(path, "empty"));
    }
    let bytes = without_returns(bytes);
    check_header(path, &bytes)?;
    strict::from_slice(&unseal(path, bytes)?, CAP).map_err(|e| at(path, &e))
}

/// What every version must carry, whatever else it holds.
#[derive(Deserialize)]
struct Header {
    schema: Option<String>,
    schema_version: Option<String>,
}

fn check_header(path: &Path, bytes: &[u8]) -> Result<()> {
    let header: Header = match serde_json::from_slice(bytes) {
        Ok(header) => header,
        Err(e) if e.is_data() && serde_json::from_slice::<IgnoredAny>(bytes).is_ok() => {
            return Err(foreign(path, &e.to_string()));
        }
        Err(e) => return Err(at(path, &e)),
    };
    match header.schema.as_deref() {
        Some(PROFILE_SCHEMA) => {}
        Some(other) => return Err(foreign(path, &format!("schema is `{other}`"))),
        None => return Err(foreign(path, "no `schema`")),
    }
    match header.schema_version.as_deref() {
        Some(version) if READABLE_VERSIONS.contains(&version) => Ok(()),
        Some(other) => Err(Error::bad_file(
            path,
            format!("written as version {other}; this program reads {PROFILE_VERSION}"),
        )),
        None => Err(foreign(path, "no `schema_version`")),
    }
}

fn foreign(path: &Path, why: &str) -> Error {
    Error::bad_file(path, format!("not a profile of this program ({PROFILE_SCHEMA}): {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::synthetic;
    use super::*;
    use crate::files::seal::{END, SEAL};
    use crate::record::sha256_hex;

    fn small() -> Profile {
        let mut profile = synthetic::profile(&[(512, 1536)], 0.01);
        profile.cells.truncate(2);
        profile
    }

    fn parse(bytes: &[u8]) -> Result<Profile> {
        from_bytes(Path::new("p.json"), bytes)
    }

    fn edited(from: &str, to: &str) -> Error {
        let text = String::from_utf8(to_bytes(&small()).unwrap()).unwrap();
        let body = &text[..text.find(SEAL).unwrap()];
        assert!(body.contains(from), "{from}");
        let body = body.replacen(from, to, 1);
        let sealed = format!("{body}{SEAL}{}{END}", sha256_hex(&body));
        parse(sealed.as_bytes()).unwrap_err()
    }

    #[test]
    fn what_was_written_is_read_back_exactly() {
        let mut profile = small();
        profile.run.noise_floor_rel = 0.1 + 0.2;
        let bytes = to_bytes(&profile).unwrap();
        assert_eq!(parse(&bytes).unwrap(), profile);
        let crlf = String::from_utf8(bytes).unwrap().replace('\n', "\r\n");
        assert_eq!(parse(crlf.as_bytes()).unwrap(), profile);
    }

    #[test]
    fn every_prefix_is_refused_with_its_position() {
        let bytes = to_bytes(&small()).unwrap();
        assert!(parse(&[]).unwrap_err().to_string().contains("empty"));
        for length in 1..bytes.len() {
            let error = parse(&bytes[..length]).unwrap_err();
            assert_eq!(error.exit_code(), 3, "{length}: {error}");
            let position = error.to_string();
            let digits = position.strip_prefix("p.json:").unwrap_or_else(|| panic!("{position}"));
            assert!(digits.starts_with(|c: char| c.is_ascii_digit()), "{position}");
        }
    }

    #[test]
    fn foreign_files_and_versions_are_named() {
        let text = |e: Error| {
            assert_eq!(e.exit_code(), 3);
            e.to_string()
        };
        assert!(text(parse(b"[1]").unwrap_err()).contains("not a profile"));
        assert!(text(parse(b"{\"a\":1}").unwrap_err()).contains("no `schema`"));
        assert!(
            text(edited("moe-frontier/profile", "moe-frontier/plan")).contains("moe-frontier/plan")
        );
        assert!(
            text(edited("\"schema_version\": \"1.6\"", "\"schema_version\": \"2.0\""))
                .contains("reads 1.6")
        );
    }

    #[test]
    fn files_of_the_versions_before_are_read() {
        for version in ["1.0", "1.1", "1.2", "1.3", "1.4", "1.5"] {
            let older = Profile { schema_version: version.into(), ..small() };
            assert_eq!(parse(&to_bytes(&older).unwrap()).unwrap(), older);
        }
    }

    #[test]
    fn fields_are_neither_added_repeated_nor_left_out() {
        let once = "\"program\": \"moe-frontier 0.1.0\",";
        for (from, to, word) in [
            (once, "\"program\": \"x\", \"program\": \"y\",", "duplicate"),
            (once, "\"program\": \"x\", \"colour\": 1,", "unknown field"),
            (once, "", "missing field"),
            ("\"noise_floor_rel\": 0.004", "\"noise_floor_rel\": null", "null"),
            ("\"noise_floor_rel\": 0.004", "\"noise_floor_rel\": NaN", "expected"),
            ("\"noise_floor_rel\": 0.004", "\"noise_floor_rel\": 1e400", "out of range"),
            ("\"noise_floor_rel\": 0.004", "\"noise_floor_rel\": \"0.004\"", "string"),
            ("\"interval\": {", "\"absent\": \"x\", \"interval\": {", "expected"),
        ] {
            let error = edited(from, to);
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(word), "{to}: {error}");
        }
    }

    #[test]
    fn a_number_that_json_cannot_carry_is_not_written() {
        let mut profile = small();
        profile.run.aa_effect_rel = f64::NAN;
        assert_eq!(to_bytes(&profile).unwrap_err().exit_code(), 4);
        let mut profile = small();
        profile.provenance.load_1min = Some(f64::INFINITY);
        assert_eq!(to_bytes(&profile).unwrap_err().exit_code(), 4);
    }

    #[test]
    fn files_are_checked_on_the_way_in_and_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.json");
        write(&path, &small(), false).unwrap();
        assert_eq!(read(&path).unwrap(), small());
        assert_eq!(write(&path, &small(), false).unwrap_err().exit_code(), 7);
        let mut wrong = small();
        wrong.cells[0].work.rows += 1;
        assert_eq!(write(&path, &wrong, true).unwrap_err().exit_code(), 4);
        assert_eq!(read(&path).unwrap(), small());
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_gives_another_number(position in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let profile = small();
            let mut bytes = to_bytes(&profile).unwrap();
            let i = position.index(bytes.len());
            bytes[i] ^= 1 << bit;
            match parse(&bytes) {
                Ok(read) => prop_assert_eq!(read, profile),
                Err(error) => prop_assert_eq!(error.exit_code(), 3),
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(parse(&bytes).unwrap_err().exit_code(), 3);
        }
    }
}
