//! The only place that writes to stdout.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::error::tidy;
use crate::{Error, Result};

/// Where a command's result goes: text or one JSON document on stdout.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Text, or JSON when `json` is set.
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a JSON document was asked for.
    pub const fn is_json(self) -> bool {
        self.json
    }

    /// Prints a result: the JSON document of `value`, or the text that `text` makes.
    ///
    /// # Errors
    /// [`Error::Io`] when stdout cannot be written. A closed pipe (`| head`) is no error.
    pub fn result<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        if self.json {
            let mut document = serde_json::to_string_pretty(value)
                .map_err(|e| Error::io("serialise", stdout_path(), io::Error::other(e)))?;
            document.push('\n');
            write_stdout(&document)
        } else {
            write_stdout(&text())
        }
    }
}

/// Writes text to stdout.
///
/// # Errors
/// [`Error::Io`] when stdout cannot be written. A closed pipe (`| head`) is no error.
pub fn write_stdout(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| Error::io("write", stdout_path(), e)),
    }
}

/// Stdout for lines that another program reads one by one.
pub fn stdout_lines() -> impl Write + Send {
    io::stdout()
}

/// Whether stdout shows colours: on a terminal, unless `NO_COLOR` is set to anything.
pub fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Columns that a line of text has at most.
const LINE: usize = 100;

/// A sentence behind its label, in lines of at most [`LINE`] columns.
pub(crate) fn wrapped(label: &str, sentence: &str) -> String {
    let mut lines = vec![label.to_owned()];
    for word in sentence.split(' ') {
        let full = lines.last().is_some_and(|l| l.chars().count() + word.chars().count() >= LINE);
        if full {
            lines.push(" ".repeat(label.len()));
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(word);
            line.push(' ');
        }
    }
    let trimmed: Vec<&str> = lines.iter().map(|l| l.trim_end()).collect();
    trimmed.join("\n") + "\n"
}

/// What was read of a model, and what was assumed in reading it.
pub(crate) fn model_lines(summary: &str, assumed: &[String]) -> String {
    let notes = assumed.iter().map(|note| wrapped("assumed: ", note));
    format!("model: {summary}\n{}", notes.collect::<String>())
}

/// Prints one warning line on stderr.
pub fn warn(message: &str) {
    let _ = writeln!(io::stderr(), "warning: {}", tidy(message));
}

fn stdout_path() -> PathBuf {
    PathBuf::from("standard output")
}
