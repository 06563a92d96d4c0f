//! The tree of groups that a prior is fitted to: all engines, an engine, a model on a device under
//! it, a source and version of that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::calibrate::constants::{Constants, TPOT, TTFT, with_tpot, with_ttft};
use crate::calibrate::features::{Features, features};
use crate::calibrate::fit::{Before, Observation, Solution, solve};
use crate::plan::points::{LatencyOf, Point, Setup};
use crate::serving::{EngineCosts, Traffic};

/// Standard deviations of what a level adds to its parent, as logarithms.
pub struct Level {
    /// Constants of the time per output token.
    pub tpot: [f64; TPOT],
    /// Constants of the time to first token.
    pub ttft: [f64; TTFT],
}

/// All engines, an engine, a group, a source of a group. The upper two hardly move: groups of one
/// engine share next to nothing that holds for the next group. With wider ones (0.03 and 0.05 of the
/// kernel factor) groups that were left out err more, because servers without graphs and servers that
/// speculate speak for all.
pub const LEVELS: [Level; 4] = [
    Level { tpot: [0.01, 0.01, 0.05, 0.05, 0.01], ttft: [0.05, 0.05, 0.05, 0.05] },
    Level { tpot: [0.01, 0.01, 0.05, 0.05, 0.01], ttft: [0.1, 0.1, 0.1, 0.1] },
    Level { tpot: [0.15, 0.15, 0.6, 0.6, 0.3], ttft: [0.7, 0.5, 0.25, 0.5] },
    Level { tpot: [0.10, 0.10, 0.4, 0.4, 0.3], ttft: [0.4, 0.3, 0.15, 0.3] },
];
/// Rows of one group count together as at most this many.
const MOST_ROWS: f64 = 10.0;

/// A model on a device under an engine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Engine in lower case.
    pub engine: String,
    /// Model by its preset's name.
    pub model: String,
    /// Device by its name.
    pub gpu: String,
}

impl Group {
    /// The group of a point; `None` where model or device are not known.
    pub fn of(point: &Point) -> Option<Self> {
        let setup = point.setup.as_ref().ok()?;
        Some(Self {
            engine: point.engine.clone(),
            model: setup.model.name.clone(),
            gpu: setup.device.name.clone(),
        })
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} / {} / {}", self.model, self.gpu, self.engine)
    }
}

/// What a row was run with, as logarithms: concurrency or rate, prompt and output lengths, ranks of
/// tensor and data parallelism and of the experts, bits of the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting(pub [f64; 7]);

impl Setting {
    fn of(setup: &Setup) -> Self {
        let load = match setup.traffic {
            Traffic::Closed { concurrency, .. } => concurrency,
            Traffic::Open(rate) => rate,
            Traffic::Burst(requests) => requests,
            Traffic::Offline => 1.0,
        };
        let workers = setup.pools.map_or(1.0, |p| p.decode_workers / p.prefill_workers);
        let (lengths, layout) = (&setup.lengths, &setup.layout);
        let ranks = |n: usize| (n as f64).ln();
        Self([
            load.ln(),
            lengths.input.ln(),
            lengths.output.ln(),
            ranks(layout.attention_tp),
            ranks(layout.attention_dp) + workers.ln(),
            ranks(layout.moe_ep),
            setup.model.expert_bits().ln(),
        ])
    }

    /// Squared distance.
    pub fn distance(&self, other: &Self) -> f64 {
        self.0.iter().zip(&other.0).map(|(a, b)| (a - b).powi(2)).sum()
    }
}

/// A row that can be fitted.
pub struct Prepared {
    /// Its place in the list of points.
    pub index: usize,
    /// Its group.
    pub group: Group,
    /// Origin and version of the engine.
    pub source: String,
    /// What it was run with.
    pub setting: Setting,
    /// The engine's defaults on the device.
    pub default: EngineCosts,
    /// Its steps.
    pub features: Features,
}

impl Prepared {
    /// ln predicted over measured TPOT.
    pub fn tpot_residual(&self, x: &[f64; TPOT]) -> f64 {
        let costs = with_tpot(&self.default, x);
        (self.features.tpot(&costs) / self.features.measured_tpot).ln()
    }

    /// Slopes of ln TPOT along the constants.
    pub fn tpot_slope(&self, x: &[f64; TPOT]) -> [f64; TPOT] {
        const H: f64 = 1e-4;
        let here = self.tpot_residual(x);
        std::array::from_fn(|p| {
            let mut moved = *x;
            moved[p] += H;
            (self.tpot_residual(&moved) - here) / H
        })
    }
}

/// Rows that can be fitted.
///
/// # Errors
/// When latencies cannot be had.
pub fn prepare(points: &[Point], latency: &LatencyOf) -> Result<Vec<Prepared>> {
    let mut all = Vec::new();
    for (index, point) in points.iter().enumerate() {
        let (Some(group), Ok(setup)) = (Group::of(point), &point.setup) else { continue };
        // Pools of unknown size have an unknown batch.
        if setup.pools.is_some_and(|p| !p.stated) {
            continue;
        }
        let setting = Setting::of(setup);
        let default = EngineCosts::of(&point.engine);
        let Some(features) = features(point, &default, latency)? else { continue };
        let source = format!("{} {}", point.origin, point.version);
        all.push(Prepared { index, group, source, setting, default, features });
    }
    Ok(all)
}

/// A fitted tree.
pub struct Pool {
    nodes: BTreeMap<Vec<String>, usize>,
    tpot: Solution<TPOT>,
    ttft: Solution<TTFT>,
}

fn keys(row: &Prepared) -> [Vec<String>; LEVELS.len()] {
    let g = &row.group;
    let group = vec![g.engine.clone(), g.model.clone(), g.gpu.clone()];
    let mut source = group.clone();
    source.push(row.source.clone());
    [Vec::new(), vec![g.engine.clone()], group, source]
}

/// Fits the tree to rows.
pub fn pool(rows: &[&Prepared]) -> Pool {
    let mut nodes: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    let mut levels: Vec<usize> = Vec::new();
    let mut paths = Vec::new();
    let mut sizes: BTreeMap<&Group, f64> = BTreeMap::new();
    for row in rows {
        let path: Vec<usize> = keys(row)
            .into_iter()
            .enumerate()
            .map(|(level, key)| {
                *nodes.entry(key).or_insert_with(|| {
                    levels.push(level);
                    levels.len() - 1
                })
            })
            .collect();
        paths.push(path);
        *sizes.entry(&row.group).or_default() += 1.0;
    }
    let weight = |row: &Prepared| (MOST_ROWS / sizes[&row.group]).min(1.0);
    let tpot: Vec<Observation<TPOT>> = rows
        .iter()
        .zip(&paths)
        .map(|(row, path)| Observation {
            path: path.clone(),
            weight: weight(row),
            residual: Box::new(move |x| row.tpot_residual(x)),
        })
        .collect();
    let sds: Vec<[f64; TPOT]> = levels.iter().map(|&l| LEVELS[l].tpot).collect();
    let tpot = solve(&tpot, &Before::independent(&sds), &vec![0.0; sds.len() * TPOT]);
    let first: Vec<Observation<TTFT>> = rows
        .iter()
        .zip(&paths)
        .filter_map(|(row, path)| {
            let measured = row.features.measured_ttft?;
            let costs = with_tpot(&row.default, &tpot.total(path));
            let residual =
                move |x: &[f64; TTFT]| (row.features.ttft(&with_ttft(&costs, x)) / measured).ln();
            let weight = weight(row);
            Some(Observation { path: path.clone(), weight, residual: Box::new(residual) })
        })
        .collect();
    let sds: Vec<[f64; TTFT]> = levels.iter().map(|&l| LEVELS[l].ttft).collect();
    let ttft = solve(&first, &Before::independent(&sds), &vec![0.0; sds.len() * TTFT]);
    Pool { nodes, tpot, ttft }
}

impl Pool {
    fn at(&self, path: &[usize]) -> Constants {
        Constants {
            tpot: self.tpot.total(path),
            tpot_covariance: self.tpot.covariance(path),
            ttft: self.ttft.total(path),
            ttft_covariance: self.ttft.covariance(path),
        }
    }

    /// What a new group of an engine has: known down to the engine.
    pub fn engine(&self, engine: &str) -> Constants {
        let path: Vec<usize> = [Vec::new(), vec![engine.to_owned()]]
            .iter()
            .filter_map(|key| self.nodes.get(key).copied())
            .collect();
        self.at(&path)
    }

    /// What a group has; `None` where it had no rows.
    pub fn group(&self, group: &Group) -> Option<Constants> {
        let key = vec![group.engine.clone(), group.model.clone(), group.gpu.clone()];
        let path =
            [*self.nodes.get(&Vec::new())?, *self.nodes.get(&key[..1])?, *self.nodes.get(&key)?];
        Some(self.at(&path))
    }
}
