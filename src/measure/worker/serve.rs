//! The worker's side: orders come in as lines, each is answered by one line.

use std::io::Write;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::super::session::{Loaded, Session};
use super::{Ask, Order, Reply, Worker};
use crate::{Error, Result};

/// A fault that a worker plants in itself at a block, so that its parent's answer to it can be tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// Tokens of the cells at which it does.
    pub tokens: usize,
    /// The round in which it does.
    pub round: u32,
}

/// What a planted fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Ends as a crash does.
    Crash,
    /// Never answers.
    Hang,
    /// Answers with a line that means nothing.
    Garbage,
    /// Ends in the middle of an answer.
    Partial,
    /// Answers that its device failed, and ends.
    Device,
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let forms = "write crash, hang, garbage, partial or device, @TOKENS or @TOKENS:ROUND";
            Error::usage("fault", forms)
        };
        let (kind, place) = text.split_once('@').ok_or_else(wrong)?;
        let kind = match kind {
            "crash" => FaultKind::Crash,
            "hang" => FaultKind::Hang,
            "garbage" => FaultKind::Garbage,
            "partial" => FaultKind::Partial,
            "device" => FaultKind::Device,
            _ => return Err(wrong()),
        };
        let (tokens, round) = place.split_once(':').unwrap_or((place, "1"));
        let tokens = tokens.parse().map_err(|_| wrong())?;
        Ok(Self { kind, tokens, round: round.parse().map_err(|_| wrong())? })
    }
}

impl Fault {
    /// Does it. Returns where it ends neither the process nor the answer.
    fn strike(self, out: &mut dyn Write) -> Result<()> {
        match self.kind {
            FaultKind::Crash => std::process::abort(),
            FaultKind::Hang => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            FaultKind::Garbage => send(out, b"\x1b[2J not an answer\n"),
            FaultKind::Partial => {
                send(out, b"{\"answer\":{\"block\":{\"bl")?;
                std::process::exit(0)
            }
            FaultKind::Device => Err(Error::device("planted", "an illegal address, say")),
        }
    }
}

/// Answers orders until there are no more, or the device has failed: what it holds then is not to be
/// trusted any more.
///
/// # Errors
/// [`Error::BadFile`] for a line that is no order, [`Error::Io`] when `out` cannot be written. What fails
/// on the device is told to the parent and is no error here.
pub fn serve(
    session: &Session,
    mut orders: impl Iterator<Item = String>,
    out: &mut dyn Write,
    faults: &[Fault],
) -> Result<()> {
    say(out, &Reply::Ready(Box::new(session.facts())))?;
    while let Some(line) = orders.next() {
        match parse(&line)? {
            Order::Machine { dtype } => match session.machine(dtype) {
                Ok(machine) => say(out, &Reply::Machine(machine))?,
                Err(error) => return refuse(out, &error),
            },
            Order::Load(plan) => {
                let mut is_loaded = false;
                let ended = session.load(&plan, |loaded| {
                    is_loaded = true;
                    say(out, &Reply::Loaded(loaded.drawn().to_vec()))?;
                    serve_plan(loaded, &mut orders, out, faults)
                });
                return match ended {
                    Err(error) if !is_loaded => refuse(out, &error),
                    ended => ended,
                };
            }
            Order::Ask(_) => return Err(Error::bad_file("orders", "no plan is loaded")),
        }
    }
    Ok(())
}

fn serve_plan(
    loaded: &mut Loaded,
    orders: &mut dyn Iterator<Item = String>,
    out: &mut dyn Write,
    faults: &[Fault],
) -> Result<()> {
    let never = AtomicBool::new(false);
    for line in orders {
        let Order::Ask(ask) = parse(&line)? else {
            return Err(Error::bad_file("orders", "a plan is loaded already"));
        };
        let strikes = |fault: &&Fault| {
            let Ask::Block { cell, round } = ask else { return false };
            round == fault.round && loaded.tokens(cell) == Some(fault.tokens)
        };
        let struck = faults.iter().find(strikes).map_or(Ok(()), |fault| fault.strike(out));
        match struck.and_then(|()| loaded.answer(ask, &never)) {
            Ok(answer) => say(out, &Reply::Answer(answer))?,
            Err(error @ Error::Device { .. }) => return refuse(out, &error),
            Err(error) => say(out, &failed(&error, false))?,
        }
    }
    Ok(())
}

/// Tells the parent why its worker ends.
///
/// # Errors
/// [`Error::Io`] when `out` cannot be written.
pub fn refuse(out: &mut dyn Write, error: &Error) -> Result<()> {
    say(out, &failed(error, true))
}

fn failed(error: &Error, over: bool) -> Reply {
    let (what, reason) = match error {
        Error::Usage { name, reason } => (name.clone(), reason.clone()),
        Error::Device { device, reason } => (device.clone(), reason.clone()),
        Error::Unfit { what, reason } => (what.clone(), reason.clone()),
        other => ("worker".to_owned(), other.to_string()),
    };
    Reply::Failed { code: error.exit_code(), what, reason, over }
}

fn parse(line: &str) -> Result<Order> {
    serde_json::from_str(line).map_err(|e| Error::bad_file("orders", e.to_string()))
}

fn say(out: &mut dyn Write, reply: &Reply) -> Result<()> {
    let mut line = serde_json::to_vec(reply).map_err(|e| Error::unfit("answer", e.to_string()))?;
    line.push(b'\n');
    send(out, &line)
}

fn send(out: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::io("write", "standard output", source);
    out.write_all(bytes).and_then(|()| out.flush()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_by_name_and_place() {
        let hang = Fault { kind: FaultKind::Hang, tokens: 16, round: 1 };
        assert_eq!("hang@16".parse::<Fault>().unwrap(), hang);
        assert_eq!("hang@16:3".parse::<Fault>().unwrap(), Fault { round: 3, ..hang });
        for wrong in ["hang", "hang@", "burn@1", "@1", "hang@1:", "hang@1:x"] {
            assert_eq!(wrong.parse::<Fault>().unwrap_err().exit_code(), 2);
        }
    }
}
