//! What the kernels are fed: weights, activations and router logits, seeded.
//!
//! Values decide time (zeros multiply faster than numbers on many devices), so everything is drawn:
//! activations N(0, 1), weights N(0, 1/K). Weights are copied from a table of normals at random
//! offsets, because drawing gigabytes one by one would take longer than measuring with them.

use half::bf16;
use half::vec::HalfBitsVecExt;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;

use crate::config::DType;
use crate::kernels::{Fp8Weights, Int8Weights, LayerWeights, MoeShape, WeightData};
use crate::workload::{ExpertLoad, RoutingKind};
use crate::{Error, Result};

/// The sentence that a profile's key carries about its data.
pub const RECIPE: &str = "activations N(0, 1); weights N(0, 1/K) from a table of 65536 normals at \
                          random offsets; logits that make a softmax top-k router choose the drawn experts";

/// Normals in the table.
const TABLE: usize = 1 << 16;
/// Values copied from one place of the table.
const CHUNK: usize = 1 << 12;

/// Weights of one layer, `w13` scaled by 1/sqrt(hidden) and `w2` by 1/sqrt(inter); int8 weights are
/// such values with a scale for each row.
///
/// # Errors
/// [`Error::Usage`] when the shape is not valid or its format is not executed here.
pub fn weights(shape: MoeShape, dtype: DType, seed: u64) -> Result<LayerWeights> {
    shape.validate()?;
    let too_large = || Error::usage("hidden and inter", "weights exceed the address space");
    let (n13, n2) = (shape.w13_len().ok_or_else(too_large)?, shape.w2_len().ok_or_else(too_large)?);
    let table = normals(seed, TABLE);
    let scale = |k: usize| 1.0 / (k as f64).sqrt();
    let data = |n: usize, (rows, k): (usize, usize), stream: u64| {
        let scaled: Vec<f32> = table.iter().map(|v| v * narrow(scale(k))).collect();
        let fill = |start: usize, values: &mut [f32]| copy(&scaled, start, values, seed ^ stream);
        match dtype {
            DType::F32 => Ok(WeightData::F32(copies(&scaled, n, seed ^ stream).into())),
            DType::Bf16 => {
                let bits: Vec<u16> = scaled.iter().map(|v| bf16::from_f32(*v).to_bits()).collect();
                let values = copies(&bits, n, seed ^ stream);
                Ok(WeightData::Bf16(values.reinterpret_into::<bf16>().into()))
            }
            DType::Int8 => Ok(WeightData::Int8(Int8Weights::quantize_rows(n, k, fill)?)),
            DType::Fp8 => Ok(WeightData::Fp8(Fp8Weights::quantize_bands(n, (rows, k), fill)?)),
            other => Err(Error::usage(
                "--dtype",
                format!(
                    "{} weights are executed nowhere; bf16, f32 and int8 are, and fp8 on GPUs",
                    other.label()
                ),
            )),
        }
    };
    LayerWeights::new(
        shape,
        data(n13, (shape.inter, shape.hidden), 13)?,
        data(n2, (shape.hidden, shape.inter), 2)?,
    )
}

/// `n` values copied from `table` in chunks that start at random places; the same seed gives the
/// same values whatever the number of threads.
fn copies<T: Copy + Default + Send + Sync>(table: &[T], n: usize, seed: u64) -> Vec<T> {
    let mut values = vec![T::default(); n];
    let chunks = values.par_chunks_mut(CHUNK).enumerate();
    chunks.for_each(|(i, chunk)| copy(table, i * CHUNK, chunk, seed));
    values
}

/// The values from the `first` one on, as [`copies`] makes them.
fn copy<T: Copy>(table: &[T], first: usize, values: &mut [T], seed: u64) {
    let mut done = 0;
    while done < values.len() {
        let (chunk, offset) = ((first + done) / CHUNK, (first + done) % CHUNK);
        let start = mix(seed.wrapping_add(chunk as u64)) % (TABLE - CHUNK) as u64;
        // The remainder is below the length of the table.
        let start = usize::try_from(start).unwrap_or(0) + offset;
        let count = (CHUNK - offset).min(values.len() - done);
        values[done..done + count].copy_from_slice(&table[start..start + count]);
        done += count;
    }
}

/// The finaliser of `SplitMix64`: neighbouring inputs give unrelated outputs.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `n` standard normals.
pub fn normals(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.sample(StandardNormal)).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "a scale in single precision is meant")]
const fn narrow(value: f64) -> f32 {
    value as f32
}

/// One routing of a layer's tokens.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Logits that make the router choose `ids`, `[tokens, experts]`.
    pub logits: Vec<f32>,
    /// Expert of each (token, slot).
    pub ids: Vec<u32>,
    /// Rows of each expert.
    pub load: ExpertLoad,
    /// Whether the launch takes the next set of weights, because the experts of the current one have
    /// all been visited.
    pub next_set: bool,
}

/// Inputs of one cell: activations, and independent routings in the order in which samples use them.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// `[tokens, hidden]`.
    pub x: Vec<f32>,
    /// The routings.
    pub draws: Vec<Draw>,
}

/// Fewest independent routings of a random distribution.
pub(super) const DRAWS: usize = 8;
/// Most of them: with one active expert a launch, that many launches visit all experts once.
const MOST_DRAWS: usize = 64;

/// Draws the routings of a cell.
///
/// Experts are renumbered so that each launch visits experts that no launch since the last change of weights
/// has visited. Loads and times keep their distribution, since experts differ in nothing but their place in
/// memory, and no launch finds the weights of the one before it in the cache.
///
/// # Errors
/// [`Error::Usage`] when the routing does not fit the shape.
pub fn draws(
    shape: &MoeShape,
    tokens: usize,
    routing: &RoutingKind,
    seed: u64,
) -> Result<Vec<Draw>> {
    let ids = |r: usize| {
        let seed = mix(seed.wrapping_add(r as u64));
        Ok::<_, Error>(routing.sample(tokens, shape.experts, shape.top_k, seed)?.ids)
    };
    let active = ExpertLoad::of(&ids(0)?, shape.experts).active().max(1);
    let count = (shape.experts / active).clamp(DRAWS, MOST_DRAWS);
    let mut next = 0;
    (0..count)
        .map(|r| {
            let drawn = ids(r)?;
            let active = ExpertLoad::of(&drawn, shape.experts).active();
            let next_set = r == 0 || next + active > shape.experts;
            let first = if next_set { 0 } else { next };
            next = first + active;
            let ids = renumber(&drawn, shape.experts, first);
            Ok(Draw {
                logits: logits(&ids, shape.experts, shape.top_k, mix(seed ^ (r as u64 + 1))),
                load: ExpertLoad::of(&ids, shape.experts),
                ids,
                next_set,
            })
        })
        .collect()
}

impl Inputs {
    /// Draws the inputs of a cell.
    ///
    /// # Errors
    /// As [`draws`].
    pub fn draw(shape: &MoeShape, tokens: usize, routing: &RoutingKind, seed: u64) -> Result<Self> {
        let draws = draws(shape, tokens, routing, seed)?;
        Ok(Self { x: normals(mix(seed), tokens * shape.hidden), draws })
    }

    /// Mean of a property over the draws.
    pub fn mean(&self, of: impl Fn(&Draw) -> f64) -> f64 {
        self.draws.iter().map(of).sum::<f64>() / self.draws.len() as f64
    }

    /// Experts visited between two changes of weights, on average: what of a set is really read.
    pub fn visited_per_set(&self) -> f64 {
        let visited: usize = self.draws.iter().map(|d| d.load.active()).sum();
        let sets = self.draws.iter().filter(|d| d.next_set).count();
        visited as f64 / sets.max(1) as f64
    }
}

/// Renumbers the experts of a routing so that those in use are `first`, `first + 1`, and so on.
fn renumber(ids: &[u32], experts: usize, first: usize) -> Vec<u32> {
    let mut number: Vec<Option<u32>> = vec![None; experts];
    let mut next = first;
    ids.iter()
        .map(|&id| {
            *number[id as usize].get_or_insert_with(|| {
                // Below the number of experts, which fits.
                let new = u32::try_from(next).unwrap_or(u32::MAX);
                next += 1;
                new
            })
        })
        .collect()
}

/// Logits from N(0, 1) cut at 3, with the chosen experts above all others in the order of their slots.
fn logits(ids: &[u32], experts: usize, top_k: usize, seed: u64) -> Vec<f32> {
    let tokens = ids.len() / top_k;
    let mut logits = normals(seed ^ 0x106, tokens * experts);
    for (row, chosen) in logits.chunks_exact_mut(experts).zip(ids.chunks_exact(top_k)) {
        for logit in row.iter_mut() {
            *logit = logit.min(3.0);
        }
        let mut level = 4.0;
        for &id in chosen.iter().rev() {
            row[id as usize] = level;
            level += 0.25;
        }
    }
    logits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{RouterSpec, reference};

    const SHAPE: MoeShape = MoeShape { experts: 8, top_k: 2, hidden: 96, inter: 40, gated: true };

    #[test]
    fn weights_have_the_stated_spread_and_repeat_with_their_seed() {
        for dtype in [DType::F32, DType::Bf16, DType::Int8] {
            let a = weights(SHAPE, dtype, 7).unwrap();
            assert_eq!(a.dtype(), dtype);
            assert_eq!(a, weights(SHAPE, dtype, 7).unwrap());
            assert_ne!(a, weights(SHAPE, dtype, 8).unwrap());
            for (data, k) in [(&a.w13, 96.0), (&a.w2, 40.0)] {
                let n = data.len();
                let squares: f64 = (0..n).map(|i| data.get(i).powi(2)).sum::<f64>() / n as f64;
                assert!((squares * k - 1.0).abs() < 0.05, "{}", squares * k);
            }
        }
        assert!(weights(SHAPE, DType::Int4, 7).is_err());
    }

    #[test]
    fn fp8_weights_are_the_same_numbers_in_8_bits() {
        let (wide, narrow) =
            (weights(SHAPE, DType::F32, 7).unwrap(), weights(SHAPE, DType::Fp8, 7).unwrap());
        for (wide, narrow) in [(&wide.w13, &narrow.w13), (&wide.w2, &narrow.w2)] {
            for i in 0..wide.len() {
                let (exact, rounded) = (wide.get(i), narrow.get(i));
                assert!((exact - rounded).abs() <= exact.abs() / 16.0 + 1e-4, "{exact}: {rounded}");
            }
        }
        assert!(narrow.bytes() * 3 < wide.bytes());
    }

    #[test]
    fn weights_do_not_depend_on_the_number_of_threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for dtype in [DType::F32, DType::Int8] {
            let alone = pool.install(|| weights(SHAPE, dtype, 3).unwrap());
            assert_eq!(alone, weights(SHAPE, dtype, 3).unwrap());
        }
    }

    #[test]
    fn the_router_chooses_the_drawn_experts() {
        for kind in ["uniform", "zipf:1.0", "balanced", "all-to-one"] {
            let inputs = Inputs::draw(&SHAPE, 17, &kind.parse().unwrap(), 5).unwrap();
            assert_eq!(inputs.draws.len(), DRAWS);
            for draw in &inputs.draws {
                let routed = reference::route(&draw.logits, 8, 2, &RouterSpec::softmax()).unwrap();
                assert_eq!(routed.ids, draw.ids, "{kind}");
            }
        }
    }

    #[test]
    fn no_expert_is_visited_twice_between_changes_of_weights() {
        for (tokens, top_k) in [(1, 1), (1, 2), (3, 1), (5, 2), (40, 1)] {
            let shape = MoeShape { experts: 32, top_k, ..SHAPE };
            let inputs = Inputs::draw(&shape, tokens, &RoutingKind::Uniform, 5).unwrap();
            let mut visited = [false; 32];
            for draw in &inputs.draws {
                if draw.next_set {
                    visited = [false; 32];
                }
                for (expert, _) in draw.load.counts().iter().enumerate().filter(|c| *c.1 > 0) {
                    assert!(!visited[expert], "{tokens} tokens: expert {expert} again");
                    visited[expert] = true;
                }
            }
            assert!(inputs.draws[0].next_set);
            assert!(inputs.visited_per_set() >= inputs.draws[0].load.active() as f64 * 0.9);
        }
    }

    #[test]
    fn renumbering_keeps_the_load() {
        let plain = RoutingKind::Zipf { s: 1.0 }.sample(100, 32, 2, 5).unwrap();
        let sorted = |ids: &[u32]| {
            let mut counts = ExpertLoad::of(ids, 32).counts().to_vec();
            counts.sort_unstable();
            counts
        };
        assert_eq!(sorted(&plain.ids), sorted(&renumber(&plain.ids, 32, 0)));
    }
}
