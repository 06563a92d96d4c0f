//! The tables of a ranking as text cells, shared by the terminal and the page so that both say the
//! same in the same words.

use crate::latency::Source;
use crate::law::downstream::Predicted;
use crate::plan::outcome::{Assumption, Candidate, Interval, RankReport};
use crate::plan::summary::name;
use crate::report::grid::Column;
use crate::units::{BytesPerSecond, FlopsPerSecond, Seconds, Usd, UsdPerMillionTokens, count};

/// What stands in a cell without a value.
pub(super) const NONE: &str = "-";

/// A table ready to be printed.
pub(super) struct Table {
    /// What it shows.
    pub(super) title: String,
    /// Its columns.
    pub(super) columns: Vec<Column>,
    /// Its cells.
    pub(super) rows: Vec<Vec<String>>,
    /// The row to bring out, if any.
    pub(super) strong: Option<usize>,
    /// What a reader needs to know to read it.
    pub(super) note: Option<String>,
}

/// The recommended candidate of each expert count.
pub(super) fn best(report: &RankReport) -> Table {
    let best = best_candidates(report);
    Table {
        title: format!(
            "Best of each expert count at equal loss ({:.4} nats per token{})",
            report.law.target_loss_nats,
            best.first()
                .and_then(|c| c.downstream)
                .map_or_else(String::new, |at| { format!("; downstream error {}", error(at)) })
        ),
        columns: vec![
            Column::numbers("experts"),
            Column::numbers("active\nparams"),
            Column::numbers("total\nparams").left_out(4),
            Column::numbers("train\ntokens").left_out(6),
            Column::numbers("tokens\n/param").left_out(2),
            Column::numbers("train\ncost"),
            Column::numbers("serve\n$/M out"),
            Column::numbers("util").left_out(7),
            Column::numbers("GPUs").left_out(5),
            Column::numbers("TPOT\nms").left_out(3),
            Column::numbers("P\n(best)"),
            Column::words("bound by").left_out(1),
        ],
        strong: strongest(&best),
        rows: best.iter().map(|c| best_row(c)).collect(),
        note: Some(format!(
            "Costs count {}. $/M out: all serving dollars on output tokens; util: mean output rate \
             over the highest rate that the service level allows; P(best): cheapest in total cost of \
             these models; P(none of them can be had): {:.2}.",
            report.basis.label(),
            report.p_none
        )),
    }
}

fn best_row(c: &Candidate) -> Vec<String> {
    vec![
        experts(c.experts),
        count(c.n_active),
        count(c.n_total),
        count(c.tokens),
        whole(c.tokens_per_param),
        Usd(c.train_usd).to_string(),
        or_none(c.serve_usd_per_million_output_tokens, serving),
        or_none(c.utilisation, percent),
        or_none(c.gpus, |n| n.to_string()),
        or_none(c.tpot_ms, short),
        or_none(c.p_best, |p| format!("{p:.2}")),
        c.binding.map_or_else(|| NONE.to_owned(), |b| b.label().to_owned()),
    ]
}

/// Total cost of the recommended candidates with their intervals, and what each rests on.
pub(super) fn totals(report: &RankReport) -> Table {
    let best = best_candidates(report);
    let row = |c: &&Candidate| {
        vec![
            experts(c.experts),
            or_none(c.total_usd, |v| Usd(v).to_string()),
            or_none(c.total_usd_interval, usd_interval),
            or_none(c.train_usd_interval, usd_interval),
            or_none(c.serve_usd_interval, |i| format!("{} to {}", serving(i.lo), serving(i.hi))),
            factor(c.extrapolation),
            or_none(c.latency_source, |s| s.label().to_owned()),
        ]
    };
    Table {
        title: format!(
            "Total cost over {} output tokens, with 95 % intervals",
            count(lifetime(report))
        ),
        columns: vec![
            Column::numbers("experts"),
            Column::numbers("total\ncost"),
            Column::numbers("total\n95 %"),
            Column::numbers("train\n95 %").left_out(4),
            Column::numbers("serve $/M out\n95 %").left_out(3),
            Column::numbers("outside\nfit").left_out(1),
            Column::words("latencies").left_out(2),
        ],
        strong: strongest(&best),
        rows: best.iter().map(row).collect(),
        note: Some(
            "outside fit: largest factor by which a variable lies outside the law's fitted range, \
             x1 is inside; latencies: the least trusted origin that matters."
                .into(),
        ),
    }
}

/// The loss-optimal models at the reference budget.
pub(super) fn references(report: &RankReport) -> Table {
    let has_errors = report.candidates.iter().any(|c| c.downstream.is_some());
    let rows = report.candidates.iter().filter(|c| !c.is_equal_loss()).map(|c| {
        let mut row = vec![
            experts(c.experts),
            count(c.n_active),
            count(c.n_total),
            count(c.tokens),
            whole(c.tokens_per_param),
            format!("{:.4}", c.loss_nats),
            Usd(c.train_usd).to_string(),
            or_none(c.serve_usd_per_million_output_tokens, serving),
            or_none(c.utilisation, percent),
            or_none(c.gpus, |n| n.to_string()),
            or_none(c.tpot_ms, short),
            factor(c.extrapolation),
        ];
        if has_errors {
            row.push(or_none(c.downstream, error));
        }
        row
    });
    let mut columns = vec![
        Column::numbers("experts"),
        Column::numbers("active\nparams"),
        Column::numbers("total\nparams").left_out(4),
        Column::numbers("train\ntokens").left_out(6),
        Column::numbers("tokens\n/param").left_out(2),
        Column::numbers("loss\nnats"),
        Column::numbers("train\ncost").left_out(7),
        Column::numbers("serve\n$/M out"),
        Column::numbers("util").left_out(8),
        Column::numbers("GPUs").left_out(5),
        Column::numbers("TPOT\nms").left_out(3),
        Column::numbers("outside\nfit").left_out(1),
    ];
    if has_errors {
        columns.push(Column::numbers("downstream\nerror"));
    }
    Table {
        title: "For reference: the lowest loss that the training budget reaches".into(),
        columns,
        rows: rows.collect(),
        strong: None,
        note: refusals(report),
    }
}

/// A downstream error with its interval.
fn error(at: Predicted) -> String {
    format!("{:.3} ({:.3} to {:.3})", at.error, at.lo, at.hi)
}

/// Why reference models without a serving cost have none.
fn refusals(report: &RankReport) -> Option<String> {
    let refused = report.candidates.iter().filter(|c| !c.is_equal_loss());
    let reasons: Vec<String> = refused
        .filter_map(|c| Some(format!("{}: {}", name(c.experts), c.infeasible.as_ref()?)))
        .collect();
    (!reasons.is_empty()).then(|| format!("Not served: {}.", reasons.join("; ")))
}

/// Learning rate and batch of the recommended candidates.
pub(super) fn hyperparameters(report: &RankReport) -> Table {
    let best = best_candidates(report);
    let row = |c: &&Candidate| {
        vec![
            experts(c.experts),
            count(c.n_active),
            count(c.tokens),
            or_none(c.learning_rate, |v| format!("{v:.2e}")),
            or_none(c.batch_tokens, count),
            or_none(c.hyperparameter_extrapolation, factor),
        ]
    };
    let missing = best.iter().filter_map(|c| {
        Some(format!("{}: {}", name(c.experts), c.hyperparameters_missing.as_ref()?))
    });
    let missing: Vec<String> = missing.collect();
    let advice = "Step Law (arXiv 2503.04715): advice for a first run, no part of the ranking. A \
                    learning rate carries over to other widths and expert counts under \
                    mu-parametrisation, not to other expert widths (arXiv 2508.09752).";
    let note = if missing.is_empty() {
        advice.to_owned()
    } else {
        format!("{advice} None given: {}.", missing.join("; "))
    };
    Table {
        title: "Learning rate and batch to start from".into(),
        columns: vec![
            Column::numbers("experts"),
            Column::numbers("active\nparams").left_out(2),
            Column::numbers("train\ntokens").left_out(1),
            Column::numbers("peak learning\nrate"),
            Column::numbers("batch\ntokens"),
            Column::numbers("outside\nits runs"),
        ],
        rows: best.iter().map(row).collect(),
        strong: None,
        note: Some(note),
    }
}

/// The Pareto set over training and serving cost.
pub(super) fn frontier(report: &RankReport) -> Table {
    let rows = report.frontier.iter().filter_map(|&i| report.candidates.get(i)).map(|c| {
        vec![
            experts(c.experts),
            count(c.n_active),
            count(c.n_total),
            count(c.tokens),
            whole(c.tokens_per_param),
            Usd(c.train_usd).to_string(),
            or_none(c.serve_usd_per_million_output_tokens, serving),
            or_none(c.binding, |b| b.label().to_owned()),
        ]
    });
    Table {
        title: "Pareto set: nothing else is cheaper both to train and to serve".into(),
        columns: vec![
            Column::numbers("experts"),
            Column::numbers("active\nparams"),
            Column::numbers("total\nparams").left_out(3),
            Column::numbers("train\ntokens").left_out(4),
            Column::numbers("tokens\n/param").left_out(2),
            Column::numbers("train\ncost"),
            Column::numbers("serve\n$/M out"),
            Column::words("bound by").left_out(1),
        ],
        rows: rows.collect(),
        strong: None,
        note: None,
    }
}

/// Where the cheapest expert count changes.
pub(super) fn crossovers(report: &RankReport) -> Table {
    let rows = report.crossovers.iter().map(|c| {
        vec![
            experts(c.from_experts),
            experts(c.to_experts),
            count(c.lifetime_tokens),
            c.interval.map_or_else(
                || "too few draws have both orders".to_owned(),
                |i| format!("{} to {}", count(i.lo), count(i.hi)),
            ),
        ]
    });
    Table {
        title: "Crossovers: the cheapest expert count as more tokens are served".into(),
        columns: vec![
            Column::numbers("below"),
            Column::numbers("above"),
            Column::numbers("served output tokens"),
            Column::words("95 % over draws with both orders"),
        ],
        rows: rows.collect(),
        strong: None,
        note: None,
    }
}

/// Which layer latencies the costs rest on.
pub(super) fn latencies(report: &RankReport) -> Table {
    let rows = report.layer_latency.iter().map(|curve| {
        let origins: Vec<String> = ORIGINS
            .iter()
            .map(|&origin| (origin, curve.points.iter().filter(|p| p.source == origin).count()))
            .filter(|&(_, n)| n > 0)
            .map(|(origin, n)| format!("{n} {}", origin.label()))
            .collect();
        let ends = match (curve.points.first(), curve.points.last()) {
            (Some(a), Some(b)) => format!(
                "{} at {}, {} at {}",
                Seconds::from_us(a.latency_us),
                whole(a.tokens),
                Seconds::from_us(b.latency_us),
                whole(b.tokens)
            ),
            _ => NONE.to_owned(),
        };
        vec![
            experts(curve.experts),
            format!("{} x {}", curve.hidden, curve.inter),
            if origins.is_empty() { NONE.to_owned() } else { origins.join(", ") },
            ends,
        ]
    });
    Table {
        title: "Layer latencies: where they come from".into(),
        columns: vec![
            Column::numbers("experts"),
            Column::numbers("hidden x inter"),
            Column::words("points of the curve"),
            Column::words("latency at tokens in the layer"),
        ],
        rows: rows.collect(),
        strong: None,
        note: None,
    }
}

const ORIGINS: [Source; 4] =
    [Source::Measured, Source::Interpolated, Source::Transferred, Source::Roofline];

/// Single assumptions moved through their range.
pub(super) fn sensitivity(report: &RankReport) -> Table {
    let rows = report.sensitivity.iter().map(|s| {
        let end = |value: &str, winner: Option<usize>, margin: Option<f64>| {
            let margin = margin.map_or_else(String::new, |m| format!(" ({m:.2})"));
            format!("{value}: {}{margin}", winner.map_or_else(|| "none".to_owned(), experts))
        };
        vec![
            s.assumption.clone(),
            end(&s.low, s.winner_at_low, s.margin_at_low),
            end(&s.high, s.winner_at_high, s.margin_at_high),
            if s.flips { "yes" } else { "no" }.to_owned(),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let note = "in brackets: runner-up over today's winner in total cost, below 1 it loses.";
    Table {
        title: "Sensitivity: one assumption moved, the cheapest expert count at each end".into(),
        columns: vec![
            Column::words("assumption"),
            Column::words("low"),
            Column::words("high"),
            Column::words("flips"),
        ],
        note: Some(note.into()),
        rows,
        strong: None,
    }
}

/// Every input, those left at their default marked.
pub(super) fn assumptions(report: &RankReport) -> Table {
    let row = |a: &Assumption| {
        let mark = if a.is_default { "*" } else { "" };
        vec![
            format!("{}{mark}", a.name),
            a.value.clone(),
            a.range.clone().unwrap_or_else(|| NONE.to_owned()),
            a.source.clone(),
        ]
    };
    Table {
        title: "Assumptions (* left at its default)".into(),
        columns: vec![
            Column::words("name"),
            Column::words("value"),
            Column::words("drawn over"),
            Column::words("source"),
        ],
        rows: report.assumptions.iter().map(row).collect(),
        strong: None,
        note: None,
    }
}

/// Where the answer comes from: names and values.
pub(super) fn provenance(report: &RankReport) -> Vec<(&'static str, String)> {
    let (profile, law) = (&report.profile, &report.law);
    let percent_of = |v: Option<f64>| v.map(|v| format!("{:.1} %", v * 100.0));
    let mut lines = vec![
        ("device", profile.device.clone()),
        (
            "profile",
            format!("{}, {} weights, engine {}", profile.origin, profile.dtype, profile.engine),
        ),
        (
            "ceilings",
            format!(
                "read {}, dense GEMM {}",
                BytesPerSecond(profile.read_bytes_per_s),
                FlopsPerSecond(profile.gemm_flops_per_s)
            ),
        ),
    ];
    lines.extend(
        profile
            .operations
            .iter()
            .map(|o| ("latencies", format!("{}: {}, {}", o.operation, o.source.label(), o.from))),
    );
    let optional = [
        ("measured at", profile.measured_utc.clone()),
        ("cells", profile.cells.map(|n| n.to_string())),
        ("noise floor", percent_of(profile.noise_floor_rel)),
        ("transfer error", percent_of(profile.transfer_error_rel).map(|p| format!("{p} (median)"))),
    ];
    lines.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    lines.push(("law", format!("{}: {}", law.id, law.source)));
    lines.push(("law draws", law.uncertainty.clone()));
    let from = law.target_from_experts.map_or_else(
        || "given".to_owned(),
        |e| format!("loss-optimal with {} at the budget", name(e)),
    );
    lines.push(("target loss", format!("{:.4} nats per token, {from}", law.target_loss_nats)));
    lines.push(("program", format!("moe-frontier {}", report.program_version)));
    lines
}

/// Recommended candidates, in the order of the report.
pub(super) fn best_candidates(report: &RankReport) -> Vec<&Candidate> {
    report.candidates.iter().filter(|c| c.best_of_experts).collect()
}

/// Output tokens over the model's life that the answer is for.
pub(super) fn lifetime(report: &RankReport) -> f64 {
    report.decision_map.traffic.here.1
}

fn strongest(best: &[&Candidate]) -> Option<usize> {
    let totals = best.iter().enumerate().filter_map(|(i, c)| Some((i, c.total_usd?)));
    totals.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
}

pub(super) fn or_none<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), text)
}

pub(super) fn experts(count: usize) -> String {
    if count == 1 { "dense".to_owned() } else { count.to_string() }
}

pub(super) fn serving(value: f64) -> String {
    UsdPerMillionTokens(value).to_string().trim_end_matches("/M").to_owned()
}

pub(super) fn usd_interval(i: Interval) -> String {
    format!("{} to {}", Usd(i.lo), Usd(i.hi))
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

pub(super) fn whole(value: f64) -> String {
    if value.abs() < 1e6 { format!("{value:.0}") } else { count(value) }
}

pub(super) fn factor(value: f64) -> String {
    match value.abs() {
        v if v < 9.95 => format!("x{value:.1}"),
        _ => format!("x{}", whole(value)),
    }
}

/// Three significant digits, with a suffix from ten thousand on.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e4 => count(value),
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.01 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}
