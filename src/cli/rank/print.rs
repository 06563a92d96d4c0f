//! What `rank` prints: the first screen, or every table.

use super::RankArgs;
use crate::ask;
use crate::ask::rank::ModelRead;
use crate::cli::output::{colour, model_lines, width};
use crate::plan::headline::headline;
use crate::plan::outcome::RankReport;
use crate::report::{Frame, rank_details, rank_screen};
use crate::units::Flops;

/// Device whose shipped tables are asked beside this machine.
const BESIDE: &str = "h100";
/// Budget at which expert counts compete there, in FLOPs: no count is the cheapest in half of the draws.
const BESIDE_FLOPS: f64 = 1e23;
/// Draws of that answer: a probability is good to 0.03 with these.
const BESIDE_DRAWS: usize = 200;

/// The text of an answer whose results are `files` files.
pub(super) fn text(
    args: &RankArgs,
    report: &RankReport,
    model: Option<&ModelRead>,
    files: usize,
) -> String {
    let model = model.map(|m| model_lines(&m.summary, &m.assumed)).unwrap_or_default();
    let out = args.out.display();
    let written = format!("{out}/report.html and {files} files beside it");
    if args.details {
        return format!("{model}{}\nPage: {written}\n", rank_details(report, width(), colour()));
    }
    let beside = beside(args);
    let next = next(args);
    let frame = Frame {
        width: width(),
        colour: colour(),
        plot: args.plot,
        model: &model,
        written: &written,
        next: &next,
        beside: beside.as_deref(),
    };
    rank_screen(report, &frame)
}

/// What the same question says on shipped tables, for those who asked about this machine and named no
/// budget.
fn beside(args: &RankArgs) -> Option<String> {
    let is_asked = args.is_of_this_machine()
        && args.device.is_none()
        && args.train_flops.is_none()
        && args.target_loss.is_none();
    if !is_asked {
        return None;
    }
    let mut there = args.options();
    there.source.profile = vec![BESIDE.into()];
    there.train_flops = Some(Flops(BESIDE_FLOPS));
    there.draws = there.draws.min(BESIDE_DRAWS);
    let said = match ask::rank(&there) {
        Ok(found) => headline(&found.report).unwrap_or_else(|| "no answer".into()),
        Err(reason) => reason.to_string(),
    };
    let flags = format!("--profile {BESIDE} --train-flops {BESIDE_FLOPS:e}");
    Some(format!("on an H100 at {} ({flags}): {said}", Flops(BESIDE_FLOPS)))
}

/// What to try next.
fn next(args: &RankArgs) -> String {
    let more = if args.rate.is_none() {
        "--rate 20"
    } else if args.lifetime_tokens.is_none() {
        "--lifetime-tokens 1T"
    } else {
        "--weights fp8"
    };
    format!("rank --from {}/rank.json --details; {more}; explain regret", args.out.display())
}
