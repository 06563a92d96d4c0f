//! Mutated input for the readers: no panic, no hang, and nothing but an error of the file or an answer.
//!
//! Runs for five seconds, or for `MOE_FRONTIER_FUZZ_SECONDS` each (`.ci/supply-chain --fuzz`). Mutants
//! follow from a seed, which a failure names.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use moe_frontier::Error;
use moe_frontier::config::DeviceSpec;
use moe_frontier::config::hf::from_hf_json;
use moe_frontier::files::read::check_json;
use moe_frontier::files::sha256_hex;
use moe_frontier::latency::measured::{format, validate};
use moe_frontier::law::fit::Reading;
use moe_frontier::law::{Variable, load_file};
use moe_frontier::measure::folder::RunFolder;
use moe_frontier::measure::journal;
use moe_frontier::measure::ledger::Event;
use moe_frontier::workload::Trace;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A mutant may take this long.
const LONGEST: Duration = Duration::from_secs(10);

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
    RunFolder::planned(folder).map(drop)
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
    let device =
        fs::read(root.join("src/config/presets/devices/h100_sxm.toml")).unwrap_or_default();
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
            check_json(Path::new("a.json"), bytes)
        }),
    ]
}

#[test]
fn mutated_files_never_break_a_reader() {
    let seconds = std::env::var("MOE_FRONTIER_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let readers = readers();
    let each = seconds.map_or_else(|| Duration::from_secs(5) / 9, Duration::from_secs);
    let folder = tempfile::tempdir().unwrap();
    for (name, seed, read) in readers {
        let (start, mut tried) = (Instant::now(), 0_u64);
        while start.elapsed() < each {
            let mut rng = ChaCha8Rng::seed_from_u64(tried);
            let bytes = mutant(&seed, &mut rng);
            let before = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| read(&bytes, folder.path())));
            let shown = String::from_utf8_lossy(&bytes).chars().take(2000).collect::<String>();
            let outcome = outcome.unwrap_or_else(|_| panic!("{name}, mutant {tried}: {shown}"));
            assert!(before.elapsed() < LONGEST, "{name}, mutant {tried} took too long: {shown}");
            if let Err(error) = outcome {
                let code = error.exit_code();
                assert!((2..=7).contains(&code), "{name}, mutant {tried}: {error}");
                let text = error.to_string();
                assert!(!text.contains(char::is_control), "{name}, mutant {tried}: {text}");
            }
            tried += 1;
        }
        eprintln!("{name}: {tried} mutants");
    }
}
