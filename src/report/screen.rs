//! The first screen of a ranking, 24 lines of 80 columns: what was asked, the answer, one table, the
//! frontier, what would change the answer, where the rest is.

use unicode_width::UnicodeWidthStr;

use crate::latency::Source;
use crate::plan::headline::{flips, headline};
use crate::plan::outcome::{Candidate, Choice, Interval, RankReport};
use crate::plan::summary::name;
use crate::report::grid::{Column, hanging};
use crate::report::table::{Page, plain};
use crate::report::terminal_plot::{TerminalPlot, frontier};
use crate::report::view::{NONE, Table, experts, factor, lifetime, or_none, serving};
use crate::units::{Flops, Tokens, Usd, count};

/// Lines of the whole screen where its plot can give way.
const LINES: usize = 24;
/// Fewest, wanted and most lines of the plotting area; with less room there is no plot.
const PLOT: (usize, usize, usize) = (3, 5, 9);
/// Expert counts in the table; of more, those most likely to be the cheapest.
const ROWS: usize = 6;
/// Expert counts that are named one by one.
const MOST_COUNTS: usize = 6;
/// Lines of what would change the answer and of what needs care: as many as the plot leaves.
const LIMITS: [(usize, usize); 3] = [(2, 2), (2, 1), (1, 1)];

/// What surrounds a report on the screen.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Terminal columns.
    pub width: usize,
    /// Whether headings and the cheapest row are brought out.
    pub colour: bool,
    /// How the frontier is drawn.
    pub plot: TerminalPlot,
    /// The model whose size varies and what was assumed in reading it, as lines.
    pub model: &'a str,
    /// Where the page and the other files are.
    pub written: &'a str,
    /// What to try next.
    pub next: &'a str,
    /// The same question elsewhere, if it was asked.
    pub beside: Option<&'a str>,
}

/// The first screen.
pub fn rank_screen(report: &RankReport, frame: &Frame<'_>) -> String {
    let width = frame.width;
    let mut head = Page::new(width, frame.colour);
    head.raw(frame.model);
    head.paragraph("Asked   ", &question(report));
    head.strong_paragraph("Answer  ", &headline(report).unwrap_or_else(|| "none".into()));
    head.body(&table(report));
    let mut foot = foot(report, frame, LIMITS[0]);
    let room = |foot: &Page| LINES.saturating_sub(head.lines() + foot.lines() + 2);
    for &limits in &LIMITS[1..] {
        if room(&foot) < PLOT.1 && frame.plot != TerminalPlot::None {
            foot = self::foot(report, frame, limits);
        }
    }
    let height = if room(&foot) < PLOT.0 { 0 } else { room(&foot).min(PLOT.2) };
    for line in frontier(report, frame.plot, width, height) {
        head.line(&line);
    }
    head.into_text() + &foot.into_text()
}

/// What stands below the plot, what flips and what needs care in at most so many lines.
fn foot(report: &RankReport, frame: &Frame<'_>, (flips, care): (usize, usize)) -> Page {
    let width = frame.width;
    let mut foot = Page::new(width, frame.colour);
    if let Some(text) = would_flip(report) {
        foot.raw(&first_lines(&hanging("Flips   ", &plain(&text), width), flips, width));
    }
    if let Some(beside) = frame.beside {
        foot.paragraph("Beside  ", beside);
    }
    if let Some(text) = self::care(report) {
        foot.warning_lines(&first_lines(&hanging("Care    ", &plain(&text), width), care, width));
    }
    foot.paragraph("Page    ", frame.written);
    foot.paragraph("Next    ", frame.next);
    foot
}

/// Whole lines of a text up to a number, ending in dots where more was cut: at an item, or else a word.
fn first_lines(text: &str, most: usize, width: usize) -> String {
    const DOTS: &str = "; ...";
    if text.lines().count() <= most {
        return text.to_owned();
    }
    let mut kept: Vec<&str> = text.lines().take(most).collect();
    let last = kept.pop().unwrap_or_default();
    let mut cut = last.rfind("; ").map_or(last, |at| &last[..at]);
    while cut.width() + DOTS.len() > width {
        cut = cut.rfind(' ').map_or("", |at| cut[..at].trim_end());
    }
    let lines = kept.into_iter().map(|line| format!("{line}\n"));
    lines.chain([format!("{cut}{DOTS}\n")]).collect()
}

/// What is compared, at which loss and traffic.
fn question(report: &RankReport) -> String {
    let mut counts: Vec<usize> = report.candidates.iter().map(|c| c.experts).collect();
    counts.sort_unstable();
    counts.dedup();
    let given = |flag: &str| report.assumptions.iter().find(|a| a.name == flag);
    let target = if report.law.target_from_experts.is_some() {
        format!("the loss of a {} budget", Flops(report.over_training.budget_flops))
    } else {
        format!("{:.4} nats per token", report.law.target_loss_nats)
    };
    let rate = given("--rate").filter(|a| !a.is_default).map(|a| format!(" at {}", a.value));
    let tpot =
        given("--tpot").map(|a| format!(", TPOT up to {}", a.value.replace(" on the mean", "")));
    let named: Vec<String> = counts.iter().map(|&e| experts(e)).collect();
    let compared = match named.as_slice() {
        [first, .., last] if named.len() > MOST_COUNTS => {
            format!("{} counts from {first} to {last}", named.len())
        }
        all => all.join(", "),
    };
    format!(
        "{compared} experts at {target}; {} served on {}{}{}",
        Tokens(lifetime(report)).to_string().replace(" tokens", " output tokens"),
        report.profile.device,
        rate.unwrap_or_else(|| " at scale".into()),
        tpot.unwrap_or_default(),
    )
}

/// One row per expert count: over all laws where they were mixed, under the only one else.
fn table(report: &RankReport) -> Table {
    let choices = report.mixture.as_ref().map(|m| m.choices.as_slice()).unwrap_or_default();
    let mut rows: Vec<(usize, f64, Vec<String>)> = if choices.is_empty() {
        let best = report.candidates.iter().filter(|c| c.best_of_experts);
        best.map(|c| (c.experts, c.p_best.unwrap_or(0.0), candidate_row(c))).collect()
    } else {
        choices.iter().map(|c| (c.experts, c.p_best, choice_row(c))).collect()
    };
    let all = rows.len();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let winner = rows.first().map(|r| r.0);
    rows.truncate(ROWS);
    rows.sort_by_key(|r| r.0);
    Table {
        title: String::new(),
        columns: vec![
            Column::numbers("experts"),
            Column::numbers("active").left_out(2),
            Column::numbers("params").left_out(4),
            Column::numbers("train").left_out(3),
            Column::numbers("serve/M"),
            Column::numbers("total"),
            Column::numbers("95 %").left_out(1),
            Column::numbers("P(best)"),
            Column::numbers("regret").left_out(5),
        ],
        strong: rows.iter().position(|r| Some(r.0) == winner),
        note: (all > rows.len())
            .then(|| format!("{} less likely counts: --details", all - rows.len())),
        rows: rows.into_iter().map(|r| r.2).collect(),
    }
}

fn choice_row(c: &Choice) -> Vec<String> {
    let costs = c.costs;
    vec![
        experts(c.experts),
        count(c.n_active),
        or_none(costs, |c| count(c.n_total)),
        or_none(costs, |c| Usd(c.train_usd).to_string()),
        or_none(costs, |c| serving(c.serve_usd_per_million_output_tokens)),
        or_none(costs, |c| Usd(c.total_usd).to_string()),
        or_none(costs.and_then(|c| c.total_usd_interval), short_interval),
        format!("{:.2}", c.p_best),
        or_none(c.expected_regret_usd, |v| Usd(v).to_string()),
    ]
}

fn candidate_row(c: &Candidate) -> Vec<String> {
    vec![
        experts(c.experts),
        count(c.n_active),
        count(c.n_total),
        Usd(c.train_usd).to_string(),
        or_none(c.serve_usd_per_million_output_tokens, serving),
        or_none(c.total_usd, |v| Usd(v).to_string()),
        or_none(c.total_usd_interval, short_interval),
        or_none(c.p_best, |p| format!("{p:.2}")),
        NONE.to_owned(),
    ]
}

fn short_interval(i: Interval) -> String {
    format!("{}..{}", Usd(i.lo), Usd(i.hi))
}

/// What would make another expert count the cheapest, the clearest first.
fn would_flip(report: &RankReport) -> Option<String> {
    let under = report.laws.first().filter(|_| report.laws.len() > 1);
    let mut items: Vec<String> = Vec::new();
    let answer = under.and_then(|law| law.winner);
    for law in report.laws.iter().filter(|l| l.winner.is_some() && l.winner != answer) {
        items.push(format!("{} under {}", law.winner.map_or_else(String::new, name), law.law));
    }
    // A law's own answer leads: what moves it is said after what other laws say.
    let moved = flips(report).into_iter().map(|(s, is_low, winner)| {
        let end = if is_low { &s.low } else { &s.high };
        format!("{} with {} at {end}", name(winner), s.assumption)
    });
    let at = items.len().min(1);
    items.splice(at..at, moved.take(2));
    let here = lifetime(report);
    let mut crossings: Vec<_> = report.crossovers.iter().collect();
    crossings.sort_by(|a, b| {
        let far = |tokens: f64| (tokens / here).ln().abs();
        far(a.lifetime_tokens).total_cmp(&far(b.lifetime_tokens))
    });
    items.extend(crossings.first().map(|c| {
        let (word, winner) = if c.lifetime_tokens > here {
            ("from", c.to_experts)
        } else {
            ("below", c.from_experts)
        };
        format!("{} {word} {} served", name(winner), count(c.lifetime_tokens))
    }));
    (!items.is_empty()).then(|| items.join("; "))
}

/// How far outside its runs the answer lies, what its latencies are, and how many warnings there are.
fn care(report: &RankReport) -> Option<String> {
    let best = || report.candidates.iter().filter(|c| c.best_of_experts);
    let mut items = Vec::new();
    let far = best().max_by(|a, b| a.extrapolation.total_cmp(&b.extrapolation));
    if let Some(c) = far.filter(|c| c.extrapolation > 1.0) {
        let times = factor(c.extrapolation);
        items.push(format!("up to {times} outside the law's runs ({})", name(c.experts)));
    }
    if best().any(|c| c.latency_source == Some(Source::Roofline)) {
        items.push("latencies are rooflines".into());
    }
    if !report.warnings.is_empty() {
        items.push(format!("{} warning(s) in --details", report.warnings.len()));
    }
    (!items.is_empty()).then(|| items.join("; "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::sample;

    fn frame(width: usize) -> Frame<'static> {
        Frame {
            width,
            colour: false,
            plot: TerminalPlot::Ascii,
            model: "",
            written: "out/report.html and 17 more files",
            next: "rank --details",
            beside: None,
        }
    }

    #[test]
    fn the_first_screen_reads_well() {
        insta::assert_snapshot!(rank_screen(&sample::report(), &frame(80)));
    }

    #[test]
    fn it_fits_eighty_by_twenty_four_with_everything_on_it() {
        let mut report = sample::report();
        let choice = report.mixture.as_ref().unwrap().choices[0];
        let choices = (0..9).map(|i| Choice { experts: 1 << i, ..choice }).collect();
        report.mixture.as_mut().unwrap().choices = choices;
        report.warnings = vec!["a warning of some length about one of the laws".into(); 9];
        let beside =
            "On H100 SXM at 1e23 FLOP: no clear winner (P(best): 8 experts 0.4, 4 experts 0.3)";
        let text = rank_screen(&report, &Frame { beside: Some(beside), ..frame(80) });
        assert!(text.lines().count() <= LINES, "{}:\n{text}", text.lines().count());
        assert!(text.contains("3 less likely counts"), "{text}");
        let none = rank_screen(&report, &Frame { plot: TerminalPlot::None, ..frame(80) });
        assert!(none.lines().count() + PLOT.0 + 2 <= LINES, "{none}");
    }

    #[test]
    fn narrow_screens_leave_columns_out_in_their_order() {
        let report = sample::report();
        let narrow = rank_screen(&report, &frame(60));
        assert!(narrow.contains("without: "), "{narrow}");
        let head = |text: &str| {
            text.lines()
                .find(|l| l.contains("P(best)  ") || l.contains(" P(best)"))
                .map(str::to_owned)
        };
        assert!(head(&narrow).is_some_and(|l| l.contains("total")), "{narrow}");
        assert!(!rank_screen(&report, &frame(100)).contains("without"));
    }

    #[test]
    fn an_empty_report_and_control_characters_are_printed_calmly() {
        let mut report = sample::empty();
        report.profile.device = "a\x1b[2Jb\n\tc".into();
        let text = rank_screen(&report, &frame(80));
        assert!(!text.contains('\x1b'), "{text}");
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_it_may_be(report in sample::arbitrary(), width in 40_usize..160) {
            for line in rank_screen(&report, &frame(width)).lines() {
                prop_assert!(line.width() <= width, "{line}");
            }
        }
    }
}
