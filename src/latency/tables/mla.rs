//! Multi-head latent attention from its tables: core, absorption and whole block, in the sizes that
//! were measured (DeepSeek-V3's), by query heads on the device.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cache::Cache;
use super::carry::{Carry, Timed};
use super::choose::{by_engine, cache_format, engine_rank, weight_formats};
use super::lines::Surface;
use super::narrow::word;
use super::series::{EngineTables, Point, Table};
use super::sigma;
use crate::config::DType;
use crate::constants::ACTIVATION_BYTES;
use crate::latency::model::{Absent, Answer};
use crate::latency::query::{MlaPart, MlaQuery, Phase};
use crate::latency::rates::{Arithmetic, Precision, Work};
use crate::latency::source::{Latency, Source};

/// Latent, rotary, per-head query and per-head value widths that the core was measured at.
const CORE: [usize; 4] = [512, 64, 128, 128];
/// Hidden size and query compression that the block was measured at.
const BLOCK: (usize, Option<usize>) = (7168, Some(1536));

/// MLA tables, indexed.
#[derive(Debug)]
pub(super) struct MlaTimes {
    tables: Arc<EngineTables>,
    groups: Vec<Group>,
    /// Whether an engine was asked for.
    asked: bool,
    cache: Cache<5, Result<Resolved, Absent>>,
}

/// Series of one table, engine, version, format and cache.
#[derive(Debug)]
struct Group {
    table: Table,
    rank: u32,
    engine: usize,
    engine_name: Box<str>,
    format: Box<str>,
    cache: Box<str>,
    /// Series by query heads.
    at: BTreeMap<u32, Vec<u32>>,
}

#[derive(Debug)]
struct Resolved {
    heads: u32,
    /// One surface, or two whose times add up.
    surfaces: Vec<Surface>,
    floor: f64,
    arithmetic: Arithmetic,
    projection_bits: f64,
    same: bool,
    sigma: f64,
    engine: usize,
    asked: bool,
}

impl MlaTimes {
    pub(super) fn new(tables: &Arc<EngineTables>, ranks: &[u32], asked: Option<&str>) -> Self {
        let mut groups: BTreeMap<(Table, u32, &str, &str), Group> = BTreeMap::new();
        let start = tables.series.partition_point(|s| s.table < Table::PrefillMla);
        let end = tables.series.partition_point(|s| s.table <= Table::AbsorbValue);
        for (index, series) in tables.series.iter().enumerate().take(end).skip(start) {
            let kernel = tables.kernel(series);
            let rank = ranks[series.kernel as usize];
            let key = (series.table, rank, kernel.format.as_str(), kernel.cache.as_str());
            let group = groups.entry(key).or_insert_with(|| Group {
                table: series.table,
                rank,
                engine: engine_rank(&kernel.engine, asked),
                engine_name: kernel.engine.as_str().into(),
                format: kernel.format.as_str().into(),
                cache: kernel.cache.as_str().into(),
                at: BTreeMap::new(),
            });
            group.at.entry(series.sizes[0]).or_default().push(word(index));
        }
        let groups = groups.into_values().collect();
        let (tables, asked) = (Arc::clone(tables), asked.is_some());
        Self { tables, groups, asked, cache: Cache::new(9) }
    }

    pub(super) fn holds(&self, phase: Phase) -> bool {
        let tables = match phase {
            Phase::Prefill => [Table::PrefillMla, Table::PrefillMlaBlock],
            Phase::Decode => [Table::DecodeMla, Table::DecodeMlaBlock],
        };
        self.groups.iter().any(|g| tables.contains(&g.table))
    }

    /// Time of a part of an MLA block.
    pub(super) fn answer(&self, part: MlaPart, q: &MlaQuery, carry: &Carry) -> Answer {
        let core = [q.kv_lora_rank, q.rope, q.nope, q.value];
        if core != CORE {
            let [latent, rope, nope, value] = core;
            let reason = format!(
                "MLA was measured at widths 512, 64, 128, 128; asked for {latent}, {rope}, {nope}, {value}"
            );
            return Err(Absent::Key(reason.into()));
        }
        if part == MlaPart::Block && (q.hidden, q.q_lora_rank) != BLOCK {
            let reason = "the MLA block was measured at hidden size 7168 and query rank 1536";
            return Err(Absent::Key(reason.into()));
        }
        let prefill = q.phase == Phase::Prefill;
        let kind = word(part as usize) * 2 + u32::from(prefill);
        let key =
            [kind, word(q.local_heads()), word(q.weights as usize), word(q.cache as usize), 0];
        self.cache.with(
            key,
            || self.resolve(part, q),
            |resolved| match resolved {
                Ok(resolved) => Ok(resolved.answer(part, q, carry)),
                Err(absent) => Err(absent.clone()),
            },
        )
    }

    fn resolve(&self, part: MlaPart, q: &MlaQuery) -> Result<Resolved, Absent> {
        let tables: &[Table] = match (part, q.phase) {
            (MlaPart::Core, Phase::Prefill) => &[Table::PrefillMla],
            (MlaPart::Core, Phase::Decode) => &[Table::DecodeMla],
            (MlaPart::Block, Phase::Prefill) => &[Table::PrefillMlaBlock],
            (MlaPart::Block, Phase::Decode) => &[Table::DecodeMlaBlock],
            (MlaPart::Absorb, _) => &[Table::AbsorbKey, Table::AbsorbValue],
        };
        let mut found = Vec::new();
        for table in tables {
            found.push(self.group(*table, part, q)?);
        }
        if part == MlaPart::Block && found[0].engine > 0 && self.has_own_core(q.phase) {
            let reason = "this engine measured the parts of an MLA block, not the whole";
            return Err(Absent::Key(reason.into()));
        }
        let heads = word(q.local_heads());
        let nearest = |g: &Group| {
            let away = |h: u32| (f64::from(h) / f64::from(heads)).ln().abs();
            g.at.keys().copied().min_by(|a, b| away(*a).total_cmp(&away(*b))).unwrap_or(heads)
        };
        let first = found[0];
        let measured = nearest(first);
        let surfaces: Vec<Surface> = found.iter().map(|g| self.surface(g, measured)).collect();
        let floor = surfaces.iter().map(Surface::least).sum();
        let sigma = if measured == heads { 0.0 } else { sigma::HEADS };
        let precision = Precision::of(&first.format);
        Ok(Resolved {
            heads: measured,
            surfaces,
            floor,
            // The core multiplies in 16 bits whatever the projections do.
            arithmetic: Arithmetic::Bits16,
            projection_bits: precision.map_or(16.0, |p| p.bits),
            same: measured == heads,
            sigma,
            engine: first.engine,
            asked: self.asked,
        })
    }

    /// Whether the engine asked for measured the core: its parts come before another engine's block.
    fn has_own_core(&self, phase: Phase) -> bool {
        let core = match phase {
            Phase::Prefill => Table::PrefillMla,
            Phase::Decode => Table::DecodeMla,
        };
        self.groups.iter().any(|g| g.engine == 0 && g.table == core)
    }

    /// The group that answers for one table.
    fn group(&self, table: Table, part: MlaPart, q: &MlaQuery) -> Result<&Group, Absent> {
        let cache = cache_format(q.cache).unwrap_or("none");
        let place = |g: &Group| match part {
            MlaPart::Block => weight_formats(q.weights).iter().position(|f| *f == &*g.format),
            MlaPart::Core => Some(0),
            MlaPart::Absorb => {
                absorb_formats(q.weights, &g.engine_name).iter().position(|f| *f == &*g.format)
            }
        };
        let fits = |g: &&Group| {
            g.table == table
                && (part == MlaPart::Absorb || *g.cache == *cache)
                && place(g).is_some()
        };
        let best = self.groups.iter().filter(fits).min_by_key(|g| (g.engine, g.rank, place(g)));
        best.ok_or_else(|| {
            let reason = format!(
                "no {} series with a {} cache and {} projections",
                table.label(),
                q.cache.label(),
                q.weights.label()
            );
            Absent::Key(reason.into())
        })
    }

    fn surface(&self, group: &Group, heads: u32) -> Surface {
        let mut points: Vec<(Point, f32)> = Vec::new();
        for index in group.at.get(&heads).into_iter().flatten() {
            let (axis, seconds) = self.tables.points(&self.tables.series[*index as usize]);
            points.extend(axis.iter().copied().zip(seconds.iter().copied()));
        }
        Surface::from_points(points)
    }
}

/// Formats of the absorbed expansions: vLLM keeps them in 16 bits, the others in the checkpoint's.
fn absorb_formats(weights: DType, engine: &str) -> &'static [&'static str] {
    match (weights, engine) {
        (DType::Fp8, "vllm") => &["bfloat16", "fp8"],
        (DType::Fp8, _) => &["fp8", "bfloat16"],
        _ => &["bfloat16"],
    }
}

/// Work of a part with some query heads on the device.
fn work(part: MlaPart, q: &MlaQuery, heads: u32, bits: f64) -> Work {
    let with = MlaQuery { heads: heads as usize, tensor_parallel: 1, ..*q };
    let core = Work { bytes: with.core_bytes(), flops: with.core_flops() };
    let heads = f64::from(heads);
    let latent = q.kv_lora_rank as f64;
    match part {
        MlaPart::Core => core,
        MlaPart::Absorb => Work { bytes: with.absorb_bytes(bits), flops: with.absorb_flops() },
        MlaPart::Block => {
            let hidden = q.hidden as f64;
            let query = q.q_lora_rank.unwrap_or(0) as f64;
            let params = hidden * (query + latent + q.rope as f64)
                + query * heads * (q.nope + q.rope) as f64
                + latent * heads * (q.nope + q.value) as f64
                + heads * q.value as f64 * hidden;
            let tokens = match q.phase {
                Phase::Prefill => q.sequences * q.context,
                Phase::Decode => q.sequences,
            };
            Work {
                bytes: core.bytes + params * bits / 8.0 + 2.0 * ACTIVATION_BYTES * tokens * hidden,
                flops: core.flops + 2.0 * params * tokens,
            }
        }
    }
}

impl Resolved {
    fn answer(&self, part: MlaPart, q: &MlaQuery, carry: &Carry) -> Latency {
        if q.sequences <= 0.0 || q.context <= 0.0 {
            return Latency::ZERO;
        }
        let prefill = q.phase == Phase::Prefill;
        // Absorption does not see the context; its tables have one row.
        let context = if part == MlaPart::Absorb { 0.0 } else { q.context };
        let mut seconds = 0.0;
        let mut exact = self.same;
        for surface in &self.surfaces {
            let found = surface.time(q.sequences, context, prefill && part != MlaPart::Absorb);
            seconds += found.seconds;
            exact &= found.exact;
        }
        let heads = word(q.local_heads());
        let asked = work(part, q, heads, self.projection_bits);
        if !self.same {
            let reached = work(part, q, self.heads, self.projection_bits);
            let roofline = |work| carry.from.floor(work, self.arithmetic);
            let scale = roofline(asked) / roofline(reached);
            seconds = self.floor + (seconds - self.floor).max(0.0) * scale;
        }
        let (source, own) = match (self.same, exact) {
            (true, true) => (Source::Measured, sigma::MEASURED),
            (true, false) => (Source::Interpolated, sigma::INTERPOLATED),
            (false, _) => (Source::Transferred, sigma::INTERPOLATED),
        };
        let sigma = sigma::together(&[own, self.sigma]);
        let (source, sigma) = by_engine(self.engine, self.asked, source, sigma);
        carry.answer(Timed { seconds, source, sigma }, asked, self.arithmetic)
    }
}
