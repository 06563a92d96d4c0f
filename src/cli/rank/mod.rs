//! `rank`: the main job. Latencies, law and inputs come together; table, rank.json, plots and page go
//! out.

mod args;
mod assumptions;
mod inputs;
mod latencies;
mod serving_cost;

pub use args::RankArgs;
pub(super) use serving_cost::ServingCost;

use crate::cli::output::{Output, warn};
use crate::files::{create_folder, write_atomic};
use crate::law::ExpertScaling;
use crate::plan::budget::layer_widths;
use crate::plan::inputs::RankInputs;
use crate::plan::outcome::RankReport;
use crate::plan::rank::{Provenance, rank};
use crate::{Error, Result, law, report};
use latencies::{Choice, Latencies};

/// Runs the command.
///
/// # Errors
/// See [`Error`]; the output folder is created before anything is measured.
pub fn run(args: &RankArgs, output: Output) -> Result<()> {
    let answer = answer(args)?;
    for warning in &answer.warnings {
        warn(warning);
    }
    let mut document = serde_json::to_vec_pretty(&answer)
        .map_err(|e| Error::io("serialise", args.out.join("rank.json"), e.into()))?;
    document.push(b'\n');
    write_atomic(&args.out.join("rank.json"), &document, true)?;
    let written = report::write_all(&answer, &args.out)?;
    output.result(&answer, || {
        let colour = crate::cli::output::colour();
        format!(
            "{}\nwritten to {}: rank.json, report.html and {} more files\n",
            report::rank_text(&answer, colour),
            args.out.display(),
            written.len().saturating_sub(1)
        )
    })
}

/// Everything up to the answer.
fn answer(args: &RankArgs) -> Result<RankReport> {
    let published = law::load(&args.law, None)?;
    let law = published.scaling()?;
    let choice = Choice::find(args)?;
    let serving = choice.serving();
    let resolved = inputs::resolve(args, law.as_ref(), &serving)?;
    let mut inputs = resolved.inputs;
    // A target out of reach is found before minutes of measuring.
    let widths = middle_too(layer_widths(law.as_ref(), &inputs)?);
    create_folder(&args.out)?;
    let Latencies { model, used, weight_bits, warnings } =
        choice.latencies(args, &widths, &inputs.experts)?;
    inputs.weight_bits = weight_bits;
    inputs.expert_bits = args.weight_bits.unwrap_or(weight_bits);
    let mut ledger = resolved.ledger;
    note_latencies(&mut ledger, &inputs, &used.dtype);
    let provenance = Provenance {
        profile: used,
        law_id: published.info().id.clone(),
        law_source: published.info().source.clone(),
        law_uncertainty: uncertainty(law.as_ref(), &inputs.experts),
        assumptions: ledger.into_entries(),
        warnings,
    };
    rank(law.as_ref(), model.as_ref(), &inputs, provenance)
}

/// How the law's coefficients are drawn for the probabilities.
fn uncertainty(law: &dyn ExpertScaling, experts: &[usize]) -> String {
    let residual = law.residual_nats();
    let drawn = experts.first().map_or(0, |&e| law.drawn_slices(e).len());
    if drawn > 0 {
        return format!(
            "{drawn} joint resamples of the fitted coefficients, and independent normal residuals of {residual} nats for each expert count"
        );
    }
    format!(
        "independent normal residuals of {residual} nats for each expert count; no covariance of the coefficients is published"
    )
}

fn note_latencies(ledger: &mut assumptions::Ledger, inputs: &RankInputs, dtype: &str) {
    ledger.note(
        "weights and cache",
        &format!("{dtype}, {} bits", inputs.weight_bits),
        None,
        "format of the profile",
        true,
    );
}

/// The two outer layers and the one between them: three widths tell how well one predicts another.
/// The middle comes first, because most candidates lie around it.
fn middle_too([low, high]: [(usize, usize); 2]) -> Vec<(usize, usize)> {
    let between = |a: usize, b: usize| {
        let product = (a as f64 * b as f64).sqrt() / 64.0;
        whole(product.round()) * 64
    };
    let middle = (between(low.0, high.0), between(low.1, high.1));
    let mut widths = vec![middle, low, high];
    widths.dedup();
    if widths.len() < 2 {
        // A single width would say nothing about its neighbours.
        widths.push((low.0 / 2, low.1 / 2));
    }
    widths
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a width is positive and far below 2^31"
)]
const fn whole(value: f64) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_widths_lie_in_order_around_the_middle() {
        assert_eq!(
            middle_too([(512, 1536), (2048, 6144)]),
            [(1024, 3072), (512, 1536), (2048, 6144)]
        );
        let same = middle_too([(512, 1536), (512, 1536)]);
        assert_eq!(same, [(512, 1536), (256, 768)]);
    }
}
