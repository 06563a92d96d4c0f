//! Launching align (`kernels/align.cu`): pairs to rows grouped by expert.

use crate::gpu::params::AlignParams;
use crate::gpu::{DeviceAddress, Launch, Launcher, ParamBytes, Region};
use crate::kernels::MAX_EXPERTS;
use crate::kernels::gpu::workspace::PAIRS_PER_BLOCK;
use crate::kernels::gpu::{Piece, Workspace};
use crate::{Error, Result};

/// Most pairs that one block aligns; more take three launches.
pub(crate) const SMALL_PAIRS: u32 = 4096;

/// What align reads, and where it puts its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlignBuffers {
    /// Expert of each pair, `i32[pairs]`.
    pub topk_ids: Region,
    /// `i32[experts]`.
    pub expert_count: Region,
    /// `i32[experts + 1]`.
    pub expert_offsets: Region,
    /// `i32[capacity_rows]`.
    pub sorted_pairs: Region,
    /// `i32[pairs]`.
    pub pair_rows: Region,
    /// `Tile[capacity_tiles]`.
    pub tiles: Region,
    /// `i32[blocks, experts]`, of the large case.
    pub block_counts: Region,
    /// The workspace's header.
    pub header: Region,
    /// Rows that fit.
    pub capacity_rows: u32,
    /// Tiles that fit.
    pub capacity_tiles: u32,
}

impl AlignBuffers {
    /// The pieces of a workspace.
    ///
    /// # Errors
    /// [`Error::Usage`] when it lacks one.
    pub fn of(workspace: &Workspace) -> Result<Self> {
        let piece = |piece| workspace.piece(piece);
        Ok(Self {
            topk_ids: piece(Piece::TopkIds)?,
            expert_count: piece(Piece::ExpertCount)?,
            expert_offsets: piece(Piece::ExpertOffsets)?,
            sorted_pairs: piece(Piece::SortedPairs)?,
            pair_rows: piece(Piece::PairRows)?,
            tiles: piece(Piece::Tiles)?,
            block_counts: piece(Piece::BlockCounts)?,
            header: piece(Piece::Header)?,
            capacity_rows: workspace.layout().capacity_rows,
            capacity_tiles: workspace.layout().capacity_tiles,
        })
    }

    /// The kernel's parameters, once every region is long enough.
    ///
    /// # Errors
    /// [`Error::Usage`] naming what does not fit.
    pub(crate) fn params(&self, pairs: u32, experts: u32, block_m: u32) -> Result<AlignParams> {
        if !(1..=MAX_EXPERTS).contains(&(experts as usize)) {
            return Err(Error::usage(
                "experts",
                format!("{experts} does not lie between 1 and {MAX_EXPERTS}"),
            ));
        }
        if !block_m.is_power_of_two() || block_m > 256 {
            return Err(Error::usage(
                "block_m",
                format!("{block_m} is no power of two from 1 to 256"),
            ));
        }
        let words = |region: Region, what: &str, count: u32| {
            region.checked(what, Some(4 * u64::from(count)), 4)
        };
        let (blocks, large) = (pairs.div_ceil(PAIRS_PER_BLOCK), pairs > SMALL_PAIRS);
        let block_counts = if large {
            self.block_counts.checked("block_counts", product(blocks, experts), 4)?
        } else {
            DeviceAddress::NULL
        };
        Ok(AlignParams {
            topk_ids: words(self.topk_ids, "topk_ids", pairs)?,
            expert_count: words(self.expert_count, "expert_count", experts)?,
            expert_offsets: words(self.expert_offsets, "expert_offsets", experts + 1)?,
            sorted_pairs: words(self.sorted_pairs, "sorted_pairs", self.capacity_rows)?,
            pair_rows: words(self.pair_rows, "pair_rows", pairs)?,
            tiles: self.tiles.checked("tiles", product(self.capacity_tiles, 4), 16)?,
            block_counts,
            header: self.header.checked("header", Some(256), 16)?,
            pairs,
            experts,
            block_m,
            capacity_rows: self.capacity_rows,
            capacity_tiles: self.capacity_tiles,
            pairs_per_block: PAIRS_PER_BLOCK,
        })
    }
}

/// Bytes of `a * b` words.
fn product(a: u32, b: u32) -> Option<u64> {
    u64::from(a).checked_mul(u64::from(b))?.checked_mul(4)
}

/// Groups `pairs` pairs by expert into segments padded to multiples of `block_m` rows. Nothing is
/// launched for no pairs.
///
/// # Errors
/// [`Error::Usage`] when a buffer is too short, else as [`Launcher::launch`].
pub fn align(
    launcher: &mut dyn Launcher,
    buffers: &AlignBuffers,
    (pairs, experts, block_m): (u32, u32, u32),
    overlaps: bool,
) -> Result<()> {
    if pairs == 0 {
        return Ok(());
    }
    let params = ParamBytes::of(&buffers.params(pairs, experts, block_m)?);
    let launch = |kernel, blocks, threads, shared_bytes| Launch {
        kernel,
        grid: [blocks, 1],
        threads,
        shared_bytes,
        maps: Vec::new(),
        params: params.clone(),
        overlaps,
    };
    if pairs <= SMALL_PAIRS {
        return launcher.launch(&launch("align_small", 1, 512, sorting_bytes(experts)));
    }
    let blocks = pairs.div_ceil(PAIRS_PER_BLOCK);
    launcher.launch(&launch("align_histogram", blocks, 512, 4 * experts + 16))?;
    launcher.launch(&launch("align_scan", 1, 1024, 4240))?;
    launcher.launch(&launch("align_scatter", blocks, 512, sorting_bytes(experts)))
}

/// Shared memory of a block that sorts: counters of each warp and expert.
const fn sorting_bytes(experts: u32) -> u32 {
    38 * experts + 144
}
