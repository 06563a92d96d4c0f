//! Launching the probes that find a device's ceilings (`kernels/probe.cu`).

use crate::gpu::params::ProbeParams;
use crate::gpu::{DeviceAddress, Launch, Launcher, ParamBytes, Region, TensorMap};
use crate::{Error, Result};

/// Threads of a block.
const THREADS: u32 = 256;
/// Blocks of each multiprocessor: several times the loads in flight that memory latency asks for.
const BLOCKS_PER_SM: u32 = 8;
/// Bytes of one clock stamp: two 64-bit counters for each of 1024 multiprocessors.
const STAMP_BYTES: u64 = 16 * 1024;

/// Blocks, threads and rows of a box of the read through shared memory: as at the head of
/// `kernels/probe_sm90.cu`.
const BULK_READERS: u32 = 256;
const BULK_THREADS: u32 = BULK_READERS + 32;
const BULK_ROWS: u32 = 256;
/// Bytes of a row of a box, of a box, and of the ring of them with its barriers.
const BULK_ROW_BYTES: u64 = 128;
const BULK_BYTES: u64 = BULK_ROW_BYTES * BULK_ROWS as u64;
const BULK_SHARED_BYTES: u32 = 1024 + 6 * (32 * 1024 + 16);

/// How a device reads much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPath {
    /// Into registers, past the caches as a stream of weights.
    Registers,
    /// Into registers; what is read stays in the second-level cache, as far as it holds it, in place of
    /// everything else.
    Caches,
    /// Into shared memory by bulk copies of boxes. Compute capability 9.0 alone.
    SharedMemory,
}

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

    /// Bytes that a launch reads: whole vectors, or whole boxes.
    pub const fn bytes(&self, path: ReadPath) -> u64 {
        let unit = match path {
            ReadPath::Registers | ReadPath::Caches => 16,
            ReadPath::SharedMemory => BULK_BYTES,
        };
        self.from.bytes / unit * unit
    }
}

/// Reads a region past the first-level cache: the rate of an ideal stream of weights.
///
/// # Errors
/// [`crate::Error::Usage`] for a result that does not fit or a path that the device does not have, else as
/// [`Launcher::launch`].
pub fn read_stream(launcher: &mut dyn Launcher, read: &ReadStream, path: ReadPath) -> Result<()> {
    let to = read.to.checked("to", Some(ReadStream::result_bytes(launcher)), 16)?;
    let bytes = read.bytes(path);
    let from = read.from.checked("from", Some(bytes), 16)?;
    let params = ProbeParams { from, to, bytes, ..EMPTY };
    if path != ReadPath::SharedMemory {
        let variant = u32::from(path == ReadPath::Caches);
        let params = ProbeParams { variant, ..params };
        let grid = blocks(launcher);
        return launcher.launch(&launch("probe_read_stream", grid, THREADS, &params));
    }
    if !launcher.facts().is_hopper() {
        return Err(Error::usage("probe_read_bulk", "does not run on this device"));
    }
    let rows = bytes / BULK_ROW_BYTES;
    if bytes == 0 || i32::try_from(rows).is_err() {
        return Err(Error::usage("from", format!("{} bytes are read in boxes", read.from.bytes)));
    }
    let columns = BULK_ROW_BYTES / 2;
    let map = TensorMap::bf16(from, &[(columns, 1, 64), (rows, columns, BULK_ROWS)])?;
    let blocks = launcher.facts().sm_count;
    launcher.launch(&Launch {
        shared_bytes: BULK_SHARED_BYTES,
        maps: vec![map],
        ..launch("probe_read_bulk", blocks, BULK_THREADS, &params)
    })
}

/// Copies as many bytes as both regions have.
///
/// # Errors
/// As [`read_stream`].
pub fn copy_stream(launcher: &mut dyn Launcher, from: Region, to: Region) -> Result<()> {
    let grid = blocks(launcher);
    let bytes = from.bytes.min(to.bytes) / 16 * 16;
    let params = ProbeParams {
        from: from.checked("from", Some(bytes), 16)?,
        to: to.checked("to", Some(bytes), 16)?,
        bytes,
        ..EMPTY
    };
    launcher.launch(&launch("probe_copy", grid, THREADS, &params))
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

pub(super) const EMPTY: ProbeParams = ProbeParams {
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

pub(super) fn launch(
    kernel: &'static str,
    blocks: u32,
    threads: u32,
    params: &ProbeParams,
) -> Launch {
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
