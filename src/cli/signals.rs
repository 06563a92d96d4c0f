//! Ctrl-C and termination requests: the first one asks for a clean stop, the second one ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::{Error, Result};

/// Whether a stop was asked for, and by which signal.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    raised: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// Starts listening.
    ///
    /// # Errors
    /// [`Error::Device`] when the system refuses the handlers.
    pub fn listen() -> Result<Self> {
        let stop = Self::default();
        let refused = |e: std::io::Error| Error::device("signals", e.to_string());
        for signal in [SIGINT, SIGTERM] {
            // Registered first, so that it sees the flag as the signal before this one left it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop.raised))
                .map_err(refused)?;
            flag::register_usize(signal, Arc::clone(&stop.signal), signal.unsigned_abs() as usize)
                .map_err(refused)?;
            flag::register(signal, Arc::clone(&stop.raised)).map_err(refused)?;
        }
        Ok(stop)
    }

    /// The flag that long work looks at.
    pub fn flag(&self) -> &AtomicBool {
        &self.raised
    }

    /// Puts the signal that came, and how to go on, into an interruption; other errors stay as they are.
    pub fn explain(&self, error: Error, hint: &str) -> Error {
        match error {
            Error::Interrupted { signal, .. } => {
                let came = u8::try_from(self.signal.load(Ordering::Relaxed)).unwrap_or(signal);
                let signal = if came == 0 { signal } else { came };
                Error::Interrupted { signal, hint: hint.to_owned() }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_names_the_signal_that_came() {
        let stop = Stop::default();
        let interrupted = || Error::Interrupted { signal: 2, hint: String::new() };
        assert_eq!(stop.explain(interrupted(), "").exit_code(), 130);
        stop.signal.store(15, Ordering::Relaxed);
        let error = stop.explain(interrupted(), "; nothing was written");
        assert_eq!(error.exit_code(), 143);
        assert!(error.to_string().contains("nothing was written"));
        assert_eq!(stop.explain(Error::Gate("x".into()), "").exit_code(), 1);
    }
}
