//! Weights of laws by their errors on runs of one's own.

use std::path::Path;
use std::sync::Arc;

use super::{Laws, RUNS};
use crate::Result;
use crate::ask::rank::RankOptions;
use crate::law::fit::Reading;
use crate::law::{Template, held_out};
use crate::plan::mixture::Member;

/// Error in nats below which laws count as equally good: the least residual of a fit.
const LEAST_ERROR: f64 = 0.002;

impl Laws {
    /// Weights the laws by their errors on the largest of the user's runs, where `--law-weights` names a
    /// file of them; returns what came out, in words.
    ///
    /// # Errors
    /// Whatever the file is refused for; [`Error::Unfit`] when no law answers enough of the runs.
    pub(in crate::ask::rank) fn weigh(
        &mut self,
        options: &RankOptions,
        template: &Arc<Template>,
    ) -> Result<Option<String>> {
        let Some(path) = options.law_weights.as_deref().and_then(|t| t.strip_prefix(RUNS)) else {
            return Ok(None);
        };
        let reading = Reading::default();
        let runs = reading.read(Path::new(path), &held_out::VARIABLES)?.runs;
        let (mut words, mut refused, mut kept) = (Vec::new(), None, Vec::new());
        for (member, info) in self.members.drain(..).zip(self.infos.drain(..)) {
            let id = member.law.id().to_owned();
            match held_out::held_out(&member.law.on(template), &runs) {
                Ok(found) => {
                    let weight = found.rmse_nats.max(LEAST_ERROR).powi(-2);
                    words.push(format!("{id} {:.4} nats", found.rmse_nats));
                    kept.push((Member { weight, ..member }, info));
                }
                Err(reason) => {
                    words.push(format!("{id} left out"));
                    refused = refused.or(Some(reason));
                }
            }
        }
        (self.members, self.infos) = kept.into_iter().unzip();
        if let Some(reason) = refused.filter(|_| self.members.is_empty()) {
            return Err(reason);
        }
        Ok(Some(words.join(", ")))
    }
}
