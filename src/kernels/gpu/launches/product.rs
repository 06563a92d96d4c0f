//! Launching a grouped product: gathered rows times `w13` with SwiGLU, or h times `w2`.

use crate::gpu::params::{GemmParams, SplitGemmParams};
use crate::gpu::{DeviceAddress, Element, Launch, Launcher, ParamBytes, Region, TensorMap};
use crate::kernels::gpu::launches::Matrix;
use crate::kernels::gpu::{Family, Piece, Product, ProductKernel, WeightFormat, Workspace};
use crate::{Error, Result};

/// Edge of the blocks of 8-bit weights that share a scale.
const SCALE_BLOCK: u64 = 128;
/// Columns of activations in the box of a bulk copy: 64 bf16 are the 128 bytes of a swizzled row.
const BOX_COLUMNS: u32 = 64;
/// Rows of activations in the box of a bulk copy.
const BOX_ROWS: u32 = 64;

/// Scratch by which blocks share units of work that do not fill the device: each block writes sums
/// of a part of the depth, and the last to finish a unit adds them in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// `f32[2 * blocks, 256 * block_m]`.
    pub partials: Region,
    /// `u32[2 * blocks]`, zero between launches.
    pub tickets: Region,
}

impl Split {
    /// The pieces of a workspace that has them.
    pub fn of(workspace: &Workspace) -> Option<Self> {
        let (partials, tickets) =
            (workspace.piece(Piece::Partials).ok()?, workspace.piece(Piece::Tickets).ok()?);
        Some(Self { partials, tickets })
    }

    /// Whether it is enough for a grid.
    fn fits(&self, blocks: u32, block_m: u32) -> bool {
        let (blocks, block_m) = (u64::from(blocks), u64::from(block_m));
        self.partials.bytes >= split_bytes(blocks, block_m) && self.tickets.bytes >= 8 * blocks
    }
}

/// Bytes of the partial sums of `blocks` blocks.
pub(crate) const fn split_bytes(blocks: u64, block_m: u64) -> u64 {
    2 * blocks * 256 * block_m * 4
}

/// One grouped product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductLaunch {
    /// Kernel.
    pub kernel: &'static ProductKernel,
    /// Tokens.
    pub tokens: u32,
    /// Experts of the stack of weights.
    pub experts: u32,
    /// Slots per token.
    pub top_k: u32,
    /// Hidden size.
    pub hidden: u32,
    /// Inner size.
    pub inter: u32,
    /// `up`: x `[tokens, hidden]`; not read by the others.
    pub x: Option<Matrix>,
    /// `up`: `w13` `[experts, 2, inter, hidden]`; else `w2` `[experts, hidden, inter]`.
    pub weights: Region,
    /// Scales of 8-bit weights.
    pub scales: Option<Region>,
    /// Whether gate rows precede up rows in `w13`.
    pub gate_first: bool,
    /// `bf16[capacity_rows, inter]`: written by `up`, read by the others.
    pub h: Region,
    /// `down`: `bf16[capacity_rows, hidden]`.
    pub y: Option<Region>,
    /// `down_fast`: `f32[tokens, hidden]`, zero before, and the weights of the pairs.
    pub accumulate: Option<(Matrix, Region)>,
    /// The workspace's header.
    pub header: Region,
    /// Tile table.
    pub tiles: Region,
    /// Pair of each padded row.
    pub sorted_pairs: Region,
    /// Rows that h, y and the table of pairs hold.
    pub capacity_rows: u32,
    /// Tiles that the table holds.
    pub capacity_tiles: u32,
    /// Scratch for sharing units of work; read by swapped operands alone, which do without as well.
    pub split: Option<Split>,
    /// Whether it may start while the launch before it ends.
    pub overlaps: bool,
}

impl ProductLaunch {
    /// Columns and depth of the product.
    const fn sizes(&self) -> (u32, u32) {
        match self.kernel.product {
            Product::Up => (self.inter, self.hidden),
            Product::Down | Product::DownFast => (self.hidden, self.inter),
        }
    }

    /// Rows of weights per output column: gate and up, or one.
    const fn halves(&self) -> u64 {
        match self.kernel.product {
            Product::Up => 2,
            Product::Down | Product::DownFast => 1,
        }
    }

    /// Most tiles that there can be: every pair's, and one more for each expert that has rows.
    fn most_tiles(&self) -> u64 {
        let pairs = u64::from(self.tokens) * u64::from(self.top_k);
        let tiles = pairs / u64::from(self.kernel.block_m) + pairs.min(u64::from(self.experts));
        tiles.min(u64::from(self.capacity_tiles))
    }

    /// Blocks: as many as the device holds at a time, or as there is work for. Blocks that can share a
    /// unit of work are never too many.
    fn grid(&self, sm_count: u32) -> Result<u32> {
        let (columns, _) = self.sizes();
        let work = self.most_tiles() * u64::from(columns.div_ceil(self.kernel.columns));
        // Kernels number their units of work in 32 bits, sm_90 ones in 31.
        if i32::try_from(work).is_err() {
            return Err(Error::usage(
                self.kernel.name,
                format!("{work} tiles times blocks of columns exceed 31 bits"),
            ));
        }
        let resident = u64::from(sm_count) * u64::from(self.kernel.blocks_per_sm);
        let all = u32::try_from(resident).unwrap_or(u32::MAX).max(1);
        let shares = self.kernel.family == Family::SwapAb;
        if shares && self.split.is_some_and(|split| split.fits(all, self.kernel.block_m)) {
            return Ok(all);
        }
        Ok(u32::try_from(work.min(resident)).unwrap_or(u32::MAX).max(1))
    }

    fn params(&self) -> Result<GemmParams> {
        let (columns, depth) = self.sizes();
        let (rows, wide) = (u64::from(self.capacity_rows), u64::from(columns));
        let weights = self.weight_bytes();
        let b = self.weights.checked("weights", weights, 16)?;
        let matrix = |region: Region, what: &str, width: u32| {
            region.checked(what, rows.checked_mul(2 * u64::from(width)), 16)
        };
        let h = matrix(self.h, "h", self.inter)?;
        let missing = |what: &str| Error::usage(self.kernel.name, format!("needs {what}"));
        let (a, a_stride, out) = match self.kernel.product {
            Product::Up => {
                let x = self.x.ok_or_else(|| missing("x"))?;
                let size = (u64::from(self.tokens), u64::from(self.hidden));
                (x.checked("x", size, 2, 16)?, x.stride, h)
            }
            Product::Down => {
                let y = self.y.ok_or_else(|| missing("y"))?;
                (h, u64::from(depth), matrix(y, "y", self.hidden)?)
            }
            Product::DownFast => (h, u64::from(depth), DeviceAddress::NULL),
        };
        let (accumulate, accumulate_stride, topk_weights) = match self.accumulate {
            Some((sums, weights)) if self.kernel.product == Product::DownFast => {
                let pairs = u64::from(self.tokens) * u64::from(self.top_k);
                (
                    sums.checked("output", (u64::from(self.tokens), wide), 4, 16)?,
                    sums.stride,
                    weights.checked("topk_weights", Some(4 * pairs), 4)?,
                )
            }
            _ if self.kernel.product == Product::DownFast => return Err(missing("an output")),
            _ => (DeviceAddress::NULL, 0, DeviceAddress::NULL),
        };
        Ok(GemmParams {
            a,
            b,
            b_scale: self.scales()?,
            out,
            header: self.header.checked("header", Some(256), 16)?,
            tiles: self.tiles.checked("tiles", Some(16 * u64::from(self.capacity_tiles)), 16)?,
            sorted_pairs: self.sorted_pairs.checked("sorted_pairs", Some(4 * rows), 4)?,
            topk_weights,
            accumulate,
            a_stride,
            accumulate_stride,
            columns,
            depth,
            top_k: self.top_k,
            gate_first: u32::from(self.gate_first),
        })
    }

    fn weight_bytes(&self) -> Option<u64> {
        u64::from(self.experts)
            .checked_mul(self.halves())?
            .checked_mul(u64::from(self.hidden))?
            .checked_mul(u64::from(self.inter))?
            .checked_mul(self.kernel.weights.bytes())
    }

    fn scales(&self) -> Result<DeviceAddress> {
        match (self.kernel.weights, self.scales) {
            (WeightFormat::Bf16, _) => Ok(DeviceAddress::NULL),
            (WeightFormat::E4m3, None) => Err(Error::usage(self.kernel.name, "needs scales")),
            (WeightFormat::E4m3, Some(scales)) => {
                let blocks = |n: u32| u64::from(n).div_ceil(SCALE_BLOCK);
                let count = u64::from(self.experts)
                    * self.halves()
                    * blocks(self.hidden)
                    * blocks(self.inter);
                scales.checked("scales", Some(4 * count), 4)
            }
        }
    }

    /// The tensor maps that precede the parameters.
    fn maps(&self, params: &GemmParams) -> Result<Vec<TensorMap>> {
        let (up, down) = (self.kernel.product == Product::Up, self.kernel.product == Product::Down);
        if matches!(self.kernel.family, Family::Gemv | Family::Generic) {
            return Ok(Vec::new());
        }
        let mut maps = vec![self.weight_map(params.b)?];
        if self.kernel.family == Family::SwapAb {
            // Rows that meet 8-bit weights are gathered by the kernel.
            if !up && self.kernel.weights == WeightFormat::Bf16 {
                maps.push(self.row_map(params.a, self.inter, self.kernel.block_m)?);
            }
            return Ok(maps);
        }
        let h = if up { params.out } else { params.a };
        maps.push(self.row_map(h, self.inter, BOX_ROWS)?);
        if down {
            maps.push(self.row_map(params.out, self.hidden, BOX_ROWS)?);
        }
        Ok(maps)
    }

    /// The parameter struct of the kernel's family.
    fn param_bytes(&self, params: GemmParams, blocks: u32) -> ParamBytes {
        if self.kernel.family != Family::SwapAb {
            return ParamBytes::of(&params);
        }
        let split = self.split.filter(|split| split.fits(blocks, self.kernel.block_m));
        let address = |region: Option<Region>| region.map_or(DeviceAddress::NULL, |r| r.address);
        ParamBytes::of(&SplitGemmParams {
            gemm: params,
            partials: address(split.map(|s| s.partials)),
            tickets: address(split.map(|s| s.tickets)),
        })
    }

    /// The stack of weights as it lies: the expert is a coordinate, so routing changes no map.
    fn weight_map(&self, base: DeviceAddress) -> Result<TensorMap> {
        let (hidden, inter) = (u64::from(self.hidden), u64::from(self.inter));
        let experts = u64::from(self.experts);
        let rows = self.kernel.box_rows;
        // A box is as wide as a swizzled row: 128 bytes.
        let (element, wide) = match self.kernel.weights {
            WeightFormat::Bf16 => (Element::Bf16, BOX_COLUMNS),
            WeightFormat::E4m3 => (Element::U8, 128),
        };
        let dims: &[(u64, u64, u32)] = match self.kernel.product {
            Product::Up => &[
                (hidden, 1, wide),
                (inter, hidden, rows),
                (2, inter * hidden, 2),
                (experts, 2 * inter * hidden, 1),
            ],
            Product::Down | Product::DownFast => {
                &[(inter, 1, wide), (hidden, inter, rows), (experts, hidden * inter, 1)]
            }
        };
        TensorMap::swizzled(element, base, dims)
    }

    /// Padded rows of h or y.
    fn row_map(&self, base: DeviceAddress, width: u32, box_rows: u32) -> Result<TensorMap> {
        let width = u64::from(width);
        let rows = u64::from(self.capacity_rows);
        TensorMap::bf16(base, &[(width, 1, BOX_COLUMNS), (rows, width, box_rows)])
    }
}

/// Computes a grouped product of all tiles of the table. Nothing is launched for no tokens.
///
/// # Errors
/// [`Error::Usage`] for sizes or buffers that do not fit, else as [`Launcher::launch`].
pub fn product(launcher: &mut dyn Launcher, launch: &ProductLaunch) -> Result<()> {
    if launch.tokens == 0 {
        return Ok(());
    }
    let kernel = launch.kernel;
    if !kernel.family.runs_on(launcher.facts()) {
        return Err(Error::usage(kernel.name, "does not run on this device"));
    }
    let params = launch.params()?;
    let blocks = launch.grid(launcher.facts().sm_count)?;
    launcher.launch(&Launch {
        kernel: kernel.name,
        grid: [blocks, 1],
        threads: kernel.threads,
        shared_bytes: kernel.shared_bytes,
        maps: launch.maps(&params)?,
        params: launch.param_bytes(params, blocks),
        overlaps: launch.overlaps,
    })
}
