//! How far answers from tables are from what was measured: own cells, points and shapes left out,
//! and another device.
//!
//! Each engine, version, format and cache is judged alone, by a model that holds nothing else, so
//! that every cell is reached whatever the preferences say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;

use super::choose::{DEEPEP_SMS, version_order};
use super::gather::keep_only;
use super::load::{balanced, power_law};
use super::narrow::word;
use super::series::{
    AttentionSizes, EngineTables, ExchangeSizes, Kernel, MoeSizes, Point, Series, Sizes, Table,
};
use super::tables_model::{TablesModel, device};
use crate::config::DType;
use crate::latency::model::LatencyModel;
use crate::latency::query::{
    AttentionQuery, CollectiveKind, CollectiveQuery, ExchangeQuery, GemmQuery, MlaPart, MlaQuery,
    MoeQuery, Phase, Query,
};
use crate::{Error, Result};

/// Errors of some cells: |predicted / measured - 1|.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ErrorRow {
    /// What was timed.
    pub table: &'static str,
    /// Engine, or all.
    pub engine: String,
    /// Number format and cache, or all.
    pub format: String,
    /// Cells.
    pub cells: usize,
    /// Cells that got no answer.
    pub unanswered: usize,
    /// Mean error.
    pub mean: f64,
    /// Median error.
    pub median: f64,
    /// 90th percentile of the error.
    pub p90: f64,
    /// Share of cells within 10 %.
    pub within_10_percent: f64,
    /// Mean of ln(predicted / measured).
    pub bias: f64,
    /// Root mean square of ln(predicted / measured) over the predicted standard deviation.
    pub spread_ratio: f64,
}

/// What is judged together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    table: Table,
    engine: String,
    format: String,
    cache: String,
}

/// Measured cells of one group: by sizes and point, of several kernels the fastest.
type Cells = BTreeMap<(Sizes, Point), f64>;

/// Cells of `truth` asked from `model_of`, on the device of `truth`. With `from` = `truth`: how well a
/// table gives back its own cells; with another device's: transfer between devices; with the compact
/// form: what it lost.
///
/// # Errors
/// [`Error::Unfit`] for tables of an unknown device.
pub fn cell_errors(from: &EngineTables, truth: &EngineTables) -> Result<Vec<ErrorRow>> {
    let target = device(truth)
        .ok_or_else(|| Error::unfit(&truth.device, "errors are judged on known devices"))?;
    let mut rows = Rows::default();
    let mut known = groups(from);
    for (group, kernels) in groups(truth) {
        let Some(own) = known.remove(&group) else { continue };
        let model =
            TablesModel::new(Arc::new(subset(from, &group, &own, &|_| true)), &target, None)?;
        let mut errors = Judged::default();
        for ((sizes, point), seconds) in cells(truth, &group, &kernels) {
            errors.add(&model, query(&group, &sizes, point), seconds);
        }
        let version = |tables: &EngineTables, of: &[u32]| {
            of.first().map_or_else(String::new, |k| tables.kernels[*k as usize].version.clone())
        };
        let versions = (version(from, &own), version(truth, &kernels));
        rows.add(&group, &errors, &versions);
    }
    Ok(rows.finish())
}

/// Each MoE shape predicted from the other shapes of its engine and format: balanced rows.
///
/// # Errors
/// As [`cell_errors`].
pub fn shape_errors(tables: &EngineTables) -> Result<Vec<ErrorRow>> {
    let moe = LeaveOut {
        from: |table| table == Table::Moe,
        together: |sizes| sizes[..4].to_vec(),
        counts: |sizes| MoeSizes::of(sizes).skew == 0,
        groups,
    };
    moe.errors(tables)
}

/// Each expert exchange predicted from those of the same engine over other numbers of nodes, whatever its
/// version: each was measured over some numbers of nodes alone. The fewest nodes and the most have none to
/// one side and get no answer.
///
/// # Errors
/// As [`cell_errors`].
pub fn node_errors(tables: &EngineTables) -> Result<Vec<ErrorRow>> {
    let exchange = LeaveOut {
        from: |table| matches!(table, Table::DecodeExchange | Table::PrefillExchange),
        together: |sizes| vec![ExchangeSizes::of(sizes).nodes],
        counts: |_| true,
        groups: |tables| {
            let all = kernels_by_group(tables).into_iter();
            all.map(|(group, kernels)| (group, kernels.into_iter().collect())).collect()
        },
    };
    exchange.errors(tables)
}

/// Cells that are predicted from the others of their group.
struct LeaveOut {
    from: fn(Table) -> bool,
    /// What the cells that are left out together have in common.
    together: fn(&Sizes) -> Vec<u32>,
    /// Whether a cell is judged.
    counts: fn(&Sizes) -> bool,
    /// Kernels of each group.
    groups: fn(&EngineTables) -> BTreeMap<Group, Vec<u32>>,
}

impl LeaveOut {
    fn errors(&self, tables: &EngineTables) -> Result<Vec<ErrorRow>> {
        let target = device(tables)
            .ok_or_else(|| Error::unfit(&tables.device, "errors are judged on known devices"))?;
        let mut rows = Rows::default();
        let groups = (self.groups)(tables).into_iter().filter(|(g, _)| (self.from)(g.table));
        for (group, kernels) in groups {
            let all = cells(tables, &group, &kernels);
            let keys: BTreeSet<Vec<u32>> = all.keys().map(|(s, _)| (self.together)(s)).collect();
            let mut errors = Judged::default();
            for left in keys {
                let is_left = |sizes: &Sizes| (self.together)(sizes) == left;
                let others = subset(tables, &group, &kernels, &|s| !is_left(&s.sizes));
                if others.series.is_empty() {
                    continue;
                }
                let model = TablesModel::new(Arc::new(others), &target, None)?;
                for ((sizes, point), seconds) in &all {
                    if is_left(sizes) && (self.counts)(sizes) {
                        errors.add(&model, query(&group, sizes, *point), *seconds);
                    }
                }
            }
            rows.add(&group, &errors, &Default::default());
        }
        Ok(rows.finish())
    }
}

/// Every second point of each series predicted from the others.
///
/// # Errors
/// As [`cell_errors`].
pub fn point_errors(tables: &EngineTables) -> Result<Vec<ErrorRow>> {
    let is_kept = |i: usize, points: usize| i.is_multiple_of(2) || i + 1 == points;
    let left_out = thinned(tables, |i, points| !is_kept(i, points));
    cell_errors(&thinned(tables, is_kept), &left_out)
}

/// The tables with the points of each series that `keep` names by index and number of points.
fn thinned(tables: &EngineTables, keep: impl Fn(usize, usize) -> bool) -> EngineTables {
    let mut axes: HashMap<Vec<Point>, u32> = HashMap::new();
    let (mut series, mut seconds) = (Vec::new(), Vec::new());
    for one in &tables.series {
        let (axis, times) = tables.points(one);
        let places: Vec<usize> = (0..axis.len()).filter(|i| keep(*i, axis.len())).collect();
        if places.is_empty() {
            continue;
        }
        let axis: Vec<Point> = places.iter().map(|i| axis[*i]).collect();
        let next = word(axes.len());
        let start = word(seconds.len());
        seconds.extend(places.iter().map(|i| times[*i]));
        let axis = *axes.entry(axis).or_insert(next);
        series.push(Series { axis, start, ..*one });
    }
    let mut sorted: Vec<(Vec<Point>, u32)> = axes.into_iter().collect();
    sorted.sort_by_key(|(_, index)| *index);
    let axes = sorted.into_iter().map(|(axis, _)| axis).collect();
    EngineTables { axes, series, seconds, ..tables.clone() }
}

/// Kernels of each group, those of its newest version.
fn groups(tables: &EngineTables) -> BTreeMap<Group, Vec<u32>> {
    let version = |k: u32| &tables.kernels[k as usize].version;
    let newest = |kernels: BTreeSet<u32>| {
        let best = kernels.iter().map(|k| version_order(version(*k))).min();
        let newest = |k: &u32| Some(version_order(version(*k))) == best;
        kernels.into_iter().filter(newest).collect()
    };
    let all = kernels_by_group(tables).into_iter();
    all.map(|(group, kernels)| (group, newest(kernels))).collect()
}

/// Kernels of each group.
fn kernels_by_group(tables: &EngineTables) -> BTreeMap<Group, BTreeSet<u32>> {
    let mut by_group: BTreeMap<Group, BTreeSet<u32>> = BTreeMap::new();
    for series in &tables.series {
        let kernel = tables.kernel(series);
        // Eager collectives and throughput kernels of other sizes are not what is asked for.
        let unused = kernel.source.contains("eager")
            || series.table == Table::PrefillExchange && !kernel.source.ends_with(DEEPEP_SMS);
        if !unused {
            by_group.entry(group(series.table, kernel)).or_default().insert(series.kernel);
        }
    }
    by_group
}

fn group(table: Table, kernel: &Kernel) -> Group {
    Group {
        table,
        engine: kernel.engine.clone(),
        format: kernel.format.clone(),
        cache: kernel.cache.clone(),
    }
}

/// The series of a group alone (both halves of an absorption go together).
fn subset(
    tables: &EngineTables,
    group: &Group,
    kernels: &[u32],
    keep: &dyn Fn(&Series) -> bool,
) -> EngineTables {
    let table = |t: Table| t == group.table;
    let kept = tables.series.iter().filter(|s| table(s.table) && kernels.contains(&s.kernel));
    let kept: Vec<Series> = kept.filter(|s| keep(s)).copied().collect();
    let mut part = EngineTables { left_out: Vec::new(), ..tables.clone() };
    keep_only(&mut part, kept);
    part
}

fn cells(tables: &EngineTables, group: &Group, kernels: &[u32]) -> Cells {
    let mut cells = Cells::new();
    for series in tables.of(group.table).iter().filter(|s| kernels.contains(&s.kernel)) {
        let (axis, seconds) = tables.points(series);
        for (point, seconds) in axis.iter().zip(seconds) {
            let cell = cells.entry((series.sizes, *point)).or_insert(f64::INFINITY);
            *cell = cell.min(f64::from(*seconds));
        }
    }
    cells
}

fn query(group: &Group, sizes: &Sizes, point: Point) -> Option<Query> {
    let weights = dtype(&group.format);
    let cache = dtype(&group.cache).unwrap_or(DType::Bf16);
    match group.table {
        Table::Moe => Some(Query::Moe(moe(&MoeSizes::of(sizes), weights?, point.0))),
        Table::Gemm => Some(Query::Gemm(GemmQuery {
            m: f64::from(point.0),
            n: sizes[0] as usize,
            k: sizes[1] as usize,
            weights: weights?,
        })),
        Table::PrefillAttention => Some(attention(sizes, point, Phase::Prefill, cache)),
        Table::DecodeAttention => Some(attention(sizes, point, Phase::Decode, cache)),
        Table::PrefillMla => {
            Some(mla(MlaPart::Core, sizes, point, Phase::Prefill, weights?, cache))
        }
        Table::DecodeMla => Some(mla(MlaPart::Core, sizes, point, Phase::Decode, weights?, cache)),
        Table::PrefillMlaBlock => {
            Some(mla(MlaPart::Block, sizes, point, Phase::Prefill, weights?, cache))
        }
        Table::DecodeMlaBlock => {
            Some(mla(MlaPart::Block, sizes, point, Phase::Decode, weights?, cache))
        }
        Table::AllReduce => Some(collective(CollectiveKind::AllReduce, sizes, point)),
        Table::AllGather => Some(collective(CollectiveKind::AllGather, sizes, point)),
        Table::ReduceScatter => Some(collective(CollectiveKind::ReduceScatter, sizes, point)),
        Table::AllToAll => Some(collective(CollectiveKind::AllToAll, sizes, point)),
        Table::DecodeExchange => Some(exchange(sizes, point, Phase::Decode)),
        Table::PrefillExchange => Some(exchange(sizes, point, Phase::Prefill)),
        // Halves and parts are answered together with the others.
        Table::AbsorbKey | Table::AbsorbValue | Table::ExchangePart => None,
    }
}

/// The weights that a table's format serves.
fn dtype(format: &str) -> Option<DType> {
    match format {
        "bfloat16" | "half" => Some(DType::Bf16),
        "fp8" | "fp8_block" => Some(DType::Fp8),
        "sq" | "int8_wo" | "int8" => Some(DType::Int8),
        "int4_wo" => Some(DType::Int4),
        "nvfp4" => Some(DType::Nvfp4),
        "w4a16_mxfp4" | "w4a8_mxfp4_mxfp8" => Some(DType::Mxfp4),
        _ => None,
    }
}

fn moe(sizes: &MoeSizes, weights: DType, tokens: u32) -> MoeQuery {
    let load = match sizes.skew {
        0 => balanced(sizes, f64::from(tokens)),
        _ => power_law(sizes, tokens),
    };
    MoeQuery {
        hidden: sizes.hidden as usize,
        inter: sizes.inter as usize,
        experts: sizes.experts as usize,
        top_k: sizes.top_k as usize,
        gated: sizes.gated,
        weights,
        weight_bits: weights.bits(),
        tensor_parallel: sizes.tensor_parallel as usize,
        expert_parallel: sizes.expert_parallel as usize,
        dispatched: false,
        tokens: f64::from(tokens),
        rows: load.rows,
        active: load.active,
        max_rows: load.max_rows,
    }
}

fn attention(sizes: &Sizes, point: Point, phase: Phase, cache: DType) -> Query {
    let sizes = AttentionSizes::of(sizes);
    Query::Attention(AttentionQuery {
        phase,
        heads: sizes.heads as usize,
        kv_heads: sizes.kv_heads as usize,
        head_dim: sizes.head_dim as usize,
        cache,
        window: (sizes.window > 0).then_some(sizes.window as usize),
        sequences: f64::from(point.0),
        context: f64::from(point.1),
    })
}

fn mla(
    part: MlaPart,
    sizes: &Sizes,
    point: Point,
    phase: Phase,
    weights: DType,
    cache: DType,
) -> Query {
    let query = MlaQuery {
        phase,
        heads: sizes[0] as usize,
        tensor_parallel: 1,
        hidden: 7168,
        q_lora_rank: Some(1536),
        kv_lora_rank: 512,
        nope: 128,
        rope: 64,
        value: 128,
        weights,
        cache,
        sequences: f64::from(point.0),
        context: f64::from(point.1),
    };
    Query::Mla(part, query)
}

fn collective(kind: CollectiveKind, sizes: &Sizes, point: Point) -> Query {
    let devices = sizes[0] as usize;
    Query::Collective(CollectiveQuery { kind, devices, nodes: 1, bytes: f64::from(point.0) })
}

fn exchange(sizes: &Sizes, point: Point, phase: Phase) -> Query {
    let sizes = ExchangeSizes::of(sizes);
    Query::Exchange(ExchangeQuery {
        phase,
        ranks: sizes.ranks as usize,
        nodes: sizes.nodes as usize,
        tokens: f64::from(point.0),
        hidden: sizes.hidden as usize,
        top_k: sizes.top_k as usize,
        experts: sizes.experts as usize,
        dispatch_bits: 8.0,
        skew: 1.0,
    })
}

/// ln(predicted / measured) of cells, and the predicted standard deviations.
#[derive(Clone, Debug, Default)]
struct Judged {
    ln_ratios: Vec<f64>,
    scaled_squares: f64,
    unanswered: usize,
}

impl Judged {
    fn add(&mut self, model: &TablesModel, query: Option<Query>, seconds: f64) {
        let Some(query) = query else { return };
        match model.answer(&query) {
            Ok(latency) => {
                let ln = (latency.value.0 / seconds).ln();
                self.ln_ratios.push(ln);
                self.scaled_squares += (ln / latency.log_sigma.max(1e-3)).powi(2);
            }
            Err(_) => self.unanswered += 1,
        }
    }

    fn join(&mut self, other: &Self) {
        self.ln_ratios.extend(&other.ln_ratios);
        self.scaled_squares += other.scaled_squares;
        self.unanswered += other.unanswered;
    }

    fn row(&self, table: &'static str, engine: &str, format: &str) -> Option<ErrorRow> {
        let mut errors: Vec<f64> = self.ln_ratios.iter().map(|l| l.exp_m1().abs()).collect();
        errors.sort_by(f64::total_cmp);
        let cells = errors.len();
        let at = |tenths: usize| errors.get(cells.saturating_sub(1) * tenths / 10).copied();
        let mean = |sum: f64| sum / cells as f64;
        (cells > 0).then(|| ErrorRow {
            table,
            engine: engine.to_owned(),
            format: format.to_owned(),
            cells,
            unanswered: self.unanswered,
            mean: mean(errors.iter().sum()),
            median: at(5).unwrap_or(f64::NAN),
            p90: at(9).unwrap_or(f64::NAN),
            within_10_percent: mean(errors.iter().filter(|e| **e <= 0.1).count() as f64),
            bias: mean(self.ln_ratios.iter().sum()),
            spread_ratio: mean(self.scaled_squares).sqrt(),
        })
    }
}

/// Rows by table: each group, then all together.
#[derive(Default)]
struct Rows {
    by_table: BTreeMap<Table, (Vec<ErrorRow>, Judged)>,
}

impl Rows {
    /// Groups of two versions are listed, but are no error of the transfer: not among all.
    fn add(&mut self, group: &Group, judged: &Judged, versions: &(String, String)) {
        let mut format = [group.format.as_str(), group.cache.as_str()].join(" ").trim().to_owned();
        let (rows, all) = self.by_table.entry(group.table).or_default();
        if versions.0 == versions.1 {
            all.join(judged);
        } else {
            format = format!("{format}, {} for {}", versions.0, versions.1);
        }
        rows.extend(judged.row(group.table.label(), &group.engine, &format));
    }

    fn finish(self) -> Vec<ErrorRow> {
        let mut rows = Vec::new();
        for (table, (own, all)) in self.by_table {
            rows.extend(own);
            rows.extend(all.row(table.label(), "all", "all"));
        }
        rows
    }
}
