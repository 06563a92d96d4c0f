//! The fitted constants as deviations from an engine's defaults, and how far they are known.

use serde::{Deserialize, Serialize};

use crate::serving::EngineCosts;

/// Constants of the time per output token.
pub const TPOT: usize = 5;
/// Constants of the time to first token.
pub const TTFT: usize = 4;
/// Their names, for tables.
pub const NAMES: [&str; TPOT + TTFT] = [
    "kernel_factor",
    "arithmetic_factor",
    "layer_us",
    "sequence_us",
    "decode_launch_us",
    "request_ms",
    "first_steps",
    "prompt_factor",
    "burst_factor",
];

/// Logarithms of constants over their defaults, with covariances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constants {
    /// Of the time per output token.
    pub tpot: [f64; TPOT],
    /// Its covariance.
    pub tpot_covariance: [[f64; TPOT]; TPOT],
    /// Of the time to first token.
    pub ttft: [f64; TTFT],
    /// Its covariance.
    pub ttft_covariance: [[f64; TTFT]; TTFT],
}

/// What constants of the time per output token make of an engine's defaults.
pub fn with_tpot(default: &EngineCosts, x: &[f64; TPOT]) -> EngineCosts {
    EngineCosts {
        kernel_factor: default.kernel_factor * x[0].exp(),
        arithmetic_factor: (default.arithmetic_factor * x[1].exp()).max(1.0),
        layer_s: default.layer_s * x[2].exp(),
        sequence_s: default.sequence_s * x[3].exp(),
        decode_launch_s: default.decode_launch_s * x[4].exp(),
        ..default.clone()
    }
}

/// What constants of the time to first token make of an engine's defaults.
pub fn with_ttft(default: &EngineCosts, x: &[f64; TTFT]) -> EngineCosts {
    EngineCosts {
        request_s: default.request_s * x[0].exp(),
        first_steps: default.first_steps * x[1].exp(),
        prompt_factor: default.prompt_factor * x[2].exp(),
        burst_factor: default.burst_factor * x[3].exp(),
        ..default.clone()
    }
}

impl Constants {
    /// What they make of an engine's defaults.
    pub fn costs(&self, default: &EngineCosts) -> EngineCosts {
        with_ttft(&with_tpot(default, &self.tpot), &self.ttft)
    }

    /// Widened by independent deviations of further levels.
    pub fn widened(mut self, tpot: &[f64; TPOT], ttft: &[f64; TTFT]) -> Self {
        for (p, sd) in tpot.iter().enumerate() {
            self.tpot_covariance[p][p] += sd * sd;
        }
        for (p, sd) in ttft.iter().enumerate() {
            self.ttft_covariance[p][p] += sd * sd;
        }
        self
    }

    /// Standard deviation of ln TPOT from slopes of it along the constants.
    pub fn tpot_log_sd(&self, slope: &[f64; TPOT]) -> f64 {
        quadratic(&self.tpot_covariance, slope).sqrt()
    }

    /// Values in the units of [`NAMES`] with standard deviations of their logarithms.
    pub fn values(&self, default: &EngineCosts) -> [(f64, f64); TPOT + TTFT] {
        let c = self.costs(default);
        let sd = |p: usize| {
            let variance = if p < TPOT {
                self.tpot_covariance[p][p]
            } else {
                self.ttft_covariance[p - TPOT][p - TPOT]
            };
            variance.max(0.0).sqrt()
        };
        let values = [
            c.kernel_factor,
            c.arithmetic_factor,
            c.layer_s * 1e6,
            c.sequence_s * 1e6,
            c.decode_launch_s * 1e6,
            c.request_s * 1e3,
            c.first_steps,
            c.prompt_factor,
            c.burst_factor,
        ];
        std::array::from_fn(|p| (values[p], sd(p)))
    }
}

fn quadratic<const P: usize>(matrix: &[[f64; P]; P], x: &[f64; P]) -> f64 {
    let sum: f64 = (0..P).flat_map(|i| (0..P).map(move |j| x[i] * matrix[i][j] * x[j])).sum();
    sum.max(0.0)
}
