//! What `size` chose, as a deployment to start.

use super::{Accelerator, Engine, Launch, Role};
use crate::config::device::DeviceKind;
use crate::config::{DType, DeviceSpec};
use crate::plan::size::{Choice, Offer, SizeInputs};
use crate::units::whole_part;
use crate::{Error, Result};

/// Devices of one host of the usual kind.
const PER_HOST: usize = 8;
/// Devices of one host of a Grace-Blackwell rack (a compute tray holds four).
const PER_TRAY: usize = 4;

impl Launch {
    /// The chosen plan. `model` is what the server is to load, `published` the storage of its experts
    /// before `--weights` changed it, `provenance` what the latency source says of its MoE kernels.
    ///
    /// # Errors
    /// [`Error::Usage`] for an engine or a device that no server starts on.
    pub fn of_choice(
        inputs: &SizeInputs,
        choice: &Choice,
        model: &str,
        published: DType,
        provenance: Option<&str>,
    ) -> Result<Self> {
        let engine = Engine::of(&inputs.engine)?;
        let Offer { device, costs, .. } = inputs.offer(&choice.device)?;
        if device.kind == DeviceKind::Cpu {
            let reason = "servers are started on GPUs only; size for one with --device";
            return Err(Error::usage("--emit", reason));
        }
        Ok(Self {
            engine,
            engine_version: provenance.and_then(|words| version_in(words, engine)),
            model: model.to_owned(),
            model_name: inputs.model.name.clone(),
            weights: inputs.model.expert_dtype,
            published,
            cache: costs.cache(&inputs.model),
            speculation: costs.speculation,
            prefix_hit: costs.prefix_hit,
            redundant_experts: costs.redundant_experts,
            overlap: costs.overlap,
            device: accelerator(device),
            roles: vec![Role {
                name: "serve",
                layout: choice.layout,
                replicas: choice.replicas,
                max_batch: choice.max_batch,
                chunk_tokens: whole_part(costs.chunk_tokens),
                mixed: costs.mixed,
                weights: choice.weights,
                memory: choice.memory,
            }],
            lengths: inputs.lengths,
            rate: inputs.rate,
            limits: inputs.limits.clone(),
        })
    }
}

fn accelerator(device: &DeviceSpec) -> Accelerator {
    let short_name = device.short_name().to_owned();
    let is_rack = device.scale_up_devices > PER_HOST;
    let per_host = if is_rack { PER_TRAY } else { PER_HOST };
    Accelerator { name: device.name.clone(), short_name, per_host }
}

/// The release of an engine in words such as `aiconfigurator, vllm 0.24.0`.
fn version_in(words: &str, engine: Engine) -> Option<String> {
    let (_, after) = words.split_once(&format!("{} ", engine.label()))?;
    let end = |c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '+');
    let version = after.split(end).next()?.trim_end_matches('.');
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_its_source() {
        let words = "aiconfigurator, vllm 0.24.0, nccl 2.27";
        assert_eq!(version_in(words, Engine::Vllm).as_deref(), Some("0.24.0"));
        assert_eq!(version_in(words, Engine::Sglang), None);
        assert_eq!(version_in("trtllm 1.2.0rc5", Engine::Trtllm).as_deref(), Some("1.2.0rc5"));
        assert_eq!(version_in("roofline of the H100", Engine::Vllm), None);
    }

    #[test]
    fn racks_have_four_devices_a_host() {
        let per_host = |name: &str| accelerator(&DeviceSpec::load(name).unwrap()).per_host;
        assert_eq!((per_host("h100"), per_host("gb200")), (8, 4));
    }
}
