//! What a serving engine adds to its kernels: the calibrated constants of the serving model.
//!
//! Kernel tables time products, attention and collectives. Norms, rotary embeddings, quantisation of
//! activations and residual sums are in no table and come once per layer; scheduling, sampling and
//! the hand-over to the host once per step and once per sequence; the front end once per request.

use serde::{Deserialize, Serialize};

use crate::config::layers::{LayerGroup, Mixer};
use crate::config::{DType, DeviceSpec, MoeModel};
use crate::constants::scheduler;
use crate::error::in_range;
use crate::serving::{Speculation, StepLoad};

/// Experts of at most so many bits count as 8 bits: the scales of block formats are inside.
const NARROW_BITS: f64 = 8.5;

/// Which format an engine keeps its cache in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheFormat {
    /// What the model's config says.
    Published,
    /// 8 bits beside experts of 8 bits or fewer, else what the config says.
    Narrow,
    /// What a flag says.
    Set(DType),
}

/// Constants of one engine on one kind of host, in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineCosts {
    /// Factor on all kernel times: 1 is what the tables say.
    pub kernel_factor: f64,
    /// Further factor on the time in which arithmetic is the limit: tables are timed in short
    /// bursts, servers run for minutes against their power limit, and what is in no table
    /// (activations, norms) grows with the tokens too.
    pub arithmetic_factor: f64,
    /// Fixed time of a step.
    pub step_s: f64,
    /// Small kernels of one layer.
    pub layer_s: f64,
    /// Host work per decoding sequence and step.
    pub sequence_s: f64,
    /// From a request's arrival to the engine and back: tokenising, HTTP, detokenising.
    pub request_s: f64,
    /// Launch cost of one layer of a step with prompt tokens, which no captured graph replays; it
    /// hides behind the kernels when they take longer.
    pub launch_s: f64,
    /// Launch cost of one layer of a decode step: next to nothing where a captured graph is replayed,
    /// the step itself on a host that launches every kernel.
    pub decode_launch_s: f64,
    /// Further small kernels of a layer whose mixer is in no table: recurrent mixers, indexers of
    /// sparse attention.
    pub mixer_s: f64,
    /// What such a layer takes further for each prompt token.
    pub mixer_token_s: f64,
    /// A norm over all heads of a layer whose heads several ranks share: an exchange of squares, and
    /// kernels that are not fused.
    pub wide_norm_s: f64,
    /// Steps from a first token's computation to its delivery, and of waiting for a running one.
    pub first_steps: f64,
    /// Factor on the time of a prompt's own steps and of those before it.
    pub prompt_factor: f64,
    /// Factor on the wait of prompts that all arrive at once.
    pub burst_factor: f64,
    /// Most prompt tokens in one step.
    pub chunk_tokens: f64,
    /// Most sequences at a time.
    pub max_sequences: f64,
    /// Whether prompt tokens ride on decode steps (chunked prefill) or stop them.
    pub mixed: bool,
    /// Format of the cache.
    pub cache: CacheFormat,
    /// Tokens that each decode step drafts and checks besides its own.
    pub speculation: Speculation,
    /// Share of the prompt tokens whose cache is found and that are not computed again.
    pub prefix_hit: f64,
    /// Copies of busy experts, over all expert-parallel ranks (expert-parallel load balancing).
    #[serde(default)]
    pub redundant_experts: usize,
    /// Whether a step runs as two halves, one exchanging tokens while the other computes.
    #[serde(default)]
    pub overlap: bool,
}

impl EngineCosts {
    /// The defaults of an engine. Times are one set for all engines, fitted to the open server rows
    /// of all of them ([accuracy page](../../../reports/accuracy.md)); engines differ in whether
    /// prompts ride on decode steps. Mixers without tables are known from Qwen3.5 and GLM-5 alone, a
    /// norm over all heads from MiniMax-M2.5 (B200, vLLM 0.19: 2.1 ms a step on two and on four ranks
    /// more than on one).
    pub fn of(engine: &str) -> Self {
        let [request_s, first_steps, prompt_factor, burst_factor] = first_token(engine);
        Self {
            // Kernels of a captured graph overlap a little; tables time them alone.
            kernel_factor: 0.95,
            arithmetic_factor: 1.5,
            step_s: 0.6e-3,
            layer_s: 5e-6,
            sequence_s: 4e-6,
            request_s,
            launch_s: 150e-6,
            decode_launch_s: 5e-6,
            mixer_s: 60e-6,
            mixer_token_s: 0.2e-6,
            wide_norm_s: 35e-6,
            first_steps,
            prompt_factor,
            burst_factor,
            chunk_tokens: scheduler::CHUNK_TOKENS,
            max_sequences: scheduler::MAX_SEQUENCES,
            // SGLang runs prompts in steps of their own unless told otherwise.
            mixed: engine != "sglang",
            cache: if engine == "trtllm" { CacheFormat::Narrow } else { CacheFormat::Published },
            speculation: Speculation::NONE,
            prefix_hit: 0.0,
            redundant_experts: 0,
            overlap: false,
        }
    }

    /// This program's own kernels without a server around them: each layer costs what the profile
    /// measured for launching its small kernels.
    pub const fn bare(layer_s: f64) -> Self {
        Self {
            kernel_factor: 1.0,
            arithmetic_factor: 1.0,
            step_s: 0.0,
            layer_s,
            sequence_s: 0.0,
            request_s: 0.0,
            launch_s: 0.0,
            decode_launch_s: 0.0,
            mixer_s: 0.0,
            mixer_token_s: 0.0,
            wide_norm_s: 0.0,
            first_steps: 0.5,
            prompt_factor: 1.0,
            burst_factor: 1.0,
            chunk_tokens: scheduler::SMALL_CHUNK_TOKENS,
            max_sequences: 4096.0,
            mixed: true,
            cache: CacheFormat::Published,
            speculation: Speculation::NONE,
            prefix_hit: 0.0,
            redundant_experts: 0,
            overlap: false,
        }
    }

    /// The same on a device: vLLM admits less where the device is not of the large kind (its rule:
    /// 70 GiB or more, and no A100). Published recipes of all servers keep the cache in 8 bits on
    /// devices with 4-bit arithmetic, as TensorRT-LLM's checkpoints do everywhere.
    pub fn on(mut self, engine: &str, device: &DeviceSpec) -> Self {
        let is_server = ["vllm", "sglang", "trtllm"].contains(&engine);
        let has_recipe = is_server && device.flops_per_s.contains_key(&DType::Nvfp4);
        if has_recipe && self.cache == CacheFormat::Published {
            self.cache = CacheFormat::Narrow;
        }
        let large = device.memory_bytes >= scheduler::LARGE_DEVICE_BYTES
            && !device.name.to_lowercase().contains("a100");
        if engine == "vllm" && !large {
            return Self {
                chunk_tokens: scheduler::SMALL_CHUNK_TOKENS,
                max_sequences: scheduler::SMALL_MAX_SEQUENCES,
                ..self
            };
        }
        self
    }

    /// Checks the constants that a calibration may have moved, and the settings.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for a kernel factor that no engine has, or shares outside 0 to 1.
    pub fn validate(&self) -> crate::Result<()> {
        in_range("kernel factor", self.kernel_factor, 0.05, 20.0)?;
        in_range("--prefix-hit", self.prefix_hit, 0.0, 1.0)?;
        self.speculation.validate()
    }

    /// Format that the cache of a model is kept in.
    pub fn cache(&self, model: &MoeModel) -> DType {
        match self.cache {
            CacheFormat::Set(format) => format,
            CacheFormat::Narrow if model.expert_bits() <= NARROW_BITS => DType::Fp8,
            CacheFormat::Narrow | CacheFormat::Published => model.kv_dtype,
        }
    }

    /// Steps that one prompt takes.
    pub fn chunks(&self, input: f64) -> f64 {
        (self.computed(input) / self.chunk_tokens).ceil().max(1.0)
    }

    /// Tokens of a prompt that are computed; the last one always is.
    pub fn computed(&self, input: f64) -> f64 {
        (input * (1.0 - self.prefix_hit)).max(input.min(1.0))
    }

    /// What kernels of `seconds` table time take, of which `arithmetic` are limited by arithmetic.
    pub fn kernel_time(&self, seconds: f64, arithmetic: f64) -> f64 {
        self.kernel_factor * (seconds + (self.arithmetic_factor - 1.0) * arithmetic)
    }

    /// The engine's own share of a step of `layers` whose kernels take `kernels` seconds.
    pub fn overhead(&self, layers: &Layers, load: &StepLoad, kernels: f64) -> f64 {
        let mixer = self.mixer_s + self.mixer_token_s * load.prompt_tokens;
        let device = kernels
            + self.layer_s * layers.all
            + mixer * layers.unmeasured
            + self.wide_norm_s * layers.wide_norms;
        let each = if load.prompt_tokens > 0.0 { self.launch_s } else { self.decode_launch_s };
        let launch = each * (layers.all + (MOE_LAUNCHES - 1.0) * layers.moe);
        device.max(launch) - kernels + self.step_s + self.sequence_s * load.sequences
    }
}

/// Layers of a model, for what the engine does once per layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layers {
    /// All of them.
    pub all: f64,
    /// Those with routed experts.
    pub moe: f64,
    /// Those whose mixer has kernels that no table holds.
    pub unmeasured: f64,
    /// Those that norm over heads on several ranks.
    pub wide_norms: f64,
}

/// Front end in seconds, steps until delivery, factors on prompts and on bursts: fitted to the times
/// to first token of the open server rows of each engine ([accuracy
/// page](../../../reports/accuracy.md)).
fn first_token(engine: &str) -> [f64; 4] {
    match engine {
        "vllm" => [8e-3, 1.9, 0.95, 1.0],
        "sglang" => [0.15, 3.0, 1.0, 3.0],
        "trtllm" => [10e-3, 9.0, 0.8, 0.7],
        _ => [20e-3, 2.0, 1.0, 1.0],
    }
}

impl Layers {
    /// The same run so often.
    pub(super) fn repeated(self, times: f64) -> Self {
        let Self { all, moe, unmeasured, wide_norms } = self;
        Self {
            all: all * times,
            moe: moe * times,
            unmeasured: unmeasured * times,
            wide_norms: wide_norms * times,
        }
    }

    /// The layers of a model with heads over some ranks.
    pub fn of(model: &MoeModel, tensor_parallel: usize) -> Self {
        let moe = if model.is_dense() { 0 } else { model.moe_layers() };
        let groups = model.layer_groups();
        let count = |which: &dyn Fn(&LayerGroup) -> bool| {
            groups.iter().filter(|g| which(g)).map(|g| g.layers as f64).sum::<f64>()
        };
        let wide = |g: &LayerGroup| matches!(&g.mixer, Mixer::Attention(a) if a.wide_norm);
        let unmeasured = |group: &LayerGroup| match &group.mixer {
            Mixer::None => false,
            Mixer::Attention(attention) => attention.indexer.is_some(),
            Mixer::Mamba(_) | Mixer::Linear(_) | Mixer::ShortConv { .. } => true,
        };
        Self {
            all: model.num_layers as f64,
            moe: moe as f64,
            unmeasured: count(&unmeasured),
            wide_norms: if tensor_parallel > 1 { count(&wide) } else { 0.0 },
        }
    }
}

/// Launches of a MoE layer relative to those of a dense one: top-k, sorting, two grouped products
/// and a sum replace two products. Servers without graphs spend 0.32 ms on a layer of Llama-3.1-8B and
/// 0.83-0.93 ms on one of Mixtral-8x7B or Qwen3-30B-A3B (vllm-cost-meter, rows of `SGLang` at 1 req/s).
const MOE_LAUNCHES: f64 = 2.6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::preset;

    const DENSE: Layers = Layers { all: 32.0, moe: 0.0, unmeasured: 0.0, wide_norms: 0.0 };

    #[test]
    fn a_norm_over_all_heads_costs_only_where_ranks_share_them() {
        let model = preset::load("MiniMax-M2.5").unwrap().model;
        let of = |ranks| Layers::of(&model, ranks).wide_norms;
        assert!(of(1) < 1e-12 && (of(4) - 62.0).abs() < 1e-12);
        let mixtral = preset::load("mixtral-8x7b").unwrap().model;
        assert!(Layers::of(&mixtral, 4).wide_norms < 1e-12);
    }

    #[test]
    fn launches_hide_behind_long_kernels_and_show_behind_short_ones() {
        let costs = EngineCosts::of("vllm");
        let load =
            StepLoad { sequences: 0.0, context: 0.0, prompt_tokens: 10.0, prompt_length: 10.0 };
        let long = costs.overhead(&DENSE, &load, 1.0);
        assert!((long - 32.0 * costs.layer_s - costs.step_s).abs() < 1e-12);
        let short = costs.overhead(&DENSE, &load, 1e-6);
        assert!((short + 1e-6 - 32.0 * costs.launch_s - costs.step_s).abs() < 1e-12);
        let decode = StepLoad { prompt_tokens: 0.0, sequences: 100.0, ..load };
        let unrolled = EngineCosts { decode_launch_s: 1e-3, ..costs.clone() };
        let moe = Layers { moe: 32.0, ..DENSE };
        let ratio = (unrolled.overhead(&moe, &decode, 1e-6) - 0.6e-3 - 0.4e-3)
            / (unrolled.overhead(&DENSE, &decode, 1e-6) - 0.6e-3 - 0.4e-3);
        assert!((ratio - MOE_LAUNCHES).abs() < 1e-3, "{ratio}");
        assert!(
            (costs.overhead(&DENSE, &decode, 1e-6) - 32.0 * 5e-6 - 0.6e-3 - 0.4e-3).abs() < 1e-9
        );
    }
}
