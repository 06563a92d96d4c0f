//! The tables about smaller models on more tokens, shared by the terminal and the page.

use crate::plan::outcome::{AtBudget, Candidate, CandidateKind, RankReport, SmallerModel};
use crate::plan::summary::name;
use crate::report::grid::Column;
use crate::report::view::{
    NONE, Table, best_candidates, experts, factor, or_none, serving, short, whole,
};
use crate::units::{Flops, Tokens, Usd, count};

/// What the over-trained candidate of each expert count that serves cheapest costs and saves.
pub(super) fn at_equal_loss(report: &RankReport) -> Table {
    let mut counts: Vec<usize> = report.candidates.iter().map(|c| c.experts).collect();
    counts.sort_unstable();
    counts.dedup();
    let rows = counts.iter().filter_map(|&e| equal_loss_row(report, e));
    Table {
        title: "Over-training at equal loss: fewer parameters on more tokens".into(),
        columns: vec![
            Column::numbers("experts"),
            Column::numbers("active\nparams"),
            Column::numbers("times the\ncheapest").left_out(4),
            Column::numbers("tokens\n/param").left_out(3),
            Column::numbers("train\ncost").left_out(5),
            Column::numbers("extra\ntraining"),
            Column::numbers("serve\n$/M out"),
            Column::numbers("saves\n$/M out").left_out(2),
            Column::numbers("pays from\noutput tokens").left_out(1),
        ],
        rows: rows.collect(),
        strong: None,
        note: Some(
            "The candidate of each expert count that serves cheapest, against the cheapest training of \
             the same expert count and loss; `-`: it cannot be served, or never pays."
                .into(),
        ),
    }
}

fn equal_loss_row(report: &RankReport, count_of: usize) -> Option<Vec<String>> {
    let served = |c: &&Candidate| c.serve_usd_per_million_output_tokens.unwrap_or(f64::INFINITY);
    let c = report
        .candidates
        .iter()
        .filter(|c| c.experts == count_of && c.kind == CandidateKind::OverTrained)
        .min_by(|a, b| served(a).total_cmp(&served(b)))?;
    let o = c.over_training?;
    Some(vec![
        experts(c.experts),
        count(c.n_active),
        format!("{:.2}", o.size_ratio),
        whole(c.tokens_per_param),
        Usd(c.train_usd).to_string(),
        Usd(o.extra_train_usd).to_string(),
        or_none(c.serve_usd_per_million_output_tokens, serving),
        or_none(o.saved_usd_per_million_output_tokens, serving),
        or_none(o.pays_from_output_tokens, count),
    ])
}

/// Both algorithms at the base's training budget.
pub(super) fn at_budget(report: &RankReport) -> Table {
    let columns = vec![
        Column::numbers("experts"),
        Column::numbers("same loss:\nactive"),
        Column::numbers("tokens\n/param").left_out(7),
        Column::numbers("serve\n$/M out").left_out(6),
        Column::numbers("outside\nfit"),
        Column::numbers("cost bound:\nactive"),
        Column::numbers("loss\nnats").left_out(4),
        Column::numbers("base\nneeds").left_out(5),
        Column::numbers("outside\nfit"),
        Column::numbers("both:\ntraining").left_out(3),
    ];
    let o = &report.over_training;
    let base = or_none(o.base_serve_usd_per_million_output_tokens, serving);
    let bound = or_none(o.max_serve_usd_per_million_output_tokens, serving);
    Table {
        title: format!(
            "The same budget ({}) with fewer parameters, against loss-optimal {}",
            Flops(o.budget_flops),
            name(o.base_experts)
        ),
        columns,
        rows: o.at_budget.iter().map(budget_row).collect(),
        strong: None,
        note: Some(format!(
            "Yun et al. 2024: the smallest model with the base's loss ({:.4} nats, serving at {base}), \
             the lowest loss at {bound} or less with the budget the base needs for it, and the budget \
             that meets both.{}",
            o.base_loss_nats,
            reasons(&o.at_budget)
        )),
    }
}

fn budget_row(row: &AtBudget) -> Vec<String> {
    let of = |m: &Option<SmallerModel>, text: fn(&SmallerModel) -> String| {
        m.as_ref().map_or_else(|| NONE.to_owned(), text)
    };
    vec![
        experts(row.experts),
        of(&row.bounded_loss, |m| count(m.n_active)),
        of(&row.bounded_loss, |m| whole(m.tokens_per_param)),
        of(&row.bounded_loss, |m| serving(m.serve_usd_per_million_output_tokens)),
        of(&row.bounded_loss, |m| factor(m.extrapolation)),
        of(&row.bounded_cost, |m| count(m.n_active)),
        of(&row.bounded_cost, |m| format!("{:.4}", m.loss_nats)),
        of(&row.bounded_cost, |m| factor(m.base_train_factor)),
        of(&row.bounded_cost, |m| factor(m.extrapolation)),
        or_none(row.train_factor_for_both, |f| format!("x{}", short(f))),
    ]
}

/// Why models are missing, each reason once.
fn reasons(rows: &[AtBudget]) -> String {
    let mut reasons: Vec<String> = rows
        .iter()
        .flat_map(|r| [&r.bounded_loss_missing, &r.bounded_cost_missing, &r.both_missing])
        .flatten()
        .map(|reason| format!(" {reason}."))
        .collect();
    reasons.dedup();
    reasons.concat()
}

/// The FLOPs-only answer beside the priced one.
pub(super) fn by_flops(report: &RankReport) -> Table {
    let best = best_candidates(report);
    let processed = report.over_training.processed_tokens;
    let models = &report.over_training.by_flops;
    let rows = models.iter().map(|m| {
        let priced = best.iter().find(|c| c.experts == m.experts);
        vec![
            experts(m.experts),
            count(m.n_active),
            whole(m.tokens_per_param),
            format!("{:.2e}", m.train_flops),
            format!("{:.2e}", m.total_flops),
            factor(m.extrapolation),
            or_none(priced, |c| count(c.n_active)),
            or_none(priced.and_then(|c| c.total_usd), |v| Usd(v).to_string()),
        ]
    });
    let least = models.iter().min_by(|a, b| a.total_flops.total_cmp(&b.total_flops));
    let cheapest = best.iter().filter(|c| c.total_usd.is_some()).min_by(|a, b| {
        a.total_usd.unwrap_or(f64::INFINITY).total_cmp(&b.total_usd.unwrap_or(f64::INFINITY))
    });
    let verdict = match (least, cheapest) {
        (Some(flops), Some(money)) if flops.experts != money.experts => format!(
            " FLOPs alone would choose {}, priced serving {}.",
            name(flops.experts),
            name(money.experts)
        ),
        (Some(flops), Some(_)) => format!(" Both choose {}.", name(flops.experts)),
        _ => String::new(),
    };
    Table {
        title: format!("By FLOPs alone, over {} processed", Tokens(processed)),
        columns: vec![
            Column::numbers("experts"),
            Column::numbers("active\nparams"),
            Column::numbers("tokens\n/param").left_out(4),
            Column::numbers("training\nFLOPs").left_out(5),
            Column::numbers("FLOPs\nin all"),
            Column::numbers("outside\nfit").left_out(3),
            Column::numbers("priced:\nactive").left_out(2),
            Column::numbers("priced:\ntotal cost"),
        ],
        rows: rows.collect(),
        strong: None,
        note: Some(format!(
            "Least 6 N D + 2 N D_processed at the target loss (Sardana et al. 2024), without the limits \
             on over-training; it ignores memory and bandwidth and so flatters many experts.{verdict}"
        )),
    }
}
