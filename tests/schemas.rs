//! Every JSON document that the program prints has a published schema in `reports/schemas`, and is what the
//! schema says: nothing less, and nothing that it does not name.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use moe_frontier::config::DType;
use moe_frontier::files::seal::to_sealed;
use moe_frontier::record::group::{
    Collective, CollectiveRecord, ExchangeRecord, GROUP_SCHEMA, GROUP_VERSION, GroupRecord,
    GroupTiming,
};
use moe_frontier::record::{CpuDevice, Device};
use serde_json::{Map, Value};

#[path = "common/prepared.rs"]
mod setting;

use setting::{ROOT, prepared, program};

/// Commands whose documents are checked; files named without `{root}` are those of [`prepared`].
const COMMANDS: [&str; 37] = [
    "rank --profile h100 --train-flops 1e21 --experts 1,4,8 --draws 50",
    "rank --profile h100 --train-flops 1e22 --model deepseek-v3 --experts 64,128 --draws 50 --rate 5",
    "rank --profile h100 --target-loss 2.4 --law ludziejewski2025 --experts 4,16 --draws 50",
    "size --model mixtral-8x7b --device h100 --rate 20 --requests 2000",
    "size --model mixtral-8x7b --device h100 --rate 5 --trace {root}/tests/data/results/a23_burst.csv",
    "size --model mixtral-8x7b --device h100 --rate 20 --requests 2000 --emit vllm",
    "estimate --model mixtral-8x7b --device h100 --tp 2 --concurrency 8",
    "estimate --points few.csv",
    "compare p.json p.json",
    "compare --run true true --time-budget 6s",
    "law list",
    "law eval --experts 8 --n-active 1B --tokens 20B",
    "law eval --law abnar2025 --sparsity 0.9 --n-total 1B --tokens 20B",
    "law optimal --experts 64 --train-flops 1e25",
    "law optimal --experts 8 --target-loss 2.3 --served-tokens 1T",
    "law claims",
    "law fit runs.csv --form hoffmann2022",
    "law fit errors.csv --form gadre2024 --out errors.json",
    "law eval --experts 8 --n-active 1B --tokens 20B --downstream errors.json",
    "rank --profile h100 --train-flops 1e21 --experts 4,8 --draws 50 --downstream errors.json --exits 2 --out e",
    "law plot --experts 1,8 --train-flops 1e20,1e21 --out plots",
    "preset list",
    "preset show deepseek-v3",
    "device list",
    "device show h100",
    "import aiconfigurator {root}/tests/data/results/a16_repeat.csv --out tables --overwrite",
    "import aiconfigurator {root}/tests/data/results/a21_fast.csv --out tables --overwrite",
    "import vllm-bench {root}/tests/data/results/a18_summary.json --gpu h100 --parallelism tp2 --out b.csv",
    "calibrate few.csv",
    "calibrate --plan --model mixtral-8x7b --device h100",
    "doctor",
    "doctor --prune",
    "measure --device cpu --quick --dtype f32 --experts 4 --top-k 1 --hidden 64 --tokens 1 --time-budget 20s \
     --plan-out plan.json",
    "measure --plan plan.json --out shards",
    "explain",
    "man law fit",
    "completions bash",
];

/// Commands that fail, and how.
const FAILURES: [(&str, i32); 2] = [("device show h10", 2), ("report p.json", 3)];

fn file(name: &str) -> PathBuf {
    let name = name.strip_prefix("moe-frontier/").unwrap();
    Path::new(ROOT).join("reports/schemas").join(format!("{name}.schema.json"))
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Words of JSON Schema that the published files use; [`check`] knows these and no others.
const KNOWN: [&str; 13] = [
    "$schema",
    "$id",
    "title",
    "description",
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "const",
    "pattern",
    "$comment",
];

/// What is wrong with a value, each with its place. Objects are closed: a published schema lets readers
/// meet further fields, a document of this version has none that the schema does not name.
///
/// A library's validator would turn on features of crates that candle and parquet share, and so build those
/// twice; the published files need few words.
fn check(value: &Value, schema: &Value, at: &str, faults: &mut Vec<String>) {
    let words = schema.as_object().unwrap();
    for word in words.keys() {
        assert!(KNOWN.contains(&word.as_str()), "{at}: this test does not know `{word}`");
    }
    let is_type = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{at}: `{other}` is no type"),
    };
    let fits = match schema.get("type") {
        Some(Value::String(name)) => is_type(name),
        Some(Value::Array(names)) => names.iter().any(|name| is_type(name.as_str().unwrap())),
        _ => true,
    };
    if !fits {
        faults.push(format!("{at}: {value} is not of type {}", schema["type"]));
    }
    if schema.get("enum").is_some_and(|all| !all.as_array().unwrap().contains(value)) {
        faults.push(format!("{at}: {value} is none of {}", schema["enum"]));
    }
    if schema.get("const").is_some_and(|only| only != value) {
        faults.push(format!("{at}: {value} is not {}", schema["const"]));
    }
    if let Some(pattern) = schema.get("pattern") {
        assert_eq!(pattern, VERSION, "{at}: the only pattern that this test knows");
        let parts = value.as_str().and_then(|text| text.split_once('.'));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !parts.is_some_and(|(major, minor)| is_number(major) && is_number(minor)) {
            faults.push(format!("{at}: {value} is no version"));
        }
    }
    if let (Some(items), Some(item)) = (value.as_array(), schema.get("items")) {
        for (index, value) in items.iter().enumerate() {
            check(value, item, &format!("{at}[{index}]"), faults);
        }
    }
    if let Some(fields) = value.as_object() {
        check_fields(fields, schema, at, faults);
    }
}

/// Pattern of `schema_version`.
const VERSION: &str = "^[0-9]+\\.[0-9]+$";

fn check_fields(fields: &Map<String, Value>, schema: &Value, at: &str, faults: &mut Vec<String>) {
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            faults.push(format!("{at}: no {name}"));
        }
    }
    for (name, value) in fields {
        let at = format!("{at}.{name}");
        let named = schema.get("properties").and_then(|all| all.get(name));
        match named.or_else(|| schema.get("additionalProperties")) {
            Some(schema) => check(value, schema, &at, faults),
            None => faults.push(format!("{at}: not in the schema")),
        }
    }
}

/// What is wrong with a document.
fn faults(document: &Value) -> Vec<String> {
    let schema = read(&file(document["schema"].as_str().unwrap()));
    let mut faults = Vec::new();
    check(document, &schema, "", &mut faults);
    faults
}

/// What `measure --group` writes, with made-up values: it takes MPI or a GPU to be measured.
fn group() -> GroupRecord {
    let timing = GroupTiming { median_ps: 3, lo_ps: 2, hi_ps: 4, fastest_rank_ps: 1, samples: 60 };
    let device = CpuDevice {
        name: "made up".into(),
        isa: vec!["avx2".into()],
        threads: 2,
        l2_bytes: None,
        l3_bytes: Some(1 << 20),
        memory_bytes: 1 << 34,
    };
    GroupRecord {
        schema: GROUP_SCHEMA.into(),
        schema_version: GROUP_VERSION.into(),
        protocol_version: "1.0".into(),
        program: "test".into(),
        argv: vec!["measure".into()],
        group: "mpi".into(),
        library: "made up".into(),
        buffers: "host".into(),
        device: Device::Cpu(device),
        hosts: vec!["a".into(), "b".into()],
        nodes: 2,
        threads: 1,
        binary_sha256: "0".repeat(64),
        kernel_sha256: "0".repeat(64),
        variables: [("NCCL_DEBUG".to_owned(), "INFO".to_owned())].into(),
        start_unix_s: 1,
        end_unix_s: 2,
        exchanges: vec![ExchangeRecord {
            hidden: 64,
            inter: 128,
            experts: 4,
            top_k: 2,
            tokens_per_rank: 8,
            dtype: DType::Bf16,
            routing: "uniform".into(),
            seed: "0x1".into(),
            copies: "token_rank".into(),
            wire_bits: 16,
            busiest_over_mean: 1.25,
            rows_sent: 30,
            rows_own: 14,
            logical_bytes_per_rank: 1920.0,
            logical_gb_per_s: 0.5,
            dispatch: timing,
            expert: timing,
            combine: timing,
            pair: timing,
            layer: timing,
            worst_ratio_to_bound: 0.25,
        }],
        collectives: vec![CollectiveRecord {
            kind: Collective::AllToAll,
            bytes: 1024,
            time: timing,
            algbw_gb_per_s: 1.5,
            busbw_gb_per_s: 0.75,
        }],
        partial: Some("2 of 3 cells were measured".into()),
    }
}

#[test]
fn every_document_is_what_its_schema_says() {
    let folder = prepared();
    let mut seen = BTreeSet::new();
    let mut is_right = |line: &str, text: &[u8]| {
        let document: Value =
            serde_json::from_slice(text).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(faults(&document), Vec::<String>::new(), "{line}");
        seen.insert(document["schema"].as_str().unwrap().to_owned());
    };
    for line in COMMANDS {
        let output = program(folder.path(), &format!("{line} --json")).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {errors}");
        is_right(line, &output.stdout);
    }
    let drawn = program(folder.path(), "report out/rank.json --out again --json").output().unwrap();
    is_right("report", &drawn.stdout);
    is_right("a group", &to_sealed("group", &group()).unwrap());
    is_right("a profile", &fs::read(folder.path().join("p.json")).unwrap());
    for (line, code) in FAILURES {
        let output = program(folder.path(), &format!("{line} --json")).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}");
        let errors = String::from_utf8(output.stderr).unwrap();
        is_right(line, errors.lines().last().unwrap().as_bytes());
    }
    let published: BTreeSet<String> = fs::read_dir(Path::new(ROOT).join("reports/schemas"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| Some(format!("moe-frontier/{}", name.strip_suffix(".schema.json")?)))
        .collect();
    assert_eq!(seen, published, "documents seen, and schemas published");
}

#[test]
fn a_document_that_lacks_a_field_or_has_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path(), "law eval --experts 8 --n-active 1B --tokens 20B --json");
    let output = { output }.output().unwrap();
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(faults(&whole).is_empty());
    let mut more = whole.clone();
    more["surprise"] = 1.into();
    let mut less = whole.clone();
    less.as_object_mut().unwrap().remove("loss_nats");
    let mut other = whole;
    other["loss_nats"] = "low".into();
    for broken in [more, less, other] {
        assert!(!faults(&broken).is_empty(), "{broken}");
    }
}
