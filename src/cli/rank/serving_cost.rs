//! What serving a law's models costs, for commands that ask nothing else of a ranking.

use clap::Parser;

use crate::cli::rank::assumptions::Ledger;
use crate::cli::rank::latencies::{Choice, Latencies};
use crate::cli::rank::{RankArgs, inputs, note_latencies};
use crate::latency::latency::LatencyModel;
use crate::law::ExpertScaling;
use crate::plan::inputs::{Demand, RankInputs};
use crate::plan::market::routings;
use crate::plan::outcome::Assumption;
use crate::plan::over_training::Pricing;
use crate::plan::price::Routing;
use crate::units::count;
use crate::{Error, Result};

/// The flags of `rank` by themselves, so that their defaults and checks are written once.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Alone {
    #[command(flatten)]
    rank: RankArgs,
}

/// Serving priced like the candidates of a ranking, with `rank`'s defaults for what is not given.
pub(in crate::cli) struct ServingCost<'a> {
    law: &'a dyn ExpertScaling,
    latency: Box<dyn LatencyModel>,
    inputs: RankInputs,
    routings: Vec<Routing>,
    /// What the cost is, in words.
    pub(in crate::cli) name: String,
    /// Every price, length and limit used.
    pub(in crate::cli) assumptions: Vec<Assumption>,
    /// Things to know about the latencies.
    pub(in crate::cli) warnings: Vec<String>,
}

impl<'a> ServingCost<'a> {
    /// Prices with flags as `rank` takes them: `--profile` must name a file or a device.
    ///
    /// # Errors
    /// Whatever `rank` refuses of these flags.
    pub(in crate::cli) fn new(law: &'a dyn ExpertScaling, flags: &[String]) -> Result<Self> {
        let alone = Alone::try_parse_from(flags).map_err(|e| {
            let text = e.to_string();
            let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Error::usage("serving", reason.to_owned())
        })?;
        let args = alone.rank;
        if args.profile == "auto" {
            return Err(Error::usage(
                "--profile",
                "`auto` would measure; name a profile file or a device such as h100",
            ));
        }
        let choice = Choice::find(&args)?;
        let serving = choice.serving();
        let resolved = inputs::resolve(&args, law, &serving)?;
        let (mut inputs, mut ledger): (RankInputs, Ledger) = (resolved.inputs, resolved.ledger);
        let Latencies { model, used, weight_bits, warnings } =
            choice.latencies(&args, &[], &inputs.experts)?;
        (inputs.weight_bits, inputs.expert_bits) = (weight_bits, weight_bits);
        note_latencies(&mut ledger, &inputs, &used.dtype);
        let load = match inputs.demand {
            Demand::Rate(rate) => format!("{rate} requests/s"),
            Demand::Utilisation(share) => format!("{:.0} % utilisation", 100.0 * share),
        };
        let name = format!(
            "serving dollars per million output tokens on {} ({} latencies from {}), {} tokens in and \
             {} out a request, {load}{}",
            used.device,
            used.source.label(),
            used.origin,
            count(inputs.lengths.input),
            count(inputs.lengths.output),
            inputs.level.tpot.map_or_else(String::new, |t| format!(", {t} a token at most")),
        );
        let routings = routings(law, &inputs)?;
        let assumptions = ledger.into_entries();
        Ok(Self { law, latency: model, inputs, routings, name, assumptions, warnings })
    }

    /// Dollars per million output tokens of one model; `None` when it cannot be served.
    pub(in crate::cli) fn of(&self, experts: usize, n_active: f64) -> Option<f64> {
        let pricing = Pricing {
            law: self.law,
            latency: self.latency.as_ref(),
            inputs: &self.inputs,
            routings: self.inputs.experts.iter().copied().zip(&self.routings).collect(),
        };
        pricing.cost(experts, n_active)
    }
}
