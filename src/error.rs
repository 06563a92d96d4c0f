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
    #[error("gate failed: {0}")]
    Gate(String),

    /// A flag, or an argument of a library call, has an unacceptable value. Exit code 2.
    #[error("{name}: {reason}")]
    Usage {
        /// The flag (`--experts`) or the argument's name.
        name: String,
        /// What is wrong and which form is accepted.
        reason: String,
    },

    /// A file was read but its content is not acceptable. Exit code 3.
    #[error("{location}: {reason}")]
    BadFile {
        /// The path, with `:line:column` when known.
        location: String,
        /// What is wrong.
        reason: String,
    },

    /// A measurement, a profile or a law cannot carry the answer asked for. Exit code 4.
    #[error("{what}: {reason}")]
    Unfit {
        /// What was refused.
        what: String,
        /// Why, and the nearest thing that can be answered.
        reason: String,
    },

    /// The question is well-posed but nothing meets it. Exit code 5.
    #[error("{what}; {nearest}")]
    Infeasible {
        /// What cannot be met, with the constraint that binds.
        what: String,
        /// The nearest feasible answer, or what to change.
        nearest: String,
    },

    /// A device is missing or failed. Exit code 6.
    #[error("device {device}: {reason}")]
    Device {
        /// The device as the user named it or as its driver does.
        device: String,
        /// Why it cannot be used.
        reason: String,
    },

    /// A file or folder cannot be opened, read or written. Exit code 7.
    #[error("failed to {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "create", "write".
        action: &'static str,
        /// The path concerned.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },

    /// The run was ended by a signal. Exit code 128 + signal.
    #[error("interrupted by signal {signal}{hint}")]
    Interrupted {
        /// Signal number: 2 for Ctrl-C, 15 for a termination request.
        signal: u8,
        /// Empty, or how to continue.
        hint: String,
    },
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
            (Error::Interrupted { signal: 2, hint: String::new() }, 130),
            (Error::Interrupted { signal: 15, hint: String::new() }, 143),
        ];
        for (error, code) in all {
            assert_eq!(error.exit_code(), code, "{error}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn numbers_are_checked_where_they_enter() {
        assert!(positive("--price", f64::NAN).is_err());
        assert!(positive("--price", 0.0).is_err());
        assert!(in_range("--mfu", 1.1, 0.0, 1.0).is_err());
        assert_eq!(in_range("--mfu", 0.4, 0.0, 1.0).ok(), Some(0.4));
    }
}
