//! Smaller models on more tokens: what that costs and saves.
//!
//! Three views. Each over-trained candidate against the cheapest training of its own expert count;
//! the two algorithms of Yun et al. 2024 (arXiv 2404.02852), which keep the training budget and bound
//! loss or cost, here with serving priced at the given traffic; and the FLOPs-only accounting of
//! Sardana et al. 2024 (arXiv 2401.00448), which flatters large expert counts and stands beside the
//! priced answer for that reason.

use rayon::prelude::*;

use crate::Result;
use crate::law::beyond::REALISED;
use crate::law::bounded::{Bounded, bounded_cost_at, bounded_loss, budget_for_both_at};
use crate::law::inference_aware::{Serving, cheapest};
use crate::law::{Optimum, Scaling};
use crate::plan::decide::CostTable;
use crate::plan::inputs::RankInputs;
use crate::plan::market::Market;
use crate::plan::outcome::{AtBudget, ByFlops, OverTraining, OverTrainingReport, SmallerModel};
use crate::plan::price::Book;

/// What over-training entry `entry` costs and saves; `None` for the cheapest training itself.
pub fn against_cheapest_training(
    market: &Market,
    nominal: &CostTable,
    entry: usize,
) -> Option<OverTraining> {
    let family = market.entries[entry].family;
    // The first entry of a family is its cheapest training.
    let first = market.entries.iter().position(|e| e.family == family)?;
    if first == entry {
        return None;
    }
    let ((train, serve), (base_train, base_serve)) = (nominal[entry], nominal[first]);
    let extra_train_usd = train - base_train;
    let saved = Some(base_serve - serve).filter(|s| s.is_finite());
    Some(OverTraining {
        size_ratio: market.entries[entry].point.n_active / market.entries[first].point.n_active,
        extra_train_usd,
        saved_usd_per_million_output_tokens: saved.map(|s| s * 1e6),
        pays_from_output_tokens: saved.filter(|s| *s > 0.0).map(|s| extra_train_usd / s),
    })
}

/// Both algorithms and the FLOPs-only answer.
///
/// # Errors
/// When the law does not cover an expert count.
pub fn report(
    (book, law): (&Book, &Scaling),
    market: &Market,
    inputs: &RankInputs,
    lifetime: f64,
) -> Result<OverTrainingReport> {
    // Over-training beyond the law's runs pays what it pays in the ranking.
    let law = &law.trained(inputs.data(REALISED.0));
    let base_experts = inputs.target.base_experts();
    let budget = market.reference.budget;
    let base = law.slice(base_experts)?.optimum(budget);
    let base_cost = book.cost(base_experts, base.n_active);
    let given = inputs.max_serve.map(|bound| bound.0);
    let bound = given.or(base_cost);
    let at_budget = inputs
        .experts
        .par_iter()
        // Without a bound of its own the base is its own answer.
        .filter(|&&experts| experts != base_experts || given.is_some())
        .map(|&experts| at_budget((book, law), (base_experts, experts), market, bound))
        .collect();
    let processed_tokens =
        lifetime * (inputs.lengths.input + inputs.lengths.output) / inputs.lengths.output;
    Ok(OverTrainingReport {
        base_experts,
        budget_flops: budget.0,
        base_loss_nats: base.loss.0,
        base_serve_usd_per_million_output_tokens: base_cost,
        max_serve_usd_per_million_output_tokens: bound,
        at_budget,
        processed_tokens,
        by_flops: by_flops(law, market, processed_tokens),
    })
}

fn at_budget(
    (book, law): (&Book, &Scaling),
    pair: (usize, usize),
    market: &Market,
    bound: Option<f64>,
) -> AtBudget {
    let (budget, experts) = (market.reference.budget, pair.1);
    let cost = |experts: usize, n: f64| book.cost(experts, n);
    let no_bound = || {
        crate::Error::infeasible(
            "the baseline cannot be served, so there is no cost bound",
            "give --max-serve-cost",
        )
    };
    let at_loss = bounded_loss(law, pair, budget, &cost);
    let at_cost = bound
        .ok_or_else(no_bound)
        .and_then(|most| bounded_cost_at(law, pair, budget, (&cost, most)));
    let both = bound
        .ok_or_else(no_bound)
        .and_then(|most| budget_for_both_at(law, pair, budget, (&cost, most)));
    let model = |bounded: Bounded| smaller(law, experts, &bounded);
    let (bounded_loss, bounded_loss_missing) = parts(at_loss.map(model));
    let (bounded_cost, bounded_cost_missing) = parts(at_cost.map(model));
    let (train_factor_for_both, both_missing) = parts(both);
    AtBudget {
        experts,
        bounded_loss,
        bounded_loss_missing,
        bounded_cost,
        bounded_cost_missing,
        train_factor_for_both,
        both_missing,
    }
}

/// A result as the pair that a document holds.
fn parts<T>(result: Result<T>) -> (Option<T>, Option<String>) {
    match result {
        Ok(value) => (Some(value), None),
        Err(reason) => (None, Some(reason.to_string())),
    }
}

fn smaller(law: &Scaling, experts: usize, bounded: &Bounded) -> SmallerModel {
    let Optimum { n_active, tokens, loss } = bounded.model;
    SmallerModel {
        n_active,
        tokens,
        tokens_per_param: bounded.tokens_per_param(),
        loss_nats: loss.0,
        size_over_optimal: bounded.size_over_optimal,
        serve_usd_per_million_output_tokens: bounded.cost,
        base_train_factor: bounded.base_budget_ratio,
        extrapolation: law.extrapolation(experts, n_active, tokens).worst(),
    }
}

/// The least FLOPs over the model's life of each expert count that reaches the target loss.
fn by_flops(law: &Scaling, market: &Market, processed_tokens: f64) -> Vec<ByFlops> {
    let serving = Serving::in_flops(processed_tokens);
    let models = market.families.iter().filter_map(|family| {
        let slice = law.slice(family.experts).ok()?;
        let best = cheapest(slice.as_ref(), market.reference.loss, serving).ok()?;
        Some(ByFlops {
            experts: family.experts,
            n_active: best.n_active,
            tokens: best.tokens,
            tokens_per_param: best.tokens / best.n_active,
            train_flops: 6.0 * best.n_active * best.tokens,
            total_flops: best.flops.0,
            extrapolation: law.extrapolation(family.experts, best.n_active, best.tokens).worst(),
        })
    });
    models.collect()
}
