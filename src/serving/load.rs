//! How many experts a step reads and how many rows the busiest rank gets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Binomial, Distribution};

use crate::Result;
use crate::workload::RoutingKind;

/// Token counts of a table: powers of two up to 2^17.
const TOKEN_POWERS: u32 = 18;
/// Routings drawn for each entry; means are good to about 1 % with these.
const SAMPLES: usize = 64;
/// Seed of the drawn routings and of the placement of experts on ranks.
const SEED: u64 = 0x0e_9e27;

/// Load of the busiest expert-parallel rank in one MoE layer, in the mean over routings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankLoad {
    /// Token-expert pairs.
    pub rows: f64,
    /// Experts with at least one row.
    pub active: f64,
    /// Rows of the busiest expert.
    pub max_rows: f64,
}

/// Tables by number of ranks and of copies.
type Copied = BTreeMap<(usize, usize), Arc<Vec<RankLoad>>>;

impl RankLoad {
    fn add(&mut self, other: &Self, weight: f64) {
        self.rows += weight * other.rows;
        self.active += weight * other.active;
        self.max_rows += weight * other.max_rows;
    }
}

/// Routing of one MoE layer as expectations.
///
/// Each expert is visited by a token with its own probability; experts lie on ranks in a seeded
/// random order (a recorded trace keeps its own).
#[derive(Clone, Debug)]
pub struct LoadModel {
    top_k: f64,
    /// Probability that a token visits each expert, in the order of placement; sums to `top_k`.
    inclusion: Vec<f64>,
    is_even: bool,
    is_balanced: bool,
    /// By number of ranks, rising: the divisors of the number of experts.
    tables: OnceLock<Vec<(usize, Vec<RankLoad>)>>,
    /// By number of ranks and of copies, as they were asked for.
    copied: Arc<Mutex<Copied>>,
    /// [`Self::copies_skew`] by number of ranks and of copies, as they were asked for.
    skews: Arc<Mutex<BTreeMap<(usize, usize), f64>>>,
}

impl LoadModel {
    /// Expectations of a routing over `experts`, `top_k` each token.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for parameters or sizes that make no distribution.
    pub fn new(kind: &RoutingKind, experts: usize, top_k: usize) -> Result<Self> {
        let mut inclusion = kind.inclusion(experts, top_k)?;
        if !matches!(kind, RoutingKind::Trace(_)) {
            inclusion.shuffle(&mut ChaCha8Rng::seed_from_u64(SEED));
        }
        let even = top_k as f64 / experts as f64;
        Ok(Self {
            top_k: top_k as f64,
            is_even: inclusion.iter().all(|p| (p - even).abs() < 1e-12),
            is_balanced: matches!(kind, RoutingKind::Balanced),
            inclusion,
            tables: OnceLock::new(),
            copied: Arc::default(),
            skews: Arc::default(),
        })
    }

    /// Independent uniform routing of each token to `top_k` of `experts`.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] unless `1 <= top_k <= experts`.
    pub fn uniform(experts: usize, top_k: usize) -> Result<Self> {
        Self::new(&RoutingKind::Uniform, experts, top_k)
    }

    fn experts(&self) -> f64 {
        self.inclusion.len() as f64
    }

    /// Expected experts with at least one of `tokens` tokens: `sum_i (1 - (1 - p_i)^m)`, which is
    /// `E (1 - (1 - k/E)^m)` when uniform.
    pub fn active_experts(&self, tokens: f64) -> f64 {
        if self.is_balanced {
            return (tokens * self.top_k).min(self.experts());
        }
        let hit = |p: f64| 1.0 - (1.0 - p.min(1.0)).powf(tokens);
        if self.is_even {
            self.experts() * hit(self.top_k / self.experts())
        } else {
            self.inclusion.iter().map(|&p| hit(p)).sum()
        }
    }

    /// Expected rows of the busiest expert: its mean and the usual excess of the largest of `E`
    /// counts, `mean + sqrt(2 ln E x variance)`, never more than all tokens.
    fn max_rows(&self, tokens: f64) -> f64 {
        let p = self.inclusion.iter().copied().fold(0.0, f64::max).min(1.0);
        if self.is_balanced {
            return (tokens * p).max(1.0_f64.min(tokens));
        }
        let excess = (2.0 * self.experts().ln() * tokens * p * (1.0 - p)).sqrt();
        (tokens * p + excess).clamp(1.0_f64.min(tokens), tokens)
    }

    /// The busiest of `ranks` expert-parallel ranks when `tokens` tokens enter the layer.
    pub fn busiest(&self, tokens: f64, ranks: usize) -> RankLoad {
        if ranks <= 1 {
            let rows = tokens * self.top_k;
            let active = self.active_experts(tokens).min(rows.max(f64::MIN_POSITIVE));
            return RankLoad { rows, active, max_rows: self.max_rows(tokens) };
        }
        if self.is_balanced {
            let (rows, local) = (tokens * self.top_k / ranks as f64, self.experts() / ranks as f64);
            return RankLoad { rows, active: rows.min(local), max_rows: (rows / local).max(1.0) };
        }
        let tables = self.tables.get_or_init(|| self.sampled());
        let at = tables.partition_point(|(size, _)| *size < ranks).min(tables.len() - 1);
        at_tokens(&tables[at].1, tokens)
    }

    /// The same with `copies` further places for the busiest experts, which share their rows, and
    /// experts dealt to the ranks by load.
    pub fn busiest_with(&self, tokens: f64, ranks: usize, copies: usize) -> RankLoad {
        if copies == 0 || ranks <= 1 || self.is_balanced {
            return self.busiest(tokens, ranks);
        }
        let known = self
            .copied
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(ranks, copies))
            .cloned();
        let table = known.unwrap_or_else(|| {
            let table =
                Arc::new(self.sampled_with(&Placement::new(&self.inclusion, ranks, copies)));
            let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(copied.entry((ranks, copies)).or_insert(table))
        });
        at_tokens(&table, tokens)
    }

    /// Copies of tokens at the busiest of `ranks` ranks, one for each token and rank whatever the
    /// number of its experts there, over those at any rank under uniform routing.
    pub fn copies_skew(&self, ranks: usize, copies: usize) -> f64 {
        let experts = self.inclusion.len();
        if self.is_even || ranks <= 1 || experts < ranks {
            return 1.0;
        }
        let known = {
            let skews = self.skews.lock().unwrap_or_else(PoisonError::into_inner);
            skews.get(&(ranks, copies)).copied()
        };
        known.unwrap_or_else(|| {
            let placement = if copies == 0 {
                Placement::in_order(experts, ranks)
            } else {
                Placement::new(&self.inclusion, ranks, copies)
            };
            let visits = placement.most_visits(&self.inclusion);
            let even =
                1.0 - (1.0 - self.top_k / experts as f64).powf(experts as f64 / ranks as f64);
            let skew = (visits / even).max(1.0);
            self.skews.lock().unwrap_or_else(PoisonError::into_inner).insert((ranks, copies), skew);
            skew
        })
    }

    /// Means over the routings of [`Self::sampled`], placed.
    fn sampled_with(&self, placement: &Placement) -> Vec<RankLoad> {
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let mean = |power: u32| {
            let mut sum = RankLoad { rows: 0.0, active: 0.0, max_rows: 0.0 };
            for _ in 0..SAMPLES {
                let counts = self.one_routing(1_u64 << power, &mut rng);
                sum.add(&placement.busiest_of(&counts), 1.0 / SAMPLES as f64);
            }
            sum
        };
        (0..TOKEN_POWERS).map(mean).collect()
    }

    /// Means over drawn routings at 1, 2, 4, ... tokens; the same routings for every number of ranks.
    fn sampled(&self) -> Vec<(usize, Vec<RankLoad>)> {
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let experts = self.inclusion.len();
        let sizes = (1..=experts).filter(|ranks| experts.is_multiple_of(*ranks));
        let mut tables: Vec<(usize, Vec<RankLoad>)> =
            sizes.map(|ranks| (ranks, Vec::new())).collect();
        for power in 0..TOKEN_POWERS {
            let tokens = 1_u64 << power;
            let routings: Vec<Vec<f64>> =
                (0..SAMPLES).map(|_| self.one_routing(tokens, &mut rng)).collect();
            for (ranks, table) in &mut tables {
                let mut sum = RankLoad { rows: 0.0, active: 0.0, max_rows: 0.0 };
                for counts in &routings {
                    sum.add(&busiest_of(counts, experts / *ranks), 1.0 / SAMPLES as f64);
                }
                table.push(sum);
            }
        }
        tables
    }

    /// Rows of each expert in one drawn routing: a binomial count, scaled to the rows that the tokens
    /// have together.
    fn one_routing(&self, tokens: u64, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let mut counts: Vec<f64> = self
            .inclusion
            .iter()
            .map(|&p| {
                Binomial::new(tokens, p.clamp(0.0, 1.0)).map_or(0.0, |b| b.sample(rng) as f64)
            })
            .collect();
        let rows = tokens as f64 * self.top_k;
        let drawn: f64 = counts.iter().sum();
        let scale = if drawn > 0.0 { rows / drawn } else { 1.0 };
        for count in &mut counts {
            *count *= scale;
        }
        counts
    }
}

/// Experts and copies on ranks, as expert-parallel load balancers place them (DeepSeek's EPLB): a copy
/// goes to the expert with most rows per copy, then the heaviest goes to the lightest rank with room.
struct Placement {
    /// Of each rank, its experts.
    ranks: Vec<Vec<usize>>,
    /// Of each expert, its places.
    places: Vec<u32>,
}

impl Placement {
    /// One place for each expert, as they come.
    fn in_order(experts: usize, ranks: usize) -> Self {
        let all: Vec<usize> = (0..experts).collect();
        let ranks = all.chunks(experts.div_ceil(ranks).max(1)).map(<[usize]>::to_vec).collect();
        Self { ranks, places: vec![1; experts] }
    }

    /// Probability that a token goes to the rank that most tokens go to.
    fn most_visits(&self, inclusion: &[f64]) -> f64 {
        let missed = |experts: &Vec<usize>| -> f64 {
            experts
                .iter()
                .map(|&e| 1.0 - (inclusion[e] / f64::from(self.places[e])).min(1.0))
                .product()
        };
        1.0 - self.ranks.iter().map(missed).fold(1.0, f64::min)
    }

    fn new(inclusion: &[f64], ranks: usize, copies: usize) -> Self {
        let mut places = vec![1_u32; inclusion.len()];
        let each = |places: &[u32], e: usize| inclusion[e] / f64::from(places[e]);
        for _ in 0..copies {
            // One expert has at most one place a rank.
            let busiest = (0..places.len())
                .filter(|e| (places[*e] as usize) < ranks)
                .max_by(|a, b| each(&places, *a).total_cmp(&each(&places, *b)));
            if let Some(busiest) = busiest {
                places[busiest] += 1;
            }
        }
        let mut dealt: Vec<usize> =
            (0..places.len()).flat_map(|e| std::iter::repeat_n(e, places[e] as usize)).collect();
        dealt.sort_by(|a, b| each(&places, *b).total_cmp(&each(&places, *a)));
        let room = dealt.len().div_ceil(ranks);
        let mut held: Vec<(f64, Vec<usize>)> = vec![(0.0, Vec::new()); ranks];
        for expert in dealt {
            let free = held.iter_mut().filter(|(_, experts)| experts.len() < room);
            if let Some((load, experts)) = free.min_by(|a, b| a.0.total_cmp(&b.0)) {
                *load += each(&places, expert);
                experts.push(expert);
            }
        }
        Self { ranks: held.into_iter().map(|(_, experts)| experts).collect(), places }
    }

    /// The rank with most rows when those of an expert are shared by its places.
    fn busiest_of(&self, counts: &[f64]) -> RankLoad {
        let of = |experts: &Vec<usize>| {
            let mut load = RankLoad { rows: 0.0, active: 0.0, max_rows: 0.0 };
            for &expert in experts {
                let places = f64::from(self.places[expert]);
                let rows = counts[expert] / places;
                // Fewer rows than places: some places have none.
                load.active += counts[expert].min(places) / places;
                load.rows += rows;
                load.max_rows = load.max_rows.max(rows);
            }
            load
        };
        let ranks = self.ranks.iter().map(of);
        ranks.max_by(|a, b| a.rows.total_cmp(&b.rows)).unwrap_or(RankLoad {
            rows: 0.0,
            active: 0.0,
            max_rows: 0.0,
        })
    }
}

/// The rank with most rows, of ranks with `local` experts each.
fn busiest_of(counts: &[f64], local: usize) -> RankLoad {
    let rows = |experts: &[f64]| experts.iter().sum::<f64>();
    let busiest = counts.chunks(local).max_by(|a, b| rows(a).total_cmp(&rows(b))).unwrap_or(&[]);
    RankLoad {
        rows: rows(busiest),
        active: busiest.iter().filter(|c| **c > 0.0).count() as f64,
        max_rows: busiest.iter().copied().fold(0.0, f64::max),
    }
}

/// Between the powers of two of a table, per token; below one token in proportion, beyond the last
/// one as it is there.
fn at_tokens(table: &[RankLoad], tokens: f64) -> RankLoad {
    let last = table.len() - 1;
    let place = tokens.log2().clamp(0.0, last as f64);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the table"
    )]
    let index = (place.floor() as usize).min(last.saturating_sub(1));
    let share = place - index as f64;
    let (low, high) = (&table[index], &table[(index + 1).min(last)]);
    let (at_low, at_high) = ((index as f64).exp2(), (index as f64 + 1.0).exp2());
    let per_token = |a: f64, b: f64| (a / at_low) * (1.0 - share) + (b / at_high) * share;
    let rows = tokens * per_token(low.rows, high.rows);
    let max_rows = tokens * per_token(low.max_rows, high.max_rows);
    let active = if tokens < 1.0 {
        tokens * low.active
    } else {
        low.active + (high.active - low.active) * share
    };
    RankLoad { rows, active: active.min(rows.max(f64::MIN_POSITIVE)), max_rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_routing_has_its_closed_form() {
        let load = LoadModel::uniform(8, 2).unwrap();
        let expected = 8.0 * (1.0 - 0.75_f64.powi(4));
        assert!((load.active_experts(4.0) - expected).abs() < 1e-12);
        assert!((load.busiest(4.0, 1).rows - 8.0).abs() < 1e-12);
    }

    #[test]
    fn skew_reads_fewer_experts_and_burdens_one_rank() {
        let even = LoadModel::uniform(64, 4).unwrap();
        let skewed = LoadModel::new(&RoutingKind::Zipf { s: 1.0 }, 64, 4).unwrap();
        assert!(skewed.active_experts(16.0) < even.active_experts(16.0));
        let (a, b) = (even.busiest(512.0, 8), skewed.busiest(512.0, 8));
        assert!(b.rows > a.rows && b.max_rows > a.max_rows);
    }

    #[test]
    fn the_busiest_rank_lies_between_the_mean_and_everything() {
        let load = LoadModel::uniform(128, 8).unwrap();
        for tokens in [1.0, 3.0, 17.0, 300.0, 9000.0, 300_000.0] {
            let busiest = load.busiest(tokens, 8);
            let mean = tokens;
            assert!(busiest.rows >= mean && busiest.rows <= 8.0 * tokens, "{tokens} {busiest:?}");
            assert!(busiest.active <= 16.0 && busiest.active > 0.0);
            assert!(busiest.max_rows <= busiest.rows + 1e-9);
        }
        // The excess dies out with the square root of the tokens.
        assert!(load.busiest(100_000.0, 8).rows < 1.02 * 100_000.0);
    }

    #[test]
    fn each_number_of_ranks_has_its_own_load_whoever_asks_first() {
        let load = LoadModel::uniform(384, 8).unwrap();
        let before = load.busiest(1000.0, 12);
        let eight = load.busiest(1000.0, 8);
        assert_eq!(load.busiest(1000.0, 12), before);
        assert!(eight.rows > 1.3 * before.rows, "{eight:?} {before:?}");
    }

    #[test]
    fn rows_rise_with_the_tokens() {
        let load = LoadModel::new(&RoutingKind::Zipf { s: 0.5 }, 32, 2).unwrap();
        let mut before = 0.0;
        for i in 0..200 {
            let rows = load.busiest(1.08_f64.powi(i), 4).rows;
            assert!(rows > before, "{i}");
            before = rows;
        }
    }

    #[test]
    fn copies_of_the_busiest_experts_relieve_the_busiest_rank() {
        let load = LoadModel::new(&RoutingKind::Zipf { s: 0.7 }, 256, 8).unwrap();
        let mean = 4096.0 * 8.0 / 32.0;
        let plain = load.busiest_with(4096.0, 32, 0);
        let copied = load.busiest_with(4096.0, 32, 32);
        assert!(copied.rows < 0.8 * plain.rows && copied.rows >= mean, "{plain:?} {copied:?}");
        assert!(copied.max_rows <= 0.6 * plain.max_rows && copied.active <= 9.0);
        // 256 and 32 over 144 ranks: two each.
        let wide = load.busiest_with(1e5, 144, 32);
        assert!(wide.active <= 2.0 && wide.rows >= 1e5 * 8.0 / 144.0, "{wide:?}");
    }

    #[test]
    fn skew_burdens_the_link_of_one_rank_and_copies_relieve_it() {
        assert_eq!(
            LoadModel::uniform(256, 8).unwrap().copies_skew(32, 0).to_bits(),
            1.0_f64.to_bits()
        );
        // Half of the tokens go to expert 0: with top-1 over 8 ranks of one, half instead of an eighth.
        let hot = LoadModel::new(&RoutingKind::Hot { share: 0.5 }, 8, 1).unwrap();
        assert!((hot.copies_skew(8, 0) - 4.0).abs() < 1e-12, "{}", hot.copies_skew(8, 0));
        // All choices of a token on one rank of two are one copy: no rank gets more than all tokens.
        let one = LoadModel::new(&RoutingKind::AllToOne, 8, 4).unwrap();
        let most = 1.0 / (1.0 - 0.5_f64.powi(4));
        assert!(one.copies_skew(2, 0) <= most + 1e-12 && one.copies_skew(2, 0) >= 1.0);
        let zipf = LoadModel::new(&RoutingKind::Zipf { s: 0.7 }, 256, 8).unwrap();
        let (plain, copied) = (zipf.copies_skew(32, 0), zipf.copies_skew(32, 32));
        assert!(plain > 1.3 && copied < 0.9 * plain && copied >= 1.0, "{plain} {copied}");
    }

    #[test]
    fn no_expert_has_two_places_on_every_rank() {
        let mut inclusion = vec![0.01; 8];
        inclusion[3] = 0.9;
        let placement = Placement::new(&inclusion, 4, 8);
        assert_eq!(placement.places[3], 4);
        assert!(placement.ranks.iter().all(|rank| rank.len() == 4));
        let placed: usize = placement.ranks.iter().flatten().filter(|e| **e == 3).count();
        assert_eq!(placed, 4);
    }

    #[test]
    fn a_balanced_routing_spreads_exactly() {
        let load = LoadModel::new(&RoutingKind::Balanced, 16, 2).unwrap();
        assert!((load.busiest(32.0, 4).rows - 16.0).abs() < 1e-12);
        assert!((load.active_experts(4.0) - 8.0).abs() < 1e-12);
    }
}
