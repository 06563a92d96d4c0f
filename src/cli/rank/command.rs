//! The command: what the answer leaves behind as text and files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::place::answer;
use super::{RankArgs, print};
use crate::ask::Mfu;
use crate::ask::rank::{Answer, mfu};
use crate::cli::live::THIS_MACHINE;
use crate::cli::output::{Output, warn, write_stdout, write_text};
use crate::cli::repeat::recorded;
use crate::config::hf_write::to_hf_json;
use crate::files::{ResultFolder, witness, write_atomic};
use crate::latency::measured::format;
use crate::plan::rank::Ranking;
use crate::plan::sensitivity;
use crate::report::Live;
use crate::{Result, report};

/// Runs the command.
///
/// # Errors
/// See [`crate::Error`]; the output folder is created before anything is measured.
pub fn run(args: &RankArgs, output: Output) -> Result<()> {
    let folder = ResultFolder::begin(&args.out, &["rank.json"], args.overwrite)?;
    witness::begin();
    let made = answer(args)?;
    let read = witness::end();
    let live = live(args, &made, read)?;
    let Ranking { report: mut answer, models } = made.ranking;
    answer.arguments = Some(recorded());
    if output.is_json() {
        // Printed text has them.
        for warning in &answer.warnings {
            warn(warning);
        }
    }
    for (index, model) in &models {
        let name = format!("config_e{}.json", model.num_experts);
        match to_hf_json(model) {
            Ok(json) => {
                write_atomic(&folder.path().join(&name), &json, true)?;
                answer.candidates[*index].config = Some(name);
            }
            // The ranking stands without it.
            Err(reason) => warn(&format!("{name} is not written: {reason}")),
        }
    }
    let configs = answer.candidates.iter().filter(|c| c.config.is_some()).count();
    let document = answer.to_bytes()?;
    write_atomic(&folder.path().join("rank.json"), &document, true)?;
    let written = report::write_all(&answer, Some(&live), folder.path())?;
    folder.finish()?;
    if output.is_json() {
        // The file itself: `report` reads what was kept from here as well.
        return write_stdout(&String::from_utf8_lossy(&document));
    }
    let files = written.len() + configs;
    write_text(&print::text(args, &answer, made.model.as_ref(), files))
}

/// What the page needs to answer the question again: the flags, and the files that they name.
fn live(args: &RankArgs, made: &Answer, read: BTreeMap<PathBuf, Vec<u8>>) -> Result<Live> {
    let inputs = &made.inputs;
    let [low, high] = sensitivity::FORMATS;
    let weights = [inputs.expert_dtype, inputs.dense_dtype, low, high];
    let mut files = made.sources.brought(&inputs.device.spec, &weights)?;
    let mut arguments: Vec<String> =
        recorded().into_iter().map(|flag| place_of(flag, &read)).collect();
    let is_named = |path: &Path| {
        let name = path.display().to_string();
        let values = arguments.iter().filter_map(|flag| flag.split_once('='));
        // Lists of sources, and kinds before a name: `trace:loads.json`.
        values.flat_map(|(_, value)| value.split([',', ':'])).any(|word| word == name)
    };
    let named = read.into_iter().filter(|(path, _)| is_named(path));
    files.extend(named.map(|(path, bytes)| (path.display().to_string(), bytes)));
    if args.mfu.as_ref().is_some_and(Mfu::is_modelled) {
        // A page has no tables of training devices: it takes what was modelled.
        arguments.retain(|flag| !flag.starts_with("--mfu="));
        arguments.push(format!("--mfu={}", mfu::pairs(&inputs.mfu_by_experts)));
    }
    if args.is_of_this_machine() {
        arguments.retain(|flag| !flag.starts_with("--profile="));
        arguments.extend([format!("--profile={THIS_MACHINE}"), "--include-noisy".into()]);
        if let Some((_, profile)) = made.sources.own() {
            files.push((THIS_MACHINE.into(), format::to_bytes(profile)?));
        }
    }
    Ok(Live { arguments, files })
}

/// A flag with the `config.json` that was read in place of the folder or repository that it names.
fn place_of(flag: String, read: &BTreeMap<PathBuf, Vec<u8>>) -> String {
    let Some(name) = flag.strip_prefix("--model=") else { return flag };
    let config = read.keys().find(|path| path.file_name().is_some_and(|n| n == "config.json"));
    match config {
        Some(path) if path.as_path() != Path::new(name) => format!("--model={}", path.display()),
        _ => flag,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;
    use crate::plan::sample;

    #[test]
    fn every_control_of_a_page_is_a_flag() {
        let folder = tempfile::tempdir().unwrap();
        report::write_all(&sample::report(), Some(&Live::default()), folder.path()).unwrap();
        let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
        let command = Cli::command();
        let rank = command.find_subcommand("rank").unwrap();
        let flags: Vec<String> =
            rank.get_arguments().filter_map(|a| Some(format!("--{}", a.get_long()?))).collect();
        let controls: Vec<&str> =
            page.split("data-flag=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(controls.len() > 15, "{controls:?}");
        for control in controls.iter().filter(|c| c.starts_with("--")) {
            assert!(flags.iter().any(|flag| flag == control), "{control}");
        }
    }

    #[test]
    fn a_model_by_folder_or_repository_is_the_file_that_was_read() {
        let read = |path: &str| BTreeMap::from([(PathBuf::from(path), Vec::new())]);
        let flag = |text: &str, path: &str| place_of(text.to_owned(), &read(path));
        assert_eq!(flag("--model=org/tiny", "/h/config.json"), "--model=/h/config.json");
        assert_eq!(flag("--model=a/config.json", "a/config.json"), "--model=a/config.json");
        assert_eq!(flag("--model=mixtral-8x7b", "profile.json"), "--model=mixtral-8x7b");
        assert_eq!(flag("--mfu=0.4", "a/config.json"), "--mfu=0.4");
    }
}
