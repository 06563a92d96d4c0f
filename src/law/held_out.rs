//! How well laws predict a user's largest runs: the evidence by which their weights in a mixture can be
//! set.
//!
//! Tokenizer and corpus differ from those behind a law, so its level is none of the evidence: the smaller
//! runs set an offset in nats, and what is left on the largest is the law's error. All laws are asked about
//! the same runs: those that every one of them answers.

use crate::law::fit::Run;
use crate::law::{Scaling, Variable};
use crate::units::nearest_whole;
use crate::{Error, Result};

/// Share of the runs, largest training FLOPs first, that are predicted.
const HELD_OUT: f64 = 0.25;
/// Fewest runs that a law must answer.
const FEWEST: usize = 8;

/// What laws err on the largest runs that all of them answer.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOut {
    /// Root mean square of the errors of each law in nats, in the order asked; `Err` says why a law was left
    /// out.
    pub rmse_nats: Vec<Result<f64, String>>,
    /// Runs that all the others answer.
    pub answered: usize,
    /// The largest of them, which were predicted.
    pub predicted: usize,
}

/// The variables that a file of runs must give: experts per layer, active parameters, tokens.
pub const VARIABLES: [Variable; 3] = [Variable::Experts, Variable::NActive, Variable::Tokens];

/// The errors of laws, each on its architecture, on the largest of the runs that all of them answer. A law
/// that answers too few is left out first.
///
/// # Errors
/// [`Error::Unfit`] when no law answers enough of them, or the others too few in common.
pub fn held_out(laws: &[Scaling], runs: &[Run]) -> Result<HeldOut> {
    let errors: Vec<Vec<Option<f64>>> = laws.iter().map(|law| errors(law, runs)).collect();
    let count = |of: &[Option<f64>]| of.iter().flatten().count();
    let stays: Vec<bool> = errors.iter().map(|of| count(of) >= FEWEST).collect();
    let few = |answered: usize, who: &str| {
        format!("{who} {answered} of the {} runs; {FEWEST} are needed", runs.len())
    };
    if let (false, Some(first)) = (stays.contains(&true), laws.first()) {
        return Err(Error::unfit(first.id(), few(count(&errors[0]), "answers")));
    }
    let is_common =
        |run: &usize| errors.iter().zip(&stays).all(|(of, stays)| !stays || of[*run].is_some());
    let mut common: Vec<usize> = (0..runs.len()).filter(is_common).collect();
    if common.len() < FEWEST {
        let reason = few(common.len(), "the laws answer in common");
        return Err(Error::unfit("--law-weights", format!("{reason}: name fewer with --law")));
    }
    let work =
        |run: &usize| runs[*run].value(Variable::NActive) * runs[*run].value(Variable::Tokens);
    common.sort_by(|a, b| work(a).total_cmp(&work(b)));
    let predicted = nearest_whole(common.len() as f64 * HELD_OUT).max(1);
    let (small, large) = common.split_at(common.len() - predicted);
    let rmse = |of: &[Option<f64>]| {
        let at = |run: &usize| of[*run].unwrap_or(f64::NAN);
        let offset = small.iter().map(at).sum::<f64>() / small.len() as f64;
        let squares = large.iter().map(|run| (at(run) - offset).powi(2)).sum::<f64>();
        (squares / predicted as f64).sqrt()
    };
    let of = |(of, stays): (&Vec<Option<f64>>, &bool)| {
        if *stays { Ok(rmse(of)) } else { Err(few(count(of), "answers")) }
    };
    let rmse_nats = errors.iter().zip(&stays).map(of).collect();
    Ok(HeldOut { rmse_nats, answered: common.len(), predicted })
}

/// Loss of each run less the law's; `None` where the law says nothing.
fn errors(law: &Scaling, runs: &[Run]) -> Vec<Option<f64>> {
    let error = |run: &Run| {
        let [experts, n_active, tokens] = VARIABLES.map(|v| run.value(v));
        let slice = law.slice(nearest_whole(experts)).ok()?;
        let error = run.ln_loss.exp() - slice.loss(n_active, tokens).0;
        error.is_finite().then_some(error)
    };
    runs.iter().map(error).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::{Inputs, load_scaling};

    /// Runs that a law makes, in another tokenizer.
    fn runs(id: &str, counts: &[usize]) -> Vec<Run> {
        let law = load_scaling(id).unwrap();
        let mut runs = Vec::new();
        for &experts in counts {
            let slice = law.slice(experts).unwrap();
            for n_active in [1e8, 3e8, 1e9, 3e9] {
                let tokens = 20.0 * n_active;
                let values = [experts as f64, n_active, tokens];
                let inputs = Inputs::new(VARIABLES.into_iter().zip(values)).unwrap();
                let line = runs.len();
                runs.push(Run::new(inputs, slice.loss(n_active, tokens).0 + 0.3, line, line));
            }
        }
        runs
    }

    fn laws(ids: &[&str]) -> Vec<Scaling> {
        ids.iter().map(|id| load_scaling(id).unwrap()).collect()
    }

    #[test]
    fn the_law_behind_the_runs_errs_least_whatever_the_tokenizer() {
        let ids = ["ludziejewski2025", "abnar2025", "tian2025", "clark2022"];
        for (index, truth) in ids.into_iter().enumerate().take(3) {
            let found = held_out(&laws(&ids), &runs(truth, &[4, 8, 16])).unwrap();
            assert_eq!((found.answered, found.predicted), (12, 3));
            for (other, rmse) in found.rmse_nats.iter().enumerate() {
                let rmse = *rmse.as_ref().unwrap();
                assert_eq!(other == index, rmse < 1e-9, "{} on {truth}: {rmse}", ids[other]);
            }
        }
    }

    #[test]
    fn all_laws_are_asked_about_the_same_runs() {
        // Zhao's law says nothing about dense models.
        let (both, all) = (laws(&["ludziejewski2025", "zhao2025"]), [1, 4, 8, 16]);
        let runs = runs("ludziejewski2025", &all);
        let found = held_out(&both, &runs).unwrap();
        assert_eq!((found.answered, found.predicted), (12, 3));
        let alone = held_out(&both[..1], &runs).unwrap();
        assert_eq!((alone.answered, alone.predicted), (16, 4));
    }

    #[test]
    fn a_law_that_answers_too_few_is_left_out_and_too_few_in_all_are_refused() {
        let both = laws(&["zhao2025", "ludziejewski2025"]);
        let found = held_out(&both, &runs("ludziejewski2025", &[1, 1, 4])).unwrap();
        assert!(found.rmse_nats[0].as_ref().is_err_and(|e| e.contains("4 of the 12")), "{found:?}");
        assert!(found.rmse_nats[1].as_ref().is_ok_and(|rmse| *rmse < 1e-9));
        let error = held_out(&both[1..], &runs("ludziejewski2025", &[4, 8])[..7]).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("7 of the 7"), "{error}");
    }
}
