//! A flat table of named columns from a CSV or a Parquet file.
//!
//! Cells keep their text, numbers with all their digits, so that both formats go the same way.

use std::collections::HashMap;
use std::path::Path;

#[cfg(feature = "native")]
use ::parquet::file::reader::FileReader;
#[cfg(feature = "native")]
use ::parquet::record::Field;

#[cfg(feature = "native")]
use crate::files::parquet;
use crate::files::read_capped;
use crate::{Error, Result};

/// Longest file that is read, in bytes.
const CAP: u64 = 256 << 20;

/// Most cells of a table, and most that differ.
const MOST_CELLS: usize = 32 << 20;
const MOST_TEXTS: usize = 2 << 20;

/// A table with a header.
#[derive(Clone, Debug)]
pub struct FlatTable {
    location: String,
    columns: HashMap<String, usize>,
    /// Distinct texts: most cells of a table repeat.
    texts: Vec<Box<str>>,
    /// Index of the text of each cell, row by row.
    cells: Vec<u32>,
    rows: usize,
    /// The bytes that were read.
    pub bytes: Vec<u8>,
    /// Lines before the first row, for messages: 1 in a CSV.
    first_line: usize,
}

/// One row of a table.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    table: &'a FlatTable,
    index: usize,
}

impl FlatTable {
    /// Reads a CSV file (comma, header line) or a Parquet file; which one is told by its first bytes.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::BadFile`] when it is neither.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_capped(path, CAP)?;
        let location = path.display().to_string();
        if bytes.is_empty() {
            return Err(Error::bad_file(location, "empty"));
        }
        #[cfg(feature = "native")]
        if bytes.starts_with(parquet::MAGIC) {
            return Self::parquet(&location, bytes);
        }
        Self::csv(&location, bytes)
    }

    /// Reads the bytes of a CSV file.
    ///
    /// # Errors
    /// [`Error::BadFile`] with the line.
    pub fn csv(location: &str, bytes: Vec<u8>) -> Result<Self> {
        let mut reader = csv::ReaderBuilder::new().from_reader(bytes.as_slice());
        let bad = |e: &csv::Error| {
            let line = e.position().map_or(1, csv::Position::line);
            Error::bad_file(format!("{location}:{line}"), csv_reason(e))
        };
        let header = reader.headers().map_err(|e| bad(&e))?.clone();
        let columns = columns(location, header.iter().map(str::trim))?;
        let mut cells = Interned::default();
        let mut rows = 0;
        for record in reader.records() {
            let record = record.map_err(|e| bad(&e))?;
            record.iter().for_each(|cell| cells.push(cell.trim()));
            rows += 1;
            cells.check(location)?;
        }
        let (texts, cells) = cells.finish();
        let location = location.to_owned();
        Ok(Self { location, columns, texts, cells, rows, bytes, first_line: 2 })
    }

    #[cfg(feature = "native")]
    fn parquet(location: &str, bytes: Vec<u8>) -> Result<Self> {
        let shared = bytes::Bytes::from(bytes);
        let reader = parquet::open(location, &shared, CAP)?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let names: Vec<String> = schema.columns().iter().map(|c| c.name().to_owned()).collect();
        let columns = columns(location, names.iter().map(String::as_str))?;
        let mut cells = Interned::default();
        let mut rows = 0;
        let mut lines = parquet::caught(location, || reader.get_row_iter(None))?;
        while let Some(row) = parquet::caught(location, || lines.next().transpose())? {
            row.get_column_iter().for_each(|(_, cell)| cells.push_field(cell));
            rows += 1;
            if cells.cells.len() != rows * names.len() {
                return Err(Error::bad_file(location, "nested columns are not a flat table"));
            }
            cells.check(location)?;
        }
        drop(lines);
        drop(reader);
        let (texts, cells) = cells.finish();
        let location = location.to_owned();
        // Nobody shares them any more: they are not copied.
        let bytes = Vec::from(shared);
        Ok(Self { location, columns, texts, cells, rows, bytes, first_line: 1 })
    }

    /// Where the table came from.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Whether there is a column of this name.
    pub fn has(&self, column: &str) -> bool {
        self.columns.contains_key(column)
    }

    /// All rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        (0..self.rows).map(|index| Row { table: self, index })
    }
}

/// Cells as they are read, each distinct text once.
#[derive(Default)]
struct Interned {
    /// The texts with their indices.
    known: HashMap<Box<str>, u32>,
    cells: Vec<u32>,
}

impl Interned {
    fn push(&mut self, text: &str) {
        let next = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        let index = self.known.get(text).copied().unwrap_or_else(|| {
            self.known.insert(text.into(), next);
            next
        });
        self.cells.push(index);
    }

    /// The texts by their indices, and the cells.
    fn finish(self) -> (Vec<Box<str>>, Vec<u32>) {
        let mut texts: Vec<(u32, Box<str>)> =
            self.known.into_iter().map(|(text, index)| (index, text)).collect();
        texts.sort_unstable_by_key(|(index, _)| *index);
        (texts.into_iter().map(|(_, text)| text).collect(), self.cells)
    }

    /// Refuses what only a made-up file has: each cell takes four bytes, each distinct text some hundred.
    fn check(&self, location: &str) -> Result<()> {
        if self.cells.len() > MOST_CELLS || self.known.len() > MOST_TEXTS {
            let reason = format!("more than {MOST_CELLS} cells, or {MOST_TEXTS} that differ");
            return Err(Error::bad_file(location, reason));
        }
        Ok(())
    }

    #[cfg(feature = "native")]
    fn push_field(&mut self, cell: &Field) {
        match cell {
            Field::Str(text) => self.push(text),
            other => self.push(&text(other)),
        }
    }
}

fn columns<'a>(
    location: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, usize>> {
    let mut columns = HashMap::new();
    for (index, name) in names.enumerate() {
        if columns.insert(name.to_owned(), index).is_some() {
            return Err(Error::bad_file(location, format!("column `{name}` stands twice")));
        }
    }
    Ok(columns)
}

/// The error's text without its position, which is printed in front.
fn csv_reason(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} cells where the header has {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "is not UTF-8".into(),
        _ => error.to_string().replace('\n', " "),
    }
}

/// A cell's text: empty for a missing value, shortest exact digits for a number.
#[cfg(feature = "native")]
fn text(cell: &Field) -> String {
    match cell {
        Field::Null => String::new(),
        Field::Str(text) => text.clone(),
        Field::Double(value) => format!("{value:e}"),
        Field::Float(value) => format!("{value:e}"),
        other => other.to_string(),
    }
}

impl<'a> Row<'a> {
    /// The text of a cell; `None` when the column is missing or the cell empty.
    pub fn text(&self, column: &str) -> Option<&'a str> {
        let index = *self.table.columns.get(column)?;
        let cell = self.index * self.table.columns.len() + index;
        let text = *self.table.cells.get(cell)?;
        self.table.texts.get(text as usize).map(AsRef::as_ref).filter(|t| !t.is_empty())
    }

    /// The text of a cell that must be there.
    ///
    /// # Errors
    /// [`Error::BadFile`] with the row.
    pub fn need(&self, column: &str) -> Result<&'a str> {
        self.text(column).ok_or_else(|| self.bad(format!("no value in column `{column}`")))
    }

    /// A whole number.
    ///
    /// # Errors
    /// [`Error::BadFile`] with the row.
    pub fn whole(&self, column: &str) -> Result<usize> {
        let text = self.need(column)?;
        text.parse().map_err(|_| self.bad(format!("`{text}` in `{column}` is no whole number")))
    }

    /// A finite number.
    ///
    /// # Errors
    /// [`Error::BadFile`] with the row.
    pub fn number(&self, column: &str) -> Result<f64> {
        let text = self.need(column)?;
        text.parse()
            .ok()
            .filter(|v: &f64| v.is_finite())
            .ok_or_else(|| self.bad(format!("`{text}` in `{column}` is no finite number")))
    }

    /// An error that names this row.
    pub fn bad(&self, reason: impl Into<String>) -> Error {
        let row = self.index + self.table.first_line;
        Error::bad_file(format!("{}:{row}", self.table.location), reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv(text: &str) -> Result<FlatTable> {
        FlatTable::csv("t.csv", text.as_bytes().to_vec())
    }

    #[test]
    fn cells_are_found_by_column_name_and_typed() {
        let table = csv("a, b\n1,2.5\n,x\n").unwrap();
        let rows: Vec<Row> = table.rows().collect();
        assert_eq!((rows[0].whole("a").unwrap(), rows[0].text("c")), (1, None));
        assert!((rows[0].number("b").unwrap() - 2.5).abs() < 1e-12);
        let error = rows[1].whole("a").unwrap_err().to_string();
        assert!(error.contains("t.csv:3") && error.contains("`a`"), "{error}");
        assert!(rows[1].number("b").is_err());
    }

    #[test]
    fn a_ragged_row_and_a_doubled_column_are_refused_with_their_place() {
        assert!(csv("a,b\n1\n").unwrap_err().to_string().contains("t.csv:2"));
        assert!(csv("a,a\n").unwrap_err().to_string().contains("twice"));
    }
}
