//! The answer in one sentence: the expert count, its probability and what it hangs on.

use crate::plan::outcome::{RankReport, Sensitivity};
use crate::plan::sensitivity::OF_LAWS;
use crate::plan::summary::{CLEAR, name};
use crate::units::{Usd, count};

/// Probabilities below this are not named among those of a close call.
const NAMED: f64 = 0.1;

/// As many are named at most; the table has all.
const MOST_NAMED: usize = 4;

/// One expert count of the answer.
struct Standing {
    experts: usize,
    n_active: f64,
    p_best: f64,
    regret_usd: Option<f64>,
}

/// The answer with its probability and the fact that would change it; `None` where nothing can be had.
pub fn headline(report: &RankReport) -> Option<String> {
    let mut all = standings(report);
    all.sort_by(|a, b| b.p_best.total_cmp(&a.p_best));
    let first = all.first()?;
    let answer = if first.p_best >= CLEAR {
        format!(
            "{} ({} active): cheapest in total with probability {:.2}{}",
            capital(&name(first.experts)),
            count(first.n_active),
            first.p_best,
            agreement(report, first.experts)
        )
    } else {
        close_call(&all)
    };
    Some(match hangs_on(report, first.experts) {
        Some(condition) => format!("{answer}; {condition}."),
        None => format!("{answer}."),
    })
}

/// The expert counts over all laws, or under the only one.
fn standings(report: &RankReport) -> Vec<Standing> {
    if let Some(mixture) = &report.mixture {
        let of = |c: &crate::plan::outcome::Choice| Standing {
            experts: c.experts,
            n_active: c.n_active,
            p_best: c.p_best,
            regret_usd: c.expected_regret_usd,
        };
        return mixture.choices.iter().map(of).collect();
    }
    let best = report.candidates.iter().filter(|c| c.best_of_experts);
    best.filter_map(|c| {
        let p_best = c.p_best?;
        Some(Standing { experts: c.experts, n_active: c.n_active, p_best, regret_usd: None })
    })
    .collect()
}

fn close_call(all: &[Standing]) -> String {
    let named: Vec<String> = all
        .iter()
        .enumerate()
        .filter(|(i, s)| *i < 2 || s.p_best >= NAMED)
        .take(MOST_NAMED)
        .map(|(_, s)| format!("{} {:.2}", name(s.experts), s.p_best))
        .collect();
    let regrets = all.iter().filter_map(|s| Some((s.experts, s.regret_usd?)));
    let least = regrets.min_by(|a, b| a.1.total_cmp(&b.1));
    let advice = least.map_or_else(String::new, |(experts, usd)| {
        format!("; least expected regret: {} ({})", name(experts), Usd(usd))
    });
    format!("No clear winner (P(best): {}){advice}", named.join(", "))
}

/// How many of several laws agree.
fn agreement(report: &RankReport, experts: usize) -> String {
    let winners: Vec<usize> = report.laws.iter().filter_map(|l| l.winner).collect();
    let agree = winners.iter().filter(|w| **w == experts).count();
    if winners.len() < 2 { String::new() } else { format!(", {agree} of {} laws", winners.len()) }
}

/// The one assumption that would most clearly make another expert count the cheapest.
fn hangs_on(report: &RankReport, experts: usize) -> Option<String> {
    // Assumptions are moved under the first law; where it names another count, the law itself decides.
    if let Some(law) = report.laws.first()
        && let Some(other) = law.winner.filter(|w| *w != experts)
    {
        return Some(format!("{} under {} alone", name(other), law.law));
    }
    let flips = flips(report);
    let (s, is_low, winner) = flips.first()?;
    let end = if *is_low { &s.low } else { &s.high };
    Some(format!("{} with {} at {end}", name(*winner), s.assumption))
}

/// Assumptions that change the winner, the clearest first: whether at the low end, and the expert count
/// that wins there.
pub fn flips(report: &RankReport) -> Vec<(&Sensitivity, bool, usize)> {
    let margin = |s: &Sensitivity| {
        let of = |m: Option<f64>| m.unwrap_or(f64::INFINITY);
        of(s.margin_at_low).min(of(s.margin_at_high))
    };
    let mut found: Vec<(&Sensitivity, bool, usize)> = report
        .sensitivity
        .iter()
        // The laws stand by themselves.
        .filter(|s| s.flips && margin(s) < 1.0 && !OF_LAWS.contains(&s.assumption.as_str()))
        .filter_map(|s| {
            let is_low = s.margin_at_low.is_some_and(|m| m <= margin(s));
            let winner = if is_low { s.winner_at_low } else { s.winner_at_high };
            Some((s, is_low, winner?))
        })
        .collect();
    found.sort_by(|a, b| margin(a.0).total_cmp(&margin(b.0)));
    found
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |c| c.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::sample;

    #[test]
    fn a_clear_answer_names_its_probability_and_its_condition() {
        let text = headline(&sample::report()).unwrap();
        assert_eq!(
            text,
            "4 experts (7.20 B active): cheapest in total with probability 0.53, 2 of 3 laws; 32 experts \
             with lifetime output tokens at ten times."
        );
    }

    #[test]
    fn a_close_call_is_called_one_and_another_law_is_named() {
        let mut report = sample::report();
        let mixture = report.mixture.as_mut().unwrap();
        mixture.choices[1].p_best = 0.3;
        let text = headline(&report).unwrap();
        assert!(
            text.starts_with("No clear winner (P(best): dense 0.37, 4 experts 0.30)"),
            "{text}"
        );
        assert!(text.contains("least expected regret: 4 experts ($12.0k)"), "{text}");
        assert!(text.ends_with("; 4 experts under made-up alone."), "{text}");
    }

    #[test]
    fn without_a_candidate_there_is_no_answer() {
        assert_eq!(headline(&sample::empty()), None);
    }
}
