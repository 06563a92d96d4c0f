//! Two commands in turns: what takes no turns cannot be told apart on a machine that others use.
//!
//! A round runs A B B A, the next one B A A B, each time in a fresh process, so that a linear drift cancels and
//! the spread between processes is what the interval rests on. Other programs only ever add to a time: of the
//! two executions of a command in a round the shorter one counts. What a command is measured by is its own
//! profile, cell by cell, when it prints one (`measure --json`), and the time that it takes otherwise.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::plan::ROUNDS;
use super::run::Observer;
use crate::stats::interval::median;
use crate::stats::paired::{PairedEffect, least_log_ratio, signed_rank_effect};
use crate::{Error, Result};

mod shell;

pub use shell::{Printed, ReadOutput, Shell, end_running};

/// Rounds after which widths are looked at; the first as for cells. On a machine that others use, twenty rounds
/// are far from enough for two whole processes: the time budget is what ends them.
const LOOKS: [u32; 13] = [10, 14, 20, 30, 45, 70, 100, 150, 220, 300, 450, 700, 1000];
/// Half-width at which a comparison closes.
const WIDTH: f64 = 0.02;
/// A difference of this many half-widths closes it as well: three are six standard errors, so that looking
/// more than once makes no false alarms.
const CLEAR: f64 = 3.0;
/// Executions in a round.
const SLOTS: u32 = 4;
/// An execution may take this many times what the first one took, and at least [`PATIENCE`].
const OVERDUE: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(10);
/// The name of the one cell of commands that print no profile.
const WHOLE: &str = "the whole command";

/// One thing that both commands were measured by.
#[derive(Clone, Debug, PartialEq)]
pub struct PairedCell {
    /// The cell of the profiles, or the whole command.
    pub name: String,
    /// Median over the rounds of the shorter execution of A, in seconds.
    pub a_s: f64,
    /// The same of B.
    pub b_s: f64,
    /// Rounds in which both had a time.
    pub rounds: usize,
    /// B against A; `None` when fewer than six rounds have a time.
    pub effect: Option<PairedEffect>,
}

/// What turns of two commands amount to.
#[derive(Debug)]
pub struct Paired {
    /// Whole rounds of four executions.
    pub rounds: u32,
    /// Why there were no more of them, if they ended early.
    pub failure: Option<Error>,
    /// Whether both print profiles.
    pub by_profile: bool,
    /// The cells of both.
    pub cells: Vec<PairedCell>,
    /// Cells of one command alone, and how many rounds lacked a value of a cell of both.
    pub left_out: Vec<String>,
}

/// Who runs a command and tells what it took: the shell, or a test.
pub trait Commands {
    /// Runs a command once, within the limit: seconds by the name of what was measured.
    ///
    /// # Errors
    /// [`Error::Unfit`] when it fails or takes longer; [`Error::BadFile`] when it prints what cannot be read;
    /// [`Error::Io`] when it cannot be started; [`Error::Interrupted`] when `stop` was raised.
    fn run(&mut self, command: &str, limit: Duration, stop: &AtomicBool) -> Result<Times>;
}

/// What one execution took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// From its start to its end.
    pub whole: Duration,
    /// The profile that it printed, if it did.
    pub profile: Option<Printed>,
}

impl Times {
    /// Seconds by name: of its cells, or of the whole.
    fn by_name(self, command: &str, by_profile: bool) -> Result<BTreeMap<String, f64>> {
        match self.profile {
            Some(profile) if by_profile => Ok(profile.cells),
            None if !by_profile => Ok([(WHOLE.to_owned(), self.whole.as_secs_f64())].into()),
            _ => {
                let reason = "prints a profile in some of its executions and none in others";
                Err(Error::unfit(format!("`{command}`"), reason))
            }
        }
    }
}

/// Runs two commands in turns until every interval is narrow, at most for `budget` and at least for six rounds.
/// What ends the turns early after the first round is told beside what the whole rounds say.
///
/// # Errors
/// What [`Commands::run`] says before a round is whole; [`Error::Unfit`] when six rounds do not fit into the
/// budget, when one of the commands alone prints a profile, or when their profiles have no cell in common.
pub fn compare(
    commands: &mut dyn Commands,
    pair: [&str; 2],
    budget: Duration,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Paired> {
    let start = Instant::now();
    let (limit, by_profile) = first_pair(commands, pair, budget, observer, stop)?;
    let last = LOOKS[LOOKS.len() - 1];
    let mut turns = Turns { by_profile, ..Turns::default() };
    for round in 1..=last {
        let done = usize::try_from(round - 1).unwrap_or(0);
        observer.step(done, usize::try_from(last).unwrap_or(1), &format!("round {round}"));
        match turns.round(commands, pair, limit, stop) {
            Err(error) if turns.rounds == 0 => return Err(error),
            Err(error) => return turns.result(Some(error)),
            Ok(()) => {}
        }
        let spent = start.elapsed();
        let is_over = round >= ROUNDS && spent + spent / round > budget;
        if is_over || (LOOKS.contains(&round) && turns.is_clear()) {
            break;
        }
    }
    turns.result(None)
}

/// The first execution of each touches files and caches: it only says how long the others may take, and
/// whether there is anything to compare.
fn first_pair(
    commands: &mut dyn Commands,
    pair: [&str; 2],
    budget: Duration,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<(Duration, bool)> {
    let unfit = |reason: String| Err(Error::unfit("--run", reason));
    let first = [commands.run(pair[0], budget, stop)?, commands.run(pair[1], budget, stop)?];
    for (command, times) in pair.into_iter().zip(&first) {
        if let Some(why) = times.profile.as_ref().and_then(|p| p.partial.as_ref()) {
            observer.notice(&format!("`{command}` prints a partial profile: {why}"));
        }
    }
    match (&first[0].profile, &first[1].profile) {
        (Some(a), Some(b)) if !a.cells.keys().any(|name| b.cells.contains_key(name)) => {
            return unfit(format!(
                "the commands have no cell in common: A has {}, B has {}",
                some_of(&a.cells),
                some_of(&b.cells)
            ));
        }
        (Some(_), None) | (None, Some(_)) => {
            return unfit("one of the commands prints a profile, the other does not".into());
        }
        _ => {}
    }
    let longest = first[0].whole.max(first[1].whole);
    let needed = (first[0].whole + first[1].whole).saturating_mul(SLOTS / 2 * ROUNDS);
    // The first executions find cold caches: what comes after them may take half the time.
    if needed > budget.saturating_mul(2) {
        return unfit(format!(
            "{ROUNDS} rounds of these commands take about {:.0} s; raise --time-budget",
            needed.as_secs_f64()
        ));
    }
    Ok((PATIENCE.max(longest.saturating_mul(OVERDUE)), first[0].profile.is_some()))
}

/// The first cell of some, and how many more there are.
fn some_of(cells: &BTreeMap<String, f64>) -> String {
    match (cells.keys().next(), cells.len()) {
        (None, _) => "none with a time".into(),
        (Some(name), 1) => format!("`{name}`"),
        (Some(name), all) => format!("`{name}` and {} more", all - 1),
    }
}

/// Rounds so far.
#[derive(Default)]
struct Turns {
    by_profile: bool,
    rounds: u32,
    /// Log ratio of B to A in each round, by name.
    ratios: BTreeMap<String, Vec<f64>>,
    /// The shorter time of each round of both, by name.
    times: [BTreeMap<String, Vec<f64>>; 2],
}

impl Turns {
    /// One round: A B B A, or B A A B in even ones. One that is not whole leaves nothing behind.
    fn round(
        &mut self,
        commands: &mut dyn Commands,
        pair: [&str; 2],
        limit: Duration,
        stop: &AtomicBool,
    ) -> Result<()> {
        let order = if self.rounds.is_multiple_of(2) { [0, 1, 1, 0] } else { [1, 0, 0, 1] };
        let mut slots: [Vec<BTreeMap<String, f64>>; 2] = [Vec::new(), Vec::new()];
        for which in order {
            let times = commands.run(pair[which], limit, stop)?;
            slots[which].push(times.by_name(pair[which], self.by_profile)?);
        }
        for (own, slots) in self.times.iter_mut().zip(&slots) {
            let mut least = BTreeMap::new();
            for (name, seconds) in slots.iter().flatten() {
                let of_round = least.entry(name).or_insert(*seconds);
                *of_round = seconds.min(*of_round);
            }
            for (name, seconds) in least {
                own.entry(name.clone()).or_default().push(seconds);
            }
        }
        let [a, b] = &slots;
        for name in a[0].keys() {
            let slot = |times: &BTreeMap<String, f64>| times.get(name).copied();
            let (Some(a0), Some(a1)) = (slot(&a[0]), slot(&a[1])) else { continue };
            let (Some(b0), Some(b1)) = (slot(&b[0]), slot(&b[1])) else { continue };
            let ratio = least_log_ratio([a0, a1], [b0, b1]);
            self.ratios.entry(name.clone()).or_default().extend(ratio);
        }
        self.rounds += 1;
        Ok(())
    }

    /// Whether no verdict would gain from another round.
    fn is_clear(&self) -> bool {
        let half = |e: PairedEffect| (e.hi - e.lo) / 2.0;
        let is_clear = |e: PairedEffect| half(e) <= WIDTH.max(e.effect.abs() / CLEAR);
        self.ratios.values().all(|ratios| signed_rank_effect(ratios).is_some_and(is_clear))
    }

    /// What the rounds amount to, and `failure`, which ended them.
    fn result(self, failure: Option<Error>) -> Result<Paired> {
        let Self { by_profile, rounds, ratios, times: [a, b] } = self;
        let mut left_out = Vec::new();
        for (which, own, other) in [("A", &a, &b), ("B", &b, &a)] {
            let alone = own.keys().filter(|name| !other.contains_key(*name));
            left_out.extend(alone.map(|name| format!("{name}: only by {which}")));
        }
        let mut cells = Vec::new();
        for (name, ratios) in ratios {
            let of = |times: &BTreeMap<String, Vec<f64>>| times.get(&name).and_then(|t| median(t));
            let (Some(a_s), Some(b_s)) = (of(&a), of(&b)) else { continue };
            let effect = signed_rank_effect(&ratios);
            cells.push(PairedCell { name, a_s, b_s, rounds: ratios.len(), effect });
        }
        if cells.is_empty() {
            // They had one in the first pair.
            let reason = "no cell had a time in a whole round of both commands";
            return Err(failure.unwrap_or_else(|| Error::unfit("--run", reason)));
        }
        Ok(Paired { rounds, failure, by_profile, cells, left_out })
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::StandardNormal;

    use super::*;
    use crate::stats::paired::Verdict;

    /// Commands whose times are made up: `b` is slower by a share, the machine drifts, and noise has now and
    /// then an outlier, as on a machine that others use.
    struct MadeUp {
        rng: ChaCha8Rng,
        slower: f64,
        noise: f64,
        executed: f64,
        cells: bool,
    }

    impl Commands for MadeUp {
        fn run(&mut self, command: &str, _: Duration, _: &AtomicBool) -> Result<Times> {
            self.executed += 1.0;
            if command == "fails" || (command == "fails later" && self.executed > 30.0) {
                return Err(Error::unfit(format!("`{command}`"), "ended with 1"));
            }
            let noise: f64 = self.rng.sample(StandardNormal);
            let outlier = if self.rng.random::<f64>() < 0.1 { 1.3 } else { 1.0 };
            let share = if command == "b" { 1.0 + self.slower } else { 1.0 };
            let seconds =
                0.01 * share * outlier * (self.noise * noise).exp() * (1.0 + 0.003 * self.executed);
            let name = if command == "other" { "y" } else { "x" };
            let cells = [(name.to_owned(), seconds)].into();
            let partial = (command == "partial").then(|| "ended in round 3".to_owned());
            let profile = self.cells.then_some(Printed { cells, partial });
            let profile = profile.filter(|_| command != "silent" || self.executed < 5.0);
            Ok(Times { whole: Duration::from_secs_f64(seconds), profile })
        }
    }

    fn verdict(seed: u64, slower: f64, cells: bool) -> (Verdict, Paired) {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let mut commands = MadeUp { rng, slower, noise: 0.03, executed: 0.0, cells };
        let stop = AtomicBool::new(false);
        let pair = ["a", "b"];
        let paired = compare(&mut commands, pair, Duration::from_secs(60), &mut (), &stop).unwrap();
        (paired.cells[0].effect.unwrap().verdict(0.0), paired)
    }

    #[test]
    fn the_same_command_is_rarely_called_different_and_a_tenth_slower_is_found() {
        let alarms = (0..300).filter(|seed| {
            matches!(verdict(*seed, 0.0, false).0, Verdict::Faster | Verdict::Slower)
        });
        let alarms = alarms.count();
        assert!(alarms <= 18, "{alarms} of 300 are called different");
        let found = (0..300).filter(|seed| verdict(*seed, 0.1, true).0 == Verdict::Slower).count();
        assert!(found >= 285, "{found} of 300 are found");
    }

    #[test]
    fn profiles_are_compared_by_cell_and_rounds_end_at_the_looks() {
        let (_, by_cell) = verdict(1, 0.0, true);
        assert!(by_cell.by_profile && by_cell.cells[0].name == "x");
        let (_, whole) = verdict(1, 0.0, false);
        assert!(!whole.by_profile && whole.cells[0].name == WHOLE);
        assert!(LOOKS.contains(&whole.rounds), "{}", whole.rounds);
        assert_eq!(whole.cells[0].rounds, whole.rounds as usize);
    }

    /// Notices, kept.
    #[derive(Default)]
    struct Notices(Vec<String>);

    impl Observer for Notices {
        fn step(&mut self, _done: usize, _total: usize, _what: &str) {}

        fn notice(&mut self, message: &str) {
            self.0.push(message.to_owned());
        }
    }

    fn attempt(pair: [&str; 2], budget_ms: u64, cells: bool) -> (Result<Paired>, f64, Notices) {
        let rng = ChaCha8Rng::seed_from_u64(1);
        let mut commands = MadeUp { rng, slower: 0.0, noise: 0.0, executed: 0.0, cells };
        let (stop, mut notices) = (AtomicBool::new(false), Notices::default());
        let budget = Duration::from_millis(budget_ms);
        let outcome = compare(&mut commands, pair, budget, &mut notices, &stop);
        (outcome, commands.executed, notices)
    }

    #[test]
    fn what_cannot_be_compared_is_refused_after_the_first_pair() {
        for (pair, budget_ms, cells, word) in [
            (["a", "fails"], 60_000, false, "`fails`"),
            (["a", "b"], 1, false, "raise --time-budget"),
            (["a", "other"], 60_000, true, "no cell in common: A has `x`, B has `y`"),
        ] {
            let (outcome, executed, _) = attempt(pair, budget_ms, cells);
            let error = outcome.unwrap_err();
            assert!(error.exit_code() == 4 && error.to_string().contains(word), "{error}");
            assert!(executed <= 2.0, "{pair:?}: {executed} executions");
        }
        // In the first round: nothing is whole.
        let error = attempt(["a", "silent"], 60_000, true).0.unwrap_err();
        assert!(error.to_string().contains("none in others"), "{error}");
    }

    #[test]
    fn an_early_end_is_told_beside_what_the_whole_rounds_say() {
        let (paired, _, notices) = attempt(["a", "fails later"], 60_000, true);
        let paired = paired.unwrap();
        // Two executions to begin with and seven rounds of four.
        assert_eq!((paired.rounds, paired.cells[0].rounds), (7, 7));
        assert!(paired.cells[0].effect.is_some());
        assert!(paired.failure.unwrap().to_string().contains("fails later"));
        assert!(notices.0.is_empty());
        let (paired, _, notices) = attempt(["a", "partial"], 60_000, true);
        assert!(paired.unwrap().failure.is_none());
        assert_eq!(notices.0, ["`partial` prints a partial profile: ended in round 3"]);
    }
}
