//! From a time on the tables' device to an answer on the device asked for.

use super::sigma;
use crate::latency::rates::{Arithmetic, Rates, Work, carried};
use crate::latency::source::{Latency, Source};
use crate::units::Seconds;

/// The device of the tables and the device asked for.
#[derive(Clone, Debug)]
pub(super) struct Carry {
    pub(super) from: Rates,
    pub(super) to: Rates,
    /// Whether they differ.
    pub(super) moved: bool,
}

/// A time on the tables' device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timed {
    pub(super) seconds: f64,
    pub(super) source: Source,
    /// Standard deviation of ln(time).
    pub(super) sigma: f64,
}

impl Carry {
    /// The answer for memory traffic and arithmetic.
    pub(super) fn answer(&self, timed: Timed, work: Work, arithmetic: Arithmetic) -> Latency {
        let value = if self.moved {
            carried(timed.seconds, work, arithmetic, &self.from, &self.to)
        } else {
            timed.seconds
        };
        Latency {
            floor: Seconds(self.to.floor(work, arithmetic).min(value)),
            arithmetic: self.to.arithmetic_share(work, arithmetic),
            ..self.labelled(value, timed)
        }
    }

    /// The answer for bytes over links.
    pub(super) fn linked(&self, timed: Timed, bytes: f64) -> Latency {
        let (before, after) = (bytes / self.from.link, bytes / self.to.link);
        let value = match self.moved {
            true if timed.seconds > before => timed.seconds - before + after,
            true => timed.seconds * after / before,
            false => timed.seconds,
        };
        Latency { floor: Seconds(after.min(value)), ..self.labelled(value, timed) }
    }

    fn labelled(&self, value: f64, timed: Timed) -> Latency {
        let (source, log_sigma) = if self.moved {
            (Source::Transferred, sigma::together(&[timed.sigma, sigma::DEVICE]))
        } else {
            (timed.source, timed.sigma)
        };
        Latency { value: Seconds(value), log_sigma, source, ..Latency::ZERO }
    }
}
