//! Held-out judgement: whole groups left out, and five own rows against the rest of their group.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::Result;
use crate::calibrate::own;
use crate::calibrate::pool::{Group, Pool, Prepared, Setting, pool};
use crate::calibrate::prior::{Errors, Node, Prior, RowSource, SCHEMA};
use crate::plan::points::{LatencyOf, Point};
use crate::serving::EngineCosts;
use crate::stats::quantile;

/// Own rows of the second judgement.
pub const OWN_ROWS: usize = 5;
/// Rows that a source needs for it: as many again to judge on.
const LEAST_ROWS: usize = 2 * OWN_ROWS;
/// Share of rows that intervals must hold.
const LEVEL: f64 = 0.95;

/// A row that was not fitted.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// Place in the list of points.
    pub index: usize,
    /// ln predicted over measured TPOT at the row's own batch.
    pub tpot: f64,
    /// Standard deviation that was claimed for it.
    pub sd: f64,
    /// ln predicted over measured TTFT.
    pub ttft: Option<f64>,
}

/// Rows by what they were predicted from.
pub struct Judgement {
    /// Whole groups left out.
    pub new_group: Vec<Judged>,
    /// Constants of each left-out group.
    pub without: BTreeMap<Group, Pool>,
    /// Rows of groups of which five others were own rows.
    pub own_rows: Vec<Judged>,
    /// The own rows of each source, and its calibration.
    pub own: Vec<(own::Calibration, Vec<usize>)>,
}

fn judged(row: &Prepared, constants: &crate::calibrate::constants::Constants) -> Judged {
    let x = &constants.tpot;
    let costs = constants.costs(&row.default);
    Judged {
        index: row.index,
        tpot: row.tpot_residual(x),
        sd: own::row_sd(constants, &row.tpot_slope(x), row.features.kernel_sd(&costs)),
        ttft: row.features.measured_ttft.map(|t| (row.features.ttft(&costs) / t).ln()),
    }
}

fn half(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.map(f64::abs).collect();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, LEVEL).unwrap_or(f64::INFINITY)
}

/// Half widths of 95 % intervals from held-out rows.
pub fn errors(rows: &[Judged]) -> Errors {
    Errors {
        tpot_z95: half(rows.iter().map(|r| r.tpot / r.sd)),
        ttft_half: half(rows.iter().filter_map(|r| r.ttft)),
    }
}

/// Shares of held-out rows within their intervals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Held {
    /// Of all rows.
    pub rows: f64,
    /// Mean over groups of the share of each one's rows.
    pub groups: f64,
    /// Groups of which at least nine rows in ten are within.
    pub whole_groups: usize,
    /// Groups with a row.
    pub of_groups: usize,
}

impl Held {
    /// From (rows within, rows) of each group.
    fn of(counts: &[(usize, usize)]) -> Self {
        let with: Vec<&(usize, usize)> = counts.iter().filter(|c| c.1 > 0).collect();
        let share = |c: &(usize, usize)| c.0 as f64 / c.1 as f64;
        let (held, rows) = with.iter().fold((0, 0), |at, c| (at.0 + c.0, at.1 + c.1));
        Self {
            rows: share(&(held, rows.max(1))),
            groups: with.iter().map(|c| share(c)).sum::<f64>() / with.len().max(1) as f64,
            whole_groups: with.iter().filter(|c| share(c) >= 0.9).count(),
            of_groups: with.len(),
        }
    }
}

/// Shares of rows within intervals whose widths come from the other groups: TPOT and TTFT.
pub fn coverage(rows: &[Judged], group: &dyn Fn(usize) -> Option<Group>) -> (Held, Held) {
    let groups: BTreeSet<Option<Group>> = rows.iter().map(|r| group(r.index)).collect();
    let (mut tpot, mut ttft) = (Vec::new(), Vec::new());
    for g in &groups {
        let (mine, others): (Vec<Judged>, Vec<Judged>) =
            rows.iter().partition(|r| group(r.index) == *g);
        let widths = errors(&others);
        let held = mine.iter().filter(|r| r.tpot.abs() <= widths.tpot_z95 * r.sd).count();
        tpot.push((held, mine.len()));
        let first: Vec<f64> = mine.iter().filter_map(|r| r.ttft).collect();
        let held = first.iter().filter(|t| t.abs() <= widths.ttft_half).count();
        ttft.push((held, first.len()));
    }
    (Held::of(&tpot), Held::of(&ttft))
}

/// Judges both ways.
pub fn judge(rows: &[Prepared], names: &dyn Fn(usize) -> String) -> Judgement {
    let groups: BTreeSet<&Group> = rows.iter().map(|r| &r.group).collect();
    let mut out = Judgement {
        new_group: Vec::new(),
        without: BTreeMap::new(),
        own_rows: Vec::new(),
        own: Vec::new(),
    };
    for group in groups {
        let others: Vec<&Prepared> = rows.iter().filter(|r| r.group != *group).collect();
        let tree = pool(&others);
        let prior = prior_of(&tree, &others, Vec::new(), NO_ERRORS, NO_ERRORS);
        let known = prior.of(group).constants;
        let mine = rows.iter().filter(|r| r.group == *group);
        out.new_group.extend(mine.clone().map(|row| judged(row, &known)));
        let mine: Vec<&Prepared> = mine.collect();
        out.own_rows.extend(own_rows_of(group, &mine, &prior, names, &mut out.own));
        out.without.insert(group.clone(), tree);
    }
    out
}

/// Five rows of each source of a group as own runs, judged on the others.
fn own_rows_of(
    group: &Group,
    rows: &[&Prepared],
    prior: &Prior,
    names: &dyn Fn(usize) -> String,
    fits: &mut Vec<(own::Calibration, Vec<usize>)>,
) -> Vec<Judged> {
    let mut sources: BTreeMap<&str, Vec<&Prepared>> = BTreeMap::new();
    for row in rows {
        sources.entry(&row.source).or_default().push(row);
    }
    let mut all = Vec::new();
    for members in sources.into_values().filter(|m| m.len() >= LEAST_ROWS) {
        let chosen = spread_out(&members);
        if chosen.len() < OWN_ROWS {
            continue;
        }
        let fit = own::fit(group, &chosen, prior, names);
        // A rerun of a chosen setting says nothing about other settings.
        let rest = members.iter().filter(|r| chosen.iter().all(|c| c.setting != r.setting));
        all.extend(rest.clone().map(|row| judged(row, &fit.constants)));
        fits.push((fit, rest.map(|r| r.index).collect()));
    }
    all
}

/// Five settings of a source that lie far apart in load, lengths, layout and format, as a user would
/// choose runs before measuring: the one nearest the middle, then always the one farthest from those
/// chosen. Fewer where there are not so many.
fn spread_out<'a>(members: &[&'a Prepared]) -> Vec<&'a Prepared> {
    let mut left: Vec<&'a Prepared> = Vec::new();
    for &row in members {
        if left.iter().all(|other| other.setting != row.setting) {
            left.push(row);
        }
    }
    let count = left.len() as f64;
    let middle = std::array::from_fn(|i| left.iter().map(|r| r.setting.0[i]).sum::<f64>() / count);
    let mut chosen: Vec<&'a Prepared> = Vec::new();
    while chosen.len() < OWN_ROWS && !left.is_empty() {
        let far = |r: &&Prepared| {
            let to = |other: &Prepared| r.setting.distance(&other.setting);
            let nearest = chosen.iter().map(|c| to(c)).fold(f64::INFINITY, f64::min);
            if chosen.is_empty() { -r.setting.distance(&Setting(middle)) } else { nearest }
        };
        // The first of equals, in the order of the file.
        let best = (0..left.len()).rev().max_by(|&a, &b| far(&left[a]).total_cmp(&far(&left[b])));
        chosen.extend(best.map(|best| left.remove(best)));
    }
    chosen
}

/// Five own rows of each source of a file against its others.
pub fn own_rows(rows: &[Prepared], prior: &Prior, names: &dyn Fn(usize) -> String) -> Vec<Judged> {
    let groups: BTreeSet<&Group> = rows.iter().map(|r| &r.group).collect();
    let mut fits = Vec::new();
    let mut all = Vec::new();
    for group in groups {
        let mine: Vec<&Prepared> = rows.iter().filter(|r| r.group == *group).collect();
        all.extend(own_rows_of(group, &mine, prior, names, &mut fits));
    }
    all
}

const NO_ERRORS: Errors = Errors { tpot_z95: 1.96, ttft_half: 1.0 };

/// A prior from a fitted tree.
pub fn prior_of(
    tree: &Pool,
    rows: &[&Prepared],
    sources: Vec<RowSource>,
    new_group: Errors,
    own_rows: Errors,
) -> Prior {
    let mut engines: BTreeMap<&str, usize> = BTreeMap::new();
    let mut groups: BTreeMap<&Group, usize> = BTreeMap::new();
    for row in rows {
        *engines.entry(&row.group.engine).or_default() += 1;
        *groups.entry(&row.group).or_default() += 1;
    }
    let of_engine = |(engine, rows): (&str, usize)| Node {
        group: Group { engine: engine.to_owned(), model: String::new(), gpu: String::new() },
        rows,
        constants: tree.engine(engine),
    };
    let of_group = |(group, rows): (&Group, usize)| {
        Some(Node { group: group.clone(), rows, constants: tree.group(group)? })
    };
    Prior {
        schema: SCHEMA.into(),
        schema_version: "1.0".into(),
        sources,
        new_group,
        own_rows,
        engines: engines.into_iter().map(of_engine).collect(),
        groups: groups.into_iter().filter_map(of_group).collect(),
    }
}

/// Constants that a held-out row is predicted with: its group's from the other groups.
pub fn held_out_costs(judgement: &Judgement, group: &Group) -> EngineCosts {
    let default = EngineCosts::of(&group.engine);
    judgement
        .without
        .get(group)
        .map_or_else(|| default.clone(), |tree| tree.engine(&group.engine).costs(&default))
}

/// Fits and judges all rows of some files: the prior that ships.
///
/// # Errors
/// When latencies cannot be had.
pub fn remake(
    points: &[Point],
    sources: Vec<RowSource>,
    latency: &LatencyOf,
) -> Result<(Prior, Judgement)> {
    let rows = crate::calibrate::pool::prepare(points, latency)?;
    let all: Vec<&Prepared> = rows.iter().collect();
    let judgement = judge(&rows, &|i| points[i].id.clone());
    let (new_group, own_rows) = (errors(&judgement.new_group), errors(&judgement.own_rows));
    Ok((prior_of(&pool(&all), &all, sources, new_group, own_rows), judgement))
}
