//! The only place that writes to stdout.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::progress::end_notice;
use crate::error::{plain_json, plain_lines, tidy};
use crate::report::grid::{fitted, hanging};
use crate::{Error, Result};

/// What a command says while it is captured instead of printed.
#[derive(Debug, Default)]
pub(super) struct Captured {
    pub(super) text: String,
    pub(super) warnings: Vec<String>,
}

thread_local! {
    /// What is captured on this thread, if anything is.
    static CAPTURED: RefCell<Option<Captured>> = const { RefCell::new(None) };
}

/// From here on what this thread says is kept instead of printed.
pub(super) fn capture() {
    CAPTURED.set(Some(Captured::default()));
}

/// What was said since [`capture`]; printing goes on after it.
pub(super) fn captured() -> Captured {
    CAPTURED.take().unwrap_or_default()
}

/// Keeps what is said, if it is captured.
fn keep(with: impl FnOnce(&mut Captured)) -> bool {
    CAPTURED.with_borrow_mut(|captured| captured.as_mut().map(with).is_some())
}

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
            write_stdout(&plain_json(document))
        } else {
            write_text(&text())
        }
    }

    /// The same for text that another program reads, whose lines stay as they are: a script, a file.
    ///
    /// # Errors
    /// As [`Self::result`].
    pub fn verbatim<T: Serialize>(self, value: &T, text: &str) -> Result<()> {
        if self.json { self.result(value, String::new) } else { write_stdout(text) }
    }
}

/// Writes text to stdout, no line wider than [`width`].
///
/// # Errors
/// As [`write_stdout`].
pub fn write_text(text: &str) -> Result<()> {
    write_stdout(&plain_lines(&fitted(text, width()), colour()))
}

/// Writes text to stdout.
///
/// # Errors
/// [`Error::Io`] when stdout cannot be written. A closed pipe (`| head`) is no error.
pub fn write_stdout(text: &str) -> Result<()> {
    if keep(|captured| captured.text.push_str(text)) {
        return Ok(());
    }
    end_notice();
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

/// How wide text is where nobody says: in a file or a pipe.
const USUAL_WIDTH: usize = 80;
/// Wider lines are hard to read.
const WIDEST: usize = 160;
/// Narrower than this no table is tried.
const NARROWEST: usize = 40;

/// How wide tables and paragraphs may be, in terminal columns.
pub fn width() -> usize {
    terminal_width().unwrap_or(USUAL_WIDTH)
}

/// The width of the terminal that stdout is, or what `COLUMNS` says.
fn terminal_width() -> Option<usize> {
    let told = std::env::var("COLUMNS").ok().and_then(|text| text.trim().parse().ok());
    let seen = || terminal_size::terminal_size_of(io::stdout()).map(|(w, _)| usize::from(w.0));
    told.or_else(seen).filter(|w| *w > 0).map(|w| w.clamp(NARROWEST, WIDEST))
}

/// Whether stdout shows colours: on a terminal, unless `NO_COLOR` is set to anything.
pub fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// What was read of a model, and what was assumed in reading it.
pub(crate) fn model_lines(summary: &str, assumed: &[String]) -> String {
    let notes = assumed.iter().map(|note| hanging("assumed: ", note, width()));
    hanging("model: ", summary, width()) + &notes.collect::<String>()
}

/// Prints one warning line on stderr.
pub fn warn(message: &str) {
    if keep(|captured| captured.warnings.push(tidy(message))) {
        return;
    }
    end_notice();
    let _ = writeln!(io::stderr(), "warning: {}", tidy(message));
}

fn stdout_path() -> PathBuf {
    PathBuf::from("standard output")
}
