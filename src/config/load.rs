//! A model by whatever name people have for it: preset, file, folder or Hub id.

use std::path::Path;

#[cfg(feature = "native")]
use crate::config::hub::HubId;
use crate::config::{MoeModel, hf, preset};
use crate::{Error, Result};

/// A model with where it came from and what was assumed.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The model.
    pub model: MoeModel,
    /// What its source does not confirm.
    pub assumed: Vec<String>,
    /// Where the numbers come from.
    pub source: String,
    /// Fields of a preset without a confirmed source.
    pub unverified: Vec<String>,
}

/// Loads a model: a preset by name, a `config.json`, a folder with one, or a repository of the Hub
/// (`org/name`, `org/name@revision`).
///
/// # Errors
/// [`Error::Usage`] for a name that is none of these, with the nearest presets; [`Error::Io`] when a
/// file cannot be read or a repository not be had; [`Error::BadFile`] for a file that is not
/// understood.
pub fn load_model(name: &str) -> Result<Loaded> {
    if preset::names().any(|known| known.eq_ignore_ascii_case(name)) {
        return from_preset(name);
    }
    let path = Path::new(name);
    if path.is_dir() {
        return from_folder(path);
    }
    if path.is_file() || path.extension().is_some_and(|e| e == "json") {
        return from_file(path, path.display().to_string());
    }
    #[cfg(feature = "native")]
    if let Some(hub) = HubId::parse(name) {
        return from_hub(name, &hub);
    }
    Err(unknown(name))
}

/// A model by the name that a benchmark gives it, without a network: a preset by its name, by the start
/// of the name or by a Hub id, a file or folder, or what the Hub cache holds.
///
/// # Errors
/// [`Error::Usage`] for a name that is none of these; as [`load_model`] for files.
pub fn local_model(name: &str) -> Result<MoeModel> {
    if let Some(known) = preset::of_hub_id(name) {
        return Ok(preset::load(known)?.model);
    }
    let path = Path::new(name);
    if path.is_file() || path.is_dir() {
        return Ok(load_model(name)?.model);
    }
    let plain = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    let plain = plain.trim_start_matches("meta-").trim_start_matches("nvidia-");
    // The reasoning model has the shape of its base model; distilled ones have not.
    let reasoning = plain.starts_with("deepseek-r1") && !plain.contains("distill");
    let plain = if reasoning { "deepseek-v3" } else { plain };
    let known = preset::names()
        .filter(|known| plain.starts_with(&known.to_lowercase()))
        .max_by_key(|known| known.len());
    if let Some(known) = known {
        return Ok(preset::load(known)?.model);
    }
    #[cfg(feature = "native")]
    if let Some(snapshot) = HubId::parse(name).and_then(|hub| hub.cached()) {
        return Ok(from_file(&snapshot.config, name.to_owned())?.model);
    }
    Err(unknown(name))
}

fn from_preset(name: &str) -> Result<Loaded> {
    let preset::ModelPreset { source, unverified, model, .. } = preset::load(name)?;
    Ok(Loaded { model, assumed: Vec::new(), source, unverified })
}

fn from_file(path: &Path, source: String) -> Result<Loaded> {
    let hf::HfModel { model, assumed } = hf::from_hf_file(path)?;
    Ok(Loaded { model, assumed, source, unverified: Vec::new() })
}

fn from_folder(folder: &Path) -> Result<Loaded> {
    let config = folder.join("config.json");
    if !config.is_file() {
        return Err(Error::bad_file(folder, "a folder without config.json"));
    }
    from_file(&config, config.display().to_string())
}

#[cfg(feature = "native")]
fn from_hub(name: &str, hub: &HubId) -> Result<Loaded> {
    match hub.snapshot() {
        Ok(snapshot) => {
            let source = format!("{} at commit {}", hub.id, snapshot.commit);
            let mut loaded = from_file(&snapshot.config, source)?;
            hub.id.rsplit('/').next().unwrap_or(&hub.id).clone_into(&mut loaded.model.name);
            Ok(loaded)
        }
        // Without a network a preset that was made from this very repository will do.
        Err(error) => match preset::of_hub_id(&hub.id) {
            Some(known) if hub.revision == "main" => {
                let mut loaded = from_preset(known)?;
                loaded
                    .assumed
                    .push(format!("{name} is not in the Hub cache: preset {known} taken"));
                Ok(loaded)
            }
            _ => Err(error),
        },
    }
}

/// The error for a name that is nothing.
fn unknown(name: &str) -> Error {
    let reason = match crate::config::unknown_name("model", name, preset::names()) {
        Error::Usage { reason, .. } => reason,
        other => other.to_string(),
    };
    let ways = "a config.json, a folder with one and a Hub id (org/name) are taken as well";
    Error::usage("model", format!("{reason}; {ways}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = r#"{"model_type":"mixtral","hidden_size":64,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":2,"num_local_experts":8,"num_experts_per_tok":2,
"intermediate_size":128,"vocab_size":100,"torch_dtype":"bfloat16"}"#;

    #[test]
    fn presets_files_and_folders_are_models() {
        assert_eq!(load_model("mixtral-8x7b").unwrap().model.name, "Mixtral-8x7B");
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("My-Model");
        std::fs::create_dir(&own).unwrap();
        assert_eq!(load_model(own.to_str().unwrap()).unwrap_err().exit_code(), 3);
        std::fs::write(own.join("config.json"), TINY).unwrap();
        for path in [own.clone(), own.join("config.json")] {
            let loaded = load_model(path.to_str().unwrap()).unwrap();
            assert_eq!(loaded.model.name, "My-Model");
            assert!(loaded.source.contains("config.json"));
        }
    }

    #[test]
    fn a_name_that_is_nothing_lists_the_ways() {
        let error = load_model("mixtrel").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("Mixtral-8x7B") && text.contains("Hub id"), "{text}");
        assert_eq!(load_model("no/such.json").unwrap_err().exit_code(), 7);
    }
}
