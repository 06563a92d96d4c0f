//! What a fit says about the best model of a budget, with the spread of its resamplings: size, tokens
//! and loss are what a ranking rests on, and coefficients that move together may leave them sharp.

use serde::Serialize;

use crate::law::file::LawFile;
use crate::law::fit::{Run, Spread, spread};
use crate::law::{Evaluation, Inputs, LossLaw, Question, Variable, ask};
use crate::units::Flops;
use crate::{Error, Result};

/// The best model of a budget by a fitted law.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FittedOptimum {
    /// What the runs compare (experts, or sparsity), if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<Variable>,
    /// Its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Training budget.
    pub train_flops: f64,
    /// Active parameters, if the law can tell.
    pub n_active: Option<f64>,
    /// Their spread over the resamplings; none without them.
    pub n_active_spread: Option<Spread>,
    /// Training tokens.
    pub tokens: f64,
    /// Their spread.
    pub tokens_spread: Option<Spread>,
    /// Loss in nats per token.
    pub loss_nats: f64,
    /// Its spread.
    pub loss_spread: Option<Spread>,
    /// The largest factor by which a variable lies outside the fitted runs, at least 1.
    pub extrapolation: f64,
}

/// What the runs of a form compare at a budget: `None` when the form has nothing of the kind.
fn compared(form: &str) -> Option<Variable> {
    match form {
        "ludziejewski2025" | "yun2024" | "krajewski2024" => Some(Variable::Experts),
        "abnar2025" => Some(Variable::Sparsity),
        "familial2025" => Some(Variable::Exits),
        _ => None,
    }
}

/// Why a form has no best model of a budget.
///
/// # Errors
/// [`Error::Usage`] that names the flag.
pub fn check_optimum(form: &str) -> Result<()> {
    let reason = match form {
        "clark2022" => "clark2022 holds the training tokens fixed: it has no best size of a budget",
        "zhao2025" => {
            "zhao2025 needs a total size beside the budget; ask law optimal with --law FILE"
        }
        _ => return Ok(()),
    };
    Err(Error::usage("--optimum-at", reason))
}

/// The best model of `budget` for every expert count (or sparsity) that the runs have.
///
/// # Errors
/// [`Error::Usage`] for a form without an optimum; [`Error::BadFile`] when the file is no law.
pub(super) fn optima(law: &LawFile, runs: &[Run], budget: Flops) -> Result<Vec<FittedOptimum>> {
    check_optimum(&law.form)?;
    let without = LawFile { draws: Vec::new(), fit: None, ..law.clone() };
    let loaded = |file: LawFile| -> Result<Box<dyn LossLaw>> {
        file.into_law().map_err(|reason| Error::bad_file("fit", reason))
    };
    let best = loaded(without.clone())?;
    let drawn = law
        .draws
        .iter()
        .map(|draw| loaded(LawFile { coefficients: draw.clone(), ..without.clone() }))
        .collect::<Result<Vec<_>>>()?;
    let of = compared(&law.form);
    let mut values: Vec<f64> =
        of.map_or_else(Vec::new, |v| runs.iter().map(|r| r.value(v)).collect());
    values.sort_by(f64::total_cmp);
    values.dedup();
    let values: Vec<Option<f64>> =
        if values.is_empty() { vec![None] } else { values.into_iter().map(Some).collect() };
    values
        .into_iter()
        .map(|value| {
            let pair = of.zip(value);
            let inputs = Inputs::new(pair)?;
            let question = Question::Budget(budget);
            let at = ask(best.as_ref(), &inputs, question)?;
            // A resampled law without an optimum here says nothing about its spread.
            let draws: Vec<Evaluation> =
                drawn.iter().filter_map(|l| ask(l.as_ref(), &inputs, question).ok()).collect();
            let over =
                |f: fn(&Evaluation) -> Option<f64>| spread(draws.iter().filter_map(f).collect());
            Ok(FittedOptimum {
                of: pair.map(|p| p.0),
                value,
                train_flops: budget.0,
                n_active: at.n_active,
                n_active_spread: over(|e| e.n_active),
                tokens: at.tokens,
                tokens_spread: over(|e| Some(e.tokens)),
                loss_nats: at.loss_nats,
                loss_spread: over(|e| Some(e.loss_nats)),
                extrapolation: at.extrapolation,
            })
        })
        .collect()
}
