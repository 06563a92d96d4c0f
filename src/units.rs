//! Physical and monetary quantities as types, so that seconds and bytes cannot be mixed up.
//!
//! Every value is stored in its SI or base unit as `f64`; [`std::fmt::Display`] picks a readable scale.
//! At the borders (JSON, TOML, FFI) a plain number travels under a field name that ends in its unit.
//!
//! ```
//! use moe_frontier::units::{Bytes, BytesPerSecond, Seconds};
//! let time: Seconds = Bytes(3.0e9) / BytesPerSecond(1.5e12);
//! assert_eq!(time.to_string(), "2.00 ms");
//! ```

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use serde::{Deserialize, Serialize};

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub f64);

        impl $name {
            /// Zero of this quantity.
            pub const ZERO: Self = Self(0.0);

            /// The bare number in the base unit.
            pub const fn get(self) -> f64 {
                self.0
            }

            /// Whether the number is finite (neither NaN nor infinite).
            pub const fn is_finite(self) -> bool {
                self.0.is_finite()
            }

            /// The larger of two quantities; a NaN loses.
            pub const fn max(self, other: Self) -> Self {
                Self(self.0.max(other.0))
            }

            /// The smaller of two quantities; a NaN loses.
            pub const fn min(self, other: Self) -> Self {
                Self(self.0.min(other.0))
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }

        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }

        impl Neg for $name {
            type Output = Self;
            fn neg(self) -> Self {
                Self(-self.0)
            }
        }

        impl Mul<f64> for $name {
            type Output = Self;
            fn mul(self, factor: f64) -> Self {
                Self(self.0 * factor)
            }
        }

        impl Mul<$name> for f64 {
            type Output = $name;
            fn mul(self, quantity: $name) -> $name {
                $name(self * quantity.0)
            }
        }

        impl Div<f64> for $name {
            type Output = Self;
            fn div(self, divisor: f64) -> Self {
                Self(self.0 / divisor)
            }
        }

        impl Div for $name {
            type Output = f64;
            fn div(self, other: Self) -> f64 {
                self.0 / other.0
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(values: I) -> Self {
                values.fold(Self::ZERO, Add::add)
            }
        }
    };
}

quantity!(
    /// A duration in seconds.
    Seconds
);
quantity!(
    /// An amount of memory or traffic in bytes; fractional because 4.25-bit weights exist.
    Bytes
);
quantity!(
    /// An amount of work in floating-point operations (a multiply-add counts as two).
    Flops
);
quantity!(
    /// An arithmetic rate in FLOP/s.
    FlopsPerSecond
);
quantity!(
    /// A bandwidth in bytes per second.
    BytesPerSecond
);
quantity!(
    /// A number of tokens.
    Tokens
);
quantity!(
    /// A token rate in tokens per second.
    TokensPerSecond
);
quantity!(
    /// An amount of money in US dollars.
    Usd
);
quantity!(
    /// The price of one device in US dollars per hour.
    UsdPerHour
);
quantity!(
    /// A serving price in US dollars per million tokens.
    UsdPerMillionTokens
);
quantity!(
    /// A cross-entropy loss in nats per token.
    Nats
);

/// Defines `$numerator / $rate = $quotient` and its two rearrangements.
macro_rules! rate {
    ($amount:ident, $rate:ident, $span:ident) => {
        impl Div<$rate> for $amount {
            type Output = $span;
            fn div(self, rate: $rate) -> $span {
                $span(self.0 / rate.0)
            }
        }

        impl Div<$span> for $amount {
            type Output = $rate;
            fn div(self, span: $span) -> $rate {
                $rate(self.0 / span.0)
            }
        }

        impl Mul<$span> for $rate {
            type Output = $amount;
            fn mul(self, span: $span) -> $amount {
                $amount(self.0 * span.0)
            }
        }
    };
}

rate!(Bytes, BytesPerSecond, Seconds);
rate!(Flops, FlopsPerSecond, Seconds);
rate!(Tokens, TokensPerSecond, Seconds);

impl Mul<Seconds> for UsdPerHour {
    type Output = Usd;
    fn mul(self, span: Seconds) -> Usd {
        Usd(self.0 * span.0 / 3600.0)
    }
}

impl Mul<Tokens> for UsdPerMillionTokens {
    type Output = Usd;
    fn mul(self, tokens: Tokens) -> Usd {
        Usd(self.0 * tokens.0 / 1e6)
    }
}

impl Div<Tokens> for Usd {
    type Output = UsdPerMillionTokens;
    fn div(self, tokens: Tokens) -> UsdPerMillionTokens {
        UsdPerMillionTokens(self.0 / tokens.0 * 1e6)
    }
}

impl Seconds {
    /// This duration in microseconds.
    pub fn as_us(self) -> f64 {
        self.0 * 1e6
    }

    /// This duration in milliseconds.
    pub fn as_ms(self) -> f64 {
        self.0 * 1e3
    }

    /// A duration given in milliseconds.
    pub fn from_ms(ms: f64) -> Self {
        Self(ms / 1e3)
    }

    /// A duration given in microseconds.
    pub fn from_us(us: f64) -> Self {
        Self(us / 1e6)
    }
}

/// Three significant digits with a scale suffix, for example `1.68 G`; `steps` are (factor, suffix), largest first.
fn scaled(value: f64, steps: &[(f64, &str)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (factor, suffix) = steps
        .iter()
        .copied()
        // 0.9995 would print as "1.00e3" of the smaller unit: round up to the next unit there.
        .find(|(factor, _)| value.abs() >= factor * 0.9995)
        .or_else(|| steps.last().copied())
        .unwrap_or((1.0, ""));
    let number = value / factor;
    // Beyond any use a number still has its place.
    if number.abs() >= 1e6 {
        return write!(f, "{number:.2e} {suffix}");
    }
    let decimals = match number.abs() {
        n if n >= 99.95 => 0,
        n if n >= 9.995 => 1,
        _ => 2,
    };
    write!(f, "{number:.decimals$} {suffix}")
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(self.0, &[(1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")], f)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: f64 = 1024.0;
        let steps = [(KIB * KIB * KIB, "GiB"), (KIB * KIB, "MiB"), (KIB, "KiB"), (1.0, "B")];
        scaled(self.0, &steps, f)
    }
}

impl fmt::Display for Flops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.abs() >= 1e15 {
            write!(f, "{:.2e} FLOP", self.0)
        } else {
            scaled(self.0, &[(1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1.0, "FLOP")], f)
        }
    }
}

impl fmt::Display for FlopsPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(self.0, &[(1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s")], f)
    }
}

impl fmt::Display for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(self.0, &[(1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s")], f)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(
            self.0,
            &[
                (1e12, "T tokens"),
                (1e9, "B tokens"),
                (1e6, "M tokens"),
                (1e3, "k tokens"),
                (1.0, "tokens"),
            ],
            f,
        )
    }
}

impl fmt::Display for TokensPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(self.0, &[(1e6, "Mtok/s"), (1e3, "ktok/s"), (1.0, "tok/s")], f)
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0;
        match value.abs() {
            v if v >= 1e15 => write!(f, "${value:.2e}"),
            v if v >= 1e9 => write!(f, "${:.2}B", value / 1e9),
            v if v >= 1e6 => write!(f, "${:.2}M", value / 1e6),
            v if v >= 1e4 => write!(f, "${:.1}k", value / 1e3),
            v if v >= 1e2 => write!(f, "${value:.0}"),
            _ => write!(f, "${value:.2}"),
        }
    }
}

impl fmt::Display for UsdPerHour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}/h", self.0)
    }
}

impl fmt::Display for UsdPerMillionTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.abs() >= 1e9 {
            return write!(f, "${:.2e}/M", self.0);
        }
        let decimals = if self.0.abs() >= 99.95 {
            0
        } else if self.0.abs() >= 9.995 {
            2
        } else {
            3
        };
        write!(f, "${:.decimals$}/M", self.0)
    }
}

impl fmt::Display for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}", self.0)
    }
}

/// The whole part of a count that is kept as a real number; negative ones are 0, large ones saturate.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, far outside any count"
)]
pub(crate) const fn whole_part(value: f64) -> usize {
    value as usize
}

/// The nearest count; otherwise as [`whole_part`].
pub(crate) fn nearest_whole(value: f64) -> usize {
    whole_part(value.round())
}

/// A bare count with a scale suffix, for parameter counts: `46.7 B`.
pub fn count(value: f64) -> String {
    struct Count(f64);
    impl fmt::Display for Count {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            scaled(self.0, &[(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, "")], f)
        }
    }
    Count(value).to_string().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_divides_an_amount_into_a_duration() {
        assert_eq!(Bytes(1e12) / BytesPerSecond(2e12), Seconds(0.5));
        assert_eq!(Flops(1e12) / Seconds(0.5), FlopsPerSecond(2e12));
        assert_eq!(BytesPerSecond(2.0) * Seconds(3.0), Bytes(6.0));
    }

    #[test]
    fn an_hour_costs_the_hourly_price() {
        assert_eq!(UsdPerHour(1.69) * Seconds(3600.0), Usd(1.69));
        assert_eq!(Usd(2.0) / Tokens(1e6), UsdPerMillionTokens(2.0));
        assert_eq!(UsdPerMillionTokens(2.0) * Tokens(5e5), Usd(1.0));
    }

    #[test]
    fn display_picks_the_scale() {
        assert_eq!(Seconds(2.5e-5).to_string(), "25.0 us");
        assert_eq!(Seconds(0.99999).to_string(), "1.00 s");
        assert_eq!(Bytes(80.0 * 1024.0 * 1024.0 * 1024.0).to_string(), "80.0 GiB");
        assert_eq!(FlopsPerSecond(9.89e14).to_string(), "989 TFLOP/s");
        assert_eq!(BytesPerSecond(3.35e12).to_string(), "3.35 TB/s");
        assert_eq!(count(46.703e9), "46.7 B");
        assert_eq!(Usd(5.576e6).to_string(), "$5.58M");
        assert_eq!(Tokens(1.5e9).to_string(), "1.50 B tokens");
    }
}
