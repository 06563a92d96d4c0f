//! What a simulation is asked and what it answers: requests in, percentiles out.
//!
//! Requests are drawn from a seed or given. Percentiles come with batch-means intervals. Same seed,
//! same result. The engines themselves are in `fleet.rs`.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, Gamma, LogNormal};
use serde::Serialize;

use crate::error::{in_range, positive};
use crate::serving::fleet::{Fleet, Router};
use crate::serving::{Lengths, PromptTimes};
use crate::stats::quantile;
use crate::{Error, Result};

/// Share of drawn requests that are dropped as warm-up.
const WARM_UP: f64 = 0.1;
/// Batches of the intervals, and Student's t for 95 % of their mean.
const BATCHES: usize = 20;
const T_19: f64 = 2.093;

/// Speed of an engine, tabulated.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineSpeed {
    /// Seconds of a step with `j + 1` decoding sequences; its length is the batch cap.
    pub decode_s: Vec<f64>,
    /// Seconds that prompt tokens add to a step.
    pub prompt_s: PromptTimes,
    /// Most prompt tokens in one step.
    pub chunk_tokens: f64,
    /// Tokens that the cache holds.
    pub cache_tokens: f64,
    /// Seconds that the front end adds to the time to first token.
    pub request_s: f64,
    /// Share of the prompt tokens that are computed; the cache of the others is found.
    pub computed: f64,
    /// Times to first token beyond what steps take.
    pub delivery: Delivery,
}

/// What the way of a first token takes beyond its steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Delivery {
    /// Times per output token of the request: steps between a token's computation and its delivery.
    pub tokens: f64,
    /// Seconds per prompt token.
    pub prompt_token_s: f64,
}

impl Delivery {
    /// Seconds for a prompt of some tokens of a request with some time per output token.
    pub fn seconds(&self, input: f64, tpot: f64) -> f64 {
        self.tokens * tpot + self.prompt_token_s * input
    }
}

/// How lengths are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    /// All equal.
    Fixed,
    /// Geometric outputs, fixed prompts.
    Geometric,
    /// Log-normal prompts and outputs with this coefficient of variation.
    LogNormal(f64),
}

/// Requests of a simulation.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Drawn: arrivals per second, burstiness (shape of the gamma distribution of gaps: 1 is
    /// Poisson, below is burstier), lengths and their spread, number of requests, seed.
    Drawn {
        /// Requests per second.
        rate: f64,
        /// Shape of the gaps' gamma distribution.
        burstiness: f64,
        /// Mean lengths.
        lengths: Lengths,
        /// How lengths vary.
        spread: Spread,
        /// Requests.
        requests: usize,
        /// Seed.
        seed: u64,
    },
    /// Given: arrival in seconds (rising), prompt and output tokens; all of them count.
    Trace(Vec<(f64, f64, f64)>),
}

impl Arrivals {
    /// How many requests count: of drawn ones the first tenth is warm-up, of given ones all do.
    pub fn counted(&self) -> usize {
        match self {
            Self::Drawn { requests, .. } => requests - warm_up(*requests),
            Self::Trace(rows) => rows.len(),
        }
    }
}

/// How many of so many drawn requests are warm-up.
fn warm_up(requests: usize) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a tenth of a number of requests"
    )]
    let skip = (WARM_UP * requests as f64).round() as usize;
    skip
}

/// A percentile with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Value in seconds.
    pub value: f64,
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

/// Distribution of one metric over requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Mean.
    pub mean: Estimate,
    /// Median.
    pub p50: Estimate,
    /// 90th percentile.
    pub p90: Estimate,
    /// 99th percentile.
    pub p99: Estimate,
}

/// What a simulation measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Simulated {
    /// Requests that count.
    pub requests: usize,
    /// Arrival to first token.
    pub ttft_s: Percentiles,
    /// Time per output token after the first.
    pub tpot_s: Percentiles,
    /// Arrival to last token.
    pub e2e_s: Percentiles,
    /// Arrival to admission.
    pub wait_s: Percentiles,
    /// Mean decoding sequences of a replica over the whole run.
    pub mean_running: f64,
}

/// One request.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) arrival: f64,
    pub(super) input: f64,
    pub(super) output: f64,
}

/// Runs the requests through one engine.
///
/// # Errors
/// [`Error::Usage`] for impossible inputs; [`Error::Infeasible`] when one request alone exceeds the
/// cache.
pub fn simulate(speed: &EngineSpeed, arrivals: &Arrivals) -> Result<Simulated> {
    let fleet = Fleet { speed, replicas: 1, router: Router::Random, seed: 0 };
    match fleet.run(arrivals, &mut |_, _| false)? {
        Some(run) => Ok(run.simulated),
        None => Err(Error::unfit("simulation", "it was stopped")),
    }
}

impl EngineSpeed {
    pub(super) fn validate(&self) -> Result<()> {
        if self.decode_s.is_empty() {
            return Err(Error::usage("engine speed", "no batch fits"));
        }
        for &seconds in &self.decode_s {
            positive("step time", seconds)?;
        }
        positive("chunk", self.chunk_tokens)?;
        positive("cache", self.cache_tokens)?;
        in_range("front end", self.request_s, 0.0, 3600.0)?;
        in_range("share of prompt tokens computed", self.computed, 0.0, 1.0)?;
        Ok(())
    }
}

pub(super) fn draw(arrivals: &Arrivals) -> Result<Vec<Request>> {
    match arrivals {
        Arrivals::Trace(rows) => {
            let valid = |r: &(f64, f64, f64)| {
                r.0.is_finite() && r.1.is_finite() && r.2.is_finite() && r.1 >= 1.0 && r.2 >= 1.0
            };
            if rows.is_empty()
                || !rows.iter().all(valid)
                || !rows.windows(2).all(|w| w[0].0 <= w[1].0)
            {
                let reason = "needs rising arrivals and at least one prompt and output token";
                return Err(Error::usage("trace", reason));
            }
            let request = |&(arrival, input, output): &(f64, f64, f64)| Request {
                arrival,
                input: input.round(),
                output: output.round(),
            };
            Ok(rows.iter().map(request).collect())
        }
        Arrivals::Drawn { rate, burstiness, lengths, spread, requests, seed } => {
            positive("--rate", *rate)?;
            in_range("--burstiness", *burstiness, 0.01, 1000.0)?;
            in_range("--requests", *requests as f64, 100.0, 1e7)?;
            let mut rng = ChaCha8Rng::seed_from_u64(*seed);
            let gap = Gamma::new(*burstiness, 1.0 / (burstiness * rate))
                .map_err(|e| Error::usage("--burstiness", e.to_string()))?;
            let mut at = 0.0;
            (0..*requests)
                .map(|_| {
                    at += gap.sample(&mut rng);
                    let (input, output) = lengths_of(lengths, *spread, &mut rng)?;
                    Ok(Request { arrival: at, input, output })
                })
                .collect()
        }
    }
}

fn lengths_of(mean: &Lengths, spread: Spread, rng: &mut ChaCha8Rng) -> Result<(f64, f64)> {
    let whole = |value: f64| value.round().max(1.0);
    match spread {
        Spread::Fixed => Ok((whole(mean.input), whole(mean.output))),
        Spread::Geometric => {
            let drawn: f64 = Exp1.sample(rng);
            Ok((whole(mean.input), (drawn * mean.output).ceil().max(1.0)))
        }
        Spread::LogNormal(cv) => {
            let sigma = (1.0 + cv * cv).ln().sqrt();
            let factor = LogNormal::new(-sigma * sigma / 2.0, sigma)
                .map_err(|e| Error::usage("--length-cv", e.to_string()))?;
            Ok((whole(mean.input * factor.sample(rng)), whole(mean.output * factor.sample(rng))))
        }
    }
}

/// Mean and percentiles with the interval of their means over batches in order of arrival.
pub(super) fn percentiles(values: &[f64]) -> Percentiles {
    let sorted = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted
    };
    let size = (values.len() / BATCHES).max(1);
    let batches: Vec<Vec<f64>> = values.chunks(size).take(BATCHES).map(sorted).collect();
    let all = sorted(values);
    let estimate = |statistic: &dyn Fn(&[f64]) -> f64| {
        let value = statistic(&all);
        let each: Vec<f64> = batches.iter().map(|b| statistic(b)).collect();
        let mean = each.iter().sum::<f64>() / each.len() as f64;
        let variance = each.iter().map(|v| (v - mean).powi(2)).sum::<f64>()
            / (each.len() as f64 - 1.0).max(1.0);
        let half = T_19 * (variance / each.len() as f64).sqrt();
        Estimate { value, lo: (value - half).max(0.0), hi: value + half }
    };
    let at = |share: f64| move |sorted: &[f64]| quantile(sorted, share).unwrap_or(0.0);
    Percentiles {
        mean: estimate(&|v| v.iter().sum::<f64>() / v.len().max(1) as f64),
        p50: estimate(&at(0.5)),
        p90: estimate(&at(0.9)),
        p99: estimate(&at(0.99)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::Queue;

    /// Affine step time in the batch, as measured servers show; prompts nearly free.
    fn speed(cap: usize) -> EngineSpeed {
        EngineSpeed {
            decode_s: (1..=cap).map(|b| 0.010 + 0.0002 * b as f64).collect(),
            prompt_s: PromptTimes::new(vec![(0.0, vec![(8192.0, 1e-6)])]).unwrap(),
            chunk_tokens: 8192.0,
            cache_tokens: 1e12,
            request_s: 0.0,
            computed: 1.0,
            delivery: Delivery::default(),
        }
    }

    fn arrivals(rate: f64, requests: usize) -> Arrivals {
        Arrivals::Drawn {
            rate,
            burstiness: 1.0,
            lengths: Lengths { input: 100.0, output: 200.0 },
            spread: Spread::Geometric,
            requests,
            seed: 7,
        }
    }

    #[test]
    fn chain_and_simulation_agree_up_to_high_loads() {
        let cap = 32;
        let engine = speed(cap);
        // Rounding up adds half a token; the first one takes the step that the prompt rides on.
        let tokens = 200.5;
        // During that step a request does not decode yet: of `b` in the engine fewer do.
        let step = |b: f64| 0.010 + 0.0002 * b * (1.0 - 1.0 / tokens);
        let service = (1..=cap).map(|b| step(b as f64) * tokens).collect();
        let queue = Queue::new(service).unwrap();
        for load in [0.3, 0.5, 0.7, 0.8, 0.9, 0.95] {
            let rate = load * queue.capacity();
            let chain = queue.at(rate).unwrap();
            let sim = simulate(&engine, &arrivals(rate, 400_000)).unwrap();
            let sojourn = chain.mean_in_system / rate;
            let mean = sim.e2e_s.mean.value / sojourn - 1.0;
            println!("load {load}: mean {mean:+.4}");
            assert!(mean.abs() <= 0.03, "load {load}: mean {mean:+.4}");
            let chain_p99 = chain.wait_quantile(0.99).0;
            if chain_p99 > 0.5 {
                let p99 = sim.wait_s.p99.value / chain_p99 - 1.0;
                println!("load {load}: p99 of waiting {p99:+.4}");
                assert!(p99.abs() <= 0.10, "load {load}: p99 of waiting {p99:+.4}");
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_does_not() {
        let run = |seed| {
            let Arrivals::Drawn { rate, burstiness, lengths, spread, requests, .. } =
                arrivals(2.0, 2_000)
            else {
                unreachable!()
            };
            let drawn = Arrivals::Drawn { rate, burstiness, lengths, spread, requests, seed };
            serde_json::to_string(&simulate(&speed(8), &drawn).unwrap()).unwrap()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn one_request_alone_takes_its_prompt_and_its_steps() {
        let engine = EngineSpeed {
            decode_s: vec![0.01],
            prompt_s: PromptTimes::new(vec![(0.0, vec![(50.0, 0.025), (100.0, 0.05)])]).unwrap(),
            chunk_tokens: 100.0,
            cache_tokens: 1000.0,
            request_s: 0.002,
            computed: 1.0,
            delivery: Delivery { tokens: 2.0, prompt_token_s: 1e-5 },
        };
        let trace = Arrivals::Trace(vec![(5.0, 250.0, 11.0); 1]);
        let s = simulate(&engine, &trace).unwrap();
        // Two chunks of 100 and one of 50, then ten more tokens.
        let delivery = 2.0 * 0.01 + 250.0 * 1e-5;
        assert!((s.ttft_s.mean.value - (0.05 + 0.05 + 0.025 + 0.002 + delivery)).abs() < 1e-9);
        let half = EngineSpeed { computed: 0.4, delivery: Delivery::default(), ..engine };
        let s = simulate(&half, &trace).unwrap();
        assert!((s.ttft_s.mean.value - (0.05 + 0.002)).abs() < 1e-9);
        assert!((s.tpot_s.mean.value - 0.01).abs() < 1e-9);
        assert!((s.e2e_s.mean.value - 0.152).abs() < 1e-9);
    }

    #[test]
    fn bursts_wait_longer_than_a_steady_stream() {
        let with = |burstiness| {
            let Arrivals::Drawn { lengths, spread, .. } = arrivals(1.0, 1) else { unreachable!() };
            let drawn = Arrivals::Drawn {
                rate: 7.5,
                burstiness,
                lengths,
                spread,
                requests: 40_000,
                seed: 1,
            };
            simulate(&speed(32), &drawn).unwrap().wait_s.mean.value
        };
        assert!(with(0.2) > 1.2 * with(1.0) && with(1.0) > with(5.0));
    }

    #[test]
    fn a_full_cache_admits_no_more() {
        let engine = EngineSpeed { cache_tokens: 700.0, ..speed(32) };
        let trace: Vec<_> = (0..4).map(|_| (0.0, 100.0, 200.0)).collect();
        let s = simulate(&engine, &Arrivals::Trace(trace)).unwrap();
        // Two of 304 page tokens fit, the others wait for them.
        assert!(s.wait_s.p99.value > 1.0 && s.wait_s.p50.value < s.wait_s.p99.value);
        let small = EngineSpeed { cache_tokens: 200.0, ..speed(32) };
        let error = simulate(&small, &Arrivals::Trace(vec![(0.0, 100.0, 200.0)])).unwrap_err();
        assert_eq!(error.exit_code(), 5);
    }

    #[test]
    fn impossible_inputs_are_refused() {
        assert!(simulate(&speed(1), &Arrivals::Trace(Vec::new())).is_err());
        assert!(simulate(&speed(1), &Arrivals::Trace(vec![(0.0, f64::NAN, 1.0)])).is_err());
        assert!(simulate(&speed(1), &arrivals(f64::NAN, 1000)).is_err());
        assert!(
            simulate(&EngineSpeed { decode_s: vec![], ..speed(1) }, &arrivals(1.0, 1000)).is_err()
        );
    }
}
