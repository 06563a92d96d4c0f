//! `law list`, `law eval`, `law optimal`: what the laws are and what they say.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::bounds::Quantity;
use crate::cli::{Output, output, parse};
use crate::law::downstream::{Downstream, Predicted};
use crate::law::others::{WORKS, Work};
use crate::law::{self, Evaluation, Inputs, LawInfo, LossLaw, Question, Variable};
use crate::report::grid::{Column, grid, hanging};
use crate::units::{Flops, Nats, count};
use crate::{Error, Result};

mod claims;
mod fit;
mod plot;

/// The law commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the laws with their variables, fitted ranges and sources.
    #[command(after_help = "Example:\n  moe-frontier law list --details")]
    List(ListArgs),
    /// Print the loss of one model.
    #[command(after_help = "Example:\n  moe-frontier law eval --law ludziejewski2025 --experts 8 \
                            --n-active 1B --tokens 20B")]
    Eval(EvalArgs),
    /// Print the best size and training tokens for a budget, or the cheapest training for a loss.
    #[command(
        after_help = "Examples:\n  moe-frontier law optimal --experts 8 --train-flops 1e21\n  \
                            moe-frontier law optimal --experts 8 --target-loss 2.3\n  \
                            moe-frontier law optimal --experts 8 --target-loss 2.3 --served-tokens 1T"
    )]
    Optimal(OptimalArgs),
    /// Fit the coefficients of a law's form to training runs.
    #[command(after_help = fit::EXAMPLE)]
    Fit(fit::FitArgs),
    /// Print what the seed papers claim beside what is computed here.
    #[command(after_help = claims::EXAMPLE)]
    Claims(claims::ClaimsArgs),
    /// Draw loss against experts, and best size and tokens against the training budget.
    #[command(after_help = plot::EXAMPLE)]
    Plot(plot::PlotArgs),
}

/// Arguments of `law list`.
#[derive(Args, Clone, Copy, Debug)]
pub struct ListArgs {
    /// Print forms, variables, sources and limits, and related work.
    #[arg(long)]
    details: bool,
}

/// Which law.
#[derive(Args, Clone, Debug)]
pub struct LawArgs {
    /// Law, as `law list` names it, or the path of a law file.
    #[arg(long, default_value = "ludziejewski2025", value_name = "LAW|FILE")]
    pub law: String,

    /// Set of coefficients, for laws that have several.
    #[arg(long, value_name = "SET")]
    pub variant: Option<String>,
}

impl LawArgs {
    fn load(&self) -> Result<Box<dyn LossLaw>> {
        law::load(&self.law, self.variant.as_deref())
    }
}

/// The variables that describe a model apart from its training; each law takes its own.
#[derive(Args, Clone, Copy, Debug)]
pub struct ModelArgs {
    /// Experts per layer; 1 is dense.
    #[arg(long, value_parser = parse::quantity, value_name = "E")]
    pub experts: Option<f64>,

    /// All parameters.
    #[arg(long, value_parser = parse::quantity, value_name = "N")]
    pub n_total: Option<f64>,

    /// Parameters of the dense model of the same depth and width.
    #[arg(long, value_parser = parse::quantity, value_name = "N")]
    pub n_dense: Option<f64>,

    /// Granularity, in the definition of the law's paper.
    #[arg(long, value_parser = parse::quantity, value_name = "G")]
    pub granularity: Option<f64>,

    /// Experts that one token visits.
    #[arg(long, value_parser = parse::quantity, value_name = "K")]
    pub active_experts: Option<f64>,

    /// Share of the activated experts that all tokens share.
    #[arg(long, value_parser = parse::non_negative, value_name = "S")]
    pub shared_ratio: Option<f64>,

    /// Share of the experts that a token does not visit.
    #[arg(long, value_parser = parse::non_negative, value_name = "S")]
    pub sparsity: Option<f64>,

    /// Exits of one trunk, each a model to serve.
    #[arg(long, value_parser = parse::quantity, value_name = "G")]
    pub exits: Option<f64>,
}

impl ModelArgs {
    fn pairs(&self) -> impl Iterator<Item = (Variable, f64)> + use<> {
        [
            (Variable::Experts, self.experts),
            (Variable::NTotal, self.n_total),
            (Variable::NDense, self.n_dense),
            (Variable::Granularity, self.granularity),
            (Variable::ActiveExperts, self.active_experts),
            (Variable::SharedRatio, self.shared_ratio),
            (Variable::Sparsity, self.sparsity),
            (Variable::Exits, self.exits),
        ]
        .into_iter()
        .filter_map(|(variable, value)| Some((variable, value?)))
    }
}

/// Arguments of `law eval`.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    #[command(flatten)]
    law: LawArgs,
    #[command(flatten)]
    model: ModelArgs,

    /// Parameters that one token meets.
    #[arg(long, value_parser = parse::quantity, value_name = "N")]
    n_active: Option<f64>,

    /// Training tokens.
    #[arg(long, value_parser = parse::quantity, value_name = "D")]
    tokens: Option<f64>,

    /// Training FLOPs, for the laws that take them instead of size and tokens.
    #[arg(long, value_parser = parse::quantity, value_name = "C")]
    train_flops: Option<f64>,

    #[command(flatten)]
    downstream: DownstreamArgs,
}

/// What the loss means for tasks.
#[derive(Args, Clone, Debug)]
pub struct DownstreamArgs {
    /// Also give the downstream error at the loss, by a file that `law fit --form gadre2024` wrote on runs of
    /// the law's own tokenizer and corpus.
    #[arg(long, value_name = "FILE")]
    downstream: Option<PathBuf>,
}

impl DownstreamArgs {
    fn load(&self) -> Result<Option<Downstream>> {
        self.downstream.as_deref().map(Downstream::load).transpose()
    }
}

/// Arguments of `law optimal`.
#[derive(Args, Clone, Debug)]
pub struct OptimalArgs {
    #[command(flatten)]
    law: LawArgs,
    #[command(flatten)]
    model: ModelArgs,

    /// Training budget in FLOPs.
    #[arg(long, value_parser = parse::train_flops, value_name = "C")]
    #[arg(required_unless_present = "target_loss", conflicts_with = "target_loss")]
    train_flops: Option<f64>,

    /// Loss to reach in nats per token, with as little training as possible.
    #[arg(long, value_parser = parse::loss, value_name = "NATS")]
    target_loss: Option<f64>,

    /// Tokens served over the model's life, prompts included, at 2 FLOPs per active parameter: the
    /// budget then holds training and serving, and a target loss is reached with the fewest of both.
    #[arg(long, value_parser = parse::corpus, value_name = "D")]
    served_tokens: Option<f64>,

    #[command(flatten)]
    downstream: DownstreamArgs,
}

/// Runs a law command.
///
/// # Errors
/// Whatever the law refuses.
pub fn run(command: Command, output: Output) -> Result<()> {
    match command {
        Command::List(args) => list(args, output),
        Command::Eval(args) => eval(&args, output),
        Command::Optimal(args) => optimal(&args, output),
        Command::Fit(args) => fit::run(&args, output),
        Command::Claims(args) => claims::run(&args, output),
        Command::Plot(args) => plot::run(&args, output),
    }
}

#[derive(Serialize)]
struct ListDocument {
    schema: &'static str,
    schema_version: &'static str,
    laws: Vec<LawInfo>,
    works: [Work; WORKS.len()],
}

fn list(args: ListArgs, output: Output) -> Result<()> {
    let laws = law::infos()?;
    let document =
        ListDocument { schema: "moe-frontier/law-list", schema_version: "1.0", laws, works: WORKS };
    output.result(&document, || {
        if !args.details {
            return summary(&document.laws, output::width());
        }
        let laws: Vec<String> = document.laws.iter().map(describe).collect();
        laws.join("\n") + &works()
    })
}

/// One row for each law: whether it ranks, and the ranges of its runs.
fn summary(laws: &[LawInfo], width: usize) -> String {
    let ranks = |info: &LawInfo| law::SCALING_IDS.contains(&info.id.as_str());
    let answer = format!(
        "{} loss laws; {} of them rank (`rank --law`), the first by default",
        laws.len(),
        laws.iter().filter(|info| ranks(info)).count()
    );
    let range = |info: &LawInfo, variable: Variable| {
        let found = info.ranges.iter().find(|r| r.variable == variable);
        found.map_or_else(
            || "-".to_owned(),
            |r| {
                let end = |v: Option<f64>| v.map_or_else(|| "?".to_owned(), count_short);
                format!("{} to {}", end(r.low), end(r.high))
            },
        )
    };
    let rows: Vec<Vec<String>> = laws
        .iter()
        .map(|info| {
            vec![
                info.id.clone(),
                if ranks(info) { "yes" } else { "no" }.to_owned(),
                range(info, Variable::Experts),
                range(info, Variable::NActive),
                range(info, Variable::Tokens),
            ]
        })
        .collect();
    let columns = [
        Column::words("law"),
        Column::words("ranks"),
        Column::numbers("experts").left_out(1),
        Column::numbers("active params").left_out(2),
        Column::numbers("tokens").left_out(3),
    ];
    hanging("Answer  ", &answer, width)
        + &grid(&columns, &rows, width)
        + &hanging(
            "Next    ",
            "--details (form, variables, sources, what each cannot answer)",
            width,
        )
}

/// A number in few characters: whole below a million.
fn count_short(value: f64) -> String {
    if value < 1e4 { format!("{value}") } else { count(value) }
}

/// What is carried of works that are no laws of this list, and why nothing of the others.
fn works() -> String {
    let mut text = String::from("\nBeside the laws\n");
    for work in WORKS {
        let used = work.used_as.map_or_else(
            || "nothing to compute here: ".to_owned(),
            |used| format!("used as {used}: "),
        );
        let sentence = format!("{} (arXiv {}); {used}{}", work.title, work.arxiv, work.note);
        text.push_str(&wrapped("  - ", &sentence));
    }
    text
}

/// A paragraph about one law.
fn describe(info: &LawInfo) -> String {
    let mut text = format!("{}\n", info.id);
    text.push_str(&wrapped("  ", &info.title));
    text.push_str(&wrapped("  ", &info.source));
    let mut line = |label: &str, value: &str| {
        text.push_str(&wrapped(&format!("  {label:<10}"), value));
    };
    line("form", &info.form);
    line("N", &info.size);
    line("closure", &info.closure);
    line("fitted to", &info.fitted_to);
    let variables: Vec<String> = info
        .variables
        .iter()
        .map(|v| {
            let optional = if v.optional { ", optional" } else { "" };
            format!("{} ({}: {}{optional})", v.name.flag(), v.symbol, v.meaning)
        })
        .collect();
    line("takes", &variables.join("; "));
    if !info.variants.is_empty() {
        line("sets", &format!("--variant {}", info.variants.join(", ")));
    }
    for refusal in &info.cannot {
        line("cannot", refusal);
    }
    text
}

/// A label and a value as wide as the terminal, continued under the value.
pub(super) fn wrapped(label: &str, value: &str) -> String {
    hanging(label, value, output::width())
}

#[derive(Serialize)]
struct EvaluationDocument {
    schema: &'static str,
    schema_version: &'static str,
    #[serde(flatten)]
    evaluation: Evaluation,
    #[serde(skip_serializing_if = "Option::is_none")]
    downstream: Option<Predicted>,
}

fn eval(args: &EvalArgs, output: Output) -> Result<()> {
    let law = args.law.load()?;
    let own = [
        (Variable::NActive, args.n_active),
        (Variable::Tokens, args.tokens),
        (Variable::TrainFlops, args.train_flops),
    ];
    let own = own.into_iter().filter_map(|(variable, value)| Some((variable, value?)));
    let inputs = Inputs::new(args.model.pairs().chain(own))?;
    let downstream = args.downstream.load()?;
    let evaluation = law::ask(law.as_ref(), &inputs, Question::Loss)?;
    print("moe-frontier/law-eval", evaluation, downstream.as_ref(), output)
}

fn optimal(args: &OptimalArgs, output: Output) -> Result<()> {
    let law = args.law.load()?;
    let inputs = Inputs::new(args.model.pairs())?;
    let question = match (args.train_flops, args.target_loss, args.served_tokens) {
        (Some(budget), None, None) => Question::Budget(Flops(budget)),
        (None, Some(loss), None) => Question::Target(Nats(loss)),
        (Some(budget), None, Some(served)) => Question::LifetimeBudget(Flops(budget), served),
        (None, Some(loss), Some(served)) => Question::LifetimeTarget(Nats(loss), served),
        _ => return Err(Error::usage("--train-flops", "give it or --target-loss, one of the two")),
    };
    let downstream = args.downstream.load()?;
    let evaluation = law::ask(law.as_ref(), &inputs, question)?;
    print("moe-frontier/law-optimal", evaluation, downstream.as_ref(), output)
}

fn print(
    schema: &'static str,
    evaluation: Evaluation,
    downstream: Option<&Downstream>,
    output: Output,
) -> Result<()> {
    // Far outside of its runs a formula can say anything.
    Quantity::LossNats
        .check(evaluation.loss_nats)
        .map_err(|reason| Error::unfit(evaluation.law.clone(), format!("says no {reason}")))?;
    if let Some(worst) = evaluation.outside.iter().max_by(|a, b| a.factor.total_cmp(&b.factor)) {
        output::warn(&format!(
            "{} is {:.3e}, {} times past what {} was fitted to ({:.3e})",
            worst.variable.name(),
            worst.value,
            times(worst.factor),
            evaluation.law,
            worst.limit
        ));
    }
    let downstream = downstream.map(|fit| fit.at(evaluation.loss_nats));
    let document = EvaluationDocument { schema, schema_version: "1.1", evaluation, downstream };
    output.result(&document, || text(&document.evaluation, document.downstream))
}

/// A factor in a few digits, however large.
fn times(factor: f64) -> String {
    if factor < 1e4 { format!("{factor:.1}") } else { format!("{factor:.1e}") }
}

fn text(e: &Evaluation, downstream: Option<Predicted>) -> String {
    let number = |value: Option<f64>| {
        value.map_or_else(|| "the law does not say".to_owned(), |v| format!("{v:.4e}"))
    };
    let mut lines = vec![
        ("law", e.law.clone()),
        ("loss", format!("{:.5} nats per token", e.loss_nats)),
        ("active parameters", number(e.n_active)),
        ("total parameters", number(e.n_total)),
        ("training tokens", format!("{:.4e}", e.tokens)),
        ("training FLOPs", number(e.train_flops)),
    ];
    if let Some(flops) = e.lifetime_flops {
        lines.push(("with serving FLOPs", format!("{flops:.4e}")));
    }
    for (label, value) in
        [("experts", e.experts), ("granularity", e.granularity), ("sparsity", e.sparsity)]
    {
        if let Some(value) = value {
            lines.push((label, value.to_string()));
        }
    }
    if let Some(value) = e.exits {
        lines.push(("exits", value.to_string()));
    }
    if let Some(Predicted { error, lo, hi, is_outside }) = downstream {
        let where_from = if is_outside { ", outside the losses of its runs" } else { "" };
        lines.push(("downstream error", format!("{error:.3} ({lo:.3} to {hi:.3}{where_from})")));
    }
    let range = if e.in_fit_range {
        "inside".to_owned()
    } else {
        format!("outside, by a factor of up to {:.2}", e.extrapolation)
    };
    lines.push(("fitted range", range));
    let lines: Vec<String> =
        lines.into_iter().map(|(label, value)| format!("{label:<18} {value}")).collect();
    let mut text = lines.join("\n") + "\n";
    for note in &e.notes {
        text.push_str(&wrapped(&format!("{:<19}", "note"), note));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_a_row_for_each_law() {
        let laws = law::infos().unwrap();
        let text = summary(&laws, 80);
        assert!(laws.iter().all(|info| text.contains(&info.id)), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_json_starts_with_its_schema_and_has_the_contracts_fields() {
        let law = law::load("ludziejewski2025", None).unwrap();
        let inputs = Inputs::new([(Variable::Experts, 8.0)]).unwrap();
        let evaluation = law::ask(law.as_ref(), &inputs, Question::Budget(Flops(1e21))).unwrap();
        let document = EvaluationDocument {
            schema: "moe-frontier/law-optimal",
            schema_version: "1.1",
            evaluation,
            downstream: None,
        };
        let json = serde_json::to_string(&document).unwrap();
        assert!(
            json.starts_with(
                r#"{"schema":"moe-frontier/law-optimal","schema_version":"1.1","law""#
            )
        );
        for field in ["loss_nats", "n_active", "n_total", "tokens", "train_flops", "in_fit_range"] {
            assert!(json.contains(&format!("\"{field}\":")), "{field} in {json}");
        }
    }
}
