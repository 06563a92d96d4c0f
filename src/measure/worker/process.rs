//! The parent's side: a worker process, how long it may take, and the next one after it. Where no other process
//! can be had, a thread of this one does a worker's work ([`Process::in_thread`]); it is left behind when the
//! run is stopped, so that a stop never waits for a kernel.
//!
//! A worker that ends, says what is no answer, or does not answer in time is done away with; what it was
//! asked is lost, and another one is started with the same plan. Three that come to nothing in a row end
//! the run: then it is the device.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use super::super::launches::{COOLING, Drawn};
use super::super::plan::{Machine, Plan, layer_bytes};
use super::{Answer, Ask, Facts, Order, Reply, Trouble, Worker};
use crate::config::DType;
use crate::{Error, Result};

/// Workers that may come to nothing in a row.
const ATTEMPTS: usize = 3;
/// How often a waiting parent looks whether it was asked to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a worker that has closed its output may take to end before it is given up.
const CLOSING: Duration = Duration::from_secs(1);
/// How long a killed process may take to end; one inside a call of its driver may never.
const DYING: Duration = Duration::from_secs(10);
/// The same when nothing follows on its device: the user waits for the end of this process.
const DYING_ALONE: Duration = Duration::from_millis(200);
/// Longest answer; samples of a block are some kilobytes.
const LONGEST_LINE: u64 = 64 << 20;
/// Characters that are shown of a line that is no answer.
const SHOWN: usize = 60;

/// How long a worker may take to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// To open the device and to say so.
    pub opening: Duration,
    /// For a block, at least.
    pub block: Duration,
    /// For a block, in multiples of what the plan expects of it.
    pub factor: u32,
    /// For a block beyond that: pauses in which a device cools down.
    pub pauses: Duration,
    /// For everything else: to sample the device's ceilings, to check an output.
    pub other: Duration,
    /// For drawing and loading one gigabyte of weights beyond that.
    pub gigabyte: Duration,
    /// Pause before another worker is started in place of one that came to nothing.
    pub pause: Duration,
}

impl Default for Limits {
    /// 10 s or 100 times the expected block, and a minute for what is not expected to be known: far
    /// above what a busy machine takes, far below a night.
    fn default() -> Self {
        Self {
            opening: Duration::from_secs(60),
            block: Duration::from_secs(10),
            factor: 100,
            pauses: COOLING.iter().sum(),
            other: Duration::from_secs(60),
            gigabyte: Duration::from_secs(10),
            pause: Duration::from_secs(1),
        }
    }
}

impl Limits {
    /// For a CPU: a busy one may take any time, and its kernels end. Only its worker has to begin, which touches
    /// nothing that could take long.
    pub const CPU: Self = Self {
        opening: Duration::from_secs(20),
        block: Duration::MAX,
        factor: 1,
        pauses: Duration::ZERO,
        other: Duration::MAX,
        gigabyte: Duration::ZERO,
        pause: Duration::from_secs(1),
    };

    fn of(&self, ask: Ask, plan: &Plan) -> Duration {
        let spec = ask.cell().and_then(|cell| plan.cells.get(cell));
        match (ask, spec) {
            (Ask::Block { .. } | Ask::Itself { .. }, Some(spec)) => {
                let block = self.block.max(spec.block.saturating_mul(self.factor));
                block.saturating_add(self.pauses)
            }
            _ => self.other,
        }
    }

    fn of_load(&self, plan: &Plan) -> Duration {
        let bytes =
            |(shape, sets): &(_, usize)| layer_bytes(shape, plan.request.dtype) * *sets as f64;
        let gigabytes = plan.shapes.iter().map(bytes).sum::<f64>() * 1e-9;
        self.other.saturating_add(self.gigabyte.mul_f64(gigabytes.min(1e6)))
    }
}

/// Why a worker is gone.
enum Gone {
    /// It has said so itself.
    Told(Error),
    /// It was found out.
    Found(String),
    /// It has said nothing in time.
    Late(String),
}

impl Gone {
    fn reason(&self) -> String {
        match self {
            Self::Told(error) => error.to_string(),
            Self::Found(reason) | Self::Late(reason) => reason.clone(),
        }
    }

    fn into_error(self) -> Error {
        match self {
            Self::Told(error) => error,
            Self::Found(reason) | Self::Late(reason) => Error::device("worker", reason),
        }
    }
}

/// Work of a worker in a thread: takes orders, writes answers.
pub type Serve = dyn Fn(Receiver<String>, &mut (dyn Write + Send)) + Send + Sync;

/// How a worker is started.
enum Origin {
    Command(Command),
    Thread(Arc<Serve>),
}

/// A process that runs the kernels, started again when it is lost.
pub struct Process {
    origin: Origin,
    limits: Limits,
    facts: Facts,
    plan: Option<(Plan, Vec<Drawn>)>,
    running: Option<Running>,
}

impl Process {
    /// Starts a worker: a program that calls [`super::serve()`].
    ///
    /// # Errors
    /// What the worker says of its device; [`Error::Device`] when three in a row end without a word, or one
    /// stays without a word;
    /// [`Error::Interrupted`] when `stop` was raised.
    pub fn start(command: Command, limits: Limits, stop: &AtomicBool) -> Result<Self> {
        Self::begin(Origin::Command(command), limits, stop)
    }

    /// Starts a worker in a thread of this process, which calls `serve`. It has no time limits: a thread
    /// cannot be ended.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn in_thread(serve: Arc<Serve>, stop: &AtomicBool) -> Result<Self> {
        Self::begin(Origin::Thread(serve), Limits { opening: Duration::MAX, ..Limits::CPU }, stop)
    }

    fn begin(mut origin: Origin, limits: Limits, stop: &AtomicBool) -> Result<Self> {
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            match Running::start(&mut origin, &limits, stop) {
                Ok((running, facts)) => {
                    return Ok(Self { origin, limits, facts, plan: None, running: Some(running) });
                }
                Err(Gone::Found(_)) if left > 0 => pause(limits.pause, stop)?,
                Err(gone) => return Err(gone.into_error()),
            }
        }
    }

    /// Rough rates and sizes of the device, for planning.
    ///
    /// # Errors
    /// As [`Self::start`], without another attempt.
    pub fn machine(&mut self, dtype: DType, stop: &AtomicBool) -> Result<Machine> {
        let limit = self.limits.other;
        match self.told(&Order::Machine { dtype }, limit, stop)? {
            Reply::Machine(machine) => Ok(machine),
            _ => Err(another_answer().into_error()),
        }
    }

    /// Loads a plan, for [`Worker::ask`].
    ///
    /// # Errors
    /// As [`Self::start`], without another attempt.
    pub fn load(&mut self, plan: &Plan, stop: &AtomicBool) -> Result<()> {
        let order = Order::Load(Box::new(plan.clone()));
        match self.told(&order, self.limits.of_load(plan), stop)? {
            Reply::Loaded(drawn) if drawn.len() == plan.cells.len() => {
                self.plan = Some((plan.clone(), drawn));
                Ok(())
            }
            _ => Err(another_answer().into_error()),
        }
    }

    fn told(&mut self, order: &Order, limit: Duration, stop: &AtomicBool) -> Result<Reply> {
        let Some(running) = self.running.as_mut() else {
            return Err(Error::device("worker", "it has ended"));
        };
        running.told(order, limit, stop).map_err(Gone::into_error)
    }

    /// Starts another worker with the same plan on what must be the same device.
    fn again(&mut self, stop: &AtomicBool) -> Result<&mut Running, Gone> {
        let (mut running, facts) = Running::start(&mut self.origin, &self.limits, stop)?;
        if (&facts.device, &facts.kernel_sha256) != (&self.facts.device, &self.facts.kernel_sha256)
        {
            let reason = "another device or other kernels than before".to_owned();
            return Err(Gone::Found(reason));
        }
        if let Some((plan, drawn)) = &self.plan {
            let order = Order::Load(Box::new(plan.clone()));
            match running.told(&order, self.limits.of_load(plan), stop)? {
                Reply::Loaded(again) if again == *drawn => {}
                _ => return Err(another_answer()),
            }
        }
        Ok(self.running.insert(running))
    }

    /// The worker, started again if it was lost.
    fn alive(&mut self, stop: &AtomicBool) -> Result<&mut Running> {
        if self.running.is_none() {
            let mut left = ATTEMPTS;
            loop {
                left -= 1;
                match self.again(stop).err() {
                    None => break,
                    Some(Gone::Told(error @ Error::Interrupted { .. })) => return Err(error),
                    Some(_) if left > 0 => pause(self.limits.pause, stop)?,
                    Some(gone) => return Err(gone.into_error()),
                }
            }
        }
        self.running.as_mut().ok_or_else(|| Error::device("worker", "it has ended"))
    }
}

impl Worker for Process {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn drawn(&self) -> &[Drawn] {
        self.plan.as_ref().map_or(&[], |(_, drawn)| drawn)
    }

    fn recover(&mut self, stop: &AtomicBool) -> Result<()> {
        self.alive(stop).map(|_| ())
    }

    fn ask(&mut self, ask: Ask, stop: &AtomicBool) -> Result<Answer, Trouble> {
        let limit =
            self.plan.as_ref().map_or(self.limits.other, |(plan, _)| self.limits.of(ask, plan));
        let gone =
            match self.alive(stop).map_err(Trouble::Over)?.told(&Order::Ask(ask), limit, stop) {
                Ok(Reply::Answer(answer)) => return Ok(answer),
                // The worker is well; only this cannot be had.
                Ok(Reply::Failed { code, what, reason, .. }) => {
                    return Err(Trouble::Lost(error_of(code, what, reason).to_string()));
                }
                Ok(_) => another_answer(),
                Err(gone) => gone,
            };
        if let Some(running) = self.running.take() {
            running.end(DYING, stop);
        }
        match gone {
            Gone::Told(error @ Error::Interrupted { .. }) => Err(Trouble::Over(error)),
            gone => Err(Trouble::Lost(gone.reason())),
        }
    }
}

/// A worker that has said that it is ready.
struct Running {
    link: Link,
    lines: Receiver<Line>,
}

/// The way to a worker.
enum Link {
    Child(Child, ChildStdin),
    Thread(Sender<String>),
}

impl Link {
    fn send(&mut self, line: String) -> bool {
        match self {
            Self::Child(_, input) => {
                input.write_all(line.as_bytes()).and_then(|()| input.write_all(b"\n")).is_ok()
                    && input.flush().is_ok()
            }
            Self::Thread(orders) => orders.send(line).is_ok(),
        }
    }

    /// Whether the worker has ended, whatever has become of its output.
    fn is_over(&mut self) -> bool {
        match self {
            Self::Child(child, _) => matches!(child.try_wait(), Ok(Some(_))),
            // The end of its output is its end.
            Self::Thread(_) => false,
        }
    }
}

/// What was read from a worker.
enum Line {
    Whole(Vec<u8>),
    /// Its end, after this many bytes of a line.
    End(usize),
}

impl Running {
    fn start(
        origin: &mut Origin,
        limits: &Limits,
        stop: &AtomicBool,
    ) -> Result<(Self, Facts), Gone> {
        let (link, lines) = match origin {
            Origin::Command(command) => start_process(command)?,
            Origin::Thread(serve) => start_thread(Arc::clone(serve))?,
        };
        let mut running = Self { link, lines };
        match running.reply(limits.opening, stop)? {
            Reply::Ready(facts) => Ok((running, *facts)),
            Reply::Failed { code, what, reason, .. } => {
                Err(Gone::Told(error_of(code, what, reason)))
            }
            _ => Err(another_answer()),
        }
    }

    /// The answer to an order; a failure that ends the worker counts as its end.
    fn told(&mut self, order: &Order, limit: Duration, stop: &AtomicBool) -> Result<Reply, Gone> {
        let line = serde_json::to_string(order).map_err(|e| Gone::Found(e.to_string()))?;
        if !self.link.send(line) {
            return Err(Gone::Found(self.ended(0, stop)));
        }
        match self.reply(limit, stop)? {
            Reply::Failed { code, what, reason, over: true } => {
                Err(Gone::Told(error_of(code, what, reason)))
            }
            reply => Ok(reply),
        }
    }

    fn reply(&mut self, limit: Duration, stop: &AtomicBool) -> Result<Reply, Gone> {
        let start = Instant::now();
        let mut over: Option<Instant> = None;
        let line = loop {
            match self.lines.recv_timeout(LOOK_EVERY) {
                Ok(Line::Whole(line)) => break line,
                Ok(Line::End(bytes)) => return Err(Gone::Found(self.ended(bytes, stop))),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Gone::Found(self.ended(0, stop)));
                }
                // What it has said last may still be on its way, or others hold its output open.
                Err(RecvTimeoutError::Timeout) => match over {
                    Some(since) if since.elapsed() >= CLOSING => {
                        return Err(Gone::Found(self.ended(0, stop)));
                    }
                    Some(_) => {}
                    None => over = self.link.is_over().then(Instant::now),
                },
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Gone::Told(Error::interrupted()));
            }
            if start.elapsed() >= limit {
                let seconds = limit.as_secs_f64();
                return Err(Gone::Late(format!("timeout: no answer in {seconds:.0} s")));
            }
        };
        serde_json::from_slice(&line).map_err(|_| {
            let text: String = String::from_utf8_lossy(&line).chars().take(SHOWN).collect();
            Gone::Found(format!("said `{}`, which is no answer", text.escape_debug()))
        })
    }

    /// Ends the worker and waits until it has released its device, at most `limit` and until `stop` is
    /// raised.
    fn end(mut self, limit: Duration, stop: &AtomicBool) {
        if let Link::Child(child, _) = &mut self.link {
            let _ = child.kill();
            let _ = wait(child, limit, stop);
        }
    }

    /// How a worker ended whose output is at its end, `bytes` bytes into a line.
    fn ended(&mut self, bytes: usize, stop: &AtomicBool) -> String {
        let how = match &mut self.link {
            Link::Child(child, _) => match wait(child, CLOSING, stop) {
                Some(status) => describe(status),
                None => "closed its output".to_owned(),
            },
            Link::Thread(_) => "crashed: its thread ended".to_owned(),
        };
        if bytes == 0 { how } else { format!("{how}, in the middle of an answer") }
    }
}

impl Drop for Running {
    /// Ends the worker without waiting long: whoever needs its device again calls [`Running::end`].
    fn drop(&mut self) {
        if let Link::Child(child, _) = &mut self.link {
            // It may have ended by itself; there is nobody to tell of one that cannot be killed.
            let _ = child.kill();
            let _ = wait(child, DYING_ALONE, &AtomicBool::new(false));
        }
    }
}

fn start_process(command: &mut Command) -> Result<(Link, Receiver<Line>), Gone> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        // Ctrl-C of a terminal reaches the parent alone, which then ends the worker.
        command.process_group(0);
    }
    let lost = |what: &str| Gone::Found(format!("the worker cannot be started: {what}"));
    let mut child = command.spawn().map_err(|e| lost(&e.to_string()))?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(lost("it has no standard streams"));
    };
    // One answer for one order: more than a line ahead is never read.
    let (sender, lines) = sync_channel(1);
    std::thread::Builder::new()
        .name("worker's answers".into())
        .spawn(move || read_lines(BufReader::new(output), &sender))
        .map_err(|e| lost(&e.to_string()))?;
    Ok((Link::Child(child, input), lines))
}

fn start_thread(serve: Arc<Serve>) -> Result<(Link, Receiver<Line>), Gone> {
    let (orders, taken) = channel();
    let (sender, lines) = sync_channel(1);
    let mut answers = Answers { line: Vec::new(), lines: sender };
    std::thread::Builder::new()
        .name("worker".into())
        .spawn(move || serve(taken, &mut answers))
        .map_err(|e| Gone::Found(format!("the worker cannot be started: {e}")))?;
    Ok((Link::Thread(orders), lines))
}

/// What a worker in a thread writes, handed on line by line.
struct Answers {
    line: Vec<u8>,
    lines: SyncSender<Line>,
}

impl Write for Answers {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend(bytes);
        if self.line.pop_if(|last| *last == b'\n').is_some() {
            let line = Line::Whole(std::mem::take(&mut self.line));
            self.lines.send(line).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits for the end of a process that should be near, until `stop` is raised.
fn wait(child: &mut Child, limit: Duration, stop: &AtomicBool) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if start.elapsed() < limit && !stop.load(Ordering::Relaxed) => {
                std::thread::sleep(LOOK_EVERY);
            }
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Sleeps.
///
/// # Errors
/// [`Error::Interrupted`] as soon as `stop` is raised.
fn pause(length: Duration, stop: &AtomicBool) -> Result<()> {
    let start = Instant::now();
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted());
        }
        let left = length.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK_EVERY));
    }
}

fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        if let Some(signal) = status.signal() {
            return format!("crashed: ended by signal {signal}");
        }
    }
    match status.code() {
        Some(code) => format!("crashed: ended with code {code}"),
        None => "crashed".to_owned(),
    }
}

/// Hands lines on until the end of the output.
fn read_lines(mut output: impl BufRead, lines: &SyncSender<Line>) {
    loop {
        let mut line = Vec::new();
        let read = output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        let next = match read {
            Ok(_) if whole => Line::Whole(line),
            _ => Line::End(line.len()),
        };
        if lines.send(next).is_err() || !whole {
            return;
        }
    }
}

fn another_answer() -> Gone {
    Gone::Found("answered another question than it was asked".to_owned())
}

/// The error that a worker has told.
fn error_of(code: u8, what: String, reason: String) -> Error {
    match code {
        2 => Error::Usage { name: what, reason },
        4 => Error::Unfit { what, reason },
        _ => Error::Device { device: what, reason },
    }
}
