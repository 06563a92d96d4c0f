//! The flags of `rank`: parsed only, nothing is resolved here.

use std::path::PathBuf;

use clap::Args;

use super::mfu::mfu;
use crate::ask::{DevicePrice, Mfu, RankOptions};
use crate::cli::parse::{
    CountList, bits, corpus, count_list, duration, loss, non_negative, price, quantity, rate,
    ratio, tokens, train_flops, usd_per_hour, usd_per_million, utilisation,
};
use crate::cli::profile::ProfileArgs;
use crate::law::precision::{FULL_BITS, TrainedBits};
use crate::plan::familial::Exits;
use crate::report::TerminalPlot;
use crate::units::{Flops, Nats, Seconds, UsdPerHour, UsdPerMillionTokens};
use crate::workload::RoutingKind;

/// Rank expert counts by total cost: training plus serving.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  \
    moe-frontier rank                               measure this machine and rank at a fitting budget\n  \
    moe-frontier rank --train-flops 1e21 --profile h100 --rate 20 --tpot 50ms\n  \
    moe-frontier rank --profile profile.json --target-loss 2.4 --lifetime-tokens 1T\n  \
    moe-frontier rank --train-flops 1e22 --profile h100 --rate 100 --max-serve-cost 0.30")]
pub struct RankArgs {
    /// Where latencies come from.
    #[command(flatten)]
    pub source: ProfileArgs,
    /// Device to price, if it is not the one of the first profile.
    #[arg(long, value_name = "NAME|FILE", help_heading = "Measurements")]
    pub device: Option<String>,
    /// Time that measuring may take without `--profile`.
    #[arg(long, default_value = "60s", value_parser = duration, help_heading = "Measurements")]
    pub time_budget: Seconds,
    /// Measure this machine even if a profile of it exists.
    #[arg(long, help_heading = "Measurements")]
    pub measure_again: bool,

    /// Loss laws, the first of which lists its candidates: identifiers that `law list` shows, files that
    /// `law fit` wrote, or all for every published law that ranks.
    #[arg(
        long,
        default_value = "all",
        value_name = "NAMES|FILES",
        help_heading = "What is compared"
    )]
    pub law: String,
    /// Weights of laws in their mixture, such as abnar2025:2,zhao2025:0; or runs:FILE.csv, a file with
    /// columns `experts`, `n_active`, `tokens` and `loss`, by the laws' errors on its largest runs
    /// [default: 1 each].
    #[arg(long, value_name = "NAME:WEIGHT|runs:FILE", help_heading = "What is compared")]
    pub law_weights: Option<String>,
    /// Expert counts; 1 is the dense model beside them [default: 1,4,8,16,32].
    #[arg(long, value_parser = count_list, help_heading = "What is compared")]
    pub experts: Option<CountList>,
    /// Training budget whose loss is to be reached, such as 1e21 [default: the largest power of ten
    /// whose models fit one device].
    #[arg(long, value_parser = train_flops, conflicts_with = "target_loss", help_heading = "What is compared")]
    pub train_flops: Option<f64>,
    /// Loss to reach, in nats per token.
    #[arg(long, value_parser = loss, help_heading = "What is compared")]
    pub target_loss: Option<f64>,
    /// Expert count whose loss-optimal model at the budget sets the loss [default: 4, or the fewest].
    #[arg(long, help_heading = "What is compared")]
    pub reference_experts: Option<usize>,
    /// Tokens of the training corpus; beyond them it is repeated, which is worth less [default: no
    /// limit].
    #[arg(long, value_parser = corpus, help_heading = "What is compared")]
    pub unique_tokens: Option<f64>,
    /// Maximum training tokens per active parameter [default: 1000].
    #[arg(long, value_parser = ratio, help_heading = "What is compared")]
    pub max_tokens_per_param: Option<f64>,
    /// Maximum training FLOPs, as a multiple of the budget [default: 3.5].
    #[arg(long, value_parser = ratio, help_heading = "What is compared")]
    pub max_train_factor: Option<f64>,
    /// Weights: bf16, fp16, fp8, int8, int4, mxfp4 or nvfp4 [default: those of a profile of this
    /// program, else bf16].
    #[arg(long, value_name = "FORMAT", help_heading = "What is compared")]
    pub weights: Option<String>,
    /// Average bits of an expert weight where precisions are mixed, such as 2.54: bytes follow,
    /// latencies are rooflines, and the loss as served rises with the tokens trained on.
    #[arg(long, value_parser = bits, value_name = "BITS", help_heading = "What is compared")]
    pub weight_bits: Option<f64>,
    /// Bits that models are trained in: of weights, or of weights, activations and cache, such as 8,8,16;
    /// activations have those of the weights unless named [default: 16].
    #[arg(long, value_parser = trained_bits, value_name = "BITS[,BITS[,BITS]]", help_heading = "What is compared")]
    pub train_bits: Option<TrainedBits>,
    /// Architecture whose size and expert count vary: a preset, a config.json, a folder or a Hub id
    /// [default: the law's own models].
    #[arg(long, value_name = "NAME|FILE|ID", help_heading = "Architecture")]
    pub model: Option<String>,
    /// Routed experts per token, at most the expert count [default: the architecture's].
    #[arg(long, help_heading = "Architecture")]
    pub top_k: Option<usize>,
    /// Experts into which the width of a feed-forward block is divided: `--top-k 8 --granularity 8` is
    /// as wide for a token as top-1 [default: the architecture's].
    #[arg(long, value_parser = ratio, help_heading = "Architecture")]
    pub granularity: Option<f64>,
    /// Experts of the same width that every token visits [default: the architecture's].
    #[arg(long, help_heading = "Architecture")]
    pub shared: Option<usize>,
    /// Query heads per key/value head; 1 is multi-head attention [default: 8, or the model's].
    #[arg(long, value_parser = ratio, help_heading = "Architecture")]
    pub kv_group: Option<f64>,
    /// Hidden size over layers [default: the architecture's].
    #[arg(long, value_parser = ratio, help_heading = "Architecture")]
    pub aspect: Option<f64>,

    /// Exits of one trunk, each a model to serve: also show what the first law's recommended model costs as
    /// such a family, with the exponent of their number in the loss [default exponent: 0.033].
    #[arg(long, value_parser = exits, value_name = "G[:EXPONENT]", help_heading = "Architecture")]
    pub exits: Option<Exits>,
    /// Also give the downstream error of each loss, by a file that `law fit --form gadre2024` wrote on runs
    /// of the first law's tokenizer and corpus.
    #[arg(long, value_name = "FILE", help_heading = "What is compared")]
    pub downstream: Option<PathBuf>,

    /// Prompt tokens of a request [default: 1000].
    #[arg(long, value_parser = tokens, help_heading = "Traffic and promises")]
    pub isl: Option<f64>,
    /// Output tokens of a request [default: 1000].
    #[arg(long, value_parser = tokens, help_heading = "Traffic and promises")]
    pub osl: Option<f64>,
    /// Requests per second to serve in all, by whole replicas [default: at scale, replicas counted in
    /// fractions].
    #[arg(long, value_parser = rate, help_heading = "Traffic and promises")]
    pub rate: Option<f64>,
    /// Maximum share of a replica's capacity that is used [default: 0.7; 1 with --rate].
    #[arg(long, value_parser = utilisation, help_heading = "Traffic and promises")]
    pub utilisation: Option<f64>,
    /// Maximum mean TPOT [default: 50ms; 200ms on a CPU].
    #[arg(long, value_parser = duration, help_heading = "Traffic and promises")]
    pub tpot: Option<Seconds>,
    /// Maximum mean TTFT, excluding queueing [default: none].
    #[arg(long, value_parser = duration, help_heading = "Traffic and promises")]
    pub ttft: Option<Seconds>,
    /// Maximum dollars per million output tokens: more expensive models are not recommended, and the
    /// best loss within it is shown for every expert count [default: no bound].
    #[arg(long, value_parser = usd_per_million, value_name = "USD", help_heading = "Traffic and promises")]
    pub max_serve_cost: Option<f64>,
    /// Output tokens served over the model's life [default: as many as the reference model is
    /// trained on].
    #[arg(long, value_parser = corpus, help_heading = "Traffic and promises")]
    pub lifetime_tokens: Option<f64>,
    /// Maximum prompt tokens of one step [default: the engine's].
    #[arg(long, value_parser = tokens, help_heading = "Traffic and promises")]
    pub prefill_chunk: Option<f64>,

    /// Dollars per serving device and hour, or a published tier [default: the device's first
    /// published price].
    #[arg(long, value_name = "USD|tier:NAME", value_parser = price, help_heading = "Money")]
    pub price: Option<DevicePrice>,
    /// Device that trains [default: h100].
    #[arg(long, help_heading = "Money")]
    pub train_device: Option<String>,
    /// Dollars per training device and hour [default: that device's known price].
    #[arg(long, value_parser = usd_per_hour, help_heading = "Money")]
    pub train_price: Option<f64>,
    /// Share of the training device's 16-bit peak that training reaches, for all or by expert count, such
    /// as 1:0.45,8:0.38,32:0.30, between them linear in ln(experts); or model, by the training step of each
    /// expert count on the kernels of the training device [default: 0.4].
    #[arg(long, value_name = "SHARE|E:SHARE,...|model", value_parser = mfu, help_heading = "Money")]
    pub mfu: Option<Mfu>,
    /// Devices that one replica may use [default: 1,2,4,8, and 16,32,64 where those do not do; 1 on a
    /// CPU].
    #[arg(long, value_parser = count_list, help_heading = "Money")]
    pub replica_sizes: Option<CountList>,

    /// Nominal routing of tokens over experts: uniform, zipf:S, power-law:A, hot:SHARE, balanced,
    /// trace:FILE.
    #[arg(
        long,
        default_value_t = RoutingKind::TYPICAL,
        value_name = "KIND",
        help_heading = "Traffic and promises"
    )]
    pub routing: RoutingKind,
    /// Routing skew at the far end of its range, as a Zipf exponent; draws go as far the other way; 0 is
    /// none [default: 1.2].
    #[arg(long, value_parser = non_negative, help_heading = "Probabilities")]
    pub skew: Option<f64>,
    /// Random draws.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Probabilities")]
    pub draws: u32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 1, help_heading = "Probabilities")]
    pub seed: u64,

    /// Folder for rank.json, the recommended models, the plots and report.html; an earlier ranking there
    /// is replaced.
    #[arg(long, default_value = "out", help_heading = "Output")]
    pub out: PathBuf,
    /// Take --out even where it holds files of others; those stay.
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// Print every table, all assumptions and warnings instead of the first screen.
    #[arg(long, help_heading = "Output")]
    pub details: bool,
    /// Plot of training cost against serving cost in the terminal: none, ascii or braille.
    #[arg(long, default_value = "ascii", value_name = "KIND", value_parser = terminal_plot, conflicts_with = "details", help_heading = "Output")]
    pub plot: TerminalPlot,
}

/// Reads `8`, `4,8` or `8,8,8`.
fn trained_bits(text: &str) -> Result<TrainedBits, String> {
    let bits = text.split(',').map(quantity).collect::<Result<Vec<f64>, String>>()?;
    let (weights, activations, cache) = match bits.as_slice() {
        [all] => (*all, *all, FULL_BITS),
        [weights, activations] => (*weights, *activations, FULL_BITS),
        [weights, activations, cache] => (*weights, *activations, *cache),
        _ => return Err("bits of weights, activations and cache are at most three".into()),
    };
    Ok(TrainedBits { weights, activations, cache })
}

/// Reads `4` or `4:0.05`.
fn exits(text: &str) -> Result<Exits, String> {
    let form = || format!("`{text}` is not exits such as 4, or exits:exponent such as 4:0.05");
    let (count, exponent) = match text.split_once(':') {
        None => (text, None),
        Some((count, exponent)) => (count, Some(non_negative(exponent).map_err(|_| form())?)),
    };
    let count = count.parse().ok().filter(|n| (2..=64).contains(n)).ok_or_else(form)?;
    let usual = Exits::new(count);
    Ok(exponent.map_or(usual, |exponent| Exits { exponent, ..usual }))
}

impl RankArgs {
    /// Whether they name no source of latencies: this machine's are asked for.
    #[cfg(feature = "cli")]
    pub(in crate::cli) fn is_of_this_machine(&self) -> bool {
        self.source.profile.is_empty() || self.source.profile == ["auto"]
    }

    /// The question that these flags ask.
    pub(in crate::cli) fn options(&self) -> RankOptions {
        let list = |list: &Option<CountList>| list.as_ref().map(|l| l.0.clone());
        RankOptions {
            source: self.source.options(),
            device: self.device.clone(),
            law: self.law.clone(),
            own_laws: Vec::new(),
            law_weights: self.law_weights.clone(),
            experts: list(&self.experts),
            train_flops: self.train_flops.map(Flops),
            target_loss: self.target_loss.map(Nats),
            reference_experts: self.reference_experts,
            unique_tokens: self.unique_tokens,
            max_tokens_per_param: self.max_tokens_per_param,
            max_train_factor: self.max_train_factor,
            weights: self.weights.clone(),
            weight_bits: self.weight_bits,
            train_bits: self.train_bits,
            exits: self.exits,
            downstream: self.downstream.clone(),
            model: self.model.clone(),
            top_k: self.top_k,
            granularity: self.granularity,
            shared: self.shared,
            kv_group: self.kv_group,
            aspect: self.aspect,
            isl: self.isl,
            osl: self.osl,
            rate: self.rate,
            utilisation: self.utilisation,
            tpot: self.tpot,
            ttft: self.ttft,
            max_serve_cost: self.max_serve_cost.map(UsdPerMillionTokens),
            lifetime_tokens: self.lifetime_tokens,
            prefill_chunk: self.prefill_chunk,
            price: self.price.clone(),
            train_device: self.train_device.clone(),
            train_price: self.train_price.map(UsdPerHour),
            mfu: self.mfu.clone(),
            replica_sizes: list(&self.replica_sizes),
            routing: self.routing.clone(),
            skew: self.skew,
            draws: self.draws as usize,
            seed: self.seed,
        }
    }
}

fn terminal_plot(text: &str) -> Result<TerminalPlot, String> {
    let known = TerminalPlot::ALL.into_iter().find(|(_, name)| *name == text);
    known.map(|(kind, _)| kind).ok_or_else(|| "plots are none, ascii and braille".into())
}
