//! Dense GEMMs from GEMM tables: exact widths along the rows, other widths between the four
//! measured neighbours by the share of the roofline that they reach.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::cache::Cache;
use super::carry::{Carry, Timed};
use super::choose::{by_engine, engine_rank, weight_formats};
use super::lines::{Line, Place};
use super::narrow::{whole, word};
use super::series::{EngineTables, Table};
use super::sigma;
use crate::constants::ACTIVATION_BYTES;
use crate::latency::model::{Absent, Answer};
use crate::latency::query::GemmQuery;
use crate::latency::rates::{Precision, Work};
use crate::latency::source::{Latency, Source};

/// GEMM tables, indexed.
#[derive(Debug)]
pub(super) struct GemmTimes {
    tables: Arc<EngineTables>,
    grids: Vec<Grid>,
    /// Whether an engine was asked for.
    asked: bool,
    /// Lines of every format that the engine runs such weights in: it takes the fastest.
    cache: Cache<3, Result<Vec<Resolved>, Absent>>,
}

/// Widths that one engine, version and format was measured at.
#[derive(Debug)]
struct Grid {
    rank: u32,
    engine: usize,
    format: Box<str>,
    precision: Precision,
    /// Series of each (n, k), of all kernels.
    at: BTreeMap<(u32, u32), Vec<u32>>,
    n: Vec<f32>,
    k: Vec<f32>,
}

/// The lines that answer one key.
#[derive(Debug)]
struct Resolved {
    corners: Vec<Corner>,
    precision: Precision,
    /// Whether the one corner is what is asked for.
    exact: bool,
    source: Source,
    sigma: f64,
}

/// One measured pair of widths and what it counts.
#[derive(Debug)]
struct Corner {
    n: f64,
    k: f64,
    weight: f64,
    line: Line,
}

impl GemmTimes {
    pub(super) fn new(tables: &Arc<EngineTables>, ranks: &[u32], asked: Option<&str>) -> Self {
        let mut grids: BTreeMap<(u32, &str), Grid> = BTreeMap::new();
        let start = tables.series.partition_point(|s| s.table < Table::Gemm);
        for (offset, series) in tables.of(Table::Gemm).iter().enumerate() {
            let kernel = tables.kernel(series);
            let Some(precision) = Precision::of(&kernel.format) else { continue };
            let rank = ranks[series.kernel as usize];
            let grid = grids.entry((rank, kernel.format.as_str())).or_insert_with(|| Grid {
                rank,
                engine: engine_rank(&kernel.engine, asked),
                format: kernel.format.as_str().into(),
                precision,
                at: BTreeMap::new(),
                n: Vec::new(),
                k: Vec::new(),
            });
            let widths = (series.sizes[0], series.sizes[1]);
            grid.at.entry(widths).or_default().push(word(start + offset));
        }
        let mut grids: Vec<Grid> = grids.into_values().collect();
        for grid in &mut grids {
            let n: BTreeSet<u32> = grid.at.keys().map(|w| w.0).collect();
            let k: BTreeSet<u32> = grid.at.keys().map(|w| w.1).collect();
            grid.n = n.into_iter().map(|n| n as f32).collect();
            grid.k = k.into_iter().map(|k| k as f32).collect();
        }
        let (tables, asked) = (Arc::clone(tables), asked.is_some());
        Self { tables, grids, asked, cache: Cache::new(12) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.grids.is_empty()
    }

    /// Time of a GEMM.
    pub(super) fn answer(&self, q: &GemmQuery, carry: &Carry) -> Answer {
        let key = [word(q.n), word(q.k), word(q.weights as usize)];
        self.cache.with(
            key,
            || self.resolve(q),
            |resolved| match resolved {
                Ok(formats) => {
                    let answers = formats.iter().map(|resolved| resolved.answer(q, carry));
                    let fastest = answers.min_by(|a, b| a.value.0.total_cmp(&b.value.0));
                    fastest.ok_or(Absent::Operation)
                }
                Err(absent) => Err(absent.clone()),
            },
        )
    }

    /// One entry for each format that the chosen engine and version measured.
    fn resolve(&self, q: &GemmQuery) -> Result<Vec<Resolved>, Absent> {
        let names = weight_formats(q.weights);
        let serves = |g: &&Grid| names.contains(&&*g.format);
        let Some(best) = self.grids.iter().filter(serves).min_by_key(|g| (g.engine, g.rank)) else {
            let reason = format!("no GEMM series with {} weights", q.weights.label());
            return Err(Absent::Key(reason.into()));
        };
        let same = |g: &&Grid| (g.engine, g.rank) == (best.engine, best.rank);
        let formats = self.grids.iter().filter(serves).filter(same);
        Ok(formats.map(|grid| self.resolve_in(grid, q)).collect())
    }

    fn resolve_in(&self, grid: &Grid, q: &GemmQuery) -> Resolved {
        let resolved = |corners, exact, source, sigma| {
            let (source, sigma) = by_engine(grid.engine, self.asked, source, sigma);
            Resolved { corners, precision: grid.precision, exact, source, sigma }
        };
        let (n, k) = (word(q.n), word(q.k));
        if grid.at.contains_key(&(n, k)) {
            let corners = vec![self.corner(grid, (n, k), 1.0)];
            return resolved(corners, true, Source::Measured, 0.0);
        }
        let (corners, inside) = self.corners(grid, q);
        let source = if inside { Source::Interpolated } else { Source::Transferred };
        resolved(corners, false, source, sigma::GEMM_SIZE)
    }

    fn corner(&self, grid: &Grid, widths: (u32, u32), weight: f64) -> Corner {
        let mut points = Vec::new();
        for index in grid.at.get(&widths).into_iter().flatten() {
            let (axis, seconds) = self.tables.points(&self.tables.series[*index as usize]);
            points.extend(axis.iter().zip(seconds).map(|(p, t)| (p.0 as f32, *t)));
        }
        let (n, k) = (f64::from(widths.0), f64::from(widths.1));
        Corner { n, k, weight, line: Line::from_points(points) }
    }

    /// Measured widths around the asked ones with their bilinear weights in ln n and ln k.
    fn corners(&self, grid: &Grid, q: &GemmQuery) -> (Vec<Corner>, bool) {
        let axis = |places: &[f32], x: usize| {
            let place = Place::of(places, x as f64);
            let from = places[place.at];
            let to = places.get(place.at + 1).copied().unwrap_or(from);
            let share = if to > from {
                (x as f64 / f64::from(from)).ln() / f64::from(to / from).ln()
            } else {
                0.0
            };
            (
                [whole(f64::from(from)), whole(f64::from(to))],
                share.clamp(0.0, 1.0),
                place.is_inside(),
            )
        };
        let (n, n_share, n_inside) = axis(&grid.n, q.n);
        let (k, k_share, k_inside) = axis(&grid.k, q.k);
        let mut corners = Vec::new();
        for (n, n_weight) in [(n[0], 1.0 - n_share), (n[1], n_share)] {
            for (k, k_weight) in [(k[0], 1.0 - k_share), (k[1], k_share)] {
                let weight = n_weight * k_weight;
                if weight > 0.0 && grid.at.contains_key(&(n, k)) {
                    corners.push(self.corner(grid, (n, k), weight));
                }
            }
        }
        if corners.is_empty() {
            corners.push(self.corner(grid, nearest(grid, q), 1.0));
            return (corners, false);
        }
        let total: f64 = corners.iter().map(|c| c.weight).sum();
        for corner in &mut corners {
            corner.weight /= total;
        }
        (corners, n_inside && k_inside)
    }
}

/// The measured widths nearest in ln n and ln k.
fn nearest(grid: &Grid, q: &GemmQuery) -> (u32, u32) {
    let away = |measured: u32, asked: usize| (f64::from(measured) / asked as f64).ln().abs();
    let distance = |w: &&(u32, u32)| away(w.0, q.n) + away(w.1, q.k);
    let found = grid.at.keys().min_by(|a, b| distance(a).total_cmp(&distance(b)));
    found.copied().unwrap_or((1, 1))
}

fn work(precision: Precision, m: f64, n: f64, k: f64) -> Work {
    Work {
        bytes: n * k * precision.bits / 8.0 + ACTIVATION_BYTES * m * (n + k),
        flops: 2.0 * m * n * k,
    }
}

impl Resolved {
    fn answer(&self, q: &GemmQuery, carry: &Carry) -> Latency {
        if q.m <= 0.0 {
            return Latency::ZERO;
        }
        let arithmetic = self.precision.arithmetic;
        let asked = work(self.precision, q.m, q.n as f64, q.k as f64);
        let (seconds, exact) = match self.corners.as_slice() {
            [only] if self.exact => {
                let place = Place::of(&only.line.x, q.m);
                (only.line.at(place), place.is_exact())
            }
            corners => {
                let roofline = |work| carry.from.floor(work, arithmetic);
                let ln_share: f64 = corners
                    .iter()
                    .map(|c| {
                        let reached = roofline(work(self.precision, q.m, c.n, c.k));
                        c.weight * (reached / c.line.time(q.m)).ln()
                    })
                    .sum();
                (roofline(asked) / ln_share.exp(), false)
            }
        };
        let timed = match self.source {
            Source::Measured if exact => Timed {
                seconds,
                source: Source::Measured,
                sigma: sigma::together(&[sigma::MEASURED, self.sigma]),
            },
            Source::Measured => Timed {
                seconds,
                source: Source::Interpolated,
                sigma: sigma::together(&[sigma::INTERPOLATED, self.sigma]),
            },
            source => Timed { seconds, source, sigma: self.sigma },
        };
        carry.answer(timed, asked, arithmetic)
    }
}
