//! `rank --from rank.json`: the flags of an earlier run, with those of this one after them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Deserialize;

use crate::files::seal::{at, unseal, without_returns};
use crate::files::{read_capped, strict};
use crate::{Error, Result};

/// The command that records its flags and takes them again.
const COMMAND: &str = "rank";
/// Flags that say where results go and how they are shown, not what they are.
const NOT_KEPT: [&str; 6] = ["details", "from", "json", "out", "overwrite", "plot"];
/// Longest ranking that is read, in bytes.
const CAP: u64 = 64 << 20;

/// The flags of this run.
static RECORDED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What a ranking says of the run that made it.
#[derive(Deserialize)]
struct Made {
    schema: String,
    #[serde(default)]
    arguments: Option<Vec<String>>,
}

/// The command line with the flag in it.
pub fn with_flag(command: Command) -> Command {
    command.mut_subcommand(COMMAND, |rank| {
        rank.arg(
            Arg::new("from")
                .long("from")
                .value_name("RANK_JSON")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Repeat the run that wrote this rank.json; further flags replace its own")
                .help_heading("What is compared"),
        )
    })
}

/// The words of a command line, with `--from FILE` replaced by the flags in the file.
///
/// # Errors
/// [`Error::Io`] and [`Error::BadFile`] for a file that is no ranking with its flags.
pub fn expanded(words: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(at) = words.iter().position(|word| word == COMMAND) else { return Ok(words) };
    let text = |word: &OsString| word.to_string_lossy().into_owned();
    let found =
        words[at..].iter().position(|w| text(w) == "--from" || text(w).starts_with("--from="));
    let Some(from) = found.map(|offset| at + offset) else { return Ok(words) };
    let (path, taken) = match text(&words[from]).split_once('=') {
        Some((_, path)) => (Some(PathBuf::from(path)), 1),
        None => (words.get(from + 1).map(PathBuf::from), 2),
    };
    // Without a file the parser says what is missing.
    let Some(path) = path else { return Ok(words) };
    let (head, tail) = words.split_at(at + 1);
    let own: Vec<OsString> = tail
        .iter()
        .enumerate()
        .filter(|(i, _)| !(from..from + taken).contains(&(at + 1 + i)))
        .map(|(_, word)| word.clone())
        .collect();
    let name = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    let replaced: Vec<String> = own.iter().map(|word| name(&text(word))).collect();
    let earlier = flags_of(&path)?.into_iter().filter(|flag| !replaced.contains(&name(flag)));
    Ok(head.iter().cloned().chain(earlier.map(OsString::from)).chain(own).collect())
}

fn flags_of(path: &Path) -> Result<Vec<String>> {
    let body = unseal(path, without_returns(read_capped(path, CAP)?))?;
    let made: Made = strict::from_slice(&body, CAP).map_err(|e| at(path, &e))?;
    if made.schema != crate::plan::outcome::SCHEMA {
        return Err(Error::bad_file(path, format!("is a {}, not a rank.json", made.schema)));
    }
    made.arguments.ok_or_else(|| {
        Error::bad_file(
            path,
            "does not hold the flags of its run; it was written before they were kept",
        )
    })
}

/// Keeps the flags of this run: those given, by variables and settings too. `is_set` tells flags of the
/// file of settings.
pub fn record(command: &Command, matches: &ArgMatches, is_set: impl Fn(&str) -> bool) {
    let (Some(rank), Some(given)) =
        (command.find_subcommand(COMMAND), matches.subcommand_matches(COMMAND))
    else {
        return;
    };
    let mut flags = Vec::new();
    for arg in rank.get_arguments() {
        let (Some(long), id) = (arg.get_long(), arg.get_id().as_str()) else { continue };
        let source = given.value_source(id);
        let was_given = matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        if NOT_KEPT.contains(&long) || !(was_given || is_set(long)) {
            continue;
        }
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            flags.extend(given.get_flag(id).then(|| format!("--{long}")));
            continue;
        }
        let values = given.get_raw(id).into_iter().flatten();
        flags.extend(values.map(|value| format!("--{long}={}", value.to_string_lossy())));
    }
    *RECORDED.lock().unwrap_or_else(PoisonError::into_inner) = flags;
}

/// The flags of this run, in the order of the help.
pub fn recorded() -> Vec<String> {
    RECORDED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::seal::sealed;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn flags_of_this_run_replace_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank.json");
        let flags = r#"["--train-flops=1e21", "--price=2"]"#;
        let flags: serde_json::Value = serde_json::from_str(flags).unwrap();
        let made = serde_json::json!({"schema": "moe-frontier/rank", "arguments": flags});
        fs::write(&path, sealed("test", &made).unwrap()).unwrap();
        let path = path.display();
        for given in [format!("--from {path}"), format!("--from={path}")] {
            let line =
                expanded(words(&format!("moe-frontier --json rank --mfu 0.4 {given} --price 3")));
            let expected = "moe-frontier --json rank --train-flops=1e21 --mfu 0.4 --price 3";
            assert_eq!(line.unwrap(), words(expected));
        }
        let other = words("moe-frontier law list");
        assert_eq!(expanded(other.clone()).unwrap(), other);
    }

    #[test]
    fn files_without_flags_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        let refusal = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = flags_of(&path).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            error.to_string()
        };
        let made = |value: serde_json::Value| sealed("test", &value).unwrap();
        assert!(refusal(b"{}").contains("checksum"));
        assert!(refusal(&made(serde_json::json!({"a": 1}))).contains("missing field `schema`"));
        let schema =
            |name: &str| made(serde_json::json!({"schema": format!("moe-frontier/{name}")}));
        assert!(refusal(&schema("size")).contains("moe-frontier/size"));
        assert!(refusal(&schema("rank")).contains("does not hold the flags"));
        let changed = String::from_utf8(schema("rank")).unwrap().replace("rank", "rane");
        assert!(refusal(changed.as_bytes()).contains("checksum mismatch"));
        assert_eq!(flags_of(&folder.path().join("none")).unwrap_err().exit_code(), 7);
    }
}
