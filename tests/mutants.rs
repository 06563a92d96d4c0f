//! Mutated input for the readers: no panic, no hang, no gigabyte, and nothing but an error of the file or an
//! answer.
//!
//! Runs for five seconds. On demand: `MOE_FRONTIER_FUZZ_SECONDS` for each reader, or
//! `MOE_FRONTIER_FUZZ_MUTANTS` for all of them together (`.ci/supply-chain --fuzz` and `--mutants N`). Mutants
//! follow from a seed, which a failure names; `MOE_FRONTIER_FUZZ_FIRST` goes on from another one.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use moe_frontier::Error;
use moe_frontier::config::DeviceSpec;
use moe_frontier::config::hf::from_hf_json;
use moe_frontier::files::checks::check_json;
use moe_frontier::files::sha256_hex;
use moe_frontier::latency::measured::{format, validate};
use moe_frontier::latency::tables::codec;
use moe_frontier::latency::tables::flat_table::FlatTable;
use moe_frontier::law::fit::Reading;
use moe_frontier::law::{Variable, load_file, load_scaling};
use moe_frontier::measure::folder::RunFolder;
use moe_frontier::measure::journal::{self, Locking};
use moe_frontier::measure::ledger::Event;
use moe_frontier::plan::outcome::RankReport;
use moe_frontier::plan::request_trace::RequestTrace;
use moe_frontier::plan::results::vllm_bench;
use moe_frontier::workload::Trace;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::Digest;

/// First bytes of a file of packed tables.
const NAME: &[u8] = b"moetab1\n";
/// A mutant may take this long.
const LONGEST: Duration = Duration::from_secs(10);
/// The whole test may take this much memory.
const MOST_MEMORY_KIB: u64 = 1 << 20;

/// Values that readers stumble over.
const WORDS: [&str; 24] = [
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "-1",
    "0",
    "1e300",
    "1e-300",
    "1e400",
    "-0.0",
    "NaN",
    "Infinity",
    "9223372036854775807",
    "18446744073709551616",
    "\"\\u202e\"",
    "[[[[",
    "}}}}",
    ",",
    ":",
    "\u{0}",
    "\n",
    "=1+1",
    "\u{feff}",
];

/// A file with some of its bytes, numbers or lines changed.
fn mutant(seed: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.random_range(0..bytes.len());
        let until = (at + rng.random_range(1..=24)).min(bytes.len());
        let word = WORDS.choose(rng).unwrap().as_bytes();
        match rng.random_range(0..7) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => drop(bytes.drain(at..until)),
            2 => drop(bytes.splice(at..at, word.iter().copied())),
            3 => {
                let copy = bytes[at..until].to_vec();
                drop(bytes.splice(at..at, copy));
            }
            4 => bytes.truncate(at),
            // A number becomes another value.
            5 => {
                let is_part = |b: &u8| b.is_ascii_digit() || b"+-.e".contains(b);
                let start = at + bytes[at..].iter().position(u8::is_ascii_digit).unwrap_or(0);
                let length = bytes[start..].iter().take_while(|b| is_part(b)).count();
                drop(bytes.splice(start..start + length, word.iter().copied()));
            }
            _ => {
                let line = bytes.split(|b| *b == b'\n').nth(at % 7).unwrap_or_default().to_vec();
                drop(bytes.splice(at..at, line));
            }
        }
    }
    bytes
}

/// A reader: its name, a good file, and how it reads bytes, given a folder to write them into.
type Reader = (&'static str, Vec<u8>, fn(&[u8], &Path) -> Result<(), Error>);

fn written(bytes: &[u8], folder: &Path, name: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// A sealed document whose content was changed has another checksum: what is tested is what lies behind.
fn resealed(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let body = text.split(",\n  \"sha256\"").next().unwrap_or_default();
    format!("{body},\n  \"sha256\": \"{}\"\n}}\n", sha256_hex(body)).into_bytes()
}

fn read_profile(bytes: &[u8], _: &Path) -> Result<(), Error> {
    let profile = format::from_bytes(Path::new("p.json"), &resealed(bytes))?;
    validate::validate("p.json", &profile)
}

fn read_plan(bytes: &[u8], folder: &Path) -> Result<(), Error> {
    written(&resealed(bytes), folder, "plan.json");
    RunFolder::planned(folder, Locking::Locked).map(drop)
}

fn read_law(bytes: &[u8], folder: &Path) -> Result<(), Error> {
    load_file(&written(bytes, folder, "law.json")).map(drop)
}

fn read_runs(bytes: &[u8], folder: &Path) -> Result<(), Error> {
    let path = written(bytes, folder, "runs.csv");
    Reading::default().read(&path, &[Variable::NActive, Variable::Tokens]).map(drop)
}

fn readers() -> Vec<Reader> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut profile: serde_json::Value = serde_json::from_slice(
        &fs::read(root.join("reports/runs/2026-11-28-amd-epyc/profile.json")).unwrap(),
    )
    .unwrap();
    profile["cells"].as_array_mut().unwrap().truncate(2);
    let profile = serde_json::to_vec_pretty(&profile).unwrap();
    let law = r#"{"schema": "moe-frontier/law", "schema_version": "1.0", "form": "hoffmann2022",
        "source": "ours", "names": ["e", "a", "b", "alpha", "beta"],
        "coefficients": [1.8, 480.0, 2000.0, 0.35, 0.37], "residual_nats": 0.005,
        "ranges": [{"variable": "tokens", "low": 1e9, "high": 1e11}], "draws": []}"#;
    let plan = r#"{"schema": "moe-frontier/plan", "schema_version": "1.0", "place": {"device": "cpu",
        "kernels": [], "isa": null, "packed": false, "threads": 2, "isolate": false},
        "destination": "folder", "plan": {"request": {"widths": [[64, 192]], "experts": [4]}}"#;
    let hf = r#"{"model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}"#;
    let device = fs::read(root.join("src/config/presets/devices/h100_sxm.toml")).unwrap();
    let result = |name: &str| fs::read(root.join("tests/data/results").join(name)).unwrap();
    let tables = fs::read(root.join("src/latency/tables/shipped/a100_sxm.tables")).unwrap();
    vec![
        ("profile", profile, read_profile),
        ("plan", plan.into(), read_plan),
        (
            "journal",
            b"{\"seq\":1,\"crc32\":\"6d0e509e\",\"rec\":\"a\"}\n".repeat(3),
            |bytes, at| journal::read::<Event>(&written(bytes, at, "journal.jsonl")).map(drop),
        ),
        ("law file", law.into(), read_law),
        ("runs", b"n_active,tokens,loss\n1e8,1e9,3.1\n2e8,4e9,2.9\n".to_vec(), read_runs),
        ("Hugging Face", hf.into(), |bytes, _| {
            from_hf_json(bytes, Path::new("config.json")).map(drop)
        }),
        ("device", device, |bytes, at| {
            let path = written(bytes, at, "device.toml");
            DeviceSpec::load(&path.display().to_string()).map(drop)
        }),
        ("trace", b"1,2,3,4\n4,3,2,1\n".to_vec(), |bytes, at| {
            Trace::read(&written(bytes, at, "trace.csv")).map(drop)
        }),
        ("JSON", br#"{"a": [1, {"b": null}], "c": "x"}"#.to_vec(), |bytes, _| {
            check_json(Path::new("a.json"), bytes, 1 << 20)
        }),
        ("ranking", ranking(), |bytes, _| {
            RankReport::from_bytes(Path::new("rank.json"), &resealed(bytes)).map(drop)
        }),
        ("table", b"a,b\n1,2.5\n,x\n".to_vec(), |bytes, at| {
            FlatTable::read(&written(bytes, at, "t.csv")).map(drop)
        }),
        ("Parquet", fs::read(root.join("tests/data/table.parquet")).unwrap(), |bytes, at| {
            FlatTable::read(&written(bytes, at, "t.parquet")).map(drop)
        }),
        ("packed tables", unpacked(&tables), read_tables),
        ("request trace", result("a16_dates.csv"), |bytes, at| {
            RequestTrace::read(&written(bytes, at, "trace.csv")).map(drop)
        }),
        ("results", result("a17_sglang.jsonl"), read_results),
    ]
}

/// A ranking, as small as one can be.
fn ranking() -> Vec<u8> {
    let law = load_scaling("ludziejewski2025").unwrap();
    let mut inputs = common::inputs();
    inputs.experts = vec![1, 8];
    inputs.draws = 20;
    let report = common::report(&law, &inputs).unwrap();
    report.to_bytes().unwrap()
}

fn read_results(bytes: &[u8], at: &Path) -> Result<(), Error> {
    let path = written(bytes, at, "results.jsonl");
    let server = vllm_bench::Server::default();
    vllm_bench::read(&path, &server, vllm_bench::Average::Mean).map(drop)
}

/// The content of a file of packed tables, which lies compressed behind a name and a checksum.
fn unpacked(file: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    DeflateDecoder::new(&file[NAME.len() + 32..]).read_to_end(&mut content).unwrap();
    content
}

fn read_tables(content: &[u8], _: &Path) -> Result<(), Error> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    let packed = encoder.finish().unwrap();
    let file = [NAME, sha2::Sha256::digest(&packed).as_slice(), &packed].concat();
    codec::from_bytes("t.tables", &file).map(drop)
}

/// A number of the environment.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Most memory that this process has had at once, in KiB, where the system tells.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Ends the process when one mutant takes too long: a reader that hangs gives no other sign.
fn watch(name: &'static str, tried: &'static AtomicU64) {
    std::thread::spawn(move || {
        let mut seen = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = tried.load(Ordering::Relaxed);
            if now == u64::MAX {
                return;
            }
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            if seen.1.elapsed() > LONGEST {
                eprintln!("{name}, mutant {now} takes longer than {LONGEST:?}");
                std::process::abort();
            }
        }
    });
}

fn try_mutant((name, seed, read): &Reader, number: u64, folder: &Path) {
    let mut rng = ChaCha8Rng::seed_from_u64(number);
    let bytes = mutant(seed, &mut rng);
    let outcome = catch_unwind(AssertUnwindSafe(|| read(&bytes, folder)));
    let shown = || String::from_utf8_lossy(&bytes).chars().take(2000).collect::<String>();
    let outcome = outcome.unwrap_or_else(|_| panic!("{name}, mutant {number}: {}", shown()));
    if let Err(error) = outcome {
        let code = error.exit_code();
        assert!((2..=7).contains(&code), "{name}, mutant {number}: {error}");
        let text = error.to_string();
        assert!(!text.contains(char::is_control), "{name}, mutant {number}: {text}");
    }
}

#[test]
fn mutated_files_never_break_a_reader() {
    let readers = readers();
    let count = readers.len() as u64;
    assert!(count >= 12);
    let mutants = number("MOE_FRONTIER_FUZZ_MUTANTS").map(|all| all.div_ceil(count));
    let seconds = number("MOE_FRONTIER_FUZZ_SECONDS").map(Duration::from_secs);
    let each = seconds.unwrap_or(Duration::from_secs(5) / u32::try_from(count).unwrap());
    let first = number("MOE_FRONTIER_FUZZ_FIRST").unwrap_or(0);
    let folder = tempfile::tempdir().unwrap();
    let mut all = 0;
    for reader in &readers {
        let tried: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(first)));
        watch(reader.0, tried);
        let start = Instant::now();
        let is_enough = |done: u64| match mutants {
            Some(mutants) => done >= mutants,
            None => start.elapsed() >= each,
        };
        let mut done = 0;
        while !is_enough(done) {
            try_mutant(reader, first + done, folder.path());
            done += 1;
            tried.store(first + done, Ordering::Relaxed);
        }
        tried.store(u64::MAX, Ordering::Relaxed);
        all += done;
        let peak = peak_kib();
        eprintln!("{}: {done} mutants, at most {} MiB so far", reader.0, peak >> 10);
        assert!(peak < MOST_MEMORY_KIB, "{}: {peak} KiB", reader.0);
    }
    eprintln!("{all} mutants of {count} readers");
}
