//! Inputs of the kinds of the fault table that the table does not list: flags, settings, files, folders, pipes and
//! devices in place of files, by the built program. Each ends with one of the codes that fit, says one line that
//! does nothing to a terminal, and ends soon.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/runs.rs"]
mod runs;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use runs::{TINY, message, program};

/// Long for any of these; tests run beside each other.
const LONGEST: Duration = Duration::from_secs(60);
/// A small ranking.
const RANK: &str = "rank --profile h100 --train-flops 1e22 --draws 20 --experts 4,8";
const LAW: &str = "law eval --law law.json --n-active 1B --tokens 10B";
const ESTIMATE: &str = "estimate --model config.json --device h100 --concurrency 4 --tp 4";

/// Runs a command and holds what every ending must keep.
fn ended(mut command: Command, codes: &[i32]) -> Output {
    let start = Instant::now();
    let output = command.output().unwrap();
    let text = message(&output);
    let what = format!("{:?}: {text}", command.get_args().collect::<Vec<_>>());
    assert!(output.status.code().is_some_and(|code| codes.contains(&code)), "{what}");
    assert!(start.elapsed() < LONGEST, "{:?} {what}", start.elapsed());
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    let failed = !output.status.success();
    assert_eq!(said.len(), usize::from(failed), "{what}");
    assert!(said.iter().all(|line| line.len() < 3000), "{what}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!failed || printed.is_empty(), "{what}: {printed}");
    let turns = |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!text.contains(turns) && !printed.contains(turns), "{what}: {printed}");
    output
}

fn refused(folder: &Path, line: &str, codes: &[i32]) -> String {
    message(&ended(program(folder, line), codes))
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn flags_of_any_bytes_and_sizes_are_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for word in [&b"\xff\xfe"[..], b"--profile=\xff.json", b"--json\xc3"] {
        let mut command = program(at, "rank");
        command.arg(OsStr::from_bytes(word));
        ended(command, &[2, 3, 7]);
    }
    let long = "x".repeat(100_000);
    for words in [
        ["preset", "show", "\u{1b}]0;owned\u{7}"],
        ["device", "show", "a\nerror: fake"],
        ["preset", "show", &long],
        ["device", "show", "\u{202e}term"],
        ["measure", "--tokens", "\u{ff11}\u{ff12}"],
        ["rank", "--experts", "\u{663}"],
        ["measure", "--tokens", "1-18446744073709551615*2"],
        ["measure", "--tokens", "18446744073709551614-18446744073709551615+9"],
        ["measure", "--time-budget", "99999999h"],
        ["rank", "--train-flops", "1e300T"],
        ["rank", "--tpot", "1e400ms"],
    ] {
        let mut command = program(at, "");
        command.args(words);
        ended(command, &[2, 4]);
    }
    assert_eq!(fs::read_dir(at).unwrap().count(), 0);
}

#[test]
fn numbers_that_cannot_be_are_refused_by_flag() {
    let folder = tempfile::tempdir().unwrap();
    let estimate = "estimate --model mixtral-8x7b --device h100 --concurrency 4";
    let size = "size --model mixtral-8x7b --device h100 --isl 100 --osl 100 --rate";
    for (line, flag) in [
        (format!("{RANK} --granularity 1e30"), "--granularity"),
        (format!("{RANK} --aspect 1e-30"), "--aspect"),
        (format!("{RANK} --kv-group 1e30"), "--kv-group"),
        (format!("{RANK} --rate 1e-300"), "--rate"),
        (format!("{RANK} --rate 1 --utilisation 1e-12"), "--utilisation"),
        (format!("{RANK} --lifetime-tokens 1e30"), "--lifetime-tokens"),
        (format!("{RANK} --train-price 1e30"), "--train-price"),
        (format!("{RANK} --weight-bits 1e-30"), "--weight-bits"),
        ("rank --profile h100 --train-flops 1e308".into(), "--train-flops"),
        ("rank --profile h100 --train-flops 1e-300".into(), "--train-flops"),
        ("rank --profile h100 --target-loss 1e6".into(), "--target-loss"),
        (format!("{estimate} --tp 4294967296 --dp 4294967296"), "--tp"),
        (format!("{estimate} --tp 9223372036854775807 --ep 9223372036854775807"), "--tp"),
        (format!("{estimate} --isl 1e15"), "--isl"),
        (estimate.replace('4', "1e18") + " --isl 10", "--concurrency"),
        (format!("{size} 1e300"), "--rate"),
        (format!("{size} 1 --burstiness 1e-300"), "--burstiness"),
        (format!("{size} 1 --peak 1e300"), "--peak"),
        (format!("{size} 1 --spare 18446744073709551615"), "--spare"),
        ("law eval --experts 8 --n-active 1e300 --tokens 1B".into(), "--n-active"),
        ("law eval --experts 8 --n-active 1B --tokens 1e-300".into(), "--tokens"),
        ("law optimal --experts 8 --train-flops 1e300".into(), "--train-flops"),
    ] {
        let text = refused(folder.path(), &line, &[2]);
        assert!(text.contains(flag), "{line}: {text}");
    }
}

#[test]
fn settings_of_any_content_are_the_file_s_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let many = format!("price = [{}1]\n", "1,".repeat(200_000));
    let deep = format!("a = {}", "[".repeat(20_000));
    for text in [
        "[[rank]]\nmfu = 1\n",
        "[rank.x.y]\na = 1\n",
        "price = \"\\u001b[31m\\u202e\"\n",
        "mfu = nan\n",
        "price = inf\n",
        "price = 1979-05-27\n",
        "price = 1\nprice = 2\n",
        "\"a\\u0007b\" = 1\n",
        &many,
        &deep,
    ] {
        fs::write(at.join("moe-frontier.toml"), text).unwrap();
        refused(at, RANK, &[3]);
    }
    fs::write(at.join("moe-frontier.toml"), b"\xff\xfe\x00").unwrap();
    refused(at, RANK, &[3]);
    fs::remove_file(at.join("moe-frontier.toml")).unwrap();
    pipe(&at.join("moe-frontier.toml"));
    let mut named = program(at, "preset list");
    named.env("MOE_FRONTIER_CONFIG", at.join("moe-frontier.toml"));
    ended(named, &[7]);
}

/// A law with one member replaced.
fn law(from: &str, to: &str) -> String {
    let text = r#"{"schema": "moe-frontier/law", "schema_version": "1.0", "form": "hoffmann2022",
        "source": "ours", "names": ["e", "a", "b", "alpha", "beta"],
        "coefficients": [1.8, 480.0, 2000.0, 0.35, 0.37], "residual_nats": 0.005,
        "ranges": [{"variable": "tokens", "low": 1e9, "high": 1e11}], "draws": []}"#;
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

#[test]
fn law_files_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let file = |bytes: &[u8]| fs::write(at.join("law.json"), bytes).unwrap();
    file(law("ours", "ours").as_bytes());
    ended(program(at, LAW), &[0]);
    let deep = format!("\"fit\": {}{}, \"draws\"", "[".repeat(50_000), "]".repeat(50_000));
    for (from, to) in [
        ("0.35, 0.37", "-0.35, 0.37"),
        ("0.35, 0.37", "0.35, -0.37"),
        ("[1.8,", "[1e9,"),
        ("[1.8,", "[\"1.8\","),
        ("\"beta\"", "\"alpha\""),
        ("\"beta\"", "\"be\\u202eta\""),
        ("\"low\": 1e9", "\"low\": 1e12"),
        ("\"low\": 1e9, ", "\"low\": -1e9, "),
        ("\"1.0\"", "\"9.0\""),
        ("0.005", "1e300"),
        ("0.005", "1e400"),
        ("\"draws\": []", "\"draws\": [[1, 2]]"),
        ("\"source\"", "\"f\\u006frm\""),
        ("\"draws\"", deep.as_str()),
    ] {
        file(law(from, to).as_bytes());
        refused(at, LAW, &[3]);
    }
    for bytes in [&b""[..], b"\xef\xbb\xbf", b"[]", &[0; 4096], &law("ours", "x").as_bytes()[..90]]
    {
        file(bytes);
        refused(at, LAW, &[3]);
    }
    file(law("ours", "\\u001b[2J\\u202e").as_bytes());
    ended(program(at, LAW), &[0]);
    ended(program(at, &format!("{LAW} --json")), &[0]);
}

#[test]
fn configurations_of_any_content_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let good = r#"{"model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000, "torch_dtype": "bfloat16"}"#;
    let config = at.join("config.json");
    fs::write(&config, good).unwrap();
    ended(program(at, ESTIMATE), &[0]);
    let bomb = format!(
        "{{\"quant_method\": \"compressed-tensors\", \"config_groups\": {{}}, \"ignore\": [\"re:{}$\"]}}",
        "(a*)*".repeat(500)
    );
    let bombed = format!("\"bfloat16\", \"quantization_config\": {bomb}");
    for (from, to, codes, word) in [
        ("\"bfloat16\"", "\"float7\"", &[3][..], "float7"),
        ("4096", "9223372036854775807", &[3][..], ""),
        ("4096", "18446744073709551616", &[3][..], ""),
        ("4096", "4096.5", &[3][..], "hidden_size"),
        ("4096", "\"4096\"", &[3][..], ""),
        ("\"num_local_experts\": 8", "\"num_local_experts\": -8", &[3][..], ""),
        ("\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 9", &[3][..], ""),
        ("\"num_attention_heads\": 32", "\"num_attention_heads\": 0", &[3][..], ""),
        ("\"num_hidden_layers\": 32", "\"num_hidden_layers\": 1000000000", &[3, 4, 5][..], ""),
        ("\"mixtral\"", "\"mi\\u202extral\\u001b[31m\"", &[0, 3][..], ""),
        ("\"bfloat16\"", bombed.as_str(), &[0, 3][..], ""),
        ("\"bfloat16\"", "\"bfloat16\", \"hidden_size\": 64", &[3][..], "hidden_size"),
    ] {
        assert!(good.contains(from), "{from}");
        fs::write(&config, good.replacen(from, to, 1)).unwrap();
        let text = refused(at, ESTIMATE, codes);
        assert!(text.contains(word), "{to}: {text}");
    }
    fs::write(&config, "{\"a\":".repeat(5000)).unwrap();
    refused(at, ESTIMATE, &[3]);
    fs::remove_file(&config).unwrap();
    pipe(&config);
    refused(at, ESTIMATE, &[7]);
    fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("config.json", &config).unwrap();
    refused(at, ESTIMATE, &[7]);
}

#[test]
fn tables_of_any_content_are_told_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let fit = "law fit r.csv --form hoffmann2022 --out fit.json";
    let head = "n_active,tokens,loss\n";
    let huge = format!("{head}{},1e9,3\n", "9".repeat(2_000_000));
    for text in [
        "n_active,tokens,loss,loss\n1e8,1e9,3,3\n",
        "n_active,tok\u{202e}ens,loss\n1e8,1e9,3\n",
        &huge,
        "n_active,tokens,loss\n=1+1,1e9,3\n",
        "n_active,tokens,loss\n1e8\0,1e9,3\n",
        "n_active,tokens,loss\n0x10,1e9,3\n",
        "n_active,tokens,loss\ninf,1e9,3\n",
        "n_active,tokens,loss\n\"1e8,1e9,3\n",
    ] {
        fs::write(at.join("r.csv"), text).unwrap();
        refused(at, fit, &[3]);
    }
    fs::write(at.join("r.csv"), b"n_active,tokens,loss\n1e8,1e9,3\xe9\n").unwrap();
    refused(at, fit, &[3]);
    // An archive that was cut.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, format!("{head}1e8,1e9,3\n").repeat(99).as_bytes())
        .unwrap();
    let packed = packed.finish().unwrap();
    fs::write(at.join("r.csv"), &packed[..packed.len() - 12]).unwrap();
    refused(at, fit, &[3]);
    for text in ["18446744073709551615,1,1,1\n", "1,2,3,4\n1,2\n", "=1,2,3,4\n"] {
        fs::write(at.join("t.csv"), text).unwrap();
        refused(at, &format!("{TINY} --routing trace:t.csv --out p.json"), &[2, 3]);
    }
    let requests = |row: fn(usize) -> String| {
        let rows: String = (0..1500).map(row).collect();
        fs::write(at.join("q.csv"), format!("arrival_s,input_tokens,output_tokens\n{rows}"))
            .unwrap();
        refused(
            at,
            "size --model olmoe-1b-7b --device h100 --rate 1 --isl 100 --osl 100 --trace q.csv",
            &[2, 3],
        );
    };
    requests(|i| format!("{},10,10\n", 2000 - i));
    requests(|i| format!("{i},1e300,10\n"));
    requests(|_| "99999-13-45 99:99:99,10,10\n".into());
    let own = r#"{"schema": "moe-frontier/own-constants", "schema_version": "1.0", "calibrations": [["a"]]}"#;
    fs::write(at.join("own.json"), own).unwrap();
    refused(
        at,
        "estimate --model mixtral-8x7b --device h100 --concurrency 4 --calibrate own.json",
        &[3],
    );
    let made = r#"{"schema": "moe-frontier/rank", "arguments": ["--profile=h100", "--draws=5"]}"#;
    fs::write(at.join("rank.json"), made).unwrap();
    refused(at, "rank --from rank.json", &[3]);
    refused(at, "rank --from /dev/zero", &[3]);
}

/// Pipes and devices are never waited for, written to by a rename, or taken for files.
#[test]
fn what_is_no_file_is_not_taken_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let rows: Vec<String> = (0..16)
        .map(|i| {
            let (n, t) = (1e8 * f64::from(1 + i % 4), 1e9 * f64::from(1 + i / 4));
            format!("{n},{t},{}\n", 1.8 + 480.0 / n.powf(0.35) + 2000.0 / t.powf(0.37))
        })
        .collect();
    let rows = rows.concat();
    fs::write(at.join("r.csv"), format!("n_active,tokens,loss\n{rows}")).unwrap();
    pipe(&at.join("pipe.json"));
    refused(at, "law fit r.csv --form hoffmann2022 --out pipe.json --overwrite", &[7]);
    assert!(
        fs::metadata(at.join("pipe.json")).unwrap().file_type().is_fifo(),
        "it is still a pipe"
    );
    // A result folder whose mark is a pipe, a run whose journal is one.
    fs::create_dir(at.join("out")).unwrap();
    pipe(&at.join("out/.moe-frontier"));
    refused(at, RANK, &[0, 7]);
    fs::create_dir(at.join("run")).unwrap();
    pipe(&at.join("run/journal.jsonl"));
    refused(at, &format!("{TINY} --out run --overwrite"), &[7]);
    fs::create_dir(at.join("planned")).unwrap();
    pipe(&at.join("planned/plan.json"));
    refused(at, "measure --resume planned", &[7]);
    // A store with everything in it but profiles.
    let store = at.join("store");
    fs::create_dir_all(store.join("folder.json")).unwrap();
    pipe(&store.join("pipe.json"));
    fs::write(store.join("bytes.json"), [0; 100]).unwrap();
    fs::write(store.join("cut.json"), "{\"schema\": \"moe-frontier/profile\", \"cells\": [1]}")
        .unwrap();
    for line in ["doctor", "doctor --prune"] {
        let mut command = program(at, line);
        command.env("MOE_FRONTIER_PROFILES", &store);
        ended(command, &[0]);
    }
    assert!(!store.join("cut.json").exists() && store.join("bytes.json").exists());
    // A Hub cache whose reference is a pipe, or leads elsewhere.
    let refs = at.join("hub/models--org--name/refs");
    fs::create_dir_all(&refs).unwrap();
    for is_pipe in [false, true] {
        if is_pipe {
            fs::remove_file(refs.join("main")).unwrap();
            pipe(&refs.join("main"));
        } else {
            fs::write(refs.join("main"), "../../../../../../etc").unwrap();
        }
        let mut command = program(at, "estimate --model org/name --device h100 --concurrency 4");
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", at).env_remove("HF_HUB_CACHE");
        ended(command, &[7]);
    }
}

/// Names with any characters, and a limit on the size of files in place of a full disk.
#[test]
fn results_are_whole_or_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut command = program(at, RANK);
    command.args(["--out", "\u{e9}\u{202e}\u{7ed3}\u{679c} x"]);
    ended(command, &[0]);
    let mut command = program(at, RANK);
    command.args(["--out", &"x".repeat(300)]);
    ended(command, &[7]);
    // Files of at most 20 KiB; the shell's own signal for it is ignored.
    let mut limited = Command::new("bash");
    let line = format!("trap '' XFSZ; ulimit -f 20; exec '{}' {RANK} --out small", runs::PROGRAM);
    limited.args(["-c", &line]).current_dir(at).env("MOE_FRONTIER_PROFILES", at.join("profiles"));
    ended(limited, &[7]);
    let names: Vec<String> = fs::read_dir(at)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), 1, "{names:?}");
}
