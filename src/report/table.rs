//! A ranking as text for a terminal: never wider than 100 columns, colour only if the caller wants it.

use comfy_table::{Cell, CellAlignment, ContentArrangement, TableComponent, presets};
use unicode_width::UnicodeWidthStr;

use crate::plan::outcome::RankReport;
use crate::report::grid::wrap;
use crate::report::view::{self, Table};
use crate::report::{laws_view, over_training_view};

/// Widest line.
const WIDTH: u16 = 100;

/// What `rank` prints: tables, assumptions, what it rests on, warnings, and last the answer.
///
/// `colour` brings out headings, the cheapest row and warnings; whether stdout is a terminal and
/// `NO_COLOR` is unset is for the caller to find out.
pub fn rank_text(report: &RankReport, colour: bool) -> String {
    let mut page = Page { text: String::new(), colour };
    let tables = [
        laws_view::by_law(report),
        laws_view::mixture(report),
        view::best(report),
        view::totals(report),
        view::references(report),
        over_training_view::at_equal_loss(report),
        over_training_view::at_budget(report),
        over_training_view::by_flops(report),
        view::hyperparameters(report),
        view::crossovers(report),
        view::latencies(report),
        view::sensitivity(report, true),
        view::assumptions(report),
    ];
    for table in &tables {
        page.table(table);
    }
    page.heading("What it rests on");
    for (name, value) in view::provenance(report) {
        page.paragraph(&format!("{name:<15}"), &value);
    }
    if !report.warnings.is_empty() {
        page.heading("Warnings");
        for line in &report.warnings {
            page.warning(line);
        }
    }
    // Last, because that is what stays in sight at the prompt.
    if !report.summary.is_empty() {
        page.heading("Answer");
        for line in &report.summary {
            page.paragraph("- ", line);
        }
    }
    page.text
}

/// Text that grows downwards.
struct Page {
    text: String,
    colour: bool,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn styled(&mut self, style: &str, line: &str) {
        if self.colour {
            self.line(&format!("\x1b[{style}m{}\x1b[0m", line.trim_end()));
        } else {
            self.line(line);
        }
    }

    fn heading(&mut self, text: &str) {
        if !self.text.is_empty() {
            self.line("");
        }
        for line in wrap(&plain(text), usize::from(WIDTH)) {
            self.styled("1", &line);
        }
    }

    /// Wrapped text whose first line starts with `mark` and whose others are indented below it.
    fn paragraph(&mut self, mark: &str, text: &str) {
        for line in hanging(mark, text) {
            self.line(&line);
        }
    }

    fn warning(&mut self, text: &str) {
        for line in hanging("- ", text) {
            self.styled("33", &line);
        }
    }

    fn table(&mut self, table: &Table) {
        if table.rows.is_empty() {
            return;
        }
        self.heading(&table.title);
        let lines = lines_of(table);
        // Below the rule each row takes one line, unless a cell had to be wrapped.
        let first = lines.iter().position(|l| l.starts_with("--")).map_or(0, |rule| rule + 1);
        let whole = lines.len() == first + table.rows.len();
        let strong = table.strong.filter(|_| whole).map(|row| first + row);
        for (index, line) in lines.iter().enumerate() {
            if strong == Some(index) {
                self.styled("1;32", line);
            } else {
                self.line(line);
            }
        }
        if let Some(note) = &table.note {
            self.paragraph("", note);
        }
    }
}

/// The drawn table: columns two spaces apart, one where that is too wide, wrapped cells as a last way.
fn lines_of(table: &Table) -> Vec<String> {
    let fits = |lines: &Vec<String>| lines.iter().all(|l| l.width() <= usize::from(WIDTH));
    let natural = [2, 1].map(|gap| drawn(table, gap, ContentArrangement::Disabled));
    let found = natural.into_iter().find(fits);
    found.unwrap_or_else(|| drawn(table, 1, ContentArrangement::Dynamic))
}

fn drawn(table: &Table, gap: u16, arrangement: ContentArrangement) -> Vec<String> {
    let mut drawn = comfy_table::Table::new();
    drawn.load_preset(presets::NOTHING);
    drawn.set_style(TableComponent::HeaderLines, '-');
    drawn.set_style(TableComponent::MiddleHeaderIntersections, '-');
    drawn.set_content_arrangement(arrangement).set_width(WIDTH);
    drawn.set_header(table.columns.iter().map(|(name, _)| *name));
    for row in &table.rows {
        drawn.add_row(row.iter().map(|text| Cell::new(plain(text))));
    }
    let last = table.columns.len().saturating_sub(1);
    for (index, (column, (_, numeric))) in drawn.column_iter_mut().zip(table.columns).enumerate() {
        let side = if *numeric { CellAlignment::Right } else { CellAlignment::Left };
        column.set_cell_alignment(side);
        column.set_padding((0, if index == last { 0 } else { gap }));
    }
    drawn.trim_fmt().lines().map(str::to_owned).collect()
}

fn hanging(mark: &str, text: &str) -> Vec<String> {
    let indent = mark.chars().count();
    wrap(&plain(text), usize::from(WIDTH) - indent)
        .iter()
        .enumerate()
        .map(
            |(i, line)| {
                if i == 0 { format!("{mark}{line}") } else { format!("{:indent$}{line}", "") }
            },
        )
        .collect()
}

/// Text from a file must not move the cursor: control characters become spaces.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::sample;

    #[test]
    fn the_whole_text_reads_well() {
        insta::assert_snapshot!(rank_text(&sample::report(), false));
    }

    #[test]
    fn colour_is_the_callers_choice_and_changes_no_word() {
        let report = sample::report();
        let (plain, coloured) = (rank_text(&report, false), rank_text(&report, true));
        assert!(!plain.contains('\x1b') && coloured.contains("\x1b[1;32m"));
        let mut stripped = coloured;
        for code in ["\x1b[1m", "\x1b[1;32m", "\x1b[33m", "\x1b[0m"] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, plain);
    }

    #[test]
    fn an_empty_report_and_control_characters_are_printed_calmly() {
        let mut report = sample::empty();
        report.profile.device = "a\x1b[2Jb\n\tc".into();
        let text = rank_text(&report, false);
        assert!(text.contains("a [2Jb c") && !text.contains('\x1b'), "{text}");
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_a_hundred_columns(report in sample::arbitrary()) {
            for line in rank_text(&report, false).lines() {
                prop_assert!(line.width() <= 100, "{line}");
            }
        }
    }
}
