//! One measured MoE layer execution and the ceilings of the run that it belongs to.

use serde::{Deserialize, Serialize};

use crate::constants::ACTIVATION_BYTES;
use crate::latency::query::MoeQuery;
use crate::units::Seconds;

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
        self.active_experts * expert + 2.0 * self.tokens * self.hidden as f64 * ACTIVATION_BYTES
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

impl From<&MoeQuery> for LayerQuery {
    /// The layer that the busiest device executes.
    fn from(query: &MoeQuery) -> Self {
        Self {
            hidden: query.hidden,
            inter: query.inter / query.tensor_parallel,
            experts: query.experts / query.expert_parallel,
            top_k: query.top_k,
            gated: query.gated,
            weight_bits: query.weight_bits,
            tokens: query.rows / query.top_k as f64,
            active_experts: query.active,
            max_rows: query.max_rows,
        }
    }
}

/// Measured rates of a device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Read bandwidth in bytes per second that a streaming kernel reaches.
    pub read_bytes_per_s: f64,
    /// Dense GEMM rate in FLOP/s that a large product reaches in the serving dtype.
    pub gemm_flops_per_s: f64,
    /// Fixed cost of one layer of one step (launches, norms, small kernels), in seconds.
    pub layer_overhead_s: f64,
}
