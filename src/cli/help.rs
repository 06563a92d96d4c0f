//! What the help of each command ends with, and how much of it `-h` shows.

use clap::Command;

use crate::cli::settings;

/// What each exit code means.
pub const EXIT_CODES: [(&str, &str); 9] = [
    ("0", "done"),
    ("1", "a requested gate failed (--fail-on)"),
    ("2", "a wrong flag or argument"),
    ("3", "a file whose content is not acceptable"),
    ("4", "a measurement, profile or law that cannot carry the answer"),
    ("5", "nothing meets the limits; the nearest that does is named"),
    ("6", "a device is missing or failed"),
    ("7", "a file cannot be opened, read or written"),
    ("130, 143", "ended by Ctrl-C or a request to terminate"),
];

/// A command with more flags than this shows only [`EVERYDAY`] ones under `-h`.
const SHORT: usize = 12;
/// Flags that `-h` shows of commands with many.
const EVERYDAY: [(&str, &[&str]); 4] = [
    (
        "rank",
        &[
            "profile",
            "device",
            "law",
            "experts",
            "train-flops",
            "target-loss",
            "rate",
            "tpot",
            "lifetime-tokens",
            "price",
            "out",
        ],
    ),
    (
        "measure",
        &[
            "device",
            "dtype",
            "experts",
            "top-k",
            "hidden",
            "inter",
            "tokens",
            "quick",
            "time-budget",
            "out",
        ],
    ),
    (
        "size",
        &[
            "model", "device", "rate", "isl", "osl", "ttft-p99", "tpot-p99", "profile", "engine",
            "price", "emit", "out",
        ],
    ),
    (
        "estimate",
        &[
            "model",
            "device",
            "tp",
            "ep",
            "dp",
            "concurrency",
            "rate",
            "isl",
            "osl",
            "points",
            "profile",
        ],
    ),
];

/// The command line with the ends of its helps.
pub fn finished(command: Command) -> Command {
    let footer = format!("{}\n{}", exit_codes(), settings::help());
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set())
        .map(|sub| sub.get_name().to_owned())
        .collect();
    let mut command = command
        .after_help("Start with: moe-frontier rank --profile h100 --train-flops 1e22\n--help lists exit codes, environment variables and settings.")
        .after_long_help(format!("Start with: moe-frontier rank --profile h100 --train-flops 1e22\n\n{footer}"));
    for name in names {
        command = command.mut_subcommand(&name, |sub| below(sub, &name));
    }
    command
}

fn below(command: Command, name: &str) -> Command {
    let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut command = command.after_long_help(format!("{example}\n\n{}", exit_codes()));
    let flags = command.get_arguments().count();
    if let Some((_, shown)) = EVERYDAY.iter().find(|(known, _)| *known == name && flags > SHORT) {
        let more = format!("{example}\n\n-h shows the usual flags; --help all of them.");
        command = command.after_help(more);
        command = command.mut_args(|arg| {
            let everyday = arg.get_long().is_none_or(|long| shown.contains(&long));
            if everyday { arg } else { arg.hide_short_help(true) }
        });
    }
    let names: Vec<String> =
        command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for inner in names.iter().filter(|inner| *inner != "help") {
        command = command.mut_subcommand(inner, |sub| below(sub, inner));
    }
    command
}

fn exit_codes() -> String {
    let lines = EXIT_CODES.iter().map(|(code, words)| format!("  {code:<9} {words}\n"));
    ["Exit codes:\n".to_owned()].into_iter().chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn the_short_help_shows_the_usual_flags_and_the_long_one_all() {
        for (name, shown) in EVERYDAY {
            let mut command = finished(Cli::command());
            command.build();
            let sub = command.find_subcommand_mut(name).unwrap();
            let known: Vec<String> = sub
                .get_arguments()
                .filter(|a| !a.is_hide_set())
                .filter_map(|a| a.get_long().map(str::to_owned))
                .collect();
            for flag in shown {
                assert!(known.iter().any(|k| k == flag), "{name} has no --{flag}");
            }
            let short = sub.render_help().to_string();
            let long = sub.render_long_help().to_string();
            assert!(short.lines().count() * 3 < long.lines().count() * 2, "{name}\n{short}");
            for flag in &known {
                assert!(long.contains(&format!("--{flag}")), "{name} --{flag}");
            }
        }
    }

    #[test]
    fn the_long_help_lists_exit_codes_variables_and_settings() {
        let long = finished(Cli::command()).render_long_help().to_string();
        for part in ["Exit codes:", "MOE_FRONTIER_DEVICE", "moe-frontier.toml", "130, 143"] {
            assert!(long.contains(part), "{part} in {long}");
        }
        let codes: Vec<&str> = EXIT_CODES.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes[..8], ["0", "1", "2", "3", "4", "5", "6", "7"]);
    }
}
