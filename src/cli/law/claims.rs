//! `law claims`: the seed papers' claims beside what is computed here.

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::cli::Output;
use crate::cli::law::wrapped;
use crate::law::claims::{self, Claims};
use crate::law::{self, ExpertScaling};

/// Arguments of `law claims`.
#[derive(Args, Clone, Debug)]
pub struct ClaimsArgs {
    /// Law that ranks expert counts, or the path of a law file.
    #[arg(long, default_value = "ludziejewski2025", value_name = "LAW|FILE")]
    law: String,
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    #[serde(flatten)]
    claims: Claims,
}

pub(super) fn run(args: &ClaimsArgs, output: Output) -> Result<()> {
    let law = law::load_scaling(&args.law)?;
    let total = |experts, n| law.closure(experts, n).ok().map(|c| c.n_total);
    let cost = "total parameters, as a stand-in for the cost of serving a token";
    let claims = claims::claims(law.as_ref() as &dyn ExpertScaling, &args.law, &total, cost)?;
    let document = Document { schema: "moe-frontier/law-claims", schema_version: "1.0", claims };
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
        text.push_str(&wrapped("     verdict    ", &format!("{}{range}", claim.verdict.words())));
    }
    text.push_str("\nNumbers in the first paper that do not add up:\n");
    for inconsistency in &claims.inconsistencies {
        text.push_str(&wrapped("  - ", inconsistency));
    }
    text
}
