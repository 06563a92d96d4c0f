//! Parts of a sweep: which one a process measures.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Most shards of a sweep.
const MOST_SHARDS: u32 = 1 << 16;

/// One of the parts of a sweep, `index/count`; the first has index 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its number, from 0.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

impl Shard {
    /// The whole plan.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// A shard with this number of so many.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none.
    pub fn new(index: u32, count: u32) -> Result<Self> {
        if count == 0 || count > MOST_SHARDS {
            return Err(Error::usage("--shard", format!("{count} shards; 1 to {MOST_SHARDS}")));
        }
        if index >= count {
            let last = count - 1;
            let reason = format!("{index}/{count}; the shards are 0/{count} to {last}/{count}");
            return Err(Error::usage("--shard", reason));
        }
        Ok(Self { index, count })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// Which shard a process measures: named, or told by what started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardChoice {
    /// `2/8`.
    Named(Shard),
    /// `auto`, or `auto/8` where the number of shards is not told.
    Auto(Option<u32>),
}

impl FromStr for ShardChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let form = || Error::usage("--shard", format!("`{text}`; write 0/8, auto or auto/8"));
        let number = |text: &str| match text.parse() {
            Ok(n) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
            _ => Err(form()),
        };
        match text.split_once('/') {
            None if text == "auto" => Ok(Self::Auto(None)),
            Some(("auto", count)) => {
                Shard::new(0, number(count)?).map(|shard| Self::Auto(Some(shard.count)))
            }
            Some((index, count)) => Shard::new(number(index)?, number(count)?).map(Self::Named),
            None => Err(form()),
        }
    }
}

/// Tasks of arrays: the scheduler, and the variable with the task's number.
const TASKS: [(&str, &str); 3] = [
    ("Slurm", "SLURM_ARRAY_TASK_ID"),
    ("Kubernetes", "JOB_COMPLETION_INDEX"),
    ("HyperQueue", "HQ_TASK_ID"),
];

impl ShardChoice {
    /// The shard, with the variables of the environment.
    ///
    /// `auto/N` takes the task's number as the shard's. `auto` alone also takes from Slurm how many tasks
    /// there are, which is right for whole arrays alone.
    ///
    /// # Errors
    /// [`Error::Usage`] when nothing, or two things that disagree, say which shard it is.
    pub fn resolve(self, variable: &dyn Fn(&str) -> Option<String>) -> Result<Shard> {
        let count = match self {
            Self::Named(shard) => return Ok(shard),
            Self::Auto(count) => count,
        };
        let number = |name: &str| -> Result<Option<u32>> {
            let Some(text) = variable(name) else { return Ok(None) };
            let wrong = |_| Error::usage(name, format!("`{text}` is not a number"));
            text.trim().parse().map(Some).map_err(wrong)
        };
        let mut told: Vec<(&str, Shard)> = Vec::new();
        for (scheduler, name) in TASKS {
            let Some(task) = number(name)? else { continue };
            let shard = match count {
                Some(count) => Shard::new(task, count).map_err(|_| {
                    let last = count - 1;
                    let reason = format!("is {task}; tasks of {count} shards are 0 to {last}");
                    Error::usage(name, reason)
                })?,
                None if scheduler == "Slurm" => of_slurm(task, &number)?,
                None => {
                    let reason = format!("{scheduler} does not tell how many; write auto/N");
                    return Err(Error::usage("--shard", reason));
                }
            };
            told.push((name, shard));
        }
        match told.as_slice() {
            [] => Err(Error::usage(
                "--shard",
                "auto, but none of SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX and HQ_TASK_ID is set; \
                 write 0/8",
            )),
            [(_, shard), others @ ..] => match others.iter().find(|(_, other)| other != shard) {
                None => Ok(*shard),
                Some((name, other)) => {
                    let (first, _) = told[0];
                    let reason =
                        format!("auto: {first} says {shard}, {name} says {other}; name it");
                    Err(Error::usage("--shard", reason))
                }
            },
        }
    }
}

/// The shard of a task of a whole array.
fn of_slurm(task: u32, number: &dyn Fn(&str) -> Result<Option<u32>>) -> Result<Shard> {
    let needed = |name: &'static str| {
        number(name)?.ok_or_else(|| {
            Error::usage("--shard", format!("auto, but {name} is not set; write auto/N"))
        })
    };
    let count = needed("SLURM_ARRAY_TASK_COUNT")?;
    let (least, most) = (needed("SLURM_ARRAY_TASK_MIN")?, needed("SLURM_ARRAY_TASK_MAX")?);
    let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
    let expected = most.checked_sub(least).map(|span| span / step + 1);
    if expected != Some(count) || task < least || !(task - least).is_multiple_of(step) {
        return Err(Error::usage(
            "--shard",
            format!(
                "auto: {count} tasks between {least} and {most} are a part of an array; write \
                 auto/N with N the shards of the whole"
            ),
        ));
    }
    Shard::new((task - least) / step, count)
}

/// The part of a sweep that a run is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// SHA-256 of the whole plan's file.
    pub plan_sha256: String,
    /// Which part.
    pub shard: Shard,
    /// The run's first cells that are the plan's first cells, the anchors.
    pub anchors: usize,
}

impl Part {
    /// The identifier that all runs of the sweep have: together they are one run.
    pub fn run_id(&self) -> String {
        format!("0x{}", self.plan_sha256.get(..16).unwrap_or("0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str, variables: &[(&str, &str)]) -> Result<Shard> {
        let choice: ShardChoice = text.parse()?;
        choice.resolve(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn shard(text: &str, variables: &[(&str, &str)]) -> String {
        match resolved(text, variables) {
            Ok(shard) => shard.to_string(),
            Err(error) => {
                assert_eq!(error.exit_code(), 2, "{error}");
                error.to_string()
            }
        }
    }

    #[test]
    fn a_shard_is_named_or_told_by_the_scheduler() {
        let array = |id| {
            [
                ("SLURM_ARRAY_TASK_ID", id),
                ("SLURM_ARRAY_TASK_COUNT", "4"),
                ("SLURM_ARRAY_TASK_MIN", "1"),
                ("SLURM_ARRAY_TASK_MAX", "7"),
                ("SLURM_ARRAY_TASK_STEP", "2"),
            ]
        };
        assert_eq!(shard("3/4", &array("1")), "3/4", "what is named counts");
        assert_eq!(shard("auto", &array("1")), "0/4");
        assert_eq!(shard("auto", &array("7")), "3/4");
        assert_eq!(shard("auto/16", &array("7")), "7/16");
        assert_eq!(shard("auto/8", &[("JOB_COMPLETION_INDEX", "5")]), "5/8");
        assert_eq!(shard("auto/8", &[("HQ_TASK_ID", "0")]), "0/8");
        let both = [("HQ_TASK_ID", "1"), ("JOB_COMPLETION_INDEX", "1")];
        assert_eq!(shard("auto/2", &both), "1/2");
    }

    #[test]
    fn what_does_not_say_which_shard_is_refused() {
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "3"),
            ("SLURM_ARRAY_TASK_COUNT", "2"),
            ("SLURM_ARRAY_TASK_MIN", "3"),
            ("SLURM_ARRAY_TASK_MAX", "7"),
        ];
        let two = [("SLURM_ARRAY_TASK_ID", "1"), ("HQ_TASK_ID", "0")];
        for (text, variables, words) in [
            ("4/4", &[][..], &["0/4 to 3/4"][..]),
            ("0/0", &[], &["0 shards"]),
            ("-1/4", &[], &["0/8"]),
            ("1", &[], &["0/8"]),
            ("auto", &[], &["JOB_COMPLETION_INDEX"]),
            ("auto", &[("HQ_TASK_ID", "1")], &["auto/N"]),
            ("auto/4", &[("HQ_TASK_ID", "4")], &["HQ_TASK_ID", "0 to 3"]),
            ("auto/4", &[("HQ_TASK_ID", "x")], &["HQ_TASK_ID", "`x`"]),
            ("auto", &slurm, &["part of an array", "auto/N"]),
            ("auto/4", &two, &["SLURM_ARRAY_TASK_ID says 1/4", "HQ_TASK_ID says 0/4"]),
        ] {
            let message = shard(text, variables);
            assert!(words.iter().all(|word| message.contains(word)), "{text}: {message}");
        }
    }
}
