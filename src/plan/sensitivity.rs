//! Which single assumption, moved to the ends of its range, changes the winner.

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;

use crate::Result;
use crate::config::DType;
use crate::law::Scaling;
use crate::law::beyond::{LISTED_TOKENS_PER_PARAM, REALISED};
use crate::plan::candidates::Density;
use crate::plan::decide::{best_of_families, cost_table, winner};
use crate::plan::decision_map::lifetime;
use crate::plan::draws::Draw;
use crate::plan::inputs::{Lifetime, Limits, RankInputs, rounded_bits};
use crate::plan::market::Market;
use crate::plan::mixture::{Panel, Verdict};
use crate::plan::outcome::Sensitivity;
use crate::plan::price::Book;
use crate::stats::Z95;

/// Training MFU that falls with the expert count, by exchange and imbalance: the end of a range, not a
/// measurement.
const FALLING_MFU: (&str, [(usize, f64); 3]) =
    ("0.45 dense, 0.38 at 8, 0.30 at 32", [(1, 0.45), (8, 0.38), (32, 0.30)]);

/// One end of a range: a word for it, and the inputs and draw that stand for it.
struct End {
    text: String,
    inputs: RankInputs,
    draw: Draw,
    /// What of the market changes with it.
    changes: Changes,
}

/// What of a market an assumption changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changes {
    /// Neither candidates nor their step times.
    Nothing,
    /// Which candidates there are.
    Candidates,
    /// Step times; candidates are then taken from a coarser lattice.
    Steps,
}

/// Assumptions that were moved, and those that could not be.
pub struct Moved {
    /// One row each.
    pub rows: Vec<Sensitivity>,
    /// A sentence for each that has no row: formats or shapes that no latency model answers are no end of
    /// a range.
    pub refused: Vec<String>,
}

/// All single-assumption changes around `inputs`; `today` is the index of the winning expert count.
///
/// # Errors
/// When a changed market cannot be priced.
pub fn sensitivities(
    (book, law, market): (&Book, &Scaling, &Market),
    inputs: &RankInputs,
    today: usize,
) -> Result<Moved> {
    let cases = cases(inputs, today, market.reference.tokens);
    let rows = cases.into_par_iter().map(|(assumption, low, high)| {
        let at = |end: &End| outcome((book, law, market), end, today);
        let ends = at(&low).and_then(|at_low| Ok((at_low, at(&high)?)));
        match ends {
            Ok(ends) => {
                let texts = (low.text, high.text);
                Ok(Ok(row(assumption, texts, ends, inputs.experts[today])))
            }
            Err(e) if e.exit_code() == 4 => {
                Ok(Err(format!("what decides the answer was not asked of {assumption}: {e}")))
            }
            Err(e) => Err(e),
        }
    });
    let mut moved = Moved { rows: Vec::new(), refused: Vec::new() };
    for row in rows.collect::<Result<Vec<_>>>()? {
        match row {
            Ok(row) => moved.rows.push(row),
            Err(reason) => moved.refused.push(reason),
        }
    }
    Ok(moved)
}

/// Who wins at one end, and the cheapest other total over today's winner's.
type AtEnd = (Option<usize>, Option<f64>);

fn row(
    assumption: &str,
    (low, high): (String, String),
    (at_low, at_high): (AtEnd, AtEnd),
    today: usize,
) -> Sensitivity {
    Sensitivity {
        assumption: assumption.into(),
        low,
        high,
        winner_at_low: at_low.0,
        winner_at_high: at_high.0,
        margin_at_low: at_low.1,
        margin_at_high: at_high.1,
        flips: at_low.0 != Some(today) || at_high.0 != Some(today),
    }
}

/// Names of the rows about the laws.
pub const OF_LAWS: [&str; 2] = ["loss law", "weights of the laws"];

/// What another law, or other weights of the laws, would answer; `today` is the winning expert count of the
/// first law, which the laws are compared with by total dollars. What a law left out changes is compared
/// with the mixture's own winner, by P(best). None with a single law.
pub fn over_laws(panel: &Panel, verdict: &Verdict, today: usize) -> Vec<Sensitivity> {
    let least = |a: &&(usize, f64), b: &&(usize, f64)| a.1.total_cmp(&b.1);
    let by_cost = |costs: &[(usize, f64)]| -> AtEnd {
        let mine = costs.iter().find(|c| c.0 == today);
        let runner_up = costs.iter().filter(|c| c.0 != today).min_by(least);
        let margin = mine.zip(runner_up).map(|(mine, other)| other.1 / mine.1);
        (costs.iter().min_by(least).map(|c| c.0), margin)
    };
    let laws = panel.by_law().into_iter().map(|(id, costs)| (id.to_owned(), by_cost(&costs)));
    let [of_laws, of_weights] = OF_LAWS;
    let mut rows: Vec<Sensitivity> = extremes(of_laws, laws.collect(), today).into_iter().collect();
    if let Some(mixed) = verdict.mixture.winner {
        let by_share = |shares: &[(usize, f64)]| -> AtEnd {
            let of =
                |mine: bool| shares.iter().filter(move |s| (s.0 == mixed) == mine).max_by(least);
            let margin = of(true).zip(of(false)).map(|(mine, other)| mine.1 / other.1);
            (shares.iter().max_by(least).map(|s| s.0), margin.filter(|m| m.is_finite()))
        };
        let ends = verdict.without_each.iter();
        let ends = ends.map(|(id, shares)| (format!("without {id}"), by_share(shares)));
        rows.extend(extremes(of_weights, ends.collect(), mixed));
    }
    rows
}

/// The row of an assumption with several values: where today's winner fares worst, and where best.
fn extremes(assumption: &str, mut ends: Vec<(String, AtEnd)>, today: usize) -> Option<Sensitivity> {
    let margin = |end: &(String, AtEnd)| end.1.1.unwrap_or(0.0);
    ends.sort_by(|a, b| margin(a).total_cmp(&margin(b)));
    let high = ends.pop()?;
    let low = ends.into_iter().next()?;
    Some(row(assumption, (low.0, high.0), (low.1, high.1), today))
}

fn outcome(
    (book, law, market): (&Book, &Scaling, &Market),
    end: &End,
    today: usize,
) -> Result<AtEnd> {
    let inputs = &end.inputs;
    let market = match end.changes {
        Changes::Nothing => Ok(Cow::Borrowed(market)),
        Changes::Candidates => Market::new(book, law, inputs, Density::ALL).map(Cow::Owned),
        Changes::Steps => {
            Market::new(&book.with(inputs), law, inputs, Density::COARSE).map(Cow::Owned)
        }
    };
    let market = match market {
        Ok(market) => market,
        Err(e) if e.exit_code() == 5 => return Ok((None, None)),
        Err(e) => return Err(e),
    };
    let world = market.world(inputs, &end.draw);
    let costs = cost_table(&world, inputs.demand, inputs.lengths.output);
    let best = best_of_families(&market, &costs, lifetime(inputs, &market.reference));
    let others = best.iter().enumerate().filter(|&(i, _)| i != today);
    let runner_up = others.filter_map(|(_, b)| Some((*b)?.1)).reduce(f64::min);
    let margin = best[today].and_then(|(_, total)| Some(runner_up? / total));
    Ok((winner(&best).map(|family| inputs.experts[family]), margin))
}

/// The assumptions with their two ends.
fn cases(
    inputs: &RankInputs,
    today: usize,
    reference_tokens: f64,
) -> Vec<(&'static str, End, End)> {
    let still = Draw::nominal(inputs.training.mfu, inputs.experts.len());
    let with = |text: String, change: &dyn Fn(&mut RankInputs, &mut Draw)| {
        let mut end =
            End { text, inputs: inputs.clone(), draw: still.clone(), changes: Changes::Nothing };
        change(&mut end.inputs, &mut end.draw);
        let formats = |i: &RankInputs| (i.expert_dtype, i.dense_dtype, i.expert_bits);
        let same = end.inputs.lengths == inputs.lengths
            && end.inputs.template == inputs.template
            && formats(&end.inputs) == formats(inputs);
        end.changes = match end.inputs.limits == inputs.limits {
            _ if !same => Changes::Steps,
            false => Changes::Candidates,
            true => Changes::Nothing,
        };
        end
    };
    let ranges = inputs.ranges;
    let scaled_lifetime = |by: f64| match inputs.lifetime {
        Lifetime::Tokens(tokens) => Lifetime::Tokens(tokens * by),
        Lifetime::PerTrainingToken(ratio) => Lifetime::PerTrainingToken(ratio * by),
    };
    let limits = |max_tokens_per_param| Limits { max_tokens_per_param, ..inputs.limits };
    let own = ranges.own_log_sigma;
    vec![
        (
            "lifetime output tokens",
            with("a tenth".into(), &|i, _| i.lifetime = scaled_lifetime(0.1)),
            with("ten times".into(), &|i, _| i.lifetime = scaled_lifetime(10.0)),
        ),
        (
            "training MFU",
            with(ranges.mfu.0.to_string(), &|_, d| d.mfu = ranges.mfu.0),
            with(ranges.mfu.1.to_string(), &|_, d| d.mfu = ranges.mfu.1),
        ),
        (
            "serving price",
            with(format!("x {}", ranges.price.0), &|_, d| d.price = ranges.price.0),
            with(format!("x {}", ranges.price.1), &|_, d| d.price = ranges.price.1),
        ),
        (
            "request lengths",
            with("half".into(), &|i, _| scale_lengths(i, 0.5)),
            with("double".into(), &|i, _| scale_lengths(i, 2.0)),
        ),
        (
            "key/value heads",
            with("one per query head".into(), &|i, _| regroup(i, 1.0)),
            with("one per 8 query heads".into(), &|i, _| regroup(i, 8.0)),
        ),
        (
            "weight bits",
            with("4, rounded after training".into(), &|i, _| reformat(i, FORMATS[0])),
            with("16".into(), &|i, _| reformat(i, FORMATS[1])),
        ),
        (
            "MFU by experts",
            with("the same for all".into(), &|i, _| i.mfu_by_experts.clear()),
            with(FALLING_MFU.0.into(), &|i, _| i.mfu_by_experts = FALLING_MFU.1.to_vec()),
        ),
        (
            "tokens per parameter limit",
            with(format!("{LISTED_TOKENS_PER_PARAM} (listed runs)"), &|i, _| {
                i.limits = limits(LISTED_TOKENS_PER_PARAM);
            }),
            with("1000".into(), &|i, _| i.limits = limits(1000.0)),
        ),
        (
            "routing skew",
            with("as much more even".into(), &|_, d| d.skew = -1.0),
            with(format!("Zipf {}", ranges.zipf), &|_, d| d.skew = 1.0),
        ),
        (
            "step time of the winner",
            with("2.5th percentile".into(), &|_, d| d.step[today] = (-Z95 * own).exp()),
            with("97.5th percentile".into(), &|_, d| d.step[today] = (Z95 * own).exp()),
        ),
    ]
    .into_iter()
    .chain(law_cases(&with, today, reference_tokens))
    .chain(service_cases(&with, inputs))
    .collect()
}

/// One end of a range, from a word for it and what it changes.
type With<'a> = &'a dyn Fn(String, &dyn Fn(&mut RankInputs, &mut Draw)) -> End;

/// What is not known of the law and the data.
fn law_cases(with: With, today: usize, reference_tokens: f64) -> Vec<(&'static str, End, End)> {
    vec![
        (
            "law error of the winner",
            with("2.5th percentile".into(), &|_, d| d.law.own[today] = -Z95),
            with("97.5th percentile".into(), &|_, d| d.law.own[today] = Z95),
        ),
        (
            "law slope in experts",
            with("2.5th percentile".into(), &|_, d| d.law.slope = -Z95),
            with("97.5th percentile".into(), &|_, d| d.law.slope = Z95),
        ),
        (
            "share of over-training that pays",
            with(format!("{:.2}", REALISED.0 - REALISED.1), &|_, d| d.law.realised = -1.0),
            with(format!("{:.2}", REALISED.0 + REALISED.1), &|_, d| d.law.realised = 1.0),
        ),
        (
            "unique training tokens",
            with("as many as the reference is trained on".into(), &|i, _| {
                i.limits.unique_tokens = Some(reference_tokens);
            }),
            with("no limit".into(), &|i, _| i.limits.unique_tokens = None),
        ),
    ]
}

/// What is promised to the users of the model.
fn service_cases(with: With, inputs: &RankInputs) -> Vec<(&'static str, End, End)> {
    let mut cases = Vec::new();
    if let Some(limit) = inputs.level.tpot {
        let to = |by: f64| move |i: &mut RankInputs, _: &mut Draw| i.level.tpot = Some(limit * by);
        cases.push((
            "limit on TPOT",
            with("half".into(), &to(0.5)),
            with("double".into(), &to(2.0)),
        ));
    }
    if let Some(rate) = inputs.demand.rate {
        let to = |by: f64| move |i: &mut RankInputs, _: &mut Draw| i.demand.rate = Some(rate * by);
        let (low, high) = (with("a tenth".into(), &to(0.1)), with("ten times".into(), &to(10.0)));
        cases.push(("request rate", low, high));
    }
    cases
}

/// Formats of weights that are asked beside the one given: a page has to bring their latencies along.
pub const FORMATS: [DType; 2] = [DType::Int4, DType::Bf16];

/// Serves weights in another format, to which those of fewer bits are rounded after training.
fn reformat(inputs: &mut RankInputs, dtype: DType) {
    (inputs.expert_dtype, inputs.dense_dtype, inputs.expert_bits) = (dtype, dtype, None);
    inputs.rounded_bits = rounded_bits(dtype, None, &inputs.trained_bits);
}

fn regroup(inputs: &mut RankInputs, heads: f64) {
    inputs.template = Arc::new(inputs.template.as_ref().clone().with_kv_group(heads));
}

fn scale_lengths(inputs: &mut RankInputs, by: f64) {
    inputs.lengths.input *= by;
    inputs.lengths.output *= by;
}
