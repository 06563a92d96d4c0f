//! A replica as a birth-death chain: from step times to waiting, TTFT and TPOT at a rate.
//!
//! Decode steps of `d(B)` are lengthened by the prompts that arrive during them, so that the mean
//! step solves `L = d + E[extra of Poisson(rate L) prompts]`. A request in a system of `n` waits for
//! the end of the running step, then for its own prompt's step, then decodes at `L`; at the cap as
//! many prompts enter as requests end. These service times drive [`Queue`].
//!
//! An arrival sees the chain's stationary state (Poisson arrivals see time averages) and a running
//! step that is longer than the mean one (the inspection paradox); tails are taken of the mixture
//! over states. How lengths and gaps vary enters through the wait for a place alone. Kleinrock, Queueing Systems I (1975), sections 2.4 and 5.

use super::curve::Load;
use super::mixture::{Mixture, Shape};
use super::{Metric, Statistic};
use crate::serving::{
    Delivery, EngineCosts, EngineSpeed, Equilibrium, Lengths, PromptTimes, Queue, Spread,
};
use crate::units::Seconds;

/// Prompts may take at most this share of the time.
const BUSIEST: f64 = 0.98;
/// Rounds of a fixed point at most, and its relative precision.
const ROUNDS: usize = 40;
const PRECISION: f64 = 1e-4;
/// Prompts of one step that are told apart.
const MOST_PROMPTS: f64 = 60.0;
/// Prompts of one step that are tabulated; further ones add what the last one does.
const TABULATED: usize = 8;
/// Steps after which the number of prompts in one has forgotten where it started.
const CROWD_ROUNDS: usize = 4;
/// Prompts per step from which their number is taken as Poisson.
const CROWDED: f64 = 3.0;
/// A part of a distribution that no percentile here can see.
const NEGLIGIBLE: f64 = 1e-5;
/// States are summed to this many groups for the tails.
const GROUPS: f64 = 16.0;
/// Share of the variance of the step time that is left in its mean over a request's life: states
/// lose memory in about that time, and the mean of a process with correlation `exp(-t)` over one
/// unit keeps `2 / e`.
const LEFT_OF_VARIANCE: f64 = 0.736;
/// Times per token that an arrival waits for the running step to end.
const WAITED: f64 = 0.5;

/// Squared coefficients of variation of what a replica is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variability {
    /// Of the gaps between arrivals: 1 is Poisson.
    pub gaps: f64,
    /// Of prompt lengths.
    pub prompts: f64,
    /// Of output lengths: 1 is exponential.
    pub outputs: f64,
}

impl Variability {
    /// Arrivals of a burstiness (shape of the gaps' gamma distribution) and lengths of a spread.
    pub fn of(burstiness: f64, spread: Spread) -> Self {
        let (prompts, outputs) = match spread {
            Spread::Fixed => (0.0, 0.0),
            Spread::Geometric => (0.0, 1.0),
            Spread::LogNormal(cv) => (cv * cv, cv * cv),
        };
        Self { gaps: 1.0 / burstiness, prompts, outputs }
    }

    /// Waiting relative to Poisson arrivals of exponential work, of which prompts make a share:
    /// Kingman's heavy-traffic approximation, Proc. Camb. Phil. Soc. 57 (1961).
    fn waiting(&self, prompt_share: f64) -> f64 {
        let work =
            prompt_share.powi(2) * self.prompts + (1.0 - prompt_share).powi(2) * self.outputs;
        f64::midpoint(self.gaps, work)
    }
}

/// Step times of a replica.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    /// Seconds of a decode step with `j + 1` sequences.
    decode: Vec<f64>,
    prompt: PromptTimes,
    /// Prompt tokens that are computed, and output tokens.
    lengths: Lengths,
    chunk_tokens: f64,
    request_s: f64,
    /// Share of the prompt tokens that are computed.
    computed: f64,
    delivery: Delivery,
    variability: Variability,
    /// Service of a request with `j + 1` in the system.
    service: Vec<Service>,
    /// Times to first token of an arrival that finds so many others, by rising number.
    arrivals: Vec<(usize, Vec<(f64, Shape)>)>,
}

/// What a request meets in a system of some size, itself included.
#[derive(Clone, Copy, Debug)]
struct Service {
    /// Seconds from arrival to the last token.
    seconds: f64,
    /// Seconds from arrival to the first token.
    first: f64,
    /// How many of the requests decode.
    decoding: f64,
    /// The mean step.
    step: f64,
    /// What a prompt adds to it.
    prompt: f64,
}

impl Service {
    /// A share of the way from this one to another.
    fn towards(&self, other: &Self, share: f64) -> Self {
        let mix = |a: f64, b: f64| a + (b - a) * share;
        Self {
            seconds: mix(self.seconds, other.seconds),
            first: mix(self.first, other.first),
            decoding: mix(self.decoding, other.decoding),
            step: mix(self.step, other.step),
            prompt: mix(self.prompt, other.prompt),
        }
    }
}

/// What prompts do to the steps beside a number of decoding sequences.
#[derive(Clone)]
struct Beside {
    /// A step without prompts.
    decode: f64,
    /// What 0, 1, ... prompts add, the first over all its chunks.
    extras: Vec<f64>,
    /// What each further one adds.
    slope: f64,
}

impl Beside {
    /// What the first prompt of a step adds.
    fn first(&self) -> f64 {
        self.of(1)
    }

    /// What `count` prompts add.
    fn of(&self, count: usize) -> f64 {
        let last = self.extras.len() - 1;
        let beyond = count.saturating_sub(last) as f64;
        self.extras[count.min(last)] + beyond * self.slope
    }

    /// Mean of what a Poisson number of prompts adds.
    fn extra(&self, prompts: f64) -> f64 {
        poisson(prompts).enumerate().map(|(k, p)| p * self.of(k)).sum()
    }

    /// Mean of what one prompt and a Poisson number of others add.
    fn shared(&self, others: f64) -> f64 {
        poisson(others).enumerate().map(|(k, p)| p * self.of(k + 1)).sum()
    }

    /// How prompts fall on steps at a rate: a long step gathers more of them, and the next one is
    /// longer for it, so that their number per step is a Markov chain of its own.
    fn crowd(&self, rate: f64) -> Crowd {
        let mut length = self.decode + self.first() * (rate * self.decode).min(1.0);
        for _ in 0..ROUNDS {
            let next = self.decode + self.extra(rate * length);
            let settled = (next / length - 1.0).abs() < PRECISION;
            length = next;
            if settled {
                break;
            }
        }
        let mut shares: Vec<f64> = poisson(rate * length).collect();
        // Among many prompts the next one more or less changes little.
        let rounds = if rate * length < CROWDED { CROWD_ROUNDS } else { 0 };
        for _ in 0..rounds {
            let mut next = Vec::new();
            for (k, share) in shares.iter().enumerate() {
                for (m, p) in poisson(rate * (self.decode + self.of(k))).enumerate() {
                    if next.len() <= m {
                        next.resize(m + 1, 0.0);
                    }
                    next[m] += share * p;
                }
            }
            shares = next;
        }
        let lengths = (0..shares.len()).map(|k| self.decode + self.of(k));
        let (mut mean, mut square) = (0.0, 0.0);
        for (share, length) in shares.iter().zip(lengths) {
            mean += share * length;
            square += share * length * length;
        }
        Crowd { shares, mean, met: square / mean }
    }
}

/// Prompts per step.
struct Crowd {
    /// Shares of steps with 0, 1, ... prompts.
    shares: Vec<f64>,
    /// The mean step.
    mean: f64,
    /// Mean of the step that an arrival meets: steps are met in proportion to their length.
    met: f64,
}

/// One state of the chain.
#[derive(Clone, Copy)]
struct State {
    /// Requests in the system.
    requests: f64,
    /// Its probability.
    probability: f64,
    /// Decoding sequences.
    decoding: f64,
    /// The mean step.
    step: f64,
    /// What a prompt adds to it.
    prompt: f64,
}

impl Steps {
    /// Step times from decode steps of `j + 1` sequences and what prompts add to them.
    pub(super) fn new(
        decode: Vec<f64>,
        prompt: PromptTimes,
        lengths: Lengths,
        costs: &EngineCosts,
        variability: Variability,
    ) -> Self {
        let computed = costs.computed(lengths.input) / lengths.input;
        let mut steps = Self {
            decode,
            prompt,
            lengths: Lengths { input: lengths.input * computed, ..lengths },
            chunk_tokens: costs.chunk_tokens,
            request_s: costs.request_s,
            computed,
            delivery: Delivery::default(),
            variability,
            service: Vec::new(),
            arrivals: Vec::new(),
        };
        steps.delivery = steps.delivery(costs);
        steps.serve();
        steps
    }

    /// The same with every step, and what a first token takes beyond them, a factor longer.
    pub(super) fn scaled(&self, step: f64, first: f64) -> Self {
        let mut steps = self.clone();
        steps.decode.iter_mut().for_each(|seconds| *seconds *= step);
        steps.prompt = steps.prompt.scaled(step);
        steps.request_s *= first;
        // Times per token are longer already.
        steps.delivery.tokens *= first / step;
        // A correction of the times of steps, often a negative one.
        steps.delivery.prompt_token_s *= step;
        steps.service.clear();
        steps.arrivals.clear();
        steps.serve();
        steps
    }

    /// Solves the service of every number of requests.
    fn serve(&mut self) {
        let steps = self;
        // Smooth in the number of requests: solved on a grid, linear in between.
        let mut at = 1;
        let mut solved = steps.solve(at);
        steps.service.push(solved);
        while at < steps.decode.len() {
            let next = (at * 5 / 4).max(at + 1).min(steps.decode.len());
            let then = steps.solve(next);
            for n in at + 1..=next {
                let share = (n - at) as f64 / (next - at) as f64;
                steps.service.push(solved.towards(&then, share));
            }
            (at, solved) = (next, then);
        }
    }

    /// What `estimate` adds to the steps of a first token: the steps after the one that computes it,
    /// and prompts slower or faster than their kernels. The chain and the simulation count in times per
    /// token, of which a step with drafts takes several: they wait half of one for the running step, and
    /// one is in each step of a prompt, where a whole step rides on it or none.
    fn delivery(&self, costs: &EngineCosts) -> Delivery {
        let typical = (self.cap() as f64).sqrt();
        let step = costs.speculation.tokens();
        let riding = if costs.mixed { step } else { 0.0 };
        let own = self.chunks() * riding * self.decode_at(typical) + self.beside(typical).first();
        let beyond = costs.first_steps * step - WAITED + (riding - 1.0) * self.chunks();
        Delivery {
            tokens: beyond.max(0.0),
            prompt_token_s: (costs.prompt_factor - 1.0) * own * self.computed / self.lengths.input,
        }
    }

    /// The same in seconds for a mean prompt beside a mean time per output token, with the front end.
    pub(super) fn delivered(&self, tpot: f64) -> f64 {
        self.request_s + self.delivery.seconds(self.lengths.input / self.computed, tpot)
    }

    /// Sequences that fit.
    pub(super) fn cap(&self) -> usize {
        self.decode.len()
    }

    /// Output tokens per second of a full engine that never takes in a prompt.
    pub(super) fn fastest(&self, cap: usize) -> f64 {
        cap as f64 / self.decode_at(cap as f64)
    }

    /// What the simulation needs, with at most `cap` sequences.
    pub(super) fn speed(&self, cap: usize, cache_tokens: f64) -> EngineSpeed {
        EngineSpeed {
            decode_s: self.decode[..cap.min(self.cap())].to_vec(),
            prompt_s: self.prompt.clone(),
            chunk_tokens: self.chunk_tokens,
            cache_tokens,
            request_s: self.request_s,
            computed: self.computed,
            delivery: self.delivery,
        }
    }

    /// Steps that one prompt takes.
    fn chunks(&self) -> f64 {
        (self.lengths.input / self.chunk_tokens).ceil().max(1.0)
    }

    /// A decode step with a number of sequences that need not be whole.
    fn decode_at(&self, sequences: f64) -> f64 {
        let Some(&one) = self.decode.first() else { return 0.0 };
        if sequences <= 1.0 {
            return one;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most the number of sequences that fit"
        )]
        let below = sequences.floor() as usize;
        let low = self.decode.get(below - 1).or(self.decode.last()).copied().unwrap_or(one);
        let high = self.decode.get(below).copied().unwrap_or(low);
        low + (high - low) * (sequences - below as f64)
    }

    /// Steps beside `sequences` decoding ones.
    fn beside(&self, sequences: f64) -> Beside {
        let (chunks, input) = (self.chunks(), self.lengths.input);
        let mut extras = vec![0.0, chunks * self.prompt.seconds(sequences, input / chunks)];
        let mut tokens = 2.0 * input;
        while tokens <= self.chunk_tokens && extras.len() <= TABULATED {
            extras.push(self.prompt.seconds(sequences, tokens));
            tokens += input;
        }
        let slope = extras[extras.len() - 1] - extras[extras.len() - 2];
        let decode = if sequences > 0.0 { self.decode_at(sequences) } else { 0.0 };
        Beside { decode, extras, slope }
    }

    /// The mean step of an engine that is always full at `cap`.
    pub(super) fn full(&self, cap: usize) -> f64 {
        let (decode, prompts) = self.full_parts(cap);
        decode + prompts
    }

    /// Decoding and prompts of that step.
    fn full_parts(&self, cap: usize) -> (f64, f64) {
        let entering = self.entering(cap);
        let decoding = (cap as f64 - entering * self.chunks()).max(1.0);
        let beside = self.beside(decoding);
        (beside.decode, beside.extra(entering))
    }

    /// Prompts that enter a full engine at each step: as many as requests end.
    fn entering(&self, cap: usize) -> f64 {
        cap as f64 / self.lengths.output.max(1.0)
    }

    /// The service in a system of `requests`; keeps what their arrivals meet.
    fn solve(&mut self, requests: usize) -> Service {
        let all = requests as f64;
        let tokens = (self.lengths.output - 1.0).max(0.0);
        let others = self.beside(all - 1.0);
        let step = self.decode_at(all);
        let mut found = Service {
            seconds: all * others.first() + tokens * step,
            first: others.first(),
            decoding: all,
            step,
            prompt: others.first(),
        };
        for _ in 0..ROUNDS {
            // In equilibrium as many requests come to this state from below as leave it downwards,
            // and each brings its prompt, which holds up the others.
            let rate = (all - 1.0) / found.seconds;
            let beside = self.beside(found.decoding);
            let crowd = beside.crowd(rate);
            if requests > 1 {
                // The rest of the running step, then its own, which it shares with who arrived
                // during the same one.
                let own = self.chunks() * others.decode + others.shared(rate * crowd.met);
                found.first = crowd.met / 2.0 + own;
            }
            let next = found.first + tokens * crowd.mean;
            found.decoding = all * (1.0 - found.first / next);
            (found.step, found.prompt) = (crowd.mean, beside.first());
            let settled = (next / found.seconds - 1.0).abs() < PRECISION;
            found.seconds = f64::midpoint(found.seconds, next);
            if settled {
                break;
            }
        }
        let shapes = self.first_tokens(&others, (all - 1.0) / found.seconds);
        self.arrivals.push((requests - 1, shapes));
        found
    }

    /// Times to first token of arrivals beside others: they meet a step with `k` prompts, wait for
    /// its end, and share the next one with the `m` that came in the same step.
    fn first_tokens(&self, beside: &Beside, rate: f64) -> Vec<(f64, Shape)> {
        if beside.decode <= 0.0 {
            return vec![(1.0, Shape::Uniform { from: beside.first(), width: 0.0 })];
        }
        let crowd = beside.crowd(rate);
        let mut shapes = Vec::new();
        for (k, share) in crowd.shares.iter().enumerate() {
            let width = beside.decode + beside.of(k);
            // Steps are met in proportion to their length.
            let met = share * width / crowd.mean;
            for (m, p) in poisson(rate * width).enumerate() {
                let from = self.chunks() * beside.decode + beside.of(1 + m);
                if met * p > NEGLIGIBLE {
                    shapes.push((met * p, Shape::Uniform { from, width }));
                }
            }
        }
        shapes
    }

    /// The replica with at most `cap` sequences at `rate` requests per second, with percentiles of
    /// the metrics that are `wanted`, zero otherwise; `None` when it cannot keep up.
    pub(super) fn at(
        &self,
        rate: f64,
        cap: usize,
        wanted: impl Fn(Metric, Statistic) -> bool,
    ) -> Option<Load> {
        let slope = self.beside(cap as f64).slope;
        if rate * slope >= BUSIEST {
            return None;
        }
        let mut service: Vec<f64> = self.service[..cap].iter().map(|s| s.seconds).collect();
        service[cap - 1] = self.full(cap) * self.lengths.output.max(1.0);
        let queue = Queue::new(service).ok()?;
        let chain = queue.at(rate)?;
        let cap = queue.cap();
        let states = self.states(&chain, cap);
        let tokens = (self.lengths.output - 1.0).max(1.0);
        // Little's law over the decoding sequences.
        let mean_decoding: f64 = states.iter().map(|s| s.probability * s.decoding).sum();
        let values = |metric: Metric, mean: f64, tails: &Mixture| {
            Statistic::ALL.map(|statistic| match statistic.share() {
                None => Seconds(mean),
                Some(share) if wanted(metric, statistic) => tails.quantile(share),
                Some(_) => Seconds::ZERO,
            })
        };
        let (mean, tails) = self.ttft(&chain, cap);
        let ttft = values(Metric::Ttft, mean, &tails);
        let tails = self.tpot(&states, rate);
        let tpot = values(Metric::Tpot, mean_decoding / (rate * tokens), &tails);
        let prompt_share = (rate * slope).max(1.0 - mean_decode_share(&states, self));
        Some(Load { mean_batch: mean_decoding, prompt_share, ttft, tpot })
    }

    /// The states with their steps; the last one holds everything from the cap on.
    fn states(&self, chain: &Equilibrium, cap: usize) -> Vec<State> {
        let full = self.full(cap);
        (1..=cap)
            .map(|n| {
                let at_cap = n == cap;
                let probability = if at_cap { chain.waiting } else { chain.states()[n] };
                let Service { decoding, step, prompt, .. } = self.service[n - 1];
                let step = if at_cap { full } else { step };
                State { requests: n as f64, probability, decoding, step, prompt }
            })
            .collect()
    }

    /// Mean and tails of the time to first token.
    fn ttft(&self, chain: &Equilibrium, cap: usize) -> (f64, Mixture) {
        let mut tails = Mixture::default();
        let last = self.beside(cap as f64 - 1.0);
        let admitted = self.chunks() * last.decode + last.shared(self.entering(cap));
        let (decode, prompts) = self.full_parts(cap);
        let slower = self.variability.waiting(prompts / (prompts + decode));
        let rate = chain.drain() / slower;
        tails.add(chain.waiting, Shape::Exponential { from: admitted, rate });
        let waiting = chain.waiting * admitted + chain.mean_wait.0 * slower;
        // An arrival that finds `n` others makes a system of `n + 1`.
        let admits = chain.states().iter().take(cap).zip(&self.service);
        let mean = waiting + admits.map(|(p, s)| p * s.first).sum::<f64>();
        for (i, (from, shapes)) in self.arrivals.iter().enumerate() {
            let to = self.arrivals.get(i + 1).map_or(cap, |next| next.0).min(cap);
            let weight: f64 = chain.states().get(*from..to).unwrap_or_default().iter().sum();
            if weight > NEGLIGIBLE {
                for (share, shape) in shapes {
                    tails.add(weight * share, *shape);
                }
            }
        }
        (mean, tails)
    }

    /// Time per output token over requests of the mean length.
    fn tpot(&self, states: &[State], rate: f64) -> Mixture {
        // Requests see each state as often as there are requests in it.
        let total: f64 = states.iter().map(|s| s.probability * s.requests).sum();
        let mean = states.iter().map(|s| s.probability * s.requests * s.step).sum::<f64>() / total;
        let mut tails = Mixture::default();
        let mut group = (0.0, 0.0, 0.0);
        for (i, s) in states.iter().enumerate() {
            let weight = s.probability * s.requests / total;
            group = (group.0 + weight, group.1 + weight * s.step, group.2 + weight * s.prompt);
            if group.0 >= 1.0 / GROUPS || i + 1 == states.len() {
                if group.0 > 0.0 {
                    let (step, prompt) = (group.1 / group.0, group.2 / group.0);
                    // Prompts during its life: a Poisson number, spread over its tokens.
                    let sd = prompt * (rate * step / self.lengths.output.max(1.0)).sqrt();
                    let at = mean + LEFT_OF_VARIANCE.sqrt() * (step - mean);
                    tails.add(group.0, Shape::Normal { mean: at, sd });
                }
                group = (0.0, 0.0, 0.0);
            }
        }
        tails
    }
}

/// Share of the time that goes to decoding, over the states in which anything decodes.
fn mean_decode_share(states: &[State], steps: &Steps) -> f64 {
    let busy: f64 = states.iter().map(|s| s.probability).sum();
    let share = |s: &State| s.probability * (steps.decode_at(s.decoding) / s.step).min(1.0);
    if busy > 0.0 { states.iter().map(share).sum::<f64>() / busy } else { 1.0 }
}

/// Probabilities of 0, 1, ... up to where one in 10,000 is left, which goes to the last one.
fn poisson(mean: f64) -> impl Iterator<Item = f64> {
    let (mut count, mut p, mut left) = (0.0, (-mean).exp(), 1.0);
    std::iter::from_fn(move || {
        if left <= 0.0 {
            return None;
        }
        let now = if left - p < 1e-4 || count >= MOST_PROMPTS { left } else { p };
        left -= now;
        count += 1.0;
        p *= mean / count;
        Some(now)
    })
}
