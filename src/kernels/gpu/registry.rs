//! Every kernel by name, with what its launch needs to know: the launch contract at the head of its
//! `.cu` file, as data.

use crate::gpu::DeviceFacts;
use crate::kernels::gpu::{LogitFormat, WeightFormat};

/// Which product of the layer a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// Gathered rows of x times `w13`, then SwiGLU.
    Up,
    /// h times `w2`.
    Down,
    /// h times `w2`, weighted and added to the output in no fixed order.
    DownFast,
}

/// How a kernel computes its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Row by row without tensor cores, for a few rows per expert.
    Gemv,
    /// `mma.sync` on any device since compute capability 8.0.
    Generic,
    /// TMA and wgmma with rows as the M operand.
    Sm90,
    /// TMA and wgmma with weights as the M operand and rows as N, for few rows per expert.
    SwapAb,
}

impl Family {
    /// Whether the kernels run on a device.
    pub const fn runs_on(self, device: &DeviceFacts) -> bool {
        match self {
            Self::Gemv | Self::Generic => device.compute_capability.0 >= 8,
            Self::Sm90 | Self::SwapAb => device.is_hopper(),
        }
    }

    /// Words for a plan's reason.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Gemv => "matrix-vector products",
            Self::Generic => "generic tensor-core tiles",
            Self::Sm90 => "Hopper tiles",
            Self::SwapAb => "Hopper tiles with weights as the M operand",
        }
    }
}

/// One kernel of a grouped product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductKernel {
    /// Entry point.
    pub name: &'static str,
    /// What it computes.
    pub product: Product,
    /// How.
    pub family: Family,
    /// Weights that it reads.
    pub weights: WeightFormat,
    /// Rows of a tile of the tile table: exactly this value.
    pub block_m: u32,
    /// Threads a block.
    pub threads: u32,
    /// Dynamic shared memory a block.
    pub shared_bytes: u32,
    /// Blocks to launch for each multiprocessor.
    pub blocks_per_sm: u32,
    /// Output columns that a block computes at a time.
    pub columns: u32,
    /// Rows of weights in the box of a bulk copy, of each half for `up`; 0 without tensor maps.
    pub box_rows: u32,
}

impl ProductKernel {
    /// Whether equal inputs give equal bits.
    pub const fn is_deterministic(&self) -> bool {
        !matches!(self.product, Product::DownFast)
    }
}

use Product::{Down, DownFast, Up};
use WeightFormat::{Bf16, E4m3};

const fn generic(
    product: Product,
    name: &'static str,
    block_m: u32,
    threads: u32,
    (shared_bytes, blocks_per_sm): (u32, u32),
    columns: u32,
) -> ProductKernel {
    ProductKernel {
        name,
        product,
        family: Family::Generic,
        weights: Bf16,
        block_m,
        threads,
        shared_bytes,
        blocks_per_sm,
        columns,
        box_rows: 0,
    }
}

const fn generic_w8(
    product: Product,
    name: &'static str,
    block_m: u32,
    launch: (u32, u32),
) -> ProductKernel {
    let columns = if matches!(product, Up) { 64 } else { 128 };
    let kernel = generic(product, name, block_m, 128, launch, columns);
    ProductKernel { weights: E4m3, ..kernel }
}

const fn gemv(
    product: Product,
    name: &'static str,
    weights: WeightFormat,
    blocks_per_sm: u32,
    columns: u32,
) -> ProductKernel {
    ProductKernel {
        name,
        product,
        family: Family::Gemv,
        weights,
        block_m: 4,
        threads: 128,
        shared_bytes: 0,
        blocks_per_sm,
        columns,
        box_rows: 0,
    }
}

const fn sm90(
    product: Product,
    name: &'static str,
    block_m: u32,
    columns: u32,
    box_rows: u32,
    shared_bytes: u32,
) -> ProductKernel {
    ProductKernel {
        name,
        product,
        family: Family::Sm90,
        weights: Bf16,
        block_m,
        threads: 384,
        shared_bytes,
        blocks_per_sm: 1,
        columns,
        box_rows,
    }
}

const fn swap_ab(
    product: Product,
    weights: WeightFormat,
    name: &'static str,
    block_m: u32,
    (threads, stages): (u32, u32),
) -> ProductKernel {
    // Tiles of tokens in a stage: one for each 128 bytes of bf16 that its depth of weights meets.
    let tiles = match (product, weights) {
        (Up, Bf16) => 1,
        (Up, E4m3) | (_, Bf16) => 2,
        (_, E4m3) => 4,
    };
    let stage = 32 * 1024 + 128 * block_m * tiles;
    ProductKernel {
        name,
        product,
        family: Family::SwapAb,
        weights,
        block_m,
        threads,
        // Alignment, ring, staging of the results, two barriers a stage, two tickets.
        shared_bytes: 1024 + stages * stage + 256 * block_m + 16 * stages + 8,
        blocks_per_sm: 1,
        columns: 128,
        box_rows: 128,
    }
}

/// Every kernel of a grouped product. Where several fit a plan, the first is taken.
pub const PRODUCTS: &[ProductKernel] = &[
    gemv(Up, "gemv_bf16_up", Bf16, 5, 4),
    gemv(Down, "gemv_bf16_down", Bf16, 5, 8),
    gemv(Up, "gemv_w8_up", E4m3, 4, 4),
    gemv(Down, "gemv_w8_down", E4m3, 4, 8),
    generic(Up, "grouped_gemm_bf16_up_m16", 16, 128, (73_984, 3), 64),
    generic(Up, "grouped_gemm_bf16_up_m32", 32, 128, (82_176, 2), 64),
    generic(Up, "grouped_gemm_bf16_up_m64", 64, 128, (73_984, 3), 64),
    generic(Up, "grouped_gemm_bf16_up_m128", 128, 256, (98_560, 1), 128),
    generic(Down, "grouped_gemm_bf16_down_m16", 16, 128, (73_984, 3), 128),
    generic(Down, "grouped_gemm_bf16_down_m32", 32, 128, (82_176, 2), 128),
    generic(Down, "grouped_gemm_bf16_down_m64", 64, 128, (73_984, 3), 128),
    generic(Down, "grouped_gemm_bf16_down_m128", 128, 256, (98_560, 1), 256),
    generic(DownFast, "grouped_gemm_bf16_down_fast_m16", 16, 128, (73_984, 3), 128),
    generic(DownFast, "grouped_gemm_bf16_down_fast_m32", 32, 128, (82_176, 2), 128),
    generic(DownFast, "grouped_gemm_bf16_down_fast_m64", 64, 128, (73_984, 3), 128),
    generic(DownFast, "grouped_gemm_bf16_down_fast_m128", 128, 256, (98_560, 1), 256),
    generic_w8(Up, "grouped_gemm_w8_up_m16", 16, (61_696, 3)),
    generic_w8(Up, "grouped_gemm_w8_up_m32", 32, (98_560, 2)),
    generic_w8(Up, "grouped_gemm_w8_up_m64", 64, (98_560, 2)),
    generic_w8(Down, "grouped_gemm_w8_down_m16", 16, (61_696, 3)),
    generic_w8(Down, "grouped_gemm_w8_down_m32", 32, (98_560, 2)),
    generic_w8(Down, "grouped_gemm_w8_down_m64", 64, (98_560, 2)),
    generic_w8(DownFast, "grouped_gemm_w8_down_fast_m16", 16, (61_696, 3)),
    generic_w8(DownFast, "grouped_gemm_w8_down_fast_m32", 32, (98_560, 2)),
    generic_w8(DownFast, "grouped_gemm_w8_down_fast_m64", 64, (98_560, 2)),
    sm90(Up, "grouped_gemm_sm90_bf16_up_m64n256", 64, 128, 128, 197_696),
    sm90(Up, "grouped_gemm_sm90_bf16_up_m128n256", 128, 128, 128, 230_464),
    sm90(Up, "grouped_gemm_sm90_bf16_up_m128n192", 128, 96, 96, 197_696),
    sm90(Up, "grouped_gemm_sm90_bf16_up_m256n128", 256, 64, 64, 230_464),
    sm90(Up, "grouped_gemm_sm90_bf16_up_m256n192", 256, 96, 96, 205_872),
    sm90(Down, "grouped_gemm_sm90_bf16_down_m64n256", 64, 256, 256, 197_696),
    sm90(Down, "grouped_gemm_sm90_bf16_down_m128n256", 128, 256, 256, 230_464),
    sm90(Down, "grouped_gemm_sm90_bf16_down_m128n192", 128, 192, 192, 197_696),
    sm90(Down, "grouped_gemm_sm90_bf16_down_m128n128", 128, 128, 128, 230_496),
    sm90(Down, "grouped_gemm_sm90_bf16_down_m256n128", 256, 128, 128, 230_464),
    sm90(Down, "grouped_gemm_sm90_bf16_down_m256n192", 256, 192, 192, 205_872),
    sm90(DownFast, "grouped_gemm_sm90_bf16_down_fast_m128n256", 128, 256, 256, 222_256),
    swap_ab(Up, Bf16, "swap_ab_sm90_bf16_up_n8", 8, (352, 6)),
    swap_ab(Up, Bf16, "swap_ab_sm90_bf16_up_n16", 16, (416, 6)),
    swap_ab(Up, Bf16, "swap_ab_sm90_bf16_up_n32", 32, (416, 6)),
    swap_ab(Up, Bf16, "swap_ab_sm90_bf16_up_n64", 64, (416, 5)),
    swap_ab(Down, Bf16, "swap_ab_sm90_bf16_down_n8", 8, (288, 6)),
    swap_ab(Down, Bf16, "swap_ab_sm90_bf16_down_n16", 16, (288, 6)),
    swap_ab(Down, Bf16, "swap_ab_sm90_bf16_down_n32", 32, (288, 5)),
    swap_ab(Down, Bf16, "swap_ab_sm90_bf16_down_n64", 64, (288, 4)),
    swap_ab(Up, E4m3, "swap_ab_sm90_e4m3_up_n8", 8, (320, 6)),
    swap_ab(Up, E4m3, "swap_ab_sm90_e4m3_up_n16", 16, (384, 6)),
    swap_ab(Up, E4m3, "swap_ab_sm90_e4m3_up_n32", 32, (384, 5)),
    swap_ab(Up, E4m3, "swap_ab_sm90_e4m3_up_n64", 64, (384, 4)),
    swap_ab(Down, E4m3, "swap_ab_sm90_e4m3_down_n8", 8, (384, 6)),
    swap_ab(Down, E4m3, "swap_ab_sm90_e4m3_down_n16", 16, (384, 5)),
    swap_ab(Down, E4m3, "swap_ab_sm90_e4m3_down_n32", 32, (384, 4)),
    swap_ab(Down, E4m3, "swap_ab_sm90_e4m3_down_n64", 64, (384, 3)),
];

/// The kernel of a grouped product with this name.
pub(crate) fn product_kernel(name: &str) -> Option<&'static ProductKernel> {
    PRODUCTS.iter().find(|kernel| kernel.name == name)
}

/// Entry points of the router, by the format of the logits: f32, bf16.
pub const ROUTERS: [&str; 2] = ["router_topk_f32", "router_topk_bf16"];
/// Entry point of the router that computes its logits.
pub const ROUTER_GATE: &str = "router_topk_gate_bf16";
/// Entry points of align: of few pairs, then the three of many.
pub const ALIGN: [&str; 4] = ["align_small", "align_histogram", "align_scan", "align_scatter"];
/// Entry point of the weighted sum.
pub const COMBINE: &str = "combine_bf16";

/// The router that reads a format of logits.
pub(crate) const fn router_kernel(format: LogitFormat) -> &'static str {
    match format {
        LogitFormat::F32 => ROUTERS[0],
        LogitFormat::Bf16 => ROUTERS[1],
    }
}

/// Entry points of all kernels that layers are made of.
pub fn kernel_names() -> Vec<&'static str> {
    let mut names: Vec<&str> = PRODUCTS.iter().map(|kernel| kernel.name).collect();
    names.extend(ROUTERS);
    names.extend(ALIGN);
    names.extend([ROUTER_GATE, COMBINE]);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let mut names = kernel_names();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for kernel in PRODUCTS {
            assert_eq!(product_kernel(kernel.name), Some(kernel));
        }
        assert_eq!(product_kernel("combine_bf16"), None);
    }

    #[test]
    fn launches_stay_within_the_devices_they_are_for() {
        for kernel in PRODUCTS {
            let device = if kernel.family.runs_on(&DeviceFacts::A100) {
                // Consumer devices of the same generations have 99 KiB a block.
                assert!(kernel.shared_bytes <= 99 * 1024, "{}", kernel.name);
                DeviceFacts::A100
            } else {
                DeviceFacts::H100
            };
            assert!(kernel.shared_bytes <= device.shared_bytes, "{}", kernel.name);
            assert!(kernel.threads.is_multiple_of(32) && kernel.threads <= 1024);
            assert!(kernel.block_m.is_power_of_two() && kernel.block_m <= 256);
            assert!(kernel.columns > 0 && kernel.blocks_per_sm > 0);
        }
    }
}
