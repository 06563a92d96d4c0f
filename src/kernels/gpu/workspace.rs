//! The memory that a layer needs besides weights, input and output: made once, for the most tokens.
//!
//! Nothing in it is assumed to be zero but the header and the tickets, which are cleared once at
//! creation: kernels put their counters back themselves.

use crate::gpu::params::WorkspaceHeader;
use crate::gpu::{DeviceFacts, Launcher, Region};
use crate::kernels::MoeShape;
use crate::kernels::gpu::launches::split_bytes;
use crate::kernels::gpu::{Combine, Family, MoeOptions, PRODUCTS, options};
use crate::{Error, Result};

/// Pairs that each block of align's histogram and scatter takes: 128 blocks at 131,072 pairs.
pub(crate) const PAIRS_PER_BLOCK: u32 = 1024;
/// Most rows of a tile of the kernels whose blocks share work.
const SPLIT_BLOCK_M: u32 = 64;
/// What every piece starts at a multiple of. Bulk copies want 1024 bytes in shared memory alone; in
/// device memory this is a whole number of cache lines and of their sectors' pairs.
const ALIGN: u64 = 256;

/// A part of the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Piece {
    /// Counts, status bits and tickets.
    Header,
    /// Chosen experts, `i32[pairs]`.
    TopkIds,
    /// Their weights, `f32[pairs]`.
    TopkWeights,
    /// Rows of each expert, `i32[experts]`.
    ExpertCount,
    /// First padded row of each expert, `i32[experts + 1]`.
    ExpertOffsets,
    /// Pair of each padded row, `i32[rows]`.
    SortedPairs,
    /// Padded row of each pair, `i32[pairs]`.
    PairRows,
    /// Tile table.
    Tiles,
    /// Align's scratch, `i32[blocks, experts]`.
    BlockCounts,
    /// Activated values, `bf16[rows, inter]`.
    H,
    /// Results of the second product, `bf16[rows, hidden]`; absent in fast mode.
    Y,
    /// Partial sums of blocks that share work; absent where no kernel has use for them.
    Partials,
    /// Tickets of the same, zero between launches.
    Tickets,
}

impl Piece {
    /// Every piece in the order in which they lie.
    pub const ALL: [Self; 13] = [
        Self::Header,
        Self::TopkIds,
        Self::TopkWeights,
        Self::ExpertCount,
        Self::ExpertOffsets,
        Self::SortedPairs,
        Self::PairRows,
        Self::Tiles,
        Self::BlockCounts,
        Self::H,
        Self::Y,
        Self::Partials,
        Self::Tickets,
    ];
}

/// How large each piece is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceLayout {
    /// Most tokens of one pass.
    pub max_tokens: u32,
    /// Padded rows that fit.
    pub capacity_rows: u32,
    /// Entries of the tile table that fit.
    pub capacity_tiles: u32,
    /// Size of each piece, in the order of [`Piece::ALL`]; 0: absent.
    pub sizes: [u64; Piece::ALL.len()],
    /// Bytes of all pieces, each at a multiple of 256.
    pub bytes: u64,
}

impl WorkspaceLayout {
    /// The layout for `max_tokens` tokens and tiles of up to `block_m` rows.
    ///
    /// With P pairs at most `A = min(experts, P)` experts have rows, each padded by at most
    /// `block_m - 1`: `P + A (block_m - 1)` rows. A batch that plans smaller tiles has more of them:
    /// at most `P / m + A` with the smallest tile m of all kernels.
    ///
    /// # Errors
    /// [`Error::Usage`] when rows exceed 31 bits.
    pub(crate) fn new(
        shape: &MoeShape,
        max_tokens: u32,
        block_m: u32,
        device: &DeviceFacts,
        opt: &MoeOptions,
    ) -> Result<Self> {
        let pairs = u64::from(options::pairs(shape, max_tokens)?);
        let experts = shape.experts as u64;
        let active = experts.min(pairs);
        let rows = pairs + active * u64::from(block_m - 1);
        let smallest = PRODUCTS.iter().map(|k| k.block_m).min().unwrap_or(1);
        let tiles = pairs / u64::from(smallest) + active;
        let too_many = || Error::usage("tokens", format!("{rows} padded rows exceed 31 bits"));
        let signed = |n: u64| i32::try_from(n).map(i32::unsigned_abs).map_err(|_| too_many());
        let (capacity_rows, capacity_tiles) = (signed(rows)?, signed(tiles)?);
        let splits = Family::SwapAb.runs_on(device);
        let blocks = if splits { u64::from(device.sm_count) } else { 0 };
        let matrix = |width: usize| rows.checked_mul(2 * width as u64).ok_or_else(too_many);
        let sizes = [
            size_of::<WorkspaceHeader>() as u64,
            4 * pairs,
            4 * pairs,
            4 * experts,
            4 * (experts + 1),
            4 * rows,
            4 * pairs,
            16 * tiles,
            4 * experts * pairs.div_ceil(u64::from(PAIRS_PER_BLOCK)),
            matrix(shape.inter)?,
            if opt.combine == Combine::Fast { 0 } else { matrix(shape.hidden)? },
            split_bytes(blocks, u64::from(block_m.min(SPLIT_BLOCK_M))),
            8 * blocks,
        ];
        let padded = |&size: &u64| size.checked_next_multiple_of(ALIGN);
        let bytes = sizes.iter().try_fold(0_u64, |sum, size| sum.checked_add(padded(size)?));
        let bytes = bytes.ok_or_else(too_many)?;
        Ok(Self { max_tokens, capacity_rows, capacity_tiles, sizes, bytes })
    }

    /// Size of a piece in bytes.
    pub const fn size(&self, piece: Piece) -> u64 {
        self.sizes[piece as usize]
    }
}

/// A workspace on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    layout: WorkspaceLayout,
    pieces: [Option<Region>; Piece::ALL.len()],
    /// What was allocated, to be given back.
    allocated: Vec<Region>,
}

impl Workspace {
    /// Allocates the workspace as one region.
    ///
    /// # Errors
    /// As [`Launcher::allocate`].
    pub fn new(launcher: &mut dyn Launcher, layout: WorkspaceLayout) -> Result<Self> {
        let whole = launcher.allocate(layout.bytes)?;
        let mut pieces = [None; Piece::ALL.len()];
        let mut offset = 0;
        for (piece, &size) in pieces.iter_mut().zip(&layout.sizes) {
            if size > 0 {
                *piece = Some(whole.part(offset, size)?);
            }
            offset += size.next_multiple_of(ALIGN);
        }
        Self { layout, pieces, allocated: vec![whole] }.cleared(launcher)
    }

    /// Allocates each piece on its own, so that the emulator sees every access past the end of one.
    ///
    /// # Errors
    /// As [`Launcher::allocate`].
    pub fn in_pieces(launcher: &mut dyn Launcher, layout: WorkspaceLayout) -> Result<Self> {
        let mut pieces = [None; Piece::ALL.len()];
        for (piece, &size) in pieces.iter_mut().zip(&layout.sizes) {
            if size > 0 {
                *piece = Some(launcher.allocate(size)?);
            }
        }
        let allocated = pieces.iter().flatten().copied().collect();
        Self { layout, pieces, allocated }.cleared(launcher)
    }

    fn cleared(self, launcher: &mut dyn Launcher) -> Result<Self> {
        launcher.fill(self.piece(Piece::Header)?, 0)?;
        if let Ok(tickets) = self.piece(Piece::Tickets) {
            launcher.fill(tickets, 0)?;
        }
        Ok(self)
    }

    /// Its sizes.
    pub const fn layout(&self) -> &WorkspaceLayout {
        &self.layout
    }

    /// Where a piece lies.
    ///
    /// # Errors
    /// [`Error::Usage`] for a piece that the layout does without.
    pub fn piece(&self, piece: Piece) -> Result<Region> {
        self.pieces[piece as usize].ok_or_else(|| {
            Error::usage("workspace", format!("has no {piece:?}: it was made for other settings"))
        })
    }

    /// Reads the header: counts and status bits of the launches so far.
    ///
    /// # Errors
    /// As [`Launcher::download`].
    pub fn header(&self, launcher: &mut dyn Launcher) -> Result<WorkspaceHeader> {
        let mut bytes = [0; size_of::<WorkspaceHeader>()];
        launcher.download(self.piece(Piece::Header)?, &mut bytes)?;
        Ok(WorkspaceHeader::from_bytes(&bytes))
    }

    /// Gives its memory back.
    ///
    /// # Errors
    /// As [`Launcher::free`].
    pub fn free(self, launcher: &mut dyn Launcher) -> Result<()> {
        self.allocated.into_iter().try_for_each(|region| launcher.free(region))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A100: DeviceFacts = DeviceFacts::A100;
    const SHAPE: MoeShape =
        MoeShape { experts: 128, top_k: 8, hidden: 2048, inter: 768, gated: true };

    fn layout(tokens: u32, block_m: u32) -> WorkspaceLayout {
        WorkspaceLayout::new(&SHAPE, tokens, block_m, &A100, &MoeOptions::default()).unwrap()
    }

    #[test]
    fn sizes_of_a_large_prefill_are_those_of_the_formula() {
        let large = layout(16_384, 128);
        assert_eq!(large.capacity_rows, 131_072 + 128 * 127);
        assert_eq!(large.size(Piece::H), u64::from(large.capacity_rows) * 768 * 2);
        assert_eq!(large.size(Piece::Y) >> 20, 575);
        assert_eq!(large.size(Piece::BlockCounts), 128 * 128 * 4);
    }

    #[test]
    fn few_pairs_pad_few_experts() {
        assert_eq!(layout(1, 64).capacity_rows, 8 + 8 * 63);
        assert_eq!(layout(0, 64).capacity_rows, 0);
        assert!(layout(0, 64).bytes > 0);
    }

    #[test]
    fn fast_mode_needs_no_rows_of_the_second_product() {
        let opt = MoeOptions { combine: Combine::Fast, ..MoeOptions::default() };
        let fast = WorkspaceLayout::new(&SHAPE, 64, 64, &A100, &opt).unwrap();
        assert_eq!(fast.size(Piece::Y), 0);
    }

    #[test]
    fn pairs_beyond_what_kernels_number_are_refused() {
        let opt = MoeOptions::default();
        let many = WorkspaceLayout::new(&SHAPE, 1 << 28, 256, &A100, &opt).unwrap_err();
        assert_eq!(many.exit_code(), 2);
    }
}
