//! Which expert count wins over two inputs at a time, with its probability.

use rayon::prelude::*;

use crate::Result;
use crate::latency::latency::LatencyModel;
use crate::law::ExpertScaling;
use crate::plan::candidates::Reference;
use crate::plan::decide::{CostTable, cost_table, win_shares};
use crate::plan::draws::{Draw, draws};
use crate::plan::inputs::{Demand, Lifetime, RankInputs, Target};
use crate::plan::market::{Market, World};
use crate::plan::outcome::DecisionMap;
use crate::serving::ServiceLevel;
use crate::units::{Flops, Seconds};

/// Grid of requests per second: three decades to either side of the user's point.
const RATES: Grid = Grid { points: 25, decades: 3.0 };
/// Grid of lifetime tokens.
const LIFETIMES: Grid = Grid { points: 21, decades: 3.0 };
/// Grid of training budgets: candidates of each budget have to be priced anew.
const BUDGETS: Grid = Grid { points: 9, decades: 1.0 };
/// Grid of limits on time per output token.
const TPOTS: Grid = Grid { points: 9, decades: 1.0 };
/// Draws per budget: a share is good to 0.06 with these.
const BUDGET_DRAWS: usize = 64;
/// Sizes per equal-loss curve in the budget map.
const BUDGET_POINTS: usize = 6;

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

/// Winners over requests per second and lifetime output tokens.
pub fn traffic(
    market: &Market,
    worlds: &[World],
    inputs: &RankInputs,
    (rate, lifetime): (f64, f64),
) -> DecisionMap {
    let (x, y) = (RATES.around(rate), LIFETIMES.around(lifetime));
    let columns: Vec<Vec<Cell>> = x
        .par_iter()
        .map(|&rate| {
            let tables: Vec<CostTable> = worlds
                .iter()
                .map(|w| cost_table(w, Demand::Rate(rate), inputs.lengths.output))
                .collect();
            y.iter().map(|&lifetime| cell(market, &tables, lifetime)).collect()
        })
        .collect();
    assemble(("requests per second", "lifetime output tokens"), (x, y), &columns, (rate, lifetime))
}

/// Winners over training budget and the limit on time per output token.
///
/// # Errors
/// When a market at another budget cannot be priced.
pub fn budget(
    law: &dyn ExpertScaling,
    latency: &dyn LatencyModel,
    inputs: &RankInputs,
    reference: &Reference,
    tpot: Seconds,
) -> Result<DecisionMap> {
    let (x, y) = (BUDGETS.around(reference.budget.0), TPOTS.around(tpot.as_ms()));
    let draws = draws(BUDGET_DRAWS, inputs.seed, &inputs.ranges, inputs.experts.len());
    let columns = x
        .par_iter()
        .map(|&flops| budget_column(law, latency, inputs, Flops(flops), &y, &draws))
        .collect::<Result<Vec<_>>>()?;
    Ok(assemble(
        ("training budget, FLOPs", "limit on time per output token, ms"),
        (x, y),
        &columns,
        (reference.budget.0, tpot.as_ms()),
    ))
}

fn budget_column(
    law: &dyn ExpertScaling,
    latency: &dyn LatencyModel,
    inputs: &RankInputs,
    budget: Flops,
    limits_ms: &[f64],
    draws: &[Draw],
) -> Result<Vec<Cell>> {
    let (Target::Budget { experts, .. } | Target::Loss { experts, .. }) = inputs.target;
    let mut inputs = RankInputs { target: Target::Budget { budget, experts }, ..inputs.clone() };
    let market = match Market::new(law, latency, &inputs, BUDGET_POINTS) {
        Ok(market) => market,
        // A budget at which no candidate exists is an empty column, not a failed ranking.
        Err(e) if e.exit_code() == 5 => return Ok(vec![(None, 0.0); limits_ms.len()]),
        Err(e) => return Err(e),
    };
    let lifetime = lifetime(&inputs, &market.reference);
    let mut cells = Vec::with_capacity(limits_ms.len());
    for &limit in limits_ms {
        inputs.level = ServiceLevel { tpot: Some(Seconds::from_ms(limit)), ..inputs.level };
        let tables: Vec<CostTable> = draws
            .iter()
            .map(|d| cost_table(&market.world(&inputs, d), inputs.demand, inputs.lengths.output))
            .collect();
        cells.push(cell(&market, &tables, lifetime));
    }
    Ok(cells)
}

/// Lifetime output tokens of the inputs.
pub fn lifetime(inputs: &RankInputs, reference: &Reference) -> f64 {
    match inputs.lifetime {
        Lifetime::Tokens(tokens) => tokens,
        Lifetime::PerTrainingToken(ratio) => ratio * reference.tokens,
    }
}

/// Expert count with the largest share of wins, and that share.
type Cell = (Option<usize>, f64);

fn cell(market: &Market, tables: &[CostTable], lifetime: f64) -> Cell {
    let shares = win_shares(market, tables, lifetime);
    let best = shares.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    match best {
        Some((family, &share)) if share > 0.0 => (Some(market.families[family].experts), share),
        _ => (None, 0.0),
    }
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
    DecisionMap { x_label: x_label.into(), y_label: y_label.into(), x, y, winner, p_best, here }
}
