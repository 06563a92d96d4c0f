//! What serving a law's models costs, for commands that ask nothing else of a ranking.

use clap::Parser;

use super::RankArgs;
use crate::ask::rank::assumptions::Ledger;
use crate::ask::rank::{inputs, note_sources, serving, warnings};
use crate::ask::sources::Sources;
use crate::cli::store;
use crate::law::Scaling;
use crate::plan::inputs::RankInputs;
use crate::plan::outcome::Assumption;
use crate::plan::price::Book;
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
pub(in crate::cli) struct ServingCost {
    book: Book,
    /// What the cost is, in words.
    pub(in crate::cli) name: String,
    /// Every price, length and limit used.
    pub(in crate::cli) assumptions: Vec<Assumption>,
    /// Things to know about the latencies.
    pub(in crate::cli) warnings: Vec<String>,
}

impl ServingCost {
    /// Prices with flags as `rank` takes them: `--profile` must name a source.
    ///
    /// # Errors
    /// Whatever `rank` refuses of these flags.
    pub(in crate::cli) fn new(law: &Scaling, flags: &[String]) -> Result<Self> {
        let alone = Alone::try_parse_from(flags).map_err(|e| {
            let text = e.to_string();
            let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Error::usage("serving", reason.to_owned())
        })?;
        let args = alone.rank;
        if args.is_of_this_machine() {
            return Err(Error::usage(
                "--profile",
                "`auto` would measure; name a profile file or a device such as h100",
            ));
        }
        let options = args.options();
        let sources = Sources::read(&options.source)?;
        store::warn_of_sources(&sources);
        let serving = serving(&sources, options.device.as_deref())?;
        let resolved = inputs::resolve(&options, law, &serving)?;
        let (inputs, mut ledger): (RankInputs, Ledger) = (resolved.inputs, resolved.ledger);
        let device = &inputs.device.spec;
        note_sources(&mut ledger, &sources, device);
        let load = match inputs.demand.rate {
            Some(rate) => format!("{rate} requests/s"),
            None => format!("{:.0}% utilisation at scale", 100.0 * inputs.demand.utilisation),
        };
        let name = format!(
            "serving dollars per million output tokens on {} ({}, engine {}), {} tokens in and {} out \
             a request, {load}{}",
            device.name,
            sources.names(device),
            sources.engine(),
            count(inputs.lengths.input),
            count(inputs.lengths.output),
            inputs.level.tpot.map_or_else(String::new, |t| format!(", TPOT at most {t}")),
        );
        let stack = sources.stack(device, sources.engine())?;
        let book = Book::new(stack, &inputs)?;
        let assumptions = ledger.into_entries();
        Ok(Self { book, name, assumptions, warnings: warnings(&sources) })
    }

    /// Dollars per million output tokens of one model; `None` when it cannot be served.
    pub(in crate::cli) fn of(&self, experts: usize, n_active: f64) -> Option<f64> {
        self.book.cost(experts, n_active)
    }
}
