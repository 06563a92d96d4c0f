//! Which element a product reads: one-hot rows pick one weight for each output, and weights are digits
//! of their own place, one digit a launch. A wrong index shows itself by name: the digits that come out
//! are the place that was read. Scales of 8-bit weights are numbered in the same way.

use half::bf16;
use moe_frontier::kernels::MoeShape;
use moe_frontier::kernels::gpu::launches::ProductLaunch;
use moe_frontier::kernels::gpu::{Product, ProductKernel, WeightFormat};
use moe_frontier::kernels::stages::PaddedAlignment;

use crate::board::Board;
use crate::products::{Problem, e4m3, table_of};
use crate::suite::{self, Batch, Outcome, Run};

/// Two blocks of scales along either size, tails in both, three experts.
const HIDDEN: usize = 144;
const INTER: usize = 272;
const EXPERTS: usize = 3;
const TOKENS: usize = 17;
/// What the other factor of SwiGLU is while one is read: from 18 on silu(v) is v in single precision.
const FIXED: usize = 32;
/// Edge of the blocks that share a scale.
const BLOCK: usize = 128;

/// What a launch reads.
#[derive(Clone, Copy, Debug)]
enum Read {
    /// A digit of the place of each weight, with the weight of this digit in the number.
    Digit(usize),
    /// The number of each block of scales.
    Scale,
}

/// One product whose rows are one-hot.
#[derive(Clone)]
struct Layout {
    kernel: &'static ProductKernel,
    shape: MoeShape,
    table: PaddedAlignment,
    ids: Vec<i32>,
    /// Numbers that one weight holds exactly beside `FIXED`.
    base: usize,
}

impl Layout {
    fn new(kernel: &'static ProductKernel) -> Self {
        // The sum of two slots would mix their digits.
        let top_k = if kernel.product == Product::DownFast { 1 } else { 2 };
        let shape = MoeShape { experts: EXPERTS, top_k, hidden: HIDDEN, inter: INTER, gated: true };
        let expert = |pair: usize| i32::try_from((pair + pair / 4) % EXPERTS).unwrap();
        let ids: Vec<i32> = (0..TOKENS * top_k).map(expert).collect();
        // bf16 holds 8 bits, e4m3 4.
        let base = if kernel.weights == WeightFormat::Bf16 { 128 } else { 16 };
        Self { kernel, shape, table: table_of(&ids, EXPERTS, kernel), ids, base }
    }

    fn is_up(&self) -> bool {
        self.kernel.product == Product::Up
    }

    /// Halves, rows and depth of an expert's weights.
    fn sizes(&self) -> (usize, usize, usize) {
        if self.is_up() { (2, INTER, HIDDEN) } else { (1, HIDDEN, INTER) }
    }

    fn place(&self, (expert, half, n, k): (usize, usize, usize, usize)) -> usize {
        let (halves, rows, depth) = self.sizes();
        ((expert * halves + half) * rows + n) * depth + k
    }

    fn name(&self, place: usize) -> String {
        let (halves, rows, depth) = self.sizes();
        let (k, n, matrix) = (place % depth, place / depth % rows, place / depth / rows);
        let half = ["gate", "up"][matrix % 2];
        let half = if self.is_up() { format!(", {half}") } else { String::new() };
        format!("(expert {}{half}, row {n}, column {k})", matrix / halves)
    }

    fn block(&self, (expert, half, n, k): (usize, usize, usize, usize)) -> usize {
        let (halves, rows, depth) = self.sizes();
        let (rows, columns) = (rows.div_ceil(BLOCK), depth.div_ceil(BLOCK));
        ((expert * halves + half) * rows + n / BLOCK) * columns + k / BLOCK
    }

    /// Weights of each digit, from the lowest.
    fn digits(&self) -> Vec<usize> {
        let (halves, rows, depth) = self.sizes();
        let places = EXPERTS * halves * rows * depth;
        std::iter::successors(Some(1), |w| Some(w * self.base))
            .take_while(|&w| w < places)
            .collect()
    }

    /// The column that a row picks: the last, then every place of 16 in a row, never the fixed one.
    fn column(&self, row: usize) -> usize {
        const COLUMNS: [usize; TOKENS - 1] =
            [128, 1, 50, 115, 20, 133, 22, 71, 40, 89, 74, 59, 108, 29, 142, 127];
        match row % TOKENS {
            0 => self.sizes().2 - 1,
            row => COLUMNS[row - 1],
        }
    }

    /// Value of a weight when the half `read` is read.
    fn weight(&self, what: Read, read: usize, at: (usize, usize, usize, usize)) -> usize {
        let (_, half, _, k) = at;
        if self.is_up() && k == 0 {
            // The fixed column: gates are large enough, or the other factor is 1.
            let digits = matches!(what, Read::Digit(_));
            return match (half, half == read) {
                (0, true) if digits => FIXED,
                (0, false) => FIXED,
                (_, true) => 0,
                (_, false) => 1,
            };
        }
        match what {
            _ if self.is_up() && half != read => 0,
            Read::Digit(weight) => self.place(at) / weight % self.base,
            Read::Scale => 1,
        }
    }

    /// Launches the product; the number of what each output shows is that of `decode`.
    fn launch(&self, what: Read, read: usize, board: &mut Board) -> Result<ProductLaunch, String> {
        let (halves, rows, depth) = self.sizes();
        let (mut bytes, mut scales) = (Vec::new(), Vec::new());
        for matrix in 0..EXPERTS * halves {
            let (expert, half) = (matrix / halves, matrix % halves);
            for (n, k) in (0..rows).flat_map(|n| (0..depth).map(move |k| (n, k))) {
                let value = self.weight(what, read, (expert, half, n, k));
                let value = f32::from(u8::try_from(value).unwrap());
                match self.kernel.weights {
                    WeightFormat::Bf16 => bytes.extend(bf16::from_f32(value).to_ne_bytes()),
                    WeightFormat::E4m3 => bytes.push(e4m3(value).0),
                }
            }
            let blocks = rows.div_ceil(BLOCK) * depth.div_ceil(BLOCK);
            scales.extend((0..blocks).map(|b| {
                let numbered = matches!(what, Read::Scale) && half == read;
                let number = if numbered { matrix * blocks + b + FIXED } else { 1 };
                f32::from(u16::try_from(number).unwrap())
            }));
        }
        let inputs = if self.is_up() { TOKENS } else { self.table.sorted_pairs.len() };
        let input: Vec<Vec<bf16>> = (0..inputs)
            .map(|row| {
                let mut values = vec![bf16::ZERO; depth];
                if self.is_up() || self.table.sorted_pairs[row] >= 0 {
                    values[self.column(row)] = bf16::ONE;
                    if self.is_up() {
                        values[0] = bf16::ONE;
                    }
                }
                values
            })
            .collect();
        Problem {
            kernel: self.kernel,
            shape: self.shape,
            tokens: TOKENS,
            gate_first: true,
            table: &self.table,
            bytes: &bytes,
            scales: &scales,
            input: &input,
            topk_weights: &vec![1.0; self.ids.len()],
            shares: true,
        }
        .launch(board)
    }

    /// What an output says was read, `None` for what no digit and no block gives.
    fn decode(&self, what: Read, read: usize, output: f64) -> Option<usize> {
        let fixed = f64::from(u8::try_from(FIXED).unwrap());
        let number = match what {
            _ if self.is_up() && read == 1 => output / fixed,
            Read::Digit(_) if self.is_up() => output - fixed,
            _ => output,
        };
        let number = match what {
            Read::Digit(_) => number,
            Read::Scale => number - fixed,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked below"
        )]
        let whole = number as usize;
        let exact = (whole as f64 - number).abs() <= 0.0;
        (exact && (whole < self.base || matches!(what, Read::Scale))).then_some(whole)
    }

    /// Every output by padded row or token, `[rows, width]`, with the row's pair.
    fn outputs(&self, board: &mut Board, launch: &ProductLaunch) -> Result<Vec<Vec<f64>>, String> {
        let pairs = self.table.pair_rows.iter().map(|&row| usize::try_from(row).unwrap());
        if let Some((sums, _)) = launch.accumulate {
            let (all, stride) = (suite::read_f32(board, sums.region)?, HIDDEN + 8);
            let row = |token: usize| all[token * stride..][..HIDDEN].iter().map(|&v| f64::from(v));
            return Ok((0..TOKENS).map(|token| row(token).collect()).collect());
        }
        let width = self.sizes().1;
        let all = suite::read_bf16(board, launch.y.unwrap_or(launch.h))?;
        let row = |row: usize| all[row * width..][..width].iter().map(|v| v.to_f64());
        Ok(pairs.map(|pair_row| row(pair_row).collect()).collect())
    }

    /// Whether every output of every pair read the place that it should.
    fn compare(
        &self,
        board: &mut Board,
        read: usize,
        launches: &[(Read, ProductLaunch)],
    ) -> Outcome {
        let mut all = Vec::new();
        for (what, launch) in launches {
            all.push((*what, self.outputs(board, launch)?));
        }
        let width = self.sizes().1;
        for (pair, n) in (0..self.ids.len()).flat_map(|p| (0..width).map(move |n| (p, n))) {
            let expert = usize::try_from(self.ids[pair]).unwrap();
            let row = usize::try_from(self.table.pair_rows[pair]).unwrap();
            let k = self.column(if self.is_up() { pair / self.shape.top_k } else { row });
            let at = (expert, read, n, k);
            let (mut place, mut strange) = (0, None);
            for (what, outputs) in &all {
                let output = outputs[pair][n];
                match (what, self.decode(*what, read, output)) {
                    (Read::Digit(weight), Some(digit)) => place += weight * digit,
                    (Read::Scale, Some(block)) if block == self.block(at) => {}
                    (Read::Scale, Some(block)) => {
                        let wanted = self.block(at);
                        return Err(format!(
                            "pair {pair}, output {n}: scale {block} was read, not {wanted}"
                        ));
                    }
                    (what, None) => strange = Some(format!("{output} for {what:?}")),
                }
            }
            let wanted = self.place(at);
            if let Some(strange) = strange {
                return Err(format!(
                    "pair {pair}, output {n}: {strange} is no weight, instead of {}",
                    self.name(wanted)
                ));
            }
            if place != wanted {
                let (read, wanted) = (self.name(place), self.name(wanted));
                return Err(format!("pair {pair}, output {n}: {read} was read, not {wanted}"));
            }
        }
        Ok(())
    }
}

/// Every place of a kernel's weights and scales, half by half.
pub(crate) fn check(kernel: &'static ProductKernel, run: &Run) -> Outcome {
    let layout = Layout::new(kernel);
    let mut batch = Batch::new(run);
    for read in 0..layout.sizes().0 {
        let mut reads: Vec<Read> = layout.digits().into_iter().map(Read::Digit).collect();
        if kernel.weights == WeightFormat::E4m3 {
            reads.push(Read::Scale);
        }
        let launches: Vec<(Read, ProductLaunch)> = reads
            .into_iter()
            .map(|what| Ok((what, layout.launch(what, read, &mut batch.board)?)))
            .collect::<Result<_, String>>()?;
        let layout = layout.clone();
        batch.check(format!("{} places, half {read}", kernel.name), move |board| {
            layout.compare(board, read, &launches)
        });
    }
    batch.finish()
}
