//! Where kernels run: in the emulator, or on a GPU. Both are given the same cases.

use moe_frontier::gpu::{Capsule, CudaDevice, DeviceFacts, Launch, Launcher, Region};
use moe_frontier::{Error, Result};

use crate::suite::{Place, Run};

/// A launcher that a case runs on.
pub(crate) enum Board {
    Emulator(Box<Capsule>),
    Gpu(Box<OnGpu>),
}

/// Bytes before and behind every buffer that no kernel may write, and what they hold.
const CANARY_BYTES: u64 = 64 * 1024;
const CANARY: u8 = 0xc5;

/// A GPU with what the emulator does by itself: poisoned memory with canaries around each buffer, and
/// inputs that must not change.
pub(crate) struct OnGpu {
    device: CudaDevice,
    poison: u32,
    /// What was allocated: each buffer with its canaries.
    allocated: Vec<Region>,
    inputs: Vec<(Region, Vec<u8>)>,
    launched: Vec<&'static str>,
}

impl Board {
    /// The board of a run.
    ///
    /// # Errors
    /// When there is no such device.
    pub(crate) fn new(run: &Run, facts: DeviceFacts) -> Result<Self> {
        if let Place::Emulator { .. } = run.place {
            return Ok(Self::Emulator(Box::new(run.capsule(facts)?)));
        }
        Ok(Self::Gpu(Box::new(OnGpu {
            device: CudaDevice::open(0)?,
            poison: run.poison(),
            allocated: Vec::new(),
            inputs: Vec::new(),
            launched: Vec::new(),
        })))
    }

    fn launcher(&mut self) -> &mut dyn Launcher {
        match self {
            Self::Emulator(capsule) => capsule.as_mut(),
            Self::Gpu(gpu) => &mut gpu.device,
        }
    }

    /// Declares a region an input: a kernel that changes it fails the case.
    pub(crate) fn protect(&mut self, region: Region) -> Result<()> {
        match self {
            Self::Emulator(capsule) => capsule.protect(region),
            Self::Gpu(gpu) => {
                let mut bytes = vec![0; usize::try_from(region.bytes).unwrap()];
                gpu.device.download(region, &mut bytes)?;
                gpu.inputs.push((region, bytes));
                Ok(())
            }
        }
    }

    /// Memory for stacks larger than a machine that emulates; zero where nothing is uploaded.
    pub(crate) fn allocate_sparse(&mut self, bytes: u64) -> Result<Region> {
        match self {
            Self::Emulator(capsule) => capsule.allocate_sparse(bytes),
            Self::Gpu(gpu) => {
                let region = gpu.between_canaries(bytes)?;
                gpu.device.fill(region, 0)?;
                Ok(region)
            }
        }
    }

    /// Names of all kernels that were launched so far.
    pub(crate) fn launched(&self) -> Vec<&'static str> {
        match self {
            Self::Emulator(capsule) => capsule.launched().to_vec(),
            Self::Gpu(gpu) => gpu.launched.clone(),
        }
    }
}

impl OnGpu {
    /// A buffer with canaries around it.
    fn between_canaries(&mut self, bytes: u64) -> Result<Region> {
        let whole = self.device.allocate(bytes + 2 * CANARY_BYTES)?;
        self.allocated.push(whole);
        for canary in canaries(whole)? {
            self.device.fill(canary, CANARY)?;
        }
        whole.part(CANARY_BYTES, bytes)
    }

    fn free(&mut self, region: Region) -> Result<()> {
        let start = region.address.0 - CANARY_BYTES;
        let at = self.allocated.iter().position(|whole| whole.address.0 == start);
        let at = at.ok_or_else(|| Error::usage("device memory", "was not allocated here"))?;
        self.untouched()?;
        self.device.free(self.allocated.swap_remove(at))
    }

    /// Whether every canary is as it was.
    fn untouched(&mut self) -> Result<()> {
        let mut now = vec![0; usize::try_from(CANARY_BYTES).unwrap()];
        for (id, whole) in self.allocated.iter().enumerate() {
            for (side, canary) in ["before", "behind"].into_iter().zip(canaries(*whole)?) {
                self.device.download(canary, &mut now)?;
                if let Some(at) = now.iter().position(|&byte| byte != CANARY) {
                    let kernels = self.launched.join(", ");
                    let what = format!("byte {at} {side} buffer {id} was written by {kernels}");
                    return Err(Error::device("gpu", what));
                }
            }
        }
        Ok(())
    }

    fn unchanged(&mut self) -> Result<()> {
        for (region, before) in &self.inputs {
            let mut now = vec![0; before.len()];
            self.device.download(*region, &mut now)?;
            if now != *before {
                let kernels = self.launched.join(", ");
                return Err(Error::device("gpu", format!("an input was changed by {kernels}")));
            }
        }
        Ok(())
    }
}

/// The canaries of an allocation: before the buffer and behind it.
fn canaries(whole: Region) -> Result<[Region; 2]> {
    let behind = whole.part(whole.bytes - CANARY_BYTES, CANARY_BYTES)?;
    Ok([whole.part(0, CANARY_BYTES)?, behind])
}

impl Launcher for Board {
    fn facts(&self) -> &DeviceFacts {
        match self {
            Self::Emulator(capsule) => capsule.facts(),
            Self::Gpu(gpu) => gpu.device.facts(),
        }
    }

    fn allocate(&mut self, bytes: u64) -> Result<Region> {
        match self {
            Self::Emulator(capsule) => capsule.allocate(bytes),
            Self::Gpu(gpu) => {
                let region = gpu.between_canaries(bytes)?;
                let length = usize::try_from(bytes).unwrap();
                let mut filled = gpu.poison.to_ne_bytes().repeat(length.div_ceil(4));
                filled.truncate(length);
                gpu.device.upload(region, &filled)?;
                Ok(region)
            }
        }
    }

    fn free(&mut self, region: Region) -> Result<()> {
        match self {
            Self::Emulator(capsule) => capsule.free(region),
            Self::Gpu(gpu) => gpu.free(region),
        }
    }

    fn upload(&mut self, to: Region, bytes: &[u8]) -> Result<()> {
        self.launcher().upload(to, bytes)
    }

    fn download(&mut self, from: Region, bytes: &mut [u8]) -> Result<()> {
        self.launcher().download(from, bytes)
    }

    fn fill(&mut self, region: Region, byte: u8) -> Result<()> {
        self.launcher().fill(region, byte)
    }

    fn copy(&mut self, from: Region, to: Region) -> Result<()> {
        self.launcher().copy(from, to)
    }

    fn enqueue(&mut self, launch: &Launch) -> Result<()> {
        let Self::Gpu(gpu) = self else { return self.launcher().enqueue(launch) };
        // Before it runs: the last name that was printed is that of a kernel that never ends.
        let ([x, y], threads) = (launch.grid, launch.threads);
        eprintln!("{} {x} x {y} blocks of {threads}", launch.kernel);
        gpu.launched.push(launch.kernel);
        gpu.device.enqueue(launch)?;
        // An error that comes later would be somebody else's. Launches that may overlap do.
        if launch.overlaps { Ok(()) } else { gpu.device.synchronize() }
    }

    fn synchronize(&mut self) -> Result<()> {
        self.launcher().synchronize()?;
        match self {
            Self::Emulator(_) => Ok(()),
            Self::Gpu(gpu) => {
                gpu.untouched()?;
                gpu.unchanged()
            }
        }
    }
}
