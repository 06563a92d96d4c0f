//! `law claims`: the seed papers' claims beside what is computed here.

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::cli::law::wrapped;
use crate::cli::rank::ServingCost;
use crate::cli::{Output, output, parse};
use crate::law;
use crate::law::claims::{self, Claims, Costing};
use crate::plan::outcome::Assumption;
use crate::units::Seconds;

/// Example for the help.
pub(super) const EXAMPLE: &str = "Examples:
  moe-frontier law claims
  moe-frontier law claims --profile h100 --isl 500 --osl 250 --tpot 100ms --json";

/// The budget that the serving defaults are resolved at: the middle of the claims' range.
const MIDDLE: &str = "5.15e21";

/// Arguments of `law claims`.
#[derive(Args, Clone, Debug)]
pub struct ClaimsArgs {
    /// Law that ranks expert counts, or the path of a law file.
    #[arg(long, default_value = "ludziejewski2025", value_name = "LAW|FILE")]
    law: String,

    /// Latencies that price serving: a profile file, or a device name such as `h100`. Without it all
    /// parameters stand in for the cost of a token.
    #[arg(long, value_name = "FILE|DEVICE")]
    profile: Option<String>,

    /// Prompt tokens of a request [default: as `rank`].
    #[arg(long, value_parser = parse::tokens, requires = "profile")]
    isl: Option<f64>,

    /// Output tokens of a request [default: as `rank`].
    #[arg(long, value_parser = parse::tokens, requires = "profile")]
    osl: Option<f64>,

    /// Requests per second to serve in all, by whole replicas.
    #[arg(long, value_parser = parse::rate, requires = "profile")]
    rate: Option<f64>,

    /// Longest mean time per output token [default: as `rank`].
    #[arg(long, value_parser = parse::duration, requires = "profile")]
    tpot: Option<Seconds>,

    /// Dollars per serving device and hour [default: the device's known price].
    #[arg(long, value_parser = parse::usd_per_hour, requires = "profile")]
    price: Option<f64>,

    /// Use cells of the profile whose interval stayed wide.
    #[arg(long, requires = "profile")]
    include_noisy: bool,
}

impl ClaimsArgs {
    /// The flags of `rank` that price serving the same way.
    fn serving_flags(&self, profile: &str) -> Vec<String> {
        let mut flags = vec![format!("--profile={profile}"), format!("--train-flops={MIDDLE}")];
        let numbers = [
            ("--isl", self.isl),
            ("--osl", self.osl),
            ("--rate", self.rate),
            ("--price", self.price),
        ];
        flags.extend(numbers.iter().filter_map(|(flag, v)| Some(format!("{flag}={}", (*v)?))));
        flags.extend(self.tpot.map(|t| format!("--tpot={}s", t.0)));
        flags.extend(self.include_noisy.then(|| "--include-noisy".to_owned()));
        flags
    }
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    #[serde(flatten)]
    claims: Claims,
    /// What the serving costs rest on; empty for the stand-in.
    assumptions: Vec<Assumption>,
}

pub(super) fn run(args: &ClaimsArgs, output: Output) -> Result<()> {
    let law = law::load_scaling(&args.law)?;
    let law = &law;
    let (claims, assumptions) = match &args.profile {
        None => {
            let total = |experts, n| law.closure(experts, n).ok().map(|c| c.n_total);
            let name = "total parameters, as a stand-in for the cost of serving a token";
            let costing = Costing { cost: &total, name, is_priced: false };
            (claims::claims(law, &args.law, costing)?, Vec::new())
        }
        Some(profile) => {
            let serving = ServingCost::new(law, &args.serving_flags(profile))?;
            for warning in &serving.warnings {
                output::warn(warning);
            }
            let cost = |experts, n| serving.of(experts, n);
            let costing = Costing { cost: &cost, name: &serving.name, is_priced: true };
            (claims::claims(law, &args.law, costing)?, serving.assumptions.clone())
        }
    };
    let document =
        Document { schema: "moe-frontier/law-claims", schema_version: "1.0", claims, assumptions };
    output.result(&document, || text(&document.claims))
}

fn text(claims: &Claims) -> String {
    let mut text = wrapped("law   ", &claims.law) + &wrapped("cost  ", &claims.cost);
    for claim in &claims.claims {
        text.push_str(&wrapped(&format!("\n{:<4} ", claim.id), claim.claim));
        text.push_str(&wrapped("     published  ", claim.published));
        text.push_str(&wrapped("     computed   ", &claim.computed));
        let range = if claim.extrapolation > 1.0 {
            format!("; {:.0} times outside the law's runs", claim.extrapolation)
        } else {
            String::new()
        };
        let verdict = format!("{}; {}{range}", claim.verdict.words(), claim.size.words());
        text.push_str(&wrapped("     verdict    ", &verdict));
    }
    text.push_str("\nNumbers in the first paper that do not add up:\n");
    for inconsistency in &claims.inconsistencies {
        text.push_str(&wrapped("  - ", inconsistency));
    }
    text
}
