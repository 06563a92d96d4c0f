//! A CUDA device as what is measured: its key, its ceilings, and what slows it down.

use half::bf16;

use super::ceilings::{CeilingSamples, DenseTest, Sizes};
use super::data;
use super::sampling::{BlockRule, GPU_WIDTH};
use super::target::{CeilingTests, Target};
use super::timing::{Launch, MonotonicClock};
use crate::config::DType;
use crate::gpu::{Condition, Cublas, CudaDevice, Launcher, Monitor, Product, Region, driver};
use crate::kernels::gpu::GpuBackend;
use crate::kernels::gpu::launches::{ReadPath, ReadStream, clock_stamp, flush, read_stream};
use crate::kernels::{LayerWeights, MoeBackend, MoeShape};
use crate::record::{Device, GpuDevice, TimingMode};
use crate::{Error, Result};

/// The read test's buffer: tens of times the largest second-level cache, some 0.6 ms of an H100.
const READ_BYTES: usize = 2 << 30;
/// Products timed in each round.
const DENSE_PER_ROUND: usize = 3;
/// Name of cuBLAS' product in a profile.
const CUBLAS: &str = "cublas_gemm_bf16";

/// A CUDA device with the backend that runs on it.
pub struct GpuTarget<'a> {
    backend: &'a GpuBackend<CudaDevice>,
    device: GpuDevice,
    /// Or why clocks are not watched.
    monitor: Result<Monitor, String>,
    /// Or why cuBLAS is not there.
    cublas: Result<Cublas, String>,
}

impl<'a> GpuTarget<'a> {
    /// The device of a backend.
    ///
    /// # Errors
    /// [`Error::Device`] when it cannot be asked for its identity.
    pub fn new(backend: &'a GpuBackend<CudaDevice>) -> Result<Self> {
        let launcher = backend.launcher();
        let monitor = Monitor::start(&launcher.uuid()?);
        let cublas = Cublas::new(&launcher).map_err(|e| e.to_string());
        let gpu = launcher.gpu();
        let standing = monitor.as_ref().map(|m| m.standing().clone()).unwrap_or_default();
        let device = GpuDevice {
            name: gpu.name.clone(),
            sm: gpu.sm.clone(),
            sm_count: gpu.sm_count,
            memory_bytes: gpu.memory_bytes,
            l2_bytes: gpu.l2_bytes,
            driver_cuda: gpu.driver_cuda.clone(),
            ecc: standing.ecc,
            power_limit_mw: standing.power_limit_mw,
        };
        drop(launcher);
        Ok(Self { backend, device, monitor, cublas })
    }
}

impl Target for GpuTarget<'_> {
    fn device(&self) -> Device {
        Device::Gpu(self.device.clone())
    }

    fn cache_bytes(&self) -> f64 {
        self.device.l2_bytes as f64
    }

    fn available_bytes(&self) -> f64 {
        self.backend.launcher().free_and_total_bytes().map_or(0.0, |(free, _)| free as f64)
    }

    fn modes(&self) -> &'static [TimingMode] {
        &[TimingMode::Cold, TimingMode::Stream, TimingMode::Hot]
    }

    fn width(&self) -> f64 {
        GPU_WIDTH
    }

    fn rule(&self, rule: BlockRule) -> BlockRule {
        rule.for_events()
    }

    fn host_threads(&self) -> usize {
        1
    }

    fn condition(&self) -> Condition {
        self.monitor.as_ref().map_or_else(|_| Condition::default(), Monitor::take)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        match &self.monitor {
            Ok(monitor) => {
                let others = monitor.standing().compute_processes.unwrap_or(0);
                // This process has a context of its own on the device.
                if others > 1 {
                    notes.push(format!("{} other processes compute on the GPU", others - 1));
                }
            }
            Err(reason) => notes.push(format!("clocks and throttling are not watched: {reason}")),
        }
        if let Err(reason) = &self.cublas {
            notes.push(format!("the dense ceiling is that of our own kernels alone: {reason}"));
        }
        notes
    }

    fn libraries(&self) -> Vec<String> {
        driver::loaded_libraries()
    }

    fn peer(&self) -> (&'static str, DType) {
        (CUBLAS, DType::Bf16)
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            read_bytes: READ_BYTES,
            dense: MoeShape { experts: 1, top_k: 1, hidden: 4096, inter: 8192, gated: true },
            dense_tokens: 4096,
            square: 8192,
        }
    }

    fn ceilings<'a>(
        &'a self,
        backend: &'a dyn MoeBackend,
        dense: &'a [LayerWeights],
    ) -> Result<Box<dyn CeilingTests + 'a>> {
        let sizes = self.sizes();
        let dense = DenseTest::new(backend, dense, &sizes)?;
        let buffers = Buffers::new(&mut self.backend.launcher(), &sizes)?;
        let mut tests = GpuCeilings { target: self, sizes, dense, buffers };
        // Not counted: code is loaded and clocks rise.
        let mut untimed = CeilingSamples::default();
        tests.sample_read(&mut untimed)?;
        tests.sample_rest(&mut untimed)?;
        Ok(Box::new(tests))
    }
}

/// Memory of the tests.
struct Buffers {
    read: Region,
    result: Region,
    /// Two factors and the product.
    square: [Region; 3],
}

impl Buffers {
    fn new(launcher: &mut CudaDevice, sizes: &Sizes) -> Result<Self> {
        // At most a quarter of what is free: the weights of the cells are there already.
        let (free, _) = launcher.free_and_total_bytes()?;
        let bytes = (sizes.read_bytes as u64).min(free / 4) / 16 * 16;
        let read = launcher.allocate(bytes)?;
        let result = launcher.allocate(ReadStream::result_bytes(launcher).max(16 << 10))?;
        let matrix = (sizes.square as u64).pow(2) * 2;
        let square =
            [launcher.allocate(matrix)?, launcher.allocate(matrix)?, launcher.allocate(matrix)?];
        flush(launcher, read, 1)?;
        // Rates on zeros or constants are not those of data.
        for (seed, region) in (1..).zip(&square[..2]) {
            fill_with_normals(launcher, *region, seed)?;
        }
        Ok(Self { read, result, square })
    }

    fn all(&self) -> [Region; 5] {
        let [a, b, c] = self.square;
        [self.read, self.result, a, b, c]
    }
}

/// Fills a region with bf16 normals, a run of them repeated.
fn fill_with_normals(launcher: &mut CudaDevice, region: Region, seed: u64) -> Result<()> {
    const RUN: usize = 1 << 22;
    let normals = data::normals(seed, RUN);
    let bytes: Vec<u8> = normals.iter().flat_map(|&v| bf16::from_f32(v).to_ne_bytes()).collect();
    let mut at = 0;
    while at < region.bytes {
        let length = (region.bytes - at).min(bytes.len() as u64);
        let part = region.part(at, length)?;
        launcher.upload(part, bytes.get(..usize::try_from(length).unwrap_or(0)).unwrap_or(&[]))?;
        at += length;
    }
    Ok(())
}

struct GpuCeilings<'a> {
    target: &'a GpuTarget<'a>,
    sizes: Sizes,
    dense: DenseTest<'a>,
    buffers: Buffers,
}

impl CeilingTests for GpuCeilings<'_> {
    /// The better of the ways by which kernels read their weights: neither test is sure to reach what the
    /// memory can do.
    fn sample_read(&mut self, samples: &mut CeilingSamples) -> Result<()> {
        let stream = ReadStream { from: self.buffers.read, to: self.buffers.result };
        let mut launcher = self.target.backend.launcher();
        let has_bulk = launcher.facts().is_hopper();
        let paths = [Some(ReadPath::Registers), has_bulk.then_some(ReadPath::SharedMemory)];
        let mut best = 0.0_f64;
        for path in paths.into_iter().flatten() {
            let ns = launcher.elapsed_ns(|device| read_stream(device, &stream, path))?;
            best = best.max(stream.bytes(path) as f64 * 1e9 / positive(ns)?);
        }
        samples.read.push(best);
        Ok(())
    }

    fn sample_rest(&mut self, samples: &mut CeilingSamples) -> Result<()> {
        let clock = MonotonicClock::default();
        for _ in 0..DENSE_PER_ROUND {
            let ns = self.dense.time(&clock, 0, 1)?;
            samples.dense.push(self.sizes.dense_flops() * 1e9 / ns.max(1) as f64);
            if let Ok(cublas) = &self.target.cublas {
                samples.peer.push(self.cublas_rate(cublas)?);
            }
        }
        let mut launcher = self.target.backend.launcher();
        let to = self.buffers.result;
        samples.dispatch_ns.push(launcher.elapsed_ns(|device| clock_stamp(device, to))?);
        Ok(())
    }
}

impl GpuCeilings<'_> {
    fn cublas_rate(&self, cublas: &Cublas) -> Result<f64> {
        let n = self.sizes.square;
        let product = Product { m: n, n, k: n };
        let [a, b, c] = self.buffers.square;
        let mut launcher = self.target.backend.launcher();
        let ns = launcher.elapsed_ns(|_| cublas.gemm_bf16(product, a, b, c))?;
        Ok(product.flops() * 1e9 / positive(ns)?)
    }
}

impl Drop for GpuCeilings<'_> {
    fn drop(&mut self) {
        let mut launcher = self.target.backend.launcher();
        for region in self.buffers.all() {
            // What cannot be given back goes with the device.
            let _ = launcher.free(region);
        }
    }
}

fn positive(ns: f64) -> Result<f64> {
    if ns > 0.0 {
        return Ok(ns);
    }
    Err(Error::unfit("sample", "the device's clock did not advance during a launch"))
}
