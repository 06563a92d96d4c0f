//! The program inside another process, such as a Python interpreter.

use std::ffi::OsString;
use std::io;
use std::process::Command as Process;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{Command, Failure, Output, dispatch, output, parse};
use crate::Error;

/// What starts the program as another process, where that is not the file of this one.
static AGAIN: OnceLock<Vec<OsString>> = OnceLock::new();
/// Held while a document is made: what a command reads and records is known by process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Says what starts this program as another process: a program and its first arguments. What was said
/// first holds.
pub fn started_by(words: Vec<OsString>) {
    let _ = AGAIN.set(words);
}

/// A command that starts this program again.
pub(super) fn again() -> io::Result<Process> {
    let Some([program, words @ ..]) = AGAIN.get().map(Vec::as_slice) else {
        return std::env::current_exe().map(Process::new);
    };
    let mut command = Process::new(program);
    command.args(words);
    Ok(command)
}

/// The document that a command line prints under `--json`, and the warnings on the way; the first word is
/// the program's name. Nothing is printed, no signal is taken over, and nothing is measured.
///
/// ```
/// use moe_frontier::cli::embedded::document;
/// let words = ["moe-frontier", "explain", "tpot"].map(Into::into).to_vec();
/// let (answer, warnings) = document(words);
/// assert!(answer.unwrap().contains("Time per output token") && warnings.is_empty());
/// ```
pub fn document(words: Vec<OsString>) -> (Result<String, Failure>, Vec<String>) {
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    output::capture();
    let done = answered(words);
    let captured = output::captured();
    (done.map(|()| captured.text), captured.warnings)
}

fn answered(words: Vec<OsString>) -> Result<(), Failure> {
    let command = parse(words)?.command;
    if measures(&command) {
        let reason = "measures, which only the program does: run moe-frontier, and name the profile \
                      that it writes with --profile";
        return Err(Error::usage("this command", reason).into());
    }
    Ok(dispatch(command, Output::new(true))?)
}

/// Whether a command runs kernels or other programs.
fn measures(command: &Command) -> bool {
    match command {
        Command::Measure(_) | Command::Worker(_) | Command::GroupWorker | Command::Probe(_) => true,
        Command::Compare(args) => args.run.is_some(),
        Command::Rank(args) => args.is_of_this_machine(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<String, Failure> {
        document(line.split_whitespace().map(OsString::from).collect()).0
    }

    #[test]
    fn documents_come_back_and_nothing_is_measured() {
        let text = asked("moe-frontier law optimal --experts 8 --train-flops 1e21").unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["schema"], "moe-frontier/law-optimal");
        for line in ["measure", "rank", "rank --profile auto", "compare --run true true"] {
            let failure = asked(&format!("moe-frontier {line}")).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{line}");
            assert!(failure.line(false).contains("only the program"), "{}", failure.line(false));
        }
        assert_eq!(asked("moe-frontier device show h10").unwrap_err().exit_code(), 2);
        assert_eq!(asked("moe-frontier nothing").unwrap_err().exit_code(), 2);
    }
}
