//! Results of nccl-tests (`-J FILE`) as tables of collectives.
//!
//! Fields as `src/util.cu` of nccl-tests writes them: `args`, `nccl_version`, `config` with the devices, `results`
//! with a size in bytes and times in microseconds, out of place and in place. With MPI a device of each process
//! is listed, whatever it drives, so that ranks are processes times threads times GPUs of each.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::dialect::Cell;
use super::from_group::collective_sizes;
use super::gather::Device;
use super::narrow::word;
use super::series::{EngineTables, ImportedFile, Kernel, LeftOut, Origin, Table};
use crate::config::DeviceSpec;
use crate::files::{read_capped, strict};
use crate::record::sha256_hex;
use crate::{Error, Result};

/// Longest file that is read.
const CAP: u64 = 64 << 20;

#[derive(Deserialize)]
struct Report {
    args: Vec<String>,
    nccl_version: u32,
    config: Config,
    results: Vec<Row>,
}

#[derive(Deserialize)]
struct Config {
    nthreads: u32,
    ngpus: u32,
    #[serde(default)]
    graph: u32,
    devices: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    hostname: String,
    device_info: String,
}

#[derive(Deserialize)]
struct Row {
    size: i64,
    #[serde(rename = "type")]
    format: String,
    out_of_place: Option<Body>,
    in_place: Option<Body>,
}

#[derive(Deserialize)]
struct Body {
    /// Absent where processor time was reported instead.
    time: Option<f64>,
    nwrong: Option<f64>,
}

/// Reads results of one device kind.
///
/// # Errors
/// [`Error::BadFile`] for a file that is none, [`Error::Unfit`] when files are of different devices or hold no
/// collective that is asked for here.
pub fn read<P: AsRef<Path>>(paths: &[P], program: &str) -> Result<EngineTables> {
    let mut gathered = Device::default();
    let mut device: Option<String> = None;
    for path in paths {
        let path = path.as_ref();
        let bytes = read_capped(path, CAP)?;
        let report: Report = strict::from_slice(&bytes, CAP).map_err(|e| {
            Error::bad_file_at(path, e.line(), e.column(), format!("no result of nccl-tests: {e}"))
        })?;
        let of = device_of(path, &report.config)?;
        if *device.get_or_insert_with(|| of.clone()) != of {
            let reason =
                format!("is of {of}, the files before are of {}", device.unwrap_or_default());
            return Err(Error::unfit(path.display().to_string(), reason));
        }
        add(&mut gathered, path, &report, &bytes)?;
    }
    let device = device.ok_or_else(|| Error::usage("FILE", "name a file"))?;
    let mut tables = gathered.finish(&device, program);
    if tables.seconds.is_empty() {
        let why = tables.left_out.first().map_or("it has no rows", |left| left.reason.as_str());
        return Err(Error::unfit("nccl-tests", format!("no row can be used: {why}")));
    }
    tables.origin = Origin {
        name: "nccl-tests".into(),
        commit: None,
        date: None,
        licence: "own measurement".into(),
        program: program.to_owned(),
    };
    Ok(tables)
}

/// The device of all ranks.
fn device_of(path: &Path, config: &Config) -> Result<String> {
    let kinds: BTreeSet<&str> = config.devices.iter().map(|d| d.device_info.trim()).collect();
    let mut kinds = kinds.into_iter();
    match (kinds.next(), kinds.next()) {
        (Some(only), None) => {
            let known = DeviceSpec::of_driver_name(only).map(|device| device.name);
            Ok(known.unwrap_or_else(|| only.to_owned()))
        }
        (Some(one), Some(other)) => {
            let reason = format!("its ranks have different devices: {one}, {other}");
            Err(Error::unfit(path.display().to_string(), reason))
        }
        _ => Err(Error::bad_file(path, "no result of nccl-tests: it lists no device")),
    }
}

fn add(gathered: &mut Device, path: &Path, report: &Report, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let program = report.args.first().map_or("", String::as_str);
    let program = program.rsplit('/').next().unwrap_or_default();
    let table = match program.trim_end_matches("_perf") {
        "all_reduce" => Table::AllReduce,
        "all_gather" => Table::AllGather,
        "reduce_scatter" => Table::ReduceScatter,
        "alltoall" => Table::AllToAll,
        other => {
            let reason = format!(
                "`{other}`: all_reduce_perf, all_gather_perf, reduce_scatter_perf and alltoall_perf are read"
            );
            return Err(Error::unfit(path.display().to_string(), reason));
        }
    };
    let config = &report.config;
    let each = config.nthreads.saturating_mul(config.ngpus).max(1);
    let ranks = word(config.devices.len()).saturating_mul(each);
    let hosts: BTreeSet<&str> = config.devices.iter().map(|d| d.hostname.as_str()).collect();
    let sizes = collective_sizes(ranks, word(hosts.len()));
    let source = if config.graph > 0 { "nccl-tests in a graph" } else { "nccl-tests" };
    let (mut rows, mut refused) = (0, 0);
    let mut why = String::new();
    for row in &report.results {
        match seconds(row) {
            Ok((bytes, seconds)) => {
                rows += 1;
                gathered.add(Cell {
                    table,
                    kernel: Kernel {
                        engine: "nccl".into(),
                        version: version(report.nccl_version),
                        source: source.into(),
                        format: row.format.clone(),
                        cache: String::new(),
                    },
                    sizes,
                    point: (bytes, 0),
                    seconds,
                });
            }
            Err(reason) => {
                refused += 1;
                why = reason;
            }
        }
    }
    if refused > 0 {
        gathered.left_out.push(LeftOut {
            what: name.clone(),
            table: Some(table),
            rows: refused,
            reason: why,
        });
    }
    gathered.files.push(ImportedFile { name, sha256: sha256_hex(bytes), rows, refused });
    Ok(())
}

/// Size and time of a row: out of place, else in place.
fn seconds(row: &Row) -> Result<(u32, f64), String> {
    let bytes = u32::try_from(row.size).ok().filter(|bytes| *bytes > 0);
    let bytes = bytes.ok_or_else(|| {
        format!("size {}: sizes of 2 GiB and more are written as other numbers", row.size)
    })?;
    let body = row.out_of_place.as_ref().or(row.in_place.as_ref());
    let body = body.ok_or_else(|| "neither out of place nor in place".to_owned())?;
    if body.nwrong.is_some_and(|wrong| wrong > 0.0) {
        return Err(format!("{bytes} bytes: wrong results"));
    }
    match body.time {
        Some(us) if us.is_finite() && us > 0.0 => Ok((bytes, us * 1e-6)),
        Some(us) => Err(format!("{bytes} bytes took {us} us")),
        None => Err("processor times were written instead of times".into()),
    }
}

/// 23203 is 2.32.3; before 2.9 a digit less was written.
fn version(number: u32) -> String {
    let (major, minor, patch) = if number >= 10_000 {
        (number / 10_000, number / 100 % 100, number % 100)
    } else {
        (number / 1000, number / 100 % 10, number % 100)
    };
    format!("{major}.{minor}.{patch}")
}

#[cfg(test)]
mod tests {
    use super::super::tables_model::TablesModel;
    use super::*;
    use crate::latency::LatencyModel;
    use crate::latency::query::{CollectiveKind, CollectiveQuery, Query};
    use crate::latency::source::Source;

    /// What `write_benchmark_line_body` and the others of nccl-tests write for two processes of eight GPUs.
    fn report(program: &str, hosts: [&str; 2], rows: &str) -> String {
        let device = |rank: usize, host: &str| {
            format!(
                r#"{{"rank":{rank},"group":0,"pid":1,"hostname":"{host}","device":0,"device_hex":"0x19","device_info":"NVIDIA H100 80GB HBM3"}}"#
            )
        };
        format!(
            r#"{{"start_time":"2026-11-30 10:00:00","args":["\/opt\/nccl-tests\/build\/{program}","-J","x"],"env":["PATH=\/bin"],"nccl_version":22803,"config":{{"nthreads":1,"ngpus":8,"minimum_bytes":8,"maximum_bytes":128,"step_factor":2,"warmup_iters":1,"iterations":20,"aggregated_iterations":1,"validation":1,"graph":0,"blocking_collectives":"false","parallel_init":"false","devices":[{},{}]}},"results":[{rows}],"out_of_bounds":{{"count":0,"okay":"true"}},"average_bus_bandwidith":{{"bandwidith":1.0,"okay":"unchecked"}},"errors":[],"end_time":"2026-11-30 10:01:00"}}"#,
            device(0, hosts[0]),
            device(8, hosts[1])
        )
    }

    fn row(size: i64, us: &str, wrong: &str) -> String {
        let body = format!(
            r#"{{"time":{us},"alg_bw":1.0,"bus_bw":1.0,"nwrong":{wrong},"side_comp_bw":null,"estimated_time":null}}"#
        );
        format!(
            r#"{{"size":{size},"count":1,"type":"float","redop":"sum","root":"    -1","out_of_place":{body},"in_place":{body},"actual_iterations":20,"experiment_name":"x"}}"#
        )
    }

    fn imported(text: &str) -> Result<EngineTables> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        std::fs::write(&path, text).unwrap();
        read(&[path], "test")
    }

    #[test]
    fn a_result_over_two_nodes_answers_for_two_nodes() {
        let rows =
            [row(1024, "30.500000", "0.000000"), row(1 << 20, "90.250000", "null")].join(",");
        let tables = imported(&report("alltoall_perf", ["a", "b"], &rows)).unwrap();
        assert_eq!((tables.cells(), tables.kernels[0].version.as_str()), (2, "2.28.3"));
        let series = tables.of(Table::AllToAll)[0];
        assert_eq!(series.sizes[..2], [16, 2]);
        let h100 = DeviceSpec::named("h100").unwrap();
        let model = TablesModel::new(std::sync::Arc::new(tables), &h100, None).unwrap();
        let kind = CollectiveKind::AllToAll;
        let query = CollectiveQuery { kind, devices: 16, nodes: 2, bytes: f64::from(1 << 20) };
        let answer = model.answer(&Query::Collective(query)).unwrap();
        assert_eq!(answer.source, Source::Measured);
        assert!((answer.value.0 - 90.25e-6).abs() < 1e-9);
        // The same hosts: one node.
        let one = imported(&report("all_reduce_perf", ["a", "a"], &row(8, "5.0", "0"))).unwrap();
        assert_eq!(one.of(Table::AllReduce)[0].sizes[..2], [16, 0]);
    }

    #[test]
    fn rows_without_a_right_result_are_left_out_and_other_files_refused() {
        let rows = [
            row(8, "5.0", "3.000000"),
            row(-2_147_483_648, "5.0", "0"),
            row(16, "0.000000", "0"),
            row(32, "6.0", "0"),
        ]
        .join(",");
        let tables = imported(&report("all_reduce_perf", ["a", "b"], &rows)).unwrap();
        assert_eq!((tables.cells(), tables.left_out[0].rows), (1, 3));
        let code = |text: &str| imported(text).unwrap_err().exit_code();
        assert_eq!(code("{}"), 3);
        assert_eq!(code(&report("sendrecv_perf", ["a", "b"], &row(8, "5.0", "0"))), 4);
        assert_eq!(code(&report("all_reduce_perf", ["a", "b"], &row(8, "5.0", "1"))), 4);
        assert_eq!(code(&report("all_reduce_perf", ["a", "b"], "").replacen("HBM3", "PCIe", 1)), 4);
    }
}
