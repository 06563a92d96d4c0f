//! The `moe-frontier` program: parse, call, print, exit code.

use std::io::Write;
use std::process::ExitCode;

use moe_frontier::cli::{self, Failure, failure};

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(Failure::Usage(error)) if failure::is_help(&error) => {
            return failure::show_help(&error);
        }
        Err(failure) => {
            // An argument need not be text.
            let words: Vec<String> =
                std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
            let asked = std::env::var("MOE_FRONTIER_JSON").ok();
            let words = words.iter().map(String::as_str);
            return end(&failure, failure::asks_for_json(words, asked.as_deref()));
        }
    };
    let json = cli.json;
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => end(&error.into(), json),
    }
}

fn end(failure: &Failure, json: bool) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{}", failure.line(json));
    ExitCode::from(failure.exit_code())
}
