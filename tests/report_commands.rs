//! The program itself: exit codes and streams of `report`, `compare`, `preset` and `device`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::process::{Command, Output};

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_moe-frontier")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Ends with this code, one line on stderr that contains `word`, and nothing on stdout.
fn refused(arguments: &[&str], code: i32, word: &str) {
    let output = program(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.starts_with("error: ") && message.contains(word), "{message}");
    assert!(output.stdout.is_empty());
}

#[test]
fn bad_input_gets_one_line_and_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let foreign =
        file("foreign.json", "{\"schema\": \"someone/else\", \"schema_version\": \"1.0\"}");
    let newer =
        file("newer.json", "{\"schema\": \"moe-frontier/rank\", \"schema_version\": \"3.0\"}");
    let cut = file("cut.json", "{\"schema\": \"moe-frontier/rank\", \"schema_ver");
    let nan = file("nan.json", "{\"schema\": NaN}");
    let missing = folder.path().join("missing.json").to_str().unwrap().to_owned();
    refused(&["report", &foreign], 3, "not a ranking");
    refused(&["report", &newer], 3, "this program reads 2.");
    refused(&["report", &cut], 3, "cut.json:1:");
    refused(&["report", &nan], 3, "nan.json:1:");
    refused(&["report", &missing], 7, "failed to read");
    refused(&["compare", &foreign, &foreign], 3, "not a profile");
    refused(&["compare", &missing, &foreign], 7, "failed to read");
    refused(&["preset", "show", "mixtral"], 2, "Mixtral-8x7B");
    refused(&["device", "show", "h10"], 2, "h100");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "nothing was written");
}

#[test]
fn json_is_one_document_with_its_schema_first() {
    for arguments in [
        vec!["preset", "list", "--json"],
        vec!["preset", "show", "deepseek-v3", "--json"],
        vec!["device", "list", "--json"],
        vec!["device", "show", "h200", "--json"],
    ] {
        let output = program(&arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}");
        let document = text(&output.stdout);
        let head: String = document.split_whitespace().take(3).collect();
        assert!(head.starts_with("{\"schema\":\"moe-frontier/"), "{head}");
        serde_json::from_str::<serde_json::Value>(&document).unwrap();
    }
}

#[test]
fn every_help_shows_an_example() {
    for command in [vec!["report"], vec!["compare"], vec!["preset", "show"], vec!["device", "list"]]
    {
        let help = text(&program(&[command.as_slice(), &["--help"]].concat()).stdout);
        assert!(help.contains("Example: moe-frontier"), "{help}");
    }
}
