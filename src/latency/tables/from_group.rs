//! What this program measured over a group of ranks (`measure --group`), as tables.
//!
//! Decode steps take the time of a pair in a chain, steps with prompts that of a dispatch and of a combine. The
//! routing of the run is part of the kernel's name: exchanges under skew are other exchanges.

use std::path::Path;

use serde::Deserialize;

use super::dialect::Cell;
use super::gather::Device;
use super::narrow::word;
use super::series::{EngineTables, ExchangeSizes, ImportedFile, Kernel, Origin, Table};
use crate::files::seal::from_sealed;
use crate::record::group::{Collective, GROUP_SCHEMA, GROUP_VERSION, GroupRecord, GroupTiming};
use crate::record::{PROTOCOL_VERSION, sha256_hex};
use crate::{Error, Result};

/// Longest file that is read.
const CAP: u64 = 64 << 20;

#[derive(Deserialize)]
struct Header {
    schema: Option<String>,
}

/// Whether a file is what a group has measured.
pub fn is_group(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Header>(bytes)
        .is_ok_and(|header| header.schema.as_deref() == Some(GROUP_SCHEMA))
}

/// Reads what a group has measured, and checks that it can be true.
///
/// # Errors
/// [`Error::BadFile`] when it is not what `measure --group` writes, [`Error::Unfit`] when it cannot be true.
pub fn read(path: &Path, bytes: Vec<u8>) -> Result<GroupRecord> {
    let record: GroupRecord = from_sealed(path, bytes, CAP)?;
    if record.schema_version != GROUP_VERSION {
        let reason = format!(
            "written as version {}; this program reads {GROUP_VERSION}",
            record.schema_version
        );
        return Err(Error::bad_file(path, reason));
    }
    check(&record).map_err(|reason| Error::unfit(path.display().to_string(), reason))?;
    Ok(record)
}

fn check(record: &GroupRecord) -> Result<(), String> {
    let holds =
        |holds: bool, otherwise: &str| if holds { Ok(()) } else { Err(otherwise.to_owned()) };
    holds(record.protocol_version == PROTOCOL_VERSION, "measured under another protocol")?;
    let ranks = record.hosts.len();
    holds((1..=1 << 16).contains(&ranks), "no ranks, or more than there can be")?;
    holds((1..=ranks).contains(&record.nodes), "the nodes are not those of the ranks")?;
    let is_sound = |t: &GroupTiming| {
        0 < t.lo_ps && t.lo_ps <= t.median_ps && t.median_ps <= t.hi_ps && t.samples > 0
    };
    for r in &record.exchanges {
        let timings = [&r.dispatch, &r.combine, &r.pair, &r.layer];
        holds(timings.into_iter().all(is_sound), "a duration is none")?;
        let sizes = [r.hidden, r.experts, r.top_k, r.tokens_per_rank];
        let fits = sizes.iter().all(|n| (1..1 << 31).contains(n));
        holds(fits && r.top_k <= r.experts, "the sizes of an exchange are none")?;
        holds(r.worst_ratio_to_bound <= 1.0, "an output was wrong")?;
    }
    for r in &record.collectives {
        holds(is_sound(&r.time) && r.bytes > 0, "a duration is none")?;
        let algbw = r.bytes as f64 / (r.time.median_ps as f64 * 1e-12) / 1e9;
        let busbw = algbw * r.kind.bus_factor(ranks);
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
        holds(
            near(r.algbw_gb_per_s, algbw) && near(r.busbw_gb_per_s, busbw),
            "a bandwidth does not follow from size and time",
        )?;
    }
    Ok(())
}

/// The tables of a group's record; `name` is the file's.
pub fn tables(name: &str, bytes: &[u8], record: &GroupRecord) -> EngineTables {
    let mut device = Device::default();
    let (ranks, nodes) = (word(record.hosts.len()), word(record.nodes));
    let seconds = |ps: u64| ps as f64 * 1e-12;
    for r in &record.exchanges {
        let format = if r.wire_bits == 16 { "bfloat16" } else { "float32" };
        let kernel = Kernel {
            engine: record.group.clone(),
            version: record.library.clone(),
            source: format!("{} {}", r.copies, r.routing),
            format: format.into(),
            cache: String::new(),
        };
        let sizes = ExchangeSizes {
            ranks,
            nodes,
            hidden: word(r.hidden),
            top_k: word(r.top_k),
            experts: word(r.experts),
            part: 0,
        };
        let both = r.dispatch.median_ps.saturating_add(r.combine.median_ps);
        for (table, ps) in
            [(Table::DecodeExchange, r.pair.median_ps), (Table::PrefillExchange, both)]
        {
            device.add(Cell {
                table,
                kernel: kernel.clone(),
                sizes: sizes.to_sizes(),
                point: (word(r.tokens_per_rank), 0),
                seconds: seconds(ps),
            });
        }
    }
    for r in &record.collectives {
        device.add(Cell {
            table: of_collective(r.kind),
            kernel: Kernel {
                engine: record.group.clone(),
                version: record.library.clone(),
                source: "measured".into(),
                format: "float".into(),
                cache: String::new(),
            },
            sizes: collective_sizes(ranks, nodes),
            point: (word(r.bytes), 0),
            seconds: seconds(r.time.median_ps),
        });
    }
    device.files.push(ImportedFile {
        name: name.to_owned(),
        sha256: sha256_hex(bytes),
        rows: record.exchanges.len() + record.collectives.len(),
        refused: 0,
    });
    let mut tables = device.finish(record.device.name(), &record.program);
    tables.origin = Origin {
        name: format!("measured over {} ranks on {} nodes", record.hosts.len(), record.nodes),
        commit: None,
        date: None,
        licence: "own measurement".into(),
        program: record.program.clone(),
    };
    tables
}

const fn of_collective(kind: Collective) -> Table {
    match kind {
        Collective::AllReduce => Table::AllReduce,
        Collective::AllToAll => Table::AllToAll,
        Collective::AllGather => Table::AllGather,
        Collective::ReduceScatter => Table::ReduceScatter,
    }
}

/// Sizes of a collective: the nodes stand only where there are several.
pub(super) fn collective_sizes(ranks: u32, nodes: u32) -> super::series::Sizes {
    [ranks, if nodes > 1 { nodes } else { 0 }, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::super::tables_model::TablesModel;
    use super::*;
    use crate::config::{DType, DeviceSpec};
    use crate::files::seal::to_sealed;
    use crate::latency::query::{CollectiveKind, CollectiveQuery, ExchangeQuery, Phase, Query};
    use crate::latency::source::Source;
    use crate::latency::{Absent, LatencyModel};
    use crate::record::group::{CollectiveRecord, ExchangeRecord};
    use crate::record::{Device, GpuDevice};

    fn timing(us: f64) -> GroupTiming {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive test value"
        )]
        let ps = (us * 1e6) as u64;
        GroupTiming { median_ps: ps, lo_ps: ps, hi_ps: ps, fastest_rank_ps: ps / 2, samples: 60 }
    }

    /// Sixteen H100 on two nodes, with made-up times.
    fn record() -> GroupRecord {
        let exchange = |tokens: usize| {
            let us = 50.0 + tokens as f64;
            ExchangeRecord {
                hidden: 7168,
                inter: 2048,
                experts: 256,
                top_k: 8,
                tokens_per_rank: tokens,
                dtype: DType::Bf16,
                routing: "zipf:0.8".into(),
                seed: "0x1".into(),
                copies: "token_rank".into(),
                wire_bits: 16,
                busiest_over_mean: 1.3,
                rows_sent: 10,
                rows_own: 1,
                logical_bytes_per_rank: 1e6,
                logical_gb_per_s: 1.0,
                dispatch: timing(us),
                expert: timing(1.0),
                combine: timing(2.0 * us),
                pair: timing(2.5 * us),
                layer: timing(4.0 * us),
                worst_ratio_to_bound: 0.5,
            }
        };
        let seconds = 100e-6;
        let algbw = 1e6 / seconds / 1e9;
        GroupRecord {
            schema: GROUP_SCHEMA.into(),
            schema_version: GROUP_VERSION.into(),
            protocol_version: PROTOCOL_VERSION.into(),
            program: "test".into(),
            argv: vec![],
            group: "nccl".into(),
            library: "2.28.3".into(),
            buffers: "device".into(),
            device: Device::Gpu(GpuDevice {
                name: "NVIDIA H100 80GB HBM3".into(),
                sm: "9.0".into(),
                sm_count: 132,
                memory_bytes: 85_520_809_984,
                l2_bytes: 52_428_800,
                driver_cuda: "13.0".into(),
                ecc: None,
                power_limit_mw: None,
            }),
            hosts: (0..16).map(|r| format!("h{}", r / 8)).collect(),
            nodes: 2,
            threads: 1,
            binary_sha256: "0".repeat(64),
            kernel_sha256: "0".repeat(64),
            variables: std::collections::BTreeMap::new(),
            start_unix_s: 1,
            end_unix_s: 2,
            exchanges: [1, 128, 4096].map(exchange).to_vec(),
            collectives: vec![CollectiveRecord {
                kind: Collective::AllReduce,
                bytes: 1_000_000,
                time: timing(100.0),
                algbw_gb_per_s: algbw,
                busbw_gb_per_s: algbw * 2.0 * 15.0 / 16.0,
            }],
            partial: None,
        }
    }

    fn query(phase: Phase, tokens: f64) -> Query {
        Query::Exchange(ExchangeQuery {
            phase,
            ranks: 16,
            nodes: 2,
            tokens,
            hidden: 7168,
            top_k: 8,
            experts: 256,
            dispatch_bits: 16.0,
            skew: 1.0,
        })
    }

    #[test]
    fn a_group_answers_for_its_ranks_and_nodes_as_measured() {
        let record = record();
        let bytes = to_sealed("group", &record).unwrap();
        assert!(is_group(&bytes) && !is_group(b"{}"));
        let read = read(Path::new("g.json"), bytes.clone()).unwrap();
        assert_eq!(read, record);
        let tables = std::sync::Arc::new(tables("g.json", &bytes, &read));
        let h100 = DeviceSpec::named("h100").unwrap();
        let model = TablesModel::new(tables, &h100, Some("vllm")).unwrap();
        let decode = model.answer(&query(Phase::Decode, 128.0)).unwrap();
        assert_eq!(decode.source, Source::Measured);
        assert!((decode.value.0 / (2.5 * 178e-6) - 1.0).abs() < 1e-6, "{:?}", decode.value);
        let prefill = model.answer(&query(Phase::Prefill, 4096.0)).unwrap();
        assert!((prefill.value.0 / (3.0 * 4146e-6) - 1.0).abs() < 1e-6, "{:?}", prefill.value);
        let collective = |nodes, devices| {
            let kind = CollectiveKind::AllReduce;
            model.answer(&Query::Collective(CollectiveQuery { kind, devices, nodes, bytes: 1e6 }))
        };
        let all_reduce = collective(2, 16).unwrap();
        assert_eq!(all_reduce.source, Source::Measured);
        assert!((all_reduce.value.0 - 100e-6).abs() < 1e-9);
        assert!(matches!(collective(4, 32), Err(Absent::Key(_))), "four nodes were not measured");
    }

    #[test]
    fn what_cannot_be_true_is_refused() {
        type Edit = fn(&mut GroupRecord);
        let edits: [(&str, Edit); 6] = [
            ("protocol", |r| r.protocol_version = "9.0".into()),
            ("nodes", |r| r.nodes = 17),
            ("duration", |r| r.exchanges[0].pair.lo_ps = 0),
            ("sizes", |r| r.exchanges[0].top_k = 257),
            ("wrong", |r| r.exchanges[0].worst_ratio_to_bound = 1.5),
            ("bandwidth", |r| r.collectives[0].busbw_gb_per_s *= 2.0),
        ];
        for (word, edit) in edits {
            let mut record = record();
            edit(&mut record);
            let bytes = to_sealed("group", &record).unwrap();
            let error = read(Path::new("g.json"), bytes).unwrap_err();
            assert!(error.exit_code() == 4 && error.to_string().contains(word), "{word}: {error}");
        }
        let other = GroupRecord { schema_version: "2.0".into(), ..record() };
        let bytes = to_sealed("group", &other).unwrap();
        assert_eq!(read(Path::new("g.json"), bytes).unwrap_err().exit_code(), 3);
    }
}
