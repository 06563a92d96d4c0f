//! What a ranking says, as data: the content of `rank.json` and the only input of tables and plots.
//!
//! Field names carry their unit at the end. A value that could not be obtained is `null`, with the
//! reason beside it; it is never zero or NaN.

mod familial;
mod laws;

use serde::{Deserialize, Serialize};

use crate::latency::Source;
use crate::law::downstream::Predicted;
use crate::serving::Layout;

pub use familial::{ExitSize, Familial};
pub use laws::{Choice, ChoiceCosts, ExpertShare, FlopsSaved, LawAnswer, Mixture};

/// Name of the document kind in `rank.json`.
pub const SCHEMA: &str = "moe-frontier/rank";
/// Version of the document; the major number changes when a reader of the old form would be misled,
/// the minor one when fields are added, which documents of an older minor version lack.
pub const SCHEMA_VERSION: &str = "2.3";

/// The whole answer of `rank`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankReport {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Always [`SCHEMA_VERSION`] for documents written by this program.
    pub schema_version: String,
    /// Version of the program that wrote it.
    pub program_version: String,
    /// The answer in sentences, most important first.
    pub summary: Vec<String>,
    /// All candidates: the loss-optimal reference of each expert count, then the equal-loss curve of each.
    pub candidates: Vec<Candidate>,
    /// What costs, probabilities and maps count.
    pub basis: Basis,
    /// Share of the draws in which no recommended candidate reaches the loss and keeps the service
    /// level; with all `p_best` it sums to 1.
    pub p_none: f64,
    /// Indices into `candidates` that no other equal-loss candidate beats in both training and
    /// serving cost, by rising training cost.
    pub frontier: Vec<usize>,
    /// Where the cheapest expert count changes as lifetime tokens grow.
    pub crossovers: Vec<Crossover>,
    /// Smaller models on more tokens, at one training budget and by FLOPs alone.
    pub over_training: OverTrainingReport,
    /// The first law's recommended model with several exits, where they were asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub familial: Option<Familial>,
    /// Total cost of the best candidate of each expert count against lifetime tokens.
    pub total_cost: Vec<TotalCostCurve>,
    /// Who wins where.
    pub decision_map: DecisionMaps,
    /// Which single assumption, within its range, changes the winner.
    pub sensitivity: Vec<Sensitivity>,
    /// Layer latency against tokens that the serving costs rest on.
    pub layer_latency: Vec<LatencyCurve>,
    /// The profile used.
    pub profile: ProfileUsed,
    /// The law used for the candidates.
    pub law: LawUsed,
    /// What each law says, the one above first; laws that say nothing are named with the reason.
    #[serde(default)]
    pub laws: Vec<LawAnswer>,
    /// All laws together.
    #[serde(default)]
    pub mixture: Option<Mixture>,
    /// Every price, efficiency and length used, and whether it was left at its default.
    pub assumptions: Vec<Assumption>,
    /// Things that a reader must know before acting on the answer.
    pub warnings: Vec<String>,
    /// Flags of the run, which `rank --from` takes again; where results went is not among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Vec<String>>,
}

/// How replicas are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Whole replicas for the given request rate.
    WholeReplicas,
    /// Fractions of replicas, as in a fleet large enough not to notice one.
    AtScale,
}

impl Basis {
    /// The words used in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::WholeReplicas => "whole replicas at the given rate",
            Self::AtScale => "at scale (replicas counted in fractions)",
        }
    }
}

/// A value with a 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// 2.5th percentile over the draws.
    pub lo: f64,
    /// 97.5th percentile over the draws.
    pub hi: f64,
    /// Share of the draws that the percentiles rest on: those in which the candidate can be had.
    pub share: f64,
}

/// How a candidate's size and tokens were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateKind {
    /// Lowest loss that the reference budget reaches with this expert count.
    LossOptimal,
    /// The cheapest training that reaches the target loss with this expert count.
    IsoLoss,
    /// Smaller than that, trained on more tokens, same loss.
    OverTrained,
}

/// What limits a deployment, and so what would change its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// Few requests: the devices are there to hold the weights.
    MemoryFloor,
    /// Small batches: each step reads the weights of every expert it hits.
    WeightStream,
    /// The batch is limited by the memory left for keys and values, or its traffic dominates.
    KvBound,
    /// Large batches: arithmetic on active parameters.
    ComputeBound,
    /// Fixed work per layer and step (launches, communication).
    Overhead,
}

impl Binding {
    /// The words used in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::MemoryFloor => "memory-floor",
            Self::WeightStream => "weight-stream",
            Self::KvBound => "KV-bound",
            Self::ComputeBound => "compute-bound",
            Self::Overhead => "overhead",
        }
    }
}

/// One model that could be trained, and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Experts per layer; 1 is dense.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// How size and tokens were chosen.
    pub kind: CandidateKind,
    /// Whether this is the recommended candidate of its expert count.
    pub best_of_experts: bool,
    /// Active parameters, with embeddings.
    pub n_active: f64,
    /// All parameters.
    pub n_total: f64,
    /// Width of the residual stream of the model priced.
    pub hidden_size: usize,
    /// Layers of the model priced.
    pub num_layers: usize,
    /// Query heads of the model priced.
    pub num_heads: usize,
    /// Key/value heads of the model priced.
    pub num_kv_heads: usize,
    /// Intermediate size of one expert of the model priced.
    pub moe_intermediate_size: usize,
    /// File in the output folder that holds the model priced; only for the recommended candidates.
    pub config: Option<String>,
    /// Training tokens.
    pub tokens: f64,
    /// Training tokens per active parameter.
    pub tokens_per_param: f64,
    /// Predicted loss in nats per token.
    pub loss_nats: f64,
    /// Downstream error at that loss, where a fit of it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downstream: Option<Predicted>,
    /// Largest factor by which a variable of the law lies outside its fitted range; 1 is inside.
    pub extrapolation: f64,
    /// Training FLOPs, `6 n_active tokens`.
    pub train_flops: f64,
    /// Peak learning rate that Step Law advises; `null` far outside its runs.
    pub learning_rate: Option<f64>,
    /// Batch in tokens that Step Law advises; `null` far outside its runs.
    pub batch_tokens: Option<f64>,
    /// Largest factor by which size or tokens lie outside Step Law's runs; 1 is inside.
    pub hyperparameter_extrapolation: Option<f64>,
    /// Why there is no learning rate and no batch.
    pub hyperparameters_missing: Option<String>,
    /// Training cost in dollars.
    pub train_usd: f64,
    /// 95 % interval of `train_usd`.
    pub train_usd_interval: Option<Interval>,
    /// Serving cost, all dollars on output tokens; `null` when no deployment meets the service level.
    pub serve_usd_per_million_output_tokens: Option<f64>,
    /// 95 % interval of the serving cost.
    pub serve_usd_interval: Option<Interval>,
    /// Output tokens per second and device at the given traffic.
    pub output_tokens_per_s_per_gpu: Option<f64>,
    /// Devices of the whole deployment.
    pub gpus: Option<usize>,
    /// Devices of one replica.
    pub gpus_per_replica: Option<usize>,
    /// How a replica is spread over them.
    pub layout: Option<Layout>,
    /// Requests per second of one replica at the given traffic.
    pub requests_per_s_per_replica: Option<f64>,
    /// Serving cost with replicas counted in fractions, as a large fleet has them.
    pub serve_usd_per_million_output_tokens_at_scale: Option<f64>,
    /// Mean sequences in a step of one replica at the given traffic.
    pub batch: Option<f64>,
    /// Mean output rate over the highest rate that the service level allows.
    pub utilisation: Option<f64>,
    /// Mean time per output token in milliseconds.
    pub tpot_ms: Option<f64>,
    /// Mean time to first token in milliseconds, without queueing.
    pub ttft_ms: Option<f64>,
    /// Bytes of all weights of one replica.
    pub weights_bytes: f64,
    /// Total cost at the given lifetime tokens; `null` when it cannot be served.
    pub total_usd: Option<f64>,
    /// 95 % interval of the total cost.
    pub total_usd_interval: Option<Interval>,
    /// Probability that this candidate is the cheapest of the recommended ones in total cost, on the
    /// report's `basis`; `null` unless `best_of_experts`.
    pub p_best: Option<f64>,
    /// The same with replicas counted in fractions.
    pub p_best_at_scale: Option<f64>,
    /// What over-training it costs and saves against the cheapest training of its expert count; only
    /// for over-trained candidates.
    pub over_training: Option<OverTraining>,
    /// What limits the deployment.
    pub binding: Option<Binding>,
    /// The least trusted origin among the latencies that matter.
    pub latency_source: Option<Source>,
    /// Why there is no serving cost.
    pub infeasible: Option<String>,
}

/// An over-trained candidate against the cheapest training of the same expert count and loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverTraining {
    /// Active parameters over that one's.
    pub size_ratio: f64,
    /// Training dollars beyond that one's.
    pub extra_train_usd: f64,
    /// Serving dollars below that one's per million output tokens, negative when dearer; `null` when
    /// one of the two cannot be served.
    pub saved_usd_per_million_output_tokens: Option<f64>,
    /// Served output tokens from which it costs less in all; `null` when it never does.
    pub pays_from_output_tokens: Option<f64>,
}

/// Smaller models with more experts, trained on more tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverTrainingReport {
    /// Expert count whose loss-optimal model at the budget is the base.
    pub base_experts: usize,
    /// Training budget of all models but those that match both loss and cost.
    pub budget_flops: f64,
    /// Loss of the base.
    pub base_loss_nats: f64,
    /// Serving cost of the base; `null` when it cannot be served.
    pub base_serve_usd_per_million_output_tokens: Option<f64>,
    /// The bound on serving cost: the one given, or the base's cost.
    pub max_serve_usd_per_million_output_tokens: Option<f64>,
    /// Both algorithms of Yun et al. 2024 (arXiv 2404.02852) for each expert count.
    pub at_budget: Vec<AtBudget>,
    /// Tokens processed over the model's life, prompts included, behind `by_flops`.
    pub processed_tokens: f64,
    /// The least training and inference FLOPs for the target loss (Sardana et al. 2024,
    /// arXiv 2401.00448) of each expert count that reaches it.
    pub by_flops: Vec<ByFlops>,
}

/// One expert count at the base's training budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AtBudget {
    /// Experts per layer.
    pub experts: usize,
    /// The smallest model with the base's loss.
    pub bounded_loss: Option<SmallerModel>,
    /// Why there is none.
    pub bounded_loss_missing: Option<String>,
    /// The model of lowest loss within the bound on serving cost.
    pub bounded_cost: Option<SmallerModel>,
    /// Why there is none.
    pub bounded_cost_missing: Option<String>,
    /// Training FLOPs over the budget with which both the base's loss and the bound are met.
    pub train_factor_for_both: Option<f64>,
    /// Why there is none.
    pub both_missing: Option<String>,
}

/// A model that spends the budget at less than its loss-optimal size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmallerModel {
    /// Active parameters.
    pub n_active: f64,
    /// Training tokens.
    pub tokens: f64,
    /// Training tokens per active parameter.
    pub tokens_per_param: f64,
    /// Loss.
    pub loss_nats: f64,
    /// Active parameters over the loss-optimal ones of the same expert count.
    pub size_over_optimal: f64,
    /// Serving cost.
    pub serve_usd_per_million_output_tokens: f64,
    /// Training FLOPs over the budget that the base's expert count would need for this loss.
    pub base_train_factor: f64,
    /// Largest factor by which a variable lies outside the law's fitted range; 1 is inside.
    pub extrapolation: f64,
}

/// The model of least FLOPs over its life.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByFlops {
    /// Experts per layer.
    pub experts: usize,
    /// Active parameters.
    pub n_active: f64,
    /// Training tokens.
    pub tokens: f64,
    /// Training tokens per active parameter.
    pub tokens_per_param: f64,
    /// Training FLOPs.
    pub train_flops: f64,
    /// Training and inference FLOPs, `6 N D + 2 N D_processed`.
    pub total_flops: f64,
    /// Largest factor by which a variable lies outside the law's fitted range; 1 is inside.
    pub extrapolation: f64,
}

/// A change of the cheapest expert count along lifetime output tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crossover {
    /// Cheapest below.
    pub from_experts: usize,
    /// Cheapest above.
    pub to_experts: usize,
    /// Lifetime output tokens at which they cost the same.
    pub lifetime_tokens: f64,
    /// 95 % interval over the draws in which both orders occur.
    pub interval: Option<Interval>,
}

/// Total cost of one expert count against lifetime tokens, each point with its best candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TotalCostCurve {
    /// Experts per layer.
    pub experts: usize,
    /// Points by rising lifetime.
    pub points: Vec<TotalCostPoint>,
}

/// One point of a [`TotalCostCurve`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TotalCostPoint {
    /// Output tokens served over the model's life.
    pub lifetime_tokens: f64,
    /// Training plus serving, in dollars.
    pub total_usd: f64,
}

/// The two pictures of who wins where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionMaps {
    /// Requests per second against lifetime output tokens.
    pub traffic: DecisionMap,
    /// Training budget (FLOPs) against the limit on time per output token (ms).
    pub budget: DecisionMap,
}

/// Winner and its probability over a grid of two inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionMap {
    /// What runs along x, with its unit.
    pub x_label: String,
    /// What runs along y, with its unit.
    pub y_label: String,
    /// Grid values along x, rising (logarithmic).
    pub x: Vec<f64>,
    /// Whether the last column is not its value but the limit of a large fleet (at scale).
    pub last_is_at_scale: bool,
    /// Output tokens of a request where x is a request rate and y output tokens: together they say how
    /// many years the tokens take.
    #[serde(default)]
    pub output_tokens_per_request: Option<f64>,
    /// Grid values along y, rising (logarithmic).
    pub y: Vec<f64>,
    /// Expert count whose recommended candidate is cheapest at `[y][x]`; `null` where nothing is
    /// feasible.
    pub winner: Vec<Vec<Option<usize>>>,
    /// Probability of that winner at `[y][x]`; 0 where nothing is feasible.
    pub p_best: Vec<Vec<f64>>,
    /// The user's own point, (x, y).
    pub here: (f64, f64),
}

/// The effect of one assumption moved to the ends of its range, all others kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sensitivity {
    /// The assumption's name.
    pub assumption: String,
    /// Low end, as text with unit.
    pub low: String,
    /// High end, as text with unit.
    pub high: String,
    /// Cheapest expert count at the low end.
    pub winner_at_low: Option<usize>,
    /// Cheapest expert count at the high end.
    pub winner_at_high: Option<usize>,
    /// Total cost of the runner-up over that of today's winner at the low end, for weights of the laws
    /// P(best) of the winner over that of the runner-up; below 1 it flips.
    pub margin_at_low: Option<f64>,
    /// The same at the high end.
    pub margin_at_high: Option<f64>,
    /// Whether the winner changes within the range.
    pub flips: bool,
}

/// Layer latency of one expert count against tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyCurve {
    /// Experts per layer.
    pub experts: usize,
    /// Layer width.
    pub hidden: usize,
    /// Expert FFN width.
    pub inter: usize,
    /// Points by rising tokens.
    pub points: Vec<LatencyPoint>,
}

/// One point of a [`LatencyCurve`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyPoint {
    /// Tokens entering the layer.
    pub tokens: f64,
    /// Latency in microseconds.
    pub latency_us: f64,
    /// Lower end of its 95 % interval.
    pub lo_us: f64,
    /// Upper end of its 95 % interval.
    pub hi_us: f64,
    /// Where it comes from.
    pub source: Source,
    /// What the ceilings alone allow.
    pub roofline_us: f64,
}

/// The profile that a ranking rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileUsed {
    /// What `--profile` named, source by source.
    pub origin: String,
    /// Device as its driver or its data sheet names it.
    pub device: String,
    /// Engine whose kernels and constants were used; `none` for this program's own kernels alone.
    pub engine: String,
    /// Where the winner's latencies come from, by operation.
    pub operations: Vec<OperationSource>,
    /// Storage of the expert weights.
    pub dtype: String,
    /// When it was measured (UTC), for a profile of this program.
    pub measured_utc: Option<String>,
    /// Valid cells, for a profile of this program.
    pub cells: Option<usize>,
    /// Relative noise floor of the run, for a profile of this program.
    pub noise_floor_rel: Option<f64>,
    /// Median relative error of predicting a measured shape from the others, for a profile of this
    /// program.
    pub transfer_error_rel: Option<f64>,
    /// Memory bandwidth of the device, bytes per second: measured or published.
    pub read_bytes_per_s: f64,
    /// Dense rate of the device, FLOP/s: measured or published.
    pub gemm_flops_per_s: f64,
}

/// Where the latencies of one operation come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationSource {
    /// The operation.
    pub operation: String,
    /// How its latency was obtained, at worst.
    pub source: Source,
    /// Who measured it, in words.
    pub from: String,
}

/// The law that a ranking rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LawUsed {
    /// Identifier, or the file of a fit.
    pub id: String,
    /// Title and source.
    pub source: String,
    /// How its coefficients were drawn for `p_best`.
    pub uncertainty: String,
    /// The loss that equal-loss candidates reach, in nats per token.
    pub target_loss_nats: f64,
    /// Expert count whose loss-optimal model at the budget sets that loss, if it was not given.
    pub target_from_experts: Option<usize>,
}

/// One input of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assumption {
    /// Flag or quantity.
    pub name: String,
    /// Value with unit.
    pub value: String,
    /// Range drawn for the probabilities, if it is drawn.
    pub range: Option<String>,
    /// Source or reason.
    pub source: String,
    /// Whether it was left at its default.
    pub is_default: bool,
}
