//! Distributions of tokens over experts, and seeded draws from them.

use std::fmt;
use std::str::FromStr;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, Gamma};

use crate::{Error, Result};

/// How tokens choose experts.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum RoutingKind {
    /// Round robin: every expert gets the same number of rows, as near as can be.
    Balanced,
    /// Every set of `top_k` experts is equally likely for each token.
    Uniform,
    /// Popularity of the i-th expert falls as `i^-s`.
    Zipf {
        /// Exponent; 0 is uniform.
        s: f64,
    },
    /// Popularities drawn from a density `x^-alpha` on `[1, 1000]`.
    PowerLaw {
        /// Exponent above 1.
        alpha: f64,
    },
    /// Popularities drawn from a symmetric Dirichlet distribution.
    Dirichlet {
        /// Concentration above 0; large is even.
        concentration: f64,
    },
    /// One expert is visited by this share of all tokens, the others evenly.
    Hot {
        /// Share between `top_k / experts` and 1.
        share: f64,
    },
    /// All tokens visit the first `top_k` experts.
    AllToOne,
    /// Expert prototyping (Yang et al. 2021, arXiv 2105.15082): `top_k` groups of as many experts each,
    /// one of every group, each equally likely. Of the sets that top-k could choose only
    /// `(experts / top_k)^top_k` can occur.
    Prototype,
    /// Popularities from a recorded load, as shares of rows.
    Trace(Vec<f64>),
}

/// Experts of every token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Experts of the layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Expert of each (token, slot), `[tokens, top_k]`; distinct within a token.
    pub ids: Vec<u32>,
}

impl RoutingKind {
    /// How tokens of served models choose experts unless said otherwise. Among Zipf exponents 0 to 1
    /// it fits the open server rows best ([accuracy page](../../../reports/accuracy.md)): uniform
    /// routing reads too many experts a step.
    pub const TYPICAL: Self = Self::Zipf { s: 0.8 };

    /// Draws the experts of `tokens` tokens. The same seed gives the same ids on every machine.
    ///
    /// # Errors
    /// [`Error::Usage`] for parameters or sizes that make no distribution.
    pub fn sample(
        &self,
        tokens: usize,
        experts: usize,
        top_k: usize,
        seed: u64,
    ) -> Result<Routing> {
        check_sizes(experts, top_k)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let ids = match self {
            Self::Balanced => (0..tokens * top_k).map(|pair| narrow(pair % experts)).collect(),
            Self::AllToOne => (0..tokens * top_k).map(|pair| narrow(pair % top_k)).collect(),
            Self::Uniform => (0..tokens)
                .flat_map(|_| rand::seq::index::sample(&mut rng, experts, top_k))
                .map(narrow)
                .collect(),
            Self::Prototype => {
                let size = group_size(experts, top_k)?;
                (0..tokens * top_k)
                    .map(|pair| narrow((pair % top_k) * size + rng.random_range(0..size)))
                    .collect()
            }
            _ => {
                let weights = self.popularity(experts, top_k, &mut rng)?;
                (0..tokens).flat_map(|_| draw_distinct(&weights, top_k, &mut rng)).collect()
            }
        };
        Ok(Routing { experts, top_k, ids })
    }

    /// Probability that a token visits each expert; they sum to `top_k`.
    ///
    /// From popularities w: `p_i = min(1, theta w_i)` with theta such that the sum is `top_k`.
    ///
    /// # Errors
    /// [`Error::Usage`] for parameters or sizes that make no distribution.
    pub fn inclusion(&self, experts: usize, top_k: usize) -> Result<Vec<f64>> {
        check_sizes(experts, top_k)?;
        let even = top_k as f64 / experts as f64;
        match self {
            Self::Balanced | Self::Uniform => Ok(vec![even; experts]),
            Self::Prototype => group_size(experts, top_k).map(|_| vec![even; experts]),
            Self::AllToOne => Ok((0..experts).map(|i| if i < top_k { 1.0 } else { 0.0 }).collect()),
            Self::Hot { share } => {
                self.popularity(experts, top_k, &mut ChaCha8Rng::seed_from_u64(0))?;
                let rest = (top_k as f64 - share) / (experts - 1).max(1) as f64;
                Ok((0..experts).map(|i| if i == 0 { *share } else { rest }).collect())
            }
            _ => {
                let mut rng = ChaCha8Rng::seed_from_u64(0);
                Ok(scale_to(&self.popularity(experts, top_k, &mut rng)?, top_k as f64))
            }
        }
    }

    /// Relative popularity of each expert.
    fn popularity(&self, experts: usize, top_k: usize, rng: &mut ChaCha8Rng) -> Result<Vec<f64>> {
        let bad = |what: &str, value: f64, form: &str| {
            Err(Error::usage("--routing", format!("{what} {value} is not {form}")))
        };
        match *self {
            Self::Zipf { s } if s.is_finite() && s >= 0.0 => {
                Ok((1..=experts).map(|i| (i as f64).powf(-s)).collect())
            }
            Self::Zipf { s } => bad("Zipf exponent", s, "a finite number of zero or more"),
            Self::PowerLaw { alpha } if alpha.is_finite() && alpha > 1.0 => {
                // Inverse of the distribution function of x^-alpha on [1, 1000].
                let power = 1.0 - alpha;
                let span = 1000f64.powf(power) - 1.0;
                Ok((0..experts)
                    .map(|_| (1.0 + rng.random::<f64>() * span).powf(1.0 / power))
                    .collect())
            }
            Self::PowerLaw { alpha } => {
                bad("power-law exponent", alpha, "a finite number above one")
            }
            Self::Dirichlet { concentration } => match Gamma::new(concentration, 1.0) {
                // A draw of zero everywhere is possible for tiny concentrations.
                Ok(gamma) => Ok((0..experts).map(|_| gamma.sample(rng).max(1e-300)).collect()),
                Err(_) => {
                    bad("Dirichlet concentration", concentration, "a finite number above zero")
                }
            },
            Self::Hot { share } if share <= 1.0 && share >= top_k as f64 / experts as f64 => {
                let rest = (top_k as f64 - share) / (experts - 1).max(1) as f64;
                Ok((0..experts).map(|i| if i == 0 { share } else { rest }).collect())
            }
            Self::Hot { share } => bad("hot share", share, "between top_k / experts and 1"),
            Self::Trace(ref shares) if shares.len() == experts => Ok(shares.clone()),
            Self::Trace(ref shares) => Err(Error::usage(
                "--routing",
                format!("the trace has {} experts, the layer {experts}", shares.len()),
            )),
            Self::Balanced | Self::Uniform | Self::AllToOne | Self::Prototype => {
                Ok(vec![1.0; experts])
            }
        }
    }
}

/// Expected experts with at least one of `tokens` tokens: `sum_i (1 - (1 - p_i)^m)`.
pub fn expected_active(inclusion: &[f64], tokens: f64) -> f64 {
    inclusion.iter().map(|&p| 1.0 - (1.0 - p.min(1.0)).powf(tokens)).sum()
}

fn check_sizes(experts: usize, top_k: usize) -> Result<()> {
    if experts == 0 || top_k == 0 || top_k > experts || u32::try_from(experts).is_err() {
        return Err(Error::usage(
            "--experts and --top-k",
            format!("{experts} and {top_k}: need 1 <= top_k <= experts"),
        ));
    }
    Ok(())
}

/// Experts of one of `top_k` groups of equal size.
fn group_size(experts: usize, top_k: usize) -> Result<usize> {
    if !experts.is_multiple_of(top_k) {
        return Err(Error::usage(
            "--routing",
            format!("prototype: {top_k} groups do not divide {experts} experts"),
        ));
    }
    Ok(experts / top_k)
}

/// `top_k` distinct experts, drawn one after the other in proportion to their weights: the largest
/// of `weight / exponential` (Efraimidis and Spirakis 2006).
fn draw_distinct(weights: &[f64], top_k: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut keys: Vec<(f64, usize)> =
        weights.iter().enumerate().map(|(i, &w)| (w / rng.sample::<f64, _>(Exp1), i)).collect();
    keys.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    keys.iter().take(top_k).map(|&(_, i)| narrow(i)).collect()
}

/// `min(1, theta w)` with theta such that the sum is `total`.
fn scale_to(weights: &[f64], total: f64) -> Vec<f64> {
    let clipped = |theta: f64| weights.iter().map(move |w| (theta * w).min(1.0));
    let (mut low, mut high) = (0.0, 1.0);
    while clipped(high).sum::<f64>() < total * (1.0 - 1e-12) && high < 1e300 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if clipped(middle).sum::<f64>() < total { low = middle } else { high = middle }
    }
    clipped(high).collect()
}

/// An expert's number; sizes were checked to fit.
#[expect(clippy::cast_possible_truncation, reason = "below the number of experts, which fits")]
const fn narrow(id: usize) -> u32 {
    id as u32
}

impl FromStr for RoutingKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, value) = text.split_once(':').map_or((text, None), |(n, v)| (n, Some(v)));
        let number = || {
            value.and_then(|v| v.parse::<f64>().ok()).filter(|v| v.is_finite()).ok_or_else(|| {
                Error::usage("--routing", format!("`{text}` needs a number, such as `{name}:1.0`"))
            })
        };
        match (name, value) {
            ("balanced", None) => Ok(Self::Balanced),
            ("uniform", None) => Ok(Self::Uniform),
            ("all-to-one", None) => Ok(Self::AllToOne),
            ("prototype", None) => Ok(Self::Prototype),
            ("zipf", _) => Ok(Self::Zipf { s: number()? }),
            ("power-law", _) => Ok(Self::PowerLaw { alpha: number()? }),
            ("dirichlet", _) => Ok(Self::Dirichlet { concentration: number()? }),
            ("hot", _) => Ok(Self::Hot { share: number()? }),
            ("trace", Some(path)) => {
                Ok(Self::Trace(super::Trace::read(std::path::Path::new(path))?.shares()))
            }
            _ => Err(Error::usage(
                "--routing",
                format!(
                    "`{text}` is none of balanced, uniform, zipf:S, power-law:A, dirichlet:C, \
                     hot:SHARE, all-to-one, prototype, trace:FILE"
                ),
            )),
        }
    }
}

impl fmt::Display for RoutingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balanced => f.write_str("balanced"),
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf { s } => write!(f, "zipf:{s}"),
            Self::PowerLaw { alpha } => write!(f, "power-law:{alpha}"),
            Self::Dirichlet { concentration } => write!(f, "dirichlet:{concentration}"),
            Self::Hot { share } => write!(f, "hot:{share}"),
            Self::AllToOne => f.write_str("all-to-one"),
            Self::Prototype => f.write_str("prototype"),
            Self::Trace(shares) => write!(f, "trace of {} experts", shares.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::ExpertLoad;
    use proptest::prelude::*;

    fn kinds() -> Vec<RoutingKind> {
        [
            "balanced",
            "uniform",
            "zipf:1.0",
            "power-law:1.2",
            "dirichlet:0.5",
            "hot:0.9",
            "all-to-one",
        ]
        .iter()
        .map(|k| k.parse().unwrap())
        .chain([RoutingKind::Trace(vec![0.125; 8])])
        .collect()
    }

    #[test]
    fn every_kind_gives_distinct_experts_and_the_same_ids_for_a_seed() {
        for kind in kinds() {
            let routing = kind.sample(100, 8, 3, 42).unwrap();
            assert_eq!(routing.ids.len(), 300, "{kind}");
            for ids in routing.ids.chunks_exact(3) {
                assert!(
                    ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2],
                    "{kind}: {ids:?}"
                );
                assert!(ids.iter().all(|&id| id < 8));
            }
            assert_eq!(routing, kind.sample(100, 8, 3, 42).unwrap());
        }
    }

    #[test]
    fn prototyping_takes_one_expert_of_every_group() {
        let kind: RoutingKind = "prototype".parse().unwrap();
        assert_eq!(kind.to_string(), "prototype");
        let routing = kind.sample(2000, 8, 2, 5).unwrap();
        assert_eq!(routing, kind.sample(2000, 8, 2, 5).unwrap());
        for ids in routing.ids.chunks_exact(2) {
            assert!(ids[0] < 4 && (4..8).contains(&ids[1]), "{ids:?}");
        }
        let load = ExpertLoad::of(&routing.ids, 8);
        assert!(load.max_over_mean().unwrap() < 1.15);
        let p = kind.inclusion(8, 2).unwrap();
        assert!(p.iter().all(|p| (p - 0.25).abs() < 1e-12), "{p:?}");
        // One group is plain top-1, as many groups as experts visit all.
        assert_eq!(kind.sample(3, 4, 4, 1).unwrap().ids, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
        for refused in [kind.sample(1, 8, 3, 0).map(|_| ()), kind.inclusion(8, 3).map(|_| ())] {
            let error = refused.unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("do not divide 8"), "{error}");
        }
    }

    #[test]
    fn inclusion_probabilities_sum_to_top_k() {
        for kind in kinds() {
            let p = kind.inclusion(8, 3).unwrap();
            assert!((p.iter().sum::<f64>() - 3.0).abs() < 1e-9, "{kind}: {p:?}");
            assert!(p.iter().all(|p| (0.0..=1.0).contains(p)), "{kind}: {p:?}");
        }
    }

    #[test]
    fn balanced_is_exact_and_skew_is_seen() {
        let load = |kind: &str| {
            let kind: RoutingKind = kind.parse().unwrap();
            ExpertLoad::of(&kind.sample(4000, 8, 2, 7).unwrap().ids, 8)
        };
        assert_eq!(load("balanced").counts(), [1000; 8]);
        assert_eq!(load("all-to-one").counts()[..2], [4000, 4000]);
        assert!(load("uniform").max_over_mean().unwrap() < 1.1);
        let zipf = load("zipf:1.5");
        assert!(zipf.max_over_mean().unwrap() > 2.0 && zipf.counts()[0] > zipf.counts()[7]);
        let hot = f64::from(load("hot:0.8").counts()[0]) / 4000.0;
        assert!(hot > 0.5, "{hot}");
    }

    #[test]
    fn drawn_active_experts_agree_with_their_expectation() {
        for (kind, tokens) in [("uniform", 8), ("zipf:1.0", 8), ("uniform", 40)] {
            let kind: RoutingKind = kind.parse().unwrap();
            let top_k = 1;
            let expected = expected_active(&kind.inclusion(16, top_k).unwrap(), f64::from(tokens));
            let draws = 2000;
            let drawn: usize = (0..draws)
                .map(|seed| {
                    let tokens = usize::try_from(tokens).unwrap();
                    ExpertLoad::of(&kind.sample(tokens, 16, top_k, seed).unwrap().ids, 16).active()
                })
                .sum();
            let mean = drawn as f64 / draws as f64;
            assert!((mean / expected - 1.0).abs() < 0.02, "{kind}: {mean} against {expected}");
        }
    }

    #[test]
    fn uniform_routing_hits_the_tabulated_number_of_experts() {
        for (experts, tokens, hit) in
            [(4, 4.0, 3.75), (8, 4.0, 5.47), (16, 16.0, 14.11), (32, 32.0, 27.94)]
        {
            let p = RoutingKind::Uniform.inclusion(experts, 2).unwrap();
            assert!((expected_active(&p, tokens) - hit).abs() < 0.005, "{experts} {tokens}");
        }
    }

    proptest! {
        #[test]
        fn active_experts_rise_concavely_to_their_limit(
            weights in prop::collection::vec(0.01..10.0f64, 2..40),
            m in 1.0..200.0f64,
        ) {
            let p = RoutingKind::Trace(weights.clone()).inclusion(weights.len(), 2).unwrap();
            prop_assert!(expected_active(&p, 0.0).abs() < 1e-12);
            prop_assert!((expected_active(&p, 1.0) - 2.0).abs() < 1e-6);
            let at = |m: f64| expected_active(&p, m);
            prop_assert!(at(m + 1.0) + 1e-9 >= at(m));
            prop_assert!(at(m) - at(m - 1.0) + 1e-9 >= at(m + 1.0) - at(m), "concave");
            prop_assert!(at(m) <= (weights.len() as f64).min(2.0 * m) + 1e-6);
        }
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        for bad in ["", "zipf", "zipf:x", "hot:nan", "uniform:1", "best", "trace:no/such/file"] {
            assert!(bad.parse::<RoutingKind>().is_err(), "{bad}");
        }
        for kind in ["zipf:-1", "power-law:0.5", "dirichlet:0", "hot:1.5", "hot:0.01"] {
            let kind: RoutingKind = kind.parse().unwrap();
            assert_eq!(kind.sample(4, 8, 2, 1).unwrap_err().exit_code(), 2, "{kind}");
            assert!(kind.inclusion(8, 2).is_err(), "{kind}");
        }
        assert!(RoutingKind::Uniform.sample(4, 8, 9, 1).is_err());
        assert!(RoutingKind::Trace(vec![1.0; 3]).sample(4, 8, 2, 1).is_err());
    }

    #[test]
    fn names_are_read_back() {
        for kind in kinds().into_iter().take(7) {
            assert_eq!(kind.to_string().parse::<RoutingKind>().unwrap(), kind);
        }
    }
}
