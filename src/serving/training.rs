//! Time of one training step of a model on many devices, from the kernels that serving is priced with.
//!
//! A micro-batch goes forward like a step of prompts alone ([`Deployment`]): attention, dense GEMMs, the
//! grouped GEMM of the busiest expert-parallel rank, exchange and collectives, and the head on every
//! token. Backward each GEMM is two of the same size and attention two and a half times its forward
//! arithmetic (five products for two: Dao 2023, arXiv 2307.08691); exchange and collectives come once more.
//! What an engine adds to its kernels ([`EngineCosts`]) is added here too, launches three times. Pipelines
//! idle for a micro-batch less than they have stages; gradients and weights cross the data-parallel ranks
//! once a step, behind the first forward and the last backward.
//!
//! What has to fit a device: weights and gradients of its share (2 and 4 bytes), its part of the 12 bytes
//! of optimiser state that the data-parallel ranks divide (Rajbhandari et al. 2020, arXiv 1910.02054),
//! and activations of the micro-batches in flight.

use crate::config::layers::{FeedForward, Mixer, TensorKind};
use crate::config::{Attention, DType, MoeModel};
use crate::latency::{CollectiveKind, CollectiveQuery, LatencyModel, Query};
use crate::serving::breakdown::{Breakdown, Tally};
use crate::serving::layers::gemm;
use crate::serving::{
    Deployment, EngineCosts, Layers, Layout, LoadModel, MemoryBudget, StepLoad, training_flops,
};
use crate::units::{Bytes, BytesPerSecond, Flops, FlopsPerSecond, Seconds};
use crate::{Error, Result};

/// Backward over forward arithmetic of GEMMs: one for the inputs' gradient, one for the weights'.
const BACKWARD_GEMM: f64 = 2.0;
/// The same of attention, whose scores are computed again.
const BACKWARD_ATTENTION: f64 = 2.5;
/// Launches of forward and backward over those of forward.
const LAUNCHES: f64 = 1.0 + BACKWARD_GEMM;
/// Bytes of one weight, of its gradient, and of its optimiser state: a copy, a mean and a variance in 32
/// bits.
const WEIGHT: f64 = 2.0;
const GRADIENT: f64 = 4.0;
const OPTIMISER: f64 = 12.0;
/// Bytes of one activation, and of one logit with its gradient.
const ACTIVATION: f64 = 2.0;
const LOGIT: f64 = 6.0;
/// Sizes that are tried.
const TENSOR: [usize; 4] = [1, 2, 4, 8];
const EXPERT: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const PIPELINE: [usize; 5] = [1, 2, 4, 8, 16];
/// Most devices of one run.
const MOST_DEVICES: usize = 1 << 17;

/// A model to be trained, and what it is trained on.
#[derive(Clone, Copy)]
pub struct Training<'a> {
    /// The model, in the number formats that it is multiplied in.
    pub model: &'a MoeModel,
    /// Latencies on the device.
    pub latency: &'a dyn LatencyModel,
    /// What an engine adds.
    pub costs: &'a EngineCosts,
    /// Load of the experts.
    pub routing: &'a LoadModel,
    /// Memory of each device.
    pub memory: MemoryBudget,
    /// Rate at which a device reads its memory.
    pub read: BytesPerSecond,
    /// Devices of one scale-up domain.
    pub domain: usize,
    /// Rate that utilisation is counted against: the peak in 16 bits, whatever the formats are.
    pub peak: FlopsPerSecond,
    /// Active parameters that count.
    pub n_active: f64,
    /// Tokens of a sequence.
    pub sequence: f64,
    /// Tokens of a step.
    pub batch: f64,
}

/// How a run is spread over devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Ranks that share attention and dense blocks.
    pub tensor: usize,
    /// Ranks that the experts of a layer are spread over.
    pub expert: usize,
    /// Stages of the pipeline.
    pub pipeline: usize,
    /// Whether activations are computed again in the backward pass instead of kept.
    pub recompute: bool,
    /// Devices of the run.
    pub devices: usize,
}

impl Plan {
    /// Devices of one stage that hold each expert once.
    const fn stage(&self) -> usize {
        if self.tensor > self.expert { self.tensor } else { self.expert }
    }

    /// Copies of the attention and dense blocks.
    const fn copies(&self) -> usize {
        self.devices / (self.tensor * self.pipeline)
    }

    /// Copies of each expert.
    const fn expert_copies(&self) -> usize {
        self.devices / (self.stage() * self.pipeline)
    }

    fn layout(&self, model: &MoeModel) -> Layout {
        if model.is_dense() {
            return Layout::tensor(self.tensor);
        }
        let stage = self.stage();
        Layout {
            attention_tp: self.tensor,
            attention_dp: stage / self.tensor,
            moe_tp: stage / self.expert,
            moe_ep: self.expert,
        }
    }
}

/// A step of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainStep {
    /// The plan.
    pub plan: Plan,
    /// The whole step.
    pub time: Seconds,
    /// Share of the peak that `6 N` a token is.
    pub mfu: f64,
    /// Bytes that the fullest device holds.
    pub held: Bytes,
    /// Share of the time in routed experts, dense GEMMs, attention, communication, and what is left:
    /// launches, idle stages, optimiser.
    pub shares: [f64; 5],
}

/// Forward and backward of one micro-batch through all stages, in seconds.
#[derive(Clone, Copy)]
struct Pass {
    parts: [f64; 4],
    total: f64,
    forward: f64,
}

impl Training<'_> {
    /// The plan with the highest utilisation among those that fit, end within `longest` for `work`, and
    /// use as few devices as that takes.
    ///
    /// # Errors
    /// [`Error::Infeasible`] when none fits; [`Error::Unfit`] when no latency model answers.
    pub fn best(&self, work: Flops, longest: Seconds) -> Result<TrainStep> {
        let mut best: Option<TrainStep> = None;
        let mut refused = None;
        for tensor in TENSOR {
            for expert in EXPERT {
                let plan = Plan { tensor, expert, pipeline: 1, recompute: false, devices: 1 };
                if !self.divides(&plan) {
                    continue;
                }
                match self.forward(&plan) {
                    Ok(forward) => {
                        let found = self.spread(plan, &forward, work, longest);
                        let better = |s: &TrainStep| best.is_none_or(|b| s.mfu > b.mfu);
                        best = found.filter(better).or(best);
                    }
                    Err(error) => refused = Some(error),
                }
            }
        }
        best.ok_or_else(|| {
            let none = || {
                Error::infeasible(
                    format!("no plan of up to {MOST_DEVICES} devices trains {}", self.model.name),
                    "name a larger device with --train-device",
                )
            };
            refused.unwrap_or_else(none)
        })
    }

    /// The fewest devices that hold the run with its optimiser state.
    pub fn fewest_devices(&self) -> Option<usize> {
        let mut fewest = None;
        for (tensor, expert, pipeline) in plans() {
            let plan = Plan { tensor, expert, pipeline, recompute: true, devices: 1 };
            if self.divides(&plan) {
                let fits = self.sizes(plan).find(|p| self.fits(p)).map(|p| p.devices);
                fewest = [fewest, fits].into_iter().flatten().min();
            }
        }
        fewest
    }

    /// One step of a given plan, whether it fits or not.
    ///
    /// # Errors
    /// [`Error::Usage`] for a plan that does not divide the model; [`Error::Unfit`] when no latency model
    /// answers.
    pub fn step(&self, plan: &Plan) -> Result<TrainStep> {
        if !self.divides(plan) || !plan.devices.is_multiple_of(plan.pipeline * plan.stage()) {
            return Err(Error::usage("plan", format!("{plan:?} does not divide the model")));
        }
        Ok(self.timed(*plan, &self.forward(plan)?))
    }

    fn divides(&self, plan: &Plan) -> bool {
        let dense = self.model.is_dense();
        plan.pipeline <= self.model.num_layers
            && plan.tensor <= self.domain
            && (!dense || plan.expert == 1)
            && plan.layout(self.model).validate(self.model).is_ok()
    }

    /// The best of the stages and recomputation of one layout.
    fn spread(
        &self,
        plan: Plan,
        forward: &Breakdown,
        work: Flops,
        longest: Seconds,
    ) -> Option<TrainStep> {
        let mut best: Option<TrainStep> = None;
        for pipeline in PIPELINE.into_iter().filter(|p| *p <= self.model.num_layers) {
            for recompute in [false, true] {
                let within = self
                    .sizes(Plan { pipeline, recompute, ..plan })
                    .filter(|p| self.fits(p))
                    .map(|p| self.timed(p, forward))
                    .find(|s| self.duration(s, work) <= longest);
                best = within.filter(|s| best.is_none_or(|b| s.mfu > b.mfu)).or(best);
            }
        }
        best
    }

    /// The plan on rising numbers of devices, as long as each copy has a micro-batch.
    fn sizes(&self, plan: Plan) -> impl Iterator<Item = Plan> + '_ {
        let least = plan.stage() * plan.pipeline;
        let sizes = std::iter::successors(Some(least), |n| Some(2 * n));
        sizes
            .take_while(|n| *n <= MOST_DEVICES)
            .map(move |devices| Plan { devices, ..plan })
            .take_while(move |p| self.micro_batches(p) >= 1.0)
    }

    fn duration(&self, step: &TrainStep, work: Flops) -> Seconds {
        let steps = work.0 / training_flops(self.n_active, self.batch).0;
        step.time * steps
    }

    /// Micro-batches of one sequence that each copy works through in a step.
    fn micro_batches(&self, plan: &Plan) -> f64 {
        self.batch / (self.sequence * plan.copies() as f64)
    }

    /// Kernels of one micro-batch going forward through all layers and the head.
    fn forward(&self, plan: &Plan) -> Result<Breakdown> {
        let layout = plan.layout(self.model);
        let deployment = Deployment {
            model: self.model,
            layout,
            latency: self.latency,
            costs: self.costs,
            routing: self.routing,
            skewed: None,
            memory: self.memory,
            domain: self.domain,
        };
        let load = self.load(&layout);
        let group = deployment.group(&load);
        let mut tally = Tally::new(self.latency);
        deployment.layers(&group, load.prompt_tokens, &mut tally)?;
        let vocabulary = self.model.vocab_size.div_ceil(plan.tensor);
        let head = gemm(group.tokens(), vocabulary, self.model.hidden_size, DType::Bf16);
        tally.dense(&head, 1.0)?;
        deployment.communication(&load, &mut tally)?;
        Ok(tally.finish(self.costs, &Layers::of(self.model, plan.tensor), &load))
    }

    /// A micro-batch of every attention group.
    fn load(&self, layout: &Layout) -> StepLoad {
        StepLoad {
            sequences: 0.0,
            context: 0.0,
            prompt_tokens: self.sequence * layout.attention_dp as f64,
            prompt_length: self.sequence,
        }
    }

    fn pass(&self, plan: &Plan, forward: &Breakdown) -> Pass {
        let again = if plan.recompute { 1.0 } else { 0.0 };
        let gemms = 1.0 + BACKWARD_GEMM + again;
        let factors = [gemms, gemms, 1.0 + BACKWARD_ATTENTION + again, 2.0 + again];
        let mut parts = forward.parts().map(|p| p.seconds);
        parts.iter_mut().zip(factors).for_each(|(part, factor)| *part *= factor);
        let kernels: f64 = parts.iter().sum();
        // Launches of forward and backward, and small kernels, as in serving; the host's own step is none.
        let launches = LAUNCHES + again;
        let costs = EngineCosts {
            layer_s: self.costs.layer_s * launches,
            launch_s: self.costs.launch_s * launches,
            mixer_s: self.costs.mixer_s * launches,
            mixer_token_s: self.costs.mixer_token_s * launches,
            wide_norm_s: self.costs.wide_norm_s * launches,
            step_s: 0.0,
            ..self.costs.clone()
        };
        let load = self.load(&plan.layout(self.model));
        let overhead = costs.overhead(&Layers::of(self.model, plan.tensor), &load, kernels);
        Pass { parts, total: kernels + overhead, forward: forward.kernels() }
    }

    fn timed(&self, plan: Plan, forward: &Breakdown) -> TrainStep {
        let pass = self.pass(&plan, forward);
        let stages = plan.pipeline as f64;
        let micro = self.micro_batches(&plan).max(1.0);
        // Each stage works through all micro-batches and waits for the others' first and last.
        let working = micro * pass.total / stages;
        let idle = (stages - 1.0) * pass.total / stages;
        let shared = self.gradients(&plan) - 2.0 * pass.forward / stages;
        let (weights, own) = self.on_device(&plan);
        let optimiser = (2.0 * own + weights * (WEIGHT + GRADIENT)) / self.read.0;
        let time = working + idle + shared.max(0.0) + optimiser;
        let work = training_flops(self.n_active, self.batch).0;
        let mut shares = [0.0; 5];
        for (share, part) in shares.iter_mut().zip(pass.parts) {
            *share = micro * part / stages / time;
        }
        shares[4] = 1.0 - shares[..4].iter().sum::<f64>();
        TrainStep {
            plan,
            time: Seconds(time),
            mfu: work / (self.peak.0 * plan.devices as f64 * time),
            held: self.held(&plan),
            shares,
        }
    }

    /// Seconds to add gradients up over the copies and to hand the weights back. No tables hold sums of
    /// whole models, so that a latency model that does not answer leaves them out.
    fn gradients(&self, plan: &Plan) -> f64 {
        let (experts, others) = self.shares(plan);
        let sum = |params: f64, copies: usize, apart: usize| {
            let query = CollectiveQuery {
                kind: CollectiveKind::AllReduce,
                devices: copies,
                nodes: (copies * apart).div_ceil(self.domain).min(copies),
                // Half of an all-reduce brings the gradients, half the weights.
                bytes: params * f64::midpoint(GRADIENT, WEIGHT),
            };
            let answer = (copies > 1).then(|| self.latency.answer(&Query::Collective(query)));
            answer.and_then(std::result::Result::ok).map_or(0.0, |l| l.value.0)
        };
        sum(others, plan.copies(), plan.tensor) + sum(experts, plan.expert_copies(), plan.stage())
    }

    /// Parameters of experts and of everything else on one device.
    fn shares(&self, plan: &Plan) -> (f64, f64) {
        let stages = plan.pipeline as f64;
        let (mut experts, mut others) = (0.0, 0.0);
        for part in self.model.weights_by_kind() {
            match part.kind {
                TensorKind::Experts => experts += part.params / (stages * plan.stage() as f64),
                TensorKind::Router | TensorKind::Norms => others += part.params / stages,
                _ => others += part.params / (stages * plan.tensor as f64),
            }
        }
        (experts, others)
    }

    /// Parameters on one device, and bytes of its optimiser state.
    fn on_device(&self, plan: &Plan) -> (f64, f64) {
        let (experts, others) = self.shares(plan);
        let own = experts / plan.expert_copies() as f64 + others / plan.copies() as f64;
        (experts + others, OPTIMISER * own)
    }

    /// Bytes that the fullest device holds.
    fn held(&self, plan: &Plan) -> Bytes {
        let (weights, optimiser) = self.on_device(plan);
        Bytes(weights * (WEIGHT + GRADIENT) + optimiser + self.activations(plan))
    }

    fn fits(&self, plan: &Plan) -> bool {
        self.held(plan).0 <= self.memory.usable().0
    }

    /// Activations of the first stage, which holds as many micro-batches as there are stages, and logits.
    fn activations(&self, plan: &Plan) -> f64 {
        let tensor = plan.tensor as f64;
        let tokens = self.sequence / tensor;
        let layers = self.model.num_layers as f64;
        let kept = self.values_per_token();
        let hidden = self.model.hidden_size as f64;
        let values = if plan.recompute {
            // The input of every layer, and one layer as a whole.
            layers * hidden + kept / layers
        } else {
            kept
        };
        tokens * (ACTIVATION * values + LOGIT * self.model.vocab_size as f64)
    }

    /// Values that the backward pass needs of one token, over all layers: inputs of every product, and
    /// of norms and gates.
    fn values_per_token(&self) -> f64 {
        let hidden = self.model.hidden_size as f64;
        let layer = |of: &crate::config::layers::LayerGroup| {
            let mixer = match &of.mixer {
                Mixer::Attention(a) => match a.projection {
                    Attention::Gqa { heads, kv_heads, head_dim, .. } => {
                        (2 * (heads + kv_heads) * head_dim) as f64
                    }
                    Attention::Mla {
                        heads,
                        qk_nope_head_dim,
                        qk_rope_head_dim,
                        v_head_dim,
                        ..
                    } => {
                        (heads * (2 * (qk_nope_head_dim + qk_rope_head_dim) + 2 * v_head_dim))
                            as f64
                    }
                },
                // About what its weights take in and give.
                _ => 4.0 * hidden,
            };
            let blocks = match &of.ffn {
                FeedForward::None => 0.0,
                FeedForward::Dense { width, .. } => 3.0 * *width as f64,
                FeedForward::Moe(block) => {
                    let shared = block.shared.map_or(0, |s| s.intermediate_size) + block.parallel;
                    let each = 2.0 * hidden + 3.0 * block.width as f64;
                    block.mean_active() * each + 3.0 * shared as f64
                }
            };
            of.layers as f64 * (4.0 * hidden + mixer + blocks)
        };
        self.model.layer_groups().iter().map(layer).sum()
    }
}

fn plans() -> impl Iterator<Item = (usize, usize, usize)> {
    TENSOR.into_iter().flat_map(|tensor| {
        EXPERT.into_iter().flat_map(move |expert| {
            PIPELINE.into_iter().map(move |pipeline| (tensor, expert, pipeline))
        })
    })
}

/// A published training run with its plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PublishedRun {
    /// Preset of the model.
    pub model: &'static str,
    /// Device.
    pub device: &'static str,
    /// Format of the products.
    pub format: DType,
    /// Devices of the run, and how they share the model.
    pub devices: usize,
    /// Tensor, expert and pipeline parallel ranks.
    pub ranks: (usize, usize, usize),
    /// Tokens of a sequence.
    pub sequence: f64,
    /// Sequences of a step.
    pub sequences: f64,
    /// Tokens a second and device.
    pub tokens_per_device_s: f64,
    /// Where it is printed.
    pub source: &'static str,
}

impl PublishedRun {
    /// How it is spread.
    pub const fn plan(&self) -> Plan {
        let (tensor, expert, pipeline) = self.ranks;
        Plan { tensor, expert, pipeline, recompute: false, devices: self.devices }
    }
}

/// NVIDIA's benchmarks (Megatron Bridge, performance summaries of the 25.09, 25.11, 26.02 and 26.02.01
/// containers; experts loaded evenly). Where 26.02.01 mends a slow row of 26.02, the later one counts.
pub const PUBLISHED_RUNS: [PublishedRun; 9] = [
    bridge("llama-3.1-70b", "h100", DType::Fp8, (64, 4, 1, 8), (8192.0, 256.0), 1621.0),
    bridge("gpt-oss-120b", "h100", DType::Bf16, (64, 1, 8, 4), (4096.0, 1280.0), 5993.0),
    bridge("qwen3-30b-a3b", "h100", DType::Fp8, (16, 1, 8, 2), (4096.0, 1024.0), 9058.0),
    bridge("qwen3-235b-a22b", "h100", DType::Fp8, (256, 2, 32, 8), (4096.0, 8192.0), 1633.0),
    bridge("deepseek-v3", "h100", DType::Fp8, (1024, 2, 64, 8), (4096.0, 8192.0), 1297.0),
    bridge("gpt-oss-120b", "b200", DType::Bf16, (64, 1, 8, 1), (4096.0, 1280.0), 13722.0),
    bridge("gpt-oss-120b", "gb200", DType::Bf16, (64, 1, 64, 1), (4096.0, 1280.0), 15784.0),
    bridge("qwen3-235b-a22b", "gb200", DType::Bf16, (256, 1, 32, 8), (4096.0, 8192.0), 4916.0),
    bridge("deepseek-v3", "gb200", DType::Bf16, (256, 1, 64, 4), (4096.0, 4096.0), 3139.0),
];

const fn bridge(
    model: &'static str,
    device: &'static str,
    format: DType,
    (devices, tensor, expert, pipeline): (usize, usize, usize, usize),
    (sequence, sequences): (f64, f64),
    tokens_per_device_s: f64,
) -> PublishedRun {
    PublishedRun {
        model,
        device,
        format,
        devices,
        ranks: (tensor, expert, pipeline),
        sequence,
        sequences,
        tokens_per_device_s,
        source: "github NVIDIA-NeMo/Megatron-Bridge, docs/performance-summary-archive.md",
    }
}
