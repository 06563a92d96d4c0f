//! `compare --run`: two commands in turns.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::Result;
use crate::cli::progress::Progress;
use crate::cli::signals::Stop;
use crate::cli::{Output, output};
use crate::error::{shown, tidy};
use crate::latency::measured::format;
use crate::latency::measured::validate::{describe, validate};
use crate::measure::Observer;
use crate::measure::pairs::{self, Paired, PairedCell, Printed, Shell};
use crate::record::PROFILE_SCHEMA;
use crate::report::grid::{Column, grid, hanging};
use crate::stats::paired::{SMALLEST_EFFECT, Verdict};
use crate::units::Seconds;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    schema: &'static str,
    schema_version: &'static str,
    paired: bool,
    command_a: &'a str,
    command_b: &'a str,
    rounds: u32,
    /// Why there were no more rounds, where the turns ended early.
    partial: Option<String>,
    /// Whether the cells are those of the profiles that the commands print.
    by_profile: bool,
    bound_rel: f64,
    faster: usize,
    slower: usize,
    same: usize,
    ambiguous: usize,
    cells: Vec<Cell<'a>>,
    left_out: &'a [String],
}

/// One cell of both commands; times of B against A, of the two executions in a round the shorter one.
#[derive(Debug, Serialize)]
struct Cell<'a> {
    name: &'a str,
    a_s: f64,
    b_s: f64,
    rounds: usize,
    effect_rel: Option<f64>,
    effect_lo_rel: Option<f64>,
    effect_hi_rel: Option<f64>,
    verdict: Verdict,
}

/// Compares two commands. Returns how many cells are slower, and of how many. What whole rounds say is printed
/// also when the turns ended early.
pub(super) fn run(
    pair: &[String],
    budget: Seconds,
    details: bool,
    output: Output,
) -> Result<(usize, usize)> {
    let [a, b] = pair else {
        return Err(crate::Error::usage("--run", "takes two commands"));
    };
    let stop = Stop::listen()?;
    let mut bar = Bar(Progress::new("comparing two commands in turns", 1));
    let budget = Duration::from_secs_f64(budget.0);
    let compared =
        pairs::compare(&mut Shell { read: printed }, [a, b], budget, &mut bar, stop.flag());
    bar.0.finish();
    let mut paired = compared.map_err(|error| stop.explain(error, ""))?;
    let rounds = format!("; after {} whole rounds", paired.rounds);
    paired.failure = paired.failure.map(|error| stop.explain(error, &rounds));
    let document = document([a, b], &paired);
    output.result(&document, || text(&document, output::width(), details))?;
    let counts = (document.slower, document.cells.len());
    drop(document);
    paired.failure.map_or(Ok(counts), Err)
}

/// Bytes at the start of a profile in which its schema stands.
const HEAD: usize = 256;

/// Median times of the cells of the profile that a command printed. What begins as a profile and is none is an
/// error: the time of the whole command would be an answer to another question.
fn printed(command: &str, output: &[u8]) -> Result<Option<Printed>> {
    let head = String::from_utf8_lossy(&output[..output.len().min(HEAD)]);
    if !(head.trim_start().starts_with('{') && head.contains(PROFILE_SCHEMA)) {
        return Ok(None);
    }
    let name = format!("output of `{}`", shown(command));
    let profile = format::from_bytes(Path::new(&name), output)?;
    validate(&name, &profile)?;
    let timed = profile.cells.iter().filter_map(|cell| {
        let interval = cell.latency.interval()?;
        Some((describe(cell), interval.median_ps as f64 * 1e-12))
    });
    Ok(Some(Printed { cells: timed.collect(), partial: profile.run.partial.clone() }))
}

/// The bar of the rounds.
struct Bar(Progress);

impl Observer for Bar {
    fn step(&mut self, done: usize, total: usize, what: &str) {
        self.0.update(done as u64, total as u64, what);
    }

    fn notice(&mut self, message: &str) {
        self.0.aside(|| crate::cli::output::warn(message));
    }
}

/// Without an interval nothing is told apart.
fn verdict(cell: &PairedCell) -> Verdict {
    cell.effect.map_or(Verdict::Ambiguous, |effect| effect.verdict(0.0))
}

fn document<'a>([a, b]: [&'a str; 2], paired: &'a Paired) -> Document<'a> {
    let count = |wanted| paired.cells.iter().filter(|cell| verdict(cell) == wanted).count();
    let cell = |cell: &'a PairedCell| Cell {
        name: &cell.name,
        a_s: cell.a_s,
        b_s: cell.b_s,
        rounds: cell.rounds,
        effect_rel: cell.effect.map(|e| e.effect),
        effect_lo_rel: cell.effect.map(|e| e.lo),
        effect_hi_rel: cell.effect.map(|e| e.hi),
        verdict: verdict(cell),
    };
    Document {
        schema: "moe-frontier/compare-run",
        schema_version: "1.1",
        paired: true,
        command_a: a,
        command_b: b,
        rounds: paired.rounds,
        partial: paired.failure.as_ref().map(ToString::to_string),
        by_profile: paired.by_profile,
        bound_rel: SMALLEST_EFFECT,
        faster: count(Verdict::Faster),
        slower: count(Verdict::Slower),
        same: count(Verdict::Same),
        ambiguous: count(Verdict::Ambiguous),
        cells: paired.cells.iter().map(cell).collect(),
        left_out: &paired.left_out,
    }
}

/// Cells in the table without `--details`.
const SHOWN: usize = 12;

/// How many cells changed, then those that did; all with `details`.
fn text(d: &Document, width: usize, details: bool) -> String {
    let percent = |v: Option<f64>| v.map_or_else(|| "-".into(), |v| format!("{:+.1}%", v * 100.0));
    let seconds = |v: f64| Seconds(v).to_string();
    let row = |c: &&Cell| {
        vec![
            tidy(c.name),
            seconds(c.a_s),
            seconds(c.b_s),
            percent(c.effect_rel),
            format!("{} to {}", percent(c.effect_lo_rel), percent(c.effect_hi_rel)),
            c.verdict.to_string(),
        ]
    };
    let answer = format!(
        "{} faster, {} slower, {} same, {} ambiguous, B against A (paired: true; {} rounds; bound {:.1} %)",
        d.faster,
        d.slower,
        d.same,
        d.ambiguous,
        d.rounds,
        d.bound_rel * 100.0
    );
    let mut text = hanging("Answer  ", &answer, width);
    // One cell is the whole answer.
    let all = details || d.cells.len() == 1;
    let is_shown = |c: &&Cell| all || c.verdict != Verdict::Same;
    let most = if all { d.cells.len() } else { SHOWN };
    let rows: Vec<_> = d.cells.iter().filter(is_shown).take(most).map(|c| row(&c)).collect();
    if !rows.is_empty() {
        text += &grid(
            &[
                Column::words("cell"),
                Column::numbers("A").left_out(2),
                Column::numbers("B").left_out(2),
                Column::numbers("change"),
                Column::numbers("95 % interval").left_out(1),
                Column::words("verdict"),
            ],
            &rows,
            width,
        );
    }
    if rows.len() < d.cells.len() {
        let left = d.cells.len() - rows.len();
        text += &hanging("", &format!("{left} more cells: --details"), width);
    }
    if let Some(why) = &d.partial {
        text += &hanging("Early   ", &format!("ended early: {}", tidy(why)), width);
    }
    text += &hanging("A       ", &shown(d.command_a), width);
    text += &hanging("B       ", &shown(d.command_b), width);
    for left in d.left_out {
        text += &hanging("", &format!("not compared: {}", tidy(left)), width);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::measured::synthetic;
    use crate::stats::paired::PairedEffect;

    #[test]
    fn a_profile_on_stdout_gives_its_cells_and_other_output_none() {
        let profile = synthetic::profile(&[(512, 1536)], 0.01);
        let bytes = format::to_bytes(&profile).unwrap();
        let read = printed("measure", &bytes).unwrap().unwrap();
        assert_eq!((read.cells.len(), read.partial), (profile.cells.len(), None));
        assert!(read.cells.values().all(|seconds| *seconds > 0.0));
        for other in ["", "3 s", "{\"schema\": \"moe-frontier/preset-list\"}"] {
            assert_eq!(printed("x", other.as_bytes()).unwrap(), None);
        }
        let cut = printed("measure --json", &bytes[..bytes.len() / 2]).unwrap_err();
        assert!(cut.exit_code() == 3 && cut.to_string().contains("`measure --json`"), "{cut}");
    }

    #[test]
    fn the_text_has_a_row_a_cell_and_says_that_turns_were_taken() {
        let cell = |name: &str, effect| PairedCell {
            name: name.into(),
            a_s: 0.010,
            b_s: 0.011,
            rounds: 6,
            effect,
        };
        let slower = Some(PairedEffect { effect: 0.1, lo: 0.08, hi: 0.12 });
        let paired = Paired {
            rounds: 6,
            failure: Some(crate::Error::unfit("`false`", "ended with 1")),
            by_profile: false,
            cells: vec![cell("one", slower), cell("two", None)],
            left_out: vec!["three: only by A".into()],
        };
        let document = document(["true", "false"], &paired);
        assert_eq!((document.slower, document.ambiguous), (1, 1));
        let text = text(&document, 100, false);
        assert!(text.contains("SLOWER") && text.contains("+8.0% to +12.0%"), "{text}");
        assert!(text.contains("ended early: `false`: ended with 1"), "{text}");
        assert!(text.contains("paired: true") && text.contains("not compared: three"), "{text}");
        let json = serde_json::to_string(&document).unwrap();
        assert!(json.contains("\"verdict\":\"SLOWER\"") && json.contains("\"effect_rel\":null"));
    }
}
