//! Attention cores from attention tables, by head size, cache format and window.
//!
//! Heads that were not measured are answered by the nearest measured ones through the roofline of
//! their work; the fixed part of the time, that of the smallest point, stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cache::Cache;
use super::carry::{Carry, Timed};
use super::choose::{attention_formats, by_engine, cache_format, engine_rank};
use super::lines::Surface;
use super::narrow::word;
use super::series::{AttentionSizes, EngineTables, Point, Table};
use super::sigma;
use crate::latency::model::{Absent, Answer};
use crate::latency::query::{AttentionQuery, Phase};
use crate::latency::rates::{Arithmetic, Precision, Work};
use crate::latency::source::{Latency, Source};

/// Attention tables of both phases, indexed.
#[derive(Debug)]
pub(super) struct AttentionTimes {
    tables: Arc<EngineTables>,
    groups: Vec<Group>,
    /// Whether an engine was asked for.
    asked: bool,
    cache: Cache<6, Result<Resolved, Absent>>,
}

/// Series of one phase, engine, version, arithmetic and cache format.
#[derive(Debug)]
struct Group {
    prefill: bool,
    rank: u32,
    engine: usize,
    format: Box<str>,
    cache: Box<str>,
    at: BTreeMap<AttentionSizes, Vec<u32>>,
}

#[derive(Debug)]
struct Resolved {
    sizes: AttentionSizes,
    surface: Surface,
    /// Time that does not grow with the work.
    floor: f64,
    arithmetic: Arithmetic,
    same: bool,
    sigma: f64,
    engine: usize,
    asked: bool,
}

impl AttentionTimes {
    pub(super) fn new(tables: &Arc<EngineTables>, ranks: &[u32], asked: Option<&str>) -> Self {
        let mut groups: BTreeMap<(bool, u32, &str, &str), Group> = BTreeMap::new();
        for (prefill, table) in [(true, Table::PrefillAttention), (false, Table::DecodeAttention)] {
            let start = tables.series.partition_point(|s| s.table < table);
            for (offset, series) in tables.of(table).iter().enumerate() {
                let kernel = tables.kernel(series);
                let rank = ranks[series.kernel as usize];
                let key = (prefill, rank, kernel.format.as_str(), kernel.cache.as_str());
                let group = groups.entry(key).or_insert_with(|| Group {
                    prefill,
                    rank,
                    engine: engine_rank(&kernel.engine, asked),
                    format: kernel.format.as_str().into(),
                    cache: kernel.cache.as_str().into(),
                    at: BTreeMap::new(),
                });
                let sizes = AttentionSizes::of(&series.sizes);
                group.at.entry(sizes).or_default().push(word(start + offset));
            }
        }
        let groups = groups.into_values().collect();
        let (tables, asked) = (Arc::clone(tables), asked.is_some());
        Self { tables, groups, asked, cache: Cache::new(11) }
    }

    pub(super) fn holds(&self, phase: Phase) -> bool {
        self.groups.iter().any(|g| g.prefill == (phase == Phase::Prefill))
    }

    /// Time of an attention core.
    pub(super) fn answer(&self, q: &AttentionQuery, carry: &Carry, asked: &str) -> Answer {
        let key = [
            u32::from(q.phase == Phase::Prefill),
            word(q.heads),
            word(q.kv_heads),
            word(q.head_dim),
            word(q.cache as usize),
            word(q.window.unwrap_or(0)),
        ];
        self.cache.with(
            key,
            || self.resolve(q, asked),
            |resolved| match resolved {
                Ok(resolved) => Ok(resolved.answer(q, carry)),
                Err(absent) => Err(absent.clone()),
            },
        )
    }

    fn resolve(&self, q: &AttentionQuery, asked: &str) -> Result<Resolved, Absent> {
        let absent = |what: &str| {
            let phase = if q.phase == Phase::Prefill { "prefill" } else { "decode" };
            Absent::Key(format!("no {phase} attention series with {what}").into())
        };
        let cache =
            cache_format(q.cache).ok_or_else(|| absent(&format!("a {} cache", q.cache.label())))?;
        let formats = attention_formats(q.cache, asked);
        let place = |g: &Group| formats.iter().position(|f| *f == &*g.format);
        let prefill = q.phase == Phase::Prefill;
        let serving: Vec<&Group> = self
            .groups
            .iter()
            .filter(|g| g.prefill == prefill && *g.cache == *cache && place(g).is_some())
            .collect();
        let engine = serving.iter().map(|g| g.engine).min();
        let engine = engine.ok_or_else(|| absent(&format!("a {} cache", q.cache.label())))?;
        let wanted = AttentionSizes {
            heads: word(q.heads),
            kv_heads: word(q.kv_heads),
            head_dim: word(q.head_dim),
            window: word(q.window.unwrap_or(0)),
        };
        let candidates = serving.iter().filter(|g| g.engine == engine).flat_map(|g| {
            g.at.iter().map(move |(sizes, series)| (distance(sizes, &wanted), *g, sizes, series))
        });
        let best = candidates.min_by(|a, b| {
            a.0.total_cmp(&b.0).then((place(a.1), a.1.rank).cmp(&(place(b.1), b.1.rank)))
        });
        let (away, group, sizes, series) = best.ok_or_else(|| absent("these heads"))?;
        if away >= FORBIDDEN {
            return Err(absent(&format!("heads of {} values", q.head_dim)));
        }
        let sigma = if away > 0.0 { sigma::HEADS * (1.0 + away) } else { 0.0 };
        Ok(self.resolved(group, sizes, series, away == 0.0, sigma))
    }

    fn resolved(
        &self,
        group: &Group,
        sizes: &AttentionSizes,
        series: &[u32],
        same: bool,
        sigma: f64,
    ) -> Resolved {
        let mut points: Vec<(Point, f32)> = Vec::new();
        for index in series {
            let (axis, seconds) = self.tables.points(&self.tables.series[*index as usize]);
            points.extend(axis.iter().copied().zip(seconds.iter().copied()));
        }
        let floor = points.iter().map(|p| p.1).fold(f32::INFINITY, f32::min);
        let surface = Surface::from_points(points);
        let arithmetic = Precision::of(&group.format).map_or(Arithmetic::Bits16, |p| p.arithmetic);
        Resolved {
            sizes: *sizes,
            surface,
            floor: f64::from(floor),
            arithmetic,
            same,
            sigma,
            engine: group.engine,
            asked: self.asked,
        }
    }
}

/// Distance of shapes that do not answer each other.
const FORBIDDEN: f64 = 1e3;

/// How far measured sizes are from the asked ones: windows first, then head size, then heads.
fn distance(measured: &AttentionSizes, asked: &AttentionSizes) -> f64 {
    let ratio = |a: u32, b: u32| (f64::from(a) / f64::from(b)).ln().abs();
    let window = match (measured.window, asked.window) {
        (a, b) if a == b => 0.0,
        // Attention to everything answers for a window, over the tokens that it reaches.
        (0, _) => 4.0,
        (_, 0) => return FORBIDDEN,
        (a, b) if ratio(a, b) < 1.0 => 1.0 + ratio(a, b),
        _ => 6.0,
    };
    let head = ratio(measured.head_dim, asked.head_dim);
    if head > 0.75 {
        return FORBIDDEN;
    }
    let kv = ratio(measured.kv_heads, asked.kv_heads);
    let group = ratio(
        measured.heads.max(1) * asked.kv_heads,
        asked.heads.max(1) * measured.kv_heads.max(1),
    );
    window + 3.0 * head + kv + 0.5 * group
}

impl Resolved {
    fn answer(&self, q: &AttentionQuery, carry: &Carry) -> Latency {
        if q.sequences <= 0.0 || q.context <= 0.0 {
            return Latency::ZERO;
        }
        let asked = Work { bytes: q.bytes(), flops: q.flops() };
        let prefill = q.phase == Phase::Prefill;
        // A series without a window stands for one over what the window reaches.
        let windowed = self.sizes.window > 0 || q.window.is_none();
        let context = if windowed || prefill { q.context } else { q.reached() };
        let found = self.surface.time(q.sequences, context, prefill);
        let seconds = if self.same {
            found.seconds
        } else {
            let measured = AttentionQuery {
                heads: self.sizes.heads as usize,
                kv_heads: self.sizes.kv_heads as usize,
                head_dim: self.sizes.head_dim as usize,
                window: (self.sizes.window > 0).then_some(self.sizes.window as usize),
                context,
                ..*q
            };
            let reached = Work { bytes: measured.bytes(), flops: measured.flops() };
            let scale = carry.from.floor(asked, self.arithmetic)
                / carry.from.floor(reached, self.arithmetic);
            self.floor + (found.seconds - self.floor).max(0.0) * scale
        };
        let (source, own) = match (self.same, found.exact) {
            (true, true) => (Source::Measured, sigma::MEASURED),
            (true, false) => (Source::Interpolated, sigma::INTERPOLATED),
            (false, _) => (Source::Transferred, sigma::INTERPOLATED),
        };
        let sigma = sigma::together(&[own, self.sigma]);
        let (source, sigma) = by_engine(self.engine, self.asked, source, sigma);
        let timed = Timed { seconds, source, sigma };
        carry.answer(timed, asked, self.arithmetic)
    }
}
