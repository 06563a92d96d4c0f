//! What a run keeps while it goes on, and how a run that ended goes on from it.
//!
//! A run is a chain of questions to its worker. Which question comes next follows from the plan and
//! from the answers so far, so the answers are all that must be kept: a run that goes on gives itself
//! the recorded ones first and arrives where it was.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::folder::Head;
use super::journal::Journal;
use super::launches::Drawn;
use super::worker::{Answer, Ask};
use crate::{Error, Result};

/// One event of a run. Times count from its beginning, loading included, without the time between sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The first record.
    Begun(Box<Head>),
    /// A process has begun to write.
    Opened {
        /// Its number.
        pid: u32,
        /// Seconds since 1970-01-01 UTC.
        unix_s: u64,
        /// Whether it has locked the journal.
        locked: bool,
        /// The host that it runs on.
        #[serde(default)]
        host: String,
    },
    /// The plan was loaded and its inputs drawn.
    Loaded(Vec<Drawn>),
    /// A question was answered.
    Answered {
        /// The question.
        ask: Ask,
        /// The answer.
        answer: Answer,
        /// Time of the run at its end.
        elapsed_ns: u64,
    },
    /// A question was lost, and its cell with it.
    Lost {
        /// The question.
        ask: Ask,
        /// Why.
        reason: String,
        /// Time that it took, with what came after it.
        lost_ns: u64,
        /// Time of the run at its end.
        elapsed_ns: u64,
    },
    /// A round ended.
    RoundOver {
        /// Its number, from 1.
        round: u32,
        /// Cells that were dropped after it, the least wanted first.
        dropped: usize,
        /// Whether it was the last.
        is_last: bool,
        /// Time of the run at its end.
        elapsed_ns: u64,
    },
}

/// Where the events of a run are kept, and where those of its earlier sessions come from.
pub trait Ledger {
    /// The next event of an earlier session, until there are no more.
    fn recall(&mut self) -> Option<Event>;

    /// Keeps an event of this session.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be kept: the run ends.
    fn keep(&mut self, event: &Event) -> Result<()>;

    /// Makes what was kept durable.
    ///
    /// # Errors
    /// As [`Self::keep`].
    fn settle(&mut self) -> Result<()>;
}

/// Keeps nothing.
impl Ledger for () {
    fn recall(&mut self) -> Option<Event> {
        None
    }

    fn keep(&mut self, _event: &Event) -> Result<()> {
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A ledger in a journal, after the journal's own first records were taken off.
#[derive(Debug)]
pub struct Kept {
    journal: Journal,
    earlier: VecDeque<Event>,
    hosts: BTreeSet<String>,
}

impl Kept {
    /// A ledger that goes on in `journal` after `earlier` events.
    pub fn new(journal: Journal, earlier: Vec<Event>) -> Self {
        let (mut hosts, mut steps) = (BTreeSet::new(), VecDeque::new());
        for event in earlier {
            match event {
                Event::Opened { host, .. } => drop(hosts.insert(host)),
                step => steps.push_back(step),
            }
        }
        Self { journal, earlier: steps, hosts }
    }

    /// The hosts that have written into the journal, in the order of their names.
    pub fn hosts(&self) -> &BTreeSet<String> {
        &self.hosts
    }

    /// Checks that the inputs are those of the sessions before, or notes them.
    ///
    /// # Errors
    /// [`Error::Unfit`] when they differ, [`Error::Io`] when they cannot be noted.
    pub fn loaded(&mut self, drawn: &[Drawn]) -> Result<()> {
        match self.earlier.pop_front() {
            None => {
                self.keep(&Event::Loaded(drawn.to_vec()))?;
                self.settle()
            }
            Some(Event::Loaded(before)) if before == drawn => Ok(()),
            Some(_) => Err(Error::unfit(
                "journal",
                "its inputs were drawn otherwise than this program draws them; start a new run",
            )),
        }
    }
}

impl Ledger for Kept {
    fn recall(&mut self) -> Option<Event> {
        self.earlier.pop_front()
    }

    fn keep(&mut self, event: &Event) -> Result<()> {
        self.journal.append(event)
    }

    fn settle(&mut self) -> Result<()> {
        self.journal.sync()
    }
}
