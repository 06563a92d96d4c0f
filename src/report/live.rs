//! What makes a page compute: controls, the program as a WebAssembly module, and the files it needs.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::Result;
use crate::plan::outcome::RankReport;
use crate::report::escape::escape;

/// The ranking of this program for a browser, packed; `just page-module` makes it.
const MODULE: &[u8] = include_bytes!("live/module.wasm.gz");
/// What runs on the page.
const SCRIPT: &str = include_str!("live/live.js");
/// Longest files that a page brings along, packed and together: larger ones make a page without
/// controls.
const MOST_BYTES: usize = 4 << 20;

/// What a page needs beside its report.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Flags of `rank`, `--name=value` each.
    pub arguments: Vec<String>,
    /// Files by the names that the flags give them.
    pub files: Vec<(String, Vec<u8>)>,
}

/// A control: its flag, what it says, the unit that it writes and the decades that its slider spans.
struct Control {
    flag: &'static str,
    label: &'static str,
    unit: &'static str,
    decades: Option<(f64, f64)>,
}

const fn slider(flag: &'static str, label: &'static str, decades: (f64, f64)) -> Control {
    Control { flag, label, unit: "", decades: Some(decades) }
}

const fn milliseconds(flag: &'static str, label: &'static str) -> Control {
    Control { flag, label, unit: "ms", decades: Some((-3.0, 1.0)) }
}

const fn words(flag: &'static str, label: &'static str) -> Control {
    Control { flag, label, unit: "", decades: None }
}

/// The controls by group.
const GROUPS: [(&str, &[Control]); 4] = [
    (
        "What is asked",
        &[
            slider("--train-flops", "training budget, FLOPs", (19.0, 25.0)),
            words("--experts", "expert counts"),
            slider("--max-tokens-per-param", "maximum tokens per parameter", (1.0, 4.0)),
            slider("--unique-tokens", "unique training tokens", (9.0, 14.5)),
            words("--law", "loss laws"),
            words("--law-weights", "weights of laws"),
        ],
    ),
    (
        "Traffic and limits",
        &[
            slider("--rate", "requests per second", (-1.0, 5.0)),
            slider("--lifetime-tokens", "lifetime output tokens", (7.0, 16.0)),
            slider("--isl", "prompt tokens", (1.0, 5.0)),
            slider("--osl", "output tokens", (1.0, 4.5)),
            milliseconds("--tpot", "maximum TPOT"),
            milliseconds("--ttft", "maximum TTFT"),
        ],
    ),
    (
        "Money",
        &[
            slider("--price", "$ per serving GPU-hour", (-2.0, 1.5)),
            slider("--train-price", "$ per training GPU-hour", (-2.0, 1.5)),
            slider("--mfu", "training MFU", (-1.3, 0.0)),
            slider("--max-serve-cost", "maximum $ per million output tokens", (-2.0, 2.0)),
        ],
    ),
    (
        "Architecture",
        &[
            words("--top-k", "experts per token"),
            words("--granularity", "granularity"),
            words("--shared", "shared experts"),
            slider("--kv-group", "query heads per key/value head", (0.0, 1.6)),
            slider("--weight-bits", "bits per expert weight", (0.3, 1.21)),
        ],
    ),
];

/// What the script reads.
#[derive(Serialize)]
struct Question<'a> {
    arguments: &'a [String],
    /// Names, in the order of the elements `file0`, `file1` ...
    files: Vec<&'a str>,
}

/// The parts of a page that computes.
pub(super) struct Parts {
    /// Sources that the page allows itself, for its policy.
    pub(super) policy: String,
    /// Before the answer.
    pub(super) controls: String,
    /// At the end of the page.
    pub(super) script: String,
}

/// The parts for a report and what it needs; `None` when the files are too long for a page.
///
/// # Errors
/// [`crate::Error::Io`] when a file cannot be packed.
pub(super) fn parts(report: &RankReport, live: &Live) -> Result<Option<Parts>> {
    let packed: Vec<Vec<u8>> =
        live.files.iter().map(|(name, bytes)| pack(name, bytes)).collect::<Result<_>>()?;
    if packed.iter().map(Vec::len).sum::<usize>() > MOST_BYTES {
        return Ok(None);
    }
    let question = Question {
        arguments: &live.arguments,
        files: live.files.iter().map(|(name, _)| name.as_str()).collect(),
    };
    // Nothing that a browser could take for the end of the element.
    let question = serde_json::to_string(&question).unwrap_or_default().replace('<', "\\u003c");
    let mut script = format!(
        "<script type=\"application/json\" id=\"question\">{question}</script>\n\
         <script type=\"application/octet-stream\" id=\"module\">{}</script>\n",
        STANDARD.encode(MODULE)
    );
    for (index, bytes) in packed.iter().enumerate() {
        push(
            &mut script,
            format_args!(
                "<script type=\"application/octet-stream\" id=\"file{index}\">{}</script>\n",
                STANDARD.encode(bytes)
            ),
        );
    }
    push(&mut script, format_args!("<script>{SCRIPT}</script>\n"));
    let policy = format!(
        "script-src 'sha256-{}' 'wasm-unsafe-eval'; worker-src blob:",
        STANDARD.encode(Sha256::digest(SCRIPT))
    );
    Ok(Some(Parts { policy, controls: controls(report), script }))
}

/// The form, which the script shows once it can answer.
fn controls(report: &RankReport) -> String {
    let mut html = String::from(
        "<details id=\"panel\" hidden>\n<summary>Change the question</summary>\n\
         <form id=\"controls\" autocomplete=\"off\">\n",
    );
    for (name, controls) in GROUPS {
        push(&mut html, format_args!("<fieldset>\n<legend>{}</legend>\n", escape(name)));
        for control in controls {
            push_control(&mut html, report, control);
        }
        html.push_str("</fieldset>\n");
    }
    html.push_str("<p class=\"actions\">");
    for (action, label) in [
        ("reset", "Reset"),
        ("link", "Copy link"),
        ("command", "Copy command"),
        ("json", "rank.json"),
        ("csv", "candidates.csv"),
        ("png", "frontier.png"),
    ] {
        push(
            &mut html,
            format_args!("<button type=\"button\" data-action=\"{action}\">{label}</button> "),
        );
    }
    html.push_str(
        "</p>\n<p class=\"soft\"><code id=\"line\"></code></p>\n</form>\n</details>\n\
         <p id=\"status\" class=\"soft\" role=\"status\"></p>\n",
    );
    html
}

fn push_control(html: &mut String, report: &RankReport, control: &Control) {
    let Control { flag, label, unit, decades } = control;
    let assumed = report.assumptions.iter().find(|a| a.name == *flag);
    let usual = assumed.map_or("none", |a| a.value.as_str());
    let (label, usual) = (escape(label), escape(usual));
    push(
        html,
        format_args!(
            "<label><span>{label}</span><input data-flag=\"{flag}\" data-unit=\"{unit}\" \
             data-usual=\"{usual}\" placeholder=\"{usual}\">"
        ),
    );
    if let Some((low, high)) = decades {
        push(
            html,
            format_args!(
                "<input type=\"range\" min=\"{low}\" max=\"{high}\" step=\"any\" aria-label=\"{label}, slider\">"
            ),
        );
    }
    html.push_str("</label>\n");
}

fn pack(name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let failed = |source| crate::Error::io("pack", name, source);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    std::io::Write::write_all(&mut encoder, bytes).map_err(failed)?;
    encoder.finish().map_err(failed)
}

fn push(html: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = html.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::sample;

    #[test]
    fn the_policy_lets_this_script_run_and_no_other() {
        let live = Live {
            arguments: vec!["--law=</script><script>x".into()],
            files: vec![("a.json".into(), b"{}".to_vec())],
        };
        let parts = parts(&sample::report(), &live).unwrap().unwrap();
        let hash = STANDARD.encode(Sha256::digest(SCRIPT));
        assert!(parts.policy.contains(&format!("'sha256-{hash}'")), "{}", parts.policy);
        assert!(!parts.policy.contains("unsafe-inline"));
        assert!(parts.script.contains(&format!("<script>{SCRIPT}</script>")));
        assert_eq!(parts.script.matches("</script").count(), 4, "a flag ends no element");
        assert!(parts.controls.contains("placeholder=\"0.4\""), "{}", parts.controls);
    }

    #[test]
    fn what_is_too_long_makes_a_page_without_controls() {
        // What cannot be packed.
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()[7]
        });
        let long = noise.take(MOST_BYTES + (1 << 16)).collect();
        let live = Live { arguments: Vec::new(), files: vec![("a".into(), long)] };
        assert!(parts(&sample::report(), &live).unwrap().is_none());
    }
}
