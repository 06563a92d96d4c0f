//! Which single assumption, moved to the ends of its range, changes the winner.

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;

use crate::Result;
use crate::law::Scaling;
use crate::law::beyond::REALISED;
use crate::plan::candidates::Density;
use crate::plan::decide::{best_of_families, cost_table, winner};
use crate::plan::decision_map::lifetime;
use crate::plan::draws::Draw;
use crate::plan::inputs::{Lifetime, Limits, RankInputs};
use crate::plan::market::Market;
use crate::plan::outcome::Sensitivity;
use crate::plan::price::Book;
use crate::stats::Z95;

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

/// All single-assumption changes around `inputs`; `today` is the index of the winning expert count.
///
/// # Errors
/// When a changed market cannot be priced.
pub fn sensitivities(
    (book, law, market): (&Book, &Scaling, &Market),
    inputs: &RankInputs,
    today: usize,
) -> Result<Vec<Sensitivity>> {
    cases(inputs, today, market.reference.tokens)
        .into_par_iter()
        .map(|(assumption, low, high)| {
            let (winner_at_low, margin_at_low) = outcome((book, law, market), &low, today)?;
            let (winner_at_high, margin_at_high) = outcome((book, law, market), &high, today)?;
            let now = Some(inputs.experts[today]);
            Ok(Sensitivity {
                assumption: assumption.into(),
                low: low.text,
                high: high.text,
                winner_at_low,
                winner_at_high,
                margin_at_low,
                margin_at_high,
                flips: winner_at_low != now || winner_at_high != now,
            })
        })
        .collect()
}

/// The winner at one end, and the cheapest other total over today's winner's.
fn outcome(
    (book, law, market): (&Book, &Scaling, &Market),
    end: &End,
    today: usize,
) -> Result<(Option<usize>, Option<f64>)> {
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
        let same = end.inputs.lengths == inputs.lengths && end.inputs.template == inputs.template;
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
            "tokens per parameter limit",
            with("73 (listed runs)".into(), &|i, _| i.limits = limits(73.0)),
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

fn regroup(inputs: &mut RankInputs, heads: f64) {
    inputs.template = Arc::new(inputs.template.as_ref().clone().with_kv_group(heads));
}

fn scale_lengths(inputs: &mut RankInputs, by: f64) {
    inputs.lengths.input *= by;
    inputs.lengths.output *= by;
}
