//! AMX for int8 weights: products of 16 x 64 by 64 x 16 tiles of bytes into 16 x 16 tiles of 32-bit sums.
//!
//! As for bf16 ([`super::amx`]), weights are the left operand, straight from the row-major matrix. The
//! 16-bit activations are split: `q = 256 h + l` with a signed byte h and an unsigned byte l, each in
//! a tile of its own, 16 groups of four columns x 16 token rows. The instruction multiplies signed
//! weights with either, and the sum over a row of q is `256 sum(h w) + sum(l w)`.
//!
//! Intel, "Architecture Instruction Set Extensions Programming Reference", chapter 3.

use std::arch::asm;

use super::amx::{Config, SIDE, executable};
use super::dot::Total;
use super::int8::{Int8Format, RowUnit};
use super::{Isa, Operand};
use crate::kernels::cpu::blocks::{BLOCK, Place};

/// Bytes of a tile, and words of one; a tile of weights takes a whole block of columns.
const TILE: usize = SIDE * BLOCK;
const WORDS: usize = TILE / 2;
/// Values of one tile of sums.
const SUMS: usize = SIDE * SIDE;
/// Blocks that sums of 32 bits hold, the tail besides: 65,600 x 255 x 128 < 2^31.
const SPAN: usize = 1024;

/// Byte tiles of 16-bit activations.
pub(crate) struct Int8Tiles;

/// Sums of two groups of weight rows: `[group][high or low bytes][weight row][token row]`.
#[repr(align(64))]
struct Sums([[[i32; SUMS]; 2]; 2]);

/// Two groups of up to 16 weight rows against one tile of token rows.
struct Product<'a> {
    /// Weights of both groups, each `[rows, k]`.
    groups: [&'a [i8]; 2],
    rows: usize,
    k: usize,
    /// Activations of the expert.
    a: Operand<'a, i16>,
    /// Tile of token rows.
    token: usize,
}

impl Product<'_> {
    /// The sums over all columns, `[group][weight row][token row]`.
    fn run(&self) -> [[f64; SUMS]; 2] {
        let (k, whole) = (self.k, self.k / BLOCK);
        let blocks = k.div_ceil(BLOCK);
        // What the loads below rely on.
        assert!((1..=SIDE).contains(&self.rows), "tile sizes");
        assert!(self.groups.iter().all(|w| w.len() == self.rows * k), "weight rows");
        assert!(self.a.rows.is_multiple_of(SIDE), "token rows fill tiles");
        assert!((self.token + 1) * SIDE <= self.a.rows, "the token tile exists");
        assert!(self.a.values.len() >= blocks * self.a.rows * BLOCK, "token columns exist");

        let config = Config::new(self.rows);
        let mut totals = [[0.0; SUMS]; 2];
        let mut start = 0;
        while start < blocks {
            let end = whole.min(start + SPAN);
            let mut sums = Sums([[[0; SUMS]; 2]; 2]);
            let [w0, w1] = self.groups.map(|w| w[start * BLOCK..].as_ptr());
            // SAFETY: blocks `start..end` of 64 columns lie within the `k` columns of every row;
            // activations have `blocks` blocks of `a.rows` rows, of which the token tile is part
            // (asserted above).
            unsafe { self.multiply(&config, &mut sums, (w0, w1, k), start, end - start) };
            if end == whole && whole < blocks {
                // The last columns, filled up with zeros: what follows them in memory is another row.
                let mut tails = [[0; TILE]; 2];
                for (tail, w) in tails.iter_mut().zip(self.groups) {
                    for (tail, row) in tail.chunks_exact_mut(BLOCK).zip(w.chunks_exact(k)) {
                        tail[..k - whole * BLOCK].copy_from_slice(&row[whole * BLOCK..]);
                    }
                }
                let [w0, w1] = [tails[0].as_ptr(), tails[1].as_ptr()];
                // SAFETY: the tails hold 16 rows of one block; activations as above.
                unsafe { self.multiply(&config, &mut sums, (w0, w1, BLOCK), whole, 1) };
            }
            for (totals, [high, low]) in totals.iter_mut().zip(&sums.0) {
                for (total, (&high, &low)) in totals.iter_mut().zip(high.iter().zip(low)) {
                    *total += 256.0 * f64::from(high) + f64::from(low);
                }
            }
            start = if end == whole { blocks } else { end };
        }
        totals
    }

    /// Adds `blocks` blocks from `first` on of both groups times the token tile to `sums`.
    ///
    /// # Safety
    /// The tiles may be used; `w0` and `w1` point to `self.rows` rows of `blocks` x 64 weights, `stride`
    /// bytes apart; the activations have these blocks.
    unsafe fn multiply(
        &self,
        config: &Config,
        sums: &mut Sums,
        (w0, w1, stride): (*const i8, *const i8, usize),
        first: usize,
        blocks: usize,
    ) {
        if blocks == 0 {
            return;
        }
        let block_words = self.a.rows * BLOCK;
        let x = self.a.values[first * block_words + self.token * 2 * WORDS..].as_ptr();
        // SAFETY: reads and writes what the caller vouches for, and 4 KiB of sums; both tiles of a
        // token tile lie 1 KiB apart. Tiles are configured and released inside; nothing else is
        // changed.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tileloadd tmm0, [{sums} + {line}*1]",
                "tileloadd tmm1, [{sums} + {line}*1 + 1024]",
                "tileloadd tmm2, [{sums} + {line}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {line}*1 + 3072]",
                "2:",
                "tileloadd tmm4, [{w0} + {stride}*1]",
                "tileloadd tmm6, [{x} + {line}*1]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{x} + {line}*1 + 1024]",
                "tdpbsud tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{w1} + {stride}*1]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "add {w0}, 64",
                "add {w1}, 64",
                "add {x}, {step}",
                "dec {blocks}",
                "jnz 2b",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 1024], tmm1",
                "tilestored [{sums} + {line}*1 + 2048], tmm2",
                "tilestored [{sums} + {line}*1 + 3072], tmm3",
                "tilerelease",
                config = in(reg) config,
                sums = in(reg) sums.0.as_mut_ptr(),
                line = in(reg) 64usize,
                w0 = inout(reg) w0 => _,
                w1 = inout(reg) w1 => _,
                stride = in(reg) stride,
                x = inout(reg) x => _,
                step = in(reg) 2 * block_words,
                blocks = inout(reg) blocks => _,
                options(nostack),
            );
        }
    }
}

/// Word of (row, column) and its right neighbour in a block: the high bytes of both columns; the low ones
/// follow [`WORDS`] further on. `column` is even.
const fn place(row: usize, column: usize) -> usize {
    row / SIDE * 2 * WORDS + column / 4 * 2 * SIDE + row % SIDE * 2 + column % 4 / 2
}

impl Int8Format for Int8Tiles {
    const ROWS: usize = SIDE;

    fn put_row(block: &mut [i16], at: Place, values: &[f32], unit: RowUnit) {
        let integer = |column: usize| values.get(column).map_or(0, |&v| unit.integer(v));
        for column in (0..BLOCK).step_by(2) {
            let [l0, h0] = integer(column).to_le_bytes();
            let [l1, h1] = integer(column + 1).to_le_bytes();
            let word = place(at.row, column);
            block[word] = i16::from_le_bytes([h0, h1]);
            block[word + WORDS] = i16::from_le_bytes([l0, l1]);
        }
    }

    fn panel(isa: Isa, w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]) {
        assert!(executable(), "tiles were asked for as {} where there are none", isa.label());
        let columns = w.len() / k;
        if columns < BLOCK {
            out.fill(0.0);
        }
        let mut column = 0;
        while column < columns {
            // Two full groups, or what is left as one group (computed twice, stored once).
            let rows = (columns - column).min(SIDE);
            let second = if columns - column >= 2 * SIDE { column + SIDE } else { column };
            let groups = [column, second].map(|n| &w[n * k..(n + rows) * k]);
            for (tile, out) in out.chunks_mut(SIDE * BLOCK).enumerate() {
                let totals = Product { groups, rows, k, a, token: first / SIDE + tile }.run();
                for (column, totals) in [column, second].into_iter().zip(&totals) {
                    for (row, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                        for (n, out) in out[column..column + rows].iter_mut().enumerate() {
                            *out = totals[n * SIDE + row].rounded();
                        }
                    }
                }
            }
            column = second + rows;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::amx_emulator;
    use super::super::int8::tests::compare;
    use super::*;
    use crate::kernels::cpu::CpuBackend;
    use crate::kernels::{LayerWeights, MoeShape, RouterSpec, WeightData, reference};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::StandardNormal;

    #[test]
    fn every_place_of_a_block_is_taken_once() {
        for rows in [16, 32, 48] {
            let mut taken = vec![false; rows * BLOCK];
            for (row, column) in (0..rows).flat_map(|r| (0..BLOCK / 2).map(move |c| (r, 2 * c))) {
                for at in [place(row, column), place(row, column) + WORDS] {
                    assert!(!std::mem::replace(&mut taken[at], true), "{rows} {row} {column}");
                }
            }
            assert!(taken.iter().all(|&t| t));
        }
    }

    fn panel(w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]) {
        Int8Tiles::panel(Isa::Amx, w, k, a, first, out);
    }

    #[test]
    fn sums_are_exact() {
        let emulated = amx_emulator::install();
        let before = amx_emulator::executed();
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (rows, columns, k) in
            [(16, 16, 64), (1, 5, 65), (17, 40, 100), (40, 33, 7), (32, 64, 128), (3, 1, 1)]
        {
            let x: Vec<i16> = (0..rows * k).map(|_| rng.random_range(-32_767..=32_767)).collect();
            let w: Vec<i8> = (0..columns * k).map(|_| rng.random_range(-128..=127)).collect();
            compare::<Int8Tiles>(&[("tiles", panel)], (&x, &w), (rows, columns, k));
        }
        // More than a span, low bytes of 255 and weights that all add up.
        for (x, w) in [(-1, -128), (255, -128), (-32_767, 127), (32_767, -128)] {
            let k = 65_536 + 65;
            let case = (vec![x; k], vec![w; k]);
            compare::<Int8Tiles>(&[("tiles", panel)], (&case.0, &case.1), (1, 1, k));
        }
        // Where the processor has no tiles, the kernel's own instructions were carried out here.
        assert_eq!(emulated, amx_emulator::executed() > before);
    }

    #[test]
    fn whole_layers_have_the_bits_of_every_other_instruction_set() {
        amx_emulator::install();
        // Not `with_isa`, which asks the processor.
        let tiles = CpuBackend { isa: Isa::Amx, pool: None, pack: false }.with_threads(2).unwrap();
        assert!(Isa::Amx.has_byte_tiles());
        for (seed, (experts, top_k, hidden, inter, gated, tokens)) in
            [(1, 1, 32, 16, true, 1), (3, 2, 70, 45, true, 19), (2, 1, 33, 66, false, 40)]
                .into_iter()
                .enumerate()
        {
            let shape = MoeShape { experts, top_k, hidden, inter, gated };
            let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
            let mut normal = |count: usize, scale: f32| -> Vec<f32> {
                (0..count).map(|_| rng.sample::<f32, _>(StandardNormal) * scale).collect()
            };
            let w13 = WeightData::F32(normal(shape.w13_len().unwrap(), 0.15).into());
            let w2 = WeightData::F32(normal(shape.w2_len().unwrap(), 0.15).into());
            let weights = LayerWeights::new(shape, w13, w2).unwrap().quantized().unwrap();
            let (x, logits) = (normal(tokens * hidden, 1.0), normal(tokens * experts, 1.0));
            let routed = reference::route(&logits, experts, top_k, &RouterSpec::softmax()).unwrap();
            let bits = |backend: &CpuBackend| -> Vec<u32> {
                let out = backend.forward(&weights, &x, &routed).unwrap();
                out.iter().map(|v| v.to_bits()).collect()
            };
            let expected = bits(&CpuBackend::with_isa(Isa::Portable).unwrap());
            assert_eq!(bits(&tiles), expected, "{shape:?}");
        }
    }
}
