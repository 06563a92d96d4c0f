//! How much memory the readers of files take for files as long as their caps, on demand and one reader a process:
//!
//! `cargo test --test reader_memory -- --ignored --nocapture readers_stay_below` prints a line for each shape of file;
//! `MOE_FRONTIER_SHAPE` is a word of its name and leaves out the others. It writes files of up to 512 MiB.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use moe_frontier::Error;
use moe_frontier::cli::settings::Settings;
use moe_frontier::config::DeviceSpec;
use moe_frontier::config::hf::from_hf_json;
use moe_frontier::files::read_capped;
use moe_frontier::files::sha256_hex;
use moe_frontier::latency::measured::{format, validate};
use moe_frontier::latency::tables::codec;
use moe_frontier::latency::tables::flat_table::FlatTable;
use moe_frontier::law::fit::Reading;
use moe_frontier::law::{Variable, load_file};
use moe_frontier::measure::folder::RunFolder;
use moe_frontier::measure::journal::{self, Locking};
use moe_frontier::measure::ledger::Event;
use moe_frontier::plan::outcome::RankReport;
use moe_frontier::plan::request_trace::RequestTrace;
use moe_frontier::plan::results::vllm_bench;
use moe_frontier::workload::Trace;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

const MIB: u64 = 1 << 20;
/// The memory of a reader in multiples of its cap.
const MOST: f64 = 4.0;

type Read = fn(&Path) -> Result<(), Error>;

/// A shape of file: its name, its reader's cap in bytes, the file's name, what it begins with, what is repeated
/// up to the cap, what it ends with, and the reader.
type Shape = (String, u64, &'static str, Vec<u8>, Vec<u8>, Vec<u8>, Read);

fn read_profile(path: &Path) -> Result<(), Error> {
    validate::validate("p", &format::read(path)?)
}

fn read_runs(path: &Path) -> Result<(), Error> {
    Reading::default().read(path, &[Variable::NActive, Variable::Tokens]).map(drop)
}

fn read_results(path: &Path) -> Result<(), Error> {
    let server = vllm_bench::Server::default();
    vllm_bench::read(path, &server, vllm_bench::Average::Mean).map(drop)
}

fn read_ranking(path: &Path) -> Result<(), Error> {
    RankReport::from_bytes(path, &read_capped(path, 64 * MIB)?).map(drop)
}

/// What is repeated in JSON: the smallest elements of each kind, and what fills one string.
const PIECES: [(&str, &str); 5] = [
    ("numbers", "0,"),
    ("arrays", "[],"),
    ("objects", "{},"),
    ("strings", "\"\","),
    ("a string", "x"),
];

fn json_shapes(
    shapes: &mut Vec<Shape>,
    (name, cap, file): (&str, u64, &'static str),
    (head, tail): (&str, &str),
    read: Read,
) {
    for (what, piece) in PIECES {
        let (open, close) = if piece == "x" { ("\"", "\"") } else { ("[", "0]") };
        shapes.push((
            format!("{name}: {what}"),
            cap,
            file,
            format!("{head}{open}").into(),
            piece.into(),
            format!("{close}{tail}").into(),
            read,
        ));
    }
}

#[expect(clippy::too_many_lines, reason = "a list")]
fn shapes() -> Vec<Shape> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let profile =
        fs::read_to_string(root.join("reports/runs/2026-11-28-amd-epyc/profile.json")).unwrap();
    // One cell, again and again.
    let start = profile.find("\"cells\": [").unwrap() + "\"cells\": [".len();
    let cell_end = start + profile[start..].find("\n    },").unwrap() + "\n    },".len();
    let (head, cell) = (&profile[..start], &profile[start..cell_end]);
    let last = cell.trim_end_matches(',');
    let mut all: Vec<Shape> = Vec::new();
    let tail = format!("{last}\n  ]");
    all.push((
        "profile: cells".into(),
        256 * MIB,
        "p.json",
        head.into(),
        cell.into(),
        tail.into(),
        read_profile,
    ));
    let schema = |name: &str| {
        format!("{{\"schema\": \"moe-frontier/{name}\", \"schema_version\": \"1.0\", ")
    };
    json_shapes(
        &mut all,
        ("profile", 256 * MIB, "p.json"),
        (&head.replace("\"cells\": [", "\"cells\": "), ""),
        read_profile,
    );
    json_shapes(
        &mut all,
        ("plan", 64 * MIB, "plan.json"),
        (&(schema("plan") + "\"plan\": "), ""),
        |path| RunFolder::planned(path.parent().unwrap(), Locking::Locked).map(drop),
    );
    json_shapes(
        &mut all,
        ("law file", 64 * MIB, "law.json"),
        (&(schema("law") + "\"draws\": "), "}"),
        |path| load_file(path).map(drop),
    );
    json_shapes(
        &mut all,
        ("Hugging Face", 64 * MIB, "config.json"),
        ("{\"model_type\": \"mixtral\", \"layer_types\": ", "}"),
        |path| from_hf_json(&read_capped(path, 64 * MIB)?, path).map(drop),
    );
    json_shapes(
        &mut all,
        ("ranking", 64 * MIB, "rank.json"),
        (&(schema("rank") + "\"candidates\": "), ""),
        read_ranking,
    );
    json_shapes(
        &mut all,
        ("results", 512 * MIB, "results.jsonl"),
        ("{\"backend\": \"vllm\", \"ttfts\": ", "}"),
        read_results,
    );
    let mut lines = |name: &str, cap, file, head: &str, piece: &str, read: Read| {
        all.push((name.into(), cap, file, head.into(), piece.into(), vec![], read));
    };
    let head = "n_active,tokens,loss\n";
    lines("runs: rows", 256 * MIB, "r.csv", head, "1e8,1e9,3.1\n", read_runs);
    lines("runs: small rows", 256 * MIB, "r.csv", head, "9,9,3\n", read_runs);
    lines("runs: columns", 256 * MIB, "r.csv", "n_active,tokens,loss", ",", read_runs);
    lines("runs: a cell", 256 * MIB, "r.csv", "n_active,tokens,loss\n", "x", read_runs);
    let read_trace: Read = |path| Trace::read(path).map(drop);
    lines("trace: a line", 256 * MIB, "t.csv", "1", ",1", read_trace);
    lines("trace: lines", 256 * MIB, "t.csv", "", "1\n", read_trace);
    let read_table: Read = |path| FlatTable::read(path).map(drop);
    lines("table: rows", 256 * MIB, "t.csv", "a,b\n", "1,2.5\n", read_table);
    lines("table: small cells", 256 * MIB, "t.csv", "a\n", "1\n", read_table);
    lines("table: columns", 256 * MIB, "t.csv", "a", ",b", read_table);
    lines("table: empty cells", 256 * MIB, "t.csv", "a\n", "\"\"\n", read_table);
    let read_requests: Read = |path| RequestTrace::read(path).map(drop);
    let head = "arrived_at,num_prefill_tokens,num_decode_tokens\n";
    lines("request trace: rows", 256 * MIB, "t.csv", head, "1.5,10,10\n", read_requests);
    lines(
        "request trace: objects",
        256 * MIB,
        "t.jsonl",
        "",
        "{\"timestamp\": 1, \"input_length\": 9, \"output_length\": 9}\n",
        read_requests,
    );
    lines("request trace: small objects", 256 * MIB, "t.jsonl", "", "{}\n", read_requests);
    let read_device: Read = |path| DeviceSpec::load(&path.display().to_string()).map(drop);
    lines("device: keys", MIB, "d.toml", "name = \"x\"\nprices = [", "{},", read_device);
    let read_settings: Read = |path| Settings::read(path).map(drop);
    for (what, head, piece) in [
        ("numbers", "x = [", "1,"),
        ("arrays", "x = [", "[],"),
        ("tables", "", "[[a]]\n"),
        ("dotted keys", "", "a."),
        ("a string", "x = \"", "y"),
        ("comments", "", "#\n"),
        ("lines", "", "\n"),
        ("nesting", "x = ", "["),
    ] {
        lines(&format!("device: {what}"), MIB, "d.toml", head, piece, read_device);
        lines(&format!("settings: {what}"), MIB, "s.toml", head, piece, read_settings);
    }
    let read_journal: Read = |path| journal::read::<Event>(path).map(drop);
    lines("journal: a line", 64 * MIB, "j.jsonl", "", "x", read_journal);
    let read_packed: Read = |path| codec::read(path).map(drop);
    lines("packed tables: a body", 256 * MIB, "t.tables", "moetab1\n", "x", read_packed);
    for what in ["distinct texts", "one text in many cells", "long texts, packed"] {
        lines(&format!("Parquet: {what}"), 256 * MIB, "t.parquet", "", "", read_table);
    }
    all
}

/// Writes a Parquet file whose pages unpack to nearly as much as may be.
fn write_parquet(what: &str, path: &Path) {
    let (columns, rows, packed): (usize, usize, bool) = match what {
        "distinct texts" => (1, 2_000_000, false),
        "one text in many cells" => (3, 10_000_000, false),
        _ => (1, 240, true),
    };
    let text = |row: usize| match what {
        "distinct texts" => format!("{row:0>112}"),
        "one text in many cells" => "1".to_owned(),
        _ => "x".repeat(1 << 20),
    };
    let names: Vec<String> =
        (0..columns).map(|i| format!("required binary c{i} (UTF8); ")).collect();
    let names = names.concat();
    let schema = Arc::new(parse_message_type(&format!("message t {{ {names} }}")).unwrap());
    let level = Compression::ZSTD(ZstdLevel::default());
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(what == "one text in many cells")
        .set_compression(if packed { level } else { Compression::UNCOMPRESSED })
        .build();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    while let Some(mut column) = group.next_column().unwrap() {
        for start in (0..rows).step_by(10_000) {
            let texts: Vec<ByteArray> = (start..rows.min(start + 10_000))
                .map(|row| ByteArray::from(text(row).into_bytes()))
                .collect();
            column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        }
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

/// Writes a file of that shape, sealed where it is read sealed.
fn write((name, cap, _, head, piece, tail, _): &Shape, path: &Path) {
    if let Some(what) = name.strip_prefix("Parquet: ") {
        return write_parquet(what, path);
    }
    let is_sealed = ["profile", "plan", "ranking"].iter().any(|it| name.starts_with(it));
    let seal = 120;
    let room = usize::try_from(*cap).unwrap() - head.len() - tail.len() - seal;
    let mut bytes = head.clone();
    bytes.extend(piece.iter().copied().cycle().take(room / piece.len() * piece.len()));
    bytes.extend(tail);
    if is_sealed {
        let sum = sha256_hex(&bytes);
        bytes.extend(format!(",\n  \"sha256\": \"{sum}\"\n}}\n").into_bytes());
    }
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&bytes).unwrap();
    file.flush().unwrap();
}

fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Reads one file in a process of its own. Not a test by itself.
#[test]
#[ignore = "run by `readers_stay_below_four_times_their_caps`"]
fn one_reader() {
    let name = std::env::var("MOE_FRONTIER_READ_SHAPE").unwrap();
    let path = std::env::var("MOE_FRONTIER_READ_FILE").unwrap();
    let shapes = shapes();
    let shape = shapes.iter().find(|shape| shape.0 == name).unwrap();
    let before = peak_bytes();
    let outcome = (shape.6)(Path::new(&path));
    let text = outcome.err().map_or("read".to_owned(), |e| e.to_string());
    println!("\npeak {} {before} {}", peak_bytes(), text.chars().take(110).collect::<String>());
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn readers_stay_below_four_times_their_caps() {
    let wanted = std::env::var("MOE_FRONTIER_SHAPE").unwrap_or_default();
    let mut over = Vec::new();
    for shape in shapes().iter().filter(|shape| shape.0.contains(&wanted)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(shape.2);
        write(shape, &path);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "one_reader", "--nocapture"])
            .env("MOE_FRONTIER_READ_SHAPE", &shape.0)
            .env("MOE_FRONTIER_READ_FILE", &path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("peak ")).unwrap_or_else(|| {
            panic!(
                "{}: {}{text}{}",
                shape.0,
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )
        });
        let mut words = line.splitn(3, ' ');
        let mut bytes = || words.next().unwrap().parse::<u64>().unwrap();
        let (peak, before) = (bytes(), bytes());
        let times = (peak - before) as f64 / shape.1 as f64;
        let outcome = words.next().unwrap_or_default();
        eprintln!(
            "{:28} {:4} MiB, {:5} MiB, {times:.2} times: {outcome}",
            shape.0,
            shape.1 / MIB,
            peak / MIB
        );
        if times > MOST {
            over.push(shape.0.clone());
        }
    }
    assert!(over.is_empty(), "{over:?}");
}
