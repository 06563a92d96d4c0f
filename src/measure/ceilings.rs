//! What the processor reaches at best: read bandwidth over memory that no cache holds, the rate of a
//! large dense product, and the time to hand work to its threads.
//!
//! They are measured in the same rounds as the kernels, so that a share of a ceiling compares two
//! readings of one minute on one machine.

#[cfg(feature = "candle")]
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::data;
use super::sampling::whole;
use super::timing::{Clock, Launch, host_time};
use super::work::of_launch;
use crate::config::DType;
use crate::kernels::{LayerWeights, LoadedLayer, MoeBackend, MoeShape, RouterSpec, Stage};
use crate::record::RunCeilings;
use crate::stats::interval::median;
use crate::{Error, Result};

/// Words added side by side, so that neither the additions nor one memory stream is the limit.
const LANES: usize = 32;
/// Words of one piece of work: 256 KiB.
const PIECE: usize = 1 << 15;

/// Sizes of the ceiling tests.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of one sample of read bandwidth.
    pub read_bytes: usize,
    /// The dense product: one expert, so the same kernels as the cells without routing.
    pub dense: MoeShape,
    /// Its tokens.
    pub dense_tokens: usize,
    /// Rows, columns and length of candle's dense product.
    pub square: usize,
}

impl Sizes {
    /// Long against starting the threads, short against a minute; enough tokens that arithmetic, not
    /// weights, takes the time.
    pub const USUAL: Self = Self {
        read_bytes: 192 << 20,
        dense: MoeShape { experts: 1, top_k: 1, hidden: 1024, inter: 2816, gated: true },
        dense_tokens: 384,
        square: 1024,
    };

    /// FLOPs of one dense launch.
    pub fn dense_flops(&self) -> f64 {
        of_launch(&self.dense, self.dense_tokens, 1.0, 16.0).flops
    }

    /// FLOPs of one launch of candle's product.
    pub fn square_flops(&self) -> f64 {
        2.0 * (self.square as f64).powi(3)
    }

    /// Weights of the dense product.
    ///
    /// # Errors
    /// [`Error::Usage`] for a number format that is not executed.
    pub fn dense_weights(&self, dtype: DType, seed: u64) -> Result<Vec<LayerWeights>> {
        Ok(vec![data::weights(self.dense, dtype, seed)?])
    }
}

/// Memory that is read to find the bandwidth.
pub struct ReadTest {
    words: Vec<u64>,
    /// Words of one launch.
    length: usize,
    next: usize,
    sum: u64,
}

impl ReadTest {
    /// A buffer of `bytes` bytes, read from start to end in launches of `per_launch` bytes.
    pub fn new(bytes: usize, per_launch: usize) -> Self {
        let length = per_launch / 8;
        let pieces = (bytes / 8).max(length).div_ceil(PIECE);
        let mut words = vec![0_u64; pieces * PIECE];
        // Touched by the threads that read it; zero pages would all be one page.
        words.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| piece.fill(i as u64 | 1));
        Self { words, length, next: 0, sum: 0 }
    }

    /// Bytes of one launch.
    pub fn bytes(&self) -> f64 {
        self.length as f64 * 8.0
    }
}

impl Launch for ReadTest {
    fn launch(&mut self, _turn: usize) -> Result<()> {
        let length = self.length;
        if self.next + length > self.words.len() {
            self.next = 0;
        }
        let part = &self.words[self.next..self.next + length];
        self.next += length;
        let sum = part.par_chunks(PIECE).map(sum_words).reduce(|| 0, u64::wrapping_add);
        self.sum = self.sum.wrapping_add(std::hint::black_box(sum));
        Ok(())
    }
}

fn sum_words(piece: &[u64]) -> u64 {
    let (chunks, rest) = piece.as_chunks::<LANES>();
    let mut sums = [0_u64; LANES];
    for chunk in chunks {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |a, b| a.wrapping_add(*b))
}

/// The dense product, ready to run.
pub struct DenseTest<'a> {
    layer: Box<dyn LoadedLayer + 'a>,
}

impl<'a> DenseTest<'a> {
    /// Loads the product on a backend.
    ///
    /// # Errors
    /// Whatever the backend reports.
    pub fn new(
        backend: &'a dyn MoeBackend,
        weights: &'a [LayerWeights],
        sizes: &Sizes,
    ) -> Result<Self> {
        let tokens = sizes.dense_tokens;
        let mut layer = backend.load(weights, &RouterSpec::softmax(), tokens)?;
        layer.set_input(&data::normals(11, tokens * sizes.dense.hidden), &vec![0.0; tokens])?;
        for stage in [Stage::Router, Stage::Align] {
            layer.run(stage, 0)?;
        }
        Ok(Self { layer })
    }
}

impl Launch for DenseTest<'_> {
    fn launch(&mut self, _turn: usize) -> Result<()> {
        self.layer.run(Stage::GateUp, 0)?;
        self.layer.run(Stage::Down, 0)
    }

    fn time(&mut self, clock: &dyn Clock, first: usize, launches: u32) -> Result<u64> {
        let sets = vec![0; launches as usize];
        let up = self.layer.time(Stage::GateUp, &sets)?;
        match (up, self.layer.time(Stage::Down, &sets)?) {
            (Some(up), Some(down)) => Ok(up + down),
            _ => host_time(self, clock, first, launches),
        }
    }
}

/// The name that a profile gives candle's dense product.
pub const CANDLE_PRODUCT: &str = "candle_matmul_f32";

/// A dense f32 product by candle: where it is faster than our kernels, it is the ceiling.
#[cfg(feature = "candle")]
pub struct CandleTest {
    a: Tensor,
    b: Tensor,
}

#[cfg(feature = "candle")]
impl CandleTest {
    /// Square matrices of normals.
    ///
    /// # Errors
    /// [`Error::Device`] when candle cannot make them.
    pub fn new(sizes: &Sizes) -> Result<Self> {
        let n = sizes.square;
        let matrix = |seed| {
            let values = data::normals(seed, n * n);
            Tensor::from_vec(values, (n, n), &Device::Cpu).map_err(|e| failed(&e))
        };
        Ok(Self { a: matrix(1)?, b: matrix(2)? })
    }
}

#[cfg(feature = "candle")]
impl Launch for CandleTest {
    fn launch(&mut self, _turn: usize) -> Result<()> {
        std::hint::black_box(self.a.matmul(&self.b).map_err(|e| failed(&e))?);
        Ok(())
    }
}

#[cfg(feature = "candle")]
fn failed(error: &candle_core::Error) -> Error {
    Error::device("cpu", format!("candle's dense product failed: {error}"))
}

/// Nanoseconds to hand an empty task to every thread and wait for all of them: the median of a few.
pub fn dispatch_ns(clock: &dyn Clock) -> f64 {
    let times: Vec<f64> = (0..200)
        .map(|_| {
            let before = clock.now_ns();
            rayon::broadcast(|_| std::hint::black_box(()));
            clock.now_ns().saturating_sub(before) as f64
        })
        .collect();
    median(&times).unwrap_or(0.0)
}

/// Samples of every ceiling over a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CeilingSamples {
    /// Bytes per second of each read.
    pub read: Vec<f64>,
    /// FLOP/s of each dense product by our kernels.
    pub dense: Vec<f64>,
    /// FLOP/s of each dense product by somebody else: candle, cuBLAS.
    pub peer: Vec<f64>,
    /// Nanoseconds of each dispatch.
    pub dispatch_ns: Vec<f64>,
}

impl CeilingSamples {
    /// Adds the samples of another part of the run.
    pub fn add(&mut self, other: Self) {
        self.read.extend(other.read);
        self.dense.extend(other.dense);
        self.peer.extend(other.peer);
        self.dispatch_ns.extend(other.dispatch_ns);
    }

    /// The ceilings that these samples amount to. Our dense product runs on `dtype` by `kernel`, the
    /// other, if there is one, on what `peer` names.
    ///
    /// # Errors
    /// [`Error::Unfit`] when a rate has no sample.
    pub fn record(
        &self,
        (kernel, dtype): (&str, DType),
        (peer_name, peer_dtype): (&str, DType),
    ) -> Result<RunCeilings> {
        let rate = |samples: &[f64]| {
            let usual = median(samples)
                .ok_or_else(|| Error::unfit("ceilings", "a rate was never measured"))?;
            Ok::<_, Error>((usual, samples.iter().copied().fold(usual, f64::max)))
        };
        let (read, read_best) = rate(&self.read)?;
        let dense = rate(&self.dense)?;
        let peer = if self.peer.is_empty() { (0.0, 0.0) } else { rate(&self.peer)? };
        let ours = dense.0 >= peer.0;
        let gemm = if ours { dense } else { peer };
        Ok(RunCeilings {
            read_bytes_per_s: read,
            read_best_bytes_per_s: read_best,
            gemm_flops_per_s: gemm.0,
            gemm_best_flops_per_s: dense.1.max(peer.1),
            gemm_dtype: if ours { dtype } else { peer_dtype },
            gemm_kernel: if ours { kernel } else { peer_name }.to_owned(),
            dispatch_ps: whole(median(&self.dispatch_ns).unwrap_or(0.0) * 1000.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::timing::MonotonicClock;
    use super::*;
    use crate::kernels::cpu::CpuBackend;

    #[test]
    fn every_word_is_read_once() {
        let words: Vec<u64> = (0..100_u64).collect();
        assert_eq!(sum_words(&words), 4950);
        let mut test = ReadTest::new(3 << 19, 1 << 20);
        assert!((test.bytes() - f64::from(1 << 20)).abs() < 1e-9);
        test.launch(0).unwrap();
        let expected: u64 = test.words[..(1 << 20) / 8].iter().sum();
        assert_eq!(test.sum, expected);
        test.launch(1).unwrap();
        assert_eq!(test.sum, 2 * expected, "the buffer starts again before its end is passed");
    }

    #[test]
    fn the_dense_products_run() {
        let sizes = Sizes {
            dense: MoeShape { hidden: 64, inter: 96, ..Sizes::USUAL.dense },
            dense_tokens: 8,
            square: 32,
            ..Sizes::USUAL
        };
        let backend = CpuBackend::new();
        let weights = sizes.dense_weights(DType::Bf16, 1).unwrap();
        DenseTest::new(&backend, &weights, &sizes).unwrap().launch(0).unwrap();
        #[cfg(feature = "candle")]
        CandleTest::new(&sizes).unwrap().launch(0).unwrap();
        assert!((sizes.dense_flops() - 2.0 * 3.0 * 64.0 * 96.0 * 8.0).abs() < 1e-6);
        assert!(dispatch_ns(&MonotonicClock::default()) > 0.0);
    }

    #[test]
    fn the_faster_product_is_the_ceiling() {
        let samples = CeilingSamples {
            read: vec![1e9, 3e9, 2e9],
            dense: vec![5.0, 6.0, 7.0],
            peer: vec![8.0, 1.0, 2.0],
            dispatch_ns: vec![1000.0],
        };
        let (ours, peer) = (("ours", DType::Bf16), (CANDLE_PRODUCT, DType::F32));
        let record = samples.record(ours, peer).unwrap();
        assert_eq!((record.read_bytes_per_s, record.read_best_bytes_per_s), (2e9, 3e9));
        assert_eq!((record.gemm_flops_per_s, record.gemm_best_flops_per_s), (6.0, 8.0));
        assert_eq!((record.gemm_kernel.as_str(), record.dispatch_ps), ("ours", 1_000_000));
        let slow = CeilingSamples { dense: vec![1.0], ..samples };
        let record = slow.record(ours, peer).unwrap();
        assert_eq!(record.gemm_kernel, CANDLE_PRODUCT);
        assert_eq!(CeilingSamples::default().record(ours, peer).unwrap_err().exit_code(), 4);
    }
}
