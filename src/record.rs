//! What a measurement leaves behind: plain data, nothing that measures.
//!
//! Times are whole picoseconds, sizes whole bytes, rates `f64`. Every field carries its unit in its
//! name. Unknown fields are refused, an absent value says why, and no number is ever NaN.

pub mod group;

use serde::{Deserialize, Serialize};

use crate::config::DType;

pub use crate::files::sha256_hex;

/// Name that a profile file declares.
pub const PROFILE_SCHEMA: &str = "moe-frontier/profile";

/// Version of the profile format that this program writes: a new major means old readers must refuse.
/// 1.1 added what is known of GPUs: clocks and throttling, error correction, power limit. 1.2 added
/// the timing mode `hot`. 1.3 added why a run ended early. 1.5 added what changes between runs. 1.6 added the
/// flag of cells that are faster than the ceilings of their run, and the sweep that a run is a part of.
pub const PROFILE_VERSION: &str = "1.6";

/// Versions that this program reads.
pub const READABLE_VERSIONS: [&str; 7] =
    ["1.0", "1.1", "1.2", "1.3", "1.4", "1.5", PROFILE_VERSION];

/// Version of the measuring protocol. A change that moves numbers raises the major.
pub const PROTOCOL_VERSION: &str = "1.0";

/// A latency profile: what one run measured on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Always [`PROFILE_SCHEMA`].
    pub schema: String,
    /// `major.minor` of the file format.
    pub schema_version: String,
    /// `major.minor` of the measuring protocol.
    pub protocol_version: String,
    /// What must match before two runs may be merged or compared.
    pub key: Key,
    /// What is recorded but never matched.
    pub provenance: Provenance,
    /// The run as a whole: ceilings, noise floor.
    pub run: RunInfo,
    /// One entry per measured configuration.
    pub cells: Vec<Cell>,
}

/// The matched parts, each hashed apart so that a refusal can name what differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The device.
    pub device: Device,
    /// SHA-256 over the matched fields of `device`.
    pub device_sha256: String,
    /// How it was measured.
    pub recipe: Recipe,
    /// SHA-256 over `recipe`.
    pub recipe_sha256: String,
}

impl Key {
    /// A key with its hashes.
    pub fn new(device: Device, recipe: Recipe) -> Self {
        let (device_sha256, recipe_sha256) = (device.sha256(), recipe.sha256());
        Self { device, device_sha256, recipe, recipe_sha256 }
    }
}

/// The device that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// A host processor.
    Cpu(CpuDevice),
    /// A CUDA device.
    Gpu(GpuDevice),
}

impl Device {
    /// The name its vendor gives it.
    pub fn name(&self) -> &str {
        match self {
            Self::Cpu(cpu) => &cpu.name,
            Self::Gpu(gpu) => &gpu.name,
        }
    }

    /// Memory that weights and caches must share.
    pub const fn memory_bytes(&self) -> u64 {
        match self {
            Self::Cpu(cpu) => cpu.memory_bytes,
            Self::Gpu(gpu) => gpu.memory_bytes,
        }
    }

    /// SHA-256 over the fields that must match before two runs are merged or compared.
    pub fn sha256(&self) -> String {
        match self {
            // Installed memory moves by a few pages between boots of one machine.
            Self::Cpu(cpu) => {
                sha256_hex(format!("{:?}", Self::Cpu(CpuDevice { memory_bytes: 0, ..cpu.clone() })))
            }
            Self::Gpu(_) => sha256_hex(format!("{self:?}")),
        }
    }
}

impl Recipe {
    /// SHA-256 over the recipe.
    pub fn sha256(&self) -> String {
        sha256_hex(format!("{self:?}"))
    }
}

/// A processor as the operating system reports it. Clock rates and other analog readings are left
/// out: they differ between two readings of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuDevice {
    /// Model name.
    pub name: String,
    /// Instruction sets found at run time that kernels may use, in a fixed order.
    pub isa: Vec<String>,
    /// Threads that the kernels ran on.
    pub threads: usize,
    /// Size of one second-level cache.
    pub l2_bytes: Option<u64>,
    /// Size of one last-level cache, shared by its cores.
    pub l3_bytes: Option<u64>,
    /// Installed memory; recorded, not matched (it moves by a few pages between boots).
    pub memory_bytes: u64,
}

/// A CUDA device as its driver reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuDevice {
    /// Product name.
    pub name: String,
    /// Compute capability, `major.minor`.
    pub sm: String,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Total memory.
    pub memory_bytes: u64,
    /// Second-level cache.
    pub l2_bytes: u64,
    /// CUDA version that the driver supports, `major.minor`.
    pub driver_cuda: String,
    /// Whether errors of the memory are corrected, where the driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc: Option<bool>,
    /// Power limit that is enforced, in milliwatts, where the driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_mw: Option<u32>,
}

/// How the cells were measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// How activations and weights were drawn.
    pub data: String,
    /// Major of the measuring protocol.
    pub protocol_major: u32,
    /// Seed of everything random, as a hexadecimal string.
    pub seed: String,
}

/// Where and when a run took place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Program name and version.
    pub program: String,
    /// Operating system and kernel release.
    pub os: String,
    /// Arguments of the program, without its path.
    pub argv: Vec<String>,
    /// Seconds since 1970-01-01 UTC at the start.
    pub start_unix_s: u64,
    /// The same at the end.
    pub end_unix_s: u64,
    /// One-minute load average at the start, where the system has one.
    pub load_1min: Option<f64>,
    /// Share of processor time that the hypervisor gave to others during the run, where known.
    pub steal_rel: Option<f64>,
    /// Files of the driver's libraries that the kernels ran by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub libraries: Vec<String>,
}

/// The run as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInfo {
    /// Hexadecimal identifier, drawn once per run.
    pub id: String,
    /// Rounds that every complete cell has a block of, at least.
    pub rounds: u32,
    /// Relative effect of one kernel compared with itself in turns.
    pub aa_effect_rel: f64,
    /// Half-width of that comparison: smaller effects cannot be told apart on this machine.
    pub noise_floor_rel: f64,
    /// Whether that comparison found a difference where there is none.
    pub aa_verdict: AaVerdict,
    /// What the device reached.
    pub ceilings: RunCeilings,
    /// What changes between two runs and is constant in one, as a share: every interval is wider by it on
    /// either side than the blocks of this run alone make it. Absent in files that know nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between_runs_rel: Option<f64>,
    /// Why the run ended before its plan did: cells that were not finished are `incomplete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<String>,
    /// The plan of a sweep that the run measured, and the hosts that did. Absent in runs on their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Sweep>,
}

/// A plan that several runs measure together, and what their anchors say of the hosts: cells that every
/// one of them measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// SHA-256 of the plan file.
    pub plan_sha256: String,
    /// Hosts by name.
    pub hosts: Vec<SweepHost>,
    /// How far the slowest host lies above the fastest in the anchor that shows most, as a share. The
    /// intervals are at least as wide on either side.
    pub hosts_spread_rel: f64,
}

/// A host of a sweep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepHost {
    /// Its name; several, joined by `+`, where one run went from host to host.
    pub name: String,
    /// Anchors that have a value there.
    pub anchors: Vec<AnchorRange>,
}

/// Medians of one anchor on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorRange {
    /// Number of the cell in the plan, from 0.
    pub cell: usize,
    /// Least of its medians.
    pub lo_ps: u64,
    /// Largest.
    pub hi_ps: u64,
}

/// Outcome of comparing one kernel with itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AaVerdict {
    /// The interval holds zero.
    Clean,
    /// It does not: no verdict of this run means anything.
    Biased,
}

/// Rates measured in the same rounds as the cells. `best` is the fastest sample of the run: no
/// kernel may imply more; the plain value is the median that dense parts are priced by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunCeilings {
    /// Median read bandwidth over a buffer that no cache holds.
    pub read_bytes_per_s: f64,
    /// Fastest sample of the same.
    pub read_best_bytes_per_s: f64,
    /// Median rate of a large dense product in the serving dtype.
    pub gemm_flops_per_s: f64,
    /// Fastest sample of the same.
    pub gemm_best_flops_per_s: f64,
    /// Storage of the weights of that product.
    pub gemm_dtype: DType,
    /// What computed that product.
    pub gemm_kernel: String,
    /// Median time to hand an empty task to every thread (CPU) or launch an empty kernel (GPU).
    pub dispatch_ps: u64,
}

/// One measured configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// What was timed.
    pub op: Op,
    /// Name of the kernel.
    pub kernel: String,
    /// SHA-256 of its source and build settings.
    pub kernel_sha256: String,
    /// Which kernels were planned for this batch, with the reason, where several could run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// How it was timed.
    pub timing: TimingMode,
    /// Whether the value may be used.
    pub status: Status,
    /// Circumstances that a reader must know.
    pub flags: Vec<Flag>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width of one expert.
    pub inter: usize,
    /// Experts on the device.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Whether the expert is gated (three matrices).
    pub gated: bool,
    /// Tokens entering the layer.
    pub tokens: usize,
    /// Storage of the expert weights.
    pub dtype: DType,
    /// Bits of one stored expert weight, scales included.
    pub weight_bits: f64,
    /// Which expert the tokens went to.
    pub routing: RoutingRecord,
    /// The value, or why there is none.
    pub latency: LatencyRecord,
    /// Upper percentiles over single samples.
    pub percentiles: Percentiles,
    /// The blocks that the value rests on.
    pub blocks: Vec<Block>,
    /// Counts over all samples.
    pub counts: Counts,
    /// Work of one launch, averaged over the routing realisations.
    pub work: WorkRecord,
    /// Whether the output was right.
    pub check: CheckRecord,
}

/// What tells one cell of a plan from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellKey {
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width of one expert.
    pub inter: usize,
    /// Experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Whether the expert is gated.
    pub gated: bool,
    /// Tokens entering the layer.
    pub tokens: usize,
    /// How it is timed.
    pub timing: TimingMode,
}

impl std::fmt::Display for CellKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { hidden, inter, experts, top_k, gated, tokens, timing } = self;
        let plain = if *gated { "" } else { ", not gated" };
        let timing = timing.label();
        write!(
            f,
            "{experts} experts of {hidden} x {inter}{plain}, top-{top_k}, {tokens} tokens, {timing}"
        )
    }
}

impl Cell {
    /// What tells the cell from the others of its plan.
    pub const fn key(&self) -> CellKey {
        let Self { hidden, inter, experts, top_k, gated, tokens, timing, .. } = *self;
        CellKey { hidden, inter, experts, top_k, gated, tokens, timing }
    }

    /// Whether the value may stand in a table: measured, checked, from memory.
    pub fn is_usable(&self) -> bool {
        matches!(self.status, Status::Valid | Status::Noisy)
            && self.timing.is_costed()
            && self.latency.interval().is_some()
            && !self.flags.contains(&Flag::CacheResident)
    }

    /// The rates that the value implies and the fastest that the device was measured to have: in FLOP/s,
    /// and in bytes/s where the weights come from memory.
    fn implied(&self, ceilings: &RunCeilings) -> Vec<(&'static str, f64, f64)> {
        let Some(interval) = self.latency.interval() else { return Vec::new() };
        let seconds = interval.median_ps as f64 * 1e-12;
        let cached = self.timing == TimingMode::Hot || self.flags.contains(&Flag::CacheResident);
        let bytes = ("bytes/s", self.work.bytes_min / seconds, ceilings.read_best_bytes_per_s);
        let mut implied =
            vec![("FLOP/s", self.work.flops / seconds, ceilings.gemm_best_flops_per_s)];
        implied.extend((!cached).then_some(bytes));
        implied
    }

    /// Whether the value implies more than the device's fastest measured sample. The tests of a ceiling
    /// are kernels as well, and miss it by some per cent; see [`Self::check_physics`].
    pub fn is_above_ceiling(&self, ceilings: &RunCeilings) -> bool {
        self.implied(ceilings).iter().any(|(_, rate, best)| rate > best)
    }

    /// The physics gate: a time that implies more than the device's fastest measured sample by more than
    /// 5 % is wrong, whatever the clock said.
    ///
    /// # Errors
    /// A sentence with the implied and the measured rate.
    pub fn check_physics(&self, ceilings: &RunCeilings) -> Result<(), String> {
        const MOST: f64 = 1.05;
        match self.implied(ceilings).iter().find(|(_, rate, best)| *rate > MOST * best) {
            Some((unit, rate, best)) => {
                Err(format!("implies {rate:.3e} {unit}, the device's best is {best:.3e}"))
            }
            None => Ok(()),
        }
    }
}

/// What a cell times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Router, align, both grouped GEMMs, activation and combine.
    MoeLayer,
}

/// How a cell is timed; two modes never stand in one series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimingMode {
    /// Monotonic clock around each launch, weight sets rotating through memory.
    Cpu,
    /// GPU events after flushing the second-level cache.
    Cold,
    /// GPU graph of launches over rotating weights and routings, more of them than the second-level
    /// cache holds: what serving does step after step.
    Stream,
    /// GPU graph of launches with the same weights and routing: a bound, never a cost.
    Hot,
}

impl TimingMode {
    /// The word that flags, files and tables use.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cold => "cold",
            Self::Stream => "stream",
            Self::Hot => "hot",
        }
    }

    /// Whether a cost may rest on times of this mode.
    pub const fn is_costed(self) -> bool {
        !matches!(self, Self::Hot)
    }
}

/// Whether a cell's value may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Without restriction.
    Valid,
    /// The interval stayed wider than the limit: kept, drawn hollow, out of verdicts.
    Noisy,
    /// Fewer blocks than an interval needs.
    Incomplete,
    /// The device was slowed down by heat or power in every attempt: there is no value.
    Throttled,
    /// It could not be run.
    Failed,
    /// It ran, but its output or its speed is not credible.
    Refused,
}

/// A circumstance of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// The weights touched in one cycle fit twice into the last-level cache.
    CacheResident,
    /// More runnable threads than cores, or stolen time, during a block.
    Contended,
    /// More than 5 % of the samples lie beyond Tukey's outer fences.
    SevereOutliers,
    /// The power limit held the clock in some block, as it does on busy cards.
    PowerLimited,
    /// The value implies up to 5 % more than the fastest sample of the run's ceilings: kept, because the
    /// tests of ceilings miss them by some per cent.
    AboveCeiling,
}

/// The tokens' way through the experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingRecord {
    /// Name of the distribution.
    pub kind: String,
    /// Seed, as a hexadecimal string.
    pub seed: String,
    /// Independent draws that the samples rotate over.
    pub realisations: usize,
    /// Distinct experts with at least one row, averaged over the draws.
    pub active_experts: f64,
    /// Rows of the busiest expert, averaged over the draws.
    pub max_rows: f64,
    /// (max - min) / median over the draws' own median times; beside the interval, never in it.
    pub routing_spread_rel: Option<f64>,
}

/// A value or the reason for its absence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencyRecord {
    /// A median with its interval.
    Interval(IntervalRecord),
    /// Why there is no value.
    Absent(String),
}

impl LatencyRecord {
    /// The interval, when there is one.
    pub const fn interval(&self) -> Option<&IntervalRecord> {
        match self {
            Self::Interval(interval) => Some(interval),
            Self::Absent(_) => None,
        }
    }
}

/// The median over block medians with its distribution-free interval, wider by
/// [`RunInfo::between_runs_rel`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntervalRecord {
    /// Median of the block medians.
    pub median_ps: u64,
    /// Lower end.
    pub lo_ps: u64,
    /// Upper end.
    pub hi_ps: u64,
    /// Probability that such an interval covers the true median.
    pub confidence: f64,
    /// Blocks.
    pub n: usize,
    /// What the blocks are independent of.
    pub interval_unit: IntervalUnit,
}

/// What one value of the interval comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntervalUnit {
    /// One process per block.
    Process,
    /// Blocks of one process, which share its memory layout and its bias.
    Block,
}

/// Upper percentiles over single samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Percentiles {
    /// 90 %.
    pub p90: PercentileRecord,
    /// 99 %.
    pub p99: PercentileRecord,
}

/// A percentile or why it is withheld.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PercentileRecord {
    /// The order statistic.
    ValuePs(u64),
    /// How many samples it would need.
    Withheld(String),
}

/// One block: consecutive samples of one cell in one round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Round that the block belongs to, from 1.
    pub round: u32,
    /// Median over its samples, for one launch.
    pub median_ps: u64,
    /// Samples.
    pub samples: usize,
    /// Launches in one sample.
    pub launches_per_sample: u32,
    /// Whether the machine was contended.
    pub contended: bool,
    /// Clock of the GPU's multiprocessors at the end of the block, where the driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm_clock_mhz: Option<u32>,
}

/// Counts over all samples of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Samples.
    pub samples: usize,
    /// Beyond the quartiles by 1.5 interquartile ranges.
    pub tukey_mild: usize,
    /// Beyond them by 3.
    pub tukey_severe: usize,
}

/// Work of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkRecord {
    /// Arithmetic of the expert GEMMs.
    pub flops: f64,
    /// Fewest bytes: each active expert's weights once, input and output activations once.
    pub bytes_min: f64,
    /// Rows computed: tokens x `top_k`.
    pub rows: usize,
}

/// The comparison of the timed outputs with the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRecord {
    /// Whether every checked output lay within the bound.
    pub output: CheckOutcome,
    /// Largest deviation over the tolerance; `None` when nothing could be compared.
    pub worst_ratio_to_bound: Option<f64>,
}

/// Outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// Within the tolerance.
    Pass,
    /// Outside.
    Fail,
    /// The cell failed before anything could be checked.
    NotRun,
}
