//! Launching kernels, whoever executes them: the one seam between plans and devices.
//!
//! A [`Launcher`] has memory and a stream on which copies and kernels run in the order that they were
//! asked for. Two exist: the CUDA driver, and [`crate::gpu::Capsule`], which runs the same launches in
//! the host emulator. Every launch is checked against the device's limits before it goes out.

use crate::gpu::{DeviceAddress, ParamBytes, Region, TensorMap, images};
use crate::{Error, Result};

/// What launches depend on of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Most shared memory of one block, after opting in, in bytes.
    pub shared_bytes: u32,
    /// Second-level cache, in bytes.
    pub l2_bytes: u64,
}

impl DeviceFacts {
    /// An H100 SXM: 132 multiprocessors, 227 KiB of shared memory a block, 50 MiB of L2 (NVIDIA H100
    /// data sheet and CUDA programming guide).
    pub const H100: Self = Self {
        compute_capability: (9, 0),
        sm_count: 132,
        shared_bytes: 227 * 1024,
        l2_bytes: 50 << 20,
    };
    /// An A100 SXM 80GB: 108 multiprocessors, 163 KiB of shared memory a block, 40 MiB of L2 (NVIDIA
    /// A100 data sheet and CUDA programming guide).
    pub const A100: Self = Self {
        compute_capability: (8, 0),
        sm_count: 108,
        shared_bytes: 163 * 1024,
        l2_bytes: 40 << 20,
    };

    /// Whether Hopper's own instructions (TMA, wgmma) can be used. They exist on 9.0 alone.
    pub const fn is_hopper(&self) -> bool {
        self.compute_capability.0 == 9 && self.compute_capability.1 == 0
    }
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Name of the entry point.
    pub kernel: &'static str,
    /// Blocks, x and y.
    pub grid: [u32; 2],
    /// Threads a block.
    pub threads: u32,
    /// Dynamic shared memory a block, in bytes.
    pub shared_bytes: u32,
    /// Leading tensor-map parameters.
    pub maps: Vec<TensorMap>,
    /// The parameter struct, which follows the maps.
    pub params: ParamBytes,
    /// Whether the kernel may start before the one before it has ended; it then waits by itself for
    /// what it reads (programmatic dependent launch; compute capability 9.0 or higher).
    pub overlaps: bool,
}

/// Most threads of a block.
const MAX_THREADS: u32 = 1024;
/// Registers of a multiprocessor, all of which one block may have (CUDA programming guide, since 5.0).
const REGISTERS: u32 = 64 << 10;
/// A warp is given registers in multiples of this: 8 a thread.
const REGISTERS_AT_ONCE: u32 = 8;
/// Threads of a warp.
const WARP: u32 = 32;
/// Most blocks along y.
const MAX_GRID_Y: u32 = 65_535;
/// Most bytes of all parameters together.
const MAX_PARAM_BYTES: usize = 4096;
/// Size of a tensor map as a parameter.
pub const TENSOR_MAP_BYTES: usize = 128;

impl Launch {
    /// Checks the launch against a device's limits, and against what the kernel was built for.
    ///
    /// # Errors
    /// [`Error::Usage`] naming kernel and limit.
    pub fn check(&self, facts: &DeviceFacts) -> Result<()> {
        let invalid = |reason: String| Err(Error::usage(self.kernel, reason));
        let [x, y] = self.grid;
        if x == 0 || y == 0 || x > i32::MAX.unsigned_abs() || y > MAX_GRID_Y {
            return invalid(format!("a grid of {x} x {y} blocks"));
        }
        if !(1..=MAX_THREADS).contains(&self.threads) {
            let threads = self.threads;
            return invalid(format!("{threads} threads a block: need 1 to {MAX_THREADS}"));
        }
        if self.shared_bytes > facts.shared_bytes {
            return invalid(format!(
                "{} bytes of shared memory a block; the device has {}",
                self.shared_bytes, facts.shared_bytes
            ));
        }
        if let Some(built) = images::resources(self.kernel, facts.compute_capability) {
            self.check_built(&built, facts)?;
        }
        let bytes = self.params.bytes.len() + self.maps.len() * TENSOR_MAP_BYTES;
        if bytes > MAX_PARAM_BYTES {
            return invalid(format!("{bytes} bytes of parameters; at most {MAX_PARAM_BYTES}"));
        }
        if self.params.addresses.iter().any(|at| at + 8 > self.params.bytes.len()) {
            return invalid("an address outside its parameters".into());
        }
        if self.overlaps && facts.compute_capability.0 < 9 {
            return invalid("overlapping launches need compute capability 9.0".into());
        }
        self.maps.iter().try_for_each(TensorMap::validate)
    }
}

impl Launch {
    /// Checks the launch against what the image of its kernel says.
    fn check_built(&self, built: &images::Resources, facts: &DeviceFacts) -> Result<()> {
        let invalid = |reason: String| Err(Error::usage(self.kernel, reason));
        if self.threads > built.threads {
            return invalid(format!(
                "{} threads a block; the kernel is built for at most {}",
                self.threads, built.threads
            ));
        }
        let shared = self.shared_bytes.saturating_add(built.static_shared_bytes);
        if shared > facts.shared_bytes {
            return invalid(format!(
                "{shared} bytes of shared memory a block with those of its own; the device has {}",
                facts.shared_bytes
            ));
        }
        let each = built.registers.unwrap_or(0).next_multiple_of(REGISTERS_AT_ONCE);
        let registers = each * self.threads.next_multiple_of(WARP);
        if registers > REGISTERS {
            return invalid(format!(
                "{} threads of {each} registers; a block has at most {REGISTERS}",
                self.threads
            ));
        }
        Ok(())
    }
}

/// A recorded sequence of launches, by the number that its launcher knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recording(pub usize);

/// Something that has device memory and runs kernels on it.
///
/// Copies, fills and launches happen in the order of the calls. A region handed to a call must come
/// from this launcher's [`allocate`](Self::allocate) and not have been freed; an implementation
/// refuses others where it can tell.
pub trait Launcher {
    /// The device's limits.
    fn facts(&self) -> &DeviceFacts;

    /// Memory of `bytes` bytes (at least 1), aligned to 256. Its content is unspecified.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no room; [`Error::Usage`] for 0 bytes.
    fn allocate(&mut self, bytes: u64) -> Result<Region>;

    /// Gives an allocated region back. What is not given back goes with the launcher.
    ///
    /// # Errors
    /// [`Error::Usage`] for a region that was not allocated here as a whole.
    fn free(&mut self, region: Region) -> Result<()>;

    /// Copies `bytes` to the start of `to`.
    ///
    /// # Errors
    /// [`Error::Usage`] when they do not fit; [`Error::Device`] when the device fails.
    fn upload(&mut self, to: Region, bytes: &[u8]) -> Result<()>;

    /// Waits for everything before, then copies the start of `from` into `bytes`.
    ///
    /// # Errors
    /// [`Error::Usage`] when `from` is shorter; [`Error::Device`] when the device fails, be it by a
    /// kernel launched before.
    fn download(&mut self, from: Region, bytes: &mut [u8]) -> Result<()>;

    /// Sets every byte of a region.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails.
    fn fill(&mut self, region: Region, byte: u8) -> Result<()>;

    /// Copies the content of one region to the start of another. The default goes through the host.
    ///
    /// # Errors
    /// [`Error::Usage`] when it does not fit; [`Error::Device`] when the device fails.
    fn copy(&mut self, from: Region, to: Region) -> Result<()> {
        let length = usize::try_from(from.bytes)
            .map_err(|_| Error::usage("copy", format!("{} bytes", from.bytes)))?;
        let mut bytes = vec![0; length];
        self.download(from, &mut bytes)?;
        self.upload(to, &bytes)
    }

    /// Launches a kernel that [`launch`](Self::launch) has checked.
    ///
    /// # Errors
    /// [`Error::Device`] when the kernel is unknown or the device refuses it.
    fn enqueue(&mut self, launch: &Launch) -> Result<()>;

    /// Waits for everything before.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails, be it by a kernel launched before.
    fn synchronize(&mut self) -> Result<()>;

    /// Records what `work` launches, after running it once. `None`, and nothing is run, where a device
    /// cannot replay a recording.
    ///
    /// # Errors
    /// Whatever `work` reports; [`Error::Device`] when it did what cannot be recorded.
    fn record(
        &mut self,
        work: &mut dyn FnMut(&mut dyn Launcher) -> Result<()>,
    ) -> Result<Option<Recording>> {
        let _ = work;
        Ok(None)
    }

    /// Replays a recording and returns the nanoseconds that it took by the device's own clock, from the
    /// moment on at which the device, with everything queued, was let go. Before it, and not in its time,
    /// `before` is replayed: what pushes its data out of the caches, say. Without it the recording itself
    /// is, which leaves the caches as it leaves them again and again.
    ///
    /// # Errors
    /// [`Error::Usage`] for a recording of somebody else; [`Error::Device`] when the device fails.
    fn time(&mut self, recording: Recording, before: Option<Recording>) -> Result<f64> {
        let _ = (recording, before);
        Err(Error::usage("recording", "this device cannot replay"))
    }

    /// Gives a recording's memory back.
    fn forget(&mut self, recording: Recording) {
        let _ = recording;
    }

    /// Checks a launch and sends it out.
    ///
    /// # Errors
    /// [`Error::Usage`] for a launch outside the device's limits, else as
    /// [`enqueue`](Self::enqueue).
    fn launch(&mut self, launch: &Launch) -> Result<()> {
        launch.check(self.facts())?;
        self.enqueue(launch)
    }

    /// A region that holds a copy of `bytes`.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`upload`](Self::upload).
    fn store(&mut self, bytes: &[u8]) -> Result<Region> {
        let region = self.allocate(bytes.len() as u64)?;
        self.upload(region, bytes)?;
        Ok(region)
    }
}

/// The address of a part that may be missing.
pub fn address_or_null(address: Option<DeviceAddress>) -> DeviceAddress {
    address.unwrap_or(DeviceAddress::NULL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch() -> Launch {
        Launch {
            kernel: "combine_bf16",
            grid: [1, 1],
            threads: 128,
            shared_bytes: 0,
            maps: Vec::new(),
            params: ParamBytes { bytes: vec![0; 64], addresses: vec![0, 56] },
            overlaps: false,
        }
    }

    #[test]
    fn a_launch_inside_every_limit_passes() {
        launch().check(&DeviceFacts::A100).unwrap();
        let large = Launch { grid: [i32::MAX.unsigned_abs(), 65_535], ..launch() };
        large.check(&DeviceFacts::A100).unwrap();
        // A kernel that nobody built has the device's limits alone.
        let unknown = Launch { kernel: "made_up", threads: 1024, ..launch() };
        unknown.check(&DeviceFacts::A100).unwrap();
        Launch { overlaps: true, ..launch() }.check(&DeviceFacts::H100).unwrap();
    }

    #[test]
    fn each_limit_of_the_device_is_refused_by_the_kernels_name() {
        let shared = DeviceFacts::A100.shared_bytes + 1;
        let params = |bytes: usize, at| ParamBytes { bytes: vec![0; bytes], addresses: vec![at] };
        for (wrong, part) in [
            (Launch { grid: [0, 1], ..launch() }, "0 x 1 blocks"),
            (Launch { grid: [1, 0], ..launch() }, "1 x 0 blocks"),
            (Launch { grid: [1 << 31, 1], ..launch() }, "blocks"),
            (Launch { grid: [1, 65_536], ..launch() }, "blocks"),
            (Launch { threads: 0, ..launch() }, "threads"),
            (Launch { threads: 1056, ..launch() }, "threads"),
            (Launch { shared_bytes: shared, ..launch() }, "shared memory"),
            (Launch { params: params(4104, 0), ..launch() }, "parameters"),
            (Launch { params: params(64, 60), ..launch() }, "address"),
            (Launch { overlaps: true, ..launch() }, "9.0"),
        ] {
            let error = wrong.check(&DeviceFacts::A100).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.starts_with("combine_bf16: ") && text.contains(part), "{text}");
        }
    }

    #[test]
    fn what_the_image_of_a_kernel_forbids_is_refused_before_the_driver_does() {
        let stamp = Launch { kernel: "probe_clock_stamp", threads: 1, ..launch() };
        stamp.check(&DeviceFacts::H100).unwrap();
        for facts in [DeviceFacts::H100, DeviceFacts::A100] {
            let error = Launch { threads: 32, ..stamp.clone() }.check(&facts).unwrap_err();
            assert_eq!(
                error.to_string(),
                "probe_clock_stamp: 32 threads a block; the kernel is built for at most 1"
            );
        }
        let built =
            images::Resources { threads: 1024, registers: Some(121), static_shared_bytes: 1024 };
        let full = Launch { threads: 512, shared_bytes: 226 * 1024, ..launch() };
        full.check_built(&built, &DeviceFacts::H100).unwrap();
        let more = Launch { threads: 544, ..full.clone() };
        let error = more.check_built(&built, &DeviceFacts::H100).unwrap_err().to_string();
        assert!(error.contains("544 threads of 128 registers"), "{error}");
        let more = Launch { shared_bytes: 226 * 1024 + 16, ..full };
        let error = more.check_built(&built, &DeviceFacts::H100).unwrap_err().to_string();
        assert!(error.contains("with those of its own"), "{error}");
    }
}
