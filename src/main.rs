//! The `moe-frontier` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(moe_frontier::cli::program(std::env::args_os().collect()))
}
