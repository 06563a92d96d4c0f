//! What quantities can be: one table of bounds for every number that comes from outside.
//!
//! A bound is far outside what is built or sold today, and far inside what would make a price or a size
//! meaningless. A number beyond it is a slip of units or of a digit, or made up.

use crate::{Error, Result};

/// A kind of number, in the unit that its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Time of one kernel launch or step, in seconds.
    LatencySeconds,
    /// Any other duration, in seconds.
    DurationSeconds,
    /// Price of one device, in dollars per hour.
    UsdPerHour,
    /// Price of tokens, in dollars per million.
    UsdPerMillionTokens,
    /// Memory of one device, in bytes.
    MemoryBytes,
    /// Read or link bandwidth of one device, in bytes per second.
    BytesPerSecond,
    /// Arithmetic rate of one device, in FLOP/s.
    FlopsPerSecond,
    /// FLOPs of a training run.
    TrainFlops,
    /// Parameters of a model.
    Parameters,
    /// Tokens of a training run or of a lifetime of serving.
    Tokens,
    /// Requests per second.
    RequestsPerSecond,
    /// Requests at a time.
    Concurrency,
    /// Tokens of one request, prompt or answer.
    RequestTokens,
    /// Loss, in nats per token.
    LossNats,
    /// A ratio of two sizes of a model, of two rates or of two budgets.
    Ratio,
    /// Bits of one weight.
    Bits,
    /// Experts of a layer.
    Experts,
    /// A share of a whole.
    Share,
    /// Confidence of an interval.
    Confidence,
    /// A relative error or noise floor.
    RelativeError,
    /// Rounds of a measurement.
    Rounds,
    /// Devices of a deployment.
    Devices,
    /// Seconds since 1970-01-01 UTC.
    UnixSeconds,
    /// Load average of a machine.
    LoadAverage,
}

/// Lowest and highest value of a quantity, with the reason for both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// What messages call it.
    pub name: &'static str,
    /// Lowest value.
    pub low: f64,
    /// Highest value.
    pub high: f64,
    /// Why these.
    pub why: &'static str,
}

const fn bounds(name: &'static str, low: f64, high: f64, why: &'static str) -> Bounds {
    Bounds { name, low, high, why }
}

impl Quantity {
    /// Its bounds.
    pub const fn bounds(self) -> Bounds {
        match self {
            Self::LatencySeconds => {
                bounds("latency, s", 1e-9, 1e4, "no launch ends within a nanosecond or lasts hours")
            }
            Self::DurationSeconds => bounds("duration, s", 0.0, 1e9, "30 years"),
            Self::UsdPerHour => {
                bounds("price, USD/h", 0.0, 1e4, "a rack of 72 GPUs is rented for some hundred")
            }
            Self::UsdPerMillionTokens => bounds(
                "price, USD per million tokens",
                0.0,
                1e6,
                "the dearest models cost some hundred",
            ),
            Self::MemoryBytes => bounds("memory, bytes", 1e6, 1e14, "a microcontroller; 100 TB"),
            Self::BytesPerSecond => {
                bounds("bandwidth, bytes/s", 1e6, 1e15, "a serial line; 50 times the HBM of today")
            }
            Self::FlopsPerSecond => {
                bounds("rate, FLOP/s", 1e6, 1e18, "an interpreter; 50 times the fp4 peak of today")
            }
            Self::TrainFlops => {
                bounds("training, FLOP", 1e9, 1e32, "a toy; a million times today's runs")
            }
            Self::Parameters => {
                bounds("parameters", 1.0, 1e17, "ten thousand times today's models")
            }
            Self::Tokens => bounds("tokens", 1.0, 1e20, "a million times the text of the web"),
            Self::RequestsPerSecond => {
                bounds("rate, requests/s", 1e-9, 1e9, "once in 30 years; all people")
            }
            Self::Concurrency => {
                bounds("requests at a time", 1e-9, 1e9, "a rate of once; all people")
            }
            Self::RequestTokens => bounds(
                "tokens of a request",
                1.0,
                1e9,
                "a hundred times the longest context of today",
            ),
            Self::Ratio => bounds("ratio", 1e-6, 1e6, "a million to one either way"),
            Self::Bits => bounds("bits of a weight", 0.1, 64.0, "a tenth of a bit; a double"),
            Self::Experts => bounds("experts", 1.0, 1e6, "a thousand times today's models"),
            Self::LossNats => {
                bounds("loss, nats", 0.0, 20.0, "a uniform guess among 5e8 tokens has 20")
            }
            Self::Share => bounds("share", 0.0, 1.0, "a part of a whole"),
            Self::Confidence => {
                bounds("confidence", 0.5, 1.0, "less is a coin; an interval is never sure")
            }
            Self::RelativeError => {
                bounds("relative error", 0.0, 100.0, "a hundred times the value")
            }
            Self::Rounds => bounds("rounds", 0.0, 10_000.0, "this program stops at 20"),
            Self::Devices => bounds("devices", 1.0, 1e7, "more than are made in a year"),
            Self::UnixSeconds => bounds("time, Unix seconds", 0.0, 4e9, "1970; 2096"),
            Self::LoadAverage => bounds("load average", 0.0, 1e6, "more threads than a kernel has"),
        }
    }

    /// Checks a number out of a file.
    ///
    /// # Errors
    /// A phrase with the number, its bounds and their reason.
    pub fn check(self, value: f64) -> Result<(), String> {
        let Bounds { name, low, high, why } = self.bounds();
        if value.is_finite() && (low..=high).contains(&value) {
            return Ok(());
        }
        Err(format!("{name}: {value:e} does not lie between {low:e} and {high:e} ({why})"))
    }

    /// Checks a number that a flag or an argument gives.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the flag.
    pub fn check_flag(self, flag: &str, value: f64) -> Result<()> {
        self.check(value).map_err(|reason| Error::usage(flag, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn today_s_devices_and_models_lie_far_inside() {
        for (quantity, value) in [
            (Quantity::UsdPerHour, 98.32),
            (Quantity::MemoryBytes, 288e9),
            (Quantity::BytesPerSecond, 8e12),
            (Quantity::FlopsPerSecond, 2e16),
            (Quantity::TrainFlops, 5e25),
            (Quantity::Parameters, 1e12),
            (Quantity::Tokens, 3.6e13),
            (Quantity::LossNats, 1.69),
            (Quantity::Confidence, 0.95),
        ] {
            quantity.check(value).unwrap();
            let Bounds { high, .. } = quantity.bounds();
            quantity.check(high * 1.01).unwrap_err();
        }
    }

    #[test]
    fn what_is_no_number_is_refused_with_the_bounds() {
        for value in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let error = Quantity::UsdPerHour.check_flag("--price", value).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("1e4"), "{error}");
        }
    }
}
