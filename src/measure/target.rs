//! The device that a run measures: what the key says of it, how long its samples must be, and its
//! ceilings.

#[cfg(feature = "candle")]
use super::ceilings::CandleTest;
use super::ceilings::{CANDLE_PRODUCT, CeilingSamples, DenseTest, ReadTest, Sizes, dispatch_ns};
use super::host;
use super::sampling::{BlockRule, CPU_WIDTH};
use super::timing::{Launch, MonotonicClock};
use crate::Result;
use crate::config::DType;
use crate::gpu::Condition;
use crate::kernels::{LayerWeights, MoeBackend};
use crate::record::{CpuDevice, Device, TimingMode};
use crate::units::whole_part;

/// Read buffer in multiples of the last-level cache, and its least size.
const READ_PER_CACHE: f64 = 4.0;
const READ_AT_LEAST: f64 = 512e6;
/// Dense products timed in each round.
const DENSE_PER_ROUND: usize = 3;
/// Cache assumed where the system does not tell.
const USUAL_CACHE: u64 = 32 << 20;

/// A device that can be measured.
pub trait Target {
    /// The device as the key of a profile names it.
    fn device(&self) -> Device;

    /// Last-level cache, which weights must exceed to come from memory.
    fn cache_bytes(&self) -> f64;

    /// Memory that weights can have.
    fn available_bytes(&self) -> f64;

    /// How cells can be timed, the usual way first.
    fn modes(&self) -> &'static [TimingMode];

    /// Half-width of the interval at which a cell closes as valid.
    fn width(&self) -> f64;

    /// The rule for blocks on this device.
    fn rule(&self, rule: BlockRule) -> BlockRule;

    /// Threads of the host that the kernels keep busy.
    fn host_threads(&self) -> usize;

    /// What was seen of clocks and throttling since the last call. The default has nothing to tell.
    fn condition(&self) -> Condition {
        Condition::default()
    }

    /// What a reader of the results should know of the device before it is measured.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Files of the driver's libraries that kernels run by. The default has none.
    fn libraries(&self) -> Vec<String> {
        Vec::new()
    }

    /// The dense product by somebody else: its name and number format.
    fn peer(&self) -> (&'static str, DType);

    /// Sizes of the ceiling tests.
    fn sizes(&self) -> Sizes;

    /// The ceiling tests; `dense` are the weights of [`Sizes::dense`].
    ///
    /// # Errors
    /// Whatever the device reports.
    fn ceilings<'a>(
        &'a self,
        backend: &'a dyn MoeBackend,
        dense: &'a [LayerWeights],
    ) -> Result<Box<dyn CeilingTests + 'a>>;
}

/// Ceiling tests, a sample at a time, so that they spread over the rounds of a run.
pub trait CeilingTests {
    /// One sample of read bandwidth.
    ///
    /// # Errors
    /// Whatever the device reports.
    fn sample_read(&mut self, samples: &mut CeilingSamples) -> Result<()>;

    /// One round's samples of everything else.
    ///
    /// # Errors
    /// Whatever the device reports.
    fn sample_rest(&mut self, samples: &mut CeilingSamples) -> Result<()>;
}

/// The host's processor.
#[derive(Clone, Debug)]
pub struct CpuTarget {
    pub(super) device: CpuDevice,
    pub(super) sizes: Sizes,
    pub(super) read_at_least: f64,
}

impl Default for CpuTarget {
    /// This machine's processor with the threads of the current pool.
    fn default() -> Self {
        let device = host::cpu(rayon::current_num_threads());
        Self { device, sizes: Sizes::USUAL, read_at_least: READ_AT_LEAST }
    }
}

impl Target for CpuTarget {
    fn device(&self) -> Device {
        Device::Cpu(self.device.clone())
    }

    fn cache_bytes(&self) -> f64 {
        self.device.l3_bytes.or(self.device.l2_bytes).unwrap_or(USUAL_CACHE) as f64
    }

    fn available_bytes(&self) -> f64 {
        host::memory().available_bytes as f64
    }

    fn modes(&self) -> &'static [TimingMode] {
        &[TimingMode::Cpu]
    }

    fn width(&self) -> f64 {
        CPU_WIDTH
    }

    fn rule(&self, rule: BlockRule) -> BlockRule {
        rule
    }

    fn host_threads(&self) -> usize {
        self.device.threads
    }

    fn peer(&self) -> (&'static str, DType) {
        (CANDLE_PRODUCT, DType::F32)
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn ceilings<'a>(
        &'a self,
        backend: &'a dyn MoeBackend,
        dense: &'a [LayerWeights],
    ) -> Result<Box<dyn CeilingTests + 'a>> {
        // At most an eighth of the memory: a ceiling must not push the machine into swapping.
        let most = self.device.memory_bytes as f64 / 8.0;
        let bytes = (READ_PER_CACHE * self.cache_bytes()).max(self.read_at_least).min(most);
        let mut tests = CpuCeilings {
            sizes: self.sizes,
            clock: MonotonicClock::default(),
            read: ReadTest::new(whole_part(bytes), self.sizes.read_bytes),
            dense: DenseTest::new(backend, dense, &self.sizes)?,
            #[cfg(feature = "candle")]
            candle: CandleTest::new(&self.sizes)?,
        };
        // Not counted: the first touch of code and pages.
        tests.read.launch(0)?;
        tests.dense.launch(0)?;
        #[cfg(feature = "candle")]
        tests.candle.launch(0)?;
        Ok(Box::new(tests))
    }
}

struct CpuCeilings<'a> {
    sizes: Sizes,
    clock: MonotonicClock,
    read: ReadTest,
    dense: DenseTest<'a>,
    #[cfg(feature = "candle")]
    candle: CandleTest,
}

impl CeilingTests for CpuCeilings<'_> {
    fn sample_read(&mut self, samples: &mut CeilingSamples) -> Result<()> {
        let bytes = self.read.bytes();
        samples.read.push(rate(&mut self.read, &self.clock, bytes)?);
        Ok(())
    }

    fn sample_rest(&mut self, samples: &mut CeilingSamples) -> Result<()> {
        let (clock, sizes) = (&self.clock, &self.sizes);
        for _ in 0..DENSE_PER_ROUND {
            samples.dense.push(rate(&mut self.dense, clock, sizes.dense_flops())?);
            #[cfg(feature = "candle")]
            samples.peer.push(rate(&mut self.candle, clock, sizes.square_flops())?);
        }
        samples.dispatch_ns.push(dispatch_ns(clock));
        Ok(())
    }
}

/// Work per second of one launch.
fn rate(launch: &mut dyn Launch, clock: &MonotonicClock, work: f64) -> Result<f64> {
    Ok(work * 1e9 / launch.time(clock, 0, 1)?.max(1) as f64)
}
