//! Who is cheapest, with which probability, and from how many served tokens on.

use crate::plan::inputs::Demand;
use crate::plan::market::{Market, World};
use crate::plan::outcome::Interval;

/// (training dollars, serving dollars per output token) of every entry in one world.
pub type CostTable = Vec<(f64, f64)>;

/// Training and serving cost of every entry at the given traffic.
pub fn cost_table(world: &World, demand: Demand, output_length: f64) -> CostTable {
    cost_table_of(world, demand, output_length, &vec![true; world.costs.len()])
}

/// The same of the entries that are asked for; others cost more than anything.
pub fn cost_table_of(
    world: &World,
    demand: Demand,
    output_length: f64,
    asked: &[bool],
) -> CostTable {
    let cost = |(i, asked): (usize, &bool)| {
        if !asked {
            return (f64::INFINITY, f64::INFINITY);
        }
        (world.costs[i].train, world.serve_per_token(i, demand, output_length))
    };
    asked.iter().enumerate().map(cost).collect()
}

/// The cheapest entry of each expert count at a lifetime: (entry, total dollars), or `None` when the
/// expert count cannot be trained or served.
pub fn best_of_families(
    market: &Market,
    costs: &CostTable,
    lifetime: f64,
) -> Vec<Option<(usize, f64)>> {
    let mut best: Vec<Option<(usize, f64)>> = vec![None; market.families.len()];
    for (i, entry) in market.entries.iter().enumerate().filter(|(_, e)| !e.is_guest) {
        let total = total(costs[i], lifetime);
        let slot = &mut best[entry.family];
        if total.is_finite() && slot.is_none_or(|(_, lowest)| total < lowest) {
            *slot = Some((i, total));
        }
    }
    best
}

/// Index of the cheapest family; the first of equals.
pub fn winner(best: &[Option<(usize, f64)>]) -> Option<usize> {
    let totals = best.iter().enumerate().filter_map(|(family, b)| Some((family, (*b)?.1)));
    totals.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(family, _)| family)
}

pub(super) fn total((train, serve): (f64, f64), lifetime: f64) -> f64 {
    // A model that is never served costs its training, even where it could not be served.
    if lifetime == 0.0 { train } else { train + lifetime * serve }
}

/// How often each recommended candidate is the cheapest, and how often none can be had.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    /// Share of the draws that each family's recommended candidate wins.
    pub wins: Vec<f64>,
    /// Share of the draws in which no recommended candidate reaches the loss and keeps the service
    /// level; with `wins` it sums to 1.
    pub none: f64,
}

/// Shares of the draws. The candidates stay those recommended without a draw: nobody trains another
/// model in hindsight.
pub fn win_shares(
    market: &Market,
    recommended: &[Option<(usize, f64)>],
    tables: &[CostTable],
    lifetime: f64,
) -> Shares {
    let of = |table: &CostTable| -> Vec<f64> {
        let one =
            |r: &Option<(usize, f64)>| r.map_or(f64::INFINITY, |(i, _)| total(table[i], lifetime));
        recommended.iter().map(one).collect()
    };
    let drawn: Vec<Vec<f64>> = tables.iter().map(of).collect();
    shares(&drawn, market.families.len())
}

/// The same from the total dollars of each family's candidate in each draw, infinite where it cannot be had.
pub(super) fn shares(drawn: &[Vec<f64>], families: usize) -> Shares {
    let mut wins = vec![0.0; families];
    let mut none = 0.0;
    for totals in drawn {
        match cheapest(totals) {
            Some(family) => wins[family] += 1.0,
            None => none += 1.0,
        }
    }
    // Counted first: a sum of shares would end beside 1.
    let all = drawn.len().max(1) as f64;
    for w in &mut wins {
        *w /= all;
    }
    Shares { wins, none: none / all }
}

/// Index of the lowest of the finite totals; the first of equals.
pub(super) fn cheapest(totals: &[f64]) -> Option<usize> {
    let finite = totals.iter().enumerate().filter(|(_, t)| t.is_finite());
    finite.min_by(|a, b| a.1.total_cmp(b.1)).map(|(family, _)| family)
}

/// A change of the cheapest family along lifetime tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Cheapest below.
    pub from: usize,
    /// Cheapest above.
    pub to: usize,
    /// Lifetime output tokens at which both cost the same.
    pub lifetime: f64,
}

/// All changes of the cheapest family between two lifetimes.
pub fn changes(market: &Market, costs: &CostTable, low: f64, high: f64) -> Vec<Change> {
    /// Steps per factor of ten: changes closer together than 5 % are one change for the reader.
    const STEPS: f64 = 48.0;
    let at = |lifetime: f64| winner(&best_of_families(market, costs, lifetime));
    let mut found = Vec::new();
    let mut start = low;
    let mut before = at(low);
    while start < high {
        let end = start * 10f64.powf(1.0 / STEPS);
        let after = at(end);
        if let (Some(from), Some(to)) = (before, after)
            && from != to
        {
            found.push(Change { from, to, lifetime: crossing(&at, from, start, end) });
        }
        (start, before) = (end, after);
    }
    found
}

/// Bisects for the lifetime between `low` and `high` at which `from` stops being cheapest.
fn crossing(at: &impl Fn(f64) -> Option<usize>, from: usize, low: f64, high: f64) -> f64 {
    let (mut low, mut high) = (low, high);
    for _ in 0..30 {
        let middle = (low * high).sqrt();
        if at(middle) == Some(from) { low = middle } else { high = middle }
    }
    (low * high).sqrt()
}

/// Lifetime beyond which family `to` is cheaper than family `from` in one world, if there is one.
pub fn pair_crossing(
    market: &Market,
    costs: &CostTable,
    (from, to): (usize, usize),
    (low, high): (f64, f64),
) -> Option<f64> {
    let cheaper = |lifetime: f64| {
        let best = best_of_families(market, costs, lifetime);
        match (best[from], best[to]) {
            (Some((_, a)), Some((_, b))) => Some(b < a),
            _ => None,
        }
    };
    if cheaper(low)? || !cheaper(high)? {
        return None;
    }
    let (mut low, mut high) = (low, high);
    for _ in 0..30 {
        let middle = (low * high).sqrt();
        if cheaper(middle)? { high = middle } else { low = middle }
    }
    Some((low * high).sqrt())
}

/// Below this many values the 2.5th percentile is the smallest value and means nothing.
pub const FEWEST: usize = 40;

/// 95 % interval of the finite values with the share of all that they are, or `None` when there are
/// too few for one.
pub fn interval(mut values: Vec<f64>) -> Option<Interval> {
    let all = values.len();
    values.retain(|v| v.is_finite());
    if values.len() < FEWEST {
        return None;
    }
    values.sort_by(f64::total_cmp);
    // The outermost 2.5 % of the draws on each side lie outside.
    let outside = values.len() / 40;
    let share = values.len() as f64 / all as f64;
    Some(Interval { lo: values[outside], hi: values[values.len() - 1 - outside], share })
}
