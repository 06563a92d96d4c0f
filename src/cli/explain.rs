//! `explain TERM`: the glossary.

use serde::Serialize;

use crate::cli::{Output, output};
use crate::config::unknown_name;
use crate::report::glossary::{self, TERMS, Term};
use crate::report::grid::hanging;
use crate::{Error, Result};

/// Say what a term of the tables means; without one, list all.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moe-frontier explain TPOT
  moe-frontier explain \"expert parallel\"")]
pub struct Args {
    /// The term.
    pub term: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    terms: Vec<Term>,
}

/// Runs the command.
///
/// # Errors
/// [`Error::Usage`] for a term that is not explained, with the nearest ones.
pub fn run(args: &Args, output: Output) -> Result<()> {
    let terms = match args.term.join(" ").as_str() {
        "" => TERMS.to_vec(),
        word => vec![*glossary::find(word).ok_or_else(|| unknown(word))?],
    };
    let document = Document { schema: "moe-frontier/glossary", schema_version: "1.0", terms };
    output.result(&document, || text(&document.terms, output::width()))
}

fn unknown(word: &str) -> Error {
    match unknown_name("term", word, glossary::words()) {
        Error::Usage { reason, .. } => Error::usage("TERM", reason),
        other => other,
    }
}

fn text(terms: &[Term], width: usize) -> String {
    let [only] = terms else {
        let label = terms.iter().map(|t| t.term.len()).max().unwrap_or(0) + 2;
        let line = |t: &Term| hanging(&format!("{:<label$}", t.term), t.meaning, width);
        return terms.iter().map(line).collect();
    };
    let mut text = hanging("", &format!("{}: {}", only.term, only.meaning), width);
    if !only.also.is_empty() {
        text += &hanging("also: ", &only.also.join(", "), width);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_term_has_its_other_words_and_a_wrong_one_suggestions() {
        let tpot = text(&[*glossary::find("tpot").unwrap()], 60);
        assert!(tpot.starts_with("TPOT: Time per output token") && tpot.contains("also: itl"));
        assert!(tpot.lines().all(|line| line.len() <= 60), "{tpot}");
        assert!(unknown("tpto").to_string().contains("TPOT"), "{}", unknown("tpto"));
    }
}
