//! An engine as a queue: a birth-death chain whose speed depends on how many requests it runs.
//!
//! With `j` requests in the system `B = min(j, cap)` run, each advancing one token per step of
//! `T(B)`; prompts take a share of the time from all. Departures happen at rate `B / S(B)`, so the
//! stationary probabilities are products of `lambda / mu_j`, taken in logarithms; beyond the cap the
//! chain is geometric and summed in closed form. Without waiting the result does not depend on how
//! lengths are distributed (processor sharing); with waiting it does, and the simulation decides.

use crate::units::Seconds;
use crate::{Error, Result};

/// Service requirement of an engine by how many requests it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// Seconds that a request needs at `j + 1` running requests.
    service: Vec<f64>,
}

/// An engine in equilibrium.
#[derive(Clone, Debug, PartialEq)]
pub struct Equilibrium {
    /// Probability of `j` requests in the system, up to the cap.
    states: Vec<f64>,
    /// Probability that an arrival waits.
    pub waiting: f64,
    /// Mean wait of all arrivals.
    pub mean_wait: Seconds,
    /// Mean running requests.
    pub mean_running: f64,
    /// Mean requests in the system.
    pub mean_in_system: f64,
    /// Share of the departures that the engine could make.
    pub utilisation: f64,
    /// Rate at which waiting ends.
    drain: f64,
}

impl Queue {
    /// An engine that needs `service[j]` seconds per request with `j + 1` running. Where more
    /// running requests make fewer leave, no more are admitted.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is no state or a time is not above zero.
    pub fn new(mut service: Vec<f64>) -> Result<Self> {
        if service.is_empty() || !service.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err(Error::usage("service times", "must be given and above zero"));
        }
        let rate = |j: usize| (j + 1) as f64 / service[j];
        let best =
            (0..service.len()).fold(0, |best, j| if rate(j) > rate(best) { j } else { best });
        service.truncate(best + 1);
        Ok(Self { service })
    }

    /// Requests that run at most.
    pub fn cap(&self) -> usize {
        self.service.len()
    }

    /// Requests per second that the engine can serve at most.
    pub fn capacity(&self) -> f64 {
        self.cap() as f64 / self.service[self.cap() - 1]
    }

    /// Equilibrium at an arrival rate; `None` when there is none.
    pub fn at(&self, rate: f64) -> Option<Equilibrium> {
        let capacity = self.capacity();
        if rate.is_nan() || rate <= 0.0 || rate >= capacity {
            return None;
        }
        let cap = self.cap();
        let mut logs = Vec::with_capacity(cap + 1);
        logs.push(0.0);
        let mut log = 0.0;
        for (j, service) in self.service.iter().enumerate() {
            log += (rate * service / (j + 1) as f64).ln();
            logs.push(log);
        }
        let load = rate / capacity;
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut states: Vec<f64> = logs.iter().map(|l| (l - most).exp()).collect();
        // States beyond the cap are p_cap load^i.
        let beyond = states[cap] * load / (1.0 - load);
        let total: f64 = states.iter().sum::<f64>() + beyond;
        for state in &mut states {
            *state /= total;
        }
        let at_cap = states[cap];
        let waiting = at_cap / (1.0 - load);
        let queued = at_cap * load / (1.0 - load).powi(2);
        let below: f64 = states.iter().enumerate().map(|(j, p)| j as f64 * p).sum();
        let mean_running = below + cap as f64 * (waiting - at_cap);
        Some(Equilibrium {
            waiting,
            mean_wait: Seconds(queued / rate),
            mean_running,
            mean_in_system: mean_running + queued,
            utilisation: load,
            drain: capacity - rate,
            states,
        })
    }
}

impl Equilibrium {
    /// Probability of 0, 1, ... requests in the system, up to the cap; beyond it the rest of
    /// [`Self::waiting`].
    pub fn states(&self) -> &[f64] {
        &self.states
    }

    /// Rate at which the wait of those who wait ends, per second.
    pub fn drain(&self) -> f64 {
        self.drain
    }

    /// The wait that a share of arrivals does not exceed.
    pub fn wait_quantile(&self, share: f64) -> Seconds {
        let above = 1.0 - share;
        if self.waiting <= above {
            return Seconds::ZERO;
        }
        Seconds((self.waiting / above).ln() / self.drain)
    }

    /// The number running that a share of the *running requests* does not see exceeded: each state
    /// counts with the requests in it.
    pub fn running_quantile(&self, share: f64) -> usize {
        let cap = self.states.len() - 1;
        let mut sum = 0.0;
        for (j, p) in self.states.iter().enumerate().take(cap) {
            sum += j as f64 * p / self.mean_running;
            if sum >= share {
                return j.max(1);
            }
        }
        cap
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn service_that_grows_with_the_load_is_a_single_server() {
        // S(B) = B s serves one request per s whatever runs: M/M/1, here without waiting beyond 200.
        let queue = Queue { service: (1..=200).map(|b| f64::from(b) * 0.1).collect() };
        for load in [0.1, 0.5, 0.8] {
            let e = queue.at(load / 0.1).unwrap();
            assert!((e.mean_in_system - load / (1.0 - load)).abs() < 1e-9, "{load}");
            assert!((e.utilisation - load).abs() < 1e-9);
        }
    }

    #[test]
    fn constant_service_is_erlang_c() {
        let (servers, service) = (5, 2.0);
        let queue = Queue::new(vec![service; servers]).unwrap();
        for load in [0.2, 0.7, 0.95] {
            let rate = load * servers as f64 / service;
            let e = queue.at(rate).unwrap();
            let offered = rate * service;
            let mut term = 1.0;
            let mut sum = 1.0;
            for j in 1..servers {
                term *= offered / j as f64;
                sum += term;
            }
            let last = term * offered / servers as f64 / (1.0 - load);
            let erlang = last / (sum + last);
            assert!((e.waiting - erlang).abs() < 1e-9, "{load}");
            let wait = erlang / (servers as f64 / service - rate);
            assert!((e.mean_wait.0 - wait).abs() < 1e-9);
            assert!((e.mean_running - offered).abs() < 1e-9);
            let p99 = e.wait_quantile(0.99).0;
            let tail = erlang * (-(servers as f64 / service - rate) * p99).exp();
            assert!(p99 <= 0.0 || (tail - 0.01).abs() < 1e-9);
        }
    }

    #[test]
    fn no_more_are_admitted_than_serve_best() {
        let queue = Queue::new(vec![1.0, 1.2, 3.0, 9.0]).unwrap();
        assert_eq!(queue.cap(), 2);
        assert!(queue.at(queue.capacity()).is_none() && queue.at(0.0).is_none());
        assert!(Queue::new(Vec::new()).is_err() && Queue::new(vec![f64::NAN]).is_err());
    }

    proptest! {
        #[test]
        fn more_traffic_never_waits_less(step in 0.001..0.1_f64, slope in 0.0..0.01_f64, cap in 1..100_usize) {
            let queue = Queue::new((0..cap).map(|b| 100.0 * (step + slope * b as f64)).collect()).unwrap();
            let mut before = 0.0;
            for load in [0.1, 0.4, 0.7, 0.9, 0.99] {
                let e = queue.at(load * queue.capacity()).unwrap();
                prop_assert!(e.mean_wait.0 >= before);
                prop_assert!(e.wait_quantile(0.99).0 >= e.wait_quantile(0.5).0);
                prop_assert!(e.running_quantile(0.99) >= e.running_quantile(0.5));
                let served = load * queue.capacity();
                let sum = served * e.mean_wait.0 + e.mean_running;
                prop_assert!((sum / e.mean_in_system - 1.0).abs() < 1e-9);
                before = e.mean_wait.0;
            }
        }
    }
}
