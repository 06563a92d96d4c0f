//! Which laws rank, and with which weight.

#[cfg(feature = "native")]
mod weigh;

#[cfg(not(feature = "native"))]
use std::sync::Arc;

use crate::ask::rank::RankOptions;
use crate::law::{self, Scaling};
use crate::plan::mixture::Member;
use crate::{Error, Result};

/// The word for every published law that ranks.
pub(super) const ALL: &str = "all";

/// What names a file of runs by which laws are weighted.
const RUNS: &str = "runs:";
/// The laws of a ranking; the first is the one whose candidates are listed.
pub(crate) struct Laws {
    pub(crate) members: Vec<Member>,
    /// Their identifiers and sources.
    infos: Vec<Cited>,
    /// Those that a user's runs left out, with the reason.
    #[cfg(feature = "native")]
    left_out: Vec<String>,
}

/// Where a law comes from.
#[derive(Clone, Debug)]
pub(crate) struct Cited {
    pub(crate) id: String,
    pub(crate) source: String,
}

impl Laws {
    /// Reads `--law` and `--law-weights`.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown law or weight; whatever a law's file is refused for.
    pub(crate) fn read(options: &RankOptions) -> Result<Self> {
        let mut names: Vec<&str> = Vec::new();
        for name in options.law.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            if name == ALL {
                names.extend(law::SCALING_IDS);
            } else {
                names.push(name);
            }
        }
        let mut seen = Vec::new();
        names.retain(|n| {
            !seen.contains(n) && {
                seen.push(*n);
                true
            }
        });
        // A loss means one law: another's tokenizer and corpus give another number.
        if options.target_loss.is_some() && names.len() + options.own_laws.len() > 1 {
            if options.law != ALL {
                let reason = "a loss is one law's own; name one law with --law, or --train-flops";
                return Err(Error::usage("--target-loss", reason));
            }
            names.truncate(usize::from(options.own_laws.is_empty()));
        }
        let own = options.own_laws.iter().map(|law| {
            let cited = Cited { id: law.id().to_owned(), source: "given by the program".into() };
            (law.id(), Member { law: law.clone(), weight: 1.0 }, cited)
        });
        let mut members: Vec<_> = own.collect();
        for name in names {
            let published = law::load(name, None)?;
            let (law, info) = (published.scaling()?, published.info());
            let cited = Cited { id: info.id.clone(), source: info.source.clone() };
            members.push((name, Member { law, weight: 1.0 }, cited));
        }
        let given = options.law_weights.as_deref();
        if given.is_none_or(|text| !text.starts_with(RUNS)) {
            for (name, weight) in weights(options)? {
                let found = members.iter_mut().find(|(known, ..)| *known == name);
                let (_, member, _) = found.ok_or_else(|| {
                    Error::usage("--law-weights", format!("{name} is not among the laws of --law"))
                })?;
                member.weight = weight;
            }
        }
        let counted = members.into_iter().filter(|(_, member, _)| member.weight > 0.0);
        let (members, infos): (Vec<Member>, Vec<Cited>) =
            counted.map(|(_, member, cited)| (member, cited)).unzip();
        if members.is_empty() {
            return Err(Error::usage("--law-weights", "all weights are 0"));
        }
        Ok(Self {
            members,
            infos,
            #[cfg(feature = "native")]
            left_out: Vec::new(),
        })
    }

    /// The description of the law whose candidates are listed.
    ///
    /// # Errors
    /// [`Error::Usage`] without a law.
    pub(crate) fn info(&self) -> Result<&Cited> {
        self.infos.first().ok_or_else(|| Error::usage("--law", "no law named"))
    }

    /// The law whose candidates are listed.
    pub(crate) fn first(&self) -> Result<&Scaling> {
        let first = self.members.first().map(|m| &m.law);
        first.ok_or_else(|| Error::usage("--law", "no law named"))
    }

    /// No weights by runs: a page fits nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] where `--law-weights` names a file of them.
    #[cfg(not(feature = "native"))]
    pub(crate) fn weigh(
        &mut self,
        options: &RankOptions,
        _: &Arc<law::Template>,
    ) -> Result<Option<String>> {
        match &options.law_weights {
            Some(text) if text.starts_with(RUNS) => {
                Err(Error::usage("--law-weights", "a page weighs no law by runs; use name:weight"))
            }
            _ => Ok(None),
        }
    }

    /// The laws in words, with their weights where these differ.
    pub(crate) fn names(&self) -> String {
        let equal = self.members.windows(2).all(|w| (w[0].weight - w[1].weight).abs() < 1e-12);
        let name = |m: &Member| {
            let share = m.weight / self.members.iter().map(|m| m.weight).sum::<f64>();
            if equal { m.law.id().to_owned() } else { format!("{} {share:.2}", m.law.id()) }
        };
        self.members.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// `name:weight` pairs.
fn weights(options: &RankOptions) -> Result<Vec<(&str, f64)>> {
    let Some(text) = &options.law_weights else { return Ok(Vec::new()) };
    let pair = |part: &'_ str| -> Option<f64> {
        let (_, weight) = part.rsplit_once(':')?;
        weight.trim().parse().ok().filter(|w: &f64| w.is_finite() && *w >= 0.0)
    };
    text.split(',')
        .map(|part| {
            let weight = pair(part).ok_or_else(|| {
                Error::usage(
                    "--law-weights",
                    format!("`{part}` is not name:weight, such as abnar2025:2"),
                )
            })?;
            Ok((part.rsplit_once(':').map_or(part, |p| p.0).trim(), weight))
        })
        .collect()
}
