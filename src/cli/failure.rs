//! How a command that did not succeed ends: one line on stderr, or one JSON object there under `--json`.

use clap::error::ErrorKind;
use serde::Serialize;

use crate::Error;
use crate::cli::output;
use crate::error::{plain_json, tidy};

/// Why a process ends.
#[derive(Debug)]
pub enum Failure {
    /// The arguments: wrong ones, or a wish for help or the version.
    Usage(clap::Error),
    /// A command.
    Run(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Run(error)
    }
}

/// What `--json` prints, on stderr: stdout holds results alone.
#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    kind: &'static str,
    message: String,
    exit_code: u8,
}

impl Failure {
    /// The code that the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Run(error) => error.exit_code(),
        }
    }

    /// The line on stderr.
    pub fn line(&self, json: bool) -> String {
        let message = match self {
            Self::Usage(error) => usage_line(error),
            Self::Run(error) => format!("error: {error}"),
        };
        if !json {
            return message;
        }
        let document = Document {
            schema: "moe-frontier/error",
            schema_version: "1.0",
            kind: self.kind(),
            message: message.trim_start_matches("error: ").to_owned(),
            exit_code: self.exit_code(),
        };
        serde_json::to_string(&document).map_or(message, plain_json)
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::Usage(_) | Self::Run(Error::Usage { .. }) => "usage",
            Self::Run(Error::Gate(_)) => "gate",
            Self::Run(Error::BadFile { .. }) => "bad_file",
            Self::Run(Error::Unfit { .. }) => "unfit",
            Self::Run(Error::Infeasible { .. }) => "infeasible",
            Self::Run(Error::Device { .. }) => "device",
            Self::Run(Error::Io { .. }) => "io",
            Self::Run(Error::Interrupted { .. }) => "interrupted",
        }
    }
}

/// Whether it is no failure: help or the version, asked for or shown for want of a command.
pub fn is_help(error: &clap::Error) -> bool {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    matches!(error.kind(), DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand)
}

/// Prints help or the version as wide as the terminal; the exit code.
pub fn show_help(error: &clap::Error) -> u8 {
    if error.use_stderr() {
        // For want of a command: the help is a complaint.
        let _ = error.print();
        return 2;
    }
    let text = error.render();
    let text = if output::colour() { text.ansi().to_string() } else { text.to_string() };
    match output::write_text(&text) {
        Ok(()) => 0,
        Err(error) => error.exit_code(),
    }
}

/// Whether the words of a command line, or its variable, ask for JSON, where they could not be parsed.
pub fn asks_for_json<'a>(words: impl IntoIterator<Item = &'a str>, variable: Option<&str>) -> bool {
    let is_on = |text: &str| {
        !matches!(text.to_lowercase().as_str(), "" | "0" | "n" | "no" | "f" | "false" | "off")
    };
    variable.is_some_and(is_on)
        || words.into_iter().take_while(|word| *word != "--").any(|word| word == "--json")
}

/// What clap says of wrong arguments as one line: what is wrong, then its tips. The usage that it
/// prints below is what `--help` shows.
pub fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let joined = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut parts = text.split("\n\n").map(joined).filter(|part| !part.is_empty());
    let mut line = parts.next().unwrap_or_else(|| "error: wrong arguments".to_owned());
    for tip in parts.filter(|part| part.starts_with("tip:")) {
        line += "; ";
        line += &tip;
    }
    tidy(&line) + "; --help shows the usage"
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn line(arguments: &[&str]) -> String {
        let all = [&["moe-frontier"], arguments].concat();
        usage_line(&Cli::try_parse_from(all).unwrap_err())
    }

    #[test]
    fn wrong_arguments_are_told_in_one_line() {
        let wrong = line(&["rank", "--price", "nan"]);
        assert!(
            wrong.starts_with("error: invalid value 'nan' for '--price <USD|tier:NAME>'"),
            "{wrong}"
        );
        assert!(wrong.contains("write 1e21"), "{wrong}");
        assert!(
            line(&["rank", "--prise", "1"]).contains("tip: a similar argument exists: '--price'")
        );
        assert!(line(&["report"]).contains("were not provided: <RANK_JSON>"));
        assert!(
            line(&["compare", "a", "b", "--fail-on", "x"]).contains("[possible values: slower]")
        );
        for all in [wrong, line(&["rank", "a\n\nb"]), line(&["nothing"])] {
            assert_eq!(all.lines().count(), 1, "{all}");
            assert!(!all.contains("Usage:"), "{all}");
        }
    }

    #[test]
    fn a_failure_is_one_json_object_where_that_is_asked_for() {
        let failure = Failure::from(Error::infeasible("tpot", "nearest \"20\" ms"));
        let value: serde_json::Value = serde_json::from_str(&failure.line(true)).unwrap();
        assert_eq!((&value["kind"], &value["exit_code"]), (&"infeasible".into(), &5.into()));
        assert_eq!(value["message"], "tpot; nearest \"20\" ms");
        assert_eq!(failure.line(false), "error: tpot; nearest \"20\" ms");
        assert!(failure.line(true).starts_with("{\"schema\":\"moe-frontier/error\""));
    }

    #[test]
    fn json_is_asked_for_by_a_flag_and_not_by_a_value() {
        assert!(asks_for_json(["rank", "--json"], None));
        assert!(!asks_for_json(["rank", "--", "--json"], None) && !asks_for_json(["rank"], None));
        assert!(asks_for_json(["rank"], Some("1")) && !asks_for_json(["rank"], Some("0")));
    }
}
