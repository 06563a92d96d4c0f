//! A deployment under traffic: fixed concurrency, a request rate, or everything queued at once.
//!
//! In steady state each step finishes `B / O` requests and admits as many. A prompt enters in chunks,
//! so a share of the steps carries one; with mixed batching those steps take `T_mix`, otherwise the
//! prompt's own step stops the others. Little's law closes the loop: a closed loop of `c` clients
//! has `c = B + those in prefill`, an open loop at rate r has `B = r (O - 1) TPOT`.

use crate::Result;
use crate::serving::{Breakdown, Deployment, EngineCosts, Lengths, StepLoad};
use crate::units::Seconds;

/// Rounds of the fixed point; each halves the error or better.
const ROUNDS: usize = 60;
/// Relative precision of the batch under an open loop.
const PRECISION: f64 = 1e-9;
/// Mean batch of a burst over its requests, while prompts enter and the last ones leave.
const BURST_MEAN_SHARE: f64 = 0.6;
/// Prompts take at most this share of the time; a stable engine never reaches 1.
const BUSIEST: f64 = 0.9;

/// What arrives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Traffic {
    /// This many clients, each sending its next request when the last one ends. All start together,
    /// so the first prompts wait for each other; `requests_per_client` says how often that counts.
    Closed {
        /// Clients.
        concurrency: f64,
        /// Requests of each client in the measured run.
        requests_per_client: f64,
    },
    /// Requests per second that are served, arriving at random.
    Open(f64),
    /// As many as fit: offline processing.
    Offline,
    /// This many requests at once, served to the end: what an overloaded open loop comes to.
    Burst(f64),
}

/// What a deployment does under given traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Served {
    /// Mean time to first token, waiting included.
    pub ttft: Seconds,
    /// Mean time per output token after the first.
    pub tpot: Seconds,
    /// Decoding sequences.
    pub batch: f64,
    /// Sequences that fit beside the weights.
    pub batch_cap: f64,
    /// Requests per second.
    pub requests_per_s: f64,
    /// The traffic is more than the deployment can serve; figures are those at its cap.
    pub saturated: bool,
    /// Share of the engine's time that prompts take; the rest is decoding.
    pub prompt_share: f64,
    /// Mean step by part.
    pub step: Breakdown,
}

impl Deployment<'_> {
    /// Duration of a static batch of `batch` requests: all prompts first, then all outputs in step.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn static_batch(&self, batch: f64, lengths: &Lengths) -> Result<Seconds> {
        let prompts = batch * self.costs.computed(lengths.input);
        let chunks = (prompts / self.costs.chunk_tokens).ceil().max(1.0);
        let load = StepLoad {
            sequences: 0.0,
            prompt_tokens: prompts / chunks,
            ..StepState { batch, lengths: *lengths }.load(prompts)
        };
        let first = self.step(&load)?.total() * chunks;
        let decode = self.step(&StepState { batch, lengths: *lengths }.load(0.0))?.total();
        let steps = (lengths.output - 1.0).max(0.0) / self.costs.speculation.tokens();
        Ok(first + decode * steps)
    }

    /// Steady state under `traffic`.
    ///
    /// # Errors
    /// As [`Self::batch_cap`] and [`Self::step`].
    pub fn serve(&self, traffic: &Traffic, lengths: &Lengths) -> Result<Served> {
        let cap = self.batch_cap(lengths)?;
        match *traffic {
            Traffic::Closed { concurrency, requests_per_client } => {
                let mut served = self.closed(concurrency.min(cap), cap, lengths)?;
                served.saturated = concurrency > cap;
                if served.saturated {
                    let waiting = (concurrency - cap) / served.requests_per_s;
                    served.ttft += Seconds(waiting);
                } else {
                    // Prompts that all arrive at the start wait for half of the others.
                    let own = self.prompt_step(0.0, lengths)?.total();
                    let first = self.prefill(lengths).first_token(0.0, Seconds::ZERO, own);
                    let alone = (first.0 - self.costs.request_s) / self.costs.prompt_factor;
                    let burst = self.costs.burst_factor * (concurrency - 1.0) / 2.0 * alone;
                    served.ttft += Seconds(burst / requests_per_client);
                }
                Ok(served)
            }
            Traffic::Open(rate) => self.open(rate, cap, lengths),
            Traffic::Offline => self.closed(cap, cap, lengths),
            Traffic::Burst(requests) => {
                // The batch falls as requests end and none follow.
                let batch = (requests * BURST_MEAN_SHARE).min(cap);
                Ok(Served { saturated: true, ..self.at(batch, cap, lengths)? })
            }
        }
    }

    /// `clients` requests in the system at all times.
    fn closed(&self, clients: f64, cap: f64, lengths: &Lengths) -> Result<Served> {
        let mut batch = clients;
        let mut served = self.at(batch, cap, lengths)?;
        for _ in 0..ROUNDS {
            let decoding = served.tpot.0 * lengths.decodes();
            let next = clients * decoding / (decoding + served.ttft.0);
            if (next - batch).abs() < 1e-6 * clients {
                break;
            }
            batch = 0.5 * (batch + next);
            served = self.at(batch, cap, lengths)?;
        }
        served.requests_per_s = clients / (served.ttft.0 + lengths.decodes() * served.tpot.0);
        Ok(served)
    }

    /// The smallest batch at which as many requests leave as arrive; the cap when none is fast enough.
    /// Throughput can fall towards the cap, where every prompt step carries all sequences.
    fn open(&self, rate: f64, cap: f64, lengths: &Lengths) -> Result<Served> {
        let decodes = lengths.decodes();
        let throughput = |batch: f64| -> Result<f64> {
            Ok(batch / (decodes * self.steps(batch, lengths)?.mean().total().0))
        };
        let mut high = cap.min(1.0);
        let mut low = high * 1e-6;
        while throughput(high)? < rate {
            if high >= cap {
                let full = self.at(cap, cap, lengths)?;
                return Ok(Served { saturated: true, ..full });
            }
            (low, high) = (high, (2.0 * high).min(cap));
        }
        while high / low > 1.0 + PRECISION {
            let middle = (low * high).sqrt();
            if throughput(middle)? < rate {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(Served { requests_per_s: rate, ..self.at(high, cap, lengths)? })
    }

    /// Steps and first token with `batch` decoding sequences.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn at(&self, batch: f64, cap: f64, lengths: &Lengths) -> Result<Served> {
        let steps = self.steps(batch, lengths)?;
        let step = steps.mean();
        let tpot = step.total();
        let own = self.prompt_step(batch, lengths)?.total();
        Ok(Served {
            ttft: self.prefill(lengths).first_token(batch, tpot, own),
            tpot,
            batch,
            batch_cap: cap,
            requests_per_s: batch / (tpot.0 * lengths.decodes()),
            saturated: false,
            prompt_share: steps.prompt_share(),
            step,
        })
    }

    /// The steps of a steady state with `batch` decoding sequences, by kind.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn steps(&self, batch: f64, lengths: &Lengths) -> Result<Steps> {
        let state = StepState { batch, lengths: *lengths };
        let load = state.load(0.0);
        // A step that decodes has at least one sequence.
        let load = StepLoad { sequences: load.sequences.max(1.0), ..load };
        let decode = self.step(&load)?;
        let input = self.costs.computed(lengths.input);
        // Per step each sequence gets on by some tokens.
        let tokens = self.costs.speculation.tokens();
        let prompt_tokens = batch * input * tokens / lengths.output.max(1.0);
        if prompt_tokens <= 0.0 {
            return Ok(Steps {
                decode,
                load,
                with: decode,
                with_load: load,
                plain: 1.0 / tokens,
                share: 0.0,
                tokens,
            });
        }
        let chunk = input.min(self.costs.chunk_tokens);
        // Prompts start at random steps: several may share one.
        let share = 1.0 - (-prompt_tokens / chunk).exp();
        let carried = (prompt_tokens / share).min(self.costs.chunk_tokens);
        // Above 1 the prompts of one output token need several steps: they set the pace.
        let share = prompt_tokens / carried;
        let riding = if self.costs.mixed { batch } else { 0.0 };
        let with_load = StepLoad { sequences: riding, ..state.load(carried) };
        let with = self.step(&with_load)?;
        let plain = if self.costs.mixed { (1.0 - share).max(0.0) } else { 1.0 };
        let (plain, share) = (plain / tokens, share / tokens);
        Ok(Steps { decode, load, with, with_load, plain, share, tokens })
    }

    /// One of the steps that carry a prompt beside `batch` decoding sequences.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn prompt_step(&self, batch: f64, lengths: &Lengths) -> Result<Breakdown> {
        self.prompt_step_load(batch, lengths).map(|(step, _)| step)
    }

    /// The same with what it carries.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn prompt_step_load(&self, batch: f64, lengths: &Lengths) -> Result<(Breakdown, StepLoad)> {
        let chunks = self.prefill(lengths).chunks;
        let riding = if self.costs.mixed { batch } else { 0.0 };
        let state = StepState { batch, lengths: *lengths };
        let tokens = self.costs.computed(lengths.input) / chunks;
        let load = StepLoad { sequences: riding, ..state.load(tokens) };
        Ok((self.step(&load)?, load))
    }

    /// How a prompt enters.
    pub fn prefill(&self, lengths: &Lengths) -> Prefill {
        Prefill::new(self.costs, self.costs.chunks(lengths.input), lengths.output)
    }
}

/// How a prompt enters the engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prefill {
    /// Steps that one prompt takes.
    pub chunks: f64,
    /// Output tokens of a request.
    output: f64,
    /// Front end, in seconds.
    request_s: f64,
    /// Steps of waiting and delivery.
    first_steps: f64,
    /// Factor on prompt steps.
    factor: f64,
    /// Output tokens of a sequence in one step.
    tokens: f64,
}

impl Prefill {
    /// A prompt of so many steps, of a request with so many output tokens.
    pub fn new(costs: &EngineCosts, chunks: f64, output: f64) -> Self {
        Self {
            chunks,
            output: output.max(1.0),
            request_s: costs.request_s,
            first_steps: costs.first_steps,
            factor: costs.prompt_factor,
            tokens: costs.speculation.tokens(),
        }
    }

    /// Arrival to first token beside `batch` sequences that get a token every `tpot`: the steps of
    /// waiting and delivery, the prompts before it (they are served one after the other, so their wait
    /// is that of an M/D/1 queue), then its own steps of `own` each.
    pub fn first_token(&self, batch: f64, tpot: Seconds, own: Seconds) -> Seconds {
        let own = self.factor * own.0 * self.chunks;
        if batch <= 0.0 {
            return Seconds(self.request_s + own);
        }
        let arrivals = batch / (self.output * tpot.0);
        let busy = (arrivals * own).min(BUSIEST);
        let wait = own * busy / (2.0 * (1.0 - busy));
        let step = tpot.0 * self.tokens;
        Seconds(self.request_s + self.first_steps * step + wait + own)
    }
}

/// The two kinds of step of a steady state: per output token of a sequence there are `plain` steps
/// without and `share` steps with prompt tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steps {
    /// A step without prompt tokens.
    pub decode: Breakdown,
    /// What it carries.
    pub load: StepLoad,
    /// A step with prompt tokens.
    pub with: Breakdown,
    /// What it carries.
    pub with_load: StepLoad,
    /// Plain steps per output token.
    pub plain: f64,
    /// Steps with prompt tokens per output token.
    pub share: f64,
    /// Output tokens of a sequence in one step.
    pub tokens: f64,
}

impl Steps {
    /// Share of the time that goes to prompts: what steps take longer for carrying them.
    pub fn prompt_share(&self) -> f64 {
        let decoding = self.decode.total().0 * (self.plain + self.share).min(1.0 / self.tokens);
        (1.0 - decoding / self.mean().total().0).clamp(0.0, 1.0)
    }

    /// All steps per output token, by part.
    pub fn mean(&self) -> Breakdown {
        Breakdown::mix(&self.decode, self.plain, &self.with, self.share)
    }
}

/// Sequences in the engine and their lengths.
#[derive(Clone, Copy)]
struct StepState {
    batch: f64,
    lengths: Lengths,
}

impl StepState {
    fn load(&self, prompt_tokens: f64) -> StepLoad {
        StepLoad::of(&self.lengths, self.batch, prompt_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::Speculation;
    use crate::serving::testing::on_roofline;

    const LENGTHS: Lengths = Lengths { input: 1000.0, output: 200.0 };

    fn with<T>(check: impl Fn(&Deployment) -> T) -> T {
        on_roofline("mixtral-8x7b", "h100", 2, check)
    }

    #[test]
    fn littles_law_holds_in_a_closed_loop() {
        with(|d| {
            let closed = Traffic::Closed { concurrency: 32.0, requests_per_client: 1e12 };
            let s = d.serve(&closed, &LENGTHS).unwrap();
            let in_system = s.requests_per_s * (s.ttft.0 + 199.0 * s.tpot.0);
            assert!((in_system / 32.0 - 1.0).abs() < 1e-6, "{in_system}");
            assert!(s.batch < 32.0);
        });
    }

    #[test]
    fn littles_law_holds_in_an_open_loop_and_overload_is_named() {
        with(|d| {
            let s = d.serve(&Traffic::Open(2.0), &LENGTHS).unwrap();
            assert!((s.batch / (2.0 * 199.0 * s.tpot.0) - 1.0).abs() < 1e-6);
            assert!(!s.saturated);
            let over = d.serve(&Traffic::Open(1e4), &LENGTHS).unwrap();
            assert!(over.saturated && (over.batch - over.batch_cap).abs() < 1e-9);
            let offline = d.serve(&Traffic::Offline, &LENGTHS).unwrap();
            assert!(offline.requests_per_s > s.requests_per_s);
        });
    }

    #[test]
    fn more_clients_wait_longer_and_get_more_done() {
        with(|d| {
            let run = |concurrency| {
                let closed = Traffic::Closed { concurrency, requests_per_client: 10.0 };
                d.serve(&closed, &LENGTHS).unwrap()
            };
            let (few, many) = (run(4.0), run(64.0));
            assert!(many.tpot > few.tpot && many.ttft > few.ttft);
            assert!(many.requests_per_s > few.requests_per_s);
        });
    }

    #[test]
    fn a_static_batch_is_its_prompts_and_its_steps() {
        with(|d| {
            let one = d.static_batch(1.0, &LENGTHS).unwrap();
            let many = d.static_batch(64.0, &LENGTHS).unwrap();
            let steps = d.at(64.0, 1e3, &Lengths { input: 1e-9, ..LENGTHS }).unwrap();
            assert!(many > one && many.0 > 199.0 * steps.tpot.0 * 0.9);
            let short = d.static_batch(64.0, &Lengths { output: 1.0, ..LENGTHS }).unwrap();
            assert!(short.0 > 0.0 && short < many);
        });
    }

    fn under<T>(costs: impl Fn(EngineCosts) -> EngineCosts, check: impl Fn(&Deployment) -> T) -> T {
        with(|d| {
            let costs = costs(d.costs.clone());
            check(&Deployment { costs: &costs, ..*d })
        })
    }

    #[test]
    fn drafts_read_more_experts_and_pay_where_few_sequences_share_a_step() {
        let drafted = |acceptance: f64, batch: f64| {
            let speculation = Speculation { drafts: 2.0, acceptance };
            let costs = |costs| EngineCosts { speculation, ..costs };
            under(costs, |d| d.at(batch, 1e3, &LENGTHS).unwrap())
        };
        for batch in [1.0, 8.0, 64.0] {
            let plain = with(|d| d.at(batch, 1e3, &LENGTHS).unwrap());
            let (kept, refused) = (drafted(0.85, batch), drafted(0.0, batch));
            assert!(refused.tpot > plain.tpot && refused.step.moe.seconds > plain.step.moe.seconds);
            assert!(kept.tpot < refused.tpot, "{batch}");
            assert!((kept.batch - batch).abs() < 1e-12);
        }
        // Twice as many rows of a full step cost little where its weights are read anyway.
        let gain = |batch: f64| {
            with(|d| d.at(batch, 1e3, &LENGTHS).unwrap()).tpot / drafted(0.85, batch).tpot
        };
        assert!(gain(64.0) > 1.3 && gain(64.0) < 2.6, "{}", gain(64.0));
        // A full acceptance of drafts that cost nothing would be three tokens a step.
        assert!(
            drafted(1.0, 8.0).tpot.0 * 3.0 > with(|d| d.at(8.0, 1e3, &LENGTHS).unwrap()).tpot.0
        );
    }

    #[test]
    fn found_prefixes_shorten_the_first_token_and_leave_the_cache_as_full() {
        let found = |prefix_hit: f64| {
            let costs = |costs| EngineCosts { prefix_hit, ..costs };
            under(costs, |d| d.serve(&Traffic::Open(4.0), &LENGTHS).unwrap())
        };
        let (none, half, most) = (found(0.0), found(0.5), found(0.9));
        assert!(half.ttft < none.ttft && most.ttft < half.ttft);
        assert!(half.tpot < none.tpot && most.prompt_share < none.prompt_share);
        assert!((half.batch_cap - none.batch_cap).abs() < 1e-9);
        assert!(
            (none.ttft / with(|d| d.serve(&Traffic::Open(4.0), &LENGTHS).unwrap()).ttft - 1.0)
                .abs()
                < 1e-12
        );
    }

    #[test]
    fn what_does_not_fit_is_infeasible() {
        on_roofline("mixtral-8x7b", "h100", 1, |d| {
            let error = d.serve(&Traffic::Open(1.0), &LENGTHS).unwrap_err();
            assert_eq!(error.exit_code(), 5);
        });
    }
}
