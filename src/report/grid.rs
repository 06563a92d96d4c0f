//! Plain-text tables of a given width.
//!
//! What gives way, in this order, until the table fits:
//!
//! 1. the gap between columns, from two spaces to one;
//! 2. columns of words, which wrap at spaces; numbers never do;
//! 3. columns that may be left out ([`Column::left_out`]), those with the highest number first; the last
//!    line says which are missing;
//! 4. the table itself: one line a value, one block a row.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::error::tidy;

/// Narrowest column of words that is wrapped, in terminal columns.
const NARROWEST: usize = 14;
/// A longer word may be broken.
const LONG_WORD: usize = 30;

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    title: Cow<'static, str>,
    numeric: bool,
    order: Option<u8>,
}

impl Column {
    /// A column of words, to the left. A line end in the title starts another line of the head.
    pub fn words(title: impl Into<Cow<'static, str>>) -> Self {
        Self { title: title.into(), numeric: false, order: None }
    }

    /// A column of numbers, to the right, whose cells stay in one piece.
    pub fn numbers(title: impl Into<Cow<'static, str>>) -> Self {
        Self { title: title.into(), numeric: true, order: None }
    }

    /// The same, left out where the table is too wide: columns with a higher number go first.
    pub fn left_out(self, order: u8) -> Self {
        Self { order: Some(order), ..self }
    }

    /// The title; its line ends separate the lines of the head.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Whether the column holds numbers.
    pub const fn is_numeric(&self) -> bool {
        self.numeric
    }
}

/// A line of a table, and the row that it belongs to; heads and remarks belong to none.
pub type Line = (Option<usize>, String);

/// A table of at most `width` terminal columns.
///
/// ```
/// use moe_frontier::report::grid::{Column, grid};
/// let columns = [Column::words("device"), Column::numbers("memory"), Column::numbers("price").left_out(1)];
/// let rows = vec![vec!["H100".into(), "80 GB".into(), "$1.69/h".into()]];
/// assert!(grid(&columns, &rows, 30).contains("$1.69/h"));
/// // Beside a label that leaves less than 14 columns the text goes below it.
/// assert!(grid(&columns, &rows, 20).ends_with("without:\n  price\n"));
/// ```
pub fn grid(columns: &[Column], rows: &[Vec<String>], width: usize) -> String {
    lines(columns, rows, width).into_iter().map(|(_, line)| line + "\n").collect()
}

/// The lines of the same table, for those who bring out rows.
pub fn lines(columns: &[Column], rows: &[Vec<String>], width: usize) -> Vec<Line> {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| tidy(cell)).collect()).collect();
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    loop {
        let table = Table { columns, rows: &rows, shown: &shown };
        if let Some((widths, gap)) = table.widths(width) {
            let mut lines = table.draw(&widths, gap);
            lines.extend(of_none(&table.missing(width)));
            return lines;
        }
        let next = shown.iter().copied().filter(|&c| columns[c].order.is_some());
        match next.max_by_key(|&c| (columns[c].order, c)) {
            Some(column) => shown.retain(|&c| c != column),
            None => break,
        }
    }
    stacked(columns, &rows, width)
}

/// Lines that belong to no row.
fn of_none(text: &str) -> impl Iterator<Item = Line> + '_ {
    text.lines().map(|line| (None, line.to_owned()))
}

/// The columns of a table that are shown.
struct Table<'a> {
    columns: &'a [Column],
    rows: &'a [Vec<String>],
    shown: &'a [usize],
}

impl Table<'_> {
    /// Widths and gap that fit, if any do.
    fn widths(&self, width: usize) -> Option<(Vec<usize>, usize)> {
        let natural: Vec<usize> = self.shown.iter().map(|&c| self.natural(c)).collect();
        for gap in [2, 1] {
            if self.total(&natural, gap) <= width {
                return Some((natural, gap));
            }
        }
        let mut widths = natural;
        while self.total(&widths, 1) > width {
            let words = (0..widths.len()).filter(|&i| !self.columns[self.shown[i]].numeric);
            let least = |i: usize| {
                let column = self.shown[i];
                NARROWEST.max(self.head(column)).max(self.longest_word(column))
            };
            let widest = words.filter(|&i| widths[i] > least(i)).max_by_key(|&i| widths[i])?;
            widths[widest] -= 1;
        }
        Some((widths, 1))
    }

    fn total(&self, widths: &[usize], gap: usize) -> usize {
        widths.iter().sum::<usize>() + gap * self.shown.len().saturating_sub(1)
    }

    /// Widest line of a title.
    fn head(&self, column: usize) -> usize {
        self.columns[column].title.split('\n').map(UnicodeWidthStr::width).max().unwrap_or(0)
    }

    /// Widest word that is kept in one piece.
    fn longest_word(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        let words = cells.flat_map(|cell| cell.split_whitespace()).map(UnicodeWidthStr::width);
        words.filter(|w| *w <= LONG_WORD).max().unwrap_or(0)
    }

    fn natural(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.width()).chain([self.head(column)]).max().unwrap_or(0)
    }

    fn draw(&self, widths: &[usize], gap: usize) -> Vec<Line> {
        let titles: Vec<Vec<String>> = self
            .shown
            .iter()
            .map(|&c| self.columns[c].title.split('\n').map(str::to_owned).collect())
            .collect();
        let head = self.lines(&titles, widths, gap, true);
        let rule = "-".repeat(self.total(widths, gap));
        let mut drawn: Vec<Line> = head.into_iter().chain([rule]).map(|l| (None, l)).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let cells: Vec<Vec<String>> = self
                .shown
                .iter()
                .zip(widths)
                .map(|(&c, &width)| {
                    let cell = row.get(c).map_or("", String::as_str);
                    // What is indented stays so.
                    if cell.width() <= width { vec![cell.to_owned()] } else { wrap(cell, width) }
                })
                .collect();
            let lines = self.lines(&cells, widths, gap, false);
            drawn.extend(lines.into_iter().map(|line| (Some(index), line)));
        }
        drawn
    }

    /// Cells beside each other, each of one or more lines; titles stand at the bottom.
    fn lines(
        &self,
        cells: &[Vec<String>],
        widths: &[usize],
        gap: usize,
        bottom: bool,
    ) -> Vec<String> {
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        let mut lines = Vec::new();
        for line in 0..height {
            let mut out = String::new();
            for (at, (cell, &width)) in cells.iter().zip(widths).enumerate() {
                let first = if bottom { height - cell.len() } else { 0 };
                let word = line.checked_sub(first).and_then(|l| cell.get(l)).map_or("", |w| w);
                let space = " ".repeat(width.saturating_sub(word.width()));
                let numeric = self.columns[self.shown[at]].numeric;
                out += &if numeric { space + word } else { word.to_owned() + &space };
                out += &" ".repeat(gap);
            }
            out.truncate(out.trim_end().len());
            lines.push(out);
        }
        lines
    }

    /// Which columns are not there.
    fn missing(&self, width: usize) -> String {
        let out = (0..self.columns.len()).filter(|c| !self.shown.contains(c));
        let names: Vec<String> = out.map(|c| self.columns[c].title.replace('\n', " ")).collect();
        if names.is_empty() {
            String::new()
        } else {
            hanging("without: ", &names.join(", "), width)
        }
    }
}

/// One block a row, one line a value.
fn stacked(columns: &[Column], rows: &[Vec<String>], width: usize) -> Vec<Line> {
    let titles: Vec<String> = columns.iter().map(|c| c.title.replace('\n', " ")).collect();
    let label = titles.iter().map(|t| t.width()).max().unwrap_or(0) + 2;
    let mut lines = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            lines.push((None, String::new()));
        }
        for (title, cell) in titles.iter().zip(row) {
            let text = hanging(&format!("{title:<label$}"), cell, width);
            lines.extend(text.lines().map(|line| (Some(index), line.to_owned())));
        }
    }
    lines
}

/// A label and a text of at most `width` columns a line, continued under the text. A label may begin
/// with line ends.
///
/// ```
/// use moe_frontier::report::grid::hanging;
/// assert_eq!(hanging("law  ", "one two three four", 19), "law  one two three\n     four\n");
/// assert_eq!(hanging("law  ", "one two three", 13), "law\n  one two\n  three\n");
/// ```
pub fn hanging(label: &str, text: &str, width: usize) -> String {
    let indent = label.trim_start_matches('\n').width();
    // Beside a label that leaves no room, below it.
    let (indent, mut out) = if width < indent + NARROWEST && indent > 2 {
        (2, format!("{}\n  ", label.trim_end()))
    } else {
        (indent, label.to_owned())
    };
    let lines = wrap(text, width.saturating_sub(indent).max(1));
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            out += &" ".repeat(indent);
        }
        out += line;
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

/// A command line of a shell in lines of at most `width` columns, which can be pasted as they are.
///
/// ```
/// use moe_frontier::report::grid::command;
/// assert_eq!(command("serve --tp 2 --port 80", "  ", 18), "  serve --tp 2 \\\n    --port 80\n");
/// ```
pub fn command(text: &str, indent: &str, width: usize) -> String {
    let lines = wrap(text, width.saturating_sub(indent.len() + 4).max(1));
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        let further = if at > 0 { "  " } else { "" };
        let end = if at + 1 < lines.len() { " \\" } else { "" };
        for part in [indent, further, line, end, "\n"] {
            out += part;
        }
    }
    out
}

/// Lines of at most `width` columns, broken at spaces where there are any.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut line, mut used) = (String::new(), 0);
    for word in text.split_whitespace() {
        let gap = usize::from(used > 0);
        if used > 0 && used + gap + word.width() > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        } else if gap > 0 {
            line.push(' ');
            used += 1;
        }
        for c in word.chars() {
            let columns = c.width().unwrap_or(0);
            if used + columns > width && used > 0 {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.push(c);
            used += columns;
        }
    }
    lines.push(line);
    lines
}

/// Text whose lines are at most `width` columns: longer ones go on below, indented by two more; a rule of
/// dashes is cut. Escape sequences of colours take no room.
pub fn fitted(text: &str, width: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        if visible(line) <= width {
            out += line;
        } else if line.chars().all(|c| c == '-') {
            out += &line[..width];
        } else {
            broken(line, width, &mut out);
        }
        out.push('\n');
    }
    out
}

/// A line that is too long, as several.
fn broken(line: &str, width: usize, out: &mut String) {
    let start = (line.len() - line.trim_start().len()).min(width / 2);
    let next = start + 2;
    let (mut used, mut at_start) = (start, true);
    *out += &" ".repeat(start);
    for word in line.trim_start().split(' ') {
        let wide = visible(word);
        if !at_start && used + 1 + wide > width {
            out.truncate(out.trim_end().len());
            out.push('\n');
            *out += &" ".repeat(next);
            used = next;
        } else if !at_start {
            out.push(' ');
            used += 1;
        }
        at_start = false;
        if used + wide <= width || word.contains('\x1b') {
            *out += word;
            used += wide;
            continue;
        }
        for c in word.chars() {
            let columns = c.width().unwrap_or(0);
            if used + columns > width {
                out.push('\n');
                *out += &" ".repeat(next);
                used = next;
            }
            out.push(c);
            used += columns;
        }
    }
}

/// Terminal columns of a text, colours aside.
fn visible(text: &str) -> usize {
    let mut columns = 0;
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        columns += rest[..at].width();
        let after = &rest[at..];
        rest = after.find('m').map_or("", |end| &after[end + 1..]);
    }
    columns + rest.width()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(width: usize) -> String {
        let columns = [
            Column::words("device"),
            Column::words("also called").left_out(2),
            Column::numbers("memory"),
            Column::numbers("dense\nbf16").left_out(1),
        ];
        let row = |words: [&str; 4]| words.map(str::to_owned).to_vec();
        grid(
            &columns,
            &[
                row(["H100 SXM of a long name", "h100, h100_sxm", "80 GB", "989 TFLOP/s"]),
                row(["L40S", "l40s", "48 GB", "362 TFLOP/s"]),
            ],
            width,
        )
    }

    #[test]
    fn what_gives_way_does_so_in_the_stated_order() {
        let wide = sample(100);
        assert!(wide.lines().next().is_some_and(|l| l.trim() == "dense"), "{wide}");
        assert!(!wide.contains("without"), "{wide}");
        let narrower = sample(50);
        assert!(narrower.contains("80 GB") && !narrower.contains("without"), "{narrower}");
        let few = sample(36);
        assert!(few.ends_with("without: also called\n"), "{few}");
        let fewer = sample(24);
        assert!(fewer.ends_with("without: also called,\n         dense bf16\n"), "{fewer}");
        let stacked = sample(18);
        assert!(stacked.contains("memory\n  80 GB\n"), "{stacked}");
    }

    #[test]
    fn long_lines_go_on_below_and_colours_take_no_room() {
        assert_eq!(fitted("short\n", 10), "short\n");
        assert_eq!(fitted("  one two three four\n", 12), "  one two\n    three\n    four\n");
        assert_eq!(fitted("-----\nabcdef\n", 4), "----\nabcd\n  ef\n");
        assert_eq!(fitted("\x1b[1mbold\x1b[0m five\n", 9), "\x1b[1mbold\x1b[0m five\n");
    }

    #[test]
    fn text_is_wrapped_at_words_and_broken_only_where_it_must() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("", 4), [""]);
    }

    proptest! {
        #[test]
        fn no_table_is_wider_than_it_may_be(
            rows in prop::collection::vec(prop::collection::vec("[a-z]{0,9}( [a-z]{1,9}){0,5}", 4), 0..4),
            width in 40_usize..160,
        ) {
            let columns = [
                Column::words("name"),
                Column::words("note").left_out(3),
                Column::numbers("two\nlines").left_out(1),
                Column::numbers("n").left_out(2),
            ];
            for line in grid(&columns, &rows, width).lines() {
                prop_assert!(line.width() <= width, "{line}");
            }
        }

        #[test]
        fn wrapping_keeps_every_character(text in "[a-z ]{0,80}", width in 1_usize..20) {
            let kept: String = wrap(&text, width).concat().split(' ').collect();
            prop_assert_eq!(kept, text.split(' ').collect::<String>());
        }
    }
}
