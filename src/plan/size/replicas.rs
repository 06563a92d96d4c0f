//! How many replicas of a plan keep the limits: a search on the simulation.
//!
//! A limit is kept when the upper end of the simulated value's interval keeps it. The search doubles
//! its steps away from a first guess until it has a number that keeps the limits and one that does
//! not, and bisects between them. A run ends as soon as a limit is certainly missed.

use super::{Limit, Metric, PlanCurve, SizeInputs, Statistic};
use crate::serving::{Arrivals, EngineSpeed, Estimate, Fleet, FleetRun, Router, Simulated};
use crate::units::Seconds;
use crate::{Error, Result};

/// Requests of each replica at least: a recorded stream is repeated until there are so many.
const PER_REPLICA: usize = 300;
/// Requests of one simulation at most.
const MOST_REQUESTS: usize = 1_000_000;
/// Fleets of more replicas are found to one in so many.
const RESOLUTION: usize = 200;
/// A rate at which a replica is nearly always idle, relative to the time that a request alone takes.
const APART: f64 = 1e-3;

/// What a plan lacks whose cache a single request exceeds.
pub(super) const MEMORY: &str = "memory";

/// A limit that a number of replicas misses.
#[derive(Clone, Debug, PartialEq)]
pub struct Miss {
    /// `ttft_p99` and the like, or `throughput`.
    pub constraint: String,
    /// What was found, in words.
    pub detail: String,
}

impl std::fmt::Display for Miss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.constraint, self.detail)
    }
}

/// What a simulation says of the limits.
pub(super) enum Verdict {
    /// All are kept.
    Kept(Box<FleetRun>),
    /// One is missed or cannot be told.
    Missed(Miss),
}

/// The fewest replicas that keep the limits.
pub(super) struct Found {
    pub(super) replicas: usize,
    pub(super) run: FleetRun,
    /// What fewer of them miss.
    pub(super) below: Option<Miss>,
}

/// A plan with a batch limit, to be tried with numbers of replicas.
#[derive(Clone, Copy)]
pub(super) struct Trial<'a> {
    pub(super) inputs: &'a SizeInputs,
    pub(super) curve: &'a PlanCurve,
    pub(super) cap: usize,
}

impl Trial<'_> {
    /// Whether so many replicas keep the limits at the peak rate.
    pub(super) fn check(&self, replicas: usize) -> Result<Verdict> {
        let peak = self.inputs.peak();
        if !self.curve.keeps_up(peak / replicas as f64, self.cap) {
            let detail = format!("{} cannot keep up with {peak} requests/s", counted(replicas));
            return Ok(Verdict::Missed(Miss { constraint: "throughput".into(), detail }));
        }
        let (engines, arrivals) = self.arrivals(replicas);
        self.judge(engines, &arrivals, &format!("with {}", counted(replicas)))
    }

    /// Whether a replica that is nearly always idle keeps them.
    pub(super) fn check_idle(&self) -> Result<Verdict> {
        self.judge(1, &self.idle_arrivals(), "on an idle replica")
    }

    /// The whole run at the peak rate, whatever it misses.
    pub(super) fn measure(&self, replicas: usize) -> Result<Simulated> {
        let (engines, arrivals) = self.arrivals(replicas);
        let speed = self.curve.speed(self.cap);
        let run = self.fleet(&speed, engines).run(&arrivals, &mut |_, _| false)?;
        run.map(|run| run.simulated).ok_or_else(|| Error::unfit("simulation", "it was stopped"))
    }

    fn fleet<'s>(&self, speed: &'s EngineSpeed, replicas: usize) -> Fleet<'s> {
        Fleet { speed, replicas, router: self.inputs.router, seed: self.inputs.seed }
    }

    /// Replicas to simulate and their requests. A random split of Poisson arrivals gives every
    /// replica Poisson arrivals: one represents all.
    fn arrivals(&self, replicas: usize) -> (usize, Arrivals) {
        let inputs = self.inputs;
        let wanted = (PER_REPLICA * replicas).min(MOST_REQUESTS);
        if let Some(trace) = &inputs.trace {
            return (replicas, Arrivals::Trace(trace.replay(inputs.peak(), wanted)));
        }
        let is_poisson = (inputs.burstiness - 1.0).abs() < f64::EPSILON;
        if inputs.router == Router::Random && is_poisson {
            return (1, self.drawn(inputs.peak() / replicas as f64, inputs.requests));
        }
        (replicas, self.drawn(inputs.peak(), inputs.requests.max(wanted)))
    }

    fn drawn(&self, rate: f64, requests: usize) -> Arrivals {
        Arrivals::Drawn {
            rate,
            burstiness: self.inputs.burstiness,
            lengths: self.inputs.lengths,
            spread: self.inputs.spread,
            requests,
            seed: self.inputs.seed,
        }
    }

    /// Requests so far apart that hardly two of them meet.
    fn idle_arrivals(&self) -> Arrivals {
        let alone = self.curve.throughput(1).1.0 * self.inputs.lengths.output.max(1.0);
        let rate = APART / alone;
        match &self.inputs.trace {
            // Recorded requests may arrive in one instant.
            Some(trace) => {
                let alone = |(i, r): (usize, (f64, f64, f64))| (i as f64 / rate, r.1, r.2);
                Arrivals::Trace(trace.replay(rate, 1).into_iter().enumerate().map(alone).collect())
            }
            None => self.drawn(rate, self.inputs.requests),
        }
    }

    fn judge(&self, engines: usize, arrivals: &Arrivals, place: &str) -> Result<Verdict> {
        let limits = &self.inputs.limits;
        let mut tallies: Vec<Tally> =
            limits.iter().map(|l| Tally::new(l, arrivals.counted())).collect();
        let speed = self.curve.speed(self.cap);
        let mut stop = |ttft: f64, tpot: f64| {
            let mut any = false;
            for tally in &mut tallies {
                any |= tally.add(ttft, tpot);
            }
            any
        };
        let run = match self.fleet(&speed, engines).run(arrivals, &mut stop) {
            Err(Error::Infeasible { what, .. }) => {
                return Ok(Verdict::Missed(Miss { constraint: MEMORY.into(), detail: what }));
            }
            run => run?,
        };
        let Some(run) = run else {
            let missed = tallies.iter().find(|t| t.is_missed());
            let missed = missed.map_or_else(
                || Miss { constraint: "throughput".into(), detail: "the run was stopped".into() },
                |t| t.miss(place),
            );
            return Ok(Verdict::Missed(missed));
        };
        let tightest = limits
            .iter()
            .map(|limit| (limit, limit.simulated(&run.simulated)))
            .max_by(|a, b| (a.1.hi / a.0.most.0).total_cmp(&(b.1.hi / b.0.most.0)));
        match tightest {
            Some((limit, found)) if found.hi > limit.most.0 => {
                Ok(Verdict::Missed(miss_of(limit, &found, place)))
            }
            _ => Ok(Verdict::Kept(Box::new(run))),
        }
    }
}

/// A value that misses its limit, or whose interval does.
fn miss_of(limit: &Limit, found: &Estimate, place: &str) -> Miss {
    let (value, lo, hi) = (Seconds(found.value), Seconds(found.lo), Seconds(found.hi));
    let state = if value > limit.most { "" } else { "not established, " };
    let detail = format!("{state}{value} ({lo} to {hi}) {place}, {} promised", limit.most);
    Miss { constraint: limit.to_string(), detail }
}

/// `1 replica`, `2 replicas`.
pub(super) fn counted(replicas: usize) -> String {
    if replicas == 1 { "1 replica".into() } else { format!("{replicas} replicas") }
}

/// One limit over the requests that have ended.
struct Tally<'a> {
    limit: &'a Limit,
    requests: usize,
    over: usize,
    sum: f64,
}

impl<'a> Tally<'a> {
    fn new(limit: &'a Limit, requests: usize) -> Self {
        Self { limit, requests, over: 0, sum: 0.0 }
    }

    /// Counts a request; whether the limit is certainly missed by now.
    fn add(&mut self, ttft: f64, tpot: f64) -> bool {
        let value = if self.limit.metric == Metric::Ttft { ttft } else { tpot };
        self.sum += value;
        self.over += usize::from(value > self.limit.most.0);
        self.is_missed()
    }

    fn is_missed(&self) -> bool {
        let all = self.requests as f64;
        match self.limit.statistic.share() {
            None => self.sum > all * self.limit.most.0,
            // The order statistic below the quantile exceeds the limit.
            Some(share) => self.over as f64 >= all - (share * (all - 1.0)).floor(),
        }
    }

    fn miss(&self, place: &str) -> Miss {
        let most = self.limit.most;
        let detail = match self.limit.statistic {
            Statistic::Mean => format!("the mean exceeds {most} {place}"),
            statistic => {
                let share = 100.0 * (1.0 - statistic.share().unwrap_or(1.0));
                format!("more than {share:.0} % of the requests exceed {most} {place}")
            }
        };
        Miss { constraint: self.limit.to_string(), detail }
    }
}

/// The fewest replicas up to `most` that pass a check, or what `most` of them miss.
pub(super) fn fewest(
    start: usize,
    most: usize,
    mut check: impl FnMut(usize) -> Result<Verdict>,
) -> Result<Result<Found, Miss>> {
    let mut high = start.clamp(1, most.max(1));
    let (mut low, mut below, mut step) = (0, None, 1);
    let mut run = loop {
        match check(high)? {
            Verdict::Kept(run) => break run,
            Verdict::Missed(miss) if high >= most => return Ok(Err(miss)),
            Verdict::Missed(miss) => {
                (low, below) = (high, Some(miss));
                high = (high + step).min(most);
                step *= 2;
            }
        }
    };
    step = 1;
    while high - low > 1 + high / RESOLUTION {
        // Before anything was missed, down in growing steps; then bisection.
        let next = match below {
            None => high.saturating_sub(step).max(1),
            Some(_) => usize::midpoint(low, high),
        };
        match check(next)? {
            Verdict::Kept(found) => (high, run, step) = (next, found, 2 * step),
            Verdict::Missed(miss) => (low, below) = (next, Some(miss)),
        }
    }
    Ok(Ok(Found { replicas: high, run: *run, below }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn miss(replicas: usize) -> Miss {
        Miss { constraint: "ttft_p99".into(), detail: replicas.to_string() }
    }

    fn run_of() -> Box<FleetRun> {
        let one = Estimate { value: 1.0, lo: 1.0, hi: 1.0 };
        let all = crate::serving::Percentiles { mean: one, p50: one, p90: one, p99: one };
        let simulated = Simulated {
            requests: 1,
            ttft_s: all,
            tpot_s: all,
            e2e_s: all,
            wait_s: all,
            mean_running: 1.0,
        };
        Box::new(FleetRun { simulated, each: Vec::new() })
    }

    /// Searches where `needed` replicas keep the limits; the answer, and checks that it took.
    fn search(start: usize, most: usize, needed: usize) -> (Result<Found, Miss>, usize) {
        let mut checks = 0;
        let found = fewest(start, most, |n| {
            checks += 1;
            let kept = n >= needed;
            Ok(if kept { Verdict::Kept(run_of()) } else { Verdict::Missed(miss(n)) })
        });
        (found.unwrap(), checks)
    }

    #[test]
    fn the_fewest_replicas_are_found_from_either_side() {
        for needed in [1, 2, 3, 7, 8, 64, 65, 100, 150] {
            for start in [1, 2, 5, 64, 100, 512] {
                let (found, checks) = search(start, 512, needed);
                let found = found.unwrap();
                assert_eq!(found.replicas, needed, "from {start}");
                assert_eq!(found.below.is_none(), needed == 1);
                assert!(checks <= 20, "{checks} checks from {start} to {needed}");
            }
        }
    }

    #[test]
    fn large_fleets_are_found_to_half_a_percent() {
        let (found, _) = search(10, 100_000, 12_345);
        let found = found.unwrap().replicas;
        assert!((12_345..=12_345 + 12_345 / 200 + 1).contains(&found), "{found}");
    }

    #[test]
    fn what_no_number_keeps_tells_what_the_largest_misses() {
        let (found, _) = search(3, 40, 41);
        assert_eq!(found.err().unwrap().detail, "40");
        let (found, _) = search(100, 40, 41);
        assert_eq!(found.err().unwrap().detail, "40");
    }

    #[test]
    fn a_tally_is_missed_exactly_when_the_quantile_must_be() {
        let most = Seconds(1.0);
        let limit = Limit { metric: Metric::Ttft, statistic: Statistic::P90, most };
        let mut tally = Tally::new(&limit, 100);
        // The 90th percentile of 100 lies above the order statistic of index 89.
        for over in 1..=10 {
            assert!(!tally.add(2.0, 0.0), "{over}");
        }
        assert!(!tally.add(0.5, 9.0) && tally.add(2.0, 0.0));
        assert!(tally.miss("here").detail.starts_with("more than 10 %"));
        let mean = Limit { statistic: Statistic::Mean, ..limit };
        let mut tally = Tally::new(&mean, 4);
        assert!(!tally.add(4.0, 0.0) && tally.add(0.1, 0.0));
    }
}
