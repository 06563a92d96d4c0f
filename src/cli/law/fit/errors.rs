//! `law fit --form gadre2024`: downstream error against loss.

use super::{FitArgs, read, wrapped};
use crate::cli::output::{self, Output};
use crate::law::downstream::{Coefficients, Downstream};
use crate::law::fit::{FitOptions, downstream};
use crate::report::grid::{Column, grid};
use crate::stats::quantile;
use crate::{Error, Result, files};

/// Fits and reports.
pub(super) fn run(args: &FitArgs, output: Output) -> Result<()> {
    refuse_unused(args)?;
    if let Some(out) = &args.out {
        files::check_writable(out, args.overwrite)?;
    }
    let runs = read(args, &downstream::VARIABLES)?.runs;
    let source = format!("fit of {} to {}", args.form, args.runs.display());
    let fit = downstream::fit(&runs, &source, args.resamples as usize, args.seed)?;
    if let Some(out) = &args.out {
        let mut bytes = serde_json::to_vec_pretty(&fit)
            .map_err(|e| Error::io("serialise", out, std::io::Error::other(e)))?;
        bytes.push(b'\n');
        files::write_atomic(out, &bytes, args.overwrite)?;
    }
    output.result(&fit, || text(&fit))
}

/// Least squares have no Huber loss and no starts, and the lowest losses are always held out.
fn refuse_unused(args: &FitArgs) -> Result<()> {
    let usual = FitOptions::default();
    let unused = [
        ("--huber-delta", (args.huber_delta - usual.huber_delta).abs() > 0.0),
        ("--starts", args.starts as usize != usual.starts),
        ("--hold-out", args.hold_out.is_some()),
        ("--optimum-at", args.optimum_at.is_some()),
        ("--force", args.force),
    ];
    match unused.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Error::usage(flag, format!("has no meaning for {}", args.form))),
        None => Ok(()),
    }
}

fn text(fit: &Downstream) -> String {
    let (low, high) = fit.loss_range_nats;
    let mut text = wrapped(
        "",
        &format!(
            "{} runs with losses of {low:.3} to {high:.3} nats; root mean square error {:.4}; on the quarter \
             with the lowest losses, predicted by the others, {:.4}",
            fit.runs, fit.rmse, fit.held_out_rmse
        ),
    );
    text.push('\n');
    text.push_str(&coefficients(fit));
    text.push_str(&wrapped(
        "\nNext    ",
        "law eval --downstream FILE, rank --downstream FILE with --out FILE given here; of use where the loss \
         of the law is that of these runs",
    ));
    text
}

fn coefficients(fit: &Downstream) -> String {
    type Part = (&'static str, fn(&Coefficients) -> f64);
    let parts: [Part; 3] = [("epsilon", |c| c.epsilon), ("k", |c| c.k), ("gamma", |c| c.gamma)];
    let rows: Vec<Vec<String>> = parts
        .into_iter()
        .map(|(name, of)| {
            let mut drawn: Vec<f64> = fit.draws.iter().map(of).collect();
            drawn.sort_by(f64::total_cmp);
            let at = |share| quantile(&drawn, share).map_or("-".to_owned(), |v| format!("{v:.4}"));
            vec![name.into(), format!("{:.4}", of(&fit.coefficients)), at(0.05), at(0.5), at(0.95)]
        })
        .collect();
    let columns = [
        Column::words("coefficient"),
        Column::numbers("value"),
        Column::numbers("5 %").left_out(1),
        Column::numbers("50 %").left_out(2),
        Column::numbers("95 %").left_out(1),
    ];
    grid(&columns, &rows, output::width())
}
