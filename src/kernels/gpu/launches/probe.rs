//! Launching the probes that find a device's ceilings (`kernels/probe.cu`).

use crate::Result;
use crate::gpu::params::ProbeParams;
use crate::gpu::{DeviceAddress, Launch, Launcher, ParamBytes, Region};

/// Threads of a block.
const THREADS: u32 = 256;
/// Blocks of each multiprocessor: several times the loads in flight that memory latency asks for.
const BLOCKS_PER_SM: u32 = 8;
/// Bytes of one clock stamp: two 64-bit counters for each of 1024 multiprocessors.
const STAMP_BYTES: u64 = 16 * 1024;

/// A read of much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadStream {
    /// What is read; a multiple of 16 bytes.
    pub from: Region,
    /// Where each thread leaves a word, so that nothing is optimised away.
    pub to: Region,
}

impl ReadStream {
    /// Bytes that `to` needs on a device.
    pub fn result_bytes(launcher: &dyn Launcher) -> u64 {
        4 * u64::from(THREADS) * u64::from(blocks(launcher))
    }
}

/// Reads a region past the first-level cache: the rate of an ideal stream of weights.
///
/// # Errors
/// [`crate::Error::Usage`] for a result that does not fit, else as [`Launcher::launch`].
pub fn read_stream(launcher: &mut dyn Launcher, read: &ReadStream) -> Result<()> {
    let grid = blocks(launcher);
    let to = read.to.checked("to", Some(ReadStream::result_bytes(launcher)), 16)?;
    let from = read.from.checked("from", Some(read.from.bytes), 16)?;
    let params = ProbeParams { from, to, bytes: read.from.bytes / 16 * 16, ..EMPTY };
    launcher.launch(&launch("probe_read_stream", grid, THREADS, &params))
}

/// Overwrites a region with a pattern that depends on `seed`.
///
/// # Errors
/// As [`read_stream`].
pub fn flush(launcher: &mut dyn Launcher, to: Region, seed: u32) -> Result<()> {
    let grid = blocks(launcher);
    let bytes = to.bytes / 16 * 16;
    let params = ProbeParams { to: to.checked("to", Some(bytes), 16)?, bytes, seed, ..EMPTY };
    launcher.launch(&launch("probe_flush", grid, THREADS, &params))
}

/// Reads the clock of one multiprocessor: the least work that a launch can have.
///
/// # Errors
/// As [`read_stream`].
pub fn clock_stamp(launcher: &mut dyn Launcher, to: Region) -> Result<()> {
    let params = ProbeParams { to: to.checked("to", Some(STAMP_BYTES), 16)?, ..EMPTY };
    launcher.launch(&launch("probe_clock_stamp", 1, 1, &params))
}

const EMPTY: ProbeParams = ProbeParams {
    from: DeviceAddress::NULL,
    to: DeviceAddress::NULL,
    flag: DeviceAddress::NULL,
    bytes: 0,
    limit_ns: 0,
    variant: 0,
    seed: 0,
};

fn blocks(launcher: &dyn Launcher) -> u32 {
    launcher.facts().sm_count * BLOCKS_PER_SM
}

fn launch(kernel: &'static str, blocks: u32, threads: u32, params: &ProbeParams) -> Launch {
    Launch {
        kernel,
        grid: [blocks, 1],
        threads,
        shared_bytes: 0,
        maps: Vec::new(),
        params: ParamBytes::of(params),
        overlaps: false,
    }
}
