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

/// Prints one warning line on stderr.
pub fn warn(message: &str) {
    let _ = writeln!(io::stderr(), "warning: {}", tidy(message));
}

fn stdout_path() -> PathBuf {
    PathBuf::from("standard output")
}
