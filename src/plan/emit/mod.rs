//! A sized deployment as something that starts: the server's command line, a Kubernetes manifest, or a
//! request to Dynamo.
//!
//! Everything emitted says what was priced and nothing else: [`Launch`] is the only input, and
//! `tests/emit.rs` reads the emitted flags back into the deployment and prices it again.
//!
//! Flags were checked against the engines' documentation: vLLM 0.33 (`vllm serve`), `SGLang` 0.5.23
//! (`sglang.launch_server`), TensorRT-LLM 1.2 (`trtllm-serve`).

mod command;
mod from_size;
mod manifest;
mod yaml;

pub use command::{Command, Node};
pub use manifest::{dynamo, kubernetes};

use serde::Serialize;

use crate::config::DType;
use crate::plan::size::Limit;
use crate::serving::{Layout, Lengths, MemoryBudget, Speculation};
use crate::units::Bytes;
use crate::{Error, Result};

/// Engines that a deployment can be started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// `SGLang`.
    Sglang,
    /// TensorRT-LLM, by `trtllm-serve`.
    Trtllm,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Self; 3] = [Self::Vllm, Self::Sglang, Self::Trtllm];

    /// The engine by the word of `--engine`.
    ///
    /// # Errors
    /// [`Error::Usage`] for a word that names no server.
    pub fn of(word: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|engine| engine.label() == word).ok_or_else(|| {
            let known = Self::ALL.map(Self::label).join(", ");
            Error::usage("--engine", format!("`{word}` starts no server; --emit takes {known}"))
        })
    }

    /// The word of `--engine`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Trtllm => "trtllm",
        }
    }

    /// Its name in print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
            Self::Trtllm => "TensorRT-LLM",
        }
    }

    /// The release whose flags were checked.
    pub const fn checked(self) -> &'static str {
        match self {
            Self::Vllm => "0.33.0",
            Self::Sglang => "0.5.23",
            Self::Trtllm => "1.2.1",
        }
    }
}

/// The device that a deployment runs on, as far as starting it is concerned.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accelerator {
    /// Name to print.
    pub name: String,
    /// Short name, such as `h100_sxm`.
    pub short_name: String,
    /// Devices of one host.
    pub per_host: usize,
}

/// One kind of server of a deployment; all its replicas are started alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Role {
    /// Name in manifests: `serve`.
    pub name: &'static str,
    /// How one replica is spread.
    pub layout: Layout,
    /// Replicas, spares included.
    pub replicas: usize,
    /// Maximum sequences of one replica at a time.
    pub max_batch: usize,
    /// Maximum prompt tokens in one step of one replica.
    pub chunk_tokens: usize,
    /// Whether prompts ride on decode steps (chunked prefill).
    pub mixed: bool,
    /// Weights per device in bytes.
    #[serde(skip)]
    pub weights: Bytes,
    /// Memory of one device.
    #[serde(skip)]
    pub memory: MemoryBudget,
}

/// A priced deployment, as far as starting it is concerned.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Engine that was priced.
    pub engine: Engine,
    /// Release whose kernels were priced, where a table says so.
    pub engine_version: Option<String>,
    /// Repository of the Hub, or path of a checkpoint.
    pub model: String,
    /// Name of the model to print.
    pub model_name: String,
    /// Storage of the experts' weights that was priced.
    pub weights: DType,
    /// Storage of the experts' weights in the published checkpoint.
    pub published: DType,
    /// Storage of cached keys and values.
    pub cache: DType,
    /// Drafts of each step.
    pub speculation: Speculation,
    /// Share of the prompt tokens found in the prefix cache.
    pub prefix_hit: f64,
    /// Copies of busy experts over all expert-parallel ranks.
    pub redundant_experts: usize,
    /// Whether a step runs as two halves, one exchanging tokens while the other computes.
    pub overlap: bool,
    /// The device.
    pub device: Accelerator,
    /// Servers by kind.
    pub roles: Vec<Role>,
    /// Mean lengths.
    pub lengths: Lengths,
    /// Mean requests per second.
    pub rate: f64,
    /// Promises.
    pub limits: Vec<Limit>,
}

impl Role {
    /// Hosts of one replica.
    pub fn hosts(&self, device: &Accelerator) -> usize {
        self.layout.devices().div_ceil(device.per_host)
    }

    /// Devices of one replica on each of its hosts.
    pub fn devices_per_host(&self, device: &Accelerator) -> usize {
        self.layout.devices().min(device.per_host)
    }

    /// Maximum sequences of one attention group.
    pub fn batch_per_group(&self) -> usize {
        (self.max_batch / self.layout.attention_dp).max(1)
    }

    /// Maximum tokens in one step of one attention group. Engines want room for one token of each
    /// sequence.
    pub fn tokens_per_group(&self) -> usize {
        (self.chunk_tokens / self.layout.attention_dp).max(self.batch_per_group())
    }
}

impl Launch {
    /// The release that manifests start: the priced one, else the one whose flags were checked.
    pub fn version(&self) -> &str {
        self.engine_version.as_deref().unwrap_or(self.engine.checked())
    }

    /// One comment line a fact: what was priced, for which release.
    pub fn heading(&self) -> Vec<String> {
        let mut lines =
            vec![format!("{} on {}, by moe-frontier", self.model_name, self.device.name)];
        let (engine, checked) = (self.engine.name(), self.engine.checked());
        lines.push(match &self.engine_version {
            Some(version) => {
                format!("for {engine} {version}, whose kernels were priced; flags checked in {checked}")
            }
            None => format!("for {engine} {checked}, whose flags were checked; kernels of no release were priced"),
        });
        lines.extend(self.roles.iter().map(|role| {
            format!(
                "{}: {} replica(s) of {} device(s), {} at most {} sequences each",
                role.name,
                role.replicas,
                role.layout.devices(),
                role.layout,
                role.max_batch
            )
        }));
        lines
    }

    /// What no flag can bring about.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.weights != self.published && self.online_quantisation().is_none() {
            notes.push(format!(
                "priced with {} weights: {} is published in {}; name a checkpoint in {}",
                self.weights.label(),
                self.model,
                self.published.label(),
                self.weights.label()
            ));
        }
        let Speculation { drafts, acceptance } = self.speculation;
        if drafts > 0.0 {
            notes.push(format!(
                "priced with {drafts} drafts a step, each kept with {acceptance}: add the speculative decoding of \
                 the engine"
            ));
        }
        if self.prefix_hit > 0.0 {
            notes.push(format!(
                "priced with {} of the prompt tokens in the prefix cache, which has to be on",
                self.prefix_hit
            ));
        }
        if self.redundant_experts > 0 {
            notes.push(format!(
                "priced with {} redundant experts: turn the engine's expert load balancing on with as many",
                self.redundant_experts
            ));
        }
        if self.overlap {
            notes.push(
                "priced with two halves of a batch that overlap: turn the engine's two-batch overlap on".into(),
            );
        }
        if self.roles.iter().any(|role| role.hosts(&self.device) > 1) {
            notes.push(
                "a replica spans several hosts: set LEADER_ADDRESS (of its first host), HOST_RANK (from 0) and, for \
                 data parallelism, FIRST_DATA_RANK (its first rank) on each"
                    .into(),
            );
        }
        let sum: usize = self.roles.iter().map(|r| r.replicas).sum();
        if sum > 1 {
            notes.push("replicas are independent servers: put a load balancer before them".into());
        }
        notes
    }

    /// The engine's word for quantising a checkpoint while it is loaded, where it can and has to.
    pub fn online_quantisation(&self) -> Option<&'static str> {
        let wide = matches!(self.published, DType::Bf16 | DType::F16 | DType::F32);
        (self.weights == DType::Fp8 && wide && self.engine != Engine::Trtllm).then_some("fp8")
    }

    /// A shell script with the command line of each role.
    ///
    /// # Errors
    /// [`Error::Unfit`] when an engine cannot be told the layout.
    pub fn script(&self) -> Result<String> {
        let mut text = String::from("#!/bin/sh\n");
        let comment = |lines: Vec<String>| -> String {
            lines.iter().flat_map(|line| ["# ", line.as_str(), "\n"]).collect()
        };
        text += &comment(self.heading());
        text += &comment(self.notes());
        for role in &self.roles {
            text.push('\n');
            text += &self.command(role)?.script();
            if let Some(command) = self.command_of_others(role)? {
                text += "\n# On every other host of a replica, in place of the command above:\n";
                text.extend(command.script().lines().flat_map(|line| ["# ", line, "\n"]));
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::config::DeviceSpec;
    use crate::plan::size::{Metric, Statistic};
    use crate::units::Seconds;

    /// Mixtral on H100.
    pub(crate) fn launch(engine: Engine, layout: Layout) -> Launch {
        let device = DeviceSpec::load("h100").unwrap();
        let limit =
            |metric, seconds| Limit { metric, statistic: Statistic::P99, most: Seconds(seconds) };
        Launch {
            engine,
            engine_version: Some("1.2.3".into()),
            model: "mistralai/Mixtral-8x7B-v0.1".into(),
            model_name: "Mixtral-8x7B".into(),
            weights: DType::Bf16,
            published: DType::Bf16,
            cache: DType::Bf16,
            speculation: Speculation::NONE,
            prefix_hit: 0.0,
            redundant_experts: 0,
            overlap: false,
            device: Accelerator {
                name: device.name.clone(),
                short_name: "h100_sxm".into(),
                per_host: 8,
            },
            roles: vec![Role {
                name: "serve",
                layout,
                replicas: 3,
                max_batch: 256,
                chunk_tokens: 8192,
                mixed: true,
                weights: Bytes(40e9),
                memory: MemoryBudget::of(&device),
            }],
            lengths: Lengths { input: 1000.0, output: 200.0 },
            rate: 20.0,
            limits: vec![limit(Metric::Ttft, 2.0), limit(Metric::Tpot, 0.06)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::launch;
    use super::*;

    #[test]
    fn drafts_and_a_prefix_cache_that_were_priced_are_asked_for() {
        let plain = launch(Engine::Vllm, Layout::tensor(2));
        assert!(!plain.script().unwrap().contains("drafts"));
        let speculation = Speculation { drafts: 1.0, acceptance: 0.85 };
        let settings = Launch { prefix_hit: 0.5, redundant_experts: 32, overlap: true, ..plain };
        let text = Launch { speculation, ..settings }.script().unwrap();
        assert!(text.contains("priced with 1 drafts a step, each kept with 0.85"), "{text}");
        assert!(text.contains("0.5 of the prompt tokens in the prefix cache"), "{text}");
        assert!(text.contains("32 redundant experts") && text.contains("two-batch"), "{text}");
    }

    #[test]
    fn a_script_says_what_it_is_for() {
        let text = launch(Engine::Vllm, Layout::tensor(2)).script().unwrap();
        assert!(text.starts_with("#!/bin/sh\n# Mixtral-8x7B on "), "{text}");
        assert!(text.contains("for vLLM 1.2.3, whose kernels were priced"), "{text}");
        assert!(text.contains("load balancer"), "{text}");
    }

    #[test]
    fn formats_that_no_flag_makes_are_named() {
        let mut priced = launch(Engine::Vllm, Layout::tensor(2));
        priced.weights = DType::Fp8;
        assert_eq!(priced.online_quantisation(), Some("fp8"));
        assert!(priced.script().unwrap().contains("--quantization fp8"));
        priced.weights = DType::Int4;
        let text = priced.script().unwrap();
        assert!(text.contains("name a checkpoint in int4") && !text.contains("--quantization"));
    }

    #[test]
    fn only_engines_that_serve_are_known() {
        assert_eq!(Engine::of("sglang").unwrap(), Engine::Sglang);
        assert_eq!(Engine::of("none").unwrap_err().exit_code(), 2);
    }
}
