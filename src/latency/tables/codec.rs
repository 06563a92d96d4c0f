//! The file of engine tables: sealed, compressed, with exact or quantised times.
//!
//! ```text
//! 8 bytes   magic with the version of the format
//! 32 bytes  SHA-256 of everything behind it
//! the rest  deflate: length of the header (u32), header (JSON), columns of the series, times
//! ```
//!
//! Imported files keep every time exactly. Shipped ones keep `round(ln(t) / step)`, written as the
//! difference from what the neighbours say, so that a time takes about half a byte. Numbers are
//! little-endian; counts and differences are base-128 varints.

use std::io::{Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::narrow::{level, single, whole};
use super::series::{
    EngineTables, ImportedFile, Kernel, LeftOut, Origin, Point, Series, Sizes, Table,
};
use crate::files::{read_capped, strict, write_atomic};
use crate::{Error, Result};

/// First bytes of a file.
const MAGIC: &[u8; 8] = b"moetab1\n";
const SEAL: usize = 32;
/// Longest file, and longest content, that is read.
const CAP: u64 = 256 << 20;
/// Cells of one file at most, so that a damaged count cannot ask for all memory.
const MAXIMUM_CELLS: usize = 1 << 26;
/// Most series of them.
const MAXIMUM_SERIES: usize = 1 << 20;
/// A spread is kept in units of this in quantised files.
const SPREAD_UNIT: f32 = 1e-3;

/// How times are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Encoding {
    /// As 32-bit floats.
    Exact,
    /// As multiples of a step of ln(time): the largest relative error is about half of it.
    Quantised(f64),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    device: String,
    origin: Origin,
    files: Vec<ImportedFile>,
    left_out: Vec<LeftOut>,
    kernels: Vec<Kernel>,
    axes: Vec<Vec<Point>>,
    series: usize,
    cells: usize,
    step: Option<f64>,
}

/// Whether some bytes are a file of engine tables, by their first ones.
pub fn is_tables(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Reads a file of engine tables.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::BadFile`] when it is not what the writer made.
pub fn read(path: &Path) -> Result<EngineTables> {
    from_bytes(&path.display().to_string(), &read_capped(path, CAP)?)
}

/// Writes a file of engine tables with exact times, as one step; its length.
///
/// # Errors
/// [`Error::Io`] when it cannot be written, or exists and `force` is not set.
pub fn write(path: &Path, tables: &EngineTables, force: bool) -> Result<usize> {
    let bytes = to_bytes(tables, Encoding::Exact)?;
    write_atomic(path, &bytes, force)?;
    Ok(bytes.len())
}

/// The bytes of a file.
///
/// # Errors
/// [`Error::Unfit`] when the tables cannot be written (a time that is no positive number).
pub fn to_bytes(tables: &EngineTables, encoding: Encoding) -> Result<Vec<u8>> {
    let unfit = |reason: String| Error::unfit("engine tables", reason);
    if let Some(bad) = tables.seconds.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        return Err(unfit(format!("a time of {bad} s")));
    }
    let mut body = header(tables, encoding).map_err(|e| unfit(e.to_string()))?;
    series_columns(tables, encoding, &mut body);
    match encoding {
        Encoding::Exact => {
            for seconds in &tables.seconds {
                body.extend(seconds.to_le_bytes());
            }
        }
        Encoding::Quantised(step) => quantise(tables, step, &mut body),
    }
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&body).map_err(|e| unfit(e.to_string()))?;
    let packed = encoder.finish().map_err(|e| unfit(e.to_string()))?;
    let mut file = MAGIC.to_vec();
    file.extend(Sha256::digest(&packed));
    file.extend(packed);
    Ok(file)
}

/// Reads the bytes of a file; `location` is for messages.
///
/// # Errors
/// [`Error::BadFile`] when they are not what the writer made.
pub fn from_bytes(location: &str, bytes: &[u8]) -> Result<EngineTables> {
    let bad = |reason: &str| Error::bad_file(location, reason);
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("no file of engine tables"))?;
    if rest.len() < SEAL {
        return Err(bad("ends too early"));
    }
    let (seal, packed) = rest.split_at(SEAL);
    if Sha256::digest(packed).as_slice() != seal {
        return Err(bad("its checksum does not fit: it was cut off or changed"));
    }
    let mut body = Vec::new();
    let mut decoder = DeflateDecoder::new(packed).take(CAP + 1);
    decoder.read_to_end(&mut body).map_err(|_| bad("cannot be unpacked"))?;
    parse(&body).ok_or_else(|| bad("its content is not what the writer makes"))
}

fn header(tables: &EngineTables, encoding: Encoding) -> serde_json::Result<Vec<u8>> {
    let header = serde_json::to_vec(&Header {
        device: tables.device.clone(),
        origin: tables.origin.clone(),
        files: tables.files.clone(),
        left_out: tables.left_out.clone(),
        kernels: tables.kernels.clone(),
        axes: tables.axes.clone(),
        series: tables.series.len(),
        cells: tables.seconds.len(),
        step: match encoding {
            Encoding::Exact => None,
            Encoding::Quantised(step) => Some(step),
        },
    })?;
    let mut body = u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    body.extend(header);
    Ok(body)
}

/// Columns, one after another: each compresses better alone.
fn series_columns(tables: &EngineTables, encoding: Encoding, body: &mut Vec<u8>) {
    let all = &tables.series;
    body.extend(all.iter().map(|s| s.table as u8));
    for series in all {
        push(body, u64::from(series.kernel));
    }
    for series in all {
        push(body, u64::from(series.axis));
    }
    for column in 0..Sizes::default().len() {
        let mut before = 0;
        for series in all {
            let size = i64::from(series.sizes[column]);
            push(body, zigzag(size - before));
            before = size;
        }
    }
    for series in all {
        match encoding {
            Encoding::Exact => body.extend(series.spread.to_le_bytes()),
            Encoding::Quantised(_) => {
                push(body, u64::from(whole(f64::from(series.spread / SPREAD_UNIT).min(1e4))));
            }
        }
    }
}

fn quantise(tables: &EngineTables, step: f64, body: &mut Vec<u8>) {
    let mut neighbours = Neighbours::default();
    for series in &tables.series {
        let (axis, seconds) = tables.points(series);
        neighbours.next(series);
        for (point, seconds) in axis.iter().zip(seconds) {
            let here = level(f64::from(*seconds).ln() / step);
            push(body, zigzag(here - neighbours.expected(*point)));
            neighbours.keep(*point, here);
        }
    }
}

/// What the cells before say about the next one: the series runs on as the one before it did.
#[derive(Default)]
struct Neighbours {
    /// Table, kernel and axis of the series before.
    before: Option<(Table, u32, u32)>,
    last: Vec<i64>,
    this: Vec<i64>,
    /// Second axis of the cell before.
    row: u32,
    /// First cell of the row before.
    row_start: usize,
}

impl Neighbours {
    fn next(&mut self, series: &Series) {
        std::mem::swap(&mut self.last, &mut self.this);
        let key = (series.table, series.kernel, series.axis);
        if self.before.is_none_or(|b| b != key) {
            self.last.clear();
        }
        self.before = Some(key);
        self.this.clear();
        self.row_start = 0;
    }

    fn expected(&self, point: Point) -> i64 {
        let at = self.this.len();
        let from = match at {
            0 => return self.last.first().copied().unwrap_or(0),
            _ if point.1 == self.row => at - 1,
            _ => self.row_start,
        };
        let step = match (self.last.get(at), self.last.get(from)) {
            (Some(here), Some(there)) => here - there,
            _ => 0,
        };
        self.this[from] + step
    }

    fn keep(&mut self, point: Point, level: i64) {
        if point.1 != self.row || self.this.is_empty() {
            self.row_start = self.this.len();
            self.row = point.1;
        }
        self.this.push(level);
    }
}

fn parse(body: &[u8]) -> Option<EngineTables> {
    let mut cursor = Cursor { rest: body };
    let length = u32::from_le_bytes(cursor.take(4)?.try_into().ok()?) as usize;
    let header: Header = strict::from_slice(cursor.take(length)?, CAP).ok()?;
    if header.cells > MAXIMUM_CELLS || header.series > header.cells.min(MAXIMUM_SERIES) {
        return None;
    }
    let mut tables = EngineTables {
        device: header.device,
        origin: header.origin,
        files: header.files,
        left_out: header.left_out,
        kernels: header.kernels,
        axes: header.axes,
        series: Vec::new(),
        seconds: Vec::with_capacity(header.cells),
    };
    tables.series = read_columns(&mut cursor, header.series, header.step.is_none())?;
    place(&mut tables, header.cells)?;
    match header.step {
        None => exact_times(&mut cursor, &mut tables, header.cells)?,
        Some(step) => quantised_times(&mut cursor, &mut tables, step)?,
    }
    cursor.rest.is_empty().then_some(tables)
}

fn read_columns(cursor: &mut Cursor, count: usize, exact: bool) -> Option<Vec<Series>> {
    let mut all: Vec<Series> = Vec::with_capacity(count);
    for &table in cursor.take(count)? {
        let table = *Table::ALL.get(usize::from(table))?;
        all.push(Series { table, kernel: 0, sizes: [0; 8], axis: 0, start: 0, spread: 0.0 });
    }
    for series in &mut all {
        series.kernel = u32::try_from(cursor.varint()?).ok()?;
    }
    for series in &mut all {
        series.axis = u32::try_from(cursor.varint()?).ok()?;
    }
    for column in 0..Sizes::default().len() {
        let mut before = 0i64;
        for series in &mut all {
            before = before.checked_add(unzigzag(cursor.varint()?))?;
            series.sizes[column] = u32::try_from(before).ok()?;
        }
    }
    for series in &mut all {
        series.spread = if exact {
            f32::from_le_bytes(cursor.take(4)?.try_into().ok()?)
        } else {
            cursor.varint()? as f32 * SPREAD_UNIT
        };
    }
    Some(all)
}

/// Where the times of each series start; checks order and indices.
fn place(tables: &mut EngineTables, cells: usize) -> Option<()> {
    let mut start = 0;
    for series in &mut tables.series {
        let axis = tables.axes.get(series.axis as usize)?;
        if series.kernel as usize >= tables.kernels.len() || axis.is_empty() {
            return None;
        }
        series.start = u32::try_from(start).ok()?;
        start += axis.len();
    }
    let ordered = |a: &Series, b: &Series| {
        (a.table, a.kernel, a.sizes) < (b.table, b.kernel, b.sizes)
            && a.spread.is_finite()
            && b.spread.is_finite()
    };
    let rising = |axis: &Vec<Point>| axis.windows(2).all(|w| (w[0].1, w[0].0) < (w[1].1, w[1].0));
    let sound = tables.series.windows(2).all(|w| ordered(&w[0], &w[1]))
        && tables.axes.iter().all(rising)
        && start == cells;
    sound.then_some(())
}

fn exact_times(cursor: &mut Cursor, tables: &mut EngineTables, cells: usize) -> Option<()> {
    for bytes in cursor.take(cells.checked_mul(4)?)?.chunks_exact(4) {
        let seconds = f32::from_le_bytes(bytes.try_into().ok()?);
        if !(seconds.is_finite() && seconds > 0.0) {
            return None;
        }
        tables.seconds.push(seconds);
    }
    Some(())
}

fn quantised_times(cursor: &mut Cursor, tables: &mut EngineTables, step: f64) -> Option<()> {
    if !(step > 0.0 && step < 1.0) {
        return None;
    }
    let mut neighbours = Neighbours::default();
    for series in &tables.series {
        neighbours.next(series);
        for &point in &tables.axes[series.axis as usize] {
            let level = neighbours.expected(point).checked_add(unzigzag(cursor.varint()?))?;
            neighbours.keep(point, level);
            let seconds = single((level as f64 * step).exp());
            if !(seconds.is_finite() && seconds > 0.0) {
                return None;
            }
            tables.seconds.push(seconds);
        }
    }
    Some(())
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(head)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

fn push(body: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        body.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    body.push(value.to_le_bytes()[0]);
}

const fn zigzag(value: i64) -> u64 {
    (value.wrapping_shl(1) ^ (value >> 63)).cast_unsigned()
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::super::gather::tests::{MOE, one, row};
    use super::*;

    fn tables() -> EngineTables {
        let rows: String = (0..12).map(|i| row(1 << i, 0.25 + f64::from(1 << i) * 1e-3)).collect();
        one(&[&format!("{MOE}{rows}{}", row(4, 0.3))])
    }

    #[test]
    fn an_exact_file_reads_back_the_same_and_a_quantised_one_within_half_a_step() {
        let tables = tables();
        let exact = to_bytes(&tables, Encoding::Exact).unwrap();
        assert!(is_tables(&exact));
        assert_eq!(from_bytes("t", &exact).unwrap(), tables);
        let short = to_bytes(&tables, Encoding::Quantised(0.02)).unwrap();
        let read = from_bytes("t", &short).unwrap();
        assert_eq!((read.axes.len(), read.series.len()), (tables.axes.len(), tables.series.len()));
        for (a, b) in read.seconds.iter().zip(&tables.seconds) {
            assert!((a / b).ln().abs() < 0.0101, "{a} {b}");
        }
    }

    #[test]
    fn every_truncation_and_every_changed_byte_is_refused() {
        let bytes = to_bytes(&tables(), Encoding::Exact).unwrap();
        for length in 0..bytes.len() {
            assert_eq!(from_bytes("t", &bytes[..length]).unwrap_err().exit_code(), 3, "{length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(from_bytes("t", &changed).unwrap_err().exit_code(), 3, "{at}");
        }
    }

    #[test]
    fn a_sealed_body_of_nonsense_is_refused_without_a_panic() {
        let whole = to_bytes(&tables(), Encoding::Quantised(0.02)).unwrap();
        let mut body = Vec::new();
        DeflateDecoder::new(&whole[MAGIC.len() + SEAL..]).read_to_end(&mut body).unwrap();
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] = changed[at].wrapping_add(0x71);
            // Whatever comes out, it must not panic.
            let _ = parse(&changed);
            assert!(parse(&body[..at]).is_none());
        }
    }

    #[test]
    fn differences_survive_zigzag_at_both_ends() {
        for value in [0, 1, -1, 12345, -98765, i64::from(u32::MAX)] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }
}
