//! The accuracy page: predictions against every measured point, as Markdown. Files out, no new numbers.

use std::fmt::Write;

use serde::Serialize;

use crate::calibrate::Group;
use crate::calibrate::judge::{self, Held, Judged};
use crate::latency::tables::errors::ErrorRow;
use crate::plan::accuracy::{
    Decomposition, Errors, Residuals, SPECULATES, Scored, Summary, looks_speculative, tpot_error,
    ttft_error,
};
use crate::units::Seconds;

/// Rows shown among the worst.
const WORST: usize = 10;

/// One way of predicting the same rows.
pub struct Way<'a> {
    /// Heading.
    pub name: &'a str,
    /// What it used, as one sentence.
    pub how: &'a str,
    /// Rows with their predictions.
    pub rows: Vec<Scored<'a>>,
    /// Errors of them.
    pub summary: Summary,
}

/// Errors of answers from kernel tables against measured cells.
pub struct TableErrors<'a> {
    /// Heading.
    pub name: &'a str,
    /// What was predicted from what, as one sentence.
    pub how: String,
    /// By table, engine and format; the first of each table is all of it.
    pub rows: Vec<ErrorRow>,
}

/// Share of held-out rows within their 95 % intervals, whose widths come from other groups.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Coverage {
    /// What the predictions knew.
    pub of: &'static str,
    /// Rows.
    pub rows: usize,
    /// By time per output token.
    pub tpot: Held,
    /// By time to first token.
    pub ttft: Held,
}

impl Coverage {
    /// Of rows that were held out.
    pub fn of(of: &'static str, rows: &[Judged], group: &dyn Fn(usize) -> Option<Group>) -> Self {
        let (tpot, ttft) = judge::coverage(rows, group);
        Self { of, rows: rows.len(), tpot, ttft }
    }
}

/// What the page shows.
pub struct Page<'a> {
    /// Name of the file of points.
    pub points: &'a str,
    /// Where kernel times come from.
    pub latencies: &'a str,
    /// Ways of predicting the same rows.
    pub ways: &'a [Way<'a>],
    /// Error of the serving model by group, zero-shot.
    pub residuals: Option<Residuals>,
    /// Where the zero-shot error comes from.
    pub decomposition: &'a Decomposition,
    /// Shares of held-out rows within their intervals.
    pub coverage: &'a [Coverage],
    /// Errors of the kernel tables themselves.
    pub tables: &'a [TableErrors<'a>],
    /// Rows that count nowhere, by reason.
    pub not_counted: &'a [(String, usize)],
}

/// The page as Markdown.
pub fn page(page: &Page) -> String {
    let mut text = String::from("# Accuracy of the serving model\n\n");
    let _ = writeln!(
        text,
        "Every row of {}, predicted and compared. Errors are of the time per output token (TPOT) and \
of the time to first token (TTFT), relative to the measured value. Rows with a quality flag and \
overloaded rows (less than 90% of the offered rate completed) do not count; they are listed below by \
reason.\n\nKernel times come from {}.\n",
        page.points, page.latencies
    );
    for way in page.ways {
        let _ = writeln!(text, "## {}\n\n{}\n", way.name, way.how);
        table(&mut text, &way.summary);
        worst(&mut text, &way.rows);
    }
    if let Some(r) = page.residuals {
        let _ = writeln!(
            text,
            "## What draws use\n\nRobust standard deviations of ln(predicted / measured TPOT), zero-shot: \
{:.3} between {} groups of one model, device, engine and source, {:.3} within them. `rank` draws the first \
once for all candidates and the second for each expert count.\n",
            r.between_groups, r.groups, r.within_groups
        );
    }
    remains(&mut text, page);
    intervals(&mut text, page.coverage);
    limits(&mut text, page.ways);
    for errors in page.tables {
        kernel_tables(&mut text, errors);
    }
    text.push_str("## Rows that do not count\n\n| rows | reason |\n|---|---|\n");
    for (reason, rows) in page.not_counted {
        let _ = writeln!(text, "| {rows} | {} |", cell(reason));
    }
    text
}

fn kernel_tables(text: &mut String, errors: &TableErrors) {
    let _ = writeln!(text, "## {}\n\n{}\n", errors.name, errors.how);
    text.push_str(
        "| table | engine | format | cells | no answer | mean | median | p90 | within 10% | bias |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let percent = |v: f64| format!("{:.1}%", 100.0 * v);
    for r in &errors.rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            r.table,
            r.engine,
            r.format,
            r.cells,
            r.unanswered,
            percent(r.mean),
            percent(r.median),
            percent(r.p90),
            percent(r.within_10_percent),
            percent(r.bias)
        );
    }
    text.push('\n');
}

fn table(text: &mut String, summary: &Summary) {
    text.push_str(
        "| group | rows | used | with TPOT | TPOT MAPE | median | p90 | bias | TTFT median | tokens/s median |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    line(text, "**all**", &summary.all);
    line(text, "overloaded (not in all)", &summary.overloaded);
    let parts = summary.by_mode.iter().chain(&summary.by_precision).chain(&summary.by_gpu);
    for (name, errors) in parts.chain(&summary.by_engine).chain(&summary.by_group) {
        line(text, name, errors);
    }
    text.push('\n');
}

fn line(text: &mut String, name: &str, e: &Errors) {
    let percent = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.1} %", v * 100.0));
    let _ = writeln!(
        text,
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        cell(name),
        e.n,
        e.n_predicted,
        e.n_tpot,
        percent(e.tpot_mape),
        percent(e.tpot_median_ape),
        percent(e.tpot_p90_ape),
        percent(e.tpot_bias),
        percent(e.ttft_median_ape),
        percent(e.output_rate_median_ape)
    );
}

fn worst(text: &mut String, rows: &[Scored]) {
    let mut errors: Vec<(f64, &Scored)> =
        rows.iter().filter_map(|r| tpot_error(r).map(|e| (e, r))).collect();
    errors.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
    text.push_str(
        "The ten worst by TPOT:\n\n| row | group | measured TPOT, ms | predicted | error | TTFT error |\n|---|---|---|---|---|---|\n",
    );
    for (error, row) in errors.into_iter().take(WORST) {
        let (point, prediction) = row;
        let measured = point.measured.tpot.map_or(0.0, Seconds::as_ms);
        let predicted = prediction.map_or(0.0, |p| p.served.tpot.as_ms());
        let ttft = ttft_error(row).map_or("-".to_owned(), |e| format!("{:+.0} %", e * 100.0));
        let _ = writeln!(
            text,
            "| {} | {} / {} / {} | {measured:.2} | {predicted:.2} | {:+.0} % | {ttft} |",
            cell(&point.id),
            cell(&point.model),
            cell(&point.gpu),
            cell(&point.engine),
            error * 100.0
        );
    }
    text.push('\n');
}

/// Which groups carry the zero-shot error, and how much of it is one factor per group.
fn remains(text: &mut String, page: &Page) {
    let d = page.decomposition;
    let _ = writeln!(
        text,
        "## What remains\n\nOf the summed squares of ln(predicted / measured TPOT), zero-shot and over \
rows with stated workers, {:.0} % is one factor for each group of one model, device, engine version and \
source (a few own runs take it away) and {:.0} % varies within groups. The groups with the largest \
shares:\n\n| group | rows | mean | spread within | share | rows that look like speculation |\n|---|---|---|---|---|---|",
        d.between * 100.0,
        (1.0 - d.between) * 100.0
    );
    for g in d.groups.iter().take(REMAINING) {
        let _ = writeln!(
            text,
            "| {} | {} | {:+.2} | {:.2} | {:.0} % | {} |",
            cell(&g.name),
            g.rows,
            g.mean,
            g.sd,
            g.share * 100.0,
            if g.speculative_rows > 0 { g.speculative_rows.to_string() } else { String::new() }
        );
    }
    let Some(way) = page.ways.first() else { return };
    let flags = looks_speculative(&way.rows);
    let _ = writeln!(
        text,
        "\n{} rows look like speculation (the median of the half of a layout's rows with the smaller loads \
is at least {SPECULATES} times as fast as predicted); they count in every figure of this page.",
        flags.iter().filter(|f| **f).count()
    );
    text.push('\n');
}

/// Groups listed with what they add to the error.
const REMAINING: usize = 15;

fn intervals(text: &mut String, coverage: &[Coverage]) {
    text.push_str(
        "## Intervals\n\nShares of held-out rows within their 95 % intervals. The width for a group \
comes from the errors of the other groups alone. Rows are judged at the batch that their own times \
imply. By groups: the mean over groups of the share of each one's rows, and how many groups have nine \
rows in ten within.\n\n| predicted from | rows | figure | of rows | by groups | groups with 9 of 10 \
|\n|---|---|---|---|---|---|\n",
    );
    for c in coverage {
        for (figure, held) in [("TPOT", &c.tpot), ("TTFT", &c.ttft)] {
            let _ = writeln!(
                text,
                "| {} | {} | {figure} | {:.1} % | {:.1} % | {} of {} |",
                c.of,
                c.rows,
                held.rows * 100.0,
                held.groups * 100.0,
                held.whole_groups,
                held.of_groups
            );
        }
    }
    text.push('\n');
}

/// What the page does not show, and which rows carry most of the error.
fn limits(text: &mut String, ways: &[Way]) {
    text.push_str("## Limits\n\n");
    for way in ways {
        let mut groups: Vec<_> = way
            .summary
            .by_group
            .iter()
            .filter_map(|(name, e)| e.tpot_mape.map(|mape| (mape * e.n_tpot as f64, name, e)))
            .collect();
        groups.sort_by(|a, b| {
            let each = |g: &(f64, &String, &Errors)| g.0 / g.2.n_tpot as f64;
            each(b).total_cmp(&each(a))
        });
        let sum: f64 = groups.iter().map(|g| g.0).sum();
        let rows: usize = groups.iter().map(|g| g.2.n_tpot).sum();
        let (first, first_rows) =
            groups.iter().take(HEAVIEST).fold((0.0, 0), |at, g| (at.0 + g.0, at.1 + g.2.n_tpot));
        if sum > 0.0 {
            let names: Vec<String> = groups.iter().take(HEAVIEST).map(|g| cell(g.1)).collect();
            let _ = writeln!(
                text,
                "- {}: {:.0} % of the summed TPOT error are in {first_rows} of {rows} rows: {}.",
                way.name,
                first / sum * 100.0,
                names.join("; ")
            );
        }
    }
    text.push_str(LIMITS);
}

/// Groups named as those with the largest errors.
const HEAVIEST: usize = 4;
const LIMITS: &str = "\
- An SGLang server that launches each kernel from the host spends 10-40 ms on a step whatever the \
load: no kernel table shows it, and the published rows do not say whether graphs were on. A few own runs \
tell (`decode_launch_us`).
- Rows do not say whether the server speculated. A group that is 1.5 to 2 times faster than the same \
shape elsewhere probably did (TensorRT-LLM 1.2.0rc6.post3 on B200); it is predicted without.
- Disaggregated rows without numbers of workers are predicted with one worker in each pool, enter no \
fit, and are listed by mode; their servers had more, so that the errors are not the model's alone.
- The device of rows named `h100_80gb` is not stated by their source; its price suggests an H100 NVL \
and it is predicted as one.
- Kernels of linear attention, of sparse-attention indexers and of norms over all heads are in no \
table. Fixed times per layer and prompt token stand for them; they are known from the rows of Qwen3.5, \
GLM-5 and MiniMax-M2.5 alone, so that leaving those groups out does not leave out these times.

";

/// Text that cannot break a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::accuracy::decompose;
    use crate::plan::accuracy::summarise;

    #[test]
    fn a_page_of_nothing_is_still_a_page_and_cells_cannot_break_it() {
        let way =
            Way { name: "Zero-shot", how: "Defaults.", rows: Vec::new(), summary: summarise(&[]) };
        let page = page(&Page {
            points: "p.csv",
            latencies: "moe.mft",
            ways: &[way],
            residuals: None,
            decomposition: &decompose(&[]),
            coverage: &[],
            tables: &[],
            not_counted: &[("a|b\nc".into(), 2)],
        });
        assert!(page.contains("come from moe.mft."), "{page}");
        assert!(page.contains("| **all** | 0 | 0 | 0 | - |"), "{page}");
        assert!(page.contains("| 2 | a\\|b c |"), "{page}");
    }
}
