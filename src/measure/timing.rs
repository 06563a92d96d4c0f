//! The clock and the thing that is timed, as traits, so that every rule of the protocol can be
//! tested with made-up time.

use std::time::Instant;

use crate::Result;

/// A clock that never goes back.
pub trait Clock {
    /// Nanoseconds since some fixed moment.
    fn now_ns(&self) -> u64;
}

/// The system's monotonic clock: steps of the wall clock do not reach it.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock(Instant);

impl Default for MonotonicClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for MonotonicClock {
    fn now_ns(&self) -> u64 {
        // 2^64 ns are 584 years.
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Something that can be launched again and again.
pub trait Launch {
    /// Runs once, to completion. `turn` counts launches: inputs and weight sets rotate with it.
    ///
    /// # Errors
    /// Whatever the kernel reports.
    fn launch(&mut self, turn: usize) -> Result<()>;

    /// Fewest launches that can be timed together; more are timed in multiples of them.
    fn least_launches(&self) -> u32 {
        1
    }

    /// Puts the next input in place before a sample, outside of its time.
    ///
    /// # Errors
    /// Whatever the kernel reports.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Nanoseconds that `launches` launches in a row take, from turn `first` on. A device that works
    /// beside the host has a clock of its own and answers from that; the default is the host's.
    ///
    /// # Errors
    /// Whatever the kernel reports.
    fn time(&mut self, clock: &dyn Clock, first: usize, launches: u32) -> Result<u64> {
        host_time(self, clock, first, launches)
    }
}

/// Nanoseconds of `launches` launches by the host's clock.
///
/// # Errors
/// Whatever the kernel reports.
pub fn host_time<L: Launch + ?Sized>(
    kernel: &mut L,
    clock: &dyn Clock,
    first: usize,
    launches: u32,
) -> Result<u64> {
    let before = clock.now_ns();
    for turn in (first..).take(launches as usize) {
        kernel.launch(turn)?;
    }
    Ok(clock.now_ns().saturating_sub(before))
}

impl<F: FnMut(usize) -> Result<()>> Launch for F {
    fn launch(&mut self, turn: usize) -> Result<()> {
        self(turn)
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A clock moved by the kernels themselves.

    use std::cell::Cell;
    use std::rc::Rc;

    use super::Clock;

    /// Made-up time; clones show the same time.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct FakeClock(Rc<Cell<u64>>);

    impl FakeClock {
        pub(crate) fn advance(&self, ns: u64) {
            self.0.set(self.0.get() + ns);
        }
    }

    impl Clock for FakeClock {
        fn now_ns(&self) -> u64 {
            self.0.get()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_does_not_go_back() {
        let clock = MonotonicClock::default();
        let times: Vec<u64> = (0..1000).map(|_| clock.now_ns()).collect();
        assert!(times.is_sorted());
    }
}
