//! `completions SHELL`: what a shell needs to complete flags and names.

use clap::CommandFactory;
use clap_complete::{Shell, generate};
use serde::Serialize;

use crate::Result;
use crate::cli::{Cli, Output, repeat};

/// Print the completions of a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moe-frontier completions bash >~/.local/share/bash-completion/completions/moe-frontier
  moe-frontier completions zsh >~/.zfunc/_moe-frontier
  moe-frontier completions fish >~/.config/fish/completions/moe-frontier.fish")]
pub struct Args {
    /// The shell.
    pub shell: Shell,
}

#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    shell: String,
    text: String,
}

/// Runs the command.
///
/// # Errors
/// [`crate::Error::Io`] when stdout cannot be written.
pub fn run(args: &Args, output: Output) -> Result<()> {
    let mut bytes = Vec::new();
    generate(args.shell, &mut repeat::with_flag(Cli::command()), "moe-frontier", &mut bytes);
    let document = Document {
        schema: "moe-frontier/completions",
        schema_version: "1.0",
        shell: args.shell.to_string(),
        text: String::from_utf8_lossy(&bytes).into_owned(),
    };
    output.verbatim(&document, &document.text)
}
