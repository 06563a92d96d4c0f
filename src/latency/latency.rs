//! A latency never travels without its interval and its origin.

use serde::{Deserialize, Serialize};

use crate::units::Seconds;

pub use crate::latency::source::Source;

/// A point estimate of a duration with a 95 % interval and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The estimate.
    pub value: Seconds,
    /// Lower end of the 95 % interval.
    pub lo: Seconds,
    /// Upper end of the 95 % interval.
    pub hi: Seconds,
    /// Where it comes from.
    pub source: Source,
}

impl Latency {
    /// Half the width of the interval in units of the natural logarithm, divided by 1.96:
    /// the standard deviation of a log-normal draw of this latency.
    pub fn log_sigma(&self) -> f64 {
        ((self.hi.0 / self.lo.0).ln() / (2.0 * 1.96)).max(0.0)
    }
}

/// One MoE layer execution whose duration is asked for.
///
/// Tokens alone are no key: time follows the number of experts whose weights are read and the
/// rows of the busiest one. Fractional values are expectations over routings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerQuery {
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width of one expert (on this device, after tensor parallel division).
    pub inter: usize,
    /// Experts on this device.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Whether the expert is gated (three matrices) or not (two).
    pub gated: bool,
    /// Bits of one stored expert weight, scales included.
    pub weight_bits: f64,
    /// Tokens entering the layer.
    pub tokens: f64,
    /// Distinct experts that receive at least one row.
    pub active_experts: f64,
    /// Rows of the busiest expert.
    pub max_rows: f64,
}

impl LayerQuery {
    /// Bytes that the layer cannot avoid moving: the active experts' weights, and activations in
    /// and out in 16 bits.
    pub fn bytes(&self) -> f64 {
        let matrices = if self.gated { 3.0 } else { 2.0 };
        let expert = matrices * self.hidden as f64 * self.inter as f64 * self.weight_bits / 8.0;
        self.active_experts * expert + 2.0 * self.tokens * self.hidden as f64 * 2.0
    }

    /// Floating-point operations of the grouped products.
    pub fn flops(&self) -> f64 {
        let matrices = if self.gated { 3.0 } else { 2.0 };
        let rows = self.tokens * self.top_k as f64;
        2.0 * matrices * self.hidden as f64 * self.inter as f64 * rows
    }

    /// Whether arithmetic takes longer than moving the bytes.
    pub fn is_bound_by_arithmetic(&self, rates: &Ceilings) -> bool {
        self.flops() / rates.gemm_flops_per_s > self.bytes() / rates.read_bytes_per_s
    }

    /// The least time that the ceilings allow: the longer of moving the bytes and doing the work.
    pub fn roofline(&self, rates: &Ceilings) -> Seconds {
        Seconds(self.bytes() / rates.read_bytes_per_s)
            .max(Seconds(self.flops() / rates.gemm_flops_per_s))
    }
}

/// Anything that can say how long a MoE layer and its dense neighbours take on one device:
/// a measured profile or a roofline.
pub trait LatencyModel: Send + Sync {
    /// Duration of router, align, grouped GEMMs, activation and combine of one MoE layer.
    ///
    /// # Errors
    /// [`crate::Error::Unfit`] when the query lies outside what may be answered.
    fn moe_layer(&self, query: &LayerQuery) -> crate::Result<Latency>;

    /// What the device can do, for the dense parts of a step.
    fn ceilings(&self) -> Ceilings;
}

/// Measured (or published, for a roofline) rates of a device that the dense parts are priced by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Read bandwidth in bytes per second that a streaming kernel reaches.
    pub read_bytes_per_s: f64,
    /// Dense GEMM rate in FLOP/s that a large product reaches in the serving dtype.
    pub gemm_flops_per_s: f64,
    /// Fixed cost of one layer of one step (launches, norms, small kernels), in seconds.
    pub layer_overhead_s: f64,
    /// Where these rates come from.
    pub source: Source,
}
