//! Two commands in turns: what takes no turns cannot be told apart on a machine that others use.
//!
//! A round runs A B B A, the next one B A A B, each time in a fresh process, so that a linear drift cancels and
//! the spread between processes is what the interval rests on. What a command is measured by is its own
//! profile, cell by cell, when it prints one (`measure --json`), and the time that it takes otherwise.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::plan::ROUNDS;
use super::run::Observer;
use crate::stats::interval::median;
use crate::stats::paired::{PairedEffect, block_log_ratio, median_effect};
use crate::{Error, Result};

/// Rounds after which widths are looked at; the first as for cells. On a machine that others use, twenty rounds
/// are far from enough for two whole processes: the time budget is what ends them.
const LOOKS: [u32; 11] = [6, 10, 14, 20, 30, 45, 70, 100, 150, 220, 300];
/// Half-width at which a comparison closes.
const WIDTH: f64 = 0.02;
/// Executions in a round.
const SLOTS: u32 = 4;
/// How often a waiting parent looks whether it was asked to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest output that is looked at for a profile.
const LONGEST_OUTPUT: u64 = 256 << 20;
/// Bytes of messages that are kept, for the last line of a command that fails.
const LONGEST_MESSAGE: u64 = 64 << 10;
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
    /// Median time of A, in seconds.
    pub a_s: f64,
    /// Median time of B, in seconds.
    pub b_s: f64,
    /// Rounds in which both had a time.
    pub rounds: usize,
    /// B against A; `None` when fewer than six rounds have a time.
    pub effect: Option<PairedEffect>,
}

/// What turns of two commands amount to.
#[derive(Clone, Debug, PartialEq)]
pub struct Paired {
    /// Rounds of four executions.
    pub rounds: u32,
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
    /// [`Error::Unfit`] when it fails or takes longer; [`Error::Interrupted`] when `stop` was raised.
    fn run(&mut self, command: &str, limit: Duration, stop: &AtomicBool) -> Result<Times>;
}

/// What one execution took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// From its start to its end.
    pub whole: Duration,
    /// Median times of the cells of the profile that it printed, in seconds; `None` without a profile.
    pub cells: Option<BTreeMap<String, f64>>,
}

impl Times {
    /// Seconds by name: of its cells, or of the whole.
    fn by_name(self, by_profile: bool) -> BTreeMap<String, f64> {
        match self.cells {
            Some(cells) if by_profile => cells,
            _ => [(WHOLE.to_owned(), self.whole.as_secs_f64())].into(),
        }
    }
}

/// Runs two commands in turns until every interval is narrow, at most for `budget` and at least for six rounds.
///
/// # Errors
/// [`Error::Unfit`] when a command fails, when six rounds do not fit into the budget, or when one of them alone
/// prints a profile; [`Error::Interrupted`] when `stop` was raised.
pub fn compare(
    commands: &mut dyn Commands,
    pair: [&str; 2],
    budget: Duration,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Paired> {
    let start = Instant::now();
    // The first execution of each touches files and caches; it only says how long the others may take.
    let first = [commands.run(pair[0], budget, stop)?, commands.run(pair[1], budget, stop)?];
    let by_profile = first[0].cells.is_some();
    if by_profile != first[1].cells.is_some() {
        return Err(Error::unfit(
            "--run",
            "one of the commands prints a profile, the other does not",
        ));
    }
    let longest = first[0].whole.max(first[1].whole);
    let needed = (first[0].whole + first[1].whole).saturating_mul(SLOTS / 2 * ROUNDS);
    // The first executions find cold caches: what comes after them may take half the time.
    if needed > budget.saturating_mul(2) {
        let reason = format!(
            "{ROUNDS} rounds of these commands take about {:.0} s; raise --time-budget",
            needed.as_secs_f64()
        );
        return Err(Error::unfit("--run", reason));
    }
    let limit = PATIENCE.max(longest.saturating_mul(OVERDUE));
    let last = LOOKS[LOOKS.len() - 1];
    let mut turns = Turns { by_profile, ..Turns::default() };
    for round in 1..=last {
        let done = usize::try_from(round - 1).unwrap_or(0);
        observer.step(done, usize::try_from(last).unwrap_or(1), &format!("round {round}"));
        turns.round(commands, pair, round, limit, stop)?;
        let spent = start.elapsed();
        let is_over = round >= ROUNDS && spent + spent / round > budget;
        if is_over || (LOOKS.contains(&round) && turns.is_narrow()) {
            break;
        }
    }
    turns.result()
}

/// Rounds so far.
#[derive(Default)]
struct Turns {
    by_profile: bool,
    rounds: u32,
    /// Log ratio of B to A in each round, by name.
    ratios: BTreeMap<String, Vec<f64>>,
    /// Times of both, by name.
    times: [BTreeMap<String, Vec<f64>>; 2],
}

impl Turns {
    /// One round: A B B A, or B A A B in even ones.
    fn round(
        &mut self,
        commands: &mut dyn Commands,
        pair: [&str; 2],
        round: u32,
        limit: Duration,
        stop: &AtomicBool,
    ) -> Result<()> {
        let order = if round % 2 == 1 { [0, 1, 1, 0] } else { [1, 0, 0, 1] };
        let mut slots: [Vec<BTreeMap<String, f64>>; 2] = [Vec::new(), Vec::new()];
        for which in order {
            let times = commands.run(pair[which], limit, stop)?.by_name(self.by_profile);
            for (name, seconds) in &times {
                self.times[which].entry(name.clone()).or_default().push(*seconds);
            }
            slots[which].push(times);
        }
        let [a, b] = &slots;
        for name in a[0].keys() {
            let slot = |times: &BTreeMap<String, f64>| times.get(name).copied();
            let (Some(a0), Some(a1)) = (slot(&a[0]), slot(&a[1])) else { continue };
            let (Some(b0), Some(b1)) = (slot(&b[0]), slot(&b[1])) else { continue };
            let ratio = block_log_ratio([&[a0], &[a1]], [&[b0], &[b1]]);
            self.ratios.entry(name.clone()).or_default().extend(ratio);
        }
        self.rounds += 1;
        Ok(())
    }

    /// Whether no interval would gain from another round.
    fn is_narrow(&self) -> bool {
        let half = |e: PairedEffect| (e.hi - e.lo) / 2.0;
        self.ratios.values().all(|r| median_effect(r).is_some_and(|e| half(e) <= WIDTH))
    }

    fn result(self) -> Result<Paired> {
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
            let effect = median_effect(&ratios);
            cells.push(PairedCell { name, a_s, b_s, rounds: ratios.len(), effect });
        }
        if cells.is_empty() {
            return Err(Error::unfit("--run", "the commands have no cell in common"));
        }
        Ok(Paired { rounds, by_profile, cells, left_out })
    }
}

/// Median times of the cells of the profile that an output is, in seconds; `None` when it is none.
pub type CellsOf = fn(&[u8]) -> Option<BTreeMap<String, f64>>;

/// Commands of the system's shell.
#[derive(Clone, Copy, Debug)]
pub struct Shell {
    /// Reads profiles.
    pub cells_of: CellsOf,
}

impl Commands for Shell {
    fn run(&mut self, command: &str, limit: Duration, stop: &AtomicBool) -> Result<Times> {
        let failed = |reason: String| Error::unfit(format!("`{command}`"), reason);
        let start = Instant::now();
        let mut running = Execution::start(command).map_err(|e| failed(e.to_string()))?;
        let ended = loop {
            match running.end.recv_timeout(LOOK_EVERY) {
                Ok(ended) => break ended,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed("its end was not seen".into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { signal: 2, hint: String::new() });
            }
            if start.elapsed() > limit {
                return Err(failed(format!("did not end in {:.0} s", limit.as_secs_f64())));
            }
        };
        running.is_over = true;
        let (status, end) = ended.map_err(|e| failed(e.to_string()))?;
        let text = |stream: &Receiver<Vec<u8>>| {
            stream.recv_timeout(Duration::from_secs(1)).unwrap_or_default()
        };
        if !status.success() {
            let message = text(&running.messages);
            let message = String::from_utf8_lossy(&message);
            let last = message.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("");
            return Err(failed(format!("ended with {status}: {last}")));
        }
        let cells = (self.cells_of)(&text(&running.output));
        Ok(Times { whole: end.saturating_duration_since(start), cells })
    }
}

/// A process, ended with everything that it started when this is dropped before its end.
struct Execution {
    id: u32,
    is_over: bool,
    end: Receiver<std::io::Result<(ExitStatus, Instant)>>,
    output: Receiver<Vec<u8>>,
    messages: Receiver<Vec<u8>>,
}

impl Execution {
    fn start(command: &str) -> std::io::Result<Self> {
        let mut shell = if cfg!(windows) { Command::new("cmd") } else { Command::new("sh") };
        shell.arg(if cfg!(windows) { "/C" } else { "-c" }).arg(command);
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            shell.process_group(0);
        }
        let mut child = shell.spawn()?;
        let output = kept(child.stdout.take(), LONGEST_OUTPUT)?;
        let messages = kept(child.stderr.take(), LONGEST_MESSAGE)?;
        let id = child.id();
        let (sender, end) = channel();
        std::thread::Builder::new().name("command".into()).spawn(move || {
            let ended = child.wait().map(|status| (status, Instant::now()));
            // Nobody listens after a stop.
            let _ = sender.send(ended);
        })?;
        Ok(Self { id, is_over: false, end, output, messages })
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        if !self.is_over {
            end_group(self.id);
        }
    }
}

/// Ends a process and those that it has started.
fn end_group(id: u32) {
    let mut kill = Command::new("kill");
    kill.args(["-KILL", "--", &format!("-{id}")]).stdout(Stdio::null()).stderr(Stdio::null());
    // It may have ended meanwhile; there is nobody to tell.
    let _ = kill.status();
}

/// Reads a stream to its end in a thread; its first `most` bytes.
fn kept(
    stream: Option<impl Read + Send + 'static>,
    most: u64,
) -> std::io::Result<Receiver<Vec<u8>>> {
    let (sender, bytes) = channel();
    if let Some(mut stream) = stream {
        std::thread::Builder::new().name("output".into()).spawn(move || {
            let mut first = Vec::new();
            let read = stream.by_ref().take(most).read_to_end(&mut first);
            // The rest is read so that the command does not wait for it.
            let _ = read.and_then(|_| std::io::copy(&mut stream, &mut std::io::sink()));
            let _ = sender.send(first);
        })?;
    }
    Ok(bytes)
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
            if command == "fails" {
                return Err(Error::unfit("`fails`", "ended with 1"));
            }
            self.executed += 1.0;
            let noise: f64 = self.rng.sample(StandardNormal);
            let outlier = if self.rng.random::<f64>() < 0.1 { 1.3 } else { 1.0 };
            let share = if command == "b" { 1.0 + self.slower } else { 1.0 };
            let seconds =
                0.01 * share * outlier * (self.noise * noise).exp() * (1.0 + 0.003 * self.executed);
            let cells = self.cells.then(|| [("x".to_owned(), seconds)].into());
            Ok(Times { whole: Duration::from_secs_f64(seconds), cells })
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

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let rng = ChaCha8Rng::seed_from_u64(1);
        let mut commands = MadeUp { rng, slower: 0.0, noise: 0.0, executed: 0.0, cells: false };
        let stop = AtomicBool::new(false);
        let mut attempt = |pair, budget| {
            let budget = Duration::from_millis(budget);
            compare(&mut commands, pair, budget, &mut (), &stop).unwrap_err().to_string()
        };
        assert!(attempt(["a", "fails"], 60_000).contains("`fails`"));
        assert!(attempt(["a", "b"], 1).contains("raise --time-budget"));
    }

    /// Whether a process is still there.
    #[cfg(unix)]
    fn is_running(id: u32) -> bool {
        let status =
            Command::new("kill").args(["-0", &id.to_string()]).stderr(Stdio::null()).status();
        status.unwrap().success()
    }

    #[cfg(unix)]
    #[test]
    fn a_command_is_timed_ended_and_its_failure_told() {
        let (never, long) = (AtomicBool::new(false), Duration::from_secs(60));
        let cells_of: CellsOf =
            |output| (output == b"profile\n").then(|| [("c".to_owned(), 2.0)].into());
        let mut shell = Shell { cells_of };
        let profile = shell.run("echo profile", long, &never).unwrap();
        assert_eq!(profile.cells, cells_of(b"profile\n"));
        let times = shell.run("sleep 0.05; echo x", long, &never).unwrap();
        assert!(times.whole >= Duration::from_millis(50) && times.cells.is_none(), "{times:?}");
        let error = shell.run("echo a >&2; echo 'b b' >&2; exit 3", long, &never).unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().contains("3: b b"), "{error}");
        let start = Instant::now();
        let error = shell.run("sleep 100 | sleep 100", Duration::from_millis(100), &never);
        assert!(error.unwrap_err().to_string().contains("did not end"));
        let error = shell.run("sleep 100", long, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.exit_code(), 130);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        let execution = Execution::start("sleep 100").unwrap();
        let id = execution.id;
        drop(execution);
        let start = Instant::now();
        while is_running(id) && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(LOOK_EVERY);
        }
        assert!(!is_running(id), "it was not ended");
    }
}
