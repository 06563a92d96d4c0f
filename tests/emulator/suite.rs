//! What all stages share: runs of the driver, batches of cases in one run, data, comparison.

use std::path::{Path, PathBuf};

use half::bf16;
use moe_frontier::gpu::{Capsule, CapsuleOptions, Delivery, DeviceFacts, Launcher, Region};
use moe_frontier::kernels::gpu::Matrix;
use moe_frontier::kernels::reference::Exact;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::board::Board;
use crate::driver::{self, Build};

/// What a check says: nothing, or what is wrong.
pub(crate) type Outcome = Result<(), String>;

/// A Hopper device of few multiprocessors, so that grids stay small and blocks take several tiles.
pub(crate) const DEVICE: DeviceFacts = DeviceFacts { sm_count: 2, ..DeviceFacts::H100 };

/// Bit patterns that fresh memory holds in turn: NaN, infinities, and 1e4, in both formats at once.
pub(crate) const POISONS: [u32; 4] = [0x7fff_7fff, 0x7f80_7f80, 0xff80_ff80, 0x461c_461c];

/// What runs the kernels.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// The emulator's driver.
    Emulator { driver: PathBuf, build: Build, delivery: Delivery },
    /// The first GPU of this machine.
    Gpu,
}

/// One way to run the kernels.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) place: Place,
    pub(crate) seed: u64,
}

impl Run {
    /// Every delivery mode with `seeds` seeds; `EMU_SEEDS` in the environment replaces their number.
    pub(crate) fn all(driver: &Path, build: Build, seeds: u64) -> Vec<Self> {
        let asked = std::env::var("EMU_SEEDS").ok().and_then(|n| n.parse().ok());
        let seeds = 1..=asked.unwrap_or(seeds);
        let run = |delivery, seed| {
            let place = Place::Emulator { driver: driver.to_owned(), build, delivery };
            Self { place, seed }
        };
        seeds.flat_map(|seed| Delivery::ALL.map(|delivery| run(delivery, seed))).collect()
    }

    pub(crate) const fn is_on_gpu(&self) -> bool {
        matches!(self.place, Place::Gpu)
    }

    pub(crate) fn label(&self) -> String {
        match &self.place {
            Place::Emulator { build, delivery, .. } => {
                format!(
                    "{} build, {} delivery, seed {}",
                    build.label(),
                    delivery.label(),
                    self.seed
                )
            }
            Place::Gpu => format!("GPU, seed {}", self.seed),
        }
    }

    pub(crate) fn poison(&self) -> u32 {
        POISONS[usize::try_from(self.seed).unwrap() % POISONS.len()]
    }

    /// The emulator as this run drives it, with a device of these facts.
    pub(crate) fn capsule(&self, facts: DeviceFacts) -> moe_frontier::Result<Capsule> {
        let Place::Emulator { driver, delivery, .. } = &self.place else {
            return Err(moe_frontier::Error::usage("place", "this run is on a GPU"));
        };
        let kept = driver::folder().join(format!("failed-{}.capsule", std::process::id()));
        let options = CapsuleOptions {
            delivery: *delivery,
            seed: self.seed,
            poison: self.poison(),
            // The race detector sees more of blocks that are alive together.
            live_blocks: u32::from(!self.seed.is_multiple_of(2)),
            keep: Some(kept),
            ..CapsuleOptions::new(driver)
        };
        Capsule::new(facts, options)
    }

    pub(crate) fn board(&self) -> Board {
        self.board_of(DEVICE)
    }

    /// A board whose emulated device is another than the usual one.
    pub(crate) fn board_of(&self, facts: DeviceFacts) -> Board {
        Board::new(self, facts).unwrap()
    }
}

type Check = Box<dyn FnOnce(&mut Board) -> Outcome>;

/// Cases whose launches share one run of the driver; their results are checked at its end.
pub(crate) struct Batch {
    pub(crate) board: Board,
    pub(crate) poison: u32,
    label: String,
    checks: Vec<(String, Check)>,
}

impl Batch {
    pub(crate) fn new(run: &Run) -> Self {
        Self::on(run, DEVICE)
    }

    /// Cases on another device than the usual one.
    pub(crate) fn on(run: &Run, facts: DeviceFacts) -> Self {
        let (board, poison) = (run.board_of(facts), run.poison());
        Self { board, poison, label: run.label(), checks: Vec::new() }
    }

    pub(crate) fn check(
        &mut self,
        name: String,
        check: impl FnOnce(&mut Board) -> Outcome + 'static,
    ) {
        self.checks.push((name, Box::new(check)));
    }

    /// Runs everything and checks every case.
    pub(crate) fn finish(mut self) -> Outcome {
        let cases: Vec<String> = self.checks.iter().map(|(name, _)| name.clone()).collect();
        self.board
            .synchronize()
            .map_err(|e| format!("{} [{}]: {e}", cases.join("; "), self.label))?;
        for (name, check) in self.checks {
            check(&mut self.board).map_err(|e| format!("{name} [{}]: {e}", self.label))?;
        }
        Ok(())
    }
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

pub(crate) fn normal(rng: &mut ChaCha8Rng, scale: f32) -> bf16 {
    bf16::from_f32(rng.sample::<f32, _>(StandardNormal) * scale)
}

pub(crate) fn small_integer(rng: &mut ChaCha8Rng) -> bf16 {
    bf16::from_f32(f32::from(rng.random_range(-4i8..=4)))
}

pub(crate) fn bytes_bf16(values: &[bf16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_bits().to_ne_bytes()).collect()
}

pub(crate) fn bytes_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub(crate) fn bytes_i32(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

fn words(board: &mut Board, region: Region) -> Result<Vec<u32>, String> {
    let mut bytes = vec![0; usize::try_from(region.bytes).unwrap()];
    board.download(region, &mut bytes).map_err(|e| e.to_string())?;
    Ok(moe_frontier::gpu::params::words(&bytes).collect())
}

pub(crate) fn read_i32(board: &mut Board, region: Region) -> Result<Vec<i32>, String> {
    Ok(words(board, region)?.into_iter().map(u32::cast_signed).collect())
}

pub(crate) fn read_f32(board: &mut Board, region: Region) -> Result<Vec<f32>, String> {
    Ok(words(board, region)?.into_iter().map(f32::from_bits).collect())
}

pub(crate) fn read_bf16(board: &mut Board, region: Region) -> Result<Vec<bf16>, String> {
    let mut bytes = vec![0; usize::try_from(region.bytes).unwrap()];
    board.download(region, &mut bytes).map_err(|e| e.to_string())?;
    let pairs = bytes.chunks_exact(2);
    Ok(pairs.map(|b| bf16::from_bits(u16::from_ne_bytes([b[0], b[1]]))).collect())
}

/// A buffer with these bytes that kernels may not change; never empty.
pub(crate) fn input(board: &mut Board, bytes: &[u8]) -> Region {
    let bytes = if bytes.is_empty() { &[0; 16] } else { bytes };
    let region = board.store(bytes).unwrap();
    board.protect(region).unwrap();
    region
}

/// Rows of `width` elements of `size` bytes as a view: behind an offset, with gaps between them.
pub(crate) fn input_view(board: &mut Board, bytes: &[u8], width: usize, size: usize) -> Matrix {
    let (offset, stride) = (8 * size, (width + 8) * size);
    let rows = bytes.len() / (width * size);
    let region = board.allocate((offset + rows * stride) as u64).unwrap();
    for (i, row) in bytes.chunks_exact(width * size).enumerate() {
        let start = (offset + i * stride) as u64;
        board.upload(region.part(start, row.len() as u64).unwrap(), row).unwrap();
    }
    board.protect(region).unwrap();
    let region = region.part(offset as u64, region.bytes - offset as u64).unwrap();
    Matrix { region, stride: (width + 8) as u64 }
}

/// Whether a value is the exact one within its bound. NaN is never.
pub(crate) fn within(got: f64, exact: &Exact) -> bool {
    (got - exact.value).abs() <= exact.bound
}

/// What memory holds that nobody wrote.
pub(crate) fn is_untouched(value: bf16, poison: u32) -> bool {
    u32::from(value.to_bits()) == poison & 0xffff
}
