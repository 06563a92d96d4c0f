//! Third-party kernel tables into [`EngineTables`], one per device.
//!
//! Everything that can be read is imported; what cannot is listed with its reason. Repetitions of a
//! cell become their median, and their spread becomes the spread of the series. Series that beat
//! the device's memory are left out: their layer is another one than the columns say.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::dialect::{Cell, Dialect};
use super::flat_table::{FlatTable, Row};
use super::load::balanced;
use super::rates::Precision;
use super::series::{
    EngineTables, ImportedFile, Kernel, LeftOut, MoeSizes, Origin, Point, Series, Sizes, Table,
};
use crate::config::DeviceSpec;
use crate::measure::record::sha256_hex;
use crate::{Error, Result};

/// Licence of aiconfigurator's tables.
const LICENCE: &str = "Apache-2.0, Copyright NVIDIA Corporation and contributors";

/// A measured time below this share of the time of its bytes is no measurement of this layer.
const FASTER_THAN_POSSIBLE: f64 = 1.0 / 1.02;

/// Weights of this size do not fit the last cache of any device here (126 MB on a B200), so that
/// they must have come from memory.
const CACHE_FREE_BYTES: f64 = 200e6;

/// Folders below a given one that are searched.
const DEPTH: usize = 4;

/// Reasons are listed for this many rows of a file; all rows are counted.
const REASONS: usize = 3;

/// Reads aiconfigurator tables: files, or folders of them. `watch` hears of each file before it is
/// read: how many were, how many there are, its name. One result for each device, sorted by name.
///
/// # Errors
/// [`Error::Usage`] when there is no table at all, [`Error::Io`] for a path that cannot be read,
/// the first file's error when nothing could be imported.
pub fn aiconfigurator<P: AsRef<Path>>(
    paths: &[P],
    program: &str,
    watch: &mut dyn FnMut(usize, usize, &str),
) -> Result<Vec<EngineTables>> {
    let files = table_files(paths)?;
    let mut gathered = Gathered::default();
    for (done, path) in files.iter().enumerate() {
        watch(done, files.len(), &short_name(path));
        gathered.read(path)?;
    }
    gathered.finish(program)
}

/// Files as given and every CSV and Parquet file below folders, sorted.
fn table_files<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let path = path.as_ref();
        if path.is_dir() {
            let before = files.len();
            below(path, DEPTH, &mut files)?;
            files[before..].sort();
        } else {
            files.push(path.to_owned());
        }
    }
    files.dedup();
    if files.is_empty() {
        return Err(Error::usage("PATH", "no CSV or Parquet file there"));
    }
    Ok(files)
}

fn below(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |e| Error::io("read", folder, e);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().unwrap_or_default();
        if path.is_dir() && depth > 0 {
            below(&path, depth - 1, files)?;
        } else if (extension == "parquet" || extension == "csv") && path.is_file() {
            // Lists of tables that lie beside them are no tables.
            if path.file_stem().is_none_or(|stem| stem != "index") {
                files.push(path);
            }
        }
    }
    Ok(())
}

/// The last folder and the name of a path.
fn short_name(path: &Path) -> String {
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
    let folder = path.parent().and_then(name);
    let name = name(path).unwrap_or_default();
    folder.map_or_else(|| name.clone(), |folder| format!("{folder}/{name}"))
}

#[derive(Default)]
struct Gathered {
    devices: BTreeMap<String, Device>,
    /// Files of which nothing could be used.
    refused: Vec<LeftOut>,
    first_error: Option<Error>,
}

/// Cells of one device.
#[derive(Default)]
struct Device {
    files: Vec<ImportedFile>,
    left_out: Vec<LeftOut>,
    kernels: HashMap<Kernel, u32>,
    series: HashMap<(Table, u32, Sizes), u32>,
    cells: Vec<(u32, Point, f32)>,
}

impl Gathered {
    fn read(&mut self, path: &Path) -> Result<()> {
        let name = short_name(path);
        let table = FlatTable::read(path);
        let opened = table.and_then(|table| Ok((Dialect::of(&table)?, table)));
        let (dialect, table) = match opened {
            Ok(opened) => opened,
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => {
                let reason = error.to_string();
                let left = LeftOut { what: name, table: None, rows: 0, reason };
                self.refused.push(left);
                self.first_error.get_or_insert(error);
                return Ok(());
            }
        };
        let mut rows = BTreeMap::<String, usize>::new();
        let mut refused = Refused::default();
        let folder = device_of_folder(path);
        for row in table.rows() {
            match self.add(dialect, &row, folder.as_deref()) {
                Ok(device) => *rows.entry(device).or_default() += 1,
                Err(error) => refused.add(error),
            }
        }
        self.note_file(name, &table, rows, refused);
        Ok(())
    }

    /// Adds one row; the device that it belongs to.
    fn add(&mut self, dialect: Dialect, row: &Row, folder: Option<&str>) -> Result<String> {
        let device = row.text("device").or(folder).ok_or_else(|| {
            row.bad("column `device` is missing, and the folder is not named after a known device")
        })?;
        let cell = dialect.cell(row)?;
        let known =
            DeviceSpec::of_driver_name(device).map_or_else(|| device.to_owned(), |d| d.name);
        self.devices.entry(known.clone()).or_default().add(cell);
        Ok(known)
    }

    fn note_file(
        &mut self,
        name: String,
        table: &FlatTable,
        rows: BTreeMap<String, usize>,
        refused: Refused,
    ) {
        let sha256 = sha256_hex(&table.bytes);
        let left = refused.left_out(&name);
        if rows.is_empty() {
            let empty = LeftOut { what: name, table: None, rows: 0, reason: "no rows".into() };
            self.refused.push(left.unwrap_or(empty));
            self.first_error = self.first_error.take().or(refused.first);
            return;
        }
        for (device, rows) in rows {
            let device = self.devices.entry(device).or_default();
            let refused = refused.rows;
            device.files.push(ImportedFile {
                name: name.clone(),
                sha256: sha256.clone(),
                rows,
                refused,
            });
            device.left_out.extend(left.clone());
        }
    }

    fn finish(self, program: &str) -> Result<Vec<EngineTables>> {
        if self.devices.is_empty() {
            let none = || Error::usage("PATH", "no row could be imported");
            return Err(self.first_error.unwrap_or_else(none));
        }
        let mut all = Vec::new();
        for (device, gathered) in self.devices {
            let mut tables = gathered.finish(&device, program);
            tables.left_out.extend(self.refused.iter().cloned());
            leave_out_impossible(&mut tables);
            all.push(tables);
        }
        Ok(all)
    }
}

/// Rows of a file that could not be read.
#[derive(Default)]
struct Refused {
    rows: usize,
    reasons: Vec<String>,
    first: Option<Error>,
}

impl Refused {
    fn add(&mut self, error: Error) {
        self.rows += 1;
        if self.reasons.len() < REASONS {
            self.reasons.push(error.to_string());
        }
        self.first.get_or_insert(error);
    }

    fn left_out(&self, file: &str) -> Option<LeftOut> {
        let more = self.rows.saturating_sub(REASONS);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        (self.rows > 0).then(|| LeftOut {
            what: file.to_owned(),
            table: None,
            rows: self.rows,
            reason: self.reasons.join("; ") + &more,
        })
    }
}

/// Name of the device after which a folder above a file is named.
fn device_of_folder(path: &Path) -> Option<String> {
    let folders = path.ancestors().skip(1).filter_map(Path::file_name).take(DEPTH);
    let known = folders.filter_map(|name| DeviceSpec::named(name.to_str()?));
    known.map(|device| device.name).next()
}

impl Device {
    fn add(&mut self, cell: Cell) {
        let next = u32::try_from(self.kernels.len()).unwrap_or(u32::MAX);
        let kernel = match self.kernels.get(&cell.kernel) {
            Some(kernel) => *kernel,
            None => *self.kernels.entry(cell.kernel).or_insert(next),
        };
        let next = u32::try_from(self.series.len()).unwrap_or(u32::MAX);
        let series = *self.series.entry((cell.table, kernel, cell.sizes)).or_insert(next);
        self.cells.push((series, cell.point, cell.seconds as f32));
    }

    fn finish(mut self, device: &str, program: &str) -> EngineTables {
        let (kernels, rank) = sorted_kernels(self.kernels);
        let mut keys: Vec<((Table, u32, Sizes), u32)> = self
            .series
            .into_iter()
            .map(|((table, kernel, sizes), id)| ((table, rank[kernel as usize], sizes), id))
            .collect();
        keys.sort_unstable();
        self.cells.sort_by(|a, b| {
            (a.0, a.1.1, a.1.0).cmp(&(b.0, b.1.1, b.1.0)).then(a.2.total_cmp(&b.2))
        });
        let mut tables = EngineTables {
            device: device.to_owned(),
            origin: Origin {
                name: "aiconfigurator".into(),
                commit: None,
                date: None,
                licence: LICENCE.into(),
                program: program.into(),
            },
            files: self.files,
            left_out: self.left_out,
            kernels,
            ..EngineTables::default()
        };
        let mut axes = HashMap::new();
        for ((table, kernel, sizes), id) in keys {
            let from = self.cells.partition_point(|c| c.0 < id);
            let to = self.cells.partition_point(|c| c.0 <= id);
            let start = u32::try_from(tables.seconds.len()).unwrap_or(u32::MAX);
            let (axis, spread) = medians(&self.cells[from..to], &mut tables.seconds);
            let next = axes.len();
            let axis = *axes.entry(axis).or_insert(next) as u32;
            tables.series.push(Series { table, kernel, sizes, axis, start, spread });
        }
        let mut sorted: Vec<(Vec<Point>, usize)> = axes.into_iter().collect();
        sorted.sort_unstable_by_key(|(_, index)| *index);
        tables.axes = sorted.into_iter().map(|(axis, _)| axis).collect();
        tables
    }
}

/// Kernels in order, and the place of each former index.
fn sorted_kernels(kernels: HashMap<Kernel, u32>) -> (Vec<Kernel>, Vec<u32>) {
    let mut all: Vec<(Kernel, u32)> = kernels.into_iter().collect();
    all.sort_unstable();
    let mut rank = vec![0; all.len()];
    for (place, (_, former)) in all.iter().enumerate() {
        rank[*former as usize] = place as u32;
    }
    (all.into_iter().map(|(kernel, _)| kernel).collect(), rank)
}

/// Appends the median of each cell of a series (sorted by point and time); its points, and the
/// standard deviation of ln(time) within cells.
fn medians(cells: &[(u32, Point, f32)], seconds: &mut Vec<f32>) -> (Vec<Point>, f32) {
    let mut axis = Vec::new();
    let (mut squares, mut degrees) = (0.0, 0);
    for same in cells.chunk_by(|a, b| a.1 == b.1) {
        let middle = same.len() / 2;
        let median = if same.len() % 2 == 1 {
            same[middle].2
        } else {
            f32::midpoint(same[middle - 1].2, same[middle].2)
        };
        let logs: Vec<f64> = same.iter().map(|c| f64::from(c.2).ln()).collect();
        let mean = logs.iter().sum::<f64>() / logs.len() as f64;
        squares += logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>();
        degrees += same.len() - 1;
        axis.push(same[0].1);
        seconds.push(median);
    }
    let spread = if degrees > 0 { (squares / degrees as f64).sqrt() } else { 0.0 };
    (axis, spread as f32)
}

/// A MoE layer whose experts are routed alike in all its series: kernel, sizes without tensor
/// parallelism and distribution.
fn routed_alike(series: &Series) -> (u32, Sizes) {
    let mut sizes = MoeSizes::of(&series.sizes);
    (sizes.tensor_parallel, sizes.skew) = (0, 0);
    (series.kernel, sizes.to_sizes())
}

/// Removes MoE series that beat the device's published bandwidth: vLLM's and SGLang's fp8-block rows
/// of DeepSeek-V3's shape hit half of the experts, since even logits choose the same groups. The
/// fault is one of routing, so all tensor-parallel sizes and distributions of that kernel, shape and
/// EP size go; other kernels and EP sizes stay.
fn leave_out_impossible(tables: &mut EngineTables) {
    let Some(device) =
        DeviceSpec::of_driver_name(&tables.device).or_else(|| DeviceSpec::named(&tables.device))
    else {
        return;
    };
    let bad: Vec<(u32, Sizes)> = tables
        .of(Table::Moe)
        .iter()
        .filter(|s| is_impossible(tables, s, device.read_bytes_per_s))
        .map(routed_alike)
        .collect();
    let drop = |s: &Series| s.table == Table::Moe && bad.contains(&routed_alike(s));
    let mut left: BTreeMap<(u32, Sizes), usize> = BTreeMap::new();
    for series in tables.series.iter().filter(|s| drop(s)) {
        *left.entry(routed_alike(series)).or_default() += tables.points(series).0.len();
    }
    for ((kernel, sizes), rows) in left {
        let sizes = MoeSizes::of(&sizes);
        tables.left_out.push(LeftOut {
            what: format!(
                "{}: {}x{}, {} experts, top-{}, EP{}",
                tables.kernels[kernel as usize],
                sizes.hidden,
                sizes.inter,
                sizes.experts,
                sizes.top_k,
                sizes.expert_parallel
            ),
            table: Some(Table::Moe),
            rows,
            reason: format!("faster than {} can read these experts", device.name),
        });
    }
    let kept: Vec<Series> = tables.series.iter().filter(|s| !drop(s)).copied().collect();
    keep_only(tables, kept);
}

/// Keeps some series of the tables and packs their times again.
pub(super) fn keep_only(tables: &mut EngineTables, mut kept: Vec<Series>) {
    let mut seconds = Vec::with_capacity(tables.seconds.len());
    for series in &mut kept {
        let times = tables.points(series).1;
        series.start = u32::try_from(seconds.len()).unwrap_or(u32::MAX);
        seconds.extend_from_slice(times);
    }
    (tables.series, tables.seconds) = (kept, seconds);
}

fn is_impossible(tables: &EngineTables, series: &Series, read_bytes_per_s: f64) -> bool {
    let sizes = MoeSizes::of(&series.sizes);
    let Some(precision) = Precision::of(&tables.kernel(series).format) else { return false };
    let expert = sizes.expert_params() * precision.bits / 8.0;
    let (axis, seconds) = tables.points(series);
    sizes.skew == 0
        && axis.iter().zip(seconds).any(|(point, seconds)| {
            let load = balanced(&sizes, f64::from(point.0));
            // Below two rows an expert the synthetic spread may miss some of them.
            let bytes = expert * load.active;
            load.rows >= 2.0 * sizes.local_experts()
                && bytes > CACHE_FREE_BYTES
                && f64::from(*seconds) < FASTER_THAN_POSSIBLE * bytes / read_bytes_per_s
        })
}
