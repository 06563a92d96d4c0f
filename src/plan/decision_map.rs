//! Which expert count wins over two inputs at a time, with its probability.

use rayon::prelude::*;

use crate::Result;
use crate::law::Scaling;
use crate::plan::candidates::{Density, Reference};
use crate::plan::decide::{
    CostTable, best_of_families, cost_table, cost_table_of, win_shares, winner,
};
use crate::plan::draws::Draw;
use crate::plan::inputs::{Demand, Lifetime, RankInputs, Target};
use crate::plan::market::{Market, World};
use crate::plan::outcome::DecisionMap;
use crate::plan::price::Book;
use crate::serving::ServiceLevel;
use crate::units::{Flops, Seconds};

/// Grid of requests per second: three decades to either side of the user's point.
const RATES: Grid = Grid { points: 25, decades: 3.0 };
/// Grid of lifetime tokens.
const LIFETIMES: Grid = Grid { points: 21, decades: 3.0 };
/// Training budgets in FLOPs, as powers of ten, that the map spans at least: a laptop to a large cluster.
const BUDGETS: (i32, i32) = (19, 24);
/// Budgets per factor of ten: candidates of each have to be priced anew.
const BUDGET_STEPS: i32 = 2;
/// Grid of limits on time per output token.
const TPOTS: Grid = Grid { points: 9, decades: 1.0 };
/// Draws of the columns beside the user's own: a share is good to 0.06 with these.
const BUDGET_DRAWS: usize = 64;

/// Points spread evenly in the logarithm around a centre.
struct Grid {
    points: usize,
    /// Decades to each side.
    decades: f64,
}

impl Grid {
    fn around(&self, centre: f64) -> Vec<f64> {
        let last = (self.points - 1) as f64;
        (0..self.points)
            .map(|i| centre * 10f64.powf(self.decades * (2.0 * i as f64 / last - 1.0)))
            .collect()
    }
}

/// Training budgets from [`BUDGETS`]' low end or a decade below `own`, whichever is less, to the high end
/// or a decade above; and the index of `own` among them.
fn budgets(own: f64) -> (Vec<f64>, usize) {
    let steps = f64::from(BUDGET_STEPS);
    // Steps from `own` that reach at least an end.
    let below = |power: i32| counted((own.log10() - f64::from(power)) * steps);
    let above = |power: i32| counted((f64::from(power) - own.log10()) * steps);
    let low = below(BUDGETS.0).max(BUDGET_STEPS);
    let high = above(BUDGETS.1).max(BUDGET_STEPS);
    let all = (-low..=high).map(|i| own * 10f64.powf(f64::from(i) / steps)).collect();
    (all, usize::try_from(low).unwrap_or(0))
}

#[expect(clippy::cast_possible_truncation, reason = "a budget lies within a few hundred decades")]
fn counted(steps: f64) -> i32 {
    // A budget on the grid needs no step beyond it.
    (steps - 1e-9).ceil() as i32
}

/// Winners over requests per second and lifetime output tokens; the last column is the limit of a
/// large fleet, where the user's own point lies when no rate was given.
pub fn traffic(
    market: &Market,
    worlds: &[World],
    inputs: &RankInputs,
    (rate, lifetime): (f64, f64),
) -> DecisionMap {
    let (mut x, y) = (RATES.around(rate), LIFETIMES.around(lifetime));
    let mut demands: Vec<Demand> =
        x.iter().map(|&rate| Demand { rate: Some(rate), ..inputs.demand }).collect();
    // Drawn one step beyond the last rate.
    let beyond = x[x.len() - 1] * x[1] / x[0];
    x.push(beyond);
    demands.push(Demand { rate: None, ..inputs.demand });
    let world = market.nominal(inputs);
    let columns: Vec<Vec<Cell>> = demands
        .par_iter()
        .map(|&demand| {
            let output = inputs.lengths.output;
            let nominal = cost_table(&world, demand, output);
            let mut asked = vec![false; market.entries.len()];
            for &lifetime in &y {
                let best = best_of_families(market, &nominal, lifetime);
                best.iter().flatten().for_each(|b| asked[b.0] = true);
            }
            let tables: Vec<CostTable> =
                worlds.iter().map(|w| cost_table_of(w, demand, output, &asked)).collect();
            y.iter().map(|&lifetime| cell(market, &nominal, &tables, lifetime)).collect()
        })
        .collect();
    let here = (inputs.demand.rate.unwrap_or(beyond), lifetime);
    let labels = ("requests per second", "lifetime output tokens");
    DecisionMap {
        last_is_at_scale: true,
        output_tokens_per_request: Some(inputs.lengths.output),
        ..assemble(labels, (x, y), &columns, here)
    }
}

/// Winners over training budget and limit on TPOT, around the reference budget and `tpot`. The
/// user's own column has all candidates and its own cell, `headline`, all draws; the others have a
/// coarser lattice and fewer draws.
///
/// # Errors
/// Whatever the law or the latency model refuses.
pub fn budget(
    (book, law): (&Book, &Scaling),
    market: &Market,
    inputs: &RankInputs,
    (tpot, draws, headline): (Seconds, &[Draw], Cell),
) -> Result<DecisionMap> {
    let own = market.reference.budget.0;
    let ((x, middle), y) = (budgets(own), TPOTS.around(tpot.as_ms()));
    let few = &draws[..draws.len().min(BUDGET_DRAWS)];
    let columns = x
        .par_iter()
        .enumerate()
        .map(|(i, &flops)| {
            if i == middle {
                let mut own = column(market, inputs, &y, few);
                let here = own.len() / 2;
                own[here] = headline;
                return Ok(own);
            }
            let experts = inputs.target.base_experts();
            let target = Target::Budget { budget: Flops(flops), experts };
            let inputs = RankInputs { target, ..inputs.clone() };
            match Market::new(book, law, &inputs, Density::COARSE) {
                Ok(market) => Ok(column(&market, &inputs, &y, few)),
                // A budget at which no candidate exists is an empty column, not a failed ranking.
                Err(e) if e.exit_code() == 5 => Ok(vec![(None, 0.0); y.len()]),
                Err(e) => Err(e),
            }
        })
        .collect::<Result<Vec<_>>>()?;
    let labels = ("training budget, FLOPs", "limit on TPOT, ms");
    Ok(assemble(labels, (x, y), &columns, (own, tpot.as_ms())))
}

/// One budget at every limit.
fn column(market: &Market, inputs: &RankInputs, limits_ms: &[f64], draws: &[Draw]) -> Vec<Cell> {
    let lifetime = lifetime(inputs, &market.reference);
    let output = inputs.lengths.output;
    let mut inputs = inputs.clone();
    limits_ms
        .iter()
        .map(|&limit| {
            inputs.level = ServiceLevel { tpot: Some(Seconds::from_ms(limit)), ..inputs.level };
            let nominal = cost_table(&market.nominal(&inputs), inputs.demand, output);
            // Probabilities are those of the recommended models: no other is drawn.
            let best = best_of_families(market, &nominal, lifetime);
            let asked = |entry: usize| best.iter().flatten().any(|b| b.0 == entry);
            let tables: Vec<CostTable> = draws
                .iter()
                .map(|d| {
                    let world = market.world_of(&inputs, d, &asked);
                    cost_table(&world, inputs.demand, output)
                })
                .collect();
            cell(market, &nominal, &tables, lifetime)
        })
        .collect()
}

/// Lifetime output tokens of the inputs.
pub fn lifetime(inputs: &RankInputs, reference: &Reference) -> f64 {
    match inputs.lifetime {
        Lifetime::Tokens(tokens) => tokens,
        Lifetime::PerTrainingToken(ratio) => ratio * reference.tokens,
    }
}

/// Expert count whose recommended candidate is cheapest, and its probability.
pub type Cell = (Option<usize>, f64);

/// The cell of one setting.
pub fn cell(market: &Market, nominal: &CostTable, tables: &[CostTable], lifetime: f64) -> Cell {
    let best = best_of_families(market, nominal, lifetime);
    let Some(family) = winner(&best) else { return (None, 0.0) };
    let shares = win_shares(market, &best, tables, lifetime);
    (Some(market.families[family].experts), shares.wins[family])
}

/// Turns columns of cells into the rows of a map.
fn assemble(
    (x_label, y_label): (&str, &str),
    (x, y): (Vec<f64>, Vec<f64>),
    columns: &[Vec<Cell>],
    here: (f64, f64),
) -> DecisionMap {
    let row = |j: usize| columns.iter().map(move |column| column[j]);
    let winner = (0..y.len()).map(|j| row(j).map(|c| c.0).collect()).collect();
    let p_best = (0..y.len()).map(|j| row(j).map(|c| c.1).collect()).collect();
    DecisionMap {
        x_label: x_label.into(),
        y_label: y_label.into(),
        x,
        y,
        last_is_at_scale: false,
        output_tokens_per_request: None,
        winner,
        p_best,
        here,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_span_their_ends_and_hold_the_users_own() {
        let (all, own) = budgets(1e21);
        assert_eq!((all.len(), own), (11, 4));
        assert!((all[0] / 1e19 - 1.0).abs() < 1e-9 && (all[10] / 1e24 - 1.0).abs() < 1e-9);
        for budget in [3e17, 2.2e19, 7e22, 1e24, 4e26] {
            let (all, own) = budgets(budget);
            assert!((all[own] / budget - 1.0).abs() < 1e-12);
            let (low, high) = (all[0], all[all.len() - 1]);
            assert!(low <= 1.001e19 && low <= budget / 9.99, "{budget}: {low}");
            assert!(high >= 0.999e24 && high >= budget * 9.99, "{budget}: {high}");
        }
    }
}
