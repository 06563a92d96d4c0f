//! Flags that need not be typed each time: from the environment and from a file of settings.
//!
//! What counts, the first that is there: the flag itself, its variable `MOE_FRONTIER_*`, the file, the
//! built-in default. The file is the one that `MOE_FRONTIER_CONFIG` names, else `moe-frontier.toml` in the
//! working folder, else `moe-frontier/config.toml` in the user's folder of settings; an empty
//! `MOE_FRONTIER_CONFIG` turns it off. At its top stand flags for every command that has them, in a table
//! named as a command those for it alone:
//!
//! ```toml
//! device = "h200"
//! price = 2.50
//!
//! [rank]
//! mfu = 0.45
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{ArgAction, Command};
use etcetera::{BaseStrategy, choose_base_strategy};

use crate::files::{read_capped, strict};
use crate::{Error, Result};

/// Variable that names the file of settings.
pub const FILE_VARIABLE: &str = "MOE_FRONTIER_CONFIG";
/// Flags of several commands, each with its variable. None of them excludes another flag.
pub const VARIABLES: [(&str, &str); 10] = [
    ("json", "MOE_FRONTIER_JSON"),
    ("profile", "MOE_FRONTIER_PROFILE"),
    ("engine", "MOE_FRONTIER_ENGINE"),
    ("device", "MOE_FRONTIER_DEVICE"),
    ("model", "MOE_FRONTIER_MODEL"),
    ("law", "MOE_FRONTIER_LAW"),
    ("weights", "MOE_FRONTIER_WEIGHTS"),
    ("routing", "MOE_FRONTIER_ROUTING"),
    ("price", "MOE_FRONTIER_PRICE"),
    ("mfu", "MOE_FRONTIER_MFU"),
];
/// Name of the file in the working folder.
const LOCAL: &str = "moe-frontier.toml";
/// Longest file that is read, in bytes.
const CAP: u64 = 1 << 20;

/// Settings of a file: by command, those of every command under the empty name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    path: PathBuf,
    flags: BTreeMap<String, BTreeMap<String, String>>,
}

impl Settings {
    /// The settings that apply here, if there is a file.
    ///
    /// # Errors
    /// [`Error::Io`] for a named file that cannot be read; [`Error::BadFile`] for one that is not TOML of
    /// the stated form.
    pub fn find() -> Result<Self> {
        match std::env::var_os(FILE_VARIABLE) {
            Some(named) if named.is_empty() => Ok(Self::default()),
            Some(named) => Self::read(Path::new(&named)),
            None => {
                let own = choose_base_strategy().ok();
                let own =
                    own.map(|base| base.config_dir().join("moe-frontier").join("config.toml"));
                let places = [Some(PathBuf::from(LOCAL)), own];
                let found = places.into_iter().flatten().find(|path| path.is_file());
                found.map_or_else(|| Ok(Self::default()), |path| Self::read(&path))
            }
        }
    }

    /// The settings of a file.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_capped(path, CAP)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::bad_file(path, "is not UTF-8 text; write TOML"))?;
        let table: toml::Table = strict::from_toml(&text, CAP)
            .map_err(|e| Error::bad_file(path, e.message().to_owned()))?;
        let mut settings = Self { path: path.to_owned(), ..Self::default() };
        for (key, value) in table {
            match value {
                toml::Value::Table(inner) => {
                    for (flag, value) in inner {
                        settings.set(&key, &flag, &value)?;
                    }
                }
                value => settings.set("", &key, &value)?,
            }
        }
        Ok(settings)
    }

    fn set(&mut self, command: &str, flag: &str, value: &toml::Value) -> Result<()> {
        let words = word(value).ok_or_else(|| {
            let reason = format!("`{flag}` is no text, number, truth value or list of them");
            Error::bad_file(&self.path, reason)
        })?;
        self.flags.entry(command.to_owned()).or_default().insert(flag.replace('_', "-"), words);
        Ok(())
    }

    /// Gives a command line the variables, and the settings as defaults.
    ///
    /// # Errors
    /// [`Error::BadFile`] for a command or flag that does not exist, or that excludes another one: a
    /// default would not be told from a flag.
    pub fn apply(&self, command: Command) -> Result<Command> {
        let names: Vec<String> = command
            .get_subcommands()
            .filter(|sub| !sub.is_hide_set())
            .map(|sub| sub.get_name().to_owned())
            .collect();
        let mut used: Vec<&str> = Vec::new();
        let none = BTreeMap::new();
        // Flags of the program itself hold for every command.
        let top: BTreeMap<&String, &String> = self.flags.get("").unwrap_or(&none).iter().collect();
        let mut command = Self::own_defaults(command, &top, &mut used, &mut None);
        for name in &names {
            let (all, own) =
                (self.flags.get("").unwrap_or(&none), self.flags.get(name).unwrap_or(&none));
            for flag in own.keys() {
                let known = command.find_subcommand(name).is_some_and(|sub| has(sub, flag));
                if !known {
                    return Err(self.wrong(&format!("[{name}] has no flag `{flag}`")));
                }
            }
            let merged: BTreeMap<&String, &String> = all.iter().chain(own).collect();
            let mut refused = None;
            command = command.mut_subcommand(name, |sub| {
                Self::with_defaults(sub, &merged, &mut used, &mut refused)
            });
            if let Some(reason) = refused {
                return Err(self.wrong(&reason));
            }
        }
        for (table, flags) in &self.flags {
            if !table.is_empty() && !names.contains(table) {
                return Err(self.wrong(&format!("there is no command `{table}`")));
            }
            let unknown = |flag: &&String| table.is_empty() && !used.contains(&flag.as_str());
            if let Some(flag) = flags.keys().find(unknown) {
                return Err(self.wrong(&format!("no command has a flag `{flag}`")));
            }
        }
        Ok(command)
    }

    /// Variables and defaults of one command and those below it.
    fn with_defaults<'a>(
        command: Command,
        flags: &BTreeMap<&'a String, &String>,
        used: &mut Vec<&'a str>,
        refused: &mut Option<String>,
    ) -> Command {
        let mut command = Self::own_defaults(command, flags, used, refused);
        let below: Vec<String> =
            command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        for name in below.iter().filter(|name| *name != "help") {
            command =
                command.mut_subcommand(name, |sub| Self::with_defaults(sub, flags, used, refused));
        }
        command
    }

    /// The same of the command alone.
    fn own_defaults<'a>(
        command: Command,
        flags: &BTreeMap<&'a String, &String>,
        used: &mut Vec<&'a str>,
        refused: &mut Option<String>,
    ) -> Command {
        let mut command = command;
        for (flag, variable) in VARIABLES {
            if has(&command, flag) {
                command = with(command, flag, |arg| arg.env(variable).hide_env_values(true));
            }
        }
        for (flag, value) in flags {
            let Some(arg) = command.get_arguments().find(|a| a.get_long() == Some(flag.as_str()))
            else {
                continue;
            };
            used.push(flag.as_str());
            if !command.get_arg_conflicts_with(arg).is_empty() {
                *refused =
                    Some(format!("`{flag}` excludes other flags; give it on the command line"));
                continue;
            }
            let value = (*value).clone();
            command = with(command, flag, |arg| {
                let arg = arg.required(false);
                // A list is given as a flag that is repeated would be.
                match arg.get_action() {
                    ArgAction::Append => {
                        arg.default_values(value.split(',').map(str::to_owned).collect::<Vec<_>>())
                    }
                    _ => arg.default_value(value),
                }
            });
        }
        command
    }

    /// Whether the file sets a flag of a command.
    pub fn has(&self, command: &str, flag: &str) -> bool {
        ["", command].iter().any(|t| self.flags.get(*t).is_some_and(|f| f.contains_key(flag)))
    }

    fn wrong(&self, reason: &str) -> Error {
        Error::bad_file(&self.path, reason)
    }

    /// Whether a complaint of the command line is about a value of the file: then it is the file's error.
    pub fn blame(&self, error: &clap::Error) -> Option<Error> {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            _ => None,
        };
        let (arg, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
        let flag = arg.trim_start_matches('-').split([' ', '=']).next()?.to_owned();
        let ours = self.flags.values().filter_map(|flags| flags.get(&flag));
        let is_ours = ours.flat_map(|all| all.split(',').chain([all.as_str()])).any(|v| v == value);
        is_ours.then(|| self.wrong(&format!("`{flag}`: `{value}` is not accepted; see --help")))
    }
}

fn has(command: &Command, flag: &str) -> bool {
    let own = command.get_arguments().any(|arg| arg.get_long() == Some(flag));
    own || command.get_subcommands().any(|sub| has(sub, flag))
}

/// The command with a flag changed, where it has it itself.
fn with(command: Command, flag: &str, change: impl FnOnce(clap::Arg) -> clap::Arg) -> Command {
    let found = command.get_arguments().find(|arg| arg.get_long() == Some(flag));
    match found.map(|arg| arg.get_id().clone()) {
        Some(id) => command.mut_arg(id, change),
        None => command,
    }
}

/// A value as it would be typed.
fn word(value: &toml::Value) -> Option<String> {
    Some(match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(truth) => truth.to_string(),
        toml::Value::Array(list) => {
            let words: Option<Vec<String>> = list.iter().map(word).collect();
            words?.join(",")
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => return None,
    })
}

/// The places and variables, for the help.
pub fn help() -> String {
    let mut text = String::from("Environment:\n");
    for (flag, variable) in VARIABLES {
        let _ = writeln!(text, "  {variable:<24} --{flag} where a command has it");
    }
    text += "  MOE_FRONTIER_PROFILES    folder of measured profiles\n";
    text += "  MOE_FRONTIER_CONFIG      file of settings; empty for none\n";
    text +=
        "  HF_TOKEN, HF_ENDPOINT    for --model OWNER/NAME; HF_HUB_OFFLINE=1 keeps to the cache\n";
    text += "  NO_COLOR, COLUMNS        no colours; width of tables\n\n";
    text += "Settings (TOML): moe-frontier.toml here, else moe-frontier/config.toml in the folder of \
             settings. `device = \"h200\"` at the top holds for every command with the flag, under \
             `[rank]` for that one. A flag beats its variable, the variable the file.\n";
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::ask::DevicePrice;
    use crate::cli::{Cli, Command as Verb};
    use crate::units::UsdPerHour;

    fn settings(text: &str) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.toml");
        fs::write(&path, text).unwrap();
        Settings::read(&path)
    }

    fn parsed(text: &str, words: &[&str]) -> Cli {
        let command = settings(text).unwrap().apply(Cli::command()).unwrap();
        let words = ["moe-frontier"].iter().chain(words);
        Cli::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
    }

    #[test]
    fn settings_are_defaults_that_flags_beat() {
        let text =
            "device = \"h200\"\nprice = 2.5\n[rank]\nmfu = 0.45\n[size]\nmodel = \"olmoe-1b-7b\"";
        let Verb::Rank(rank) = parsed(text, &["rank"]).command else { panic!("not rank") };
        assert_eq!(rank.device.as_deref(), Some("h200"));
        assert_eq!(rank.price, Some(DevicePrice::PerHour(UsdPerHour(2.5))));
        let Verb::Rank(rank) = parsed(text, &["rank", "--device", "b200"]).command else {
            panic!("not rank")
        };
        assert_eq!(rank.device.as_deref(), Some("b200"));
        let Verb::Size(size) = parsed(text, &["size", "--rate", "1"]).command else {
            panic!("not size")
        };
        assert_eq!((size.model.as_str(), size.device), ("olmoe-1b-7b", vec!["h200".to_owned()]));
        assert!(parsed("json = true", &["doctor"]).json);
    }

    #[test]
    fn what_cannot_be_set_is_named() {
        let refusal = |text: &str| {
            let error = settings(text).and_then(|s| s.apply(Cli::command())).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            error.to_string()
        };
        assert!(refusal("devise = \"h200\"").contains("no command has a flag `devise`"));
        assert!(refusal("[ranks]\nmfu = 0.4").contains("no command `ranks`"));
        assert!(refusal("[rank]\nmodell = 1").contains("[rank] has no flag `modell`"));
        assert!(refusal("[rank]\ntrain_flops = 1e21").contains("excludes other flags"));
        assert!(refusal("price = 2001-01-01").contains("no text, number"));
        assert!(refusal("price = ").contains("s.toml"));
        assert!(refusal(&format!("price = [{}1]", "1,".repeat(20_000))).contains("more values"));
    }

    #[test]
    fn a_wrong_value_is_the_files_error() {
        let settings = settings("[rank]\nmfu = 7").unwrap();
        let command = settings.apply(Cli::command()).unwrap();
        let error = command.try_get_matches_from(["moe-frontier", "rank"]).unwrap_err();
        assert!(settings.blame(&error).unwrap().to_string().contains("`mfu`: `7`"));
    }

    #[test]
    fn every_variable_belongs_to_flags_that_exclude_nothing() {
        fn walk(command: &Command, flag: &str) -> usize {
            let own = command.get_arguments().filter(|a| a.get_long() == Some(flag));
            let own = own.inspect(|arg| {
                let excluded = command.get_arg_conflicts_with(arg);
                assert!(excluded.is_empty(), "{} --{flag}", command.get_name());
            });
            own.count() + command.get_subcommands().map(|sub| walk(sub, flag)).sum::<usize>()
        }
        let mut command = Cli::command();
        command.build();
        for (flag, _) in VARIABLES {
            assert!(walk(&command, flag) >= 1, "no command has --{flag}");
        }
    }
}
