//! Time of one step of a serving engine that carries decoding sequences and a share of prefill.
//!
//! In steady state every step finishes `B / O` requests and admits as many, so it carries
//! `B x I / O` prompt tokens beside its `B` decoding ones (chunked prefill spread evenly). Each part
//! is priced on its own: MoE layers from the latency model, everything else as
//! `max(bytes / bandwidth, FLOPs / rate)` with the profile's ceilings.

use crate::Result;
use crate::latency::latency::LatencyModel;
use crate::latency::{Ceilings, Source};
use crate::serving::{Geometry, LoadModel};
use crate::units::Seconds;

/// All-reduce between the devices of one replica: `latency + bytes / bandwidth`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Fixed time of one all-reduce.
    pub latency: Seconds,
    /// Bytes per second of message size (ring factors are inside).
    pub bytes_per_s: f64,
}

/// Attention and MoE output are each reduced over the ranks once per layer.
const ALL_REDUCES_PER_LAYER: f64 = 2.0;
/// Activations travel and are stored in 16 bits.
const ACTIVATION_BYTES: f64 = 2.0;

/// Prompt and output lengths of the traffic, in tokens per request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// Prompt tokens (ISL).
    pub input: f64,
    /// Generated tokens (OSL).
    pub output: f64,
}

impl Lengths {
    /// Context that a decoding sequence sees on average: the prompt and half of its output.
    pub fn mean_context(&self) -> f64 {
        self.input + self.output / 2.0
    }

    /// Tokens cached for one request when it ends.
    pub fn held(&self) -> f64 {
        self.input + self.output
    }
}

/// A model on `devices` tensor-parallel devices of one kind.
pub struct Replica<'a> {
    /// Sizes of the model.
    pub geometry: Geometry,
    /// Devices that share the weights.
    pub devices: usize,
    /// What a MoE layer costs.
    pub latency: &'a dyn LatencyModel,
    /// Experts hit and rows of the busiest one.
    pub load: &'a LoadModel,
    /// The same at the far end of the range of routing skew.
    pub skewed: &'a LoadModel,
    /// Link between the devices.
    pub link: Link,
}

/// Time of one step by part, all layers together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// MoE layers (router to combine).
    pub experts: Seconds,
    /// The same under the far end of the range of routing skew.
    pub experts_skewed: Seconds,
    /// Projections, dense and shared feed-forward blocks, output head.
    pub dense: Seconds,
    /// Attention over cached keys and values.
    pub attention: Seconds,
    /// Fixed cost per layer.
    pub overhead: Seconds,
    /// All-reduces.
    pub communication: Seconds,
    /// Part of `experts` and `dense` during which arithmetic, not weight traffic, is the limit.
    pub compute_bound: Seconds,
    /// Standard deviation of ln(`experts`) from the profile.
    pub experts_log_sigma: f64,
    /// Where `experts` comes from.
    pub source: Source,
}

impl StepTime {
    /// The whole step.
    pub fn total(&self) -> Seconds {
        self.experts + self.dense + self.attention + self.overhead + self.communication
    }
}

impl Replica<'_> {
    /// One step with `sequences` decoding and `prefill` prompt tokens.
    ///
    /// # Errors
    /// When the latency model cannot answer for the layer's shape.
    pub fn step(&self, sequences: f64, prefill: f64, lengths: &Lengths) -> Result<StepTime> {
        let g = &self.geometry;
        let rates = self.latency.ceilings();
        let tokens = sequences + prefill;
        let query = g.layer_query(self.load, tokens, self.devices);
        let layer = self.latency.moe_layer(&query)?;
        let skewed = self.latency.moe_layer(&g.layer_query(self.skewed, tokens, self.devices))?;
        let experts = layer.value * g.moe_layers;
        let (dense, dense_compute) = self.dense(&rates, sequences, tokens);
        let overhead = Seconds(rates.layer_overhead_s * g.layers);
        let is_compute_bound = query.is_bound_by_arithmetic(&rates);
        let moe_compute = if is_compute_bound { experts } else { Seconds::ZERO };
        Ok(StepTime {
            experts,
            experts_skewed: skewed.value * g.moe_layers,
            dense,
            attention: self.attention(&rates, sequences, prefill, lengths),
            overhead,
            communication: self.communication(tokens),
            compute_bound: moe_compute + dense_compute,
            experts_log_sigma: layer.log_sigma(),
            source: layer.source,
        })
    }

    /// Time of all dense products of a step, and how much of it is bound by arithmetic.
    fn dense(&self, rates: &Ceilings, sequences: f64, tokens: f64) -> (Seconds, Seconds) {
        let g = &self.geometry;
        let shared = g.matrices() * g.hidden * g.shared_inter;
        let dense_ffn = g.matrices() * g.hidden * g.dense_inter;
        // (parameters of one product, how many of them, tokens through it)
        let products = [
            (g.attention_params, g.layers, tokens),
            (shared, g.moe_layers, tokens),
            (dense_ffn, g.layers - g.moe_layers, tokens),
            // Only the last position of a prompt needs logits; those are the decoding sequences.
            (g.vocab_params(), 1.0, sequences),
        ];
        let mut total = (Seconds::ZERO, Seconds::ZERO);
        for (params, times, tokens) in products {
            let per_device = params / self.devices as f64;
            let bytes = per_device * g.dense_bits / 8.0;
            let memory = Seconds(bytes / rates.read_bytes_per_s * times);
            let compute = Seconds(2.0 * per_device * tokens / rates.gemm_flops_per_s * times);
            total.0 += memory.max(compute);
            if compute > memory {
                total.1 += compute;
            }
        }
        total
    }

    /// Attention core: reading the cache of every decoding sequence, and the prompts' own scores.
    fn attention(
        &self,
        rates: &Ceilings,
        sequences: f64,
        prefill: f64,
        lengths: &Lengths,
    ) -> Seconds {
        let g = &self.geometry;
        let context = lengths.mean_context();
        let splits = self.devices.min(g.kv_splits) as f64;
        let bytes = sequences * context * g.kv_bytes_per_token().0 / splits;
        // Causal: a prompt token sees half of its prompt on average.
        let pairs = sequences * context + prefill * lengths.input / 2.0;
        let flops = pairs * g.attention_flops * g.layers / self.devices as f64;
        Seconds(bytes / rates.read_bytes_per_s).max(Seconds(flops / rates.gemm_flops_per_s))
    }

    fn communication(&self, tokens: f64) -> Seconds {
        if self.devices == 1 {
            return Seconds::ZERO;
        }
        let g = &self.geometry;
        let bytes = tokens * g.hidden * ACTIVATION_BYTES;
        let one = self.link.latency + Seconds(bytes / self.link.bytes_per_s);
        one * (ALL_REDUCES_PER_LAYER * g.layers)
    }
}
