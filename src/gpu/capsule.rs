//! Launches that run in the host emulator: each run is written as one file, a launch capsule, which
//! the emulator's driver executes (`kernels/emu/capsule.md` has the format).
//!
//! Memory is kept here. Launches gather until a result is asked for or memory is changed from the
//! host; then the driver runs them, and the buffers that kernels may write are taken over from its
//! result file. Nothing needs a GPU.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::gpu::{DeviceAddress, DeviceFacts, Launch, Launcher, Region, Swizzle, TensorMap};
use crate::{Error, Result, files};

/// Name of the emulator in errors.
const DEVICE: &str = "emulator";
/// A buffer's id stands above these bits of its addresses: no offset reaches into it.
const ID_SHIFT: u32 = 40;
const MAX_BYTES: u64 = 1 << ID_SHIFT;
/// Longest run: a kernel that takes longer is stuck.
const LIMIT: Duration = Duration::from_secs(300);

/// When asynchronous copies and products take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Only when nothing else can move: finds reads before the wait.
    Late,
    /// At once: finds a stage that is reused while still being read.
    Early,
    /// At any time, in any order.
    Random,
}

impl Delivery {
    /// Every mode; each finds faults that the others miss.
    pub const ALL: [Self; 3] = [Self::Late, Self::Early, Self::Random];

    /// The driver's word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Early => "early",
            Self::Random => "random",
        }
    }
}

/// How capsules are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapsuleOptions {
    /// The emulator's driver program.
    pub driver: PathBuf,
    /// Delivery of asynchronous work.
    pub delivery: Delivery,
    /// Seed of every choice that the emulator makes; equal seeds replay exactly.
    pub seed: u64,
    /// Blocks that are alive together; 1: one after another.
    pub live_blocks: u32,
    /// What fresh memory holds, repeated.
    pub poison: u32,
    /// Where the capsule of a failed run is kept.
    pub keep: Option<PathBuf>,
}

impl CapsuleOptions {
    /// Late delivery, seed 1, one block after another, memory full of NaN.
    pub fn new(driver: impl Into<PathBuf>) -> Self {
        Self {
            driver: driver.into(),
            delivery: Delivery::Late,
            seed: 1,
            live_blocks: 1,
            // NaN as f32 and, in each half, as bf16.
            poison: 0x7fff_7fff,
            keep: None,
        }
    }
}

/// One allocation.
#[derive(Debug)]
struct Buffer {
    /// Contents, of the whole buffer; of a sparse one the parts that were written.
    extents: Vec<(u64, Vec<u8>)>,
    bytes: u64,
    sparse: bool,
    constant: bool,
    freed: bool,
}

/// A launcher that executes kernels in the host emulator.
#[derive(Debug)]
pub struct Capsule {
    facts: DeviceFacts,
    options: CapsuleOptions,
    folder: TempDir,
    buffers: Vec<Buffer>,
    pending: Vec<Launch>,
    /// Buffers that existed at the last launch: what came later, no pending launch can touch.
    reached: usize,
    launched: Vec<&'static str>,
    runs: u32,
}

impl Capsule {
    /// A launcher for a made-up device. Its facts decide grids and limits alone.
    ///
    /// # Errors
    /// [`Error::Io`] when no temporary folder can be made.
    pub fn new(facts: DeviceFacts, options: CapsuleOptions) -> Result<Self> {
        let folder = tempfile::tempdir()
            .map_err(|source| Error::io("create", std::env::temp_dir(), source))?;
        Ok(Self {
            facts,
            options,
            folder,
            buffers: Vec::new(),
            pending: Vec::new(),
            reached: 0,
            launched: Vec::new(),
            runs: 0,
        })
    }

    /// Names of all kernels that were launched so far, in order, with repetitions.
    pub fn launched(&self) -> &[&'static str] {
        &self.launched
    }

    /// Memory that is reserved but not filled, for stacks larger than this machine's memory: bytes
    /// that are never uploaded read as 0, and kernels may not write any.
    ///
    /// # Errors
    /// [`Error::Usage`] for a size that no capsule holds.
    pub fn allocate_sparse(&mut self, bytes: u64) -> Result<Region> {
        let region = self.push(bytes, Vec::new())?;
        if let Some(buffer) = self.buffers.last_mut() {
            (buffer.sparse, buffer.constant) = (true, true);
        }
        Ok(region)
    }

    /// Declares a region's buffer an input: a kernel that changes it fails the run.
    ///
    /// # Errors
    /// [`Error::Usage`] for a region of another launcher.
    pub fn protect(&mut self, region: Region) -> Result<()> {
        let (id, _) = self.place(region)?;
        self.buffers[id].constant = true;
        Ok(())
    }

    fn push(&mut self, bytes: u64, extents: Vec<(u64, Vec<u8>)>) -> Result<Region> {
        if bytes == 0 || bytes >= MAX_BYTES {
            return Err(Error::usage("device memory", format!("cannot allocate {bytes} bytes")));
        }
        let id = self.buffers.len() as u64 + 1;
        self.buffers.push(Buffer { extents, bytes, sparse: false, constant: false, freed: false });
        Ok(Region { address: DeviceAddress(id << ID_SHIFT), bytes })
    }

    /// Buffer and offset of a region.
    fn place(&self, region: Region) -> Result<(usize, u64)> {
        let (id, offset) = self.locate(region.address)?;
        match offset.checked_add(region.bytes) {
            Some(end) if end <= self.buffers[id].bytes => Ok((id, offset)),
            _ => Err(Error::usage("device memory", "a region reaches past its buffer")),
        }
    }

    fn locate(&self, address: DeviceAddress) -> Result<(usize, u64)> {
        let id = usize::try_from(address.0 >> ID_SHIFT).unwrap_or(usize::MAX).wrapping_sub(1);
        match self.buffers.get(id) {
            Some(buffer) if !buffer.freed => Ok((id, address.0 & (MAX_BYTES - 1))),
            _ => Err(Error::usage("device memory", "an address that was not allocated here")),
        }
    }

    /// Writes into a buffer from the host.
    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<()> {
        let (id, offset) = self.place(region)?;
        if bytes.len() as u64 > region.bytes {
            let (length, room) = (bytes.len(), region.bytes);
            return Err(Error::usage("upload", format!("{length} bytes into a region of {room}")));
        }
        if id < self.reached {
            self.run()?;
        }
        let buffer = &mut self.buffers[id];
        if buffer.sparse {
            buffer.extents.push((offset, bytes.to_vec()));
        } else if let Some((_, content)) = buffer.extents.first_mut() {
            let start = index(offset)?;
            content[start..start + bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Runs what is pending.
    fn run(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let path = self.folder.path().join("capsule");
        let capsule = self.encode();
        self.pending.clear();
        fs::write(&path, capsule?).map_err(|e| Error::io("write", &path, e))?;
        self.runs += 1;
        let result = self.folder.path().join("result");
        self.execute(&path, &result).inspect_err(|_| self.keep(&path))?;
        self.take_over(&result)
    }

    /// Keeps a failed capsule; a copy that fails hides no error.
    fn keep(&self, path: &Path) {
        if let Some(to) = &self.options.keep {
            let _ = fs::copy(path, to);
        }
    }

    fn execute(&self, capsule: &Path, result: &Path) -> Result<()> {
        let log = self.folder.path().join("log");
        let stderr = File::create(&log).map_err(|e| Error::io("create", &log, e))?;
        let mut command = Command::new(&self.options.driver);
        command.args(["--mode", self.options.delivery.label(), "--seed"]);
        command.arg(self.options.seed.to_string()).arg(capsule).arg(result);
        // The driver says everything on standard error.
        command.stdin(Stdio::null()).stderr(stderr);
        let status = wait(command, &self.options.driver)?;
        if status.success() {
            return Ok(());
        }
        let log = fs::read(&log).unwrap_or_default();
        Err(Error::device(DEVICE, finding(&String::from_utf8_lossy(&log), status)))
    }

    /// The buffers that kernels may write, in order.
    fn writable(&self) -> Vec<usize> {
        let writable = |b: &Buffer| !b.constant && !b.sparse && !b.freed;
        (0..self.buffers.len()).filter(|&id| writable(&self.buffers[id])).collect()
    }

    fn take_over(&mut self, path: &Path) -> Result<()> {
        let file = files::read_capped(path, 1 << 32)?;
        let mut reader = Reader { bytes: &file };
        let malformed = || Error::bad_file(path, "is no result of the emulator");
        let head = (reader.take(8), reader.u32(), reader.u32());
        let ids = self.writable();
        if head.0 != Some(b"MOERESLT")
            || head.1 != Some(1)
            || head.2 != u32::try_from(ids.len()).ok()
        {
            return Err(malformed());
        }
        for id in ids {
            let content = reader.u64().and_then(|n| reader.take(usize::try_from(n).ok()?));
            let content = content.ok_or_else(malformed)?;
            if content.len() as u64 != self.buffers[id].bytes {
                return Err(malformed());
            }
            self.buffers[id].extents = vec![(0, content.to_vec())];
        }
        Ok(())
    }

    fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Writer::default();
        out.bytes.extend(b"MOECAPSU");
        out.u32(1);
        out.count(self.buffers.len())?;
        for (id, buffer) in self.buffers.iter().enumerate() {
            out.string(&format!("buffer {id}"))?;
            // A freed buffer is not there any more: what still points to it points past its end.
            out.u64(if buffer.freed { 0 } else { buffer.bytes });
            out.u32(u32::from(buffer.constant && !buffer.sparse) | (u32::from(buffer.sparse) << 1));
            out.u32(self.options.poison);
            out.count(buffer.extents.len())?;
            for (offset, bytes) in &buffer.extents {
                out.u64(*offset);
                out.u64(bytes.len() as u64);
                out.bytes.extend(bytes);
            }
        }
        out.count(self.pending.len())?;
        self.pending.iter().try_for_each(|launch| self.encode_launch(launch, &mut out))?;
        let outputs = self.writable();
        out.count(outputs.len())?;
        for id in outputs {
            out.count(id)?;
            out.u64(0);
            out.u64(self.buffers[id].bytes);
        }
        Ok(out.bytes)
    }

    fn encode_launch(&self, launch: &Launch, out: &mut Writer) -> Result<()> {
        out.string(launch.kernel)?;
        let [x, y] = launch.grid;
        let live = self.options.live_blocks;
        for value in [x, y, launch.threads, launch.shared_bytes, live, u32::from(launch.overlaps)] {
            out.u32(value);
        }
        out.count(launch.maps.len())?;
        launch.maps.iter().try_for_each(|map| self.encode_map(map, out))?;
        let mut params = launch.params.bytes.clone();
        let mut relocations = Writer::default();
        let mut count = 0;
        for &at in &launch.params.addresses {
            let mut address = [0; 8];
            address.copy_from_slice(&params[at..at + 8]);
            params[at..at + 8].fill(0);
            let address = DeviceAddress(u64::from_ne_bytes(address));
            if !address.is_null() {
                let (id, offset) = self.locate(address)?;
                relocations.count(at)?;
                relocations.count(id)?;
                relocations.u64(offset);
                count += 1;
            }
        }
        out.count(params.len())?;
        out.bytes.extend(params);
        out.u32(count);
        out.bytes.extend(relocations.bytes);
        Ok(())
    }

    fn encode_map(&self, map: &TensorMap, out: &mut Writer) -> Result<()> {
        let (id, offset) = self.locate(map.base)?;
        out.count(id)?;
        out.u64(offset);
        out.u32(map.element.bytes());
        out.count(map.rank)?;
        map.dims[..map.rank].iter().for_each(|&d| out.u64(d));
        map.strides[1..map.rank].iter().for_each(|&s| out.u64(s));
        map.box_dims[..map.rank].iter().for_each(|&b| out.u32(b));
        out.u32(if map.swizzle == Swizzle::Bytes128 { 128 } else { 0 });
        Ok(())
    }
}

impl Launcher for Capsule {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn allocate(&mut self, bytes: u64) -> Result<Region> {
        let pattern = self.options.poison.to_ne_bytes();
        let content = pattern.iter().copied().cycle().take(index(bytes)?).collect();
        self.push(bytes, vec![(0, content)])
    }

    fn free(&mut self, region: Region) -> Result<()> {
        let (id, offset) = self.place(region)?;
        if offset != 0 || region.bytes != self.buffers[id].bytes {
            return Err(Error::usage("device memory", "a part of a buffer cannot be freed"));
        }
        self.run()?;
        self.buffers[id].freed = true;
        self.buffers[id].extents.clear();
        Ok(())
    }

    fn upload(&mut self, to: Region, bytes: &[u8]) -> Result<()> {
        self.write(to, bytes)
    }

    fn download(&mut self, from: Region, bytes: &mut [u8]) -> Result<()> {
        let (id, offset) = self.place(from)?;
        if bytes.len() as u64 > from.bytes {
            let (length, has) = (bytes.len(), from.bytes);
            return Err(Error::usage("download", format!("{length} bytes of a region of {has}")));
        }
        self.run()?;
        match self.buffers[id].extents.first() {
            Some((_, content)) if !self.buffers[id].sparse => {
                let start = index(offset)?;
                bytes.copy_from_slice(&content[start..start + bytes.len()]);
                Ok(())
            }
            _ => Err(Error::usage("download", "sparse memory is not read back")),
        }
    }

    fn fill(&mut self, region: Region, byte: u8) -> Result<()> {
        self.write(region, &vec![byte; index(region.bytes)?])
    }

    fn enqueue(&mut self, launch: &Launch) -> Result<()> {
        self.launched.push(launch.kernel);
        self.pending.push(launch.clone());
        self.reached = self.buffers.len();
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        self.run()
    }
}

fn index(value: u64) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::usage("device memory", "more than this machine's"))
}

/// Runs a program to its end, or ends it when it takes too long.
fn wait(mut command: Command, program: &Path) -> Result<ExitStatus> {
    let failed = |source| Error::io("run", program, source);
    let mut child = command.spawn().map_err(failed)?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status);
        }
        let elapsed = start.elapsed();
        if elapsed > LIMIT {
            // It may have ended by itself in between; either way it is gone after this.
            let _ = child.kill();
            child.wait().map_err(failed)?;
            return Err(Error::device(DEVICE, format!("no end after {} s", LIMIT.as_secs())));
        }
        std::thread::sleep(
            (elapsed / 8).clamp(Duration::from_micros(200), Duration::from_millis(20)),
        );
    }
}

/// The one line that says what the emulator found.
fn finding(log: &str, status: ExitStatus) -> String {
    let says = |part: &str| log.lines().find(|line| line.contains(part));
    let line = says("emulator: ")
        .or_else(|| says("SUMMARY: "))
        .or_else(|| says("ERROR: "))
        .or_else(|| says("runtime error: "))
        .or_else(|| log.lines().next_back());
    match line {
        Some(line) => line.trim().trim_start_matches("emulator: ").to_owned(),
        None => format!("its driver ended with {status} and no message"),
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn count(&mut self, value: usize) -> Result<()> {
        let value = u32::try_from(value)
            .map_err(|_| Error::usage("capsule", format!("{value} does not fit 32 bits")))?;
        self.u32(value);
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<()> {
        self.count(text.len())?;
        self.bytes.extend(text.as_bytes());
        Ok(())
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(count)?;
        self.bytes = tail;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::ParamBytes;

    fn capsule(driver: &str) -> Capsule {
        Capsule::new(DeviceFacts::H100, CapsuleOptions::new(driver)).unwrap()
    }

    fn launch(addresses: &[u64]) -> Launch {
        Launch {
            kernel: "combine_bf16",
            grid: [2, 1],
            threads: 32,
            shared_bytes: 16,
            maps: Vec::new(),
            params: ParamBytes {
                bytes: addresses.iter().flat_map(|a| a.to_ne_bytes()).collect(),
                addresses: (0..addresses.len()).map(|i| 8 * i).collect(),
            },
            overlaps: false,
        }
    }

    #[test]
    fn memory_is_poisoned_written_read_back_and_freed() {
        let mut capsule = capsule("none");
        let region = capsule.allocate(10).unwrap();
        let mut bytes = [0; 10];
        capsule.upload(region.part(4, 3).unwrap(), &[1, 2, 3]).unwrap();
        capsule.download(region, &mut bytes).unwrap();
        assert_eq!(bytes, [0xff, 0x7f, 0xff, 0x7f, 1, 2, 3, 0x7f, 0xff, 0x7f]);
        capsule.fill(region, 7).unwrap();
        capsule.download(region, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 10]);
        assert_eq!(capsule.upload(region, &[0; 11]).unwrap_err().exit_code(), 2);
        assert_eq!(capsule.download(region, &mut [0; 11]).unwrap_err().exit_code(), 2);
        assert_eq!(capsule.free(region.part(0, 5).unwrap()).unwrap_err().exit_code(), 2);
        capsule.free(region).unwrap();
        assert_eq!(capsule.download(region, &mut bytes).unwrap_err().exit_code(), 2);
        assert_eq!(capsule.allocate(0).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn addresses_become_relocations_and_null_stays_null() {
        let mut capsule = capsule("none");
        let (a, b) = (capsule.allocate(64).unwrap(), capsule.allocate(64).unwrap());
        let second = b.part(16, 16).unwrap().address.0;
        capsule.launch(&launch(&[second, 0, a.address.0])).unwrap();
        let bytes = capsule.encode().unwrap();
        let tail = bytes.len() - (4 + 2 * 20);
        let relocations = tail - 4 - 2 * 16;
        let expected: Vec<u8> =
            [2_u32, 0, 1, 16, 0, 16, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(bytes[relocations..tail], expected);
        assert!(bytes[relocations - 24..relocations].iter().all(|&b| b == 0));
        capsule.pending.clear();
        capsule.enqueue(&launch(&[9 << ID_SHIFT])).unwrap();
        assert_eq!(capsule.synchronize().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_missing_driver_is_named() {
        let mut capsule = capsule("/no/such/driver");
        let region = capsule.allocate(8).unwrap();
        capsule.launch(&launch(&[region.address.0])).unwrap();
        let error = capsule.synchronize().unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.to_string().contains("/no/such/driver"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_finding_is_told_in_one_line_and_its_capsule_kept() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let driver = folder.path().join("driver");
        fs::write(&driver, "#!/bin/sh\necho 'emulator: race: two stores' >&2\nexit 66\n").unwrap();
        fs::set_permissions(&driver, fs::Permissions::from_mode(0o755)).unwrap();
        let kept = folder.path().join("kept");
        let options = CapsuleOptions { keep: Some(kept.clone()), ..CapsuleOptions::new(&driver) };
        let mut capsule = Capsule::new(DeviceFacts::H100, options).unwrap();
        let region = capsule.allocate(8).unwrap();
        capsule.launch(&launch(&[region.address.0])).unwrap();
        let error = capsule.synchronize().unwrap_err();
        assert_eq!(error.to_string(), "device emulator: race: two stores");
        assert!(fs::read(kept).unwrap().starts_with(b"MOECAPSU"));
    }
}
