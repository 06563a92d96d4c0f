//! Sweeps by the built program: a plan that is a file, its shards as processes, and their merge.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Instant;

use moe_frontier::latency::LayerQuery;
use moe_frontier::latency::measured::format;
use moe_frontier::record::{Cell, Profile};
use runs::{message, program};

const PLAN: &str = "measure --device cpu --quick --dtype f32 --experts 4,8 --top-k 1 --hidden 64 --tokens 1,4,16 \
                    --time-budget 60s --plan-out plan.json";

fn run(at: &Path, arguments: &str) -> Output {
    program(at, arguments).output().unwrap()
}

fn passed(at: &Path, arguments: &str) -> Output {
    let output = run(at, arguments);
    assert!(output.status.success(), "{arguments}: {}", message(&output));
    output
}

fn refused(at: &Path, arguments: &str, code: i32, word: &str) {
    let output = run(at, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments}: {}", message(&output));
    assert!(message(&output).contains(word), "{arguments}: {}", message(&output));
}

/// Names of everything below a folder.
fn names(at: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        all.push(path.file_name().unwrap().to_string_lossy().into_owned());
        if path.is_dir() {
            all.extend(names(&path));
        }
    }
    all
}

#[test]
fn shards_of_a_plan_are_measured_ended_gone_on_with_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let planned = passed(at, PLAN);
    assert!(String::from_utf8_lossy(&planned.stdout).contains("6 cells"), "{planned:?}");
    let shard = |of: &str| format!("measure --plan plan.json --shard {of} --out shards");
    // One is killed while it writes, and started again.
    let killed =
        program(at, &shard("0/3")).env("MOE_FRONTIER_STORAGE_FAULT", "kill@16").output().unwrap();
    assert_eq!(killed.status.code(), None, "{}", message(&killed));
    refused(at, "merge shards --out p.json", 4, "no profile");
    passed(at, &shard("0/3"));
    // One is told by Slurm.
    let mut array = program(at, &shard("auto"));
    for (name, value) in [("ID", "8"), ("MIN", "7"), ("MAX", "9"), ("COUNT", "3")] {
        array.env(format!("SLURM_ARRAY_TASK_{name}"), value);
    }
    let told = array.env("SLURMD_NODENAME", "n1").output().unwrap();
    assert!(told.status.success(), "{}", message(&told));
    let partial = run(at, "merge shards --out p.json --complete");
    assert_eq!(partial.status.code(), Some(1), "{}", message(&partial));
    assert!(message(&partial).contains("missing: "), "{}", message(&partial));
    let profile = format::read(&at.join("p.json")).unwrap();
    assert!(profile.run.partial.unwrap().contains("of 6 cells of the plan are missing"));
    passed(at, &shard("2/3"));
    // What is finished is not measured again.
    let again = passed(at, &shard("2/3"));
    assert!(message(&again).contains("was finished before"), "{}", message(&again));
    passed(at, "merge shards --out p.json --complete");
    let profile = format::read(&at.join("p.json")).unwrap();
    assert_eq!((profile.cells.len(), profile.run.partial), (6, None));
    let sweep = profile.run.sweep.unwrap();
    assert_eq!(sweep.hosts.len(), 2, "{sweep:?}");
    assert!(sweep.hosts.iter().any(|host| host.name == "n1"));
    assert!(!names(at).iter().any(|name| name.starts_with(".moe-frontier")), "{:?}", names(at));
    // Another number of shards finds all cells finished but the anchors, which it measures for its host.
    let other = passed(at, &shard("1/2"));
    assert!(other.status.success());
    let few = format::read(&at.join("shards/shard-1-of-2/profile.json")).unwrap();
    assert_eq!(few.cells.len(), 2);
    passed(at, "compare p.json p.json");
}

#[test]
fn plans_and_shards_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    passed(at, PLAN);
    for (arguments, code, word) in [
        ("measure --plan plan.json --shard 3/3 --out s", 2, "0/3 to 2/3"),
        ("measure --plan plan.json --shard auto --out s", 2, "JOB_COMPLETION_INDEX"),
        ("measure --plan plan.json", 2, "--out"),
        ("measure --plan plan.json --out s --experts 4", 2, "cannot be used"),
        ("measure --shard 0/2 --out s", 2, "--plan"),
        ("measure --plan nothing.json --out s", 7, "nothing.json"),
        ("measure --plan plan.json --out no/s", 7, "no/s"),
        ("merge nothing --out p.json", 7, "nothing"),
        ("merge --out p.json", 2, "DIR"),
    ] {
        refused(at, arguments, code, word);
    }
    assert!(!at.join("s").exists());
    passed(at, "measure --plan plan.json --out s");
    // The same cells, planned again with another seed: another plan.
    passed(at, &PLAN.replace("--plan-out plan.json", "--seed 2 --plan-out other.json"));
    refused(at, "measure --plan other.json --out s", 4, "another plan");
    passed(at, "measure --plan other.json --out t");
    refused(at, "merge s t --out p.json", 4, "plan `");
    // A plan that was edited.
    let text = fs::read_to_string(at.join("plan.json")).unwrap();
    fs::write(at.join("plan.json"), text.replacen("\"tokens\": 4", "\"tokens\": 5", 1)).unwrap();
    refused(at, "measure --plan plan.json --out u", 3, "checksum");
}

/// A profile with many cells out of a recorded one's first.
fn many(first: &Profile, cells: usize) -> Vec<Cell> {
    let cell = &first.cells[0];
    (0..cells)
        .map(|i| {
            let (hidden, inter) = (64 * (1 + i / 1000), 64 * (1 + i % 1000));
            let mut cell = Cell { hidden, inter, ..cell.clone() };
            let query = LayerQuery {
                hidden,
                inter,
                experts: cell.experts,
                top_k: cell.top_k,
                gated: cell.gated,
                weight_bits: cell.weight_bits,
                tokens: cell.tokens as f64,
                active_experts: cell.routing.active_experts,
                max_rows: cell.routing.max_rows,
            };
            (cell.work.flops, cell.work.bytes_min) = (query.flops(), query.bytes());
            cell
        })
        .collect()
}

/// Times the merge of four shards of 10^5 cells; with optimisation: `cargo test --release --test sweeps -- --ignored`.
#[test]
#[ignore = "writes 600 MB"]
fn a_hundred_thousand_cells_merge_in_two_seconds() {
    use moe_frontier::latency::measured::merge::{Share, Wanted, merge};
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    passed(at, &PLAN.replace("4,8", "4").replace("1,4,16", "1"));
    passed(at, "measure --plan plan.json --out s");
    let mut first = format::read(&at.join("s/shard-0-of-1/profile.json")).unwrap();
    // Times are one cell's; what other sizes would imply is beside the point.
    first.run.ceilings.read_best_bytes_per_s = 1e15;
    first.run.ceilings.gemm_best_flops_per_s = 1e17;
    let all = many(&first, 100_000);
    let keys = all.iter().map(Cell::key).collect();
    let plan_sha256 = first.run.sweep.as_ref().unwrap().plan_sha256.clone();
    let wanted = Wanted { plan_sha256, cells: keys, anchors: 2 };
    let paths: Vec<_> = (0..4).map(|i| at.join(format!("p{i}.json"))).collect();
    for (i, path) in paths.iter().enumerate() {
        let cells: Vec<Cell> = all.iter().skip(i).step_by(4).cloned().collect();
        format::write(path, &Profile { cells, ..first.clone() }, false).unwrap();
    }
    let start = Instant::now();
    let shares = paths.iter().map(|path| Share {
        name: path.display().to_string(),
        profile: format::read(path).unwrap(),
    });
    let shares: Vec<Share> = shares.collect();
    let read = start.elapsed();
    let merged = merge(shares, &wanted).unwrap();
    let together = start.elapsed();
    let bytes = format::to_bytes(&merged.profile).unwrap();
    println!(
        "read {read:?}, merged {together:?}, written {:?}, {} bytes",
        start.elapsed(),
        bytes.len()
    );
    assert_eq!((merged.profile.cells.len(), merged.missing.len()), (100_000, 0));
    assert!(
        start.elapsed().as_secs_f64() <= 2.0 || cfg!(debug_assertions),
        "{:?}",
        start.elapsed()
    );
}
