//! Which laws rank, and with which weight.

use crate::cli::rank::RankArgs;
use crate::law::{self, LawInfo, Scaling};
use crate::plan::mixture::Member;
use crate::{Error, Result};

/// The word for every published law that ranks.
const ALL: &str = "all";

/// The laws of a ranking; the first is the one whose candidates are listed.
pub(super) struct Laws {
    pub(super) members: Vec<Member>,
    /// The first law's description.
    pub(super) info: LawInfo,
}

impl Laws {
    /// Reads `--law` and `--law-weights`.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown law or weight; whatever a law's file is refused for.
    pub(super) fn read(args: &RankArgs) -> Result<Self> {
        let mut names: Vec<&str> = Vec::new();
        for name in args.law.split(',').map(str::trim).filter(|n| !n.is_empty()) {
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
        if args.target_loss.is_some() && names.len() > 1 {
            if args.law != ALL {
                let reason = "a loss is one law's own; name one law with --law, or --train-flops";
                return Err(Error::usage("--target-loss", reason));
            }
            names.truncate(1);
        }
        let mut members = Vec::new();
        for name in names {
            let published = law::load(name, None)?;
            let law = published.scaling()?;
            members.push((name, Member { law, weight: 1.0 }, published.info().clone()));
        }
        for (name, weight) in weights(args)? {
            let found = members.iter_mut().find(|(known, ..)| *known == name);
            let (_, member, _) = found.ok_or_else(|| {
                Error::usage("--law-weights", format!("{name} is not among the laws of --law"))
            })?;
            member.weight = weight;
        }
        members.retain(|(_, member, _)| member.weight > 0.0);
        // Candidates are listed under the first law that counts.
        let first = members.first().map(|(.., info)| info.clone());
        let info = first.ok_or_else(|| Error::usage("--law-weights", "all weights are 0"))?;
        let members = members.into_iter().map(|(_, member, _)| member).collect();
        Ok(Self { members, info })
    }

    /// The law whose candidates are listed.
    pub(super) fn first(&self) -> Result<&Scaling> {
        let first = self.members.first().map(|m| &m.law);
        first.ok_or_else(|| Error::usage("--law", "no law named"))
    }

    /// The laws in words, with their weights where these differ.
    pub(super) fn names(&self) -> String {
        let equal = self.members.windows(2).all(|w| (w[0].weight - w[1].weight).abs() < 1e-12);
        let name = |m: &Member| {
            if equal { m.law.id().to_owned() } else { format!("{} {}", m.law.id(), m.weight) }
        };
        self.members.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// `name:weight` pairs.
fn weights(args: &RankArgs) -> Result<Vec<(&str, f64)>> {
    let Some(text) = &args.law_weights else { return Ok(Vec::new()) };
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
