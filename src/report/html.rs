//! The page of a ranking: one self-contained HTML file without scripts or outside resources.

use std::fmt::Write;

use crate::plan::outcome::RankReport;
use crate::report::escape::escape;
#[cfg(feature = "native")]
use crate::report::live::Parts;
use crate::report::plot::Figure;
use crate::report::view::{self, Table};
use crate::report::{familial_view, laws_view, over_training_view};

/// Light and dark by the reader's setting; wide tables and figures scroll inside themselves on a phone.
#[cfg(feature = "native")]
const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#222;--soft:#666;--line:#ddd;--strong:#e8f4ea;--warn:#fff4d6}
@media(prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e4e4e4;--soft:#a0a0a0;--line:#3a3d42;--strong:#1d3a26;--warn:#40340f}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:66rem;background:var(--paper);color:var(--ink);font:1rem/1.5 system-ui,sans-serif}
h1{font-size:1.3rem;line-height:1.25;margin:.25rem 0}
h2{font-size:1.15rem;margin:2rem 0 .5rem}
p{margin:.5rem 0}
.first{font-size:1.1rem;font-weight:600}
.soft,figcaption{color:var(--soft);font-size:.875rem}
.warn{background:var(--warn);border-radius:.4rem;padding:.25rem 1rem}
.wide{overflow-x:auto}
.top{display:grid;gap:0 1.5rem}
.top>*{min-width:0}
@media(min-width:64rem){.top{grid-template-columns:1fr 1.4fr;align-items:start}.top figure{margin:.5rem 0}}
caption{text-align:left;font-size:1.15rem;font-weight:600;padding:1.5rem 0 .5rem}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:600;vertical-align:bottom}
.n{text-align:right}
.n,.s{white-space:nowrap}
.strong td{background:var(--strong);font-weight:600}
figure{margin:1.5rem 0}
figure svg{display:block;width:100%;min-width:40rem;height:auto;background:#fff;border-radius:.4rem}
@media(min-width:64rem){.top figure svg{min-width:0}}
@media print{
:root{--paper:#fff;--ink:#222;--soft:#555;--line:#bbb;--strong:#e8f4ea;--warn:#fff4d6}
body{max-width:none;padding:0;font-size:.8rem}
#panel{display:none!important}
.top{display:block}
.wide{overflow:visible}
table{width:100%;font-size:.62rem}
th,td{padding:.15rem .25rem;overflow-wrap:anywhere}
.n,.s{white-space:normal}
figure{break-inside:avoid}
figure svg{min-width:0}
}
form fieldset{display:flex;flex-wrap:wrap;gap:.5rem 1rem;border:1px solid var(--line);border-radius:.4rem;margin:.5rem 0;padding:.5rem 1rem}
form label{display:flex;flex-direction:column;flex:1 1 12rem;font-size:.875rem}
form input{font:inherit;width:100%;background:var(--paper);color:var(--ink);border:1px solid var(--soft);border-radius:.3rem;padding:.2rem .4rem}
form input[type=range]{padding:0;border:0}
form input[data-changed]{border-color:#0072b2;box-shadow:0 0 0 1px #0072b2}
form button{font:inherit;font-size:.875rem;padding:.25rem .75rem}
form code{overflow-wrap:anywhere}
form[aria-busy] #status{color:var(--soft)}
#panel summary{margin:.25rem 0}
summary{cursor:pointer;font-size:1.15rem;font-weight:600;margin:2rem 0 .5rem}
";

/// A text of at most this many characters is kept on one line.
const SHORT: usize = 24;

/// The whole page.
#[cfg(feature = "native")]
pub(super) fn page(report: &RankReport, figures: &[Figure], live: Option<&Parts>) -> String {
    let mut html = String::new();
    let title = "Which mixture-of-experts model to train, and what it costs to serve";
    html.push_str("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    // The page is text, styles and inline drawings: whatever a name in it says, nothing is loaded or run.
    let scripts = live.map_or_else(String::new, |l| format!("; {}", l.policy));
    push(
        &mut html,
        format_args!(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src \
             'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'{scripts}\">\n"
        ),
    );
    html.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n");
    push(&mut html, format_args!("<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n"));
    push(&mut html, format_args!("<body>\n<main>\n<h1>{title}</h1>\n"));
    html.push_str(live.map_or("", |l| &l.controls));
    html.push_str("<div id=\"answer\">\n");
    html.push_str(&answer(report, figures));
    html.push_str("</div>\n</main>\n");
    html.push_str(live.map_or("", |l| &l.script));
    html.push_str("</body>\n</html>\n");
    html
}

/// What the page says of a ranking.
pub(super) fn answer(report: &RankReport, figures: &[Figure]) -> String {
    let mut html = String::new();
    let basis = format!(
        "{} on {}; candidates under loss law {}",
        report.profile.origin, report.profile.device, report.law.id
    );
    push(&mut html, format_args!("<p class=\"soft\">{}</p>\n", escape(&basis)));
    // The answer and the frontier stand side by side where there is room.
    html.push_str("<div class=\"top\">\n<div>\n");
    for (index, line) in report.summary.iter().enumerate() {
        let class = if index == 0 { " class=\"first\"" } else { "" };
        push(&mut html, format_args!("<p{class}>{}</p>\n", escape(line)));
    }
    html.push_str("</div>\n");
    let (first, others) = figures.split_at(figures.len().min(1));
    for figure in first {
        drawn(&mut html, figure);
    }
    html.push_str("</div>\n");
    warnings(&mut html, report);
    table(&mut html, &laws_view::by_law(report));
    table(&mut html, &laws_view::mixture(report));
    table(&mut html, &view::best(report));
    table(&mut html, &view::totals(report));
    for figure in others {
        drawn(&mut html, figure);
    }
    for further in [
        view::crossovers(report),
        view::frontier(report),
        view::references(report),
        over_training_view::at_equal_loss(report),
        over_training_view::at_budget(report),
        over_training_view::by_flops(report),
        familial_view::sizes(report),
        view::hyperparameters(report),
        view::sensitivity(report),
        view::latencies(report),
    ] {
        table(&mut html, &further);
    }
    folded(&mut html, &view::assumptions(report));
    provenance(&mut html, report);
    html
}

fn push(html: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = html.write_fmt(text);
}

fn warnings(html: &mut String, report: &RankReport) {
    if report.warnings.is_empty() {
        return;
    }
    html.push_str("<div class=\"warn\">\n<p><strong>Before acting on this</strong></p>\n<ul>\n");
    for line in &report.warnings {
        push(html, format_args!("<li>{}</li>\n", escape(line)));
    }
    html.push_str("</ul>\n</div>\n");
}

fn table(html: &mut String, table: &Table) {
    if !table.rows.is_empty() {
        body(html, table, true);
    }
}

/// A long table that is opened on demand.
fn folded(html: &mut String, table: &Table) {
    if !table.rows.is_empty() {
        push(html, format_args!("<details open>\n<summary>{}</summary>\n", escape(&table.title)));
        body(html, table, false);
        html.push_str("</details>\n");
    }
}

fn body(html: &mut String, table: &Table, has_caption: bool) {
    let title = escape(&table.title);
    // What scrolls can be reached with the keyboard, and says what it is.
    push(
        html,
        format_args!(
            "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"{title}\">\n<table>\n"
        ),
    );
    if has_caption {
        push(html, format_args!("<caption>{title}</caption>\n"));
    }
    html.push_str("<thead><tr>");
    for column in &table.columns {
        let name = escape_lines(column.title());
        let class = if column.is_numeric() { " class=\"n\"" } else { "" };
        push(html, format_args!("<th scope=\"col\"{class}>{name}</th>"));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for (index, row) in table.rows.iter().enumerate() {
        let strong = if table.strong == Some(index) { " class=\"strong\"" } else { "" };
        push(html, format_args!("<tr{strong}>"));
        for (text, column) in row.iter().zip(&table.columns) {
            let class = if column.is_numeric() {
                " class=\"n\""
            } else if text.chars().count() <= SHORT {
                " class=\"s\""
            } else {
                ""
            };
            push(html, format_args!("<td{class}>{}</td>", escape(text)));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n</div>\n");
    if let Some(note) = &table.note {
        push(html, format_args!("<p class=\"soft\">{}</p>\n", escape(note)));
    }
}

/// A heading with its own line breaks.
fn escape_lines(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("<br>")
}

fn drawn(html: &mut String, figure: &Figure) {
    let caption = escape(figure.caption);
    let labelled = format!("<svg role=\"img\" aria-label=\"{caption}\" ");
    let svg = figure.svg.replacen("<svg ", &labelled, 1);
    push(
        html,
        format_args!(
            "<figure id=\"{}\">\n<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\">{}</div>\n<figcaption>{caption}</figcaption>\n</figure>\n",
            figure.name,
            svg.trim_end()
        ),
    );
}

fn provenance(html: &mut String, report: &RankReport) {
    let title = "What it rests on";
    push(
        html,
        format_args!(
            "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"{title}\">\n<table>\n<caption>{title}</caption>\n<tbody>\n"
        ),
    );
    for (name, value) in view::provenance(report) {
        push(
            html,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n",
                escape(name),
                escape(&value)
            ),
        );
    }
    html.push_str("</tbody>\n</table>\n</div>\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::sample;

    /// Every element that is opened is closed in order; enough to catch a text that leaks markup.
    fn nesting(html: &str) -> Result<(), String> {
        let mut open: Vec<&str> = Vec::new();
        for part in html.split('<').skip(1) {
            let tag = part.split('>').next().unwrap_or("");
            let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap_or("");
            if tag.starts_with('!') || tag.ends_with('/') || ["meta", "br"].contains(&name) {
                continue;
            }
            if tag.starts_with('/') {
                let last = open.pop();
                if last != Some(name) {
                    return Err(format!("</{name}> closes {last:?}"));
                }
            } else {
                open.push(name);
            }
        }
        if open.is_empty() { Ok(()) } else { Err(format!("left open: {open:?}")) }
    }

    fn figure() -> Figure {
        Figure {
            name: "cost_frontier",
            caption: "Training & serving.",
            svg: "<svg width=\"1\" height=\"1\" xmlns=\"http://www.w3.org/2000/svg\">\n</svg>\n"
                .into(),
            png: vec![],
        }
    }

    #[test]
    fn the_page_stands_alone_and_says_everything() {
        let html = page(&sample::report(), &[figure()], None);
        nesting(&html).unwrap();
        for word in [
            "4 experts",
            "$0.35",
            "--mfu*",
            "2026-01-02",
            "far outside",
            "P(best)",
            "flips",
            "train<br>cost",
        ] {
            assert!(html.contains(word), "{word}");
        }
        assert!(html.contains("made-up &lt;device&gt; &amp; co"));
        for outside in ["<script", "<link", "src=", "href=", "url(", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(html.contains("aria-label=\"Training &amp; serving.\""));
    }

    #[test]
    fn an_empty_report_is_a_whole_page() {
        nesting(&page(&sample::empty(), &[], None)).unwrap();
    }

    proptest! {
        #[test]
        fn no_text_of_a_report_becomes_markup(report in sample::arbitrary()) {
            prop_assert_eq!(nesting(&page(&report, &[figure()], None)), Ok(()));
        }
    }
}
