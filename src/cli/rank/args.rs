//! The flags of `rank`: parsed only, nothing is resolved here.

use std::path::PathBuf;

use clap::Args;

use crate::cli::parse::{CountList, count_list, duration, non_negative, quantity, share};
use crate::units::Seconds;

/// Which expert count to train: training cost against serving cost, from measurements.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    moe-frontier rank                               measure this machine and rank at a fitting budget\n  \
    moe-frontier rank --train-flops 1e21 --profile h100 --rate 20 --tpot 50ms\n  \
    moe-frontier rank --profile profile.json --target-loss 2.4 --lifetime-tokens 1T\n  \
    moe-frontier rank --train-flops 1e22 --profile h100 --rate 100 --max-serve-cost 0.30")]
pub struct RankArgs {
    /// Latencies: `auto` (the newest profile of this machine, else it is measured now), a profile
    /// file, or a device name such as `h100`.
    #[arg(long, default_value = "auto", help_heading = "Measurements")]
    pub profile: String,
    /// Time that measuring may take with `--profile auto`.
    #[arg(long, default_value = "60s", value_parser = duration, help_heading = "Measurements")]
    pub time_budget: Seconds,
    /// Measure this machine even if a profile of it exists.
    #[arg(long, help_heading = "Measurements")]
    pub measure_again: bool,
    /// Use cells whose interval stayed wide [default: only with `--profile auto`].
    #[arg(long, help_heading = "Measurements")]
    pub include_noisy: bool,

    /// Loss law: an identifier that `law list` shows, or a file that `law fit` wrote.
    #[arg(long, default_value = "ludziejewski2025", help_heading = "What is compared")]
    pub law: String,
    /// Expert counts; 1 is the dense model beside them [default: 1,4,8,16,32].
    #[arg(long, value_parser = count_list, help_heading = "What is compared")]
    pub experts: Option<CountList>,
    /// Training budget whose loss is to be reached, such as 1e21 [default: the largest power of ten
    /// whose models fit one device].
    #[arg(long, value_parser = quantity, conflicts_with = "target_loss", help_heading = "What is compared")]
    pub train_flops: Option<f64>,
    /// Loss to reach, in nats per token.
    #[arg(long, value_parser = quantity, help_heading = "What is compared")]
    pub target_loss: Option<f64>,
    /// Expert count whose loss-optimal model at the budget sets the loss [default: 4, or the fewest].
    #[arg(long, help_heading = "What is compared")]
    pub reference_experts: Option<usize>,
    /// Most training tokens per active parameter [default: 414].
    #[arg(long, value_parser = quantity, help_heading = "What is compared")]
    pub max_tokens_per_param: Option<f64>,
    /// Most training FLOPs, as a multiple of the budget [default: 3.5].
    #[arg(long, value_parser = quantity, help_heading = "What is compared")]
    pub max_train_factor: Option<f64>,
    /// Bits of one stored expert weight (FFN weight of a dense model), scales included, such as 2.54
    /// for mixed precision; only with a device's published peaks, since a profile has the bits it was
    /// measured with [default: the profile's, or 16].
    #[arg(long, value_parser = quantity, value_name = "BITS", help_heading = "What is compared")]
    pub weight_bits: Option<f64>,
    /// Query heads per key/value head of the models [default: 1, as the law's models have].
    #[arg(long, value_parser = quantity, help_heading = "What is compared")]
    pub kv_group: Option<f64>,

    /// Prompt tokens of a request [default: 1000].
    #[arg(long, value_parser = quantity, help_heading = "Traffic and promises")]
    pub isl: Option<f64>,
    /// Output tokens of a request [default: 1000].
    #[arg(long, value_parser = quantity, help_heading = "Traffic and promises")]
    pub osl: Option<f64>,
    /// Requests per second to serve in all.
    #[arg(long, value_parser = quantity, conflicts_with = "utilisation", help_heading = "Traffic and promises")]
    pub rate: Option<f64>,
    /// Share of a deployment's capacity that is used [default: 0.7].
    #[arg(long, value_parser = share, help_heading = "Traffic and promises")]
    pub utilisation: Option<f64>,
    /// Longest mean time per output token [default: 50ms; 200ms on a processor].
    #[arg(long, value_parser = duration, help_heading = "Traffic and promises")]
    pub tpot: Option<Seconds>,
    /// Longest mean time to first token, waiting excluded [default: none].
    #[arg(long, value_parser = duration, help_heading = "Traffic and promises")]
    pub ttft: Option<Seconds>,
    /// Most dollars per million output tokens: dearer models are not recommended, and the best loss
    /// within it is told for every expert count [default: no bound].
    #[arg(long, value_parser = quantity, value_name = "USD", help_heading = "Traffic and promises")]
    pub max_serve_cost: Option<f64>,
    /// Output tokens served over the model's life [default: as many as the reference model is
    /// trained on].
    #[arg(long, value_parser = quantity, help_heading = "Traffic and promises")]
    pub lifetime_tokens: Option<f64>,
    /// Prompt tokens that one step takes in at most [default: 2048].
    #[arg(long, value_parser = quantity, help_heading = "Traffic and promises")]
    pub prefill_chunk: Option<f64>,

    /// Dollars per serving device and hour [default: the device's known price].
    #[arg(long, value_parser = quantity, help_heading = "Money")]
    pub price: Option<f64>,
    /// Device that trains [default: h100].
    #[arg(long, help_heading = "Money")]
    pub train_device: Option<String>,
    /// Dollars per training device and hour [default: that device's known price].
    #[arg(long, value_parser = quantity, help_heading = "Money")]
    pub train_price: Option<f64>,
    /// Share of the training device's peak that training reaches [default: 0.4].
    #[arg(long, value_parser = share, help_heading = "Money")]
    pub mfu: Option<f64>,
    /// Devices that one replica may use [default: 1,2,4,8; 1 on a processor].
    #[arg(long, value_parser = count_list, help_heading = "Money")]
    pub replica_sizes: Option<CountList>,

    /// Routing skew at the far end of its range, as a Zipf exponent; 0 is none [default: 0.5].
    #[arg(long, value_parser = non_negative, help_heading = "Probabilities")]
    pub skew: Option<f64>,
    /// Random draws.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Probabilities")]
    pub draws: u32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 1, help_heading = "Probabilities")]
    pub seed: u64,

    /// Folder for rank.json, the plots and report.html.
    #[arg(long, default_value = "out", help_heading = "Output")]
    pub out: PathBuf,
}
