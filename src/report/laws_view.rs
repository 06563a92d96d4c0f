//! The tables of what each law says and of their mixture.

use crate::law::gains::PUBLISHED_GAINS;
use crate::plan::outcome::{FlopsSaved, LawAnswer, RankReport};
use crate::plan::summary::name;
use crate::report::grid::Column;
use crate::report::view::{NONE, Table, experts, factor, or_none, serving, usd_interval, whole};
use crate::units::{Usd, count};

/// Shares in a row.
const MOST: usize = 3;
/// Shares below this are left out of a row.
const SHOWN: f64 = 0.005;

/// The answer under each law, those that refuse last.
pub(super) fn by_law(report: &RankReport) -> Table {
    Table {
        title: "What each law says".into(),
        columns: vec![
            Column::words("law"),
            Column::numbers("weight").left_out(4),
            Column::numbers("cheapest"),
            Column::numbers("total\ncost"),
            Column::numbers("tokens\n/param").left_out(3),
            Column::numbers("outside\nfit").left_out(2),
            Column::words("P(best) within the law"),
        ],
        rows: report.laws.iter().map(law_row).collect(),
        strong: None,
        note: notes(report),
    }
}

fn law_row(law: &LawAnswer) -> Vec<String> {
    vec![
        law.law.clone(),
        format!("{:.2}", law.weight),
        or_none(law.winner, experts),
        or_none(law.total_usd, |v| Usd(v).to_string()),
        or_none(law.tokens_per_param, whole),
        or_none(law.extrapolation, factor),
        shares(law),
    ]
}

/// Probabilities in one cell, the largest first.
fn shares(law: &LawAnswer) -> String {
    let mut shares = law.p_best.clone();
    shares.sort_by(|a, b| b.p.total_cmp(&a.p));
    let mut cells: Vec<String> = shares
        .iter()
        .take(MOST)
        .filter(|s| s.p >= SHOWN)
        .map(|s| format!("{} {:.2}", experts(s.experts), s.p))
        .collect();
    if law.p_none >= SHOWN {
        cells.push(format!("none {:.2}", law.p_none));
    }
    if cells.is_empty() { NONE.to_owned() } else { cells.join(", ") }
}

fn notes(report: &RankReport) -> Option<String> {
    let mut notes: Vec<String> = Vec::new();
    for law in &report.laws {
        if let Some(reason) = &law.refused {
            notes.push(format!("{} ranks nothing: {reason}.", law.law));
        } else if !law.silent_on.is_empty() {
            let counts: Vec<String> = law.silent_on.iter().map(|&e| name(e)).collect();
            notes.push(format!("{} says nothing about {}.", law.law, counts.join(", ")));
        }
    }
    notes.extend(gains(report));
    (!notes.is_empty()).then(|| notes.join(" "))
}

/// What a doubling of experts saves at equal loss, by law and as published.
fn gains(report: &RankReport) -> Option<String> {
    let span = |low: f64, high: f64| match (format!("{low:.2}"), format!("{high:.2}")) {
        (low, high) if low == high => low,
        (low, high) => format!("{low} to {high}"),
    };
    let of = |law: &LawAnswer| {
        // From dense to experts is no doubling.
        let doublings = law.flops_saved.iter().filter(|s| s.from_experts > 1);
        let each = || doublings.clone().map(FlopsSaved::per_doubling);
        let (low, high) = (each().fold(f64::INFINITY, f64::min), each().fold(0.0, f64::max));
        (high > 0.0).then(|| format!("{} {}", law.law, span(low, high)))
    };
    let laws: Vec<String> = report.laws.iter().filter_map(of).collect();
    let published: Vec<String> = PUBLISHED_GAINS
        .iter()
        .map(|g| {
            let (low, high) = g.per_doubling();
            let (from, to) = g.between;
            format!("{} {} ({from} to {to}, arXiv {})", g.name, span(low, high), g.arxiv)
        })
        .collect();
    (!laws.is_empty()).then(|| {
        format!(
            "Training FLOPs at equal loss over those with twice the experts: {}; published: {}.",
            laws.join(", "),
            published.join(", ")
        )
    })
}

/// One model for each expert count, whichever law holds.
pub(super) fn mixture(report: &RankReport) -> Table {
    let choices = report.mixture.as_ref().map(|m| m.choices.as_slice()).unwrap_or_default();
    let row = |c: &crate::plan::outcome::Choice| {
        vec![
            experts(c.experts),
            count(c.n_active),
            format!("{} x {}", c.hidden_size, c.num_layers),
            or_none(c.costs, |c| Usd(c.train_usd).to_string()),
            or_none(c.costs, |c| serving(c.serve_usd_per_million_output_tokens)),
            or_none(c.costs, |c| Usd(c.total_usd).to_string()),
            or_none(c.costs.and_then(|c| c.total_usd_interval), usd_interval),
            format!("{:.2}", c.p_best),
            or_none(c.expected_regret_usd, |v| Usd(v).to_string()),
        ]
    };
    let winner = report.mixture.as_ref().and_then(|m| m.winner);
    Table {
        title: "One model for each expert count, over all laws".into(),
        columns: vec![
            Column::numbers("experts"),
            Column::numbers("active\nparams"),
            Column::numbers("hidden x\nlayers").left_out(1),
            Column::numbers("train\ncost").left_out(3),
            Column::numbers("serve\n$/M out").left_out(4),
            Column::numbers("total\ncost"),
            Column::numbers("total\n95 %").left_out(2),
            Column::numbers("P\n(best)"),
            Column::numbers("expected\nregret"),
        ],
        rows: choices.iter().map(row).collect(),
        strong: winner.and_then(|w| choices.iter().position(|c| c.experts == w)),
        note: report.mixture.as_ref().map(|m| {
            format!(
                "Costs are means over the laws under which a model can be had, each with its own lifetime, \
                 and intervals over laws and draws. P(best): cheapest in total cost of these models, \
                 laws by their weights; P(none of them can be had): {:.2}. Expected regret: mean \
                 dollars beyond the cheapest of them.",
                m.p_none
            )
        }),
    }
}
