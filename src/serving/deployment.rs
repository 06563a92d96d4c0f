//! Time of one engine step of a model that exists, laid out over devices, from kernel times.
//!
//! Every product is priced apart: attention projections, attention core (windowed layers apart),
//! router, routed experts on the busiest rank, shared experts, dense layers, head, and collectives.
//! What no kernel explains is the engine's: see [`EngineCosts`]. The step waits for its busiest rank.

use crate::config::{Attention, DType, MoeModel};
use crate::error::in_range;
use crate::latency::{AttentionWork, KernelTimes, MoeWork, Source, Timed};
use crate::serving::{EngineCosts, Layers, LoadModel};
use crate::units::{Bytes, Seconds};
use crate::{Error, Result};

/// Activations travel and are stored in 16 bits.
const ACTIVATION_BYTES: f64 = 2.0;

/// How a model is spread over the devices of one replica.
///
/// Attention and MoE use the same devices: `attention_tp x attention_dp = moe_tp x moe_ep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Layout {
    /// Ranks that share each attention head group.
    pub attention_tp: usize,
    /// Groups that hold different sequences (attention data parallel).
    pub attention_dp: usize,
    /// Ranks that share each expert.
    pub moe_tp: usize,
    /// Groups that hold different experts.
    pub moe_ep: usize,
}

impl Layout {
    /// Plain tensor parallelism.
    pub const fn tensor(devices: usize) -> Self {
        Self { attention_tp: devices, attention_dp: 1, moe_tp: devices, moe_ep: 1 }
    }

    /// Devices of the replica.
    pub const fn devices(&self) -> usize {
        self.attention_tp * self.attention_dp
    }

    /// Checks that the layout divides the model.
    ///
    /// # Errors
    /// [`Error::Usage`] that names what does not divide.
    pub fn validate(&self, model: &MoeModel) -> Result<()> {
        let bad = |reason: String| Err(Error::usage("layout", reason));
        let parts = [self.attention_tp, self.attention_dp, self.moe_tp, self.moe_ep];
        if parts.contains(&0) || self.devices() != self.moe_tp * self.moe_ep {
            return bad(format!("{self}: attention and MoE use different numbers of devices"));
        }
        let heads = match model.attention {
            Attention::Gqa { heads, .. } | Attention::Mla { heads, .. } => heads,
        };
        if !heads.is_multiple_of(self.attention_tp) {
            return bad(format!("{heads} heads do not divide over {} ranks", self.attention_tp));
        }
        if !model.num_experts.is_multiple_of(self.moe_ep) {
            let experts = model.num_experts;
            return bad(format!("{experts} experts do not divide over {} ranks", self.moe_ep));
        }
        if !model.moe_intermediate_size.is_multiple_of(self.moe_tp) {
            let width = model.moe_intermediate_size;
            return bad(format!("expert width {width} does not divide over {}", self.moe_tp));
        }
        Ok(())
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tp{}", self.attention_tp)?;
        if self.attention_dp > 1 {
            write!(f, " dp{}", self.attention_dp)?;
        }
        if self.moe_ep > 1 {
            write!(f, " ep{}", self.moe_ep)?;
            if self.moe_tp > 1 {
                write!(f, " moe-tp{}", self.moe_tp)?;
            }
        }
        Ok(())
    }
}

/// A model on the devices of one replica.
#[derive(Clone, Copy, Debug)]
pub struct Deployment<'a> {
    /// The model, in the number formats it is served in.
    pub model: &'a MoeModel,
    /// How it is spread.
    pub layout: Layout,
    /// Kernel times of the device.
    pub times: &'a KernelTimes,
    /// What the engine adds.
    pub costs: &'a EngineCosts,
}

/// What one step carries, over all devices of the replica.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLoad {
    /// Decoding sequences.
    pub sequences: f64,
    /// Tokens that each of them attends to.
    pub context: f64,
    /// Prompt tokens.
    pub prompt_tokens: f64,
    /// Tokens of the prompts they belong to (attention of a prompt grows with its square).
    pub prompt_length: f64,
}

/// Time of one step by part, all layers together.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Breakdown {
    /// Routed experts with their top-k and combine.
    pub moe_s: f64,
    /// Projections, routers, shared experts, dense layers, head.
    pub dense_s: f64,
    /// Attention over the cache and of the prompts.
    pub attention_s: f64,
    /// Collectives.
    pub communication_s: f64,
    /// The engine's own time.
    pub overhead_s: f64,
    /// Part of the kernels' table time in which arithmetic is the limit (not a part of its own).
    pub arithmetic_s: f64,
    /// Least trusted source among parts of 5 % or more.
    pub source: Source,
}

impl Breakdown {
    /// The whole step.
    pub fn total(&self) -> Seconds {
        Seconds(self.kernels() + self.overhead_s)
    }

    /// Without the engine's own time.
    pub fn kernels(&self) -> f64 {
        self.moe_s + self.dense_s + self.attention_s + self.communication_s
    }
}

/// A part of a step that sums kernels and remembers the worst source.
#[derive(Clone, Copy)]
struct Part {
    seconds: f64,
    arithmetic: f64,
    source: Source,
}

impl Part {
    const NONE: Self = Self { seconds: 0.0, arithmetic: 0.0, source: Source::Measured };

    fn add(&mut self, time: Timed, times: f64) {
        if time.value.0 * times > 0.0 {
            self.seconds += time.value.0 * times;
            self.arithmetic += time.value.0 * time.arithmetic * times;
            self.source = self.source.combine(time.source);
        }
    }
}

impl Deployment<'_> {
    /// Checks layout and engine constants.
    ///
    /// # Errors
    /// [`Error::Usage`] that names what is wrong.
    pub fn validate(&self) -> Result<()> {
        self.layout.validate(self.model)?;
        in_range("kernel factor", self.costs.kernel_factor, 0.05, 20.0).map(drop)
    }

    /// One step.
    ///
    /// # Errors
    /// [`Error::Unfit`] when the collectives of this layout are not measured.
    pub fn step(&self, load: &StepLoad) -> Result<Breakdown> {
        let tokens = load.sequences + load.prompt_tokens;
        let mut dense = Part::NONE;
        let mut moe = Part::NONE;
        let mut attention = Part::NONE;
        let mut links = Part::NONE;
        self.attention(load, &mut dense, &mut attention);
        self.feed_forward(tokens, &mut dense, &mut moe);
        let ranks = self.layout.attention_dp as f64;
        // Only the last position of a prompt needs logits; those sequences decode the step after.
        let head = self.model.vocab_size as f64 / self.layout.attention_tp as f64;
        let logits = (load.sequences / ranks).max(1.0);
        dense.add(self.times.gemm(logits, head, self.hidden(), DType::Bf16), 1.0);
        self.communication(tokens, &mut links)?;
        let parts = [moe, dense, attention, links];
        let spent = |p: &Part| self.costs.kernel_time(p.seconds, p.arithmetic);
        let total: f64 = parts.iter().map(spent).sum();
        // Each attention group schedules its own sequences.
        let group = StepLoad { sequences: load.sequences / ranks, ..*load };
        let source = parts
            .iter()
            .filter(|p| spent(p) >= 0.05 * total)
            .fold(Source::Measured, |worst, p| worst.combine(p.source));
        Ok(Breakdown {
            moe_s: spent(&moe),
            dense_s: spent(&dense),
            attention_s: spent(&attention),
            communication_s: spent(&links),
            overhead_s: self.costs.overhead(&Layers::of(self.model), &group, total),
            arithmetic_s: parts.iter().map(|p| p.arithmetic).sum(),
            source,
        })
    }

    fn hidden(&self) -> f64 {
        self.model.hidden_size as f64
    }

    /// Projections and attention core of all layers.
    fn attention(&self, load: &StepLoad, dense: &mut Part, core: &mut Part) {
        let layers = self.model.num_layers as f64;
        let (tp, dp) = (self.layout.attention_tp, self.layout.attention_dp as f64);
        // The busiest group has at least one whole sequence.
        let sequences = (load.sequences / dp).max(load.sequences.min(1.0));
        let tokens = sequences + load.prompt_tokens / dp;
        let dtype = self.model.dense_dtype;
        let hidden = self.hidden();
        let kv_bytes = self.model.kv_dtype.bits() / 8.0;
        let gemm = |n: f64, k: f64| self.times.gemm(tokens, n, k, dtype);
        match self.model.attention {
            Attention::Gqa { heads, kv_heads, head_dim, sliding_window, .. } => {
                let (local, kv) = (heads / tp, kv_heads.div_ceil(tp));
                let width = head_dim as f64;
                dense.add(gemm((local + 2 * kv) as f64 * width, hidden), layers);
                dense.add(gemm(hidden, local as f64 * width), layers);
                let work = AttentionWork {
                    heads: local,
                    kv_heads: kv,
                    sequences,
                    context: load.context,
                    cache_bytes: 2.0 * kv as f64 * width * kv_bytes,
                    pair_flops: 4.0 * local as f64 * width,
                };
                let windowed = sliding_window.map_or(0.0, |w| w.layers as f64);
                let window = sliding_window.map_or(f64::INFINITY, |w| w.window as f64);
                for (layers, reach) in [(layers - windowed, f64::INFINITY), (windowed, window)] {
                    self.core(&work, load, reach, layers, core);
                }
            }
            Attention::Mla {
                heads,
                q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
            } => {
                let local = (heads / tp) as f64;
                let (latent, rope) = (kv_lora_rank as f64, qk_rope_head_dim as f64);
                let (nope, value) = (qk_nope_head_dim as f64, v_head_dim as f64);
                // Compressions are replicated on every rank, expansions are split by heads.
                let query = local * (nope + rope);
                if let Some(rank) = q_lora_rank {
                    dense.add(gemm(rank as f64 + latent + rope, hidden), layers);
                    dense.add(gemm(query, rank as f64), layers);
                } else {
                    dense.add(gemm(latent + rope, hidden), layers);
                    dense.add(gemm(query, hidden), layers);
                }
                // Keys' expansion is absorbed into the query, values' into the output: one batched
                // product each, of the size of the expansion itself.
                dense.add(self.times.gemm(tokens, latent, local * nope, DType::Bf16), layers);
                dense.add(self.times.gemm(tokens, local * value, latent, DType::Bf16), layers);
                dense.add(gemm(hidden, local * value), layers);
                let work = AttentionWork {
                    heads: heads.div_ceil(tp),
                    kv_heads: 1,
                    sequences,
                    context: load.context,
                    cache_bytes: (latent + rope) * kv_bytes,
                    pair_flops: 2.0 * local * (2.0 * latent + rope),
                };
                let prompt = AttentionWork {
                    // Prompts are attended in expanded heads.
                    kv_heads: heads.div_ceil(tp),
                    pair_flops: 2.0 * local * (nope + rope + value),
                    ..work
                };
                core.add(self.times.decode_attention(&work), layers);
                core.add(self.prompts(&prompt, load, f64::INFINITY), layers);
            }
        }
    }

    /// Attention core of `layers` layers that reach back `reach` tokens.
    fn core(
        &self,
        work: &AttentionWork,
        load: &StepLoad,
        reach: f64,
        layers: f64,
        core: &mut Part,
    ) {
        if layers <= 0.0 {
            return;
        }
        let decode = AttentionWork { context: work.context.min(reach), ..*work };
        core.add(self.times.decode_attention(&decode), layers);
        core.add(self.prompts(work, load, reach), layers);
    }

    /// Attention of the prompt tokens of a step, as whole prompts of their length.
    fn prompts(&self, work: &AttentionWork, load: &StepLoad, reach: f64) -> Timed {
        let local = load.prompt_tokens / self.layout.attention_dp as f64;
        // A windowed layer attends to blocks of twice its window at most.
        let length = load.prompt_length.min(2.0 * reach);
        let prompts = if length > 0.0 { local / length } else { 0.0 };
        let work = AttentionWork { sequences: prompts, context: length, ..*work };
        self.times.prompt_attention(&work)
    }

    /// Routers, experts, shared experts and dense layers.
    fn feed_forward(&self, tokens: f64, dense: &mut Part, moe: &mut Part) {
        let model = self.model;
        let (hidden, layers) = (self.hidden(), model.moe_layers() as f64);
        let gemm = |m: f64, n: f64, k: f64, dtype| self.times.gemm(m, n, k, dtype);
        let mut block = |m: f64, width: f64, ranks: f64, dtype, layers: f64| {
            let matrices = if model.gated { 2.0 } else { 1.0 };
            dense.add(gemm(m, matrices * width / ranks, hidden, dtype), layers);
            dense.add(gemm(m, hidden, width / ranks, dtype), layers);
        };
        // Shared experts and dense layers are split over the attention's ranks.
        let (local, ranks) =
            (tokens / self.layout.attention_dp as f64, self.layout.attention_tp as f64);
        if model.is_dense() {
            let width = model.moe_intermediate_size as f64;
            block(local, width, ranks, model.expert_dtype, layers);
            return;
        }
        if let Some(shared) = model.shared_experts {
            block(local, shared.intermediate_size as f64, ranks, model.expert_dtype, layers);
        }
        let dense_layers = model.dense_layers as f64;
        if dense_layers > 0.0 {
            let width = model.dense_intermediate_size as f64;
            block(local, width, ranks, model.dense_dtype, dense_layers);
        }
        dense.add(gemm(local, model.num_experts as f64, hidden, DType::Bf16), layers);
        let load = self.busiest(tokens);
        let work = MoeWork {
            hidden: model.hidden_size,
            inter: model.moe_intermediate_size / self.layout.moe_tp,
            local_experts: model.num_experts / self.layout.moe_ep,
            top_k: model.top_k,
            gated: model.gated,
            dtype: model.expert_dtype,
            active: load.0,
            rows: load.1,
        };
        moe.add(self.times.moe(&work), layers);
    }

    /// Experts hit and rows of the busiest expert-parallel rank under independent uniform routing.
    fn busiest(&self, tokens: f64) -> (f64, f64) {
        let model = self.model;
        let ranks = self.layout.moe_ep as f64;
        let active = LoadModel::uniform(model.num_experts, model.top_k).active_experts(tokens);
        let rows = tokens * model.top_k as f64;
        if self.layout.moe_ep == 1 {
            return (active, rows);
        }
        // The mean of a rank and the usual excess of the largest of `ranks` counts.
        let mean = rows / ranks;
        let excess = (2.0 * ranks.ln() * mean * (1.0 - 1.0 / ranks)).sqrt();
        let busiest = (mean + excess).min(rows);
        let local = model.num_experts as f64 / ranks;
        // The busiest rank's experts hit grow with its rows, never beyond its experts.
        let hit = local * (1.0 - (1.0 - 1.0 / local).powf(busiest));
        (hit.max(busiest.min(1.0)).min(local), busiest)
    }

    /// Collectives of all layers.
    fn communication(&self, tokens: f64, links: &mut Part) -> Result<()> {
        let layout = &self.layout;
        let layers = self.model.num_layers as f64;
        let local = tokens / layout.attention_dp as f64;
        let bytes = local * self.hidden() * ACTIVATION_BYTES;
        if layout.attention_tp > 1 {
            links.add(self.times.all_reduce(layout.attention_tp, bytes)?, layers);
        }
        if self.layout.attention_dp == 1 {
            // Experts over ranks that hold the same tokens: each adds its part, then all reduce.
            links.add(self.times.all_reduce(layout.devices(), bytes)?, layers);
            return Ok(());
        }
        // Dispatch and combine: the rows of a rank's tokens that live elsewhere.
        let ranks = layout.moe_ep.max(layout.attention_dp);
        let away = 1.0 - 1.0 / ranks as f64;
        let rows = local * (self.model.top_k as f64).min(ranks as f64) * away;
        let message = rows * self.hidden() * ACTIVATION_BYTES;
        links.add(self.times.all_to_all(ranks, message)?, 2.0 * layers);
        Ok(())
    }

    /// Weights on one device.
    pub fn weights_per_device(&self) -> Bytes {
        let p = self.model.params();
        let devices = self.layout.devices() as f64;
        let tp = self.layout.attention_tp as f64;
        let expert = self.model.expert_dtype.bits() / 8.0;
        let dense = self.model.dense_dtype.bits() / 8.0;
        // Embedding and head stay in 16 bits in every public checkpoint.
        let vocabulary = 2.0 * (p.embedding + p.head);
        let rest = (p.attention + p.dense_ffn) * dense + p.shared * expert + vocabulary;
        Bytes(p.experts * expert / devices + rest / tp + 2.0 * (p.router + p.norms))
    }

    /// Cache bytes of one sequence of `tokens` tokens on one device that holds it.
    pub fn cache_per_sequence(&self, tokens: f64) -> Bytes {
        let splits = self.model.attention.kv_splits().min(self.layout.attention_tp) as f64;
        self.model.kv_bytes(tokens) / splits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DeviceSpec, preset};

    fn times() -> KernelTimes {
        KernelTimes::new(None, &DeviceSpec::load("h100").unwrap(), "vllm").unwrap()
    }

    fn decode(sequences: f64) -> StepLoad {
        StepLoad { sequences, context: 1000.0, prompt_tokens: 0.0, prompt_length: 0.0 }
    }

    #[test]
    fn parts_add_up_and_grow_with_the_batch() {
        let (times, costs) = (times(), EngineCosts::of("vllm"));
        for (name, devices) in [("mixtral-8x7b", 2), ("deepseek-v3", 8), ("gpt-oss-120b", 1)] {
            let model = preset::load(name).unwrap().model;
            let layout = Layout::tensor(devices);
            let d = Deployment { model: &model, layout, times: &times, costs: &costs };
            d.validate().unwrap();
            let mut before = 0.0;
            for sequences in [1.0, 2.0, 8.0, 64.0, 256.0] {
                let step = d.step(&decode(sequences)).unwrap();
                let sum = step.moe_s + step.dense_s + step.attention_s + step.communication_s;
                assert!((step.total().0 - sum - step.overhead_s).abs() < 1e-12);
                assert!(step.total().0 > before, "{name} {sequences}");
                before = step.total().0;
            }
        }
    }

    #[test]
    fn a_window_makes_long_contexts_cheaper() {
        let (times, costs) = (times(), EngineCosts::of("vllm"));
        let windowed = preset::load("gpt-oss-120b").unwrap().model;
        let mut full = windowed.clone();
        if let Attention::Gqa { sliding_window, .. } = &mut full.attention {
            *sliding_window = None;
        }
        let step = |model| {
            let layout = Layout::tensor(1);
            let d = Deployment { model, layout, times: &times, costs: &costs };
            d.step(&StepLoad { context: 50_000.0, ..decode(32.0) }).unwrap().attention_s
        };
        assert!(step(&windowed) < 0.6 * step(&full));
    }

    #[test]
    fn experts_over_ranks_read_fewer_weights_each_and_wait_for_the_busiest() {
        let (times, costs) = (times(), EngineCosts::of("vllm"));
        let model = preset::load("qwen3-235b-a22b").unwrap().model;
        let of = |layout| {
            let d = Deployment { model: &model, layout, times: &times, costs: &costs };
            d.busiest(512.0)
        };
        let all = of(Layout::tensor(4));
        let spread = Layout { attention_tp: 1, attention_dp: 4, moe_tp: 1, moe_ep: 4 };
        let (hit, rows) = of(spread);
        assert!(hit < all.0 && rows > all.1 / 4.0 && rows < all.1);
    }

    #[test]
    fn layouts_that_do_not_divide_are_refused() {
        let model = preset::load("mixtral-8x7b").unwrap().model;
        for (attention_tp, attention_dp, moe_tp, moe_ep) in
            [(3, 1, 3, 1), (2, 1, 4, 1), (1, 16, 1, 16), (0, 1, 1, 1)]
        {
            let layout = Layout { attention_tp, attention_dp, moe_tp, moe_ep };
            assert_eq!(layout.validate(&model).unwrap_err().exit_code(), 2, "{layout}");
        }
    }

    #[test]
    fn weights_of_all_devices_are_the_model() {
        let (times, costs) = (times(), EngineCosts::of("vllm"));
        let model = preset::load("mixtral-8x7b").unwrap().model;
        let layout = Layout::tensor(2);
        let d = Deployment { model: &model, layout, times: &times, costs: &costs };
        let both = 2.0 * d.weights_per_device().0;
        assert!((both / model.weight_bytes().0 - 1.0).abs() < 1e-3, "{both}");
    }
}
