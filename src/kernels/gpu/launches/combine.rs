//! Launching the weighted sum of each token's rows (`kernels/permute.cu`).

use crate::gpu::params::CombineParams;
use crate::gpu::{DeviceAddress, Launch, Launcher, ParamBytes, Region};
use crate::kernels::gpu::launches::Matrix;
use crate::kernels::gpu::registry::COMBINE;
use crate::{Error, Result};

/// Threads of a block.
const THREADS: u32 = 256;
/// Columns of a thread: one 16-byte access of bf16.
const VALUES: u32 = 8;

/// The weighted sum of each token's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CombineLaunch {
    /// `bf16[rows, hidden]`.
    pub y: Region,
    /// Rows of `y`.
    pub rows: u32,
    /// Padded row of each pair.
    pub pair_rows: Region,
    /// Weight of each pair.
    pub topk_weights: Region,
    /// `[tokens, hidden]`.
    pub out: Matrix,
    /// Whether the output is in single precision, else bf16.
    pub out_f32: bool,
    /// Tokens; 0: nothing is launched.
    pub tokens: u32,
    /// Hidden size; a multiple of 8.
    pub hidden: u32,
    /// Slots per token.
    pub top_k: u32,
    /// Whether it may start while the launch before it ends.
    pub overlaps: bool,
}

impl CombineLaunch {
    fn params(&self) -> Result<CombineParams> {
        if !self.hidden.is_multiple_of(8) || self.hidden == 0 {
            return Err(Error::usage(
                "hidden",
                format!("{} is no positive multiple of 8", self.hidden),
            ));
        }
        let (tokens, hidden) = (u64::from(self.tokens), u64::from(self.hidden));
        let pairs = tokens * u64::from(self.top_k);
        let size = if self.out_f32 { 4 } else { 2 };
        if !self.out.stride.is_multiple_of(8) {
            return Err(Error::usage("out", "its row stride is no multiple of 8 elements"));
        }
        let out = self.out.checked("out", (tokens, hidden), size, 16)?;
        let bytes = u64::from(self.rows).checked_mul(2 * hidden);
        Ok(CombineParams {
            y: self.y.checked("y", bytes, 16)?,
            pair_rows: self.pair_rows.checked("pair_rows", pairs.checked_mul(4), 4)?,
            topk_weights: self.topk_weights.checked("topk_weights", pairs.checked_mul(4), 4)?,
            out: if self.out_f32 { DeviceAddress::NULL } else { out },
            out_f32: if self.out_f32 { out } else { DeviceAddress::NULL },
            out_stride: self.out.stride,
            tokens: self.tokens,
            hidden: self.hidden,
            top_k: self.top_k,
            unused: 0,
        })
    }
}

/// Sums the weighted rows of every token in slot order. Nothing is launched for no tokens.
///
/// # Errors
/// [`Error::Usage`] for sizes or buffers that do not fit, else as [`Launcher::launch`].
pub fn combine(launcher: &mut dyn Launcher, launch: &CombineLaunch) -> Result<()> {
    if launch.tokens == 0 {
        return Ok(());
    }
    let vectors = u64::from(launch.tokens) * u64::from(launch.hidden / VALUES);
    // The kernel numbers its vectors in 32 bits.
    let vectors = u32::try_from(vectors)
        .map_err(|_| Error::usage("tokens", "the output has too many values for one launch"))?;
    let blocks = vectors.div_ceil(THREADS);
    launcher.launch(&Launch {
        kernel: COMBINE,
        grid: [blocks, 1],
        threads: THREADS,
        shared_bytes: 0,
        maps: Vec::new(),
        params: ParamBytes::of(&launch.params()?),
        overlaps: launch.overlaps,
    })
}
