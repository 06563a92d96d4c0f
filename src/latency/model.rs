//! The one door to latencies: a model answers a query or says what it lacks.

use std::fmt;

use crate::latency::query::{Operation, Query};
use crate::latency::source::Latency;

/// Why a model has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It holds nothing of this operation.
    Operation,
    /// It holds the operation, but not this key: what is missing, in words.
    Key(Box<str>),
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation => f.write_str("does not hold this operation"),
            Self::Key(reason) => f.write_str(reason),
        }
    }
}

/// A latency, or what is missing.
pub type Answer = Result<Latency, Absent>;

/// Anything that knows how long operations take on one device.
pub trait LatencyModel: Send + Sync {
    /// Duration of one operation.
    ///
    /// # Errors
    /// [`Absent`] when the model does not know; it never guesses.
    fn answer(&self, query: &Query) -> Answer;

    /// Who measured an operation and with what, in words (`aiconfigurator, vllm 0.24.0`); `None`
    /// when the model holds nothing of it.
    fn provenance(&self, operation: Operation) -> Option<String>;
}
