//! The two algorithms of Yun et al. 2024 (arXiv 2404.02852): the cheapest model of a loss, and the
//! best model of a cost, at a fixed training budget.
//!
//! What serving costs is the caller's business: measured, modelled, or the total size as a stand-in.
//! Costs jump where one more device is needed, so they are compared and never solved for equality.

use crate::law::{Optimum, Scaling, Slice};
use crate::units::Flops;
use crate::{Error, Result};

/// Sizes tried between the loss-optimal one and a thousandth of it; neighbours differ by 1.7 %.
const STEPS: u32 = 400;
/// Smallest size considered, as a share of the loss-optimal one.
const SMALLEST: f64 = 1e-3;
/// Halvings of a bracket in the logarithm.
const HALVINGS: u32 = 60;

/// Cost of serving one token with so many experts and active parameters, in any one unit; `None`
/// when the model cannot be served.
pub type Cost<'a> = &'a dyn Fn(usize, f64) -> Option<f64>;

/// A smaller model with more experts, trained on more tokens, against a loss-optimal one of fewer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounded {
    /// The loss-optimal model of the base expert count at the budget.
    pub base: Optimum,
    /// The smaller model; it costs the same training.
    pub model: Optimum,
    /// Its serving cost, in the unit of the cost given.
    pub cost: f64,
    /// Serving cost of the base; `None` when the base cannot be served.
    pub base_cost: Option<f64>,
    /// Its size over the loss-optimal size of its own expert count.
    pub size_over_optimal: f64,
    /// Training FLOPs that the base expert count would need for this model's loss, over the budget.
    pub base_budget_ratio: f64,
}

impl Bounded {
    /// Training tokens per active parameter of the smaller model.
    pub fn tokens_per_param(&self) -> f64 {
        self.model.tokens / self.model.n_active
    }

    /// The smaller model's serving cost over the base's.
    ///
    /// # Errors
    /// [`Error::Infeasible`] when the base cannot be served.
    pub fn cost_ratio(&self) -> Result<f64> {
        self.base_cost.map(|base| self.cost / base).ok_or_else(|| {
            Error::infeasible("the base model cannot be served", "use larger or more devices")
        })
    }
}

/// Lowest cost at a bounded loss: the smallest model of `experts` experts that reaches the loss of
/// the loss-optimal model of `base` experts within `budget`.
///
/// # Errors
/// [`Error::Infeasible`] when more experts do not reach that loss, or a model cannot be served.
pub fn bounded_loss(
    law: &Scaling,
    (base, experts): (usize, usize),
    budget: Flops,
    cost: Cost,
) -> Result<Bounded> {
    let slice = law.slice(experts)?;
    let reference = law.slice(base)?.optimum(budget);
    let optimum = slice.optimum(budget);
    if optimum.loss > reference.loss {
        return Err(Error::infeasible(
            format!(
                "{} reach {} at this budget, not the {} of {}",
                models(experts),
                optimum.loss,
                reference.loss,
                models(base)
            ),
            "use more experts or a larger budget",
        ));
    }
    // Below the optimum the loss falls with size at a fixed budget.
    let (mut low, mut high) = (optimum.n_active * 1e-6, optimum.n_active);
    for _ in 0..HALVINGS {
        let middle = (low * high).sqrt();
        if at_budget(slice.as_ref(), middle, budget).loss > reference.loss {
            low = middle;
        } else {
            high = middle;
        }
    }
    let model = at_budget(slice.as_ref(), high, budget);
    result(law, (base, experts), (reference, model), budget, cost)
}

/// Lowest loss at a bounded cost: the largest model of `experts` experts, up to its loss-optimal
/// size, that costs no more to serve than the loss-optimal model of `base` experts.
///
/// # Errors
/// [`Error::Infeasible`] when no model is as cheap, or the base cannot be served.
pub fn bounded_cost(
    law: &Scaling,
    (base, experts): (usize, usize),
    budget: Flops,
    cost: Cost,
) -> Result<Bounded> {
    let most = served(cost, base, law.slice(base)?.optimum(budget).n_active)?;
    bounded_cost_at(law, (base, experts), budget, (cost, most))
}

/// The same with the bound given outright, in the unit of `cost`; the base then only stands beside.
///
/// # Errors
/// As [`bounded_cost`].
pub fn bounded_cost_at(
    law: &Scaling,
    (base, experts): (usize, usize),
    budget: Flops,
    (cost, most): (Cost, f64),
) -> Result<Bounded> {
    let slice = law.slice(experts)?;
    let reference = law.slice(base)?.optimum(budget);
    let optimum = slice.optimum(budget).n_active;
    let largest = largest_affordable(optimum, |n| cost(experts, n).is_some_and(|c| c <= most))
        .ok_or_else(|| {
            Error::infeasible(
                format!("no size of {} serves within the bound on cost", models(experts)),
                "raise the bound, or the training budget",
            )
        })?;
    let model = at_budget(slice.as_ref(), largest, budget);
    result(law, (base, experts), (reference, model), budget, cost)
}

/// Training FLOPs with which `experts` experts match both loss and serving cost of the loss-optimal
/// model of `base` experts, over the budget of that one.
///
/// # Errors
/// [`Error::Infeasible`] when no such model exists.
pub fn budget_for_both(
    law: &Scaling,
    (base, experts): (usize, usize),
    budget: Flops,
    cost: Cost,
) -> Result<f64> {
    let most = served(cost, base, law.slice(base)?.optimum(budget).n_active)?;
    budget_for_both_at(law, (base, experts), budget, (cost, most))
}

/// The same with the bound on cost given outright, in the unit of `cost`.
///
/// # Errors
/// As [`budget_for_both`].
pub fn budget_for_both_at(
    law: &Scaling,
    (base, experts): (usize, usize),
    budget: Flops,
    (cost, most): (Cost, f64),
) -> Result<f64> {
    let reference = law.slice(base)?.optimum(budget);
    let slice = law.slice(experts)?;
    // No use in a model larger than the one that is cheapest to train to this loss.
    let cheapest = slice.optimum(slice.budget_for_loss(reference.loss)?).n_active;
    let n = largest_affordable(cheapest, |n| cost(experts, n).is_some_and(|c| c <= most))
        .ok_or_else(|| {
            Error::infeasible(
                format!("no size of {} serves within the bound on cost", models(experts)),
                "raise the bound, or compare fewer experts",
            )
        })?;
    let tokens = slice.tokens_for_loss(n, reference.loss)?;
    Ok(6.0 * n * tokens / budget.0)
}

/// The model of a size that spends a whole budget.
fn at_budget(slice: &dyn Slice, n_active: f64, budget: Flops) -> Optimum {
    let tokens = budget.0 / 6.0 / n_active;
    Optimum { n_active, tokens, loss: slice.loss(n_active, tokens) }
}

fn result(
    law: &Scaling,
    (base, experts): (usize, usize),
    (reference, model): (Optimum, Optimum),
    budget: Flops,
    cost: Cost,
) -> Result<Bounded> {
    Ok(Bounded {
        base: reference,
        model,
        cost: served(cost, experts, model.n_active)?,
        base_cost: cost(base, reference.n_active),
        size_over_optimal: model.n_active / law.slice(experts)?.optimum(budget).n_active,
        base_budget_ratio: law.slice(base)?.budget_for_loss(model.loss)?.0 / budget.0,
    })
}

fn served(cost: Cost, experts: usize, n_active: f64) -> Result<f64> {
    cost(experts, n_active).ok_or_else(|| {
        Error::infeasible(
            format!("{} of {n_active:.3e} active parameters cannot be served", models(experts)),
            "use larger or more devices",
        )
    })
}

/// What models of an expert count are called in reasons.
fn models(experts: usize) -> String {
    if experts == 1 { "dense models".into() } else { format!("models of {experts} experts") }
}

/// The largest size up to `most` that is affordable: the first affordable one of a falling grid,
/// refined towards its unaffordable neighbour.
fn largest_affordable(most: f64, affordable: impl Fn(f64) -> bool) -> Option<f64> {
    if affordable(most) {
        return Some(most);
    }
    let step = SMALLEST.powf(1.0 / f64::from(STEPS));
    let (mut ok, mut bad) = (1..=STEPS)
        .map(|i| most * step.powf(f64::from(i)))
        .find(|&n| affordable(n))
        .map(|n| (n, n / step))?;
    for _ in 0..HALVINGS {
        let middle = (ok * bad).sqrt();
        if affordable(middle) { ok = middle } else { bad = middle }
    }
    Some(ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::load_scaling;

    fn proxy(law: &Scaling) -> impl Fn(usize, f64) -> Option<f64> + '_ {
        |experts, n| law.closure(experts, n).ok().map(|c| c.n_total)
    }

    #[test]
    fn a_bounded_loss_is_that_loss_with_a_smaller_model() {
        let law = load_scaling("ludziejewski2025").unwrap();
        let cost = proxy(&law);
        let got = bounded_loss(&law, (4, 16), Flops(5.15e21), &cost).unwrap();
        assert!((got.model.loss.0 - got.base.loss.0).abs() < 1e-9);
        assert!(got.size_over_optimal < 1.0 && got.cost_ratio().unwrap() < 1.0);
        assert!((6.0 * got.model.n_active * got.model.tokens / 5.15e21 - 1.0).abs() < 1e-9);
        assert!((got.base_budget_ratio - 1.0).abs() < 1e-6);
        let error = bounded_loss(&law, (16, 4), Flops(5.15e21), &cost).unwrap_err();
        assert_eq!(error.exit_code(), 5);
    }

    #[test]
    fn a_bounded_cost_is_kept_over_jumps_and_capped_at_the_optimum() {
        let law = load_scaling("ludziejewski2025").unwrap();
        // One more device for every 5B parameters.
        let jumps = |experts, n| law.closure(experts, n).ok().map(|c| (c.n_total / 5e9).ceil());
        let got = bounded_cost(&law, (4, 8), Flops(5.15e21), &jumps).unwrap();
        assert!(got.cost_ratio().unwrap() <= 1.0);
        let more = got.model.n_active * 1.001;
        assert!(jumps(8, more).unwrap() > jumps(4, got.base.n_active).unwrap());
        let flat = |_: usize, _: f64| Some(1.0);
        let free = bounded_cost(&law, (4, 8), Flops(5.15e21), &flat).unwrap();
        assert!((free.size_over_optimal - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_bound_given_outright_is_kept_and_its_own_cost_gives_the_same_model() {
        let law = load_scaling("ludziejewski2025").unwrap();
        let cost = proxy(&law);
        let budget = Flops(5.15e21);
        let own = bounded_cost(&law, (4, 8), budget, &cost).unwrap();
        let most = cost(4, own.base.n_active).unwrap();
        assert_eq!(bounded_cost_at(&law, (4, 8), budget, (&cost, most)).unwrap(), own);
        let tight = bounded_cost_at(&law, (4, 8), budget, (&cost, most / 3.0)).unwrap();
        assert!(cost(8, tight.model.n_active).unwrap() <= most / 3.0);
        assert!(tight.model.loss.0 > own.model.loss.0);
        let error = bounded_cost_at(&law, (4, 8), budget, (&cost, 1.0)).unwrap_err();
        assert_eq!(error.exit_code(), 5);
    }

    #[test]
    fn a_model_that_cannot_be_served_is_refused() {
        let law = load_scaling("ludziejewski2025").unwrap();
        let none = |_: usize, _: f64| None;
        for error in [
            bounded_loss(&law, (4, 8), Flops(1e21), &none).unwrap_err(),
            bounded_cost(&law, (4, 8), Flops(1e21), &none).unwrap_err(),
            budget_for_both(&law, (4, 8), Flops(1e21), &none).unwrap_err(),
        ] {
            assert_eq!(error.exit_code(), 5);
        }
    }
}
