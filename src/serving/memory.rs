//! What fits beside the weights.
//!
//! One rule everywhere: in steady state sequences are at random points of their life, so each holds
//! its prompt and half of its output, in whole pages ([`Lengths::mean_context`]); an admission that
//! must never push a sequence out holds the whole length ([`Lengths::held`]).

use crate::config::DeviceSpec;
use crate::config::device::DeviceKind;
use crate::constants::memory as constants;
use crate::units::Bytes;

/// Prompt and output lengths of the traffic, in tokens per request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// Prompt tokens (ISL).
    pub input: f64,
    /// Generated tokens (OSL).
    pub output: f64,
}

impl Lengths {
    /// Context that a decoding sequence attends to on average: its prompt and half of its output.
    pub fn mean_context(&self) -> f64 {
        self.input + self.output / 2.0
    }

    /// Decode steps of one request: every output token but the first, which its prompt's step gives.
    pub fn decodes(&self) -> f64 {
        (self.output - 1.0).max(1.0)
    }

    /// Tokens cached for one request when it ends.
    pub fn held(&self) -> f64 {
        self.input + self.output
    }
}

/// Memory of one device and how much of it an engine may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryBudget {
    /// All memory of one device, as its driver reports it.
    pub device: Bytes,
    /// Share of it that the engine takes.
    pub usable_share: f64,
    /// Activations, graphs, communication buffers and the runtime itself.
    pub reserve: Bytes,
}

impl MemoryBudget {
    /// The budget of an engine on a device.
    pub fn of(device: &DeviceSpec) -> Self {
        match device.kind {
            DeviceKind::Gpu => Self {
                device: Bytes(device.memory_bytes * constants::REPORTED_OVER_NOMINAL),
                usable_share: constants::GPU_SHARE,
                reserve: constants::GPU_RESERVE,
            },
            DeviceKind::Cpu => Self {
                device: Bytes(device.memory_bytes),
                usable_share: constants::CPU_SHARE,
                reserve: constants::CPU_RESERVE,
            },
        }
    }

    /// Bytes for weights and cache on one device.
    pub fn usable(&self) -> Bytes {
        Bytes(self.device.0 * self.usable_share) - self.reserve
    }
}

/// Tokens of whole cache pages that hold `tokens`.
pub(super) fn pages(tokens: f64) -> f64 {
    (tokens / constants::PAGE_TOKENS).ceil() * constants::PAGE_TOKENS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_take_their_share_of_what_the_driver_reports() {
        let budget = MemoryBudget::of(&DeviceSpec::load("h100").unwrap());
        assert!((budget.usable().0 - (80e9 * 1.069 * 0.9 - 3.5e9)).abs() < 1.0);
    }

    #[test]
    fn a_sequence_occupies_whole_pages() {
        assert!((pages(17.0) - 32.0).abs() < 1e-12 && (pages(16.0) - 16.0).abs() < 1e-12);
    }
}
