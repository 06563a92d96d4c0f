//! `rank --law-weights runs:FILE`: laws weighed by their errors on runs of one's own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Output;

use moe_frontier::law::load_scaling;
use serde_json::Value;

#[path = "common/runs.rs"]
mod runs;

use runs::{message, program};

/// Runs that a law makes in another tokenizer, as a file.
fn write(at: &Path, id: &str, counts: &[usize]) {
    let law = load_scaling(id).unwrap();
    let mut text = String::from("experts,n_active,tokens,loss\n");
    for &experts in counts {
        let slice = law.slice(experts).unwrap();
        for n_active in [1e8, 2e8, 4e8, 8e8, 1.6e9] {
            for ratio in [10.0, 40.0] {
                let tokens = ratio * n_active;
                let loss = slice.loss(n_active, tokens).0 + 0.25;
                writeln!(text, "{experts},{n_active},{tokens},{loss}").unwrap();
            }
        }
    }
    fs::write(at, text).unwrap();
}

fn ranked(folder: &Path, laws: &str) -> Output {
    let line = format!(
        "rank --profile h100 --train-flops 1e21 --experts 4,8,16 --draws 40 --law {laws} \
         --law-weights runs:runs.csv --json --overwrite"
    );
    program(folder, &line).output().unwrap()
}

fn document(output: &Output) -> Value {
    assert!(output.status.success(), "{}", message(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Values of the ledger's entries of a flag.
fn noted(rank: &Value, flag: &str) -> Vec<String> {
    let ledger = rank["assumptions"].as_array().unwrap();
    let found = ledger.iter().filter(|a| a["name"] == flag);
    found.map(|a| a["value"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_law_behind_the_runs_gets_the_weight_and_the_ledger_says_why() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("runs.csv"), "abnar2025", &[4, 8, 16]);
    let rank = document(&ranked(folder.path(), "ludziejewski2025,abnar2025,tian2025"));
    let weight = |id: &str| {
        let laws = rank["laws"].as_array().unwrap();
        laws.iter().find(|l| l["law"] == id).unwrap()["weight"].as_f64().unwrap()
    };
    assert!(weight("abnar2025") > 0.9, "{}", weight("abnar2025"));
    assert!(weight("ludziejewski2025") > 0.0);
    let words = &noted(&rank, "--law-weights")[0];
    assert!(words.contains("abnar2025 0.00"), "{words}");
    assert!(words.ends_with("the 8 largest of 30 runs"), "{words}");
}

#[test]
fn a_first_law_that_the_runs_leave_out_is_replaced_by_the_next() {
    // Zhao's law says nothing about dense models; the question is then one of the other law.
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("runs.csv"), "ludziejewski2025", &[1]);
    let rank = document(&ranked(folder.path(), "zhao2025,ludziejewski2025"));
    assert_eq!(rank["law"]["id"], "ludziejewski2025");
    assert_eq!(rank["laws"].as_array().unwrap().len(), 1);
    let words = &noted(&rank, "--law-weights")[0];
    assert!(words.contains("zhao2025 left out: answers 0 of the 10 runs"), "{words}");
    assert_eq!(noted(&rank, "--train-flops").len(), 1, "resolved anew, not twice over");
}

#[test]
fn runs_that_no_law_answers_enough_of_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = "experts,n_active,tokens,loss\n4,1e8,1e9,3\n4,2e8,1e9,2.9\n";
    fs::write(folder.path().join("runs.csv"), text).unwrap();
    let output = ranked(folder.path(), "all");
    assert_eq!(output.status.code(), Some(4));
    let message = message(&output);
    assert!(message.contains("answers 2 of the 2 runs; 8 are needed"), "{message}");
}
