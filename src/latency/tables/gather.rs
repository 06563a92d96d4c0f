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
use super::narrow::{single, word};
use super::series::{
    EngineTables, ImportedFile, Kernel, LeftOut, MoeSizes, Origin, Point, Series, Sizes, Table,
};
use crate::config::DeviceSpec;
use crate::latency::rates::{Precision, Rates, Work};
use crate::record::sha256_hex;
use crate::{Error, Result};

/// Licence of aiconfigurator's tables.
const LICENCE: &str = "Apache-2.0, Copyright NVIDIA Corporation and contributors";

/// A measured time below this share of the time at the device's peaks is no measurement of this layer.
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
        let names: Vec<_> = paths.iter().map(|p| p.as_ref().display().to_string()).collect();
        let reason = format!("no CSV or Parquet file in {}", names.join(", "));
        return Err(Error::usage("PATH", reason));
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
    /// Known names of devices as tables print them: each is looked up once.
    names: HashMap<String, String>,
    /// Files of which nothing could be used.
    refused: Vec<LeftOut>,
    first_error: Option<Error>,
}

/// Cells of one device.
#[derive(Default)]
pub(super) struct Device {
    pub(super) files: Vec<ImportedFile>,
    pub(super) left_out: Vec<LeftOut>,
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
        if !self.names.contains_key(device) {
            let known = DeviceSpec::of_driver_name(device).map(|d| d.name);
            self.names.insert(device.to_owned(), known.unwrap_or_else(|| device.to_owned()));
        }
        let known = self.names.get(device).map_or(device, String::as_str);
        if !self.devices.contains_key(known) {
            self.devices.insert(known.to_owned(), Device::default());
        }
        if let Some(gathered) = self.devices.get_mut(known) {
            gathered.add(cell);
        }
        let known = known.to_owned();
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
    pub(super) fn add(&mut self, cell: Cell) {
        let next = u32::try_from(self.kernels.len()).unwrap_or(u32::MAX);
        let kernel = match self.kernels.get(&cell.kernel) {
            Some(kernel) => *kernel,
            None => *self.kernels.entry(cell.kernel).or_insert(next),
        };
        let next = u32::try_from(self.series.len()).unwrap_or(u32::MAX);
        let series = *self.series.entry((cell.table, kernel, cell.sizes)).or_insert(next);
        self.cells.push((series, cell.point, single(cell.seconds)));
    }

    /// The tables, as aiconfigurator's.
    pub(super) fn finish(mut self, device: &str, program: &str) -> EngineTables {
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
            let axis = word(*axes.entry(axis).or_insert(next));
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
        rank[*former as usize] = word(place);
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
    (axis, single(spread))
}

/// A MoE layer whose experts are routed alike in all its series: kernel, sizes without tensor
/// parallelism and distribution.
fn routed_alike(series: &Series) -> (u32, Sizes) {
    let mut sizes = MoeSizes::of(&series.sizes);
    (sizes.tensor_parallel, sizes.skew) = (0, 0);
    (series.kernel, sizes.to_sizes())
}

/// Removes MoE series that beat the device's published peaks: vLLM's and SGLang's fp8-block rows
/// of DeepSeek-V3's shape hit half of the experts, since even logits choose the same groups. The
/// fault is one of routing, so all tensor-parallel sizes and distributions of that kernel, shape and
/// EP size go; other kernels and EP sizes stay.
fn leave_out_impossible(tables: &mut EngineTables) {
    let Some(device) = DeviceSpec::recognised(&tables.device) else { return };
    let Ok(rates) = Rates::of(&device) else { return };
    let bad: Vec<(u32, Sizes)> = tables
        .of(Table::Moe)
        .iter()
        .filter(|s| is_impossible(tables, s, &rates))
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
            reason: format!("faster than {} can read or multiply these experts", device.name),
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

fn is_impossible(tables: &EngineTables, series: &Series, rates: &Rates) -> bool {
    let sizes = MoeSizes::of(&series.sizes);
    let Some(precision) = Precision::of(&tables.kernel(series).format) else { return false };
    let params = sizes.expert_params();
    let (axis, seconds) = tables.points(series);
    sizes.skew == 0
        && axis.iter().zip(seconds).any(|(point, seconds)| {
            let load = balanced(&sizes, f64::from(point.0));
            let bytes = load.active * params * precision.bits / 8.0;
            let work = Work { bytes, flops: 2.0 * params * load.rows };
            // Below two rows an expert the synthetic spread may miss some of them.
            load.rows >= 2.0 * sizes.local_experts()
                && bytes > CACHE_FREE_BYTES
                && f64::from(*seconds)
                    < FASTER_THAN_POSSIBLE * rates.floor(work, precision.arithmetic)
        })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::latency::tables) const MOE: &str = "framework,version,device,op_name,\
kernel_source,moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,\
moe_ep_size,distribution,latency\n";
    pub(in crate::latency::tables) const H100: &str = "NVIDIA H100 80GB HBM3";

    /// Tables of some CSV files.
    pub(in crate::latency::tables) fn import(files: &[&str]) -> Result<Vec<EngineTables>> {
        let folder = tempfile::tempdir().unwrap();
        for (index, text) in files.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{index}.csv")), text).unwrap();
        }
        aiconfigurator(&[folder.path()], "test", &mut |_, _, _| {})
    }

    pub(in crate::latency::tables) fn one(files: &[&str]) -> EngineTables {
        let mut all = import(files).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    /// A balanced row of Mixtral's layer.
    pub(in crate::latency::tables) fn row(tokens: usize, latency: f64) -> String {
        format!(
            "VLLM,0.24.0,{H100},moe,triton,bfloat16,{tokens},4096,14336,2,8,1,1,balanced,{latency}\n"
        )
    }

    /// The folder of recorded tables, or `None` with a loud note.
    pub(in crate::latency::tables) fn data(name: &str) -> Option<PathBuf> {
        let data = std::env::var("MOE_FRONTIER_DATA").unwrap_or_else(|_| "../shared/data".into());
        let folder = Path::new(&data).join(name);
        if folder.is_dir() {
            return Some(folder);
        }
        eprintln!("SKIPPED: no {} (set MOE_FRONTIER_DATA)", folder.display());
        None
    }

    #[test]
    fn repeated_cells_become_their_median_and_their_spread() {
        let first = format!("{MOE}{}{}", row(2, 0.5), row(1, 0.25));
        let second = format!("{MOE}{}{}", row(2, 0.52), row(2, 0.6));
        let tables = one(&[&first, &second]);
        assert_eq!((tables.series.len(), tables.cells()), (1, 2));
        let (axis, seconds) = tables.points(&tables.series[0]);
        assert_eq!(axis, [(1, 0), (2, 0)]);
        assert!((f64::from(seconds[1]) - 0.52e-3).abs() < 1e-9);
        let spread = f64::from(tables.series[0].spread);
        assert!((0.05..0.15).contains(&spread), "{spread}");
    }

    #[test]
    fn everything_readable_is_imported_and_the_rest_is_listed_with_its_reason() {
        let good = format!("{MOE}{}{}", row(2, 0.5), row(4, -0.5));
        let lacking = "framework,version,device,gemm_dtype,m,n,latency\n";
        let tables = one(&[&good, lacking, "a,b\n1,2\n"]);
        assert_eq!(tables.cells(), 1);
        let reasons: Vec<&str> = tables.left_out.iter().map(|l| l.reason.as_str()).collect();
        let all = reasons.join("\n");
        for part in ["0.csv:3", "columns missing: k", "has none of moe_dtype"] {
            assert!(all.contains(part), "{part} in {all}");
        }
        // Nothing at all is the error of the first file.
        assert_eq!(import(&["a,b\n1,2\n"]).unwrap_err().exit_code(), 3);
        let folder = tempfile::tempdir().unwrap();
        let none = aiconfigurator(&[folder.path()], "test", &mut |_, _, _| {});
        assert_eq!(none.unwrap_err().exit_code(), 2);
    }

    #[test]
    fn devices_are_kept_apart() {
        let first = format!("{MOE}{}", row(2, 0.5));
        let other = first.replace(H100, "NVIDIA H200");
        let all = import(&[&first, &other]).unwrap();
        assert_eq!([&*all[0].device, &*all[1].device], ["H100 SXM", "H200 SXM"]);
        assert_eq!((all[0].cells(), all[1].cells()), (1, 1));
    }

    #[test]
    fn an_impossible_series_leaves_other_kernels_of_its_shape() {
        // DeepSeek-V3's layer, 11 GB of fp8 weights: 3.3 ms on an H100 at least.
        let row = |engine: &str, kernel: &str, tp: usize, latency: f64| {
            format!(
                "{engine},1.0.0,{H100},moe,{kernel},fp8_block,512,7168,2048,8,256,{tp},1,balanced,{latency}\n"
            )
        };
        let rows = [
            row("VLLM", "triton", 1, 2.0),
            row("VLLM", "triton", 8, 0.5),
            row("TRTLLM", "cutlass", 1, 3.9),
        ];
        let tables = one(&[&format!("{MOE}{}", rows.concat())]);
        let left: Vec<&LeftOut> =
            tables.left_out.iter().filter(|l| l.table == Some(Table::Moe)).collect();
        assert_eq!((left.len(), left[0].rows), (1, 2), "{left:?}");
        assert!(left[0].what.contains("vllm") && left[0].what.contains("7168x2048"));
        assert_eq!(tables.engines(|t| t == Table::Moe), ["trtllm 1.0.0"]);
    }

    #[test]
    fn experts_without_a_gate_are_counted_with_two_matrices() {
        let text = row(512, 0.9).replace("4096,14336,2,8", "2688,1856,6,128");
        let tables = one(&[&format!("{MOE}{text}")]);
        assert!(!MoeSizes::of(&tables.series[0].sizes).gated);
    }

    #[test]
    fn older_tables_without_a_device_column_take_it_from_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let system = folder.path().join("h200_sxm");
        std::fs::create_dir(&system).unwrap();
        let text = "framework,version,op_name,nccl_dtype,num_gpus,message_size,latency\n\
TRTLLM,2.20.0,all_reduce,half,8,1024,0.02\n";
        std::fs::write(system.join("nccl_perf.csv"), text).unwrap();
        let tables = &aiconfigurator(&[&system], "test", &mut |_, _, _| {}).unwrap()[0];
        assert_eq!(
            (tables.device.as_str(), tables.kernels[0].engine.as_str()),
            ("H200 SXM", "nccl")
        );
        assert_eq!(tables.points(&tables.series[0]).0, [(2048, 0)]);
    }

    #[test]
    fn recorded_tables_of_both_formats_agree() {
        let Some(folder) = data("aiconfigurator") else { return };
        let all = aiconfigurator(&[&folder], "test", &mut |_, _, _| {}).unwrap();
        let tables = &all[0];
        assert_eq!((all.len(), tables.files.len(), tables.device.as_str()), (1, 6, "H100 SXM"));
        // One token of a Mixtral layer with vLLM 0.24, as the table prints it.
        let series = tables.of(Table::Moe).iter().find(|s| {
            let kernel = tables.kernel(s);
            (kernel.engine.as_str(), kernel.version.as_str()) == ("vllm", "0.24.0")
                && kernel.format == "bfloat16"
                && s.sizes == [4096, 14336, 8, 2, 1, 1, 0, 1]
        });
        let first = tables.points(series.unwrap()).1[0];
        assert!((f64::from(first) - 0.259e-3).abs() < 1e-6, "{first}");
        // The CSV's vLLM 0.24 rows stand in the Parquet file bit for bit: no spread.
        assert_eq!(series.unwrap().spread.to_bits(), 0);
    }

    #[test]
    fn damaged_parquet_files_are_refused_without_a_panic() {
        let Some(folder) = data("aiconfigurator") else { return };
        let bytes = std::fs::read(folder.join("moe_perf_h100_vllm_0.24.0.parquet")).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("cut.parquet");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            aiconfigurator(&[&path], "test", &mut |_, _, _| {})
        };
        for keep in [4, 5, 100, bytes.len() / 2, bytes.len() - 1] {
            assert_eq!(read(&bytes[..keep]).unwrap_err().exit_code(), 3, "{keep}");
        }
        for step in 1..8 {
            let mut damaged = bytes.clone();
            let at = bytes.len() - step * 97;
            damaged[at] ^= 0x55;
            if let Err(error) = read(&damaged) {
                assert!([3, 4].contains(&error.exit_code()), "{error}");
            }
        }
    }
}
