//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::tidy;

/// Off a terminal one line is printed at most this often.
const LINE_EVERY: Duration = Duration::from_secs(15);

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
        let what = &tidy(what);
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            let template = "{msg} [{bar:32}] {percent}% {elapsed} (about {eta} left)";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(what.to_owned());
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
