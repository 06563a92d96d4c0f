//! A latency never travels without its spread, its floor and its source.

use serde::{Deserialize, Serialize};

use crate::stats::Z95;
use crate::units::Seconds;

/// Where a latency comes from, from most to least trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A measured cell with exactly this key.
    Measured,
    /// Between measured cells of the same kernel and shape.
    Interpolated,
    /// From measured cells of another shape, another layout or another device.
    Transferred,
    /// Published peaks with assumed efficiencies: an order of magnitude.
    Roofline,
}

impl Source {
    /// The source of a result made of two parts: the less trusted one.
    #[must_use]
    pub fn combine(self, other: Self) -> Self {
        self.max(other)
    }

    /// The word that tables and JSON use.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Interpolated => "interpolated",
            Self::Transferred => "transferred",
            Self::Roofline => "roofline",
        }
    }
}

/// The duration of one operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Point estimate, the centre of the spread.
    pub value: Seconds,
    /// Standard deviation of ln(duration).
    pub log_sigma: f64,
    /// Least time at the device's peaks; no draw goes below it.
    pub floor: Seconds,
    /// Share of the time during which arithmetic, not memory traffic, is the limit: 0 to 1.
    pub arithmetic: f64,
    /// How the value was obtained.
    pub source: Source,
    /// Which model of a stack answered; 0 outside a stack.
    pub origin: u8,
}

impl Latency {
    /// An operation with nothing to do.
    pub const ZERO: Self = Self {
        value: Seconds::ZERO,
        log_sigma: 0.0,
        floor: Seconds::ZERO,
        arithmetic: 0.0,
        source: Source::Measured,
        origin: 0,
    };

    /// Lower end of the 95 % interval, not below the floor.
    pub fn lo(&self) -> Seconds {
        (self.value * (-Z95 * self.log_sigma).exp()).max(self.floor.min(self.value))
    }

    /// Upper end of the 95 % interval.
    pub fn hi(&self) -> Seconds {
        self.value * (Z95 * self.log_sigma).exp()
    }
}
