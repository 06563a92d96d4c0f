//! Storage faults that a test plants: the k-th step that changes the file system fails or ends the
//! process, for k = 1, 2, ... until a run passes.
//!
//! Steps are counted per thread. A program reads its fault from [`FAULT_VARIABLE`]; a test of the
//! library plants one with [`plant`].

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::str::FromStr;

use crate::{Error, Result};

/// Environment variable that plants a [`Fault`] in a program.
pub const FAULT_VARIABLE: &str = "MOE_FRONTIER_STORAGE_FAULT";

/// What happens at the struck step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The process ends as `kill -9` ends it. A write leaves half of its bytes.
    Kill,
    /// No space is left on the device. A write leaves half of its bytes.
    Full,
    /// The device reports an error.
    Broken,
    /// The file system has no locks. Strikes at every lock and at no step.
    NoLocks,
}

/// A planted fault: `kill@3`, `enospc@3`, `eio@3`; `enospc@3+` also strikes every later step; `nolocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// The step that it happens at, from 1.
    pub at: u64,
    /// Whether it happens at every later step too.
    pub lasting: bool,
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::usage(FAULT_VARIABLE, "write kill@N, enospc@N, enospc@N+, eio@N or nolocks");
        if text == "nolocks" {
            return Ok(Self { kind: Kind::NoLocks, at: 0, lasting: false });
        }
        let (kind, at) = text.split_once('@').ok_or_else(wrong)?;
        let kind = match kind {
            "kill" => Kind::Kill,
            "enospc" => Kind::Full,
            "eio" => Kind::Broken,
            _ => return Err(wrong()),
        };
        let digits = at.strip_suffix('+').unwrap_or(at);
        let at_step = digits.parse().map_err(|_| wrong())?;
        Ok(Self { kind, at: at_step, lasting: digits.len() < at.len() })
    }
}

impl Fault {
    fn error(self) -> io::Error {
        match self.kind {
            Kind::Kill => std::process::abort(),
            // ENOSPC and EIO have these numbers on every Unix.
            Kind::Full => io::Error::from_raw_os_error(28),
            Kind::Broken => io::Error::from_raw_os_error(5),
            Kind::NoLocks => io::Error::from(io::ErrorKind::Unsupported),
        }
    }
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    steps: u64,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new(State { fault: from_environment(), steps: 0 });
}

fn from_environment() -> Option<Fault> {
    std::env::var(FAULT_VARIABLE).ok()?.parse().ok()
}

/// Plants a fault in this thread, or none, and counts from zero.
pub fn plant(fault: Option<Fault>) {
    STATE.with_borrow_mut(|state| *state = State { fault, steps: 0 });
}

/// Steps that this thread has taken.
pub fn steps() -> u64 {
    STATE.with_borrow(|state| state.steps)
}

/// Counts a step; the fault if it strikes here.
fn struck() -> Option<Fault> {
    STATE.with_borrow_mut(|state| {
        state.steps += 1;
        let steps = state.steps;
        state.fault.filter(|f| steps == f.at || (f.lasting && steps > f.at))
    })
}

/// Locking a file; no step, because it changes nothing that lasts.
///
/// # Errors
/// The planted one.
pub fn lock() -> io::Result<()> {
    let fault = STATE.with_borrow(|state| state.fault);
    fault.filter(|f| f.kind == Kind::NoLocks).map_or(Ok(()), |fault| Err(fault.error()))
}

/// One step that creates, synchronises, renames, cuts or removes.
///
/// # Errors
/// The planted one.
pub fn step() -> io::Result<()> {
    struck().map_or(Ok(()), |fault| Err(fault.error()))
}

/// Writes all bytes, as one step.
///
/// # Errors
/// Those of the system, and the planted one, after half of the bytes.
pub fn write_all(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    match struck() {
        None => file.write_all(bytes),
        Some(fault) => {
            if fault.kind != Kind::Broken {
                file.write_all(&bytes[..bytes.len() / 2])?;
            }
            Err(fault.error())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_by_kind_and_step() {
        let full = Fault { kind: Kind::Full, at: 3, lasting: false };
        assert_eq!("enospc@3".parse::<Fault>().unwrap(), full);
        assert_eq!("enospc@3+".parse::<Fault>().unwrap(), Fault { lasting: true, ..full });
        assert_eq!("nolocks".parse::<Fault>().unwrap().kind, Kind::NoLocks);
        for wrong in ["", "kill", "kill@", "kill@x", "burn@1", "kill@1++"] {
            assert_eq!(wrong.parse::<Fault>().unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn the_step_named_fails_once_or_for_good() {
        let outcomes = |text: &str| {
            plant(Some(text.parse().unwrap()));
            let failed: Vec<bool> = (0..4).map(|_| step().is_err()).collect();
            plant(None);
            failed
        };
        assert_eq!(outcomes("eio@2"), [false, true, false, false]);
        assert_eq!(outcomes("enospc@3+"), [false, false, true, true]);
        step().unwrap();
        assert_eq!(steps(), 1);
    }
}
