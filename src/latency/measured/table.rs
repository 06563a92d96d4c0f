//! Lookup of a layer's latency in a measured profile.
//!
//! Every answer is a share of the roofline: `util = SOL / measured` with the ceilings of the same
//! run, so that what is carried from one configuration to another is how well the kernel does,
//! not how long it takes. In order of trust:
//!
//! 1. a cell with the asked key: its own median and interval (`Measured`);
//! 2. between two token counts of the same shape and routing: ln util linear in ln tokens, widened
//!    by what leaving each inner cell out shows (`Interpolated`);
//! 3. another shape: ln util smoothed over (rows per active expert, bytes of one expert, active
//!    experts), widened by what leaving each whole shape out shows (`Transferred`);
//! 4. nothing: what is missing, with the command that measures it.
//!
//! Cells timed in different modes never answer together. Where a GPU's profile has both, layers bound
//! by memory, as in decoding, are answered from cold cells and those bound by arithmetic, as prompts
//! are, from stream cells; where it has one, from that. Hot cells answer nothing.

use super::interpolate::{AXES, Bounds, Grid, Point, smooth};
use super::layer::{Ceilings, LayerQuery};
use super::validate::query_of;
use crate::latency::query::{Operation, Query};
use crate::latency::{Absent, Answer, Latency, LatencyModel, Source};
use crate::record::{Cell, Op, Profile, Status, TimingMode};
use crate::stats::Z95;
use crate::stats::interval::median;
use crate::units::Seconds;
use crate::{Error, Result};

/// How far from measured shapes an answer may be carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transfer {
    /// Hidden and FFN width within a factor of two of one measured shape, experts and `top_k` among
    /// the measured ones, rows and active experts inside the measured range.
    #[default]
    Nearby,
    /// Any shape of a measured number format and gating; the interval widens with the distance.
    AnyShape,
}

/// What a table may use and answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How far answers are carried.
    pub transfer: Transfer,
    /// Whether cells whose interval stayed wide are used, with that interval.
    pub include_noisy: bool,
}

/// How well left-out cells were predicted: quantiles of |ln(predicted / measured)|.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct TransferError {
    /// Half of the left-out cells are predicted within this.
    pub median: f64,
    /// Nine of ten are.
    pub p90: f64,
}

impl TransferError {
    /// From absolute log errors; `None` without any.
    fn from_abs(mut errors: Vec<f64>) -> Option<Self> {
        errors.sort_by(f64::total_cmp);
        let p90 = *errors.get((errors.len() * 9).div_ceil(10).checked_sub(1)?)?;
        Some(Self { median: median(&errors)?, p90 })
    }

    /// Standard deviation of a log-normal with these quantiles, the wider of the two readings.
    pub fn log_sigma(&self) -> f64 {
        (self.median / 0.674_5).max(self.p90 / 1.644_9)
    }
}

/// Kernels of one layer outside of attention and experts: two norms, QKV, rotary, attention,
/// output projection, two residual sums.
const SMALL_KERNELS_PER_LAYER: f64 = 8.0;

/// The same token count, as far as active experts and the busiest expert go: within 10 % and 50 %.
const ACTIVE_TOLERANCE: f64 = 0.095;
const ROWS_TOLERANCE: f64 = 0.405;

/// A measured profile as a [`LatencyModel`].
#[derive(Clone, Debug)]
pub struct LatencyTable {
    name: String,
    ceilings: Ceilings,
    policy: Policy,
    /// Answers layers bound by memory; those bound by arithmetic too, without `prompts`.
    decode: OneMode,
    /// Answers layers bound by arithmetic, where the profile has cells for them.
    prompts: Option<OneMode>,
}

/// The cells of one timing mode.
#[derive(Clone, Debug)]
struct OneMode {
    timing: TimingMode,
    series: Vec<Series>,
    kinds: Vec<Kind>,
    interpolation_error: Option<TransferError>,
}

/// Cells of one shape and routing, by increasing tokens.
#[derive(Clone, Debug)]
struct Series {
    routing: String,
    entries: Vec<Entry>,
}

/// One usable cell.
#[derive(Clone, Copy, Debug)]
struct Entry {
    query: LayerQuery,
    value: Latency,
    ln_util: f64,
}

/// All cells of one number format and gating: the reach of a transfer.
#[derive(Clone, Debug)]
struct Kind {
    gated: bool,
    weight_bits: f64,
    shapes: Vec<Shape>,
    grid: Grid,
    /// `None` when a single shape was measured: nothing says how far it carries.
    error: Option<TransferError>,
    /// Distance that the left-out shapes had to be carried over, in natural logarithms.
    reach: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    hidden: usize,
    inter: usize,
    experts: usize,
    top_k: usize,
}

impl LatencyTable {
    /// A table over the usable whole-layer cells of a profile.
    ///
    /// # Errors
    /// [`Error::Unfit`] when no cell is usable under the policy.
    pub fn new(profile: &Profile, policy: Policy) -> Result<Self> {
        let run = &profile.run.ceilings;
        let ceilings = Ceilings {
            read_bytes_per_s: run.read_bytes_per_s,
            gemm_flops_per_s: run.gemm_flops_per_s,
            layer_overhead_s: SMALL_KERNELS_PER_LAYER * run.dispatch_ps as f64 * 1e-12,
        };
        let cells: Vec<&Cell> = profile.cells.iter().filter(|c| usable(c, policy)).collect();
        if cells.is_empty() {
            return Err(Error::unfit(
                format!("profile of {}", profile.key.device.name()),
                format!(
                    "none of its {} cells is usable (valid, checked, streaming from memory)",
                    profile.cells.len()
                ),
            ));
        }
        let of = |timing: TimingMode| {
            let cells: Vec<&Cell> = cells.iter().copied().filter(|c| c.timing == timing).collect();
            OneMode::new(timing, &cells, &ceilings)
        };
        let has = |timing: TimingMode| cells.iter().any(|c| c.timing == timing);
        let (decode, prompts) = if has(TimingMode::Cpu) {
            (TimingMode::Cpu, None)
        } else if !has(TimingMode::Cold) {
            (TimingMode::Stream, None)
        } else {
            (TimingMode::Cold, has(TimingMode::Stream).then_some(TimingMode::Stream))
        };
        let (decode, prompts) = (of(decode)?, prompts.map(of).transpose()?);
        let name = format!("measured by this program on {}", profile.key.device.name());
        Ok(Self { name, ceilings, policy, decode, prompts })
    }

    /// How the cells were timed that answer layers bound by memory and those bound by arithmetic.
    pub fn timing(&self) -> (TimingMode, TimingMode) {
        let decode = self.decode.timing;
        (decode, self.prompts.as_ref().map_or(decode, |prompts| prompts.timing))
    }

    fn modes(&self) -> impl Iterator<Item = &OneMode> {
        std::iter::once(&self.decode).chain(&self.prompts)
    }

    /// The cells that answer a query: those of its own mode, or of the other one if only that has its
    /// number format.
    fn mode_of(&self, query: &LayerQuery) -> &OneMode {
        let Some(prompts) = &self.prompts else { return &self.decode };
        let (first, second) = if query.is_bound_by_arithmetic(&self.ceilings) {
            (prompts, &self.decode)
        } else {
            (&self.decode, prompts)
        };
        if first.kind_of(query).is_none() && second.kind_of(query).is_some() {
            second
        } else {
            first
        }
    }

    /// What leaving each inner cell of a series out shows; `None` when no series has three cells.
    pub fn interpolation_error(&self) -> Option<TransferError> {
        worst(self.modes().filter_map(|m| m.interpolation_error))
    }

    /// What leaving each shape out shows, over all number formats measured (the worst of them);
    /// `None` when a single shape was measured.
    pub fn transfer_error(&self) -> Option<TransferError> {
        worst(self.modes().flat_map(|m| &m.kinds).filter_map(|k| k.error))
    }

    /// Number of cells in use.
    pub fn cells(&self) -> usize {
        self.modes().flat_map(|m| &m.series).map(|s| s.entries.len()).sum()
    }

    fn transfer(&self, mode: &OneMode, query: &LayerQuery) -> Answer {
        let Some(kind) = mode.kind_of(query) else {
            let have: Vec<String> = mode.kinds.iter().map(Kind::describe).collect();
            return Err(Self::outside(query, &format!("measured are only {}", have.join(", "))));
        };
        let Some(error) = kind.error else {
            return Err(Self::outside(query, "one measured shape says nothing about others"));
        };
        let (inside, excess) = kind.grid.bounds().clamp(axes_of(query));
        if self.policy.transfer == Transfer::Nearby
            && let Err(reason) = kind.near(query, excess)
        {
            return Err(Self::outside(query, &reason));
        }
        let value = query.roofline(&self.ceilings) * (-kind.grid.at(inside)).exp();
        let sigma = error.log_sigma() * (1.0 + excess / kind.reach);
        Ok(spread(value, query.roofline(&self.ceilings), sigma, Source::Transferred))
    }

    /// What is missing, and the command that measures it.
    fn outside(query: &LayerQuery, reason: &str) -> Absent {
        Absent::Key(
            format!(
                "layer hidden {} inter {} experts {} top-k {} at {:.1} tokens is not covered by the \
                 profile ({reason}); measure it: moe-frontier measure --hidden {} --inter {} \
                 --experts {} --top-k {} --tokens {}",
                query.hidden,
                query.inter,
                query.experts,
                query.top_k,
                query.tokens,
                query.hidden,
                query.inter,
                query.experts,
                query.top_k,
                query.tokens.ceil()
            )
            .into(),
        )
    }

    /// Duration of router, align, grouped GEMMs, activation and combine of one MoE layer.
    ///
    /// # Errors
    /// [`Absent`] when the profile does not cover the layer.
    pub fn moe_layer(&self, query: &LayerQuery) -> Answer {
        let mode = self.mode_of(query);
        match mode.same_shape(query, &self.ceilings) {
            Some(latency) => Ok(latency),
            None => self.transfer(mode, query),
        }
    }

    /// What the device reached in the run.
    pub const fn ceilings(&self) -> &Ceilings {
        &self.ceilings
    }
}

impl LatencyModel for LatencyTable {
    fn answer(&self, query: &Query) -> Answer {
        match query {
            Query::Moe(moe) => self.moe_layer(&LayerQuery::from(moe)),
            _ => Err(Absent::Operation),
        }
    }

    fn provenance(&self, operation: Operation) -> Option<String> {
        (operation == Operation::Moe).then(|| self.name.clone())
    }
}

impl OneMode {
    fn new(timing: TimingMode, cells: &[&Cell], ceilings: &Ceilings) -> Result<Self> {
        let series = series_of(cells, ceilings);
        let interpolation_error = interpolation_error(&series);
        let kinds = kinds_of(&series)?;
        Ok(Self { timing, series, kinds, interpolation_error })
    }

    fn kind_of(&self, query: &LayerQuery) -> Option<&Kind> {
        self.kinds.iter().find(|k| k.is_of(query))
    }

    fn same_shape(&self, query: &LayerQuery, ceilings: &Ceilings) -> Option<Latency> {
        let mut matching = self.series.iter().filter(|s| s.holds(query));
        let sigma = self.interpolation_error.map_or(0.0, |e| e.log_sigma());
        matching.find_map(|s| s.lookup(query, ceilings, sigma))
    }
}

impl Series {
    fn holds(&self, query: &LayerQuery) -> bool {
        self.entries
            .first()
            .is_some_and(|e| shape_of(&e.query) == shape_of(query) && same_kind(&e.query, query))
    }

    /// Between two cells; `None` outside the measured tokens or for another routing.
    fn lookup(&self, query: &LayerQuery, ceilings: &Ceilings, sigma: f64) -> Option<Latency> {
        let upper = self.entries.partition_point(|e| e.query.tokens < query.tokens);
        let above = self.entries.get(upper)?;
        if (above.query.tokens - query.tokens).abs() <= 1e-9 * query.tokens {
            return same_routing(&above.query, query).then_some(above.value);
        }
        let below = self.entries.get(upper.checked_sub(1)?)?;
        between(below, above, query, ceilings, sigma)
    }
}

fn between(
    below: &Entry,
    above: &Entry,
    query: &LayerQuery,
    ceilings: &Ceilings,
    sigma: f64,
) -> Option<Latency> {
    let (low, high) = (&below.query, &above.query);
    let share = (query.tokens / low.tokens).ln() / (high.tokens / low.tokens).ln();
    let mix = |a: f64, b: f64| (a.ln() + share * (b / a).ln()).exp();
    let expected = LayerQuery {
        active_experts: mix(low.active_experts, high.active_experts),
        max_rows: mix(low.max_rows, high.max_rows),
        ..*query
    };
    if !same_routing(&expected, query) {
        return None;
    }
    let ln_util = below.ln_util + share * (above.ln_util - below.ln_util);
    let value = query.roofline(ceilings) * (-ln_util).exp();
    let own = below.value.log_sigma.max(above.value.log_sigma);
    Some(spread(value, query.roofline(ceilings), sigma.hypot(own), Source::Interpolated))
}

impl Kind {
    fn is_of(&self, query: &LayerQuery) -> bool {
        self.gated == query.gated && (self.weight_bits - query.weight_bits).abs() < 1e-9
    }

    fn describe(&self) -> String {
        let gating = if self.gated { "gated" } else { "plain" };
        format!("{gating} experts of {} bits a weight", self.weight_bits)
    }

    /// Whether a query is near enough to be answered without asking for any shape.
    fn near(&self, query: &LayerQuery, excess: f64) -> std::result::Result<(), String> {
        let within_two = |a: usize, b: usize| a <= 2 * b && b <= 2 * a;
        let close =
            |s: &&Shape| within_two(s.hidden, query.hidden) && within_two(s.inter, query.inter);
        if !self.shapes.iter().any(|s| close(&s)) {
            return Err("no measured shape lies within a factor of two".into());
        }
        let measured = |s: &Shape| s.experts == query.experts && s.top_k == query.top_k;
        if !self.shapes.iter().any(measured) {
            let mut have: Vec<String> =
                self.shapes.iter().map(|s| format!("{} top-{}", s.experts, s.top_k)).collect();
            have.sort_unstable();
            have.dedup();
            return Err(format!("measured experts are {}", have.join(", ")));
        }
        // Expectations over routings fall short of the drawn extremes by a rounding error.
        if excess > 0.1 {
            return Err("rows or active experts lie outside the measured range".into());
        }
        Ok(())
    }
}

fn worst(errors: impl Iterator<Item = TransferError>) -> Option<TransferError> {
    errors.max_by(|a, b| a.log_sigma().total_cmp(&b.log_sigma()))
}

fn usable(cell: &Cell, policy: Policy) -> bool {
    cell.op == Op::MoeLayer
        && cell.is_usable()
        && (policy.include_noisy || cell.status == Status::Valid)
}

fn series_of(cells: &[&Cell], ceilings: &Ceilings) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for cell in cells {
        let Some(entry) = entry_of(cell, ceilings) else { continue };
        let same = |s: &&mut Series| s.routing == cell.routing.kind && s.holds(&entry.query);
        match series.iter_mut().find(same) {
            Some(found) => found.entries.push(entry),
            None => {
                series.push(Series { routing: cell.routing.kind.clone(), entries: vec![entry] });
            }
        }
    }
    for s in &mut series {
        s.entries.sort_by(|a, b| a.query.tokens.total_cmp(&b.query.tokens));
    }
    series
}

fn entry_of(cell: &Cell, ceilings: &Ceilings) -> Option<Entry> {
    let interval = cell.latency.interval()?;
    let seconds = |ps: u64| Seconds(ps as f64 * 1e-12);
    let query = query_of(cell);
    let width = (interval.hi_ps as f64 / interval.lo_ps as f64).ln();
    let value = seconds(interval.median_ps);
    let value = spread(value, query.roofline(ceilings), width / (2.0 * Z95), Source::Measured);
    let ln_util = (query.roofline(ceilings) / value.value).ln();
    Some(Entry { query, value, ln_util })
}

fn kinds_of(series: &[Series]) -> Result<Vec<Kind>> {
    let mut kinds: Vec<Kind> = Vec::new();
    for first in series.iter().filter_map(|s| s.entries.first()) {
        if kinds.iter().any(|k| k.is_of(&first.query)) {
            continue;
        }
        let entries: Vec<Entry> = series
            .iter()
            .flat_map(|s| &s.entries)
            .filter(|e| same_kind(&e.query, &first.query))
            .copied()
            .collect();
        kinds.push(kind_of(&entries)?);
    }
    Ok(kinds)
}

fn kind_of(entries: &[Entry]) -> Result<Kind> {
    let points: Vec<Point> = entries.iter().map(point_of).collect();
    let mut shapes: Vec<Shape> = entries.iter().map(|e| shape_of(&e.query)).collect();
    shapes.dedup();
    let (Some(grid), Some(first)) = (Grid::new(&points), entries.first()) else {
        return Err(Error::unfit("profile", "no cell of this number format"));
    };
    let (error, reach) = leave_one_shape_out(entries, &points);
    let (gated, weight_bits) = (first.query.gated, first.query.weight_bits);
    Ok(Kind { gated, weight_bits, shapes, grid, error, reach })
}

/// Predicts the cells of each shape from all others. What is left out at a time is everything of
/// one (hidden, inter), because that is what a new model brings; with a single one, everything of
/// one number of experts. Returns the error and the usual distance that was bridged.
fn leave_one_shape_out(entries: &[Entry], points: &[Point]) -> (Option<TransferError>, f64) {
    let widths = |e: &Entry| (e.query.hidden, e.query.inter);
    let one_width = entries.iter().all(|e| widths(e) == widths(&entries[0]));
    let group = |e: &Entry| if one_width { (e.query.experts, 0) } else { widths(e) };
    let mut groups: Vec<(usize, usize)> = entries.iter().map(group).collect();
    groups.sort_unstable();
    groups.dedup();
    let (mut errors, mut distances) = (Vec::new(), Vec::new());
    for left_out in groups {
        let others =
            || entries.iter().zip(points).filter(|(e, _)| group(e) != left_out).map(|(_, p)| p);
        let Some(bounds) = Bounds::around(others()) else { continue };
        for (_, point) in entries.iter().zip(points).filter(|(e, _)| group(e) == left_out) {
            let (inside, excess) = bounds.clamp(point.at);
            if let Some(predicted) = smooth(others(), inside) {
                errors.push((predicted - point.ln_util).abs());
                distances.push(excess);
            }
        }
    }
    let bridged = distances.iter().copied().fold(0.0, f64::max);
    (TransferError::from_abs(errors), bridged.max(std::f64::consts::LN_2))
}

/// Predicts each inner cell of each series from its two neighbours.
fn interpolation_error(series: &[Series]) -> Option<TransferError> {
    let mut errors = Vec::new();
    for triple in series.iter().flat_map(|s| s.entries.windows(3)) {
        let [low, left_out, high] = triple else { continue };
        let (from, to) = (low.query.tokens, high.query.tokens);
        let share = (left_out.query.tokens / from).ln() / (to / from).ln();
        let predicted = low.ln_util + share * (high.ln_util - low.ln_util);
        errors.push((predicted - left_out.ln_util).abs());
    }
    TransferError::from_abs(errors)
}

fn point_of(entry: &Entry) -> Point {
    Point { at: axes_of(&entry.query), ln_util: entry.ln_util }
}

/// Natural logarithms of (rows per active expert, bytes of one expert, active experts).
fn axes_of(query: &LayerQuery) -> [f64; AXES] {
    let rows = query.tokens * query.top_k as f64 / query.active_experts;
    let matrices = if query.gated { 3.0 } else { 2.0 };
    let bytes = matrices * query.hidden as f64 * query.inter as f64 * query.weight_bits / 8.0;
    [rows.ln(), bytes.ln(), query.active_experts.ln()]
}

fn shape_of(query: &LayerQuery) -> Shape {
    let &LayerQuery { hidden, inter, experts, top_k, .. } = query;
    Shape { hidden, inter, experts, top_k }
}

fn same_kind(a: &LayerQuery, b: &LayerQuery) -> bool {
    a.gated == b.gated && (a.weight_bits - b.weight_bits).abs() < 1e-9
}

fn same_routing(a: &LayerQuery, b: &LayerQuery) -> bool {
    (a.active_experts / b.active_experts).ln().abs() <= ACTIVE_TOLERANCE
        && (a.max_rows / b.max_rows).ln().abs() <= ROWS_TOLERANCE
}

/// A log-normal around `value`, whose layer cannot run faster than `roofline`.
fn spread(value: Seconds, roofline: Seconds, log_sigma: f64, source: Source) -> Latency {
    // A measured cell may beat the run's own ceilings by their noise.
    let floor = roofline.min(value);
    Latency { value, log_sigma, floor, arithmetic: 0.0, source, origin: 0 }
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{profile, truth, uniform};
    use super::*;
    use crate::record::LatencyRecord;

    const WIDTHS: [(usize, usize); 3] = [(512, 1536), (768, 2304), (1024, 3072)];

    fn any_shape() -> Policy {
        Policy { transfer: Transfer::AnyShape, ..Policy::default() }
    }

    fn query(hidden: usize, experts: usize, tokens: usize) -> LayerQuery {
        let (active_experts, max_rows) = uniform(experts, 1, tokens);
        LayerQuery {
            hidden,
            inter: 3 * hidden,
            experts,
            top_k: 1,
            gated: true,
            weight_bits: 16.0,
            tokens: tokens as f64,
            active_experts,
            max_rows,
        }
    }

    fn table(policy: Policy) -> LatencyTable {
        LatencyTable::new(&profile(&WIDTHS, 0.01), policy).unwrap()
    }

    #[test]
    fn a_measured_cell_answers_with_its_own_interval() {
        let asked = query(768, 8, 64);
        let latency = table(Policy::default()).moe_layer(&asked).unwrap();
        assert_eq!(latency.source, Source::Measured);
        assert!((latency.value.0 / truth(&asked) - 1.0).abs() < 1e-3);
        assert!((latency.hi() / latency.lo() - 1.02).abs() < 1e-3);
    }

    #[test]
    fn between_token_counts_it_interpolates() {
        let asked = query(768, 8, 90);
        let latency = table(Policy::default()).moe_layer(&asked).unwrap();
        assert_eq!(latency.source, Source::Interpolated);
        assert!((latency.value.0 / truth(&asked) - 1.0).abs() < 0.03, "{latency:?}");
        assert!(latency.lo().0 < truth(&asked) && truth(&asked) < latency.hi().0);
    }

    #[test]
    fn another_width_is_transferred_and_its_interval_holds_the_truth() {
        let table = table(any_shape());
        let mut inside = 0;
        let mut asked = 0;
        for hidden in [600, 900, 1000] {
            for experts in [4, 8, 16, 32] {
                for tokens in [1, 3, 10, 50, 300, 1000] {
                    let q = query(hidden, experts, tokens);
                    let latency = table.moe_layer(&q).unwrap();
                    assert_eq!(latency.source, Source::Transferred);
                    assert!((latency.value.0 / truth(&q)).ln().abs() < 0.15, "{q:?} {latency:?}");
                    asked += 1;
                    inside += usize::from(latency.lo().0 < truth(&q) && truth(&q) < latency.hi().0);
                }
            }
        }
        assert!(inside * 100 >= asked * 90, "{inside} of {asked}");
        let error = table.transfer_error().unwrap();
        assert!(error.median < 0.05 && error.median <= error.p90, "{error:?}");
    }

    #[test]
    fn far_shapes_need_permission_and_widen_with_the_distance() {
        let far = query(4096, 8, 64);
        let error = table(Policy::default()).moe_layer(&far).unwrap_err();
        assert!(error.to_string().contains("moe-frontier measure --hidden 4096"), "{error}");
        let table = table(any_shape());
        let near = table.moe_layer(&query(1000, 8, 64)).unwrap();
        let far = table.moe_layer(&far).unwrap();
        let farther = table.moe_layer(&query(8192, 8, 64)).unwrap();
        assert!(near.log_sigma < far.log_sigma && far.log_sigma < farther.log_sigma);
    }

    #[test]
    fn nearby_transfer_wants_measured_experts_and_rows() {
        let table = table(Policy::default());
        assert_eq!(table.moe_layer(&query(600, 8, 64)).unwrap().source, Source::Transferred);
        for refused in [query(600, 64, 64), query(600, 8, 100_000)] {
            assert!(matches!(table.moe_layer(&refused), Err(Absent::Key(_))), "{refused:?}");
        }
    }

    #[test]
    fn skewed_routing_of_a_measured_shape_is_no_measured_cell() {
        let table = table(Policy::default());
        let skewed = LayerQuery { active_experts: 2.0, max_rows: 60.0, ..query(768, 8, 64) };
        assert_eq!(table.moe_layer(&skewed).unwrap().source, Source::Transferred);
    }

    #[test]
    fn an_unmeasured_number_format_is_absent() {
        let four_bit = LayerQuery { weight_bits: 4.25, ..query(768, 8, 64) };
        let error = table(any_shape()).moe_layer(&four_bit).unwrap_err();
        assert!(error.to_string().contains("16 bits"), "{error}");
    }

    #[test]
    fn one_shape_alone_is_not_transferred() {
        let mut lone = profile(&WIDTHS[..1], 0.01);
        lone.cells.retain(|c| c.experts == 8);
        let table = LatencyTable::new(&lone, any_shape()).unwrap();
        assert_eq!(table.transfer_error(), None);
        assert!(matches!(table.moe_layer(&query(600, 8, 64)), Err(Absent::Key(_))));
        assert!(table.moe_layer(&query(512, 8, 64)).is_ok());
    }

    #[test]
    fn noisy_cells_count_only_on_request() {
        let mut noisy = profile(&WIDTHS, 0.1);
        for cell in &mut noisy.cells {
            cell.status = Status::Noisy;
        }
        assert_eq!(LatencyTable::new(&noisy, any_shape()).unwrap_err().exit_code(), 4);
        let policy = Policy { include_noisy: true, ..any_shape() };
        let table = LatencyTable::new(&noisy, policy).unwrap();
        assert_eq!(table.cells(), 3 * 5 * 11);
    }

    /// The profile of a GPU: cells of each mode, slower than the truth by its factor.
    fn of_modes(modes: &[(TimingMode, u64)]) -> Profile {
        let mut all = profile(&WIDTHS, 0.01);
        let cells = std::mem::take(&mut all.cells);
        for &(timing, by) in modes {
            for mut cell in cells.clone() {
                cell.timing = timing;
                if let LatencyRecord::Interval(interval) = &mut cell.latency {
                    interval.median_ps *= by;
                    (interval.lo_ps, interval.hi_ps) = (interval.lo_ps * by, interval.hi_ps * by);
                }
                all.cells.push(cell);
            }
        }
        all
    }

    #[test]
    fn each_timing_mode_answers_what_it_is_for_and_hot_cells_answer_nothing() {
        use TimingMode::{Cold, Hot, Stream};
        let slower = |table: &LatencyTable, query: &LayerQuery| {
            (table.moe_layer(query).unwrap().value.0 / truth(query)).round()
        };
        // 32 experts of one token each, and one expert of 1024: measured, and between measured shapes.
        let decode = [query(768, 32, 4), query(800, 32, 4)];
        let prompts = [query(768, 1, 1024), query(800, 1, 900)];
        let both = of_modes(&[(Cold, 2), (Stream, 3), (Hot, 9)]);
        let table = LatencyTable::new(&both, any_shape()).unwrap();
        assert_eq!((table.timing(), table.cells()), ((Cold, Stream), 2 * 3 * 5 * 11));
        assert!(decode.iter().all(|q| (slower(&table, q) - 2.0).abs() < 0.1));
        assert!(prompts.iter().all(|q| (slower(&table, q) - 3.0).abs() < 0.1));
        for (only, by) in [(Cold, 2), (Stream, 3)] {
            let table = LatencyTable::new(&of_modes(&[(only, by)]), any_shape()).unwrap();
            assert_eq!(table.timing(), (only, only));
            for query in decode.iter().chain(&prompts) {
                assert!((slower(&table, query) - by as f64).abs() < 0.1, "{only:?} {query:?}");
            }
        }
        let hot = LatencyTable::new(&of_modes(&[(Hot, 1)]), any_shape()).unwrap_err();
        assert_eq!(hot.exit_code(), 4);
    }

    #[test]
    fn a_number_format_of_one_mode_alone_is_answered_from_it() {
        use TimingMode::{Cold, Stream};
        let mut both = of_modes(&[(Cold, 2), (Stream, 3)]);
        for cell in both.cells.iter_mut().filter(|c| c.timing == Cold) {
            cell.weight_bits = 8.0;
        }
        let table = LatencyTable::new(&both, any_shape()).unwrap();
        let sixteen = query(768, 32, 4);
        let found = table.moe_layer(&sixteen).unwrap().value.0;
        assert!((found / truth(&sixteen) / 3.0 - 1.0).abs() < 0.05);
    }

    #[test]
    fn time_never_falls_as_tokens_grow() {
        let table = table(any_shape());
        for (hidden, experts) in [(700, 4), (1500, 32), (768, 16)] {
            let mut last = 0.0;
            for tokens in 1..1024 {
                let now = table.moe_layer(&query(hidden, experts, tokens)).unwrap().value.0;
                assert!(now > 0.93 * last, "{hidden} {experts} {tokens}: {now} after {last}");
                last = now;
            }
        }
    }

    #[test]
    fn random_questions_never_give_an_unordered_interval() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let table = table(any_shape());
        for _ in 0..20_000 {
            let q = query(
                rng.random_range(1..20_000),
                rng.random_range(1..600),
                rng.random_range(1..50_000),
            );
            let l = table.moe_layer(&q).unwrap();
            assert!(
                0.0 < l.lo().0 && l.lo() <= l.value && l.value <= l.hi() && l.hi().is_finite(),
                "{q:?}"
            );
        }
    }
}
