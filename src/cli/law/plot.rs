//! `law plot`: loss against experts, and best size and tokens against the budget, as pictures.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::cli::{Output, output, parse};
use crate::law::sweep::{Sweep, sweep};
use crate::{Result, files, law, report};

/// Example for the help.
pub(super) const EXAMPLE: &str = "Examples:
  moe-frontier law plot --out plots
  moe-frontier law plot --law fit.json --experts 1,8,64 --train-flops 1e20,1e22 --out plots";

/// Arguments of `law plot`.
#[derive(Args, Clone, Debug)]
pub struct PlotArgs {
    /// Law that ranks expert counts, or the path of a law file.
    #[arg(long, default_value = "ludziejewski2025", value_name = "LAW|FILE")]
    law: String,

    /// Expert counts; 1 is dense.
    #[arg(long, default_value = "1-32*2", value_parser = parse::count_list)]
    experts: parse::CountList,

    /// Training budgets: a curve each over the expert counts, and the ends of the curves over budgets.
    #[arg(long, default_value = "1e19,1e20,1e21,1e22", value_delimiter = ',')]
    #[arg(value_parser = parse::train_flops, value_name = "C")]
    train_flops: Vec<f64>,

    /// Folder for the plots and their CSV files; an older one is replaced as a whole.
    #[arg(long, default_value = "law-plots", value_name = "FOLDER")]
    out: PathBuf,

    /// Also use a folder that holds files of others.
    #[arg(long)]
    overwrite: bool,
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    #[serde(flatten)]
    sweep: Sweep,
    files: Vec<PathBuf>,
}

pub(super) fn run(args: &PlotArgs, output: Output) -> Result<()> {
    let law = law::load_scaling(&args.law)?;
    let mut experts = args.experts.0.clone();
    experts.sort_unstable();
    experts.dedup();
    // Tried before the work; dropped, it leaves nothing.
    drop(files::ResultFolder::begin(&args.out, &["law_loss_by_experts.csv"], args.overwrite)?);
    let sweep = sweep(&law, &args.law, &experts, &args.train_flops)?;
    let outside = sweep.by_experts.iter().flatten().filter(|p| !p.in_fit_range).count();
    if outside > 0 {
        output::warn(&format!(
            "{outside} of {} models over the expert counts lie outside the law's runs; they are drawn \
             hollow",
            sweep.by_experts.iter().map(Vec::len).sum::<usize>()
        ));
    }
    let files = report::write_law_plots(&sweep, &args.out, args.overwrite)?;
    let document =
        Document { schema: "moe-frontier/law-plot", schema_version: "1.0", sweep, files };
    let names: Vec<String> =
        document.files.iter().map(|path| format!("{}\n", path.display())).collect();
    output.verbatim(&document, &names.concat())
}
