//! Routed experts from MoE tables.
//!
//! A balanced series is a path: first ever more experts with one row each, then all experts with
//! ever more rows. The time of `a` active experts with `q` rows each is put together from both
//! branches, `t(a, q) = f + (few(a) - f) (full(q) - f) / (few(E) - f)`, exact on the path; `f` is what
//! does not grow with the experts hit. Here `q` is what an even spread of all tokens gives: kernels
//! of expert-parallel ranks also spend time on tokens that they hold no expert of. Power-law series
//! say how much longer an uneven load of as many tokens takes; in between, by ln of the busiest
//! expert's rows over the even ones. Ranks that an exchange sends their own rows alone are asked for as
//! those rows of a layer without ranks: no table holds kernels behind a dispatch.
//!
//! Another layout or shape answers through the share of the roofline that its work reached:
//! `f + (t - f) x roofline(asked) / roofline(measured)`. The measured TP sizes around the asked one
//! bound its time, so that more ranks are never slower than fewer.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::{Arc, OnceLock};

use super::cache::Cache;
use super::carry::{Carry, Timed};
use super::choose::{by_engine, engine_rank, weight_formats};
use super::lines::{Line, Place};
use super::load::{Load, balanced, power_law};
use super::narrow::{single, word};
use super::series::{EngineTables, MoeSizes, Series, Table};
use super::sigma;
use crate::config::DType;
use crate::constants::ACTIVATION_BYTES;
use crate::latency::model::{Absent, Answer};
use crate::latency::query::MoeQuery;
use crate::latency::rates::{Precision, Work};
use crate::latency::source::{Latency, Source};

/// Share of the roofline that grouped GEMMs reach at best; what the first point takes longer is
/// counted as the part that does not grow.
const BEST_SHARE: f64 = 0.85;
/// Shapes that an unmeasured one is predicted from.
const NEIGHBOURS: usize = 3;
/// Imbalance below which a load counts as even.
const EVEN: f64 = 1.02;

/// What names a MoE shape, whatever its layout.
type Shape = [u32; 5];

/// All MoE series of an engine in one number format, by shape.
#[derive(Debug)]
struct Format {
    engine: usize,
    name: Box<str>,
    precision: Precision,
    /// By shape, then by rank of the version: indices of series.
    shapes: HashMap<Shape, BTreeMap<u32, Vec<u32>>>,
}

/// MoE tables, indexed.
#[derive(Debug)]
pub(super) struct MoeTimes {
    tables: Arc<EngineTables>,
    formats: Vec<Format>,
    /// Whether an engine was asked for.
    asked: bool,
    cache: Cache<8, Result<Resolved, Absent>>,
}

/// The curves that answer one key.
#[derive(Debug)]
struct Resolved {
    parts: Vec<Part>,
    precision: Precision,
    /// Whether the one part is the layout asked for.
    exact: bool,
    source: Source,
    sigma: f64,
}

/// What one measured shape says.
#[derive(Debug)]
struct Part {
    weight: f64,
    /// The TP size asked for.
    tensor_parallel: f64,
    /// The layout asked for, or the nearest with at most that TP.
    lower: Curve,
    /// The nearest layout with a higher TP, and how near it is in ln TP: 0 to 1.
    upper: Option<(Curve, f64)>,
}

/// One layout of one shape.
#[derive(Debug)]
struct Curve {
    sizes: MoeSizes,
    /// Experts hit and seconds.
    few: Line,
    /// Rows of each expert and seconds, all experts hit.
    full: Line,
    floor: f64,
    experts: f64,
    spread: f64,
    /// Series of uneven loads: exponent, tokens and seconds.
    skewed: Vec<(u32, Vec<(u32, f32)>)>,
    skew: OnceLock<Vec<Skew>>,
}

/// How much longer an uneven load takes, along the tokens.
#[derive(Debug)]
struct Skew {
    tokens: Vec<f32>,
    ln_longer: Vec<f32>,
    ln_imbalance: Vec<f32>,
}

impl MoeTimes {
    pub(super) fn new(tables: &Arc<EngineTables>, ranks: &[u32], asked: Option<&str>) -> Self {
        let mut formats: Vec<Format> = Vec::new();
        let mut place: HashMap<u32, Option<usize>> = HashMap::new();
        let start = tables.series.partition_point(|s| s.table < Table::Moe);
        for (offset, series) in tables.of(Table::Moe).iter().enumerate() {
            let slot = *place.entry(series.kernel).or_insert_with(|| {
                let kernel = tables.kernel(series);
                let engine = engine_rank(&kernel.engine, asked);
                let precision = Precision::of(&kernel.format)?;
                let known = |f: &Format| f.engine == engine && *f.name == *kernel.format;
                formats.iter().position(known).or_else(|| {
                    let name = kernel.format.as_str().into();
                    formats.push(Format { engine, name, precision, shapes: HashMap::new() });
                    Some(formats.len() - 1)
                })
            });
            let Some(slot) = slot else { continue };
            let versions = formats[slot].shapes.entry(shape(&MoeSizes::of(&series.sizes)));
            let rank = ranks[series.kernel as usize];
            versions.or_default().entry(rank).or_default().push(word(start + offset));
        }
        let (tables, asked) = (Arc::clone(tables), asked.is_some());
        Self { tables, formats, asked, cache: Cache::new(12) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.formats.is_empty()
    }

    /// Time of a MoE layer.
    pub(super) fn answer(&self, q: &MoeQuery, carry: &Carry) -> Answer {
        let q = &q.of_kernel();
        let key = [
            word(q.hidden),
            word(q.inter),
            word(q.experts),
            word(q.top_k),
            word(q.tensor_parallel),
            word(q.expert_parallel),
            u32::from(q.gated),
            word(q.weights as usize),
        ];
        self.cache.with(
            key,
            || self.resolve(q, carry),
            |resolved| match resolved {
                Ok(resolved) => Ok(resolved.answer(q, carry)),
                Err(absent) => Err(absent.clone()),
            },
        )
    }

    fn resolve(&self, q: &MoeQuery, carry: &Carry) -> Result<Resolved, Absent> {
        let names = weight_formats(q.weights);
        let serves = |f: &&Format| names.contains(&&*f.name);
        let engine = self.formats.iter().filter(serves).map(|f| f.engine).min();
        let Some(engine) = engine else { return Err(self.absent(q.weights)) };
        let of_engine: Vec<&Format> = names
            .iter()
            .flat_map(|name| self.formats.iter().filter(move |f| *f.name == **name))
            .filter(|f| f.engine == engine)
            .collect();
        let wanted = MoeSizes {
            hidden: word(q.hidden),
            inter: word(q.inter),
            experts: word(q.experts),
            top_k: word(q.top_k),
            tensor_parallel: word(q.tensor_parallel),
            expert_parallel: word(q.expert_parallel),
            skew: 0,
            gated: q.gated,
        };
        let build = |format: &Format, shapes: &[(Shape, f64)], source, sigma: f64| {
            let parts = shapes.iter().map(|(shape, weight)| Part {
                weight: *weight,
                ..self.part(format, shape, &wanted, carry)
            });
            let parts: Vec<Part> = parts.collect();
            let exact = source == Source::Measured;
            let (source, sigma) = by_engine(engine, self.asked, source, sigma);
            Resolved { parts, precision: format.precision, exact, source, sigma }
        };
        let wanted_shape = shape(&wanted);
        let own: Vec<&&Format> =
            of_engine.iter().filter(|f| f.shapes.contains_key(&wanted_shape)).collect();
        let layout = |f: &&&&Format| self.has_layout(f, &wanted_shape, &wanted);
        if let Some(format) = own.iter().find(layout) {
            return Ok(build(format, &[(wanted_shape, 1.0)], Source::Measured, 0.0));
        }
        if let Some(format) = own.first() {
            return Ok(build(format, &[(wanted_shape, 1.0)], Source::Transferred, sigma::LAYOUT));
        }
        let Some(format) = of_engine.first() else { return Err(self.absent(q.weights)) };
        let (near, distance) = nearest(format, &wanted);
        let sigma = sigma::SHAPE * distance.clamp(0.5, 2.0);
        Ok(build(format, &near, Source::Transferred, sigma))
    }

    fn absent(&self, weights: DType) -> Absent {
        let mut reason = format!("no MoE series with {} weights", weights.label());
        let left = self.tables.left_out.iter().filter(|l| l.table == Some(Table::Moe));
        for left in left.take(2) {
            let _ = write!(reason, "; left out: {} ({})", left.what, left.reason);
        }
        Absent::Key(reason.into())
    }

    /// Series of a shape in the newest version that holds it.
    fn series(&self, format: &Format, shape: &Shape) -> Vec<&Series> {
        let versions = format.shapes.get(shape);
        let newest = versions.and_then(|versions| versions.values().next());
        newest.into_iter().flatten().map(|i| &self.tables.series[*i as usize]).collect()
    }

    fn has_layout(&self, format: &Format, shape: &Shape, wanted: &MoeSizes) -> bool {
        let same = |s: &&Series| {
            let sizes = MoeSizes::of(&s.sizes);
            sizes.tensor_parallel == wanted.tensor_parallel
                && sizes.expert_parallel == wanted.expert_parallel
        };
        self.series(format, shape).iter().any(same)
    }

    /// Curves of a shape around the layout asked for.
    fn part(&self, format: &Format, shape: &Shape, wanted: &MoeSizes, carry: &Carry) -> Part {
        let series = self.series(format, shape);
        let mut layouts: Vec<(u32, u32)> =
            series.iter().map(|s| (s.sizes[4], s.sizes[5])).collect();
        layouts.sort_unstable();
        layouts.dedup();
        let ratio = |a: u32, b: u32| (f64::from(a) / f64::from(b)).ln();
        let (tp, ep) = (wanted.tensor_parallel, wanted.expert_parallel);
        let tensor_parallel = f64::from(tp);
        let distance = |l: &&(u32, u32)| ratio(l.0, tp).abs() + ratio(l.1, ep).abs();
        let by_distance = |a: &&(u32, u32), b: &&(u32, u32)| distance(a).total_cmp(&distance(b));
        let low = layouts.iter().filter(|l| l.0 <= tp).min_by(by_distance);
        let high = layouts.iter().filter(|l| l.0 > tp).min_by(by_distance);
        let curve = |layout: &(u32, u32)| self.curve(format, &series, *layout, carry);
        let (Some(low), high) = (low.or(high), high.filter(|_| low.is_some_and(|l| l.0 < tp)))
        else {
            // A shape in the index has at least one series.
            let lower = Curve::empty(*wanted);
            return Part { weight: 1.0, tensor_parallel, lower, upper: None };
        };
        let upper = high.map(|high| (curve(high), ratio(tp, low.0) / ratio(high.0, low.0)));
        Part { weight: 1.0, tensor_parallel, lower: curve(low), upper }
    }

    fn curve(
        &self,
        format: &Format,
        series: &[&Series],
        layout: (u32, u32),
        carry: &Carry,
    ) -> Curve {
        let mut by_skew: BTreeMap<u32, BTreeMap<u32, f32>> = BTreeMap::new();
        let mut spread: f64 = 0.0;
        let mut sizes = None;
        for series in series.iter().filter(|s| (s.sizes[4], s.sizes[5]) == layout) {
            let own = MoeSizes::of(&series.sizes);
            sizes.get_or_insert(own);
            spread = spread.max(f64::from(series.spread));
            let (axis, seconds) = self.tables.points(series);
            let cells = by_skew.entry(own.skew).or_default();
            for (point, seconds) in axis.iter().zip(seconds) {
                let cell = cells.entry(point.0).or_insert(f32::INFINITY);
                *cell = cell.min(*seconds);
            }
        }
        let sizes = sizes.unwrap_or_else(|| MoeSizes::of(&[1; 8]));
        let mut all = by_skew.into_iter();
        let (skew, base) = all.next().unwrap_or_default();
        let sizes = MoeSizes { skew, ..sizes };
        let skewed = all.map(|(skew, cells)| (skew, cells.into_iter().collect())).collect();
        Curve { spread, skewed, ..Curve::new(sizes, &base, format.precision, carry) }
    }
}

fn shape(sizes: &MoeSizes) -> Shape {
    [sizes.hidden, sizes.inter, sizes.experts, sizes.top_k, u32::from(sizes.gated)]
}

/// The nearest measured shapes with their weights, and the distance of the first.
fn nearest(format: &Format, wanted: &MoeSizes) -> (Vec<(Shape, f64)>, f64) {
    let ratio = |a: u32, b: u32| (f64::from(a) / f64::from(b)).ln();
    let target = shape(wanted);
    let distance = |s: &Shape| {
        let [hidden, inter, experts, top_k] =
            [0, 1, 2, 3].map(|i| ratio(s[i].max(1), target[i].max(1)));
        let other_gate = if s[4] == target[4] { 0.0 } else { 1.0 };
        let size = hidden + inter;
        (size.powi(2)
            + 0.5 * hidden.powi(2)
            + 0.15 * experts.powi(2)
            + 0.1 * top_k.powi(2)
            + other_gate)
            .sqrt()
    };
    let mut all: Vec<(f64, Shape)> = format.shapes.keys().map(|s| (distance(s), *s)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all.truncate(NEIGHBOURS);
    let weight = |d: f64| 1.0 / (d * d + 0.01);
    let total: f64 = all.iter().map(|(d, _)| weight(*d)).sum();
    let first = all.first().map_or(0.0, |(d, _)| *d);
    (all.into_iter().map(|(d, shape)| (shape, weight(d) / total)).collect(), first)
}

/// Traffic and arithmetic of `rows` rows at `active` experts of a layout.
fn work(sizes: &MoeSizes, precision: Precision, load: &Load) -> Work {
    let params = sizes.expert_params();
    let tokens = load.rows / f64::from(sizes.top_k);
    Work {
        bytes: load.active * params * precision.bits / 8.0
            + 2.0 * ACTIVATION_BYTES * tokens * f64::from(sizes.hidden),
        flops: 2.0 * params * load.rows,
    }
}

impl Curve {
    fn empty(sizes: MoeSizes) -> Self {
        Self {
            sizes,
            few: Line::default(),
            full: Line::default(),
            floor: 0.0,
            experts: 1.0,
            spread: 0.0,
            skewed: Vec::new(),
            skew: OnceLock::new(),
        }
    }

    fn new(
        sizes: MoeSizes,
        base: &BTreeMap<u32, f32>,
        precision: Precision,
        carry: &Carry,
    ) -> Self {
        let experts = sizes.local_experts();
        let (mut few, mut full) = (Vec::new(), Vec::new());
        let mut floor = f64::INFINITY;
        for (&tokens, &seconds) in base {
            let load = base_load(&sizes, tokens);
            let reached = carry.from.floor(work(&sizes, precision, &load), precision.arithmetic);
            let t = f64::from(seconds);
            floor = floor.min((t - reached / BEST_SHARE).clamp(0.2 * t, 0.95 * t));
            if load.active >= 0.999 * experts {
                full.push((single(load.rows / load.active), seconds));
            } else {
                few.push((single(load.active), seconds));
            }
        }
        let full = Line::from_points(full);
        if let Some(first) = full.t.first() {
            few.push((single(experts), *first));
        }
        let few = Line::from_points(few);
        let least = few.t.iter().chain(&full.t).copied().fold(f32::INFINITY, f32::min);
        let floor = floor.min(0.95 * f64::from(least));
        Self { few, full, floor, experts, ..Self::empty(sizes) }
    }

    /// Time of `active` experts with `rows` rows together, evenly spread.
    fn time(&self, active: f64, rows: f64) -> f64 {
        let each = rows / active;
        let Some(&first) = self.full.x.first() else {
            // No row hits all experts: the last point of the few is the base of more rows.
            return self.few.time(active.min(self.experts));
        };
        let base = f64::from(self.full.t.first().copied().unwrap_or_default());
        let full = if each > f64::from(first) { self.full.time(each) } else { base };
        if active >= self.experts {
            return self.floor + (full - self.floor) * active / self.experts;
        }
        let few = self.few.time(active);
        self.floor + (few - self.floor) * (full - self.floor) / (base - self.floor)
    }

    /// ln of how much longer a load takes whose busiest expert has `imbalance` times the even rows.
    fn ln_longer(&self, tokens: f64, imbalance: f64) -> f64 {
        if imbalance < EVEN || self.skewed.is_empty() {
            return 0.0;
        }
        let skew = self.skew.get_or_init(|| self.skewed.iter().map(|s| self.skew_of(s)).collect());
        let ln = imbalance.ln();
        let (mut from, mut to) = ((0.0, 0.0), None);
        for series in skew {
            let place = Place::of(&series.tokens, tokens);
            let place = Place { share: place.share.clamp(0.0, 1.0), ..place };
            let at = |values: &[f32]| {
                let from = f64::from(values.get(place.at).copied().unwrap_or(0.0));
                let to = values.get(place.at + 1).map_or(from, |v| f64::from(*v));
                from + (to - from) * place.share
            };
            let knot = (at(&series.ln_imbalance), at(&series.ln_longer));
            if knot.0 <= from.0 + 0.02 {
                continue;
            }
            to = Some(knot);
            if knot.0 >= ln {
                break;
            }
            from = knot;
        }
        let Some(to) = to else { return 0.0 };
        if to.0 <= from.0 {
            return to.1;
        }
        let share = ((ln - from.0) / (to.0 - from.0)).clamp(0.0, 1.0);
        from.1 + (to.1 - from.1) * share
    }

    fn skew_of(&self, (skew, cells): &(u32, Vec<(u32, f32)>)) -> Skew {
        let sizes = MoeSizes { skew: *skew, ..self.sizes };
        let mut knots: Vec<(f32, f32, f32)> = cells
            .iter()
            .map(|(tokens, seconds)| {
                let load = power_law(&sizes, *tokens);
                let rows = even_rows(&sizes, f64::from(*tokens), &load);
                let longer = (f64::from(*seconds) / self.time(load.active, rows)).ln();
                let imbalance = Load { rows, ..load }.imbalance().ln();
                (*tokens as f32, single(longer), single(imbalance))
            })
            .collect();
        knots.sort_by(|a, b| a.0.total_cmp(&b.0));
        Skew {
            tokens: knots.iter().map(|k| k.0).collect(),
            ln_longer: knots.iter().map(|k| k.1).collect(),
            ln_imbalance: knots.iter().map(|k| k.2).collect(),
        }
    }

    /// Whether the load is that of a measured row of the base series.
    fn is_measured(&self, load: &Load) -> bool {
        if load.active >= 0.999 * self.experts {
            return Place::of(&self.full.x, load.rows / load.active).is_exact();
        }
        (load.rows / load.active - 1.0).abs() < 1e-9
            && Place::of(&self.few.x, load.active).is_exact()
    }
}

/// Rows of the busiest rank if all tokens were spread evenly over the ranks, but for one row for
/// each active expert.
fn even_rows(sizes: &MoeSizes, tokens: f64, load: &Load) -> f64 {
    let even = tokens * f64::from(sizes.top_k) / f64::from(sizes.expert_parallel);
    even.max(load.active).min(load.rows.max(load.active))
}

fn base_load(sizes: &MoeSizes, tokens: u32) -> Load {
    if sizes.skew == 0 { balanced(sizes, f64::from(tokens)) } else { power_law(sizes, tokens) }
}

impl Resolved {
    fn answer(&self, q: &MoeQuery, carry: &Carry) -> Latency {
        if q.rows <= 0.0 {
            return Latency::ZERO;
        }
        let active = q.active.min(q.rows).max(1e-9);
        let uneven = Load { rows: q.rows, active, max_rows: q.max_rows };
        let spread = q.tokens * q.top_k as f64 / q.expert_parallel as f64;
        let even = Load { rows: spread.max(active).min(q.rows), ..uneven };
        let seconds = self.even(&even, self.work(q, &even), carry);
        let asked = self.work(q, &uneven);
        let arithmetic = self.precision.arithmetic;
        let first = self.parts.first().map(|p| &p.lower);
        let (seconds, longer) = if first.is_some_and(|c| !c.skewed.is_empty()) {
            let longer = first.map_or(0.0, |c| c.ln_longer(q.tokens, even.imbalance()));
            (seconds * longer.exp(), longer)
        } else {
            // No uneven load was measured: the busiest rank's further rows at the peaks.
            let roofline = |load| carry.from.floor(self.work(q, load), arithmetic);
            (seconds + roofline(&uneven) - roofline(&even), uneven.rows / even.rows - 1.0)
        };
        let (source, sigma) = self.quality(&even, longer);
        carry.answer(Timed { seconds, source, sigma }, asked, arithmetic)
    }

    /// Traffic and arithmetic of a load of the layer asked for.
    fn work(&self, q: &MoeQuery, load: &Load) -> Work {
        let params = q.expert_params();
        let tokens = load.rows / q.top_k as f64;
        Work {
            bytes: load.active * params * self.precision.bits / 8.0
                + 2.0 * ACTIVATION_BYTES * tokens * q.hidden as f64,
            flops: 2.0 * params * load.rows,
        }
    }

    fn quality(&self, load: &Load, longer: f64) -> (Source, f64) {
        let first = self.parts.first().map(|p| &p.lower);
        let spread = first.map_or(0.0, |c| c.spread);
        let own = if spread > 0.0 { spread } else { sigma::MEASURED };
        let even = longer.abs() < 1e-9;
        let exact = even && first.is_some_and(|c| c.is_measured(load));
        match self.source {
            Source::Measured if exact => (Source::Measured, sigma::together(&[own, self.sigma])),
            Source::Measured => {
                (Source::Interpolated, sigma::together(&[own, sigma::INTERPOLATED, self.sigma]))
            }
            other => (other, sigma::together(&[own, sigma::INTERPOLATED, self.sigma])),
        }
    }

    /// Time of an even load on the tables' device.
    fn even(&self, load: &Load, asked: Work, carry: &Carry) -> f64 {
        if let ([part], true) = (self.parts.as_slice(), self.exact) {
            return part.lower.time(load.active, load.rows);
        }
        let ln: f64 =
            self.parts.iter().map(|p| p.weight * self.scaled(p, load, asked, carry).ln()).sum();
        ln.exp()
    }

    /// What a part says about the work asked for.
    fn scaled(&self, part: &Part, load: &Load, asked: Work, carry: &Carry) -> f64 {
        let roofline = |work: Work| carry.from.floor(work, self.precision.arithmetic);
        let asked = roofline(asked);
        let of = |curve: &Curve| {
            let time = curve.time(load.active, load.rows);
            let reached = roofline(work(&curve.sizes, self.precision, load));
            (curve.floor, (time - curve.floor).max(0.0), reached)
        };
        let (floor, spent, reached) = of(&part.lower);
        let lower = floor + spent * asked / reached;
        let Some((curve_up, share)) = &part.upper else { return lower };
        let (floor_up, spent_up, reached_up) = of(curve_up);
        let upper = floor_up + spent_up * asked / reached_up;
        let between = lower * (upper / lower).powf(*share);
        // The same layer at the TP sizes that were measured: neither beyond the one nor the other.
        let at = |curve: &Curve| part.tensor_parallel / f64::from(curve.sizes.tensor_parallel);
        let slowest = floor + spent * asked * at(&part.lower) / reached;
        let fastest = floor_up + spent_up * asked * at(curve_up) / reached_up;
        between.clamp(fastest.min(slowest), slowest)
    }
}
