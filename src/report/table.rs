//! The details of a ranking as text for a terminal.

use crate::error::turns_text;
use crate::plan::outcome::RankReport;
use crate::report::grid::{hanging, lines};
use crate::report::view::{self, Table};
use crate::report::{familial_view, laws_view, over_training_view};

/// Every table, what the answer comes from, warnings, and last the answer.
///
/// `colour` brings out headings, the cheapest row and warnings; whether stdout is a terminal and
/// `NO_COLOR` is unset is for the caller to find out.
pub fn rank_details(report: &RankReport, width: usize, colour: bool) -> String {
    let mut page = Page::new(width, colour);
    let tables = [
        laws_view::by_law(report),
        laws_view::mixture(report),
        view::best(report),
        view::totals(report),
        view::references(report),
        over_training_view::at_equal_loss(report),
        over_training_view::at_budget(report),
        over_training_view::by_flops(report),
        familial_view::sizes(report),
        view::hyperparameters(report),
        view::crossovers(report),
        view::latencies(report),
        view::sensitivity(report),
        view::assumptions(report),
    ];
    for table in &tables {
        page.table(table);
    }
    page.heading("Provenance");
    for (name, value) in view::provenance(report) {
        page.paragraph(&format!("{name:<15}"), &value);
    }
    if !report.warnings.is_empty() {
        page.heading("Warnings");
        for line in &report.warnings {
            page.warning_lines(&hanging("- ", &plain(line), width));
        }
    }
    // Last, because that is what stays in sight at the prompt.
    if !report.summary.is_empty() {
        page.heading("Answer");
        for line in &report.summary {
            page.paragraph("- ", line);
        }
    }
    page.into_text()
}

/// Text that grows downwards, no line wider than the width.
pub(super) struct Page {
    text: String,
    width: usize,
    colour: bool,
}

impl Page {
    pub(super) const fn new(width: usize, colour: bool) -> Self {
        Self { text: String::new(), width, colour }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// Lines so far.
    pub(super) fn lines(&self) -> usize {
        self.text.lines().count()
    }

    pub(super) fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// Lines that are as they shall be.
    pub(super) fn raw(&mut self, text: &str) {
        self.text.push_str(text);
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
        for line in hanging("", &plain(text), self.width).lines() {
            self.styled("1", line);
        }
    }

    /// Wrapped text whose first line starts with `mark` and whose others are indented below it.
    pub(super) fn paragraph(&mut self, mark: &str, text: &str) {
        let lines = hanging(mark, &plain(text), self.width);
        self.raw(&lines);
    }

    /// The same in bold.
    pub(super) fn strong_paragraph(&mut self, mark: &str, text: &str) {
        for line in hanging(mark, &plain(text), self.width).lines() {
            self.styled("1", line);
        }
    }

    /// Lines in the colour of warnings.
    pub(super) fn warning_lines(&mut self, text: &str) {
        for line in text.lines() {
            self.styled("33", line);
        }
    }

    fn table(&mut self, table: &Table) {
        if !table.rows.is_empty() {
            self.heading(&table.title);
            self.body(table);
        }
    }

    /// A table without its title.
    pub(super) fn body(&mut self, table: &Table) {
        if table.rows.is_empty() {
            return;
        }
        for (row, line) in lines(&table.columns, &table.rows, self.width) {
            if row.is_some() && row == table.strong {
                self.styled("1;32", &line);
            } else {
                self.line(&line);
            }
        }
        if let Some(note) = &table.note {
            self.paragraph("", note);
        }
    }
}

/// Text from a file must not move the cursor or turn the line: such characters become spaces.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || turns_text(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::plan::sample;

    #[test]
    fn the_whole_text_reads_well() {
        insta::assert_snapshot!(rank_details(&sample::report(), 80, false));
    }

    #[test]
    fn colour_is_the_callers_choice_and_changes_no_word() {
        let report = sample::report();
        let (plain, coloured) =
            (rank_details(&report, 100, false), rank_details(&report, 100, true));
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
        let text = rank_details(&report, 100, false);
        assert!(text.contains("device") && !text.contains('\x1b'), "{text}");
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_it_may_be(report in sample::arbitrary(), width in 40_usize..160) {
            for line in rank_details(&report, width, false).lines() {
                prop_assert!(line.width() <= width, "{line}");
            }
        }
    }
}
