//! A seeded discrete-event simulation of replicas behind a router.
//!
//! Each engine serves first come, first served, batched step by step: a step advances every decoding
//! sequence by one token and takes in prompt tokens up to the chunk budget. Between arrivals,
//! completions and prompts the step time is constant, so whole runs of steps are taken at once. A
//! request is admitted when a place and cache pages for its whole length are free. Of drawn requests
//! the first tenth is dropped as warm-up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::serving::memory::pages;
use crate::serving::simulate::{Request, draw, percentiles};
use crate::serving::{Arrivals, EngineSpeed, Simulated};
use crate::{Error, Result};

/// The router draws from a stream of its own.
const ROUTER_STREAM: u64 = 1;

/// How requests find a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Router {
    /// Each to any of them.
    #[default]
    Random,
    /// Each to the replica with the fewest requests, waiting ones included.
    LeastLoaded,
}

impl std::str::FromStr for Router {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Self::Random),
            "least-loaded" => Ok(Self::LeastLoaded),
            _ => Err(format!("`{text}` is not a router; write random or least-loaded")),
        }
    }
}

impl std::fmt::Display for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::LeastLoaded => "least-loaded",
        })
    }
}

/// Replicas of one kind behind a router.
#[derive(Clone, Copy, Debug)]
pub struct Fleet<'a> {
    /// Speed of each.
    pub speed: &'a EngineSpeed,
    /// How many.
    pub replicas: usize,
    /// How requests find them.
    pub router: Router,
    /// Seed of the router.
    pub seed: u64,
}

/// What a simulation of a fleet measured.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetRun {
    /// Distributions over the requests that count.
    pub simulated: Simulated,
    /// Time to first token and time per output token of each of them, in seconds.
    pub each: Vec<(f64, f64)>,
}

impl Fleet<'_> {
    /// Runs the requests through the fleet. `stop` sees the time to first token and the time per
    /// output token of each request that counts, in seconds, as it ends, and may end the run, which
    /// then has no result.
    ///
    /// # Errors
    /// [`Error::Usage`] for impossible inputs; [`Error::Infeasible`] when one request alone exceeds
    /// the cache.
    pub fn run(
        &self,
        arrivals: &Arrivals,
        stop: &mut dyn FnMut(f64, f64) -> bool,
    ) -> Result<Option<FleetRun>> {
        self.speed.validate()?;
        if self.replicas == 0 {
            return Err(Error::usage("replicas", "a fleet has at least one"));
        }
        let requests = draw(arrivals)?;
        self.refuse_long(&requests)?;
        let skip = requests.len() - arrivals.counted();
        let mut floor = Floor {
            requests: &requests,
            times: vec![Times::default(); requests.len()],
            ended: Vec::new(),
        };
        let mut engines: Vec<Engine> =
            (0..self.replicas).map(|_| Engine::new(self.speed, requests[0].arrival)).collect();
        let mut door = Door::new(self);
        let mut stopped = |floor: &mut Floor| {
            let ended = std::mem::take(&mut floor.ended);
            let counted = ended.into_iter().filter(|index| *index >= skip);
            counted
                .map(|index| floor.figures(index, self.speed))
                .any(|(ttft, tpot)| stop(ttft, tpot))
        };
        for (index, request) in requests.iter().enumerate() {
            let chosen = door.choose(request.arrival, &mut engines, &mut floor);
            engines[chosen].advance(request.arrival, &mut floor);
            engines[chosen].take(index, request.arrival);
            if stopped(&mut floor) {
                return Ok(None);
            }
        }
        for engine in &mut engines {
            engine.advance(f64::INFINITY, &mut floor);
            if stopped(&mut floor) {
                return Ok(None);
            }
        }
        let busy = engines.iter().map(|e| e.busy).sum::<f64>() / self.replicas as f64;
        Ok(Some(self.result(&floor, skip, busy)))
    }

    fn refuse_long(&self, requests: &[Request]) -> Result<()> {
        let longest = requests.iter().map(|r| r.input + r.output).fold(0.0, f64::max);
        if longest <= self.speed.cache_tokens {
            return Ok(());
        }
        Err(Error::infeasible(
            format!(
                "a request of {longest} tokens exceeds the cache of {:.0}",
                self.speed.cache_tokens
            ),
            "use more devices or shorter requests",
        ))
    }

    fn result(&self, floor: &Floor, skip: usize, busy: f64) -> FleetRun {
        let (requests, times) = (floor.requests, &floor.times);
        let each: Vec<(f64, f64)> =
            (skip..requests.len()).map(|index| floor.figures(index, self.speed)).collect();
        let span = times.iter().map(|t| t.last).fold(0.0, f64::max) - requests[0].arrival;
        let counted = || requests.iter().zip(times).skip(skip);
        let waits = counted().map(|(r, t)| t.admitted - r.arrival);
        let decodes = counted().map(|(r, _)| (r.output - 1.0).max(1.0));
        let whole = each.iter().zip(decodes).map(|((ttft, tpot), decodes)| ttft + decodes * tpot);
        let simulated = Simulated {
            requests: each.len(),
            ttft_s: percentiles(&each.iter().map(|e| e.0).collect::<Vec<f64>>()),
            tpot_s: percentiles(&each.iter().map(|e| e.1).collect::<Vec<f64>>()),
            e2e_s: percentiles(&whole.collect::<Vec<f64>>()),
            wait_s: percentiles(&waits.collect::<Vec<f64>>()),
            mean_running: busy / span,
        };
        FleetRun { simulated, each }
    }
}

/// One request's times.
#[derive(Clone, Copy, Default)]
struct Times {
    admitted: f64,
    first: f64,
    last: f64,
}

/// All requests with their times, and which ended since somebody looked.
struct Floor<'a> {
    requests: &'a [Request],
    times: Vec<Times>,
    ended: Vec<usize>,
}

impl Floor<'_> {
    /// Time to first token and time per output token of one that ended.
    fn figures(&self, index: usize, speed: &EngineSpeed) -> (f64, f64) {
        let (r, t) = (&self.requests[index], &self.times[index]);
        let tpot = (t.last - t.first) / (r.output - 1.0).max(1.0);
        let delivery = speed.delivery.seconds(r.input, tpot);
        (t.first - r.arrival + speed.request_s + delivery, tpot)
    }

    fn end(&mut self, index: usize, now: f64) {
        self.times[index].last = now;
        self.ended.push(index);
    }

    /// Cache tokens that a request holds.
    fn held(&self, index: usize) -> f64 {
        pages(self.requests[index].input + self.requests[index].output)
    }
}

/// The router at work.
struct Door {
    router: Router,
    rng: ChaCha8Rng,
    next: usize,
}

impl Door {
    fn new(fleet: &Fleet) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(fleet.seed);
        rng.set_stream(ROUTER_STREAM);
        Self { router: fleet.router, rng, next: 0 }
    }

    /// The replica of an arrival. Whatever the number of replicas, a request draws one number, so
    /// that fleets of different sizes are compared on the same draws.
    fn choose(&mut self, at: f64, engines: &mut [Engine], floor: &mut Floor) -> usize {
        let count = engines.len();
        match self.router {
            Router::Random => {
                let share: f64 = self.rng.random();
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "an index below the number of replicas"
                )]
                let chosen = (share * count as f64) as usize;
                chosen.min(count - 1)
            }
            Router::LeastLoaded => {
                for engine in engines.iter_mut().filter(|e| e.steady_until <= at) {
                    engine.advance(at, floor);
                }
                // Among equals in turn.
                let turn = (0..count).map(|i| (self.next + i) % count);
                let chosen = turn.min_by_key(|i| engines[*i].in_system()).unwrap_or(0);
                self.next = (chosen + 1) % count;
                chosen
            }
        }
    }
}

/// A prompt on its way in.
struct Entering {
    index: usize,
    left: f64,
}

/// Total order on times for the heap.
struct Step(f64);

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Step {}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// One replica with its clock, which is at the end of a step.
struct Engine<'a> {
    speed: &'a EngineSpeed,
    now: f64,
    /// Decode steps so far.
    steps: f64,
    /// Cache tokens held.
    cached: f64,
    /// Integral of the decoding sequences over time.
    busy: f64,
    queue: VecDeque<usize>,
    entering: VecDeque<Entering>,
    /// Step number at which a decoding sequence ends, counted over all decode steps so far.
    decoding: BinaryHeap<Reverse<(Step, usize)>>,
    /// No request ends before this time.
    steady_until: f64,
}

impl<'a> Engine<'a> {
    fn new(speed: &'a EngineSpeed, now: f64) -> Self {
        Self {
            speed,
            now,
            steps: 0.0,
            cached: 0.0,
            busy: 0.0,
            queue: VecDeque::new(),
            entering: VecDeque::new(),
            decoding: BinaryHeap::new(),
            steady_until: f64::INFINITY,
        }
    }

    fn in_system(&self) -> usize {
        self.queue.len() + self.entering.len() + self.decoding.len()
    }

    fn is_running(&self) -> bool {
        !(self.decoding.is_empty() && self.entering.is_empty())
    }

    /// Takes in an arrival; the clock has been advanced to it.
    fn take(&mut self, index: usize, at: f64) {
        if self.in_system() == 0 {
            self.now = self.now.max(at);
        }
        self.queue.push_back(index);
        self.steady_until = self.now;
    }

    /// Steps until the clock has passed `until` or nothing is left to do.
    fn advance(&mut self, until: f64, floor: &mut Floor) {
        self.admit(floor);
        while self.now < until && self.is_running() {
            self.step(until, floor);
            self.admit(floor);
        }
        let ends = self.decoding.peek().map(|Reverse((Step(end), _))| end - self.steps);
        self.steady_until = match ends {
            _ if !self.entering.is_empty() => self.now,
            Some(steps) => self.now + steps * self.speed.decode_s[self.decoding.len() - 1],
            None => f64::INFINITY,
        };
    }

    /// Admits from the queue while a place and cache are free.
    fn admit(&mut self, floor: &mut Floor) {
        while let Some(&index) = self.queue.front() {
            let held = floor.held(index);
            let running = self.decoding.len() + self.entering.len();
            let full = running >= self.speed.decode_s.len();
            if full || (running > 0 && self.cached + held > self.speed.cache_tokens) {
                break;
            }
            self.queue.pop_front();
            self.cached += held;
            floor.times[index].admitted = self.now;
            // The last prompt token is always computed.
            let left = (floor.requests[index].input * self.speed.computed).max(1.0);
            self.entering.push_back(Entering { index, left });
        }
    }

    /// One step, or all steps until something changes: a sequence ends or `until` is reached.
    fn step(&mut self, until: f64, floor: &mut Floor) {
        let running = self.decoding.len();
        let decode = if running > 0 { self.speed.decode_s[running - 1] } else { 0.0 };
        let count = if self.entering.is_empty() { self.same_steps(decode, until) } else { 1.0 };
        let (taken, finished) = self.take_prompts();
        let elapsed = count * (decode + self.speed.prompt_s.seconds(running as f64, taken));
        self.now += elapsed;
        self.busy += elapsed * running as f64;
        if running > 0 {
            self.steps += count;
        }
        while let Some(Reverse((Step(end), index))) = self.decoding.peek() {
            if *end > self.steps + 0.5 {
                break;
            }
            let index = *index;
            self.decoding.pop();
            self.cached -= floor.held(index);
            floor.end(index, self.now);
        }
        for index in finished {
            floor.times[index].first = self.now;
            let more = floor.requests[index].output - 1.0;
            if more < 0.5 {
                self.cached -= floor.held(index);
                floor.end(index, self.now);
            } else {
                self.decoding.push(Reverse((Step(self.steps + more), index)));
            }
        }
    }

    /// Prompt tokens of this step, and the requests whose prompts end with it.
    fn take_prompts(&mut self) -> (f64, Vec<usize>) {
        let mut finished = Vec::new();
        let (mut budget, mut taken) = (self.speed.chunk_tokens, 0.0);
        while let Some(front) = self.entering.front_mut() {
            let part = front.left.min(budget);
            front.left -= part;
            budget -= part;
            taken += part;
            if front.left > 0.0 {
                break;
            }
            finished.push(front.index);
            self.entering.pop_front();
        }
        (taken, finished)
    }

    /// Whole steps until a sequence ends or the clock reaches `until`.
    fn same_steps(&self, decode: f64, until: f64) -> f64 {
        let ends = self.decoding.peek().map_or(1.0, |Reverse((Step(end), _))| end - self.steps);
        let reached = ((until - self.now) / decode).ceil();
        ends.min(reached).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::{Delivery, Lengths, PromptTimes, Spread, simulate};

    fn speed(cap: usize) -> EngineSpeed {
        EngineSpeed {
            decode_s: (1..=cap).map(|b| 0.010 + 0.0002 * b as f64).collect(),
            prompt_s: PromptTimes::new(vec![(0.0, vec![(8192.0, 0.05)])]).unwrap(),
            chunk_tokens: 8192.0,
            cache_tokens: 1e12,
            request_s: 0.0,
            computed: 1.0,
            delivery: Delivery::default(),
        }
    }

    fn drawn(rate: f64, requests: usize) -> Arrivals {
        Arrivals::Drawn {
            rate,
            burstiness: 1.0,
            lengths: Lengths { input: 100.0, output: 200.0 },
            spread: Spread::Geometric,
            requests,
            seed: 7,
        }
    }

    fn run(speed: &EngineSpeed, replicas: usize, router: Router, arrivals: &Arrivals) -> FleetRun {
        let fleet = Fleet { speed, replicas, router, seed: 1 };
        fleet.run(arrivals, &mut |_, _| false).unwrap().unwrap()
    }

    #[test]
    fn a_random_split_of_poisson_arrivals_is_one_replica_at_its_share_of_the_rate() {
        let speed = speed(16);
        // Six tenths of the capacity: near it, waits of even 60,000 requests differ by a third.
        let one = simulate(&speed, &drawn(3.0, 400_000)).unwrap();
        let fleet = run(&speed, 5, Router::Random, &drawn(15.0, 400_000)).simulated;
        for (a, b) in [
            (one.ttft_s.mean.value, fleet.ttft_s.mean.value),
            (one.ttft_s.p99.value, fleet.ttft_s.p99.value),
            (one.tpot_s.mean.value, fleet.tpot_s.mean.value),
            (one.mean_running, fleet.mean_running),
        ] {
            assert!((a / b - 1.0).abs() < 0.05, "{a} {b}");
        }
    }

    #[test]
    fn sending_to_the_least_loaded_waits_less_than_sending_at_random() {
        let speed = speed(16);
        // Four fifths of the capacity of 5.1 requests/s each.
        let wait = |router| run(&speed, 4, router, &drawn(16.0, 40_000)).simulated.wait_s.p99.value;
        assert!(wait(Router::LeastLoaded) < 0.7 * wait(Router::Random));
    }

    #[test]
    fn two_requests_at_once_go_to_two_replicas() {
        let speed = speed(1);
        let both = Arrivals::Trace(vec![(0.0, 100.0, 50.0), (0.0, 100.0, 50.0)]);
        let spread = run(&speed, 2, Router::LeastLoaded, &both).simulated;
        assert!(spread.wait_s.p99.value < 1e-12);
        let alone = run(&speed, 1, Router::LeastLoaded, &both).simulated;
        assert!(alone.wait_s.p99.value > 0.5);
    }

    #[test]
    fn a_run_ends_when_it_is_told_to_and_all_of_a_trace_counts() {
        let speed = speed(4);
        let trace = Arrivals::Trace((0..100).map(|i| (f64::from(i), 10.0, 5.0)).collect());
        let fleet = Fleet { speed: &speed, replicas: 2, router: Router::Random, seed: 1 };
        let mut seen = 0;
        let stopped = fleet.run(&trace, &mut |_, _| {
            seen += 1;
            seen == 10
        });
        assert!(stopped.unwrap().is_none() && seen == 10);
        let whole = run(&speed, 2, Router::Random, &trace);
        assert_eq!((whole.each.len(), whole.simulated.requests), (100, 100));
        let none = Fleet { replicas: 0, ..fleet };
        assert_eq!(none.run(&trace, &mut |_, _| false).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn routers_have_the_names_they_print() {
        for router in [Router::Random, Router::LeastLoaded] {
            assert_eq!(router.to_string().parse(), Ok(router));
        }
        assert!("round-robin".parse::<Router>().is_err());
    }
}
