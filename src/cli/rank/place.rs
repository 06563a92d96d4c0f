//! Where the latencies of a ranking come from: what is named, or this machine.

use super::inputs::Serving;
use super::machine::Machine;
use super::{RankArgs, serving};
use crate::Result;
use crate::cli::profile::{ProfileArgs, Sources};
use crate::config::DType;
use crate::law::Scaling;
use crate::plan::budget::layer_widths;
use crate::plan::inputs::RankInputs;
use crate::serving::EngineCosts;
use crate::units::nearest_whole;

/// Where latencies will come from.
pub(super) enum Place {
    /// What `--profile` names.
    Named(Sources),
    /// This machine.
    Here(Machine),
}

impl Place {
    pub(super) fn find(args: &RankArgs) -> Result<Self> {
        if args.source.is_this_machine() {
            return Ok(Self::Here(Machine::find(args.measure_again)?));
        }
        Sources::read(&args.source).map(Self::Named)
    }

    /// Whether it is this machine.
    pub(super) const fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    /// The serving device as it is known now.
    pub(super) fn serving(&self, args: &RankArgs) -> Result<Serving> {
        match self {
            Self::Named(sources) => serving(sources, args.device.as_deref()),
            Self::Here(machine) => Ok(Serving {
                spec: machine.device()?,
                costs: EngineCosts::bare(0.0),
                dtype: DType::Bf16,
                is_own: true,
            }),
        }
    }

    /// The latencies, with this machine measured if it has to be; `inputs` learn what that told.
    pub(super) fn sources(
        self,
        args: &RankArgs,
        law: &Scaling,
        inputs: &mut RankInputs,
    ) -> Result<Sources> {
        let machine = match self {
            Self::Named(sources) => return Ok(sources),
            Self::Here(machine) => machine,
        };
        let widths = middle_too(layer_widths(law, inputs)?);
        let item = machine.profile(args, &widths, (&inputs.experts, inputs.template.top_k))?;
        let flags = ProfileArgs { include_noisy: true, ..args.source.clone() };
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
