//! The two grouped products with int8 weights.
//!
//! They are split over tasks as other formats are ([`super::gemm`]). Between the products stands one pass
//! more: rows become integers only when their largest value is known, which the first product finds on
//! the way, and the second one needs.

use std::sync::atomic::{AtomicU32, Ordering};

use rayon::prelude::*;

use crate::kernels::cpu::blocks::{self, BLOCK, columns, padded};
use crate::kernels::cpu::gemm::{Input, for_each_block};
use crate::kernels::cpu::simd::{
    Int8Format, Integers, Isa, RowUnit, ScaledRows, down_int8, gate_up_int8, largest,
};
use crate::kernels::{Alignment, Int8Weights, MoeShape};

/// Rows searched for their largest value by one task at least.
const SEARCH_ROWS: usize = 16;

/// Activations as integers, and what leads to them.
#[derive(Default)]
pub(super) struct IntegerRows {
    /// Bits of the largest magnitude of each token.
    tokens: Vec<u32>,
    /// Gathered input rows, column-blocked with the rows of `starts`.
    packed: Vec<i16>,
    /// Activated rows in single precision, column-blocked with the rows of the alignment.
    activated: Vec<f32>,
    /// Bits of the largest magnitude of each of them.
    found: Vec<AtomicU32>,
    /// The same rows as integers, with the rows of `starts`.
    h: Vec<i16>,
    /// Unit of each row, of the input and then of h.
    units: [Vec<f32>; 2],
}

impl IntegerRows {
    /// Room for `pairs` rows, `rows` with those that fill up.
    pub(super) fn resize(&mut self, shape: &MoeShape, tokens: usize, pairs: usize, rows: usize) {
        self.tokens.resize(tokens, 0);
        self.packed.resize(rows * padded(shape.hidden), 0);
        self.activated.resize(pairs * padded(shape.inter), 0.0);
        self.found.resize_with(pairs, AtomicU32::default);
        self.h.resize(rows * padded(shape.inter), 0);
        for units in &mut self.units {
            units.resize(pairs, 0.0);
        }
    }

    pub(super) fn poison(&mut self) {
        // No value is rounded to -32,768.
        self.packed.fill(i16::MIN);
        self.h.fill(i16::MIN);
        self.activated.fill(f32::NAN);
        for units in &mut self.units {
            units.fill(f32::NAN);
        }
    }

    /// Gathers `x` `[tokens, hidden]` as integers, and computes `act(a w13^T)`.
    pub(super) fn gate_up<F: Int8Format>(
        &mut self,
        shape: &MoeShape,
        w13: &Int8Weights,
        x: &[f32],
        (alignment, starts): (&Alignment, &[usize]),
        isa: Isa,
    ) {
        let rows = x.par_chunks(shape.hidden).with_min_len(SEARCH_ROWS);
        rows.zip(&mut self.tokens).for_each(|(row, found)| *found = largest(row));
        let (tokens, top_k) = (&self.tokens, shape.top_k);
        let unit = |pair: u32| RowUnit::of(tokens[pair as usize / top_k]);
        for (out, &pair) in self.units[0].iter_mut().zip(&alignment.sorted_pairs) {
            *out = unit(pair).unit;
        }
        blocks::fill(
            shape.hidden,
            alignment,
            starts,
            &mut self.packed,
            &|out: &mut [_], place, of| {
                let Some((row, _)) = of else {
                    return F::put_row(out, place, &[], RowUnit::of(0));
                };
                let pair = alignment.sorted_pairs[row];
                let values = &x[pair as usize / top_k * shape.hidden..];
                F::put_row(out, place, &values[columns(place.block, shape.hidden)], unit(pair));
            },
        );

        for found in &mut self.found {
            *found.get_mut() = 0;
        }
        let (found, units) = (&self.found, &self.units[0]);
        let input = Input { values: &self.packed, starts, width: shape.hidden };
        let (offsets, out) = (&alignment.offsets, &mut self.activated);
        for_each_block(&input, usize::MAX, shape.inter, offsets, out, &|expert, block, a, out| {
            let columns = columns(block, shape.inter);
            let first = expert * shape.halves();
            let half = |half: usize| {
                rows_of(w13, (first + half) * shape.inter + columns.start, columns.len())
            };
            let up = shape.gated.then(|| half(1));
            let rows = alignment.rows(expert);
            let a = Integers { values: a, units: &units[rows.clone()] };
            let found = &found[rows];
            gate_up_int8::<F>(isa, (half(0), up), shape.hidden, a, out, |row, bits| {
                // The largest of all blocks, in whatever order they come.
                found[row].fetch_max(bits, Ordering::Relaxed);
            });
        });
    }

    /// Turns the activated rows into integers, and computes `y = h w2^T`.
    pub(super) fn down<F: Int8Format>(
        &mut self,
        shape: &MoeShape,
        w2: &Int8Weights,
        (alignment, starts): (&Alignment, &[usize]),
        y: &mut [f32],
        isa: Isa,
    ) {
        for (unit, found) in self.units[1].iter_mut().zip(&mut self.found) {
            *unit = RowUnit::of(*found.get_mut()).unit;
        }
        let (activated, found) = (&self.activated, &self.found);
        blocks::fill(shape.inter, alignment, starts, &mut self.h, &|out: &mut [_], place, of| {
            let Some((row, expert)) = of else {
                return F::put_row(out, place, &[], RowUnit::of(0));
            };
            let block = expert.start * padded(shape.inter) + place.block * expert.len() * BLOCK;
            let values = &activated[block + place.row * BLOCK..];
            let values = &values[..columns(place.block, shape.inter).len()];
            F::put_row(out, place, values, RowUnit::of(found[row].load(Ordering::Relaxed)));
        });
        let units = &self.units[1];
        let input = Input { values: &self.h, starts, width: shape.inter };
        for_each_block(
            &input,
            usize::MAX,
            shape.hidden,
            &alignment.offsets,
            y,
            &|expert, block, h, out| {
                let columns = columns(block, shape.hidden);
                let w = rows_of(w2, expert * shape.hidden + columns.start, columns.len());
                let h = Integers { values: h, units: &units[alignment.rows(expert)] };
                down_int8::<F>(isa, w, shape.inter, h, out);
            },
        );
    }
}

/// `count` neighbouring weight rows with their scales.
fn rows_of(weights: &Int8Weights, first: usize, count: usize) -> ScaledRows<'_> {
    let k = weights.k();
    ScaledRows {
        values: &weights.values()[first * k..(first + count) * k],
        scales: &weights.scales()[first..first + count],
    }
}
