//! `rank.json` read back: strictly, so that a damaged or foreign file never becomes a page.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::files::seal::{sealed, unseal, without_returns};
use crate::files::strict;
use crate::plan::outcome::{DecisionMap, RankReport, SCHEMA, SCHEMA_VERSION};
use crate::plan::report_numbers;
use crate::{Error, Result};

impl RankReport {
    /// Parses the bytes of a `rank.json`; `path` is for messages only.
    ///
    /// # Errors
    /// [`Error::BadFile`] with line and column for a truncated file, another kind of document, a
    /// newer major version, an unknown, missing or repeated field, or parts that do not fit together.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Err(Error::bad_file(path, "empty"));
        }
        let bytes = without_returns(bytes.to_vec());
        check_header(path, &bytes)?;
        let body = unseal(path, bytes)?;
        let report: Self = strict::from_slice(&body, CAP).map_err(|e| at(path, &e))?;
        check_parts(&report)
            .and_then(|()| report_numbers::check(&report))
            .map_err(|reason| Error::bad_file(path, reason))?;
        Ok(report)
    }

    /// The document of a `rank.json`, sealed as [`crate::files::seal`] says.
    ///
    /// # Errors
    /// [`Error::Unfit`] when it would not be read back: a number is not finite, or parts do not fit together.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let bytes = sealed("rank.json", self)?;
        match Self::from_bytes(Path::new("rank.json"), &bytes) {
            Ok(read) if read == *self => Ok(bytes),
            Ok(_) => Err(Error::unfit("rank.json", "it reads back as another ranking")),
            Err(error) => Err(Error::unfit("rank.json", error.to_string())),
        }
    }
}

/// Longest `rank.json` that is read, in bytes.
const CAP: u64 = 64 << 20;

/// What every version carries, whatever else it holds.
#[derive(Deserialize)]
struct Header {
    schema: Option<String>,
    schema_version: Option<String>,
}

fn check_header(path: &Path, bytes: &[u8]) -> Result<()> {
    let foreign = |why: &str| Error::bad_file(path, format!("not a ranking ({SCHEMA}): {why}"));
    let header: Header = match serde_json::from_slice(bytes) {
        Ok(header) => header,
        // JSON, but not an object with texts in these places.
        Err(e) if e.is_data() && serde_json::from_slice::<IgnoredAny>(bytes).is_ok() => {
            return Err(foreign(&e.to_string()));
        }
        Err(e) => return Err(at(path, &e)),
    };
    match header.schema.as_deref() {
        Some(SCHEMA) => {}
        Some(other) => return Err(foreign(&format!("schema is `{other}`"))),
        None => return Err(foreign("no `schema`")),
    }
    let major = |version: &str| version.split('.').next().and_then(|m| m.parse::<u32>().ok());
    match header.schema_version.as_deref() {
        Some(version) if major(version).is_some() && major(version) == major(SCHEMA_VERSION) => {
            Ok(())
        }
        Some(other) => Err(Error::bad_file(
            path,
            format!("written as version {other}; this program reads {SCHEMA_VERSION}"),
        )),
        None => Err(foreign("no `schema_version`")),
    }
}

fn at(path: &Path, error: &serde_json::Error) -> Error {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    Error::bad_file_at(path, error.line(), error.column(), reason)
}

/// What the types alone do not say.
fn check_parts(report: &RankReport) -> Result<(), String> {
    let candidates = report.candidates.len();
    if let Some(index) = report.frontier.iter().find(|&&i| i >= candidates) {
        return Err(format!("frontier names candidate {index} of {candidates}"));
    }
    check_map("traffic", &report.decision_map.traffic)?;
    check_map("budget", &report.decision_map.budget)
}

fn check_map(name: &str, map: &DecisionMap) -> Result<(), String> {
    let (columns, rows) = (map.x.len(), map.y.len());
    let winners = map.winner.len() == rows && map.winner.iter().all(|row| row.len() == columns);
    let chances = map.p_best.len() == rows && map.p_best.iter().all(|row| row.len() == columns);
    if winners && chances {
        Ok(())
    } else {
        Err(format!("decision map `{name}` is not a grid of {columns} by {rows} cells"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::files::seal::{END, SEAL};
    use crate::files::sha256_hex;
    use crate::plan::sample;

    fn parse(bytes: &[u8]) -> Result<RankReport> {
        RankReport::from_bytes(Path::new("rank.json"), bytes)
    }

    fn edited(from: &str, to: &str) -> Error {
        let text = serde_json::to_string_pretty(&sample::report()).unwrap();
        assert!(text.contains(from), "{from}");
        let body = text.replacen(from, to, 1);
        let body = body.strip_suffix("\n}").unwrap();
        let error = parse(format!("{body}{SEAL}{}{END}", sha256_hex(body)).as_bytes()).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(!error.to_string().contains('\n'));
        error
    }

    #[test]
    fn what_was_written_is_read_back_exactly() {
        let report = sample::report();
        let bytes = report.to_bytes().unwrap();
        assert_eq!(parse(&bytes).unwrap(), report);
        let text = String::from_utf8(bytes).unwrap();
        let edited = text.replacen("2.1234", "2.1235", 1);
        assert!(edited != text && parse(edited.as_bytes()).unwrap_err().exit_code() == 3);
        assert_eq!(parse(text.replace('\n', "\r\n").as_bytes()).unwrap(), report);
    }

    #[test]
    fn every_prefix_is_refused() {
        let bytes = sample::empty().to_bytes().unwrap();
        assert!(parse(&[]).unwrap_err().to_string().contains("empty"));
        for length in 1..bytes.len() {
            assert_eq!(parse(&bytes[..length]).unwrap_err().exit_code(), 3, "{length}");
        }
    }

    #[test]
    fn foreign_files_and_newer_majors_are_named() {
        assert!(parse(b"[1]").unwrap_err().to_string().contains("not a ranking"));
        assert!(parse(b"{\"a\":1}").unwrap_err().to_string().contains("no `schema`"));
        assert!(edited("moe-frontier/rank", "moe-frontier/plan").to_string().contains("/plan"));
        for version in ["3.0", "1.1", "x", ""] {
            let wrong = format!("\"schema_version\": \"{version}\"");
            let error = edited("\"schema_version\": \"2.3\"", &wrong);
            assert!(error.to_string().contains("reads 2.3"), "{error}");
        }
    }

    #[test]
    fn numbers_must_be_numbers_and_fields_known() {
        for (from, to, word) in [
            ("\"target_loss_nats\": 2.1234", "\"target_loss_nats\": NaN", "expected"),
            ("\"target_loss_nats\": 2.1234", "\"target_loss_nats\": null", "null"),
            ("\"target_loss_nats\": 2.1234", "\"target_loss_nats\": 1e400", "out of range"),
            ("\"summary\"", "\"sumary\"", "unknown field"),
            ("\"experts\": 1,", "", "missing field"),
        ] {
            let error = edited(from, to).to_string();
            assert!(error.contains(word) && error.starts_with("rank.json:"), "{to}: {error}");
        }
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let broken = |edit: fn(&mut RankReport)| {
            let mut report = sample::report();
            edit(&mut report);
            let error = parse(&sealed("test", &report).unwrap()).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            error.to_string()
        };
        assert!(broken(|r| r.frontier.push(99)).contains("candidate 99 of 9"));
        assert!(broken(|r| r.decision_map.traffic.y.truncate(2)).contains("traffic"));
        assert!(broken(|r| r.decision_map.budget.p_best[0].truncate(2)).contains("budget"));
    }

    proptest! {
        #[test]
        fn any_possible_report_survives_its_json(report in sample::arbitrary()) {
            match report.to_bytes() {
                Ok(bytes) => prop_assert_eq!(parse(&bytes).unwrap(), report),
                Err(error) => {
                    prop_assert_eq!(error.exit_code(), 4);
                    prop_assert!(report_numbers::check(&report).is_err(), "{error}");
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(parse(&bytes).unwrap_err().exit_code(), 3);
        }
    }
}
