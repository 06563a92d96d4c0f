//! The command line of a page: `rank` alone, over files that came with the page.
//!
//! A page hands over files ([`entry::bring`]) and the words of a command line ([`entry::answer`]); what
//! it gets back is what the program would have written.

pub mod live;
pub mod parse;
pub mod profile;
pub mod rank;

use clap::Parser;
use serde::Serialize;

use crate::ask::rank::Named;
use crate::plan::rank::Ranking;
use crate::{Error, Result, ask, report};
use rank::RankArgs;

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "rank")]
struct Line {
    #[command(flatten)]
    args: RankArgs,
}

/// What a page shows.
#[derive(Serialize)]
struct Shown {
    /// The page's tables and figures.
    html: String,
    /// `rank.json`, as the program writes it.
    report: String,
}

/// Why it shows nothing new.
#[derive(Serialize)]
struct Refused {
    error: String,
    code: u8,
}

/// The answer to the words after `rank`, as JSON: `html` and `report`, or `error` and the exit `code`.
fn answered(words: &str) -> String {
    let refused = |e: &Error| Refused { error: e.to_string(), code: e.exit_code() };
    let text = match shown(words) {
        Ok(shown) => serde_json::to_string(&shown),
        Err(error) => serde_json::to_string(&refused(&error)),
    };
    text.unwrap_or_else(|e| format!("{{\"error\":\"{e}\",\"code\":1}}"))
}

fn shown(words: &str) -> Result<Shown> {
    let bad = |e: &dyn std::fmt::Display| Error::usage("page", e.to_string());
    let words: Vec<String> = serde_json::from_str(words).map_err(|e| bad(&e))?;
    let line = ["rank".to_owned()].into_iter().chain(words);
    let Line { args } = Line::try_parse_from(line).map_err(|e| bad(&e))?;
    let options = args.options();
    if options.source.profile.is_empty() {
        return Err(Error::usage("--profile", "a page measures nothing"));
    }
    let is_here = options.source.profile == [live::THIS_MACHINE];
    let place = Named { is_here, ..Named::find(&options)? };
    let Ranking { report, .. } = ask::rank::answer(&options, place)?.ranking;
    Ok(Shown {
        html: report::body(&report)?,
        report: String::from_utf8_lossy(&report.to_bytes()?).into_owned(),
    })
}

/// What a page calls.
#[expect(unsafe_code, reason = "memory that both sides of WebAssembly share has no owner's name")]
mod entry {
    use std::sync::{Mutex, PoisonError};

    use super::answered;
    use crate::files::brought;

    /// The last answer, which the page reads before it asks again.
    static ANSWER: Mutex<String> = Mutex::new(String::new());

    /// Room for `len` bytes, which [`bring`] or [`answer`] take back.
    #[unsafe(no_mangle)]
    extern "C" fn room(len: usize) -> *mut u8 {
        Box::leak(vec![0; len].into_boxed_slice()).as_mut_ptr()
    }

    /// Takes back what [`room`] gave.
    fn owned(at: *mut u8, len: usize) -> Vec<u8> {
        // SAFETY: the page passes an address and length that `room` returned and that it has passed to
        // nobody else; the box that was leaked there has exactly this length.
        unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(at, len)) }.into_vec()
    }

    /// Adds a file of this name.
    #[unsafe(no_mangle)]
    extern "C" fn bring(name: *mut u8, name_len: usize, at: *mut u8, len: usize) {
        let name = String::from_utf8_lossy(&owned(name, name_len)).into_owned();
        brought::bring(&name, owned(at, len));
    }

    /// Answers a JSON list of words; the length of the answer, which lies at [`answer_at`].
    #[unsafe(no_mangle)]
    extern "C" fn answer(words: *mut u8, len: usize) -> usize {
        let words = owned(words, len);
        // A panic ends the module; what it said is left as the answer.
        std::panic::set_hook(Box::new(|info| {
            keep(&info.to_string());
        }));
        let text = answered(&String::from_utf8_lossy(&words));
        keep(&text)
    }

    /// Keeps an answer; its length.
    fn keep(text: &str) -> usize {
        let mut answer = ANSWER.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone_into(&mut answer);
        answer.len()
    }

    /// Length of the last answer.
    #[unsafe(no_mangle)]
    extern "C" fn answer_len() -> usize {
        ANSWER.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Where the last answer lies.
    #[unsafe(no_mangle)]
    extern "C" fn answer_at() -> *const u8 {
        ANSWER.lock().unwrap_or_else(PoisonError::into_inner).as_ptr()
    }
}
