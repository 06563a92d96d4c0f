//! Collectives and expert exchanges from their tables.
//!
//! All-reduce: the engine's own in a captured graph (decoding runs in graphs), NCCL's where there is
//! none and for the other collectives. Device counts that were not measured, inside one scale-up
//! domain: the fixed part grows with log2 of the devices, the rest with the share of the message
//! that leaves a device, (n - 1) / n. Several nodes: as measured over as many, or no answer.
//!
//! Exchange: DeepEP's low-latency kernels for decode steps and its throughput kernels (20 SMs, its
//! default) for steps with prompts; TensorRT-LLM's all-to-all for both. Shapes and rank counts that
//! were not measured: the part beyond the smallest time moves with the bytes sent; between measured
//! node counts time is linear in the copies that leave their node. More nodes than measured: no answer.

use std::collections::BTreeMap;

use super::cache::Cache;
use super::carry::{Carry, Timed};
use super::choose::{DEEPEP_SMS, engine_rank};
use super::lines::{Line, Place};
use super::narrow::{single, whole, word};
use super::series::{EngineTables, ExchangeSizes, Series, Table};
use super::sigma;
use crate::latency::model::{Absent, Answer};
use crate::latency::query::{CollectiveKind, CollectiveQuery, ExchangeQuery, Phase};
use crate::latency::source::{Latency, Source};

/// Collective tables, indexed.
#[derive(Debug)]
pub(super) struct CollectiveTimes {
    /// By kind, in the order of [`kind_place`]: lines by nodes and devices.
    kinds: [BTreeMap<(u32, u32), Line>; 4],
}

const fn kind_place(kind: CollectiveKind) -> usize {
    match kind {
        CollectiveKind::AllReduce => 0,
        CollectiveKind::AllGather => 1,
        CollectiveKind::ReduceScatter => 2,
        CollectiveKind::AllToAll => 3,
    }
}

impl CollectiveTimes {
    pub(super) fn new(tables: &EngineTables, ranks: &[u32], asked: Option<&str>) -> Self {
        let of = |table: Table| {
            let mut lines: BTreeMap<(u32, u32), Line> = BTreeMap::new();
            let mut by_place: BTreeMap<(u32, u32), Vec<&Series>> = BTreeMap::new();
            for series in tables.of(table) {
                let [devices, nodes, ..] = series.sizes;
                by_place.entry((nodes.max(1), devices)).or_default().push(series);
            }
            for (place, series) in by_place {
                if let Some(line) = collective_line(tables, ranks, asked, &series) {
                    lines.insert(place, line);
                }
            }
            lines
        };
        let kinds = [Table::AllReduce, Table::AllGather, Table::ReduceScatter, Table::AllToAll];
        Self { kinds: kinds.map(of) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kinds.iter().all(BTreeMap::is_empty)
    }

    /// Time of a collective.
    pub(super) fn answer(&self, q: &CollectiveQuery, carry: &Carry) -> Answer {
        if q.devices < 2 || q.bytes <= 0.0 {
            return Ok(Latency::ZERO);
        }
        let lines = &self.kinds[kind_place(q.kind)];
        let absent = |reason: String| Err(Absent::Key(reason.into()));
        if lines.is_empty() {
            return absent(format!("no {:?} series", q.kind));
        }
        let (nodes, devices) = (word(q.nodes.max(1)), word(q.devices));
        let sent = |n: u32| f64::from(n - 1) / f64::from(n);
        let wire = q.bytes * sent(devices);
        if let Some(line) = lines.get(&(nodes, devices)) {
            let place = Place::of(&line.x, q.bytes);
            let (source, sigma) = if place.is_exact() {
                (Source::Measured, sigma::MEASURED)
            } else {
                (Source::Interpolated, sigma::INTERPOLATED)
            };
            let seconds = line.at(place);
            return Ok(carry.linked(Timed { seconds, source, sigma }, wire));
        }
        if nodes > 1 {
            let reason =
                format!("collectives of {devices} devices over {nodes} nodes were not measured");
            return absent(reason);
        }
        let above = lines.range((1, devices)..(2, 0)).next();
        let below = || lines.range((1, 0)..(1, devices)).next_back();
        let Some(((_, measured), line)) = above.or_else(below) else {
            return absent(format!("{devices} devices were not measured"));
        };
        let time = line.time(q.bytes);
        let fixed = line.t.first().map_or(time, |t| f64::from(*t).min(time));
        let steps = f64::from(devices).log2() / f64::from(*measured).log2();
        let seconds = fixed * steps + (time - fixed) * sent(devices) / sent(*measured);
        let timed = Timed { seconds, source: Source::Transferred, sigma: sigma::RANKS };
        Ok(carry.linked(timed, wire))
    }
}

/// Whose collectives come first: those of the engine asked for, NCCL's, another engine's.
pub(super) fn whose_collective(engine: &str, asked: Option<&str>) -> usize {
    match engine {
        _ if engine == asked.unwrap_or(super::choose::ENGINES[0]) => 0,
        "nccl" => 1,
        _ => 2,
    }
}

/// Times of the preferred kernel for some devices.
fn collective_line(
    tables: &EngineTables,
    ranks: &[u32],
    asked: Option<&str>,
    series: &[&Series],
) -> Option<Line> {
    let place = |s: &&&Series| {
        let kernel = tables.kernel(s);
        let whose = whose_collective(&kernel.engine, asked);
        // Messages of bytes are the same bytes; those of halves come first.
        (whose, ranks[s.kernel as usize], kernel.format == "int8", &kernel.source)
    };
    let in_graph = |s: &&&Series| !tables.kernel(s).source.contains("eager");
    let best = series.iter().filter(in_graph).min_by_key(place)?;
    Some(line_of(tables, best))
}

fn line_of(tables: &EngineTables, series: &Series) -> Line {
    let (axis, seconds) = tables.points(series);
    Line::from_points(axis.iter().zip(seconds).map(|(p, t)| (p.0 as f32, *t)).collect())
}

/// Exchange tables, indexed.
#[derive(Debug)]
pub(super) struct ExchangeTimes {
    /// Decode, prefill.
    entries: [Vec<Entry>; 2],
    cache: Cache<7, Result<Resolved, Absent>>,
}

#[derive(Clone, Debug)]
struct Entry {
    sizes: ExchangeSizes,
    /// Bits of a dispatched value.
    bits: f64,
    line: Line,
}

#[derive(Debug)]
struct Resolved {
    lower: Entry,
    /// The next measured node count and the way to it in the copies that leave their node.
    upper: Option<(Entry, f64)>,
    source: Source,
    sigma: f64,
}

impl ExchangeTimes {
    pub(super) fn new(tables: &EngineTables, ranks: &[u32], asked: Option<&str>) -> Self {
        let parts = whole_exchanges(tables, ranks, asked);
        let of = |table: Table| {
            let mut entries = deepep(tables, ranks, table);
            if entries.is_empty() || asked == Some("trtllm") && !parts.is_empty() {
                entries.clone_from(&parts);
            }
            entries
        };
        let entries = [of(Table::DecodeExchange), of(Table::PrefillExchange)];
        Self { entries, cache: Cache::new(9) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.iter().all(Vec::is_empty)
    }

    /// Time of a dispatch and its combine.
    pub(super) fn answer(&self, q: &ExchangeQuery, carry: &Carry) -> Answer {
        if q.ranks < 2 || q.tokens <= 0.0 {
            return Ok(Latency::ZERO);
        }
        let key = [
            u32::from(q.phase == Phase::Prefill),
            word(q.ranks),
            word(q.nodes),
            word(q.hidden),
            word(q.top_k),
            word(q.experts),
            whole(q.dispatch_bits * 8.0),
        ];
        self.cache.with(
            key,
            || self.resolve(q),
            |resolved| match resolved {
                Ok(resolved) => Ok(resolved.answer(q, carry)),
                Err(absent) => Err(absent.clone()),
            },
        )
    }

    fn resolve(&self, q: &ExchangeQuery) -> Result<Resolved, Absent> {
        let entries = &self.entries[usize::from(q.phase == Phase::Prefill)];
        let nodes = word(q.nodes.max(1));
        let nearest = |nodes: u32| {
            let of_nodes = entries.iter().filter(|e| e.sizes.nodes == nodes);
            of_nodes.min_by(|a, b| distance(a, q).total_cmp(&distance(b, q)))
        };
        if let Some(entry) = nearest(nodes) {
            let away = distance(entry, q);
            let (source, sigma) = if away == 0.0 {
                (Source::Measured, sigma::MEASURED)
            } else {
                (Source::Transferred, sigma::RANKS * (0.4 + away).min(2.0))
            };
            return Ok(Resolved { lower: entry.clone(), upper: None, source, sigma });
        }
        let below = entries.iter().map(|e| e.sizes.nodes).filter(|n| *n < nodes).max();
        let above = entries.iter().map(|e| e.sizes.nodes).filter(|n| *n > nodes).min();
        let ends = (below.and_then(nearest), above.and_then(nearest));
        let (Some(lower), Some(upper)) = ends else {
            let most = entries.iter().map(|e| e.sizes.nodes).max().unwrap_or(0);
            let reason = if most == 0 {
                "no exchange series of this kind of step".to_owned()
            } else {
                format!("expert exchange over {nodes} nodes was not measured, over {most} it was")
            };
            return Err(Absent::Key(reason.into()));
        };
        // Copies to other nodes take longer than those inside one. Low-latency kernels send one to each
        // destination rank: what counts is the share that leaves the node. Throughput kernels send one to each
        // destination node, which passes it on: what counts is how many other nodes a token goes to.
        let leaves = |nodes: u32| {
            let share = 1.0 / f64::from(nodes);
            match q.phase {
                Phase::Decode => 1.0 - share,
                Phase::Prefill => {
                    (f64::from(nodes) - 1.0) * (1.0 - (1.0 - share).powf(q.top_k as f64))
                }
            }
        };
        let (low, high) = (leaves(lower.sizes.nodes), leaves(upper.sizes.nodes));
        let way = (leaves(nodes) - low) / (high - low);
        let upper = Some((upper.clone(), way));
        let source = Source::Transferred;
        Ok(Resolved { lower: lower.clone(), upper, source, sigma: sigma::RANKS })
    }
}

/// DeepEP's series of one kind of step: of the versions the newest that holds a shape, of the
/// throughput kernels the default.
fn deepep(tables: &EngineTables, ranks: &[u32], table: Table) -> Vec<Entry> {
    let mut best: BTreeMap<ExchangeSizes, ((bool, u32), &Series)> = BTreeMap::new();
    for series in tables.of(table) {
        let kernel = tables.kernel(series);
        let other = table == Table::PrefillExchange && !kernel.source.ends_with(DEEPEP_SMS);
        let place = (other, ranks[series.kernel as usize]);
        let entry = best.entry(ExchangeSizes::of(&series.sizes)).or_insert((place, series));
        if place < entry.0 {
            *entry = (place, series);
        }
    }
    let entry = |(sizes, (_, series)): (_, (_, &Series))| {
        let bits = dispatch_bits(&tables.kernel(series).format).unwrap_or(8.0);
        Entry { sizes, bits, line: line_of(tables, series) }
    };
    best.into_iter().map(entry).collect()
}

/// TensorRT-LLM's exchanges: dispatch and combine (and preparation where the kernel has one) of one
/// kernel and format added up; of several kernels the fastest at each size.
fn whole_exchanges(tables: &EngineTables, ranks: &[u32], asked: Option<&str>) -> Vec<Entry> {
    let mut kernels: BTreeMap<(ExchangeSizes, u32), BTreeMap<u32, Line>> = BTreeMap::new();
    for series in tables.of(Table::ExchangePart) {
        let sizes = ExchangeSizes::of(&series.sizes);
        let whole = ExchangeSizes { part: 0, ..sizes };
        let parts = kernels.entry((whole, series.kernel)).or_default();
        parts.insert(sizes.part, line_of(tables, series));
    }
    let mut fastest: BTreeMap<(ExchangeSizes, u64), Vec<(f32, f32)>> = BTreeMap::new();
    let newest = tables
        .of(Table::ExchangePart)
        .iter()
        .map(|s| (engine_rank(&tables.kernel(s).engine, asked), ranks[s.kernel as usize]));
    let newest = newest.min();
    for ((sizes, kernel), parts) in kernels {
        let named = &tables.kernels[kernel as usize];
        let place = (engine_rank(&named.engine, asked), ranks[kernel as usize]);
        let (Some(bits), true) = (dispatch_bits(&named.format), Some(place) == newest) else {
            continue;
        };
        let points = fastest.entry((sizes, bits.to_bits())).or_default();
        points.extend(added_up(&parts));
    }
    let entry = |((sizes, bits), points)| Entry {
        sizes,
        bits: f64::from_bits(bits),
        line: Line::from_points(points),
    };
    fastest.into_iter().map(entry).filter(|e| !e.line.x.is_empty()).collect()
}

/// Sums at the tokens that dispatch and combine were both measured at.
fn added_up(parts: &BTreeMap<u32, Line>) -> Vec<(f32, f32)> {
    let ends = (parts.get(&ExchangeSizes::DISPATCH), parts.get(&ExchangeSizes::COMBINE));
    let (Some(dispatch), Some(combine)) = ends else { return Vec::new() };
    let prepare = parts.get(&ExchangeSizes::PREPARE);
    let sum = |(x, t): (&f32, &f32)| {
        let at = |line: &Line| {
            let place = Place::of(&line.x, f64::from(*x));
            place.is_exact().then(|| single(line.at(place)))
        };
        let prepare = prepare.map_or(Some(0.0), at)?;
        Some((*x, t + at(combine)? + prepare))
    };
    dispatch.x.iter().zip(&dispatch.t).filter_map(sum).collect()
}

fn dispatch_bits(format: &str) -> Option<f64> {
    match format {
        "float32" => Some(32.0),
        "bfloat16" => Some(16.0),
        "fp8" | "fp8_block" => Some(8.0),
        "nvfp4" => Some(4.5),
        _ => None,
    }
}

/// How far measured sizes are from the asked ones: the ranks first, then the bytes of a token.
fn distance(entry: &Entry, q: &ExchangeQuery) -> f64 {
    let ratio = |a: u32, b: usize| (f64::from(a) / b as f64).ln().abs();
    let sizes = &entry.sizes;
    2.0 * ratio(sizes.ranks, q.ranks)
        + ratio(sizes.hidden, q.hidden)
        + ratio(sizes.top_k, q.top_k)
        + 0.2 * ratio(sizes.experts, q.experts)
        + 0.5 * (entry.bits / q.dispatch_bits).ln().abs()
}

impl Entry {
    /// Time of what is asked, by this entry.
    fn scaled(&self, q: &ExchangeQuery) -> f64 {
        let time = self.line.time(q.tokens);
        let fixed = self.line.t.first().map_or(time, |t| f64::from(*t).min(time));
        let measured = ExchangeQuery {
            ranks: self.sizes.ranks as usize,
            hidden: self.sizes.hidden as usize,
            top_k: self.sizes.top_k as usize,
            dispatch_bits: self.bits,
            skew: 1.0,
            ..*q
        };
        fixed + (time - fixed) * q.bytes() / measured.bytes()
    }
}

impl Resolved {
    fn answer(&self, q: &ExchangeQuery, carry: &Carry) -> Latency {
        let lower = self.lower.scaled(q);
        let (seconds, exact) = match &self.upper {
            None if self.source == Source::Measured && q.skew <= 1.0 => {
                let place = Place::of(&self.lower.line.x, q.tokens);
                (self.lower.line.at(place), place.is_exact())
            }
            None => (lower, false),
            Some((upper, way)) => (lower + (upper.scaled(q) - lower) * way, false),
        };
        let (source, sigma) = match self.source {
            Source::Measured if !exact => {
                let sigma = sigma::together(&[self.sigma, sigma::INTERPOLATED]);
                (Source::Interpolated, sigma)
            }
            source => (source, self.sigma),
        };
        // Bytes that leave the device.
        let away = q.bytes() * (1.0 - 1.0 / q.ranks as f64) / 2.0;
        carry.linked(Timed { seconds, source, sigma }, if q.nodes > 1 { 0.0 } else { away })
    }
}
