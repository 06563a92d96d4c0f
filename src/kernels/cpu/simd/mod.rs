//! The micro-kernel: a few weight rows against a few token rows, for each instruction set.
//!
//! One source is compiled for each instruction set; the compiler vectorises its fixed-size lanes.
//! The only `unsafe` is the call into code compiled for an instruction set that was found at run
//! time.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use half::bf16;

use super::blocks::BLOCK;
use super::gemm::silu;

/// A weight as stored.
pub trait Weight: Copy + Send + Sync {
    /// Zero, which fills up the tail of a row.
    const ZERO: Self;

    /// The value in single precision, exactly.
    fn widen(self) -> f32;
}

impl Weight for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn widen(self) -> f32 {
        // Not `to_f32`: that quiets NaNs, a branch that keeps the loop from being vectorised.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Rows of one expert, column-blocked: `[blocks][rows][BLOCK]`.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// All blocks.
    pub values: &'a [f32],
    /// Rows in each block.
    pub rows: usize,
}

impl<'a> Operand<'a> {
    /// `N` neighbouring rows of one block.
    #[inline(always)]
    fn rows_of<const N: usize>(&self, block: usize, row: usize) -> [&'a [f32; BLOCK]; N] {
        let start = (block * self.rows + row) * BLOCK;
        let (rows, _) = self.values[start..start + N * BLOCK].as_chunks::<BLOCK>();
        std::array::from_fn(|i| &rows[i])
    }
}

/// An instruction set that the micro-kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, VL with FMA: 32 registers of 16 lanes.
    Avx512,
    /// AVX2 with FMA: 16 registers of 8 lanes.
    Avx2,
    /// Whatever the build targets: SSE2 on x86-64, NEON on aarch64.
    Portable,
}

impl Isa {
    /// Every instruction set, widest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// The widest one that this processor has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }

    /// The name that tables and profiles use.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2+FMA",
            Self::Portable => "portable",
        }
    }

    /// `out[row][n] = sum_k a[row][k] w[n][k]`: `w` is `[n, k]` with up to 64 rows, `out` one column
    /// block `[rows][64]`, zero beyond the last column.
    pub(crate) fn product<W: Weight>(self, w: &[W], k: usize, a: &Operand, out: &mut [f32]) {
        self.run(w, k, a, out, |_, sum| sum);
    }

    /// `out[row][n] = silu(out[row][n]) x sum_k a[row][k] w[n][k]`.
    pub(crate) fn gated_product<W: Weight>(self, w: &[W], k: usize, a: &Operand, out: &mut [f32]) {
        self.run(w, k, a, out, |gate, sum| silu(gate) * sum);
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "calls code compiled for an instruction set found at run time")]
    fn run<W: Weight>(
        self,
        w: &[W],
        k: usize,
        a: &Operand,
        out: &mut [f32],
        finish: impl Fn(f32, f32) -> f32,
    ) {
        // A value of this type is only made by `detect`, or checked by `CpuBackend::with_isa`; a
        // wrong one would be an illegal instruction, so the check is repeated (one cached load).
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 if self.is_available() => {
                // SAFETY: the processor has the features that the callee is compiled for.
                unsafe { panel_avx512(w, k, a, out, finish) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 if self.is_available() => {
                // SAFETY: the processor has the features that the callee is compiled for.
                unsafe { panel_avx2(w, k, a, out, finish) }
            }
            _ => panel::<W, 8, 2, 4, false>(w, k, a, out, finish),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn panel_avx512<W: Weight>(
    w: &[W],
    k: usize,
    a: &Operand,
    out: &mut [f32],
    finish: impl Fn(f32, f32) -> f32,
) {
    // 4 x 6 accumulators, 4 weight vectors and one of tokens fill 29 of 32 registers.
    panel::<W, 16, 4, 6, true>(w, k, a, out, finish);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn panel_avx2<W: Weight>(
    w: &[W],
    k: usize,
    a: &Operand,
    out: &mut [f32],
    finish: impl Fn(f32, f32) -> f32,
) {
    // 2 x 6 accumulators, 2 weight vectors and one of tokens fill 15 of 16 registers.
    panel::<W, 8, 2, 6, true>(w, k, a, out, finish);
}

/// All columns of one block: `NW` weight rows at a time, so that each row is read from memory once
/// and stays in the first-level cache while it meets all token rows.
#[inline(always)]
fn panel<W: Weight, const L: usize, const NW: usize, const NX: usize, const FMA: bool>(
    w: &[W],
    k: usize,
    a: &Operand,
    out: &mut [f32],
    finish: impl Fn(f32, f32) -> f32,
) {
    let columns = w.len() / k;
    let mut column = 0;
    while column + NW <= columns {
        strip::<W, L, NW, NX, FMA>(&w[column * k..], k, a, column, out, &finish);
        column += NW;
    }
    while column < columns {
        strip::<W, L, 1, NX, FMA>(&w[column * k..], k, a, column, out, &finish);
        column += 1;
    }
    for row in out.chunks_exact_mut(BLOCK) {
        row[columns..].fill(0.0);
    }
}

/// `NW` weight rows against all token rows, `NX` at a time.
#[inline(always)]
fn strip<W: Weight, const L: usize, const NW: usize, const NX: usize, const FMA: bool>(
    w: &[W],
    k: usize,
    a: &Operand,
    column: usize,
    out: &mut [f32],
    finish: &impl Fn(f32, f32) -> f32,
) {
    let weights: [&[W]; NW] = std::array::from_fn(|i| &w[i * k..(i + 1) * k]);
    let mut row = 0;
    while row + NX <= a.rows {
        tile::<W, L, NW, NX, FMA>(weights, a, row, column, out, finish);
        row += NX;
    }
    let rest = a.rows - row;
    match rest {
        0 => {}
        1 => tile::<W, L, NW, 1, FMA>(weights, a, row, column, out, finish),
        2 => tile::<W, L, NW, 2, FMA>(weights, a, row, column, out, finish),
        3 => tile::<W, L, NW, 3, FMA>(weights, a, row, column, out, finish),
        4 => tile::<W, L, NW, 4, FMA>(weights, a, row, column, out, finish),
        _ => tile::<W, L, NW, 5, FMA>(weights, a, row, column, out, finish),
    }
}

/// `NW` x `NX` dot products over the whole length, accumulated in `L` lanes each.
#[inline(always)]
fn tile<W: Weight, const L: usize, const NW: usize, const NX: usize, const FMA: bool>(
    weights: [&[W]; NW],
    a: &Operand,
    row: usize,
    column: usize,
    out: &mut [f32],
    finish: &impl Fn(f32, f32) -> f32,
) {
    let mut sums = [[[0.0f32; L]; NX]; NW];
    let k = weights[0].len();
    let whole = k / BLOCK;
    for block in 0..whole {
        let x = a.rows_of::<NX>(block, row);
        let w: [&[W]; NW] = std::array::from_fn(|i| &weights[i][block * BLOCK..][..BLOCK]);
        accumulate::<W, L, NW, NX, FMA>(w, x, &mut sums);
    }
    if whole * BLOCK < k {
        let mut tail = [[W::ZERO; BLOCK]; NW];
        for (tail, weights) in tail.iter_mut().zip(weights) {
            tail[..k - whole * BLOCK].copy_from_slice(&weights[whole * BLOCK..]);
        }
        let x = a.rows_of::<NX>(whole, row);
        let w: [&[W]; NW] = std::array::from_fn(|i| tail[i].as_slice());
        accumulate::<W, L, NW, NX, FMA>(w, x, &mut sums);
    }
    for (i, sums) in sums.iter().enumerate() {
        for (j, lanes) in sums.iter().enumerate() {
            let out = &mut out[(row + j) * BLOCK + column + i];
            *out = finish(*out, sum_lanes(lanes));
        }
    }
}

/// Adds one block of columns to the sums.
#[inline(always)]
fn accumulate<W: Weight, const L: usize, const NW: usize, const NX: usize, const FMA: bool>(
    weights: [&[W]; NW],
    x: [&[f32; BLOCK]; NX],
    sums: &mut [[[f32; L]; NX]; NW],
) {
    for start in (0..BLOCK).step_by(L) {
        let w: [[f32; L]; NW] = std::array::from_fn(|i| {
            let lanes = &weights[i][start..start + L];
            std::array::from_fn(|l| lanes[l].widen())
        });
        for (j, x) in x.iter().enumerate() {
            let x = &x[start..start + L];
            for (w, sums) in w.iter().zip(sums.iter_mut()) {
                for l in 0..L {
                    // Without the instruction, a fused multiply-add is a slow library call.
                    sums[j][l] =
                        if FMA { w[l].mul_add(x[l], sums[j][l]) } else { w[l] * x[l] + sums[j][l] };
                }
            }
        }
    }
}

/// Sum of the lanes by halving, which is exact for integers and stable in its order.
#[inline(always)]
fn sum_lanes<const L: usize>(lanes: &[f32; L]) -> f32 {
    let mut lanes = *lanes;
    let mut width = L / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}
