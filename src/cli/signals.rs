//! Ctrl-C and termination requests. While a command listens, the first one asks it for a clean stop and
//! the second one ends at once; at any other time the first one ends at once. Temporary files are
//! removed in every case, and commands that `compare --run` has started end too.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::tidy;
use crate::files::whole::remove_temporary;
use crate::measure::pairs::end_running;
use crate::{Error, Result};

/// Who listens now.
static LISTENER: Mutex<Option<Arc<Raised>>> = Mutex::new(None);

/// What a signal leaves behind.
#[derive(Debug, Default)]
struct Raised {
    flag: AtomicBool,
    signal: AtomicI32,
}

/// Takes over the signals that ask for an end; once a process, later calls do nothing.
///
/// # Errors
/// [`Error::Device`] when the system refuses.
pub fn install() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut outcome = Ok(());
    ONCE.call_once(|| outcome = start());
    outcome.map_err(|e| Error::device("signals", e.to_string()))
}

fn start() -> std::io::Result<()> {
    let mut wanted = vec![SIGINT, SIGTERM];
    // `nohup` has a program outlive its terminal.
    if !is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let mut signals = Signals::new(wanted)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || signals.forever().for_each(receive))
        .map(drop)
}

fn receive(signal: i32) {
    // A terminal that is gone asks for an end as a termination request does.
    let signal = if signal == SIGHUP { SIGTERM } else { signal };
    let listener = LISTENER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(raised) = listener
        && !raised.flag.load(Ordering::Relaxed)
    {
        raised.signal.store(signal, Ordering::Relaxed);
        raised.flag.store(true, Ordering::Relaxed);
        return;
    }
    remove_temporary();
    end_running();
    std::process::exit(128 + signal);
}

/// Whether a command listens and was asked to stop.
pub(super) fn is_raised() -> bool {
    let listener = LISTENER.lock().unwrap_or_else(PoisonError::into_inner);
    listener.as_ref().is_some_and(|raised| raised.flag.load(Ordering::Relaxed))
}

/// Whether a signal was set to be ignored before this process began.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let bits = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    u32::try_from(signal - 1).is_ok_and(|bit| bits.checked_shr(bit).unwrap_or(0) & 1 == 1)
}

/// Whether a stop was asked for, and by which signal. Signals are its own while it exists.
#[derive(Debug, Default)]
pub struct Stop {
    raised: Arc<Raised>,
}

impl Stop {
    /// Starts listening.
    ///
    /// # Errors
    /// [`Error::Device`] when the system refuses the handlers.
    pub fn listen() -> Result<Self> {
        install()?;
        let stop = Self::default();
        *LISTENER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&stop.raised));
        Ok(stop)
    }

    /// The flag that long work looks at.
    pub fn flag(&self) -> &AtomicBool {
        &self.raised.flag
    }

    /// Puts the signal that came, and how to go on, into an interruption; other errors stay as they are.
    pub fn explain(&self, error: Error, hint: &str) -> Error {
        match error {
            Error::Interrupted { signal, .. } => {
                let came = u8::try_from(self.raised.signal.load(Ordering::Relaxed)).unwrap_or(0);
                let signal = if came == 0 { signal } else { came };
                Error::Interrupted { signal, hint: tidy(hint) }
            }
            other => other,
        }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        let mut listener = LISTENER.lock().unwrap_or_else(PoisonError::into_inner);
        if listener.as_ref().is_some_and(|raised| Arc::ptr_eq(raised, &self.raised)) {
            *listener = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_names_the_signal_that_came() {
        let stop = Stop::default();
        assert_eq!(stop.explain(Error::interrupted(), "").exit_code(), 130);
        stop.raised.signal.store(15, Ordering::Relaxed);
        let error = stop.explain(Error::interrupted(), "; nothing was measured");
        assert_eq!(error.exit_code(), 143);
        assert!(error.to_string().contains("nothing was measured"));
        assert_eq!(stop.explain(Error::Gate("x".into()), "").exit_code(), 1);
    }
}
