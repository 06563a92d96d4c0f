//! One answer of a law, as data: loss, sizes, work, and how far outside the fitted runs it lies.

use serde::Serialize;

use crate::law::inference_aware::{Serving, best_on, cheapest_on, life_flops};
use crate::law::surface::{SizeAndTokens, Surface};
use crate::law::{Inputs, LossLaw, Outside, Variable};
use crate::units::{Flops, Nats};
use crate::{Error, Result};

/// A law's answer at one point.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Identifier of the law.
    pub law: String,
    /// Loss in nats per token.
    pub loss_nats: f64,
    /// Parameters that one token meets, if the law can tell.
    pub n_active: Option<f64>,
    /// All parameters, if the law can tell.
    pub n_total: Option<f64>,
    /// Training tokens.
    pub tokens: f64,
    /// Training FLOPs, if the law can tell.
    pub train_flops: Option<f64>,
    /// Training and inference FLOPs over the model's life, when served tokens were asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_flops: Option<f64>,
    /// Whether every variable lies within the runs that the law was fitted to.
    pub in_fit_range: bool,
    /// The largest factor by which a variable lies outside, at least 1.
    pub extrapolation: f64,
    /// The variables that lie outside.
    pub outside: Vec<Outside>,
    /// Experts per layer, for laws that have them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<f64>,
    /// Granularity, for laws that have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<f64>,
    /// Sparsity, for laws that have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,
    /// Exits of one trunk, for laws that have them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exits: Option<f64>,
    /// FLOPs of an equally good dense model over those of this one, for laws that give it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub efficiency_leverage: Option<f64>,
    /// What to know about this answer.
    pub notes: Vec<String>,
}

/// The answer of a surface at one point.
pub fn evaluate(law: &str, surface: &dyn Surface, at: SizeAndTokens) -> Result<Evaluation> {
    let loss_nats = surface.loss(at.n, at.tokens);
    if !loss_nats.is_finite() {
        return Err(Error::unfit(law, "the loss is not a finite number at this point"));
    }
    let state = state(surface, at);
    let outside: Vec<Outside> =
        surface.ranges().iter().filter_map(|range| range.outside(&state)).collect();
    Ok(Evaluation {
        law: law.into(),
        loss_nats,
        n_active: state.get(Variable::NActive),
        n_total: state.get(Variable::NTotal),
        tokens: at.tokens,
        train_flops: state.get(Variable::TrainFlops),
        lifetime_flops: None,
        in_fit_range: outside.is_empty(),
        extrapolation: outside.iter().map(|o| o.factor).fold(1.0, f64::max),
        outside,
        experts: state.get(Variable::Experts),
        granularity: state.get(Variable::Granularity),
        sparsity: state.get(Variable::Sparsity),
        exits: state.get(Variable::Exits),
        efficiency_leverage: None,
        notes: surface.notes(at),
    })
}

/// The same with the FLOPs of training and serving together.
fn evaluate_life(
    law: &str,
    surface: &dyn Surface,
    at: SizeAndTokens,
    serving: Serving,
) -> Result<Evaluation> {
    let flops = life_flops(surface, at.n, at.tokens, serving);
    Ok(Evaluation { lifetime_flops: Some(flops), ..evaluate(law, surface, at)? })
}

/// Every quantity that is known at a point.
fn state(surface: &dyn Surface, at: SizeAndTokens) -> Inputs {
    let sizes = surface.sizes(at.n);
    let flops = surface.train_flops_per_token(at.n) * at.tokens;
    let mut state = surface.fixed().with(Variable::Tokens, at.tokens);
    let computed = [
        (Variable::NActive, sizes.n_active),
        (Variable::NTotal, sizes.n_total),
        (Variable::TokensPerParam, sizes.n_active.map(|n| at.tokens / n)),
        (Variable::TrainFlops, Some(flops).filter(|f| f.is_finite())),
    ];
    for (variable, value) in computed {
        if let Some(value) = value {
            state = state.with(variable, value);
        }
    }
    state
}

/// What a law is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Question {
    /// The loss of the given size and tokens.
    Loss,
    /// The lowest loss at a training budget.
    Budget(Flops),
    /// The cheapest training that reaches a loss.
    Target(Nats),
    /// The lowest loss when training and serving so many tokens share a budget.
    LifetimeBudget(Flops, f64),
    /// The fewest FLOPs of training and serving so many tokens that reach a loss.
    LifetimeTarget(Nats, f64),
}

/// What `law eval` and `law optimal` answer.
///
/// # Errors
/// [`Error::Usage`] for a missing variable or one that this law does not take, [`Error::Unfit`] for
/// a question that the law cannot answer, [`Error::Infeasible`] for a loss that it cannot reach.
pub fn ask(law: &dyn LossLaw, inputs: &Inputs, question: Question) -> Result<Evaluation> {
    check_taken(law, inputs, question != Question::Loss)?;
    law.answer(inputs, question)
}

/// The answer of a law that has a surface of size and tokens.
pub(crate) fn answer<L: LossLaw + ?Sized>(
    law: &L,
    inputs: &Inputs,
    question: Question,
) -> Result<Evaluation> {
    let id = &law.info().id;
    match question {
        Question::Loss => {
            let surface = law.surface(inputs)?;
            let n = surface.size(inputs)?;
            let tokens = match surface.only_tokens() {
                None => inputs.require(Variable::Tokens, id)?,
                Some(only) => only_tokens(only, inputs, id)?,
            };
            evaluate(id, surface.as_ref(), SizeAndTokens { n, tokens })
        }
        Question::Budget(budget) => {
            let optima = law.choices(inputs)?.into_iter().map(|surface| {
                let at = surface.optimum(budget)?;
                evaluate(id, surface.as_ref(), at)
            });
            best(optima, |e| e.loss_nats)
        }
        Question::Target(loss) => {
            let optima = law.choices(inputs)?.into_iter().map(|surface| {
                let at = surface.optimum(surface.budget_for_loss(loss)?)?;
                evaluate(id, surface.as_ref(), at)
            });
            best(optima, |e| e.train_flops.unwrap_or(f64::INFINITY))
        }
        Question::LifetimeBudget(budget, served) => {
            let optima = law.choices(inputs)?.into_iter().map(|surface| {
                let serving = Serving::in_flops(served);
                let at = best_on(surface.as_ref(), budget, serving)?;
                evaluate_life(id, surface.as_ref(), at, serving)
            });
            best(optima, |e| e.loss_nats)
        }
        Question::LifetimeTarget(loss, served) => {
            let optima = law.choices(inputs)?.into_iter().map(|surface| {
                let serving = Serving::in_flops(served);
                let at = cheapest_on(surface.as_ref(), loss, serving)?;
                evaluate_life(id, surface.as_ref(), at, serving)
            });
            best(optima, |e| e.lifetime_flops.unwrap_or(f64::INFINITY))
        }
    }
}

/// The answer with the smallest key; the last refusal when there is none.
fn best(
    answers: impl Iterator<Item = Result<Evaluation>>,
    key: impl Fn(&Evaluation) -> f64,
) -> Result<Evaluation> {
    answers
        .reduce(|a, b| match (a, b) {
            (Ok(a), Ok(b)) => Ok(if key(&b) < key(&a) { b } else { a }),
            (Ok(a), Err(_)) => Ok(a),
            (Err(_), b) => b,
        })
        .unwrap_or_else(|| Err(Error::unfit("law", "it has no model to choose from")))
}

/// Tokens of a law that was fitted at one number of them.
fn only_tokens(only: f64, inputs: &Inputs, id: &str) -> Result<f64> {
    match inputs.get(Variable::Tokens) {
        // Whoever writes 131B means the run's 131.07B.
        Some(tokens) if (tokens / only - 1.0).abs() > 0.005 => Err(Error::unfit(
            id,
            format!("it holds at {only:.5e} training tokens only, not at {tokens:.3e}"),
        )),
        _ => Ok(only),
    }
}

/// Refuses variables that the law does not have, and those that an optimum finds: tokens, and the
/// size. A total size stays where the law needs it beside an active one.
fn check_taken(law: &dyn LossLaw, inputs: &Inputs, optimum: bool) -> Result<()> {
    let info = law.info();
    for variable in Variable::ALL.into_iter().filter(|&v| inputs.get(v).is_some()) {
        let Some(own) = info.variables.iter().find(|v| v.name == variable) else {
            let taken: Vec<&str> = info.variables.iter().map(|v| v.name.flag()).collect();
            return Err(Error::usage(
                variable.flag(),
                format!("{} has no such variable; it takes {}", info.id, taken.join(", ")),
            ));
        };
        let found = match variable {
            Variable::NActive | Variable::NDense | Variable::Tokens => true,
            Variable::NTotal => {
                own.optional || !info.variables.iter().any(|v| v.name == Variable::NActive)
            }
            _ => false,
        };
        if optimum && found {
            return Err(Error::usage(
                variable.flag(),
                "this is what the optimum finds; leave it out",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law;

    fn inputs(values: &[(Variable, f64)]) -> Inputs {
        Inputs::new(values.iter().copied()).unwrap()
    }

    #[test]
    fn variables_that_a_law_does_not_take_are_refused_by_name() {
        let law = law::load("ludziejewski2025", None).unwrap();
        let given = [(Variable::Experts, 8.0), (Variable::Sparsity, 0.5)];
        let error = ask(law.as_ref(), &inputs(&given), Question::Budget(Flops(1e20))).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().starts_with("--sparsity"), "{error}");
        let given = [(Variable::Experts, 8.0), (Variable::Tokens, 1e9)];
        let error = ask(law.as_ref(), &inputs(&given), Question::Budget(Flops(1e20))).unwrap_err();
        assert!(error.to_string().contains("leave it out"), "{error}");
    }

    #[test]
    fn the_cheapest_training_for_an_optimal_loss_is_its_budget() {
        let law = law::load("ludziejewski2025", None).unwrap();
        let given = inputs(&[(Variable::Experts, 8.0)]);
        let best = ask(law.as_ref(), &given, Question::Budget(Flops(1e21))).unwrap();
        let back = ask(law.as_ref(), &given, Question::Target(Nats(best.loss_nats))).unwrap();
        assert!((back.train_flops.unwrap() / 1e21 - 1.0).abs() < 1e-8);
        assert!(!best.in_fit_range);
        assert!((best.extrapolation - 1e21 / 9e19).abs() < 1e-6);
    }

    #[test]
    fn a_loss_below_the_floor_is_infeasible() {
        let law = law::load("besiroglu2024", None).unwrap();
        let error = ask(law.as_ref(), &Inputs::default(), Question::Target(Nats(1.8))).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains("1.8169"), "{error}");
    }
}
