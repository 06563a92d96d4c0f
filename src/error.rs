//! The one error type of the library and the exit code that each kind of error ends the program with.
//!
//! Messages are one line, lower case, and say what went wrong, where, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Each variant maps to one exit code, see [`Error::exit_code`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A gate that the user asked for did not hold (`--fail-on`). Exit code 1.
    #[error("gate failed: {}", tidy(.0))]
    Gate(String),

    /// A flag, or an argument of a library call, has an unacceptable value. Exit code 2.
    #[error("{}: {}", tidy(name), tidy(reason))]
    Usage {
        /// The flag (`--experts`) or the argument's name.
        name: String,
        /// What is wrong and which form is accepted.
        reason: String,
    },

    /// A file was read but its content is not acceptable. Exit code 3.
    #[error("{}: {}", tidy(location), tidy(reason))]
    BadFile {
        /// The path, with `:line:column` when known.
        location: String,
        /// What is wrong.
        reason: String,
    },

    /// A measurement, a profile or a law cannot carry the answer asked for. Exit code 4.
    #[error("{}: {}", tidy(what), tidy(reason))]
    Unfit {
        /// What was refused.
        what: String,
        /// Why, and the nearest thing that can be answered.
        reason: String,
    },

    /// The question is well-posed but nothing meets it. Exit code 5.
    #[error("{}; {}", tidy(what), tidy(nearest))]
    Infeasible {
        /// What cannot be met, with the constraint that binds.
        what: String,
        /// The nearest feasible answer, or what to change.
        nearest: String,
    },

    /// A device is missing or failed. Exit code 6.
    #[error("device {}: {}", tidy(device), tidy(reason))]
    Device {
        /// The device as the user named it or as its driver does.
        device: String,
        /// Why it cannot be used.
        reason: String,
    },

    /// A file or folder cannot be opened, read or written. Exit code 7.
    #[error("failed to {action} {}: {}", tidy(&path.display().to_string()), tidy(&source.to_string()))]
    Io {
        /// What was tried: "read", "create", "write".
        action: &'static str,
        /// The path concerned.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },

    /// The run was ended by a signal. Exit code 128 + signal.
    #[error("interrupted by signal {signal}{}", tidy(hint))]
    Interrupted {
        /// Signal number: 2 for Ctrl-C, 15 for a termination request.
        signal: u8,
        /// Empty, or how to continue.
        hint: String,
    },
}

/// Characters that are shown of one string out of a file or a flag.
const SHOWN: usize = 200;
/// Characters of one part of a message.
const LONGEST: usize = 1200;

/// A string out of a file or a flag as it may be printed: control characters, line ends and marks that
/// change the direction of text are escaped, and what is longer than 200 characters is cut.
///
/// ```
/// use moe_frontier::error::shown;
/// assert_eq!(shown("a\u{1b}[2Jb\n"), r"a\u{1b}[2Jb\n");
/// assert_eq!(shown(&"x".repeat(1000)).len(), 203);
/// ```
pub fn shown(text: &str) -> String {
    escaped(&cut(text, SHOWN))
}

/// A message as it may be printed: escaped as [`shown`] does, with what stands between backticks or
/// quotes cut as a string of its own.
pub fn tidy(message: &str) -> String {
    if message.len() <= SHOWN {
        return escaped(message);
    }
    let mut out = String::new();
    let mut rest = message;
    while let Some(open) = rest.find(['`', '\'', '"']) {
        let quote = &rest[open..=open];
        let Some(length) = rest[open + 1..].find(quote) else { break };
        out += &rest[..=open];
        out += &cut(&rest[open + 1..open + 1 + length], SHOWN);
        out += quote;
        rest = &rest[open + length + 2..];
    }
    out += rest;
    escaped(&cut(&out, LONGEST))
}

fn cut(text: &str, most: usize) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]).into(),
        None => text.into(),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out += r"\n",
            '\r' => out += r"\r",
            '\t' => out += r"\t",
            c if c.is_control() || turns_text(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Marks that reorder or hide text, and line separators.
pub(crate) const fn turns_text(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// A JSON document that says the same and does nothing to a terminal: what [`shown`] escapes stands in its
/// strings as `\uXXXX`. Outside of strings no such character can be.
pub(crate) fn plain_json(document: String) -> String {
    let is_plain = |c: char| c == '\n' || !(c.is_control() || turns_text(c));
    if document.chars().all(is_plain) {
        return document;
    }
    let mut out = String::with_capacity(document.len() + 64);
    for c in document.chars() {
        if is_plain(c) {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let hex = |shift: u32| char::from_digit(u32::from(*unit >> shift) & 15, 16);
                out.push_str("\\u");
                out.extend([12, 8, 4, 0].into_iter().filter_map(hex));
            }
        }
    }
    out
}

/// Lines of text as they may be printed: escaped as [`shown`] does, but for line ends and, where `colour` is
/// wanted, the marks of colours.
pub(crate) fn plain_lines(text: &str, colour: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = if colour { colour_mark(rest) } else { 0 };
        if length > 0 {
            out += &rest[..length];
            rest = &rest[length..];
            continue;
        }
        if c != '\n' && (c.is_control() || turns_text(c)) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// Length of the mark of a colour that a text begins with, 0 without one.
fn colour_mark(text: &str) -> usize {
    let Some(body) = text.strip_prefix("\u{1b}[") else { return 0 };
    let digits = body.bytes().take_while(|b| b.is_ascii_digit() || *b == b';').count();
    if body.as_bytes().get(digits) == Some(&b'm') { digits + 3 } else { 0 }
}

impl Error {
    /// The exit code that the command-line program ends with.
    ///
    /// ```
    /// use moe_frontier::Error;
    /// assert_eq!(Error::usage("--experts", "must be at least 1").exit_code(), 2);
    /// ```
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Gate(_) => 1,
            Self::Usage { .. } => 2,
            Self::BadFile { .. } => 3,
            Self::Unfit { .. } => 4,
            Self::Infeasible { .. } => 5,
            Self::Device { .. } => 6,
            Self::Io { .. } => 7,
            Self::Interrupted { signal, .. } => 128 + *signal,
        }
    }

    /// A wrong flag or argument.
    pub fn usage(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Usage { name: name.into(), reason: reason.into() }
    }

    /// A file whose content is not acceptable, without a position.
    pub fn bad_file(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::BadFile { location: path.as_ref().display().to_string(), reason: reason.into() }
    }

    /// A file whose content is not acceptable at a line and column (both from 1).
    pub fn bad_file_at(
        path: impl AsRef<Path>,
        line: usize,
        column: usize,
        reason: impl Into<String>,
    ) -> Self {
        let location = format!("{}:{line}:{column}", path.as_ref().display());
        Self::BadFile { location, reason: reason.into() }
    }

    /// A measurement, profile or law that cannot carry the answer.
    pub fn unfit(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unfit { what: what.into(), reason: reason.into() }
    }

    /// A question that nothing meets, with the nearest thing that can be had.
    pub fn infeasible(what: impl Into<String>, nearest: impl Into<String>) -> Self {
        Self::Infeasible { what: what.into(), nearest: nearest.into() }
    }

    /// A device that is missing or failed.
    pub fn device(device: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Device { device: device.into(), reason: reason.into() }
    }

    /// An end that was asked for. Which signal did, and how to go on, is put in by whoever heard it.
    pub const fn interrupted() -> Self {
        Self::Interrupted { signal: 2, hint: String::new() }
    }

    /// A failed file operation.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}

/// Checks that an input number is finite and greater than zero.
///
/// # Errors
/// [`Error::Usage`] that names the argument.
pub fn positive(name: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(Error::usage(name, format!("{value} is not a finite number greater than zero")))
    }
}

/// Checks that an input number is finite and lies in a closed range.
///
/// # Errors
/// [`Error::Usage`] that names the argument and the range.
pub fn in_range(name: &str, value: f64, low: f64, high: f64) -> Result<f64> {
    if value.is_finite() && (low..=high).contains(&value) {
        Ok(value)
    } else {
        Err(Error::usage(name, format!("{value} does not lie between {low} and {high}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_exit_code() {
        let io = io::Error::other("disk full");
        let all = [
            (Error::Gate("slower".into()), 1),
            (Error::usage("--experts", "no"), 2),
            (Error::bad_file("a.json", "empty"), 3),
            (Error::unfit("profile", "no"), 4),
            (Error::infeasible("tpot", "nearest 20 ms"), 5),
            (Error::device("gpu", "no driver"), 6),
            (Error::io("write", "a.json", io), 7),
            (Error::interrupted(), 130),
            (Error::Interrupted { signal: 15, hint: String::new() }, 143),
        ];
        for (error, code) in all {
            assert_eq!(error.exit_code(), code, "{error}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn strings_of_others_do_nothing_to_a_terminal_and_stay_short() {
        let evil = format!("a\nb\r\u{1b}[31m\u{202e}\u{9b}{}", "x".repeat(100_000));
        let errors = [
            Error::usage(evil.clone(), format!("`{evil}` is not a number; write 1e21")),
            Error::bad_file(&evil, format!("unknown field `{evil}`, expected `a`")),
            Error::unfit(evil.clone(), evil.clone()),
            Error::infeasible(evil.clone(), evil.clone()),
            Error::device(evil.clone(), evil.clone()),
            Error::io("read", &evil, io::Error::other(evil.clone())),
            Error::Gate(evil),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(text.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{text}");
            assert!(text.len() < 4000, "{}", text.len());
        }
        let usage =
            Error::usage("--x", format!("`{}` is unknown; there are a, b", "y".repeat(5000)));
        assert!(usage.to_string().ends_with("...` is unknown; there are a, b"));
    }

    #[test]
    fn documents_and_lines_do_nothing_to_a_terminal() {
        let evil = "a\u{202e}b\u{9b}c\u{e0041}\u{7f}";
        let document = serde_json::to_string(&[evil]).unwrap();
        let plain = plain_json(document);
        assert!(
            plain.is_ascii() && plain.contains(r"\u202e") && plain.contains(r"\u009b"),
            "{plain}"
        );
        assert_eq!(serde_json::from_str::<Vec<String>>(&plain).unwrap(), [evil]);
        assert_eq!(plain_json("{\n  \"é\": 1\n}".into()), "{\n  \"é\": 1\n}");
        let line = "\u{1b}[1;31mred\u{1b}[0m \u{1b}]0;x\u{7}\tend\u{202e}\n";
        let shown = plain_lines(line, true);
        assert!(
            shown.starts_with("\u{1b}[1;31mred\u{1b}[0m ") && shown.ends_with("{202e}\n"),
            "{shown}"
        );
        assert_eq!(shown.matches('\u{1b}').count(), 2);
        assert!(plain_lines(line, false).chars().all(|c| c == '\n' || !c.is_control()));
    }

    #[test]
    fn numbers_are_checked_where_they_enter() {
        assert!(positive("--price", f64::NAN).is_err());
        assert!(positive("--price", 0.0).is_err());
        assert!(in_range("--mfu", 1.1, 0.0, 1.0).is_err());
        assert_eq!(in_range("--mfu", 0.4, 0.0, 1.0).ok(), Some(0.4));
    }
}
