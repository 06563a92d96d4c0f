//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::tidy;

/// Off a terminal one line is printed at most this often.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// How often the bar is drawn again.
const TICK: Duration = Duration::from_millis(250);
/// A command that has printed nothing for so long says on a terminal that it works.
const SILENCE: Duration = Duration::from_millis(400);

/// The notice that is shown now: its end, and its thread.
static SHOWN: Mutex<Option<(Arc<AtomicBool>, JoinHandle<()>)>> = Mutex::new(None);

/// Says on a terminal that a command works, after 0.4 s of silence, until [`end_notice`].
pub fn begin_notice(what: &str) {
    if !io::stderr().is_terminal() {
        return;
    }
    let (stop, what) = (Arc::new(AtomicBool::new(false)), tidy(what));
    let told = Arc::clone(&stop);
    let thread = std::thread::Builder::new().name("notice".into());
    // Without the thread nothing is shown, and nothing is lost.
    if let Ok(thread) = thread.spawn(move || show(&told, &what)) {
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some((stop, thread));
    }
}

/// Removes the notice, so that what comes next has the line to itself.
pub fn end_notice() {
    let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((stop, thread)) = shown {
        stop.store(true, Ordering::Relaxed);
        thread.thread().unpark();
        // It has no result.
        let _ = thread.join();
    }
}

fn show(stop: &AtomicBool, what: &str) {
    let start = Instant::now();
    while start.elapsed() < SILENCE {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::park_timeout(SILENCE.saturating_sub(start.elapsed()));
    }
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
        spinner.set_style(style);
    }
    spinner.set_message(format!("{what} ..."));
    while !stop.load(Ordering::Relaxed) {
        spinner.tick();
        std::thread::park_timeout(TICK);
    }
    spinner.finish_and_clear();
}

/// Progress of one long operation, in steps of its caller's choosing.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    done: u64,
    total: u64,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// Starts showing `total` steps of `what`.
    pub fn new(what: &str, total: u64) -> Self {
        end_notice();
        let what = &tidy(what);
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            // The message comes last and is cut, so that the line never wraps.
            let template = "[{bar:20}] {percent:>3}% {elapsed}, about {eta} left  {wide_msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(what.to_owned());
            // Drawn at once, and the time goes on where a step is long.
            bar.tick();
            bar.enable_steady_tick(TICK);
            bar
        });
        let now = Instant::now();
        if bar.is_none() {
            let _ = writeln!(io::stderr(), "{what} ...");
        }
        Self { bar, what: what.to_owned(), done: 0, total, started: now, last_line: now }
    }

    /// Moves to step `done` of what are now known to be `total`, and says what is being worked on.
    pub fn update(&mut self, done: u64, total: u64, detail: &str) {
        (self.done, self.total) = (done, total);
        let detail = tidy(detail);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{}: {detail}", self.what));
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let elapsed = self.started.elapsed().as_secs();
            let _ = writeln!(
                io::stderr(),
                "{}: {} of {} after {elapsed} s ({detail})",
                self.what,
                self.done,
                self.total
            );
        }
    }

    /// Writes something else to stderr without the bar in between.
    pub fn aside(&self, write: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Removes the bar, or prints how long it took.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        } else {
            let seconds = self.started.elapsed().as_secs_f64();
            let _ = writeln!(io::stderr(), "{}: done in {seconds:.1} s", self.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_ends_at_once_and_leaves_no_thread() {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || show(&told, "working"));
        *SHOWN.lock().unwrap() = Some((stop, thread));
        let start = Instant::now();
        end_notice();
        assert!(start.elapsed() < SILENCE);
        assert!(SHOWN.lock().unwrap().is_none());
    }
}
