//! Kernel times on one device from engine tables of the same or of another one.
//!
//! A table's time is split into a floor (launches, sorting of tokens) and work. The floor moves
//! unchanged; the work is the roofline of the question divided by the share of the roofline that the
//! table's kernel reached at the same place: of its experts hit and rows per expert for a MoE layer,
//! of its sizes for dense products and attention. With no table at all, or none of the number
//! format, the share is assumed and the answer is labelled a roofline.

use super::engine_tables::{AttentionSeries, EngineTables, MoeSeries, Phase};
use crate::config::{DType, DeviceSpec};
use crate::latency::latency::Source;
use crate::units::Seconds;
use crate::{Error, Result};

/// Shares and floors that are assumed where no table answers: middle of what H100 tables show.
mod assumed {
    /// Of memory bandwidth by grouped products (0.68-0.91 in the tables).
    pub(super) const READ: f64 = 0.8;
    /// Of the arithmetic peak by large products (0.5-0.8).
    pub(super) const ARITHMETIC: f64 = 0.6;
    /// Of the arithmetic peak by causal attention of prompts (0.15-0.6).
    pub(super) const PROMPT_ATTENTION: f64 = 0.4;
    /// Of memory bandwidth by decode attention (0.3-0.9).
    pub(super) const CACHE_READ: f64 = 0.65;
    /// One MoE layer of one token beyond its bytes, in seconds.
    pub(super) const MOE_FLOOR: f64 = 30e-6;
    /// One dense product or attention, in seconds.
    pub(super) const KERNEL_FLOOR: f64 = 4e-6;
    /// One all-reduce of few bytes, and one collective of NCCL, in seconds.
    pub(super) const COLLECTIVE_FLOOR: f64 = 8e-6;
    /// Of the link's bandwidth per direction by an all-reduce's message (ring factors inside).
    pub(super) const LINK: f64 = 0.46;
}

/// Rates of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// Published memory bandwidth in bytes per second.
    pub read_bytes_per_s: f64,
    /// Published link bandwidth per direction in bytes per second.
    pub link_bytes_per_s: f64,
    flops16: f64,
    flops8: Option<f64>,
}

impl Rates {
    /// The published rates of a device.
    ///
    /// # Errors
    /// [`Error::Unfit`] when no 16-bit peak is known.
    pub fn of(device: &DeviceSpec) -> Result<Self> {
        let flops16 = device.peak(DType::Bf16).or_else(|| device.peak(DType::F16));
        Ok(Self {
            read_bytes_per_s: device.read_bytes_per_s,
            link_bytes_per_s: device.link_bytes_per_s,
            flops16: flops16
                .ok_or_else(|| Error::unfit(&device.name, "no published 16-bit peak"))?,
            flops8: device.peak(DType::Fp8),
        })
    }

    /// Peak of products whose weights are stored in `dtype`. Four-bit weights are multiplied in 16
    /// bits, and so are 8-bit ones on devices without 8-bit arithmetic.
    fn flops(&self, dtype: DType) -> f64 {
        match dtype {
            DType::Fp8 | DType::Int8 => self.flops8.unwrap_or(self.flops16),
            _ => self.flops16,
        }
    }
}

/// A time with its origin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timed {
    /// The time.
    pub value: Seconds,
    /// Where it comes from.
    pub source: Source,
    /// Share of the time in which arithmetic, not memory, is the limit: 0 to 1.
    pub arithmetic: f64,
}

impl Timed {
    /// Nothing to do.
    pub const NONE: Self = Self { value: Seconds::ZERO, source: Source::Measured, arithmetic: 0.0 };

    /// A time of work that needs `read` seconds of memory and `compute` seconds of arithmetic at
    /// their peaks.
    fn of(seconds: f64, source: Source, read: f64, compute: f64) -> Self {
        let arithmetic = if compute > 0.0 { compute / (compute + read) } else { 0.0 };
        Self { value: Seconds(seconds), source, arithmetic }
    }
}

/// The part of a MoE layer that the busiest rank executes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoeWork {
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width of one expert on this rank.
    pub inter: usize,
    /// Experts on this rank.
    pub local_experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Three matrices or two.
    pub gated: bool,
    /// Storage of the expert weights.
    pub dtype: DType,
    /// Experts of this rank with at least one row.
    pub active: f64,
    /// Rows of this rank.
    pub rows: f64,
}

impl MoeWork {
    fn expert_params(&self) -> f64 {
        let matrices = if self.gated { 3.0 } else { 2.0 };
        matrices * self.hidden as f64 * self.inter as f64
    }
}

/// The attention of one layer on one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionWork {
    /// Query heads on the rank.
    pub heads: usize,
    /// Key/value heads on the rank (1 for a latent cache).
    pub kv_heads: usize,
    /// Sequences.
    pub sequences: f64,
    /// Tokens that each sequence attends to.
    pub context: f64,
    /// Bytes that the cache of one token takes on this rank in one layer.
    pub cache_bytes: f64,
    /// FLOPs of one query token and one context token on this rank.
    pub pair_flops: f64,
}

/// Times of kernels on one device.
#[derive(Clone, Debug)]
pub struct KernelTimes {
    target: Rates,
    origin: Rates,
    moved: bool,
    moe: Vec<MoeCurve>,
    gemm: Vec<GemmCurve>,
    decode: Vec<AttentionCurve>,
    prompt: Vec<AttentionCurve>,
    links: Vec<LinkCurve>,
}

impl KernelTimes {
    /// Times on `target`, from `tables` as far as they go. Kernels of `engine` (as a table names
    /// it) are preferred.
    ///
    /// # Errors
    /// [`Error::Unfit`] when the tables' device is not known, so that nothing can be carried over.
    pub fn new(tables: Option<&EngineTables>, target: &DeviceSpec, engine: &str) -> Result<Self> {
        let rates = Rates::of(target)?;
        let mut times = Self {
            target: rates.clone(),
            origin: rates,
            moved: false,
            moe: Vec::new(),
            gemm: Vec::new(),
            decode: Vec::new(),
            prompt: Vec::new(),
            links: Vec::new(),
        };
        let Some(tables) = tables else { return Ok(times) };
        let origin = DeviceSpec::of_driver_name(&tables.device).ok_or_else(|| {
            let reason = "its peaks are not known, so its times cannot be carried over";
            Error::unfit(format!("tables of `{}`", tables.device), reason)
        })?;
        times.origin = Rates::of(&origin)?;
        times.moved = origin.name != target.name;
        times.fill(tables, engine);
        Ok(times)
    }

    fn fill(&mut self, tables: &EngineTables, engine: &str) {
        let origin = &self.origin;
        self.moe = tables
            .moe
            .iter()
            .filter(|s| s.distribution == "balanced")
            .filter_map(|s| MoeCurve::new(s, engine))
            .collect();
        let preferred = |name: &str| name == engine;
        let any_gemm = tables.gemm.iter().any(|s| preferred(&s.kernel.engine));
        let fallback = tables.gemm.first().map_or("", |s| s.kernel.engine.as_str());
        let chosen = if any_gemm { engine } else { fallback };
        self.gemm = tables
            .gemm
            .iter()
            .filter(|s| s.kernel.engine == chosen)
            .map(|s| GemmCurve {
                at: [(s.n as f64).ln(), (s.k as f64).ln()],
                shares: s
                    .m
                    .iter()
                    .zip(&s.latency_ms)
                    .map(|(&m, &ms)| {
                        let sol = gemm_sol(origin, m as f64, s.n as f64, s.k as f64, DType::Bf16);
                        ((m as f64).ln(), (sol / (ms / 1e3)).ln())
                    })
                    .collect(),
            })
            .collect();
        let any_attention = tables.attention.iter().any(|s| preferred(&s.kernel.engine));
        let fallback = tables.attention.first().map_or("", |s| s.kernel.engine.as_str());
        let chosen = if any_attention { engine } else { fallback };
        let of_engine: Vec<&AttentionSeries> =
            tables.attention.iter().filter(|s| s.kernel.engine == chosen).collect();
        self.decode = attention_curves(&of_engine, Phase::Generation, origin);
        self.prompt = attention_curves(&of_engine, Phase::Context, origin);
        self.links = tables
            .links
            .iter()
            // Decoding runs in captured graphs.
            .filter(|s| s.backend != "vllm_eager" && s.kernel.dtype != "int8")
            .map(|s| LinkCurve {
                operation: s.operation.clone(),
                custom: s.backend != "nccl",
                devices: s.devices,
                points: s
                    .message_bytes
                    .iter()
                    .zip(&s.latency_ms)
                    .map(|(b, ms)| (b.ln(), ms / 1e3))
                    .collect(),
            })
            .collect();
    }

    /// Source of a time that a table of exactly this shape answers.
    fn interpolated(&self) -> Source {
        if self.moved { Source::Transferred } else { Source::Interpolated }
    }

    /// Router's top-k to combine of one MoE layer on the busiest rank.
    pub fn moe(&self, work: &MoeWork) -> Timed {
        if work.rows <= 0.0 {
            return Timed::NONE;
        }
        let sol = moe_sol(&self.target, work, work.active, work.rows / work.active);
        let nearest = self
            .moe
            .iter()
            .filter(|c| c.dtype == work.dtype || (c.dtype, work.dtype) == (DType::Bf16, DType::F16))
            .min_by(|a, b| a.distance(work).total_cmp(&b.distance(work)));
        let Some(curve) = nearest else {
            let (read, compute) = self.moe_limits(work);
            let seconds = (read / assumed::READ).max(compute / assumed::ARITHMETIC);
            return Timed::of(assumed::MOE_FLOOR + seconds, Source::Roofline, read, compute);
        };
        let source = if curve.is(work) { self.interpolated() } else { Source::Transferred };
        let share = (work.active / work.local_experts as f64).min(1.0);
        let active = share * curve.local_experts;
        let rows = (work.rows / work.active).max(1.0);
        let at = MoeWork { hidden: curve.hidden, inter: curve.inter, gated: true, ..*work };
        let reached = moe_sol(&self.origin, &at, active, rows);
        let spent = (curve.time(active, rows) - curve.floor).max(reached);
        let (read, compute) = self.moe_limits(work);
        Timed::of(curve.floor + sol * spent / reached, source, read, compute)
    }

    /// Seconds of memory and of arithmetic that a MoE layer needs at the device's peaks.
    fn moe_limits(&self, work: &MoeWork) -> (f64, f64) {
        let params = work.expert_params();
        let read = work.active * params * work.dtype.bits() / 8.0 / self.target.read_bytes_per_s;
        (read, 2.0 * params * work.rows / self.target.flops(work.dtype))
    }

    /// A dense product of `m` rows with a `k x n` weight stored in `dtype`.
    pub fn gemm(&self, m: f64, n: f64, k: f64, dtype: DType) -> Timed {
        if m <= 0.0 || n <= 0.0 || k <= 0.0 {
            return Timed::NONE;
        }
        let sol = gemm_sol(&self.target, m, n, k, dtype);
        let read = k * n * dtype.bits() / 8.0 / self.target.read_bytes_per_s;
        let compute = 2.0 * m * n * k / self.target.flops(dtype);
        let Some(ln_util) = gemm_ln_util(&self.gemm, m, n, k) else {
            let seconds = (read / assumed::READ).max(compute / assumed::ARITHMETIC);
            return Timed::of(assumed::KERNEL_FLOOR + seconds, Source::Roofline, read, compute);
        };
        let value = (sol / ln_util.exp()).max(assumed::KERNEL_FLOOR);
        let same = matches!(dtype, DType::Bf16 | DType::F16);
        let source = if same { self.interpolated() } else { Source::Transferred };
        Timed::of(value, source, read, compute)
    }

    /// Attention of decoding sequences in one layer.
    pub fn decode_attention(&self, work: &AttentionWork) -> Timed {
        if work.sequences <= 0.0 {
            return Timed::NONE;
        }
        let bytes = work.sequences * work.context * work.cache_bytes;
        let flops = work.sequences * work.context * work.pair_flops;
        let (read, compute) = (bytes / self.target.read_bytes_per_s, flops / self.target.flops16);
        let sol = read.max(compute);
        // The share follows the bytes that a sequence reads: its context at the table's width.
        let (util, source) = match nearest_attention(&self.decode, work) {
            Some(curve) => {
                let context = work.context * work.cache_bytes / curve.token_bytes();
                (curve.ln_util(work.sequences, context.max(1.0)).exp(), self.interpolated())
            }
            None => (assumed::CACHE_READ, Source::Roofline),
        };
        // Decoding is a mix of short kernels: its arithmetic never runs into the power limit.
        Timed::of((sol / util).max(assumed::KERNEL_FLOOR), source, read, 0.0)
    }

    /// Causal attention of `work.sequences` prompts of `work.context` tokens in one layer.
    pub fn prompt_attention(&self, work: &AttentionWork) -> Timed {
        if work.sequences <= 0.0 || work.context <= 0.0 {
            return Timed::NONE;
        }
        let pairs = work.sequences * work.context * work.context / 2.0;
        let sol = pairs * work.pair_flops / self.target.flops16;
        let (util, source) = match nearest_attention(&self.prompt, work) {
            Some(curve) => {
                (curve.ln_util(work.sequences.max(1.0), work.context).exp(), self.interpolated())
            }
            None => (assumed::PROMPT_ATTENTION, Source::Roofline),
        };
        Timed::of((sol / util).max(assumed::KERNEL_FLOOR), source, 0.0, sol)
    }

    /// An all-reduce of `bytes` between `devices`.
    ///
    /// # Errors
    /// [`Error::Unfit`] for more devices than one node of the tables has.
    pub fn all_reduce(&self, devices: usize, bytes: f64) -> Result<Timed> {
        self.collective("all_reduce", devices, bytes)
    }

    /// An all-to-all in which each of `devices` sends `bytes`.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn all_to_all(&self, devices: usize, bytes: f64) -> Result<Timed> {
        self.collective("alltoall", devices, bytes)
    }

    fn collective(&self, operation: &str, devices: usize, bytes: f64) -> Result<Timed> {
        if devices < 2 || bytes <= 0.0 {
            return Ok(Timed::NONE);
        }
        if devices > NODE {
            let reason =
                format!("links between nodes of more than {NODE} devices are not measured");
            return Err(Error::unfit(format!("{operation} of {devices} devices"), reason));
        }
        let of = |c: &&LinkCurve| c.operation == operation && c.devices >= devices;
        // The engine's own all-reduce is used where it exists; NCCL's otherwise.
        let curve = self.links.iter().filter(of).min_by_key(|c| (c.devices, !c.custom));
        let Some(curve) = curve else {
            let value =
                assumed::COLLECTIVE_FLOOR + bytes / (assumed::LINK * self.target.link_bytes_per_s);
            return Ok(Timed::of(value, Source::Roofline, 1.0, 0.0));
        };
        let floor = curve.points.first().map_or(0.0, |p| p.1);
        let time = interpolate(&curve.points, bytes.ln());
        let slower = self.origin.link_bytes_per_s / self.target.link_bytes_per_s;
        let seconds = floor + (time - floor).max(0.0) * slower;
        Ok(Timed::of(seconds, self.interpolated(), 1.0, 0.0))
    }
}

/// Devices of one node.
const NODE: usize = 8;

/// Roofline of a MoE layer whose `active` experts get `rows` rows each.
fn moe_sol(rates: &Rates, work: &MoeWork, active: f64, rows: f64) -> f64 {
    let params = work.expert_params();
    let read = active * params * work.dtype.bits() / 8.0 / rates.read_bytes_per_s;
    read.max(2.0 * params * active * rows / rates.flops(work.dtype))
}

fn gemm_sol(rates: &Rates, m: f64, n: f64, k: f64, dtype: DType) -> f64 {
    let bytes = k * n * dtype.bits() / 8.0 + 2.0 * m * (n + k);
    (bytes / rates.read_bytes_per_s).max(2.0 * m * n * k / rates.flops(dtype))
}

/// A balanced series as two branches: fewer rows than experts, and all experts hit.
#[derive(Clone, Debug)]
struct MoeCurve {
    hidden: usize,
    inter: usize,
    local_experts: f64,
    top_k: usize,
    dtype: DType,
    /// Penalty of this engine and kernel against the one asked for.
    penalty: f64,
    /// Time beyond what grows with the experts hit, in seconds.
    floor: f64,
    /// Experts hit with one row each, and seconds.
    few: Vec<(f64, f64)>,
    /// ln rows per expert with all experts hit, and ln seconds.
    full: Vec<(f64, f64)>,
}

impl MoeCurve {
    fn new(series: &MoeSeries, engine: &str) -> Option<Self> {
        let dtype = stored_as(&series.kernel.dtype)?;
        let local = (series.experts / series.expert_parallel) as f64;
        let mut few = Vec::new();
        let mut full = Vec::new();
        for (&tokens, &ms) in series.tokens.iter().zip(&series.latency_ms) {
            let rows = (tokens * series.top_k) as f64 / series.expert_parallel as f64;
            if rows <= local {
                few.push((rows.max(1.0), ms / 1e3));
            }
            if rows >= local {
                full.push(((rows / local).ln(), (ms / 1e3).ln()));
            }
        }
        // Without a point at exactly one row an expert, the first of the full branch stands for it.
        let at_one = full.first()?.1.exp();
        if few.last().is_none_or(|p| p.0 < local) {
            few.push((local, at_one));
        }
        few.dedup_by(|b, a| b.0 <= a.0);
        let (first, last) = (few[0], few[few.len() - 1]);
        let slope = ((last.1 - first.1) / (last.0 - first.0).max(1e-9)).max(0.0);
        let floor =
            if few.len() > 1 { (first.1 - slope * first.0).clamp(0.0, first.1) } else { 0.0 };
        let other_engine = if series.kernel.engine == engine { 0.0 } else { 0.5 };
        // Per-tensor fp8 of one engine runs another, slower kernel than the block-scaled one
        // that servers of public fp8 checkpoints use.
        let other_kernel = if series.kernel.dtype == "fp8" { 0.2 } else { 0.0 };
        Some(Self {
            hidden: series.hidden,
            inter: series.inter / series.tensor_parallel,
            local_experts: local,
            top_k: series.top_k,
            dtype,
            penalty: other_engine + other_kernel,
            floor,
            few,
            full,
        })
    }

    fn is(&self, work: &MoeWork) -> bool {
        (self.hidden, self.inter, self.top_k) == (work.hidden, work.inter, work.top_k)
            && (self.local_experts - work.local_experts as f64).abs() < 0.5
    }

    /// How far this curve's shape is from the one asked for, in natural logarithms.
    fn distance(&self, work: &MoeWork) -> f64 {
        let ratio = |a: f64, b: f64| (a / b).ln().abs();
        // Kernels see an expert's two widths; what counts first is the size of one expert.
        let size =
            ratio(self.hidden as f64 * self.inter as f64, work.hidden as f64 * work.inter as f64);
        let width = ratio(self.hidden as f64, work.hidden as f64);
        let experts = ratio(self.local_experts, work.local_experts as f64);
        let top_k = ratio(self.top_k as f64, work.top_k as f64);
        size + 0.5 * width + 0.5 * experts + 0.2 * top_k + self.penalty
    }

    /// Seconds with `active` experts of `rows` rows each.
    fn time(&self, active: f64, rows: f64) -> f64 {
        let full = |rows: f64| interpolate(&self.full, rows.max(1.0).ln()).exp();
        if active >= self.local_experts {
            return full(rows);
        }
        let first = self.few[0];
        let few = if active < first.0 {
            self.floor + (first.1 - self.floor) * active / first.0
        } else {
            interpolate(&self.few, active)
        };
        few * (full(rows) / full(1.0)).max(1.0)
    }
}

/// The storage that a table's number format stands for.
fn stored_as(dtype: &str) -> Option<DType> {
    match dtype {
        "bfloat16" => Some(DType::Bf16),
        "float16" => Some(DType::F16),
        "fp8" | "fp8_block" => Some(DType::Fp8),
        "w4a16_mxfp4" => Some(DType::Mxfp4),
        "int4_wo" => Some(DType::Int4),
        _ => None,
    }
}

/// One dense weight's share of the roofline against rows.
#[derive(Clone, Debug)]
struct GemmCurve {
    /// ln n and ln k.
    at: [f64; 2],
    /// ln rows and ln share.
    shares: Vec<(f64, f64)>,
}

/// Share of the roofline at a size, from the tabulated weights around it (inverse distance in ln n
/// and ln k; the size itself, where it is tabulated).
fn gemm_ln_util(curves: &[GemmCurve], m: f64, n: f64, k: f64) -> Option<f64> {
    let (mut weights, mut sum) = (0.0, 0.0);
    for curve in curves {
        let squared = (curve.at[0] - n.ln()).powi(2) + (curve.at[1] - k.ln()).powi(2);
        let weight = 1.0 / (squared + 1e-6).powi(2);
        weights += weight;
        sum += weight * interpolate(&curve.shares, m.ln());
    }
    (weights > 0.0).then(|| sum / weights)
}

/// Attention of one number of heads: share of the roofline against context and batch.
#[derive(Clone, Debug)]
struct AttentionCurve {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// ln context, and (ln batch, ln share) at it.
    contexts: Vec<(f64, Vec<(f64, f64)>)>,
}

impl AttentionCurve {
    /// Cache of one token in 16 bits.
    fn token_bytes(&self) -> f64 {
        4.0 * (self.kv_heads * self.head_dim) as f64
    }

    fn ln_util(&self, batch: f64, context: f64) -> f64 {
        let at: Vec<(f64, f64)> = self
            .contexts
            .iter()
            .map(|(ln_context, points)| (*ln_context, interpolate(points, batch.ln())))
            .collect();
        interpolate(&at, context.ln())
    }
}

fn attention_curves(
    series: &[&AttentionSeries],
    phase: Phase,
    origin: &Rates,
) -> Vec<AttentionCurve> {
    let mut curves: Vec<AttentionCurve> = Vec::new();
    // Series are sorted by heads, then by context.
    for s in series.iter().filter(|s| s.phase == phase && s.window == 0) {
        let context = s.context as f64;
        let flops = 4.0 * (s.heads * s.head_dim) as f64;
        let cache = 4.0 * (s.kv_heads * s.head_dim) as f64;
        let points: Vec<(f64, f64)> = s
            .batch
            .iter()
            .zip(&s.latency_ms)
            .map(|(&batch, &ms)| {
                let batch = batch as f64;
                let sol = match phase {
                    Phase::Context => batch * context * context / 2.0 * flops / origin.flops16,
                    Phase::Generation => (batch * context * cache / origin.read_bytes_per_s)
                        .max(batch * context * flops / origin.flops16),
                };
                (batch.ln(), (sol / (ms / 1e3)).ln())
            })
            .collect();
        let same = |c: &AttentionCurve| {
            (c.heads, c.kv_heads, c.head_dim) == (s.heads, s.kv_heads, s.head_dim)
        };
        match curves.iter_mut().find(|c| same(c)) {
            Some(curve) => curve.contexts.push((context.ln(), points)),
            None => curves.push(AttentionCurve {
                heads: s.heads,
                kv_heads: s.kv_heads,
                head_dim: s.head_dim,
                contexts: vec![(context.ln(), points)],
            }),
        }
    }
    for curve in &mut curves {
        curve.contexts.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    curves
}

fn nearest_attention<'a>(
    curves: &'a [AttentionCurve],
    work: &AttentionWork,
) -> Option<&'a AttentionCurve> {
    let distance = |c: &AttentionCurve| {
        let kv = (c.kv_heads as f64 / work.kv_heads as f64).ln().abs();
        let heads = (c.heads as f64 / work.heads as f64).ln().abs();
        2.0 * kv + heads
    };
    curves.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// A collective's seconds against ln bytes.
#[derive(Clone, Debug)]
struct LinkCurve {
    operation: String,
    custom: bool,
    devices: usize,
    points: Vec<(f64, f64)>,
}

/// Linear between points; beyond the ends their value.
fn interpolate(points: &[(f64, f64)], x: f64) -> f64 {
    let after = points.partition_point(|p| p.0 < x);
    match (after.checked_sub(1).and_then(|i| points.get(i)), points.get(after)) {
        (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0),
        (Some(p), None) | (None, Some(p)) => p.1,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::engine_tables::{
        GemmSeries, Kernel, LinkSeries, TABLES_SCHEMA, TABLES_VERSION,
    };
    use super::*;

    fn kernel(dtype: &str) -> Kernel {
        let text = |t: &str| t.to_owned();
        Kernel { engine: text("vllm"), version: text("1"), name: text("x"), dtype: text(dtype) }
    }

    /// Tables of a device that reads at 80 % of its peak, with 10 us of floor in a MoE layer.
    fn tables() -> EngineTables {
        let tokens: Vec<usize> = vec![1, 2, 4, 8, 16, 64];
        let expert_ms = 3.0 * 4096.0 * 14336.0 * 2.0 / (0.8 * 3.35e12) * 1e3;
        let latency_ms = tokens.iter().map(|&t| 0.01 + expert_ms * (2 * t).min(8) as f64).collect();
        EngineTables {
            schema: TABLES_SCHEMA.into(),
            schema_version: TABLES_VERSION.into(),
            program: "test".into(),
            device: "NVIDIA H100 80GB HBM3".into(),
            files: Vec::new(),
            left_out: Vec::new(),
            moe: vec![MoeSeries {
                kernel: kernel("bfloat16"),
                hidden: 4096,
                inter: 14336,
                top_k: 2,
                experts: 8,
                tensor_parallel: 1,
                expert_parallel: 1,
                distribution: "balanced".into(),
                tokens,
                latency_ms,
            }],
            gemm: vec![GemmSeries {
                kernel: kernel("bfloat16"),
                n: 4096,
                k: 4096,
                m: vec![1, 1024],
                latency_ms: vec![0.02, 0.06],
            }],
            attention: Vec::new(),
            links: vec![LinkSeries {
                kernel: kernel("half"),
                operation: "all_reduce".into(),
                backend: "nccl".into(),
                devices: 8,
                message_bytes: vec![256.0, 1e6],
                latency_ms: vec![0.01, 0.02],
            }],
        }
    }

    fn work() -> MoeWork {
        MoeWork {
            hidden: 4096,
            inter: 14336,
            local_experts: 8,
            top_k: 2,
            gated: true,
            dtype: DType::Bf16,
            active: 5.47,
            rows: 8.0,
        }
    }

    fn on(device: &str) -> KernelTimes {
        KernelTimes::new(Some(&tables()), &DeviceSpec::load(device).unwrap(), "vllm").unwrap()
    }

    #[test]
    fn time_follows_the_experts_hit_not_the_tokens() {
        let time = on("h100").moe(&work());
        let expected = 10e-6 + 5.47 * 3.0 * 4096.0 * 14336.0 * 2.0 / (0.8 * 3.35e12);
        assert!((time.value.0 / expected - 1.0).abs() < 1e-6, "{}", time.value);
        assert_eq!(time.source, Source::Interpolated);
    }

    #[test]
    fn another_device_keeps_the_floor_and_scales_the_work() {
        let time = on("h200").moe(&work());
        let expected = 10e-6 + 5.47 * 3.0 * 4096.0 * 14336.0 * 2.0 / (0.8 * 4.8e12);
        assert!((time.value.0 / expected - 1.0).abs() < 1e-6, "{}", time.value);
        assert_eq!(time.source, Source::Transferred);
    }

    #[test]
    fn another_width_is_transferred_by_its_share_of_the_roofline() {
        let half = MoeWork { inter: 7168, ..work() };
        let time = on("h100").moe(&half);
        let expected = 10e-6 + 5.47 * 3.0 * 4096.0 * 7168.0 * 2.0 / (0.8 * 3.35e12);
        assert!((time.value.0 / expected - 1.0).abs() < 1e-6, "{}", time.value);
        assert_eq!(time.source, Source::Transferred);
        let int4 = MoeWork { dtype: DType::Int4, ..work() };
        assert_eq!(on("h100").moe(&int4).source, Source::Roofline);
    }

    #[test]
    fn collectives_keep_their_floor_and_scale_with_the_link() {
        let (near, far) = (on("h100"), on("h100_nvl"));
        let one = |t: &KernelTimes| t.all_reduce(8, 1e6).unwrap().value.as_us();
        assert!((one(&near) - 20.0).abs() < 1e-9);
        assert!((one(&far) - (10.0 + 10.0 * 450.0 / 300.0)).abs() < 1e-9);
        assert_eq!(near.all_reduce(16, 1e6).unwrap_err().exit_code(), 4);
        assert!(near.all_reduce(1, 1e6).unwrap().value.0.abs() < 1e-12);
    }

    #[test]
    fn a_tabulated_product_is_returned_as_it_stands() {
        let time = on("h100").gemm(1.0, 4096.0, 4096.0, DType::Bf16);
        assert!((time.value.as_us() - 20.0).abs() < 0.01, "{}", time.value);
    }

    #[test]
    fn without_tables_everything_is_a_roofline() {
        let times = KernelTimes::new(None, &DeviceSpec::load("h100").unwrap(), "vllm").unwrap();
        assert_eq!(times.moe(&work()).source, Source::Roofline);
        assert_eq!(times.gemm(1.0, 64.0, 64.0, DType::Fp8).source, Source::Roofline);
        assert_eq!(times.all_reduce(2, 64.0).unwrap().source, Source::Roofline);
    }
}
