//! What a serving engine adds to its kernels: the calibrated constants of the serving model.
//!
//! Kernel tables time products, attention and collectives. Norms, rotary embeddings, quantisation of
//! activations and residual sums are in no table and come once per layer; scheduling, sampling and
//! the hand-over to the host once per step and once per sequence; the front end once per request.

use serde::{Deserialize, Serialize};

use crate::config::DeviceSpec;
use crate::cost::StepLoad;

/// Constants of one engine on one kind of host, in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineCosts {
    /// Factor on all kernel times: 1 is what the tables say.
    pub kernel_factor: f64,
    /// Further factor on the time in which arithmetic is the limit: tables are timed in short
    /// bursts, servers run for minutes against their power limit, and what is in no table
    /// (activations, norms) grows with the tokens too.
    pub arithmetic_factor: f64,
    /// Fixed time of a step.
    pub step_s: f64,
    /// Small kernels of one layer.
    pub layer_s: f64,
    /// Host work per decoding sequence and step.
    pub sequence_s: f64,
    /// From a request's arrival to the engine and back: tokenising, HTTP, detokenising.
    pub request_s: f64,
    /// Launch cost of one layer of a step with prompt tokens, which no captured graph replays; it
    /// hides behind the kernels when they take longer.
    pub launch_s: f64,
    /// Most prompt tokens in one step.
    pub chunk_tokens: f64,
    /// Most sequences at a time.
    pub max_sequences: f64,
    /// Whether prompt tokens ride on decode steps (chunked prefill) or stop them.
    pub mixed: bool,
}

impl EngineCosts {
    /// The defaults of an engine; an unknown one gets those of vLLM.
    pub fn of(engine: &str) -> Self {
        let vllm = Self {
            kernel_factor: 1.0,
            arithmetic_factor: 2.0,
            step_s: 0.5e-3,
            layer_s: 20e-6,
            sequence_s: 10e-6,
            request_s: 20e-3,
            launch_s: 150e-6,
            chunk_tokens: 8192.0,
            max_sequences: 1024.0,
            mixed: true,
        };
        match engine {
            "sglang" => Self { mixed: false, ..vllm },
            _ => vllm,
        }
    }

    /// The same on a device: vLLM admits less where the device is not of the large kind (its rule:
    /// 70 GiB or more, and no A100).
    pub fn on(self, engine: &str, device: &DeviceSpec) -> Self {
        let large = device.memory_bytes >= 70.0 * f64::from(1 << 30)
            && !device.name.to_lowercase().contains("a100");
        if engine == "vllm" && !large {
            return Self { chunk_tokens: 2048.0, max_sequences: 256.0, ..self };
        }
        self
    }

    /// What kernels of `seconds` table time take, of which `arithmetic` are limited by arithmetic.
    pub fn kernel_time(&self, seconds: f64, arithmetic: f64) -> f64 {
        self.kernel_factor * (seconds + (self.arithmetic_factor - 1.0) * arithmetic)
    }

    /// The engine's own share of a step whose kernels take `kernels` seconds.
    pub fn overhead(&self, layers: usize, load: &StepLoad, kernels: f64) -> f64 {
        let layers = layers as f64;
        let device = kernels + self.layer_s * layers;
        let launch = if load.prompt_tokens > 0.0 { self.launch_s * layers } else { 0.0 };
        device.max(launch) - kernels + self.step_s + self.sequence_s * load.sequences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_hide_behind_long_kernels_and_show_behind_short_ones() {
        let costs = EngineCosts::of("vllm");
        let load =
            StepLoad { sequences: 0.0, context: 0.0, prompt_tokens: 10.0, prompt_length: 10.0 };
        let long = costs.overhead(32, &load, 1.0);
        assert!((long - 32.0 * costs.layer_s - costs.step_s).abs() < 1e-12);
        let short = costs.overhead(32, &load, 1e-6);
        assert!((short + 1e-6 - 32.0 * costs.launch_s - costs.step_s).abs() < 1e-12);
        let decode = StepLoad { prompt_tokens: 0.0, sequences: 100.0, ..load };
        assert!((costs.overhead(32, &decode, 1e-6) - 32.0 * 20e-6 - 0.5e-3 - 1e-3).abs() < 1e-9);
    }
}
