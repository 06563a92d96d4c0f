//! Every physical constant of the latency and serving models, once, with its source.
//!
//! Rates of devices live in their files (`config/presets/devices`); constants that are fitted to
//! servers live in [`crate::serving::EngineCosts`].

/// Activations travel and are stored in 16 bits.
pub const ACTIVATION_BYTES: f64 = 2.0;
/// Edge of the blocks of fp8 weights that share a scale; engines refuse to split one.
pub const FP8_BLOCK: usize = 128;

/// Shares of a device's peaks and fixed times that a roofline assumes: the middle of what the H100
/// kernel tables of aiconfigurator show (commit 095f58a5).
pub mod roofline {
    /// Share of peak memory bandwidth that grouped and dense GEMMs read weights at (0.68 to 0.91).
    pub const READ: f64 = 0.8;
    /// Share of peak arithmetic that large GEMMs reach (0.5 to 0.8).
    pub const ARITHMETIC: f64 = 0.6;
    /// Share of peak arithmetic that causal prefill attention reaches (0.15 to 0.6).
    pub const PREFILL_ATTENTION: f64 = 0.4;
    /// Share of peak memory bandwidth that decode attention reads its cache at (0.3 to 0.9).
    pub const CACHE_READ: f64 = 0.65;
    /// One MoE layer of one token beyond its bytes, in seconds.
    pub const MOE_FLOOR_S: f64 = 30e-6;
    /// One dense GEMM or attention kernel, in seconds.
    pub const KERNEL_FLOOR_S: f64 = 4e-6;
    /// One collective of few bytes, in seconds.
    pub const COLLECTIVE_FLOOR_S: f64 = 8e-6;
    /// Share of the link's bandwidth per direction at which an all-reduce moves its message (ring
    /// factors inside): 200 of 450 GB/s on eight H100.
    pub const LINK: f64 = 0.46;
    /// Half the 95 % range of ln(time): shares of bandwidth from 0.45 to 0.9, of arithmetic from 0.3
    /// to 0.8 were seen, so that the time lies within a factor of 1.5.
    pub const LOG_SIGMA: f64 = 0.2;
}

/// Sequences and prompt tokens that a server admits to one step: vLLM's defaults.
pub mod scheduler {
    /// Prompt tokens of a step on a large device.
    pub const CHUNK_TOKENS: f64 = 8192.0;
    /// Sequences on a large device.
    pub const MAX_SEQUENCES: f64 = 1024.0;
    /// Prompt tokens of a step on any other device, and of this program's own kernels.
    pub const SMALL_CHUNK_TOKENS: f64 = 2048.0;
    /// Sequences on any other device.
    pub const SMALL_MAX_SEQUENCES: f64 = 256.0;
    /// Memory from which a device is large: 70 GiB.
    pub const LARGE_DEVICE_BYTES: f64 = 70.0 * 1_073_741_824.0;
}

/// Memory of a serving device.
pub mod memory {
    use crate::units::Bytes;

    /// Drivers report 6.9 % more memory than the nominal gigabytes: 81,559 MiB on an H100 of 80 GB,
    /// 143,771 MiB on an H200 of 141 GB.
    pub const REPORTED_OVER_NOMINAL: f64 = 1.069;
    /// Share of a GPU's memory that engines take (vLLM's default).
    pub const GPU_SHARE: f64 = 0.9;
    /// Activations, graphs, communication buffers and the runtime of an engine on a GPU.
    pub const GPU_RESERVE: Bytes = Bytes(3.5e9);
    /// Share of a host's memory that a CPU server takes; the system keeps the rest.
    pub const CPU_SHARE: f64 = 0.8;
    /// The runtime of a CPU server.
    pub const CPU_RESERVE: Bytes = Bytes(1e9);
    /// Tokens of one page of the key/value cache (vLLM's default).
    pub const PAGE_TOKENS: f64 = 16.0;
}

/// Error of the serving model against servers, as standard deviations of ln(measured TPOT / predicted
/// TPOT) over the open server rows (`reports/accuracy.md`, zero-shot; a test recomputes them).
pub mod residual {
    /// Between groups of one model, device, engine and source: what all candidates of a device and an
    /// engine share.
    pub const BETWEEN_GROUPS: f64 = 0.19;
    /// Within a group: what each candidate errs by itself.
    pub const WITHIN_GROUPS: f64 = 0.08;
}
