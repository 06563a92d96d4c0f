//! Prefill/decode disaggregation: prompts and decoding on separate pools of workers.
//!
//! A request waits for a prefill worker, is read there, its cache travels to a decode worker, and
//! decodes there beside others. Decode steps carry no prompts. The two pools and the clients are a
//! closed network: prefill is a queue (Seidmann's split of several servers into one fast server and a
//! delay, with Schweitzer's estimate of what an arrival finds), decoding a delay that grows with its
//! batch. Where prefill is the narrow part, requests pile up there and decoding runs at the rate that
//! prefill allows.

use serde::Serialize;

use crate::Result;
use crate::config::DeviceSpec;
use crate::serving::{Breakdown, Deployment, Layout, Lengths, Served, StepLoad, Traffic};
use crate::units::Seconds;

/// Rounds of the fixed point of the closed network.
const ROUNDS: usize = 200;
/// Share of the prompts that a pool can read from which it is the narrow part.
const SATURATED: f64 = 0.98;
/// Relative precision at which it stops.
const PRECISION: f64 = 1e-9;

/// The pools of a disaggregated server; decode workers have the layout of their deployment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pools {
    /// Layout of one prefill worker.
    pub prefill: Layout,
    /// Prefill workers.
    pub prefill_workers: f64,
    /// Decode workers.
    pub decode_workers: f64,
    /// Whether both numbers were stated; else they are assumed.
    pub stated: bool,
}

impl Pools {
    /// Devices of both pools, with `decode` as the layout of one decode worker.
    pub fn devices(&self, decode: &Layout) -> f64 {
        self.prefill_workers * self.prefill.devices() as f64
            + self.decode_workers * decode.devices() as f64
    }
}

/// The link that a request's cache takes from the prefill to the decode worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvLink {
    /// Bytes per second of one device and direction.
    pub bytes_per_s: f64,
    /// Fixed time in seconds.
    pub latency_s: f64,
}

impl KvLink {
    /// Between scale-up domains where the device states such a link, else inside one.
    pub fn of(device: &DeviceSpec) -> Self {
        let inside = Self { bytes_per_s: device.link_bytes_per_s, latency_s: 0.0 };
        // Pools of a rack-scale domain are inside it.
        if device.scale_up_devices > 8 {
            return inside;
        }
        device
            .scale_out
            .as_ref()
            .map_or(inside, |out| Self { bytes_per_s: out.bytes_per_s, latency_s: out.latency_s })
    }
}

/// Prefill of one worker: times of one prompt.
#[derive(Clone, Copy)]
struct PromptService {
    /// Alone, arrival at the worker to first token.
    latency: f64,
    /// Time per prompt of a busy worker, which fills its chunks.
    busy: f64,
    /// Prompts that a worker reads side by side (attention groups).
    servers: f64,
}

impl Deployment<'_> {
    /// Steady state of separate pools; `self` is one decode worker.
    ///
    /// # Errors
    /// As [`Self::batch_cap`] and [`Self::step`].
    pub fn serve_pools(
        &self,
        pools: &Pools,
        link: &KvLink,
        traffic: &Traffic,
        lengths: &Lengths,
    ) -> Result<Served> {
        let prefill = Deployment { layout: pools.prefill, ..*self };
        prefill.validate()?;
        let prompt = prefill.prompt_service(lengths)?;
        let cap = self.batch_cap(lengths)?;
        let splits = self.cache_per_sequence(lengths.input).0;
        let transfer = link.latency_s + splits / link.bytes_per_s;
        let network = Network { decode: self, pools, prompt, transfer, cap, lengths };
        match *traffic {
            Traffic::Closed { concurrency, requests_per_client } => {
                let mut served = network.closed(concurrency)?;
                // All clients start together: the first prompts queue for the prefill pool.
                let all = prompt.servers * pools.prefill_workers;
                let burst = ((concurrency - all) / 2.0).max(0.0) * prompt.busy
                    / (pools.prefill_workers * prompt.servers);
                served.ttft += Seconds(burst / requests_per_client);
                Ok(served)
            }
            Traffic::Open(rate) => network.open(rate),
            Traffic::Offline => network.closed(cap * pools.decode_workers * 2.0),
            Traffic::Burst(requests) => network.closed(requests),
        }
    }

    /// What one prompt takes on this worker, alone and when the worker is busy.
    fn prompt_service(&self, lengths: &Lengths) -> Result<PromptService> {
        let groups = self.layout.attention_dp as f64;
        let chunk = self.costs.chunk_tokens;
        let step = |tokens: f64| -> Result<f64> {
            let load = StepLoad {
                sequences: 0.0,
                context: lengths.input,
                prompt_tokens: tokens * groups,
                prompt_length: lengths.input,
            };
            Ok(self.step(&load)?.total().0)
        };
        let (chunks, tokens) =
            (self.costs.chunks(lengths.input), self.costs.computed(lengths.input));
        let factor = self.costs.prompt_factor;
        let latency = step(tokens / chunks)? * chunks * factor;
        // A busy worker puts several short prompts into one step.
        let busy = step(chunk)? * tokens / chunk * factor;
        Ok(PromptService { latency, busy: busy.min(latency), servers: groups })
    }

    /// What a decode step of `batch` sequences without prompts takes per token of each.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn decode_step(&self, batch: f64, lengths: &Lengths) -> Result<Breakdown> {
        let step = self.step(&StepLoad {
            sequences: batch.max(1.0),
            context: lengths.mean_context(),
            prompt_tokens: 0.0,
            prompt_length: 0.0,
        })?;
        Ok(Breakdown::mix(&step, 1.0 / self.costs.speculation.tokens(), &step, 0.0))
    }
}

struct Network<'a> {
    decode: &'a Deployment<'a>,
    pools: &'a Pools,
    prompt: PromptService,
    transfer: f64,
    cap: f64,
    lengths: &'a Lengths,
}

impl Network<'_> {
    /// Time at the prefill pool with `waiting` others there, as an arrival finds them.
    fn prefill(&self, others: f64) -> f64 {
        let servers = self.pools.prefill_workers * self.prompt.servers;
        let ahead = (others - (servers - 1.0)).max(0.0);
        self.prompt.latency + ahead * self.prompt.busy / servers
    }

    /// Most prompts per second.
    fn most(&self) -> f64 {
        self.pools.prefill_workers * self.prompt.servers / self.prompt.busy
    }

    /// Steps until the first token is delivered, at least the one that computes it.
    fn delivery(&self, tpot: Seconds) -> f64 {
        let costs = self.decode.costs;
        costs.first_steps.max(1.0) * costs.speculation.tokens() * tpot.0
    }

    /// What a first token takes beside the prefill pool: front end, the way of the cache, delivery.
    fn beyond_prefill(&self, tpot: Seconds) -> f64 {
        self.decode.costs.request_s + self.transfer + self.delivery(tpot)
    }

    fn served(&self, batch: f64, at_prefill: f64, rate: f64) -> Result<Served> {
        let step = self.decode.decode_step(batch, self.lengths)?;
        let tpot = step.total();
        Ok(Served {
            ttft: Seconds(self.prefill(at_prefill) + self.beyond_prefill(tpot)),
            tpot,
            batch,
            batch_cap: self.cap,
            requests_per_s: rate,
            saturated: false,
            prompt_share: self.prompt_share(),
            step,
        })
    }

    /// Share of the devices that read prompts.
    fn prompt_share(&self) -> f64 {
        let prefill = self.pools.prefill_workers * self.pools.prefill.devices() as f64;
        prefill / self.pools.devices(&self.decode.layout)
    }

    /// `clients` requests in the system at all times.
    fn closed(&self, clients: f64) -> Result<Served> {
        let workers = self.pools.decode_workers;
        let seen = (clients - 1.0) / clients;
        let mut at_prefill = 0.0;
        let mut rate = 0.0;
        let mut batch = (clients / workers).min(self.cap);
        for round in 0..ROUNDS {
            let tpot = self.decode.decode_step(batch, self.lengths)?.total();
            let decoding = tpot.0 * self.lengths.decodes();
            let elsewhere = self.beyond_prefill(tpot) + decoding;
            let around = self.prefill(at_prefill * seen) + elsewhere;
            let next = (clients / around).min(self.most()).min(workers * self.cap / decoding);
            let decoders = next * decoding / workers;
            // What is nowhere else is at the prefill pool.
            let waiting = (clients - next * elsewhere).max(0.0);
            let moved = (next - rate).abs() / next + (decoders - batch).abs() / decoders;
            // Steps of a half settle the two stations against each other.
            batch = 0.5 * (batch + decoders.max(1e-3));
            at_prefill = 0.5 * (at_prefill + waiting);
            rate = next;
            if round > 10 && moved < PRECISION {
                break;
            }
        }
        let mut served = self.served(batch, at_prefill * seen, rate)?;
        let decoding = served.tpot.0 * self.lengths.decodes();
        // Little's law over the whole network gives the time before decoding.
        let least = self.prompt.latency + self.beyond_prefill(served.tpot);
        served.ttft = Seconds((clients / rate - decoding).max(least));
        served.saturated = rate >= self.most() * SATURATED || batch >= self.cap;
        Ok(served)
    }

    /// `rate` requests per second, arriving at random.
    fn open(&self, rate: f64) -> Result<Served> {
        let workers = self.pools.decode_workers;
        let most = self.most();
        let full = self.decode.decode_step(self.cap, self.lengths)?.total().0;
        let most_decoding = workers * self.cap / (full * self.lengths.decodes());
        if rate >= most.min(most_decoding) {
            let served = self.served(self.cap, self.cap, most.min(most_decoding))?;
            return Ok(Served { saturated: true, ..served });
        }
        let (mut low, mut high) = (self.cap * 1e-6, self.cap);
        while high / low > 1.0 + PRECISION {
            let middle = (low * high).sqrt();
            let tpot = self.decode.decode_step(middle, self.lengths)?.total().0;
            if workers * middle / (tpot * self.lengths.decodes()) < rate {
                low = middle;
            } else {
                high = middle;
            }
        }
        // Prompts of one length that arrive at random: an M/D/1 queue in front of the pool.
        let busy = rate / most;
        let servers = self.pools.prefill_workers * self.prompt.servers;
        let wait = self.prompt.busy / servers * busy / (2.0 * (1.0 - busy));
        let mut served = self.served(high, 0.0, rate)?;
        served.ttft += Seconds(wait);
        Ok(served)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::testing::on_roofline;

    const LENGTHS: Lengths = Lengths { input: 4000.0, output: 500.0 };
    const LINK: KvLink = KvLink { bytes_per_s: 5e10, latency_s: 20e-6 };

    fn closed(prefill_workers: f64, decode_workers: f64, concurrency: f64) -> Served {
        on_roofline("mixtral-8x7b", "h100", 2, |d| {
            let pools = Pools { prefill: d.layout, prefill_workers, decode_workers, stated: true };
            let traffic = Traffic::Closed { concurrency, requests_per_client: 1e12 };
            d.serve_pools(&pools, &LINK, &traffic, &LENGTHS).unwrap()
        })
    }

    #[test]
    fn littles_law_holds_over_both_pools() {
        for concurrency in [1.0, 16.0, 256.0] {
            let s = closed(1.0, 2.0, concurrency);
            let inside = s.requests_per_s * (s.ttft.0 + LENGTHS.decodes() * s.tpot.0);
            assert!((inside / concurrency - 1.0).abs() < 1e-6, "{concurrency}: {inside}");
            let decoding = s.requests_per_s * LENGTHS.decodes() * s.tpot.0;
            assert!((decoding / (2.0 * s.batch) - 1.0).abs() < 1e-3, "{concurrency}");
        }
    }

    #[test]
    fn a_narrow_prefill_pool_holds_requests_back_and_more_workers_free_them() {
        let (narrow, wide) = (closed(1.0, 4.0, 512.0), closed(8.0, 4.0, 512.0));
        assert!(narrow.saturated && narrow.ttft.0 > 5.0 * wide.ttft.0, "{narrow:?} {wide:?}");
        assert!(narrow.batch < wide.batch && narrow.tpot < wide.tpot);
        assert!(wide.requests_per_s > narrow.requests_per_s);
    }

    #[test]
    fn decoding_apart_from_prompts_is_faster_than_beside_them() {
        let apart = closed(4.0, 1.0, 32.0);
        let together = on_roofline("mixtral-8x7b", "h100", 2, |d| {
            let traffic = Traffic::Closed { concurrency: 32.0, requests_per_client: 1e12 };
            d.serve(&traffic, &LENGTHS).unwrap()
        });
        assert!(apart.tpot < together.tpot);
    }
}
