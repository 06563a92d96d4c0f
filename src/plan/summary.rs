//! The answer in sentences, and the warnings that belong to it.

use std::collections::BTreeMap;

use crate::latency::Source;
use crate::law::beyond::LISTED_TOKENS_PER_PARAM;
use crate::plan::headline::{flips, headline};
use crate::plan::outcome::{Binding, Candidate, Choice, LawAnswer, Mixture, RankReport};
use crate::units::{Tokens, Usd, UsdPerMillionTokens, count};

/// Below this probability nothing is called the winner.
pub(super) const CLEAR: f64 = 0.5;
/// Two expected regrets within this factor of each other are told as one.
const CLOSE_REGRET: f64 = 1.3;
/// Shares of draws below this are not told.
const SHOWN: f64 = 0.005;
/// Beyond this factor outside its fitted range a law's answer is named as far outside.
const FAR_OUTSIDE: f64 = 10.0;

/// The answer, most important first.
pub fn sentences(report: &RankReport, lifetime: f64) -> Vec<String> {
    let mut best: Vec<&Candidate> =
        report.candidates.iter().filter(|c| c.best_of_experts && c.total_usd.is_some()).collect();
    best.sort_by(|a, b| total(a).total_cmp(&total(b)));
    let Some(&first) = best.first() else {
        return Vec::new();
    };
    let mut lines: Vec<String> = headline(report).into_iter().collect();
    lines.extend(over_laws(report));
    let alone = verdict(first, &best, lifetime);
    lines.push(if report.laws.len() > 1 {
        format!("Under {} alone: {}{}", report.law.id, alone[..1].to_lowercase(), &alone[1..])
    } else {
        alone
    });
    lines.extend(limits(report, first));
    lines.extend(deciding(report));
    if report.p_none >= SHOWN {
        lines.push(format!(
            "In {:.0}% of the draws none of these models reaches the loss and keeps the service level.",
            100.0 * report.p_none
        ));
    }
    lines.extend(trade(&best));
    if let Some(binding) = first.binding {
        lines.push(format!("{}: {}.", binding.label(), regime(binding)));
    }
    lines.extend(report.crossovers.iter().map(|c| {
        let between = c
            .interval
            .map_or_else(String::new, |i| format!(" (95 %: {} to {})", Tokens(i.lo), Tokens(i.hi)));
        format!(
            "From {} of output on{between}, {} beats {}.",
            Tokens(c.lifetime_tokens),
            name(c.to_experts),
            name(c.from_experts)
        )
    }));
    lines
}

/// How far the laws agree, and what their mixture says.
fn over_laws(report: &RankReport) -> Vec<String> {
    let answered: Vec<&LawAnswer> = report.laws.iter().filter(|l| l.winner.is_some()).collect();
    let Some(mixture) = report.mixture.as_ref().filter(|_| report.laws.len() > 1) else {
        return Vec::new();
    };
    let mut votes: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for law in &answered {
        if let Some(winner) = law.winner {
            votes.entry(winner).or_default().push(&law.law);
        }
    }
    let mut votes: Vec<(usize, Vec<&str>)> = votes.into_iter().collect();
    votes.sort_by_key(|(_, laws)| std::cmp::Reverse(laws.len()));
    let mut lines = Vec::new();
    if let Some((first, others)) = votes.split_first() {
        let others: Vec<String> = others
            .iter()
            .map(|(experts, laws)| format!("{} by {}", name(*experts), laws.join(", ")))
            .collect();
        let rest =
            if others.is_empty() { String::new() } else { format!(" ({})", others.join("; ")) };
        let (votes, all) = (first.1.len(), answered.len());
        lines.push(format!("{votes} of {all} laws: {}{rest}.", name(first.0)));
    }
    lines.extend(mixed(mixture));
    lines
}

/// The mixture's probabilities and what a choice is expected to lose.
fn mixed(mixture: &Mixture) -> Option<String> {
    let mut choices = mixture.choices.clone();
    choices.sort_by(|a, b| b.p_best.total_cmp(&a.p_best));
    let first = choices.first()?;
    let shares: Vec<String> =
        choices.iter().map(|c| format!("{} {:.2}", name(c.experts), c.p_best)).collect();
    let none = if mixture.p_none >= SHOWN {
        format!(", none of them {:.2}", mixture.p_none)
    } else {
        String::new()
    };
    let regret = |c: &Choice| c.expected_regret_usd.map(|usd| (c.experts, usd));
    let mut regrets: Vec<(usize, f64)> = choices.iter().filter_map(regret).collect();
    regrets.sort_by(|a, b| a.1.total_cmp(&b.1));
    let advice = match regrets.as_slice() {
        [a, b, ..] if b.1 <= CLOSE_REGRET * a.1 => format!(
            " Either {} or {}: at most {} is lost on average.",
            name(a.0),
            name(b.0),
            Usd(b.1)
        ),
        [a, b, ..] => format!(
            " {} loses {} on average against the cheapest, {} {}.",
            capital(&name(a.0)),
            Usd(a.1),
            name(b.0),
            Usd(b.1)
        ),
        _ => String::new(),
    };
    let model = format!("{} active", count(first.n_active));
    Some(format!(
        "Cheapest over all laws: {} ({model}); P(best) {}{none}.{advice}",
        name(first.experts),
        shares.join(", ")
    ))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |c| c.to_uppercase().chain(letters).collect())
}

/// Which single fact would decide the answer.
fn deciding(report: &RankReport) -> Option<String> {
    let mut winners: Vec<usize> = report.laws.iter().filter_map(|l| l.winner).collect();
    winners.sort_unstable();
    winners.dedup();
    let mut facts = Vec::new();
    if winners.len() > 1 {
        let names: Vec<String> = winners.iter().map(|&w| name(w)).collect();
        facts.push(format!("which loss law holds ({})", names.join(", ")));
    }
    if let Some((s, is_low, winner)) = flips(report).first() {
        let end = if *is_low { &s.low } else { &s.high };
        facts.push(format!("{} ({} at {end})", s.assumption, name(*winner)));
    }
    (!facts.is_empty()).then(|| format!("What would decide it: {}.", facts.join(", then ")))
}

/// Whether the recommendation rests on a limit rather than on a trade.
fn limits(report: &RankReport, first: &Candidate) -> Option<String> {
    /// Neighbouring shapes differ by this much in tokens per parameter.
    const AT: f64 = 0.93;
    let value = |flag: &str| {
        let assumed = report.assumptions.iter().find(|a| a.name == flag)?;
        assumed.value.split_whitespace().next()?.parse::<f64>().ok()
    };
    let mut on = Vec::new();
    if value("--max-tokens-per-param").is_some_and(|most| first.tokens_per_param > AT * most) {
        on.push("--max-tokens-per-param");
    }
    let budget = report.over_training.budget_flops;
    if value("--max-train-factor").is_some_and(|most| first.train_flops > AT * most * budget) {
        on.push("--max-train-factor");
    }
    (!on.is_empty()).then(|| {
        format!(
            "{} lies on a limit ({}): an assumption decides its size.",
            capital(&name(first.experts)),
            on.join(", ")
        )
    })
}

fn verdict(first: &Candidate, best: &[&Candidate], lifetime: f64) -> String {
    let p = first.p_best.unwrap_or(0.0);
    let cost = format!("{} over {} served", Usd(total(first)), Tokens(lifetime));
    let model = format!(
        "{} ({} active, {} total, {})",
        name(first.experts),
        count(first.n_active),
        count(first.n_total),
        Tokens(first.tokens)
    );
    if p >= CLEAR {
        return format!("Cheapest in all: {model}, {cost}; probability {p:.2}.");
    }
    let ties: Vec<String> = best
        .iter()
        .map(|c| format!("{} {:.2}", name(c.experts), c.p_best.unwrap_or(0.0)))
        .collect();
    let easiest = best.iter().min_by(|a, b| a.train_usd.total_cmp(&b.train_usd));
    let advice = easiest.map_or_else(String::new, |c| {
        format!(" If it does not matter, {} is the cheapest to train.", name(c.experts))
    });
    format!("No clear winner: {}. Lowest estimate: {model}, {cost}.{advice}", ties.join(", "))
}

/// The cheapest to train beside the cheapest to serve, when they differ.
fn trade(best: &[&Candidate]) -> Option<String> {
    let train = best.iter().min_by(|a, b| a.train_usd.total_cmp(&b.train_usd))?;
    let serve_of = |c: &Candidate| c.serve_usd_per_million_output_tokens.unwrap_or(f64::INFINITY);
    let serve = best.iter().min_by(|a, b| serve_of(a).total_cmp(&serve_of(b)))?;
    if train.experts == serve.experts {
        return None;
    }
    Some(format!(
        "At equal loss {} is cheapest to train ({}, serving {}), {} cheapest to serve ({}, {:.1} times the training).",
        name(train.experts),
        Usd(train.train_usd),
        UsdPerMillionTokens(serve_of(train)),
        name(serve.experts),
        UsdPerMillionTokens(serve_of(serve)),
        serve.train_usd / train.train_usd,
    ))
}

/// What a regime means and what would change it.
pub const fn regime(binding: Binding) -> &'static str {
    match binding {
        Binding::MemoryFloor => {
            "the traffic is too low to fill the smallest deployment that holds the weights; \
             more requests or fewer total parameters would lower the price"
        }
        Binding::WeightStream => {
            "each step's time goes into reading the weights of the experts it hits; \
             a longer time per token (larger batches) or fewer total parameters would lower the price"
        }
        Binding::KvBound => {
            "keys and values of the running requests limit the batch or its speed; \
             fewer key/value heads, shorter contexts or more memory would lower the price"
        }
        Binding::ComputeBound => {
            "arithmetic on active parameters is the limit; fewer active parameters (more experts) \
             or faster arithmetic would lower the price"
        }
        Binding::Overhead => {
            "fixed work per layer and communication take longest; fewer layers, fewer devices per \
             replica or larger batches would lower the price"
        }
    }
}

/// What a reader must know before acting on the report.
pub fn warnings(report: &RankReport) -> Vec<String> {
    let mut lines = Vec::new();
    let best = || report.candidates.iter().filter(|c| c.best_of_experts);
    let trained: Vec<String> = best()
        .filter(|c| c.tokens_per_param > LISTED_TOKENS_PER_PARAM)
        .map(|c| format!("{} {:.0}", name(c.experts), c.tokens_per_param))
        .collect();
    if !trained.is_empty() {
        lines.push(format!(
            "training tokens per active parameter beyond the {LISTED_TOKENS_PER_PARAM} of the law's listed runs: {}",
            trained.join(", ")
        ));
    }
    let far: Vec<String> = best()
        .filter(|c| c.extrapolation > FAR_OUTSIDE)
        .map(|c| format!("{} {:.0}x", name(c.experts), c.extrapolation))
        .collect();
    if !far.is_empty() {
        lines.push(format!("far outside the law's fitted range: {}", far.join(", ")));
    }
    let partial: Vec<String> = best()
        .filter_map(|c| Some((c, c.total_usd_interval?)))
        .filter(|(_, i)| i.share < 1.0 - SHOWN)
        .map(|(c, i)| format!("{} {:.0}%", name(c.experts), 100.0 * i.share))
        .collect();
    if !partial.is_empty() {
        lines.push(format!(
            "intervals rest on the draws in which the model can be had: {}",
            partial.join(", ")
        ));
    }
    if best().any(|c| c.latency_source == Some(Source::Roofline)) {
        lines.push(
            "latencies come from a roofline, not from measurements: an order of magnitude".into(),
        );
    }
    for candidate in report.candidates.iter().filter(|c| !c.is_equal_loss()) {
        let served = best().any(|c| c.experts == candidate.experts);
        if !served {
            lines.push(format!(
                "{} has no candidate at equal loss within the limits that can be served",
                name(candidate.experts)
            ));
        }
    }
    lines
}

/// How an expert count is called in sentences.
pub fn name(experts: usize) -> String {
    if experts == 1 { "dense".into() } else { format!("{experts} experts") }
}

fn total(candidate: &Candidate) -> f64 {
    candidate.total_usd.unwrap_or(f64::INFINITY)
}
