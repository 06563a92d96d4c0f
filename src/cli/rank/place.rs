//! Where the latencies of a ranking come from: what is named, or this machine.

use super::RankArgs;
use super::machine::Machine;
use crate::Result;
use crate::ask::rank::inputs::Serving;
use crate::ask::rank::{self, Answer, Named, Place};
use crate::ask::sources::Sources;
use crate::ask::{RankOptions, SourceOptions};
use crate::cli::store;
use crate::config::DType;
use crate::law::Scaling;
use crate::plan::budget::layer_widths;
use crate::plan::inputs::RankInputs;
use crate::serving::EngineCosts;
use crate::units::nearest_whole;

/// The answer to flags, from what they name or from this machine.
///
/// # Errors
/// See [`crate::Error`].
pub(super) fn answer(args: &RankArgs) -> Result<Answer> {
    let options = args.options();
    if args.is_of_this_machine() {
        let machine = Machine::find(args.measure_again)?;
        return rank::answer(&options, Here { machine, args });
    }
    let named = Named::find(&options)?;
    store::warn_of_sources(&named.sources);
    rank::answer(&options, named)
}

/// This machine.
struct Here<'a> {
    machine: Machine,
    args: &'a RankArgs,
}

impl Place for Here<'_> {
    fn is_here(&self) -> bool {
        true
    }

    fn serving(&self, _: &RankOptions) -> Result<Serving> {
        Ok(Serving {
            spec: self.machine.device()?,
            costs: EngineCosts::bare(0.0),
            dtype: DType::Bf16,
            is_own: true,
        })
    }

    fn sources(
        self,
        options: &RankOptions,
        law: &Scaling,
        inputs: &mut RankInputs,
    ) -> Result<Sources> {
        let Self { machine, args } = self;
        let widths = middle_too(layer_widths(law, inputs)?);
        let item = machine.profile(args, &widths, (&inputs.experts, inputs.template.top_k))?;
        let flags = SourceOptions { include_noisy: true, ..options.source.clone() };
        let sources = Sources::new(vec![item], &flags)?;
        if let Some(device) = sources.device()? {
            let chunk_tokens = inputs.device.costs.chunk_tokens;
            inputs.device.costs = EngineCosts { chunk_tokens, ..sources.costs()? };
            inputs.device.spec = device;
        }
        Ok(sources)
    }
}

/// The two outer layers and the one between them: three widths tell how well one predicts another.
/// The middle comes first, because most candidates lie around it.
fn middle_too([low, high]: [(usize, usize); 2]) -> Vec<(usize, usize)> {
    let between = |a: usize, b: usize| {
        let product = (a as f64 * b as f64).sqrt() / 64.0;
        nearest_whole(product) * 64
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
