//! `man`: manual pages, one a command.

use std::path::PathBuf;

use clap::{Command, CommandFactory};
use serde::Serialize;

use crate::cli::{Cli, Output, help, repeat};
use crate::files::{create_folder, write_atomic};
use crate::{Error, Result};

/// Print a manual page, or write all of them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moe-frontier man rank | man -l -
  moe-frontier man --out ~/.local/share/man/man1")]
pub struct Args {
    /// The command, such as `rank` or `law fit`; without it the page of the program.
    pub command: Vec<String>,
    /// Write the pages of all commands into this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub out: Option<PathBuf>,
    /// Replace pages that are there.
    #[arg(long, requires = "out")]
    pub overwrite: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    /// Name of each page.
    pages: Vec<String>,
    /// The page itself where only one was asked for.
    text: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// [`Error::Usage`] for a command that does not exist; [`Error::Io`] when a page cannot be written.
pub fn run(args: &Args, output: Output) -> Result<()> {
    let root = help::finished(repeat::with_flag(Cli::command()));
    let document =
        |pages, text| Document { schema: "moe-frontier/man", schema_version: "1.0", pages, text };
    let Some(folder) = &args.out else {
        let (name, command) = named(&root, &args.command)?;
        let text = page(&name, command)?;
        return output.verbatim(&document(vec![name], Some(text.clone())), &text);
    };
    create_folder(folder)?;
    let mut pages = Vec::new();
    for (name, command) in all("moe-frontier", &root) {
        let file = format!("{name}.1");
        let text = page(&name, &command)?;
        write_atomic(&folder.join(&file), text.as_bytes(), args.overwrite)?;
        pages.push(file);
    }
    let text: String = pages.iter().flat_map(|p| [p.as_str(), "\n"]).collect();
    output.verbatim(&document(pages, None), &text)
}

/// The command that words name, and the name of its page.
fn named<'a>(root: &'a Command, words: &[String]) -> Result<(String, &'a Command)> {
    let mut found = ("moe-frontier".to_owned(), root);
    for word in words {
        let sub = found.1.find_subcommand(word).filter(|sub| !sub.is_hide_set());
        let sub = sub.ok_or_else(|| {
            let known = found.1.get_subcommands().filter(|sub| !sub.is_hide_set());
            let known: Vec<&str> = known.map(Command::get_name).collect();
            Error::usage("COMMAND", format!("`{word}` is none of {}", known.join(", ")))
        })?;
        found = (format!("{}-{word}", found.0), sub);
    }
    Ok(found)
}

/// Every command that is shown, with the name of its page.
fn all(name: &str, command: &Command) -> Vec<(String, Command)> {
    let mut pages = vec![(name.to_owned(), command.clone())];
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set() && s.get_name() != "help") {
        pages.extend(all(&format!("{name}-{}", sub.get_name()), sub));
    }
    pages
}

fn page(name: &str, command: &Command) -> Result<String> {
    let mut bytes = Vec::new();
    let command = command.clone().name(name.to_owned()).version(env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(command)
        .render(&mut bytes)
        .map_err(|e| Error::io("write", "standard output", e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let root = help::finished(repeat::with_flag(Cli::command()));
        let pages = all("moe-frontier", &root);
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"moe-frontier-rank") && names.contains(&"moe-frontier-law-fit"));
        assert!(!names.iter().any(|name| name.contains("worker")));
        for (name, command) in &pages {
            let text = page(name, command).unwrap();
            assert!(text.contains(".TH ") && text.contains("NAME"), "{text}");
        }
    }

    #[test]
    fn an_unknown_command_is_refused_with_those_there_are() {
        let root = help::finished(repeat::with_flag(Cli::command()));
        let error = named(&root, &["law".into(), "fitt".into()]).unwrap_err();
        assert!(error.to_string().contains("claims"), "{error}");
    }
}
