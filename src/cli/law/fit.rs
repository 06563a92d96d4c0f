//! `law fit`: read runs, fit, print what the coefficients are worth, write the law file.

use std::path::PathBuf;

use clap::Args;

use crate::cli::law::wrapped;
use crate::cli::progress::Progress;
use crate::cli::{Output, output, parse};
use crate::law::fit::{
    self, Filter, Fit, FitOptions, FittedOptimum, HoldOut, Mapping, Reading, Runs, Spread,
};
use crate::law::{Variable, downstream};
use crate::report::grid::{Column, grid};
use crate::units::Flops;
use crate::{Error, Result, files};

mod errors;

/// Example for the help.
pub(super) const EXAMPLE: &str = "Example (the released runs of Clark et al. 2022):
  moe-frontier law fit curves.csv.gz --form clark2022 --run-column hyper_id --skip-empty \\
    --column n_active=dense_parameter_count --column experts=num_experts \\
    --column loss=loss_validation --column 'tokens=step*524288' --where step=249000 \\
    --where k=1 --where routing_frequency=0.5 --where flop_increase=1 \\
    --where router_type=Dense,S-Base --hold-out n_active --out clark.json
  moe-frontier law eval --law clark.json --experts 16 --n-active 1.3B

A file of runs, its tokens derived from compute (in FLOPs) and parameters:
  name,N,C,loss
  a,1e9,1.2e21,2.51
  b,3e9,1.2e21,2.43
  moe-frontier law fit runs.csv --form hoffmann2022 --column n_active=N \\
    --column 'tokens=C/(6*N)' --run-column name

Downstream error (columns of the released runs of Gadre et al. 2024):
  moe-frontier law fit runs.csv --form gadre2024 --where dataset=c4_original \\
    --column loss=loss_c4_val --column error=mean_error --out errors.json";

/// Training tokens beyond which a column is probably something else.
const MOST_TOKENS: f64 = 1e15;

/// Arguments of `law fit`.
#[derive(Args, Clone, Debug)]
pub struct FitArgs {
    /// CSV file of runs, one row a loss; gzip is read as well.
    #[arg(value_name = "RUNS.csv")]
    runs: PathBuf,

    /// Law whose form to fit: ludziejewski2025, yun2024, zhao2025, krajewski2024, clark2022, abnar2025,
    /// hoffmann2022 or familial2025; or gadre2024, downstream error (`error`) against loss, by least squares.
    #[arg(long, value_name = "FORM")]
    form: String,

    /// Where a variable comes from: `n_active=column`, `tokens=131e9` or a formula over columns such as
    /// `tokens=step*524288` or `tokens=C/(6*N)`; variables and `loss` without it are columns of that name.
    #[arg(long = "column", value_name = "NAME=FROM")]
    columns: Vec<Mapping>,

    /// Rows to take: `column=a,b`, `column>=1` or `column<=1`; all conditions must hold.
    #[arg(long = "where", value_name = "CONDITION")]
    filters: Vec<Filter>,

    /// Column that names the run of a row, when several rows are of one run.
    #[arg(long, value_name = "COLUMN")]
    run_column: Option<String>,

    /// Leave rows with an empty cell out instead of refusing the file.
    #[arg(long)]
    skip_empty: bool,

    /// Residual of ln L beyond which the loss function grows linearly.
    #[arg(long, default_value = "1e-3", value_parser = parse::quantity, value_name = "DELTA")]
    huber_delta: f64,

    /// Random starts of the search.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    starts: u32,

    /// Resamplings of the runs, for the spread of the coefficients.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    resamples: u32,

    /// Seed of starts and resamplings.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Also fit without some runs and predict them: a variable (its largest value is left out) or
    /// `variable=value`.
    #[arg(long, value_name = "VARIABLE[=VALUE]", value_parser = hold_out)]
    hold_out: Option<HoldOut>,

    /// Also give the best model of this training budget with its spread, for every expert count (or
    /// sparsity) of the runs.
    #[arg(long, value_parser = parse::train_flops, value_name = "C")]
    optimum_at: Option<f64>,

    /// Give the coefficients even when the runs do not tell them apart.
    #[arg(long)]
    force: bool,

    /// Write the law file, which `--law` takes.
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Replace the law file if it exists.
    #[arg(long, requires = "out")]
    overwrite: bool,
}

/// Parses `n_active` or `experts=32`.
fn hold_out(text: &str) -> Result<HoldOut, String> {
    let (name, value) = match text.split_once('=') {
        None => (text, None),
        Some((name, value)) => (name, Some(parse::quantity(value)?)),
    };
    let variable = Variable::ALL.into_iter().find(|v| v.name() == name.replace('-', "_"));
    let variable = variable.ok_or_else(|| format!("`{name}` is no variable, such as n_active"))?;
    Ok(value.map_or(HoldOut::Largest(variable), |value| HoldOut::Value(variable, value)))
}

/// The runs, with warnings of rows that count twice or not at all.
fn read(args: &FitArgs, variables: &[Variable]) -> Result<Runs> {
    let reading = Reading {
        response: fit::response(&args.form),
        mappings: args.columns.clone(),
        filters: args.filters.clone(),
        run_column: args.run_column.clone(),
        skip_empty: args.skip_empty,
    };
    let read = reading.read(&args.runs, variables)?;
    if let Some((line, first)) = read.repeated.first() {
        output::warn(&format!(
            "{} rows say what an earlier row says (line {line} repeats line {first}); each counts as a \
             run of its own",
            read.repeated.len()
        ));
    }
    if read.empty > 0 {
        output::warn(&format!("{} rows with an empty cell left out", read.empty));
    }
    Ok(read)
}

/// Fits and reports.
pub(super) fn run(args: &FitArgs, output: Output) -> Result<()> {
    if args.form == downstream::ID {
        return errors::run(args, output);
    }
    let variables = fit::variables(&args.form)?;
    if let Some(HoldOut::Largest(v) | HoldOut::Value(v, _)) = args.hold_out
        && !variables.contains(&v)
    {
        let reason = format!("`{}` is no variable of {}", v.name(), args.form);
        return Err(Error::usage("--hold-out", reason));
    }
    if args.optimum_at.is_some() {
        fit::check_optimum(&args.form)?;
    }
    if let Some(out) = &args.out {
        files::check_writable(out, args.overwrite)?;
    }
    let read = read(args, variables)?;
    if variables.contains(&Variable::Tokens) {
        let most = read.runs.iter().map(|r| r.value(Variable::Tokens)).fold(0.0, f64::max);
        if most > MOST_TOKENS {
            output::warn(&format!(
                "tokens reach {most:.1e}, more than any training run; is the column compute (then tokens=C/(6*N))?"
            ));
        }
    }
    let options = FitOptions {
        huber_delta: args.huber_delta,
        starts: args.starts as usize,
        resamples: args.resamples as usize,
        seed: args.seed,
        force: args.force,
        optimum_at: args.optimum_at.map(Flops),
    };
    let source = format!("fit of {} to {}", args.form, args.runs.display());
    let what = format!("fitting {} to {} losses", args.form, read.runs.len());
    let total = fit::steps(&options, args.hold_out) as u64;
    let mut progress = Progress::new(&what, total);
    let fit =
        fit::fit(&args.form, &read.runs, &source, &options, args.hold_out, &mut |done, part| {
            progress.update(done as u64, total, part);
        });
    progress.finish();
    let fit = fit?;
    for warning in &fit.warnings {
        output::warn(warning);
    }
    if let Some(out) = &args.out {
        let mut bytes = serde_json::to_vec_pretty(&fit.law)
            .map_err(|e| Error::io("serialise", out, std::io::Error::other(e)))?;
        bytes.push(b'\n');
        files::write_atomic(out, &bytes, args.overwrite)?;
    }
    output.result(&fit.law, || text(&fit))
}

fn text(fit: &Fit) -> String {
    let mut text = String::new();
    for line in [
        format!("{} losses of {} runs, Huber delta {}", fit.rows, fit.runs, fit.huber_delta),
        format!(
            "error of ln L: root mean square {:.5}, largest {:.5}; Huber sum {:.4e}",
            fit.rmsle, fit.largest_residual, fit.huber_sum
        ),
        format!(
            "{} of {} starts ended within 1 % of the best; condition number {:.1e}",
            fit.starts_landed, fit.starts, fit.condition
        ),
    ] {
        text.push_str(&wrapped("", &line));
    }
    text.push('\n');
    text.push_str(&coefficients(fit));
    let sizes: Vec<Vec<String>> = fit
        .by_size
        .iter()
        .map(|s| vec![format!("{:.4e}", s.n), s.runs.to_string(), format!("{:.5}", s.rmsle)])
        .collect();
    let columns = [Column::numbers("N"), Column::numbers("rows"), Column::numbers("rms error")];
    text.push('\n');
    text.push_str(&grid(&columns, &sizes, output::width()));
    text.push_str(&optima(&fit.optima));
    if let Some(held) = &fit.held_out {
        let sentence = format!(
            "without the {} rows of {} = {} the error on them is {:.5}, on the others {:.5}",
            held.runs,
            held.variable.name(),
            held.value,
            held.rmsle,
            held.rmsle_fitted
        );
        text.push_str(&wrapped("\nheld out  ", &sentence));
    }
    text
}

/// Each coefficient with its quantiles over the resamplings.
fn coefficients(fit: &Fit) -> String {
    let number = |v: f64| format!("{v:.6}");
    let rows: Vec<Vec<String>> = fit
        .coefficients
        .iter()
        .map(|c| {
            let of = |quantile: fn(&Spread) -> f64| {
                c.spread.as_ref().map_or_else(|| "-".to_owned(), |s| number(quantile(s)))
            };
            let note = if c.at_bound { "at a bound" } else { "" };
            vec![
                c.name.clone(),
                number(c.value),
                of(|s| s.p5),
                of(|s| s.p50),
                of(|s| s.p95),
                note.to_owned(),
            ]
        })
        .collect();
    let mut columns = vec![
        Column::words("coefficient"),
        Column::numbers("value"),
        Column::numbers("5 %").left_out(1),
        Column::numbers("50 %").left_out(2),
        Column::numbers("95 %").left_out(1),
    ];
    if fit.coefficients.iter().any(|c| c.at_bound) {
        columns.push(Column::words("note"));
    }
    grid(&columns, &rows, output::width())
}

/// The best models of the budget asked about, each value with its 5 to 95 % over the resamplings.
fn optima(optima: &[FittedOptimum]) -> String {
    let Some(first) = optima.first() else {
        return String::new();
    };
    let what = first.of.map_or_else(String::new, |of| of.name().clone());
    let title = format!(
        "best models at {:e} training FLOPs, with 5 to 95 % in brackets",
        first.train_flops
    );
    let mut text = wrapped("\n", &title);
    let large = |v: f64| format!("{v:.3e}");
    let small = |v: f64| format!("{v:.4}");
    let cell = |value: Option<f64>, spread: Option<Spread>, text: &dyn Fn(f64) -> String| {
        let value = value.map_or_else(|| "-".to_owned(), text);
        spread
            .map_or_else(|| value.clone(), |s| format!("{value} [{}, {}]", text(s.p5), text(s.p95)))
    };
    let rows: Vec<Vec<String>> = optima
        .iter()
        .map(|o| {
            vec![
                o.value.map_or_else(String::new, |v| v.to_string()),
                cell(o.n_active, o.n_active_spread, &large),
                cell(Some(o.tokens), o.tokens_spread, &large),
                cell(Some(o.loss_nats), o.loss_spread, &small),
            ]
        })
        .collect();
    let columns = [
        Column::words(what),
        Column::numbers("active parameters"),
        Column::numbers("training tokens"),
        Column::numbers("loss"),
    ];
    text.push_str(&grid(&columns, &rows, output::width()));
    let worst = optima.iter().map(|o| o.extrapolation).fold(1.0, f64::max);
    if worst > 1.0 {
        text.push_str(&wrapped("", &format!("up to {worst:.1} times outside the fitted runs")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hold_outs_are_a_variable_or_a_value_of_one() {
        assert_eq!(hold_out("n_active"), Ok(HoldOut::Largest(Variable::NActive)));
        assert_eq!(hold_out("experts=32"), Ok(HoldOut::Value(Variable::Experts, 32.0)));
        for bad in ["", "size", "experts=", "experts=x"] {
            assert!(hold_out(bad).is_err(), "{bad}");
        }
    }
}
