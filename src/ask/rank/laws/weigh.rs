//! Weights of laws by their errors on runs of one's own.

use std::path::Path;
use std::sync::Arc;

use super::{Laws, RUNS};
use crate::Result;
use crate::ask::rank::RankOptions;
use crate::law::fit::Reading;
use crate::law::{Scaling, Template, held_out};
use crate::plan::mixture::Member;

/// Error in nats below which laws count as equally good: the least residual of a fit.
const LEAST_ERROR: f64 = 0.002;

impl Laws {
    /// Weights the laws by their errors on the largest of the user's runs that all of them answer, where
    /// `--law-weights` names a file of them; returns what came out, in words.
    ///
    /// # Errors
    /// Whatever the file is refused for; [`crate::Error::Unfit`] when no law answers enough of the runs.
    pub(in crate::ask::rank) fn weigh(
        &mut self,
        options: &RankOptions,
        template: &Arc<Template>,
    ) -> Result<Option<String>> {
        let Some(path) = options.law_weights.as_deref().and_then(|t| t.strip_prefix(RUNS)) else {
            return Ok(None);
        };
        let runs = Reading::default().read(Path::new(path), &held_out::VARIABLES)?.runs;
        let laws: Vec<Scaling> = self.members.iter().map(|m| m.law.on(template)).collect();
        let found = held_out::held_out(&laws, &runs)?;
        let (mut words, mut kept) = (Vec::new(), Vec::new());
        let members = self.members.drain(..).zip(self.infos.drain(..));
        for ((member, info), rmse) in members.zip(found.rmse_nats) {
            let id = member.law.id().to_owned();
            match rmse {
                Ok(rmse) => {
                    let weight = rmse.max(LEAST_ERROR).powi(-2);
                    words.push(format!("{id} {rmse:.4} nats"));
                    kept.push((Member { weight, ..member }, info));
                }
                Err(reason) => self.left_out.push(format!("{id} left out: {reason}")),
            }
        }
        (self.members, self.infos) = kept.into_iter().unzip();
        words.extend(self.left_out.iter().cloned());
        let words = words.join(", ");
        Ok(Some(format!("{words}; the {} largest of {} runs", found.predicted, found.answered)))
    }
}
