//! Commands of the system's shell: started in a group of their own, timed, and ended with everything that they
//! have started.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Commands, Times};
use crate::{Error, Result};

/// How often a waiting parent looks whether it was asked to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest output that is looked at for a profile.
const LONGEST_OUTPUT: u64 = 256 << 20;
/// Bytes of messages that are kept, for the last line of a command that fails.
const LONGEST_MESSAGE: u64 = 64 << 10;
/// How long the output of a command may stay open after its end.
const AFTER_END: Duration = Duration::from_secs(5);
/// How long a command may take to end when it is asked to, before it is killed: `measure` takes a moment to
/// write down what it has.
const GRACE: Duration = Duration::from_secs(2);

/// The groups of commands that run now, by the process that leads them.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// A profile that a command printed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Printed {
    /// Median times of its cells, in seconds.
    pub cells: BTreeMap<String, f64>,
    /// Why it is not whole, if so.
    pub partial: Option<String>,
}

/// The profile that the output of a command, named first, is; `None` when it is none. A profile that cannot be
/// read is an error.
pub type ReadOutput = fn(&str, &[u8]) -> Result<Option<Printed>>;

/// The system's shell.
#[derive(Clone, Copy, Debug)]
pub struct Shell {
    /// Reads profiles.
    pub read: ReadOutput,
}

impl Commands for Shell {
    fn run(&mut self, command: &str, limit: Duration, stop: &AtomicBool) -> Result<Times> {
        let failed = |reason: String| Error::unfit(format!("`{command}`"), reason);
        let start = Instant::now();
        let mut running =
            Execution::start(command).map_err(|e| Error::io("start", command.to_owned(), e))?;
        let (status, end) = heard(&running.end, stop, || {
            (start.elapsed() > limit)
                .then(|| failed(format!("did not end in {:.0} s", limit.as_secs_f64())))
        })?
        .map_err(|e| Error::io("wait for", command.to_owned(), e))?;
        let late = || {
            let reason = "has ended, but something that it started holds its output open";
            (end.elapsed() > AFTER_END).then(|| failed(reason.into()))
        };
        let messages = heard(&running.messages, stop, late)?;
        let output = heard(&running.output, stop, late)?;
        running.is_over = true;
        if !status.success() {
            let message = messages.map(|(bytes, _)| bytes).unwrap_or_default();
            let message = String::from_utf8_lossy(&message);
            let last = message.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("");
            return Err(failed(format!("ended with {status}: {last}")));
        }
        let (output, is_whole) =
            output.map_err(|e| Error::io("read the output of", command.to_owned(), e))?;
        if !is_whole {
            let reason = format!("longer than {} MiB", LONGEST_OUTPUT >> 20);
            return Err(Error::bad_file(format!("output of `{command}`"), reason));
        }
        let profile = (self.read)(command, &output)?;
        Ok(Times { whole: end.saturating_duration_since(start), profile })
    }
}

/// What comes from a thread, unless `stop` is raised or it comes too late.
fn heard<T>(
    from: &Receiver<T>,
    stop: &AtomicBool,
    mut late: impl FnMut() -> Option<Error>,
) -> Result<T> {
    loop {
        match from.recv_timeout(LOOK_EVERY) {
            Ok(thing) => return Ok(thing),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::unfit("--run", "a thread that watches a command has ended"));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted());
        }
        if let Some(error) = late() {
            return Err(error);
        }
    }
}

/// What a stream held, its first bytes, and whether those are all.
type Stream = io::Result<(Vec<u8>, bool)>;

/// A process, ended with everything that it started when this is dropped before its end.
struct Execution {
    id: u32,
    is_over: bool,
    end: Receiver<io::Result<(ExitStatus, Instant)>>,
    output: Receiver<Stream>,
    messages: Receiver<Stream>,
}

impl Execution {
    fn start(command: &str) -> io::Result<Self> {
        let mut shell = if cfg!(windows) { Command::new("cmd") } else { Command::new("sh") };
        shell.arg(if cfg!(windows) { "/C" } else { "-c" }).arg(command);
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            shell.process_group(0);
        }
        let mut child = shell.spawn()?;
        let id = child.id();
        running().push(id);
        let (ended, end) = channel();
        let (printed, output) = channel();
        let (told, messages) = channel();
        // From here on the drop of this value ends the process.
        let execution = Self { id, is_over: false, end, output, messages };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        // Nobody listens after a stop.
        thread("command").spawn(move || {
            let _ = ended.send(child.wait().map(|status| (status, Instant::now())));
        })?;
        thread("output").spawn(move || {
            let _ = printed.send(kept(stdout, LONGEST_OUTPUT));
        })?;
        thread("messages").spawn(move || {
            let _ = told.send(kept(stderr, LONGEST_MESSAGE));
        })?;
        Ok(execution)
    }

    /// Asks the group to end, and kills what has not ended in time.
    fn end(&self) {
        signal_group(self.id, "TERM");
        let start = Instant::now();
        let left = || GRACE.saturating_sub(start.elapsed());
        // The streams are at their end when the last process of the group that writes has ended.
        // What was heard before has a closed channel.
        let has_ended = !matches!(self.end.recv_timeout(left()), Err(RecvTimeoutError::Timeout))
            && !matches!(self.messages.recv_timeout(left()), Err(RecvTimeoutError::Timeout))
            && !matches!(self.output.recv_timeout(left()), Err(RecvTimeoutError::Timeout));
        if !has_ended {
            signal_group(self.id, "KILL");
        }
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        if !self.is_over {
            self.end();
        }
        running().retain(|id| *id != self.id);
    }
}

fn running() -> std::sync::MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills the commands that run now: for a process that ends at once.
pub fn end_running() {
    for id in running().iter() {
        signal_group(*id, "KILL");
    }
}

/// Sends a signal to a process and those that it has started. It may have ended meanwhile; there is nobody to
/// tell.
fn signal_group(id: u32, signal: &str) {
    let mut command = if cfg!(windows) {
        let mut command = Command::new("taskkill");
        command.args(["/T", "/F", "/PID", &id.to_string()]);
        command
    } else {
        // The shell has its own `kill`; the program of that name is not everywhere.
        let mut command = Command::new("sh");
        command.args(["-c", &format!("kill -s {signal} -- -{id}")]);
        command
    };
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// Reads a stream to its end; its first `most` bytes are kept.
fn kept(stream: Option<impl Read>, most: u64) -> Stream {
    let Some(mut stream) = stream else { return Ok((Vec::new(), true)) };
    let mut first = Vec::new();
    stream.by_ref().take(most).read_to_end(&mut first)?;
    // The rest is read so that the command does not wait for it.
    let rest = io::copy(&mut stream, &mut io::sink())?;
    Ok((first, rest == 0))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    /// Whether a process is still there.
    fn is_running(id: u32) -> bool {
        let mut kill = Command::new("sh");
        kill.args(["-c", &format!("kill -s 0 {id}")]).stderr(Stdio::null());
        kill.status().unwrap().success()
    }

    fn read(command: &str, output: &[u8]) -> Result<Option<Printed>> {
        match output {
            b"profile\n" => {
                Ok(Some(Printed { cells: [("c".to_owned(), 2.0)].into(), partial: None }))
            }
            b"half\n" => Err(Error::bad_file(format!("output of `{command}`"), "cut off")),
            _ => Ok(None),
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_command_is_timed_and_its_failure_told() {
        let never = AtomicBool::new(false);
        let mut shell = Shell { read };
        let profile = shell.run("echo profile", LONG, &never).unwrap();
        assert_eq!(profile.profile, read("", b"profile\n").unwrap());
        let times = shell.run("sleep 0.05; echo x", LONG, &never).unwrap();
        assert!(times.whole >= Duration::from_millis(50) && times.profile.is_none(), "{times:?}");
        let error = shell.run("echo a >&2; echo 'b b' >&2; exit 3", LONG, &never).unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().contains("3: b b"), "{error}");
        let error = shell.run("echo half", LONG, &never).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains("`echo half`"), "{error}");
    }

    #[test]
    fn what_takes_too_long_is_ended() {
        let never = AtomicBool::new(false);
        let mut shell = Shell { read };
        let start = Instant::now();
        let error = shell.run("sleep 100 | sleep 100", Duration::from_millis(100), &never);
        assert!(error.unwrap_err().to_string().contains("did not end"));
        let error = shell.run("sleep 100", LONG, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.exit_code(), 130);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        let error = shell.run("sleep 100 & echo profile", LONG, &never).unwrap_err();
        assert!(error.to_string().contains("holds its output open"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    }

    #[test]
    fn a_command_may_end_as_it_wants_to_before_it_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        let polite = format!(
            "trap 'sleep 0.1; echo bye > {}; exit' TERM; echo x >&2; while :; do sleep 0.01; done",
            said.display()
        );
        for (command, ends_itself) in
            [(polite.as_str(), true), ("trap '' TERM; while :; do sleep 0.01; done", false)]
        {
            let execution = Execution::start(command).unwrap();
            let id = execution.id;
            // The trap must be set.
            std::thread::sleep(Duration::from_millis(500));
            let start = Instant::now();
            drop(execution);
            assert_eq!(start.elapsed() < GRACE, ends_itself, "{command}: {:?}", start.elapsed());
            while is_running(id) && start.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(LOOK_EVERY);
            }
            assert!(!is_running(id), "{command} was not ended");
        }
        assert_eq!(std::fs::read_to_string(said).unwrap(), "bye\n");
    }
}
