//! `size --emit`: the chosen plan as a command line or a manifest.

use std::path::Path;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::ask::Sizing;
use crate::ask::sources::Sources;
use crate::cli::Output;
use crate::cli::profile::ProfileArgs;
use crate::config::{load_model, preset};
use crate::latency::{LatencyModel, Operation};
use crate::plan::emit::{self, Command, Engine, Launch, Role};
use crate::plan::size::{SizeAnswer, SizeInputs};
use crate::{Error, Result};

/// The flag, for commands that choose a deployment.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct EmitArgs {
    /// Print what starts the plan instead of its figures: a shell script for an engine (which is then the
    /// one priced), a request to Dynamo, or Kubernetes manifests.
    #[arg(long, value_name = "FORM")]
    pub emit: Option<Form>,
}

/// What can be emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// `vllm serve` with its flags.
    Vllm,
    /// `sglang.launch_server` with its flags.
    Sglang,
    /// `trtllm-serve` with its flags.
    Trtllm,
    /// A `DynamoGraphDeploymentRequest` (nvidia.com/v1beta1).
    Dgdr,
    /// A Deployment or `LeaderWorkerSet`, and a Service.
    K8s,
}

impl Form {
    const fn engine(self) -> Option<Engine> {
        match self {
            Self::Vllm => Some(Engine::Vllm),
            Self::Sglang => Some(Engine::Sglang),
            Self::Trtllm => Some(Engine::Trtllm),
            Self::Dgdr | Self::K8s => None,
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    form: String,
    engine: Engine,
    /// Release whose kernels were priced; null where no table says.
    engine_version: Option<String>,
    /// Release whose documentation the flags were checked in.
    flags_checked_in: &'static str,
    model: String,
    device: String,
    roles: Vec<Started>,
    notes: Vec<String>,
    /// The script or the manifests.
    text: String,
}

/// A role with its command line.
#[derive(Debug, Serialize)]
struct Started {
    #[serde(flatten)]
    role: Role,
    command: Command,
}

impl EmitArgs {
    /// The sources with the engine that is emitted, which is the one to price.
    ///
    /// # Errors
    /// [`Error::Usage`] when `--engine` names another one.
    pub fn source(self, source: &ProfileArgs) -> Result<ProfileArgs> {
        let Some(engine) = self.emit.and_then(Form::engine) else { return Ok(source.clone()) };
        match &source.engine {
            Some(named) if named != engine.label() => {
                let reason = format!("{} was not priced: --engine is {named}", engine.label());
                Err(Error::usage("--emit", reason))
            }
            _ => Ok(ProfileArgs { engine: Some(engine.label().to_owned()), ..source.clone() }),
        }
    }

    /// Prints what starts the plan; `None` when nothing is to be emitted.
    pub(super) fn print(self, model: &str, sized: &Sizing, output: Output) -> Option<Result<()>> {
        self.emit.map(|form| {
            let launch = launch(model, &sized.sources, &sized.inputs, &sized.answer)?;
            let document = document(form, &launch)?;
            output.verbatim(&document, &document.text)
        })
    }
}

fn launch(
    model: &str,
    sources: &Sources,
    inputs: &SizeInputs,
    answer: &SizeAnswer,
) -> Result<Launch> {
    let choice = &answer.best;
    let device = &inputs.offer(&choice.device)?.device;
    let provenance = sources.stack(device, &inputs.engine)?.provenance(Operation::Moe);
    let published = load_model(model)?.model.expert_dtype;
    let hub = preset::load(model).ok().and_then(|p| p.hub.into_iter().next());
    let name = hub.unwrap_or_else(|| checkpoint(model));
    Launch::of_choice(inputs, choice, &name, published, provenance.as_deref())
}

/// The checkpoint that a word of `--model` belongs to: the folder of a `config.json`, else the word.
fn checkpoint(model: &str) -> String {
    let path = Path::new(model);
    let folder = path.parent().filter(|_| path.file_name().is_some_and(|n| n == "config.json"));
    match folder {
        Some(folder) if folder.as_os_str().is_empty() => ".".to_owned(),
        Some(folder) => folder.display().to_string(),
        None => model.to_owned(),
    }
}

fn document(form: Form, launch: &Launch) -> Result<Document> {
    let text = match form {
        Form::Vllm | Form::Sglang | Form::Trtllm => launch.script()?,
        Form::Dgdr => emit::dynamo(launch)?,
        Form::K8s => emit::kubernetes(launch)?,
    };
    let started = |role: &Role| Ok(Started { role: role.clone(), command: launch.command(role)? });
    let word = form.to_possible_value().map(|v| v.get_name().to_owned());
    Ok(Document {
        schema: "moe-frontier/emit",
        schema_version: "1.0",
        form: word.unwrap_or_default(),
        engine: launch.engine,
        engine_version: launch.engine_version.clone(),
        flags_checked_in: launch.engine.checked(),
        model: launch.model.clone(),
        device: launch.device.name.clone(),
        roles: launch.roles.iter().map(started).collect::<Result<_>>()?,
        notes: launch.notes(),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_loads_the_folder_of_a_config() {
        assert_eq!(checkpoint("models/a/config.json"), "models/a");
        assert_eq!(checkpoint("config.json"), ".");
        assert_eq!(checkpoint("org/name"), "org/name");
    }

    #[test]
    fn the_emitted_engine_is_the_priced_one() {
        let emit = |form| EmitArgs { emit: Some(form) };
        let none = ProfileArgs::default();
        let picked = emit(Form::Sglang).source(&none).unwrap();
        assert_eq!(picked.engine.as_deref(), Some("sglang"));
        let other = ProfileArgs { engine: Some("vllm".into()), ..none.clone() };
        assert_eq!(emit(Form::Sglang).source(&other).unwrap_err().exit_code(), 2);
        assert_eq!(emit(Form::K8s).source(&other).unwrap().engine.as_deref(), Some("vllm"));
        assert!(EmitArgs::default().source(&none).unwrap().engine.is_none());
    }
}
