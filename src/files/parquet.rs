//! What must hold of a Parquet file before its reader may have it.
//!
//! The reader believes what the file says of its own sizes, reserves memory for it, and panics on some files
//! that do not add up. Footer and page headers are therefore walked first (Thrift's compact protocol, as the
//! Parquet format prescribes it), sizes are bounded, and a panic is an error of the file.

use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::quiet;
use crate::{Error, Result};

/// First and last bytes of a file.
pub const MAGIC: &[u8] = b"PAR1";
/// Longest footer; that of a table with some dozen columns has some kilobytes.
const LONGEST_FOOTER: usize = 16 << 20;
/// Elements of all lists of a footer together.
const MOST_ELEMENTS: u64 = 1 << 18;
/// Deepest nesting of a footer.
const DEEPEST: usize = 16;
/// Most rows.
const MOST_ROWS: i64 = 10_000_000;
/// Longest page once unpacked; writers make pages of one megabyte.
const LONGEST_PAGE: u64 = 32 << 20;

/// Opens a file whose pages unpack to at most `cap` bytes together.
///
/// # Errors
/// [`Error::BadFile`] with what does not hold.
pub fn open(
    location: &str,
    bytes: &bytes::Bytes,
    cap: u64,
) -> Result<SerializedFileReader<bytes::Bytes>> {
    let bad =
        |reason: String| Error::bad_file(location, format!("no readable Parquet file: {reason}"));
    check_footer(bytes).map_err(bad)?;
    let reader = caught(location, || SerializedFileReader::new(bytes.clone()))?;
    check_pages(bytes, reader.metadata(), cap).map_err(bad)?;
    Ok(reader)
}

/// What a part of the reader says; a panic is an error of the file.
///
/// # Errors
/// [`Error::BadFile`].
pub fn caught<T>(location: &str, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    let bad = |reason: &str| {
        let reason = format!("no readable Parquet file: {reason}").replace('\n', " ");
        Error::bad_file(location, reason)
    };
    match quiet::without_message(|| catch_unwind(AssertUnwindSafe(read))) {
        Ok(read) => read.map_err(|e| bad(&e.to_string())),
        Err(_) => Err(bad("it does not add up")),
    }
}

type Checked<T = ()> = Result<T, String>;

fn check_footer(bytes: &[u8]) -> Checked {
    let short = || "it is cut short".to_owned();
    let body = bytes.strip_suffix(MAGIC).ok_or_else(short)?;
    let (body, length) = body.split_last_chunk::<4>().ok_or_else(short)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|e| e.to_string())?;
    let start = body.len().checked_sub(length).filter(|start| *start >= MAGIC.len());
    let footer = start.and_then(|start| body.get(start..));
    let footer = footer.ok_or("its footer is longer than the file")?;
    if length > LONGEST_FOOTER {
        return Err(format!("its footer is longer than {} MiB", LONGEST_FOOTER >> 20));
    }
    let mut walk = Compact { rest: footer, elements: MOST_ELEMENTS };
    walk.footer().ok_or_else(|| "its footer is damaged".to_owned())
}

/// Walks the pages of every column.
fn check_pages(bytes: &[u8], metadata: &ParquetMetaData, cap: u64) -> Checked {
    let rows = metadata.file_metadata().num_rows();
    if !(0..=MOST_ROWS).contains(&rows) {
        return Err(format!("it has {rows} rows; at most {MOST_ROWS} are read"));
    }
    let mut unpacked = 0_u64;
    for column in metadata.row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
        let start = start.min(column.data_page_offset());
        let range = usize::try_from(start).ok().zip(usize::try_from(column.compressed_size()).ok());
        let pages = range.and_then(|(start, length)| bytes.get(start..)?.get(..length));
        let mut pages = pages.ok_or("a column lies outside of it")?;
        while !pages.is_empty() {
            let page = Page::parse(pages).ok_or("the header of a page is damaged")?;
            let next = page.header.checked_add(page.packed).and_then(|length| pages.get(length..));
            pages = next.ok_or("a page is longer than its column")?;
            unpacked = unpacked.saturating_add(page.unpacked);
            if page.unpacked > LONGEST_PAGE || unpacked > cap {
                return Err(format!("it unpacks to more than {} MiB", cap >> 20));
            }
        }
    }
    Ok(())
}

/// What the header of a page says.
struct Page {
    /// Length of the header.
    header: usize,
    /// Length of what follows it.
    packed: usize,
    unpacked: u64,
}

impl Page {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut walk = Compact { rest: bytes, elements: MOST_ELEMENTS };
        let (mut packed, mut unpacked) = (None, None);
        let mut id = 0;
        loop {
            let kind = walk.field(&mut id)?;
            match (id, kind) {
                (_, Kind::End) => break,
                (2, Kind::Integer) => unpacked = u64::try_from(walk.signed()?).ok(),
                (3, Kind::Integer) => packed = usize::try_from(walk.signed()?).ok(),
                _ => walk.skip_field(kind, DEEPEST)?,
            }
        }
        Some(Self { header: bytes.len() - walk.rest.len(), packed: packed?, unpacked: unpacked? })
    }
}

/// What a value is, as far as its length goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// In the field's own header, or one byte in a list.
    Bool,
    Byte,
    /// A number of variable length.
    Integer,
    /// Eight bytes.
    Double,
    /// A length, then bytes.
    Binary,
    List,
    Map,
    Struct,
    /// Sixteen bytes.
    Uuid,
    /// No field: the end of a struct.
    End,
}

impl Kind {
    const fn of(code: u8) -> Option<Self> {
        Some(match code {
            1 | 2 => Self::Bool,
            3 => Self::Byte,
            4..=6 => Self::Integer,
            7 => Self::Double,
            8 => Self::Binary,
            9 | 10 => Self::List,
            11 => Self::Map,
            12 => Self::Struct,
            13 => Self::Uuid,
            _ => return None,
        })
    }
}

/// A walk through values in Thrift's compact protocol. `None`: they end early, or are none.
struct Compact<'a> {
    rest: &'a [u8],
    /// Elements of lists that may still come.
    elements: u64,
}

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn bytes(&mut self, count: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let value = self.unsigned()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// The next field of a struct, or its end.
    fn field(&mut self, id: &mut i64) -> Option<Kind> {
        let head = self.byte()?;
        if head == 0 {
            return Some(Kind::End);
        }
        *id = match head >> 4 {
            0 => self.signed()?,
            step => id.checked_add(i64::from(step))?,
        };
        Kind::of(head & 0x0f)
    }

    fn skip_struct(&mut self, depth: usize) -> Option<()> {
        let mut id = 0;
        loop {
            let kind = self.field(&mut id)?;
            if kind == Kind::End {
                return Some(());
            }
            self.skip_field(kind, depth)?;
        }
    }

    /// The value of a field; a bool has it in the field's header.
    fn skip_field(&mut self, kind: Kind, depth: usize) -> Option<()> {
        if kind == Kind::Bool { Some(()) } else { self.skip(kind, depth) }
    }

    /// The file's metadata, in which no element of the schema has more children than there are elements:
    /// the reader reserves memory for as many as are claimed.
    fn footer(&mut self) -> Option<()> {
        let mut id = 0;
        loop {
            let kind = self.field(&mut id)?;
            if kind == Kind::End {
                return Some(());
            }
            if id != 2 || kind != Kind::List {
                self.skip_field(kind, DEEPEST)?;
                continue;
            }
            let (element, count) = self.list()?;
            if count > 0 && element != Some(Kind::Struct) {
                return None;
            }
            self.elements = self.elements.checked_sub(count)?;
            (0..count).try_for_each(|_| self.schema_element(count))?;
        }
    }

    fn schema_element(&mut self, most_children: u64) -> Option<()> {
        let mut id = 0;
        loop {
            let kind = self.field(&mut id)?;
            if kind == Kind::End {
                return Some(());
            }
            if id == 5 && kind == Kind::Integer {
                let children = u64::try_from(self.signed()?).ok();
                children.filter(|children| *children <= most_children)?;
            } else {
                self.skip_field(kind, DEEPEST)?;
            }
        }
    }

    /// What a list holds, and how many. Some writers give an empty one no kind.
    fn list(&mut self) -> Option<(Option<Kind>, u64)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.unsigned()? } else { u64::from(head >> 4) };
        let kind = Kind::of(head & 0x0f);
        (kind.is_some() || count == 0).then_some((kind, count))
    }

    fn skip(&mut self, kind: Kind, depth: usize) -> Option<()> {
        let below = depth.checked_sub(1)?;
        match kind {
            Kind::Bool | Kind::Byte => self.bytes(1),
            Kind::Integer => self.unsigned().map(drop),
            Kind::Double => self.bytes(8),
            Kind::Uuid => self.bytes(16),
            Kind::Binary => {
                let length = self.unsigned()?;
                self.bytes(length)
            }
            Kind::List => match self.list()? {
                (Some(kind), count) => self.skip_all(&[kind], count, below),
                (None, _) => Some(()),
            },
            Kind::Map => match self.unsigned()? {
                0 => Some(()),
                count => {
                    let kinds = self.byte()?;
                    let kinds = [Kind::of(kinds >> 4)?, Kind::of(kinds & 0x0f)?];
                    self.skip_all(&kinds, count, below)
                }
            },
            Kind::Struct => self.skip_struct(below),
            Kind::End => None,
        }
    }

    fn skip_all(&mut self, kinds: &[Kind], count: u64, depth: usize) -> Option<()> {
        self.elements = self.elements.checked_sub(count)?;
        for _ in 0..count {
            kinds.iter().try_for_each(|kind| self.skip(*kind, depth))?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: u64 = 1 << 20;

    /// A file with two columns, `name` (UTF-8) and `value` (double), and 50 rows; packed with Snappy.
    fn file() -> Vec<u8> {
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/table.parquet")).unwrap()
    }

    fn opened(bytes: &[u8], cap: u64) -> Result<usize> {
        let reader = open("t.parquet", &bytes::Bytes::copy_from_slice(bytes), cap)?;
        caught("t.parquet", || reader.get_row_iter(None)?.try_fold(0, |n, row| row.map(|_| n + 1)))
    }

    #[test]
    fn a_sound_file_is_read_and_one_that_unpacks_too_far_is_not() {
        let bytes = file();
        assert_eq!(opened(&bytes, CAP).unwrap(), 50);
        let error = opened(&bytes, 100).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains("unpacks"), "{error}");
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_read_or_refused() {
        let bytes = file();
        for length in 0..bytes.len() {
            assert_eq!(opened(&bytes[..length], CAP).unwrap_err().exit_code(), 3, "{length}");
        }
        for at in 0..bytes.len() {
            for change in [0x01, 0x55, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                if let Err(error) = opened(&changed, CAP) {
                    assert_eq!(error.exit_code(), 3, "{at}: {error}");
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
        }
    }

    #[test]
    fn a_page_that_claims_gigabytes_is_refused_before_they_are_reserved() {
        let bytes = file();
        let page = Page::parse(&bytes[MAGIC.len()..]).unwrap();
        assert!(page.unpacked > 0 && page.packed > 0 && page.header > 3);
        // Field 2 of the header, the third value: 2 GiB in as many bytes as a varint of it takes.
        let mut walk = Compact { rest: &bytes[MAGIC.len()..], elements: 0 };
        let mut id = 0;
        walk.field(&mut id).unwrap();
        walk.signed().unwrap();
        walk.field(&mut id).unwrap();
        assert_eq!(id, 2);
        let at = bytes.len() - walk.rest.len();
        walk.signed().unwrap();
        let end = bytes.len() - walk.rest.len();
        let lie = [&bytes[..at], &[0xfe, 0xff, 0xff, 0xff, 0x0f], &bytes[end..]].concat();
        let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(&bytes)).unwrap();
        let error = check_pages(&lie, reader.metadata(), CAP).unwrap_err();
        assert!(error.contains("unpacks"), "{error}");
    }
}
