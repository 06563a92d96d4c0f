//! `preset`: the models that come with the program, each number with its source.

use clap::Subcommand;
use serde::Serialize;

use crate::Result;
use crate::cli::Output;
use crate::config::preset::{self, ModelPreset};
use crate::config::{Attention, DType, MoeModel};
use crate::report::text_table;
use crate::units::{Bytes, count};

/// List and show the models that come with the program.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: moe-frontier preset show mixtral-8x7b")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with presets.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// One line per model.
    #[command(after_help = "Example: moe-frontier preset list --json")]
    List,
    /// Everything about one model.
    #[command(after_help = "Example: moe-frontier preset show mixtral-8x7b")]
    Show {
        /// Name as `preset list` prints it, in any case.
        name: String,
    },
}

/// Parameters by part, counted from the sizes.
#[derive(Debug, Serialize)]
struct Params {
    n_total: f64,
    n_active: f64,
    embedding: f64,
    head: f64,
    attention: f64,
    router: f64,
    experts: f64,
    active_experts: f64,
    shared_experts: f64,
    dense_ffn: f64,
    norms: f64,
    weights_bytes: f64,
    kv_bytes_per_token: f64,
}

impl Params {
    fn of(model: &MoeModel) -> Self {
        let p = model.params();
        Self {
            n_total: p.total(),
            n_active: p.active(),
            embedding: p.embedding,
            head: p.head,
            attention: p.attention,
            router: p.router,
            experts: p.experts,
            active_experts: p.active_experts,
            shared_experts: p.shared,
            dense_ffn: p.dense_ffn,
            norms: p.norms,
            weights_bytes: model.weight_bytes().0,
            kv_bytes_per_token: model.kv_bytes(1.0).0,
        }
    }
}

/// One model of `--json`.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_version: Option<&'static str>,
    source: String,
    unverified: Vec<String>,
    model: MoeModel,
    params: Params,
}

impl Shown {
    fn new(preset: ModelPreset) -> Self {
        let params = Params::of(&preset.model);
        let ModelPreset { source, unverified, model } = preset;
        Self { schema: None, schema_version: None, source, unverified, model, params }
    }
}

/// The list of `--json`.
#[derive(Debug, Serialize)]
struct List {
    schema: &'static str,
    schema_version: &'static str,
    presets: Vec<Shown>,
}

const SCHEMA: &str = "moe-frontier/preset";
const SCHEMA_VERSION: &str = "1.0";

/// Runs the command.
///
/// # Errors
/// [`crate::Error::Usage`] for an unknown name, with the nearest ones.
pub fn run(args: &Args, output: Output) -> Result<()> {
    match &args.action {
        Action::List => {
            let presets = preset::names()
                .map(|name| preset::load(name).map(Shown::new))
                .collect::<Result<Vec<_>>>()?;
            let list = List { schema: SCHEMA, schema_version: SCHEMA_VERSION, presets };
            output.result(&list, || list_text(&list.presets))
        }
        Action::Show { name } => {
            let mut shown = Shown::new(preset::load(name)?);
            shown.schema = Some(SCHEMA);
            shown.schema_version = Some(SCHEMA_VERSION);
            output.result(&shown, || show_text(&shown))
        }
    }
}

fn list_text(presets: &[Shown]) -> String {
    let rows = presets.iter().map(|p| {
        let m = &p.model;
        vec![
            m.name.clone(),
            count(p.params.n_total),
            count(p.params.n_active),
            m.num_experts.to_string(),
            m.top_k.to_string(),
            m.hidden_size.to_string(),
            m.moe_intermediate_size.to_string(),
            m.num_layers.to_string(),
            dtype(m.expert_dtype),
        ]
    });
    text_table(
        &[
            ("model", false),
            ("total\nparams", true),
            ("active\nparams", true),
            ("experts", true),
            ("top_k", true),
            ("hidden", true),
            ("expert\ninter", true),
            ("layers", true),
            ("expert\nweights", false),
        ],
        rows.collect(),
    )
}

fn show_text(shown: &Shown) -> String {
    let (m, p) = (&shown.model, &shown.params);
    let (source, counted) = ("published", "counted");
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: String, source: &str| {
        let unverified = shown.unverified.iter().any(|field| field == name);
        let source = if unverified { "not verified" } else { source };
        rows.push(vec![name.to_owned(), value, source.to_owned()]);
    };
    row("hidden_size", m.hidden_size.to_string(), source);
    row("num_layers", m.num_layers.to_string(), source);
    row("dense_layers", m.dense_layers.to_string(), source);
    if m.dense_layers > 0 {
        row("dense_intermediate_size", m.dense_intermediate_size.to_string(), source);
    }
    row("attention", attention(&m.attention), source);
    row("num_experts", m.num_experts.to_string(), source);
    row("top_k", m.top_k.to_string(), source);
    row("moe_intermediate_size", m.moe_intermediate_size.to_string(), source);
    if let Some(shared) = m.shared_experts {
        let value = format!("{}, FFN width {} together", shared.count, shared.intermediate_size);
        row("shared_experts", value, source);
    }
    row("gated", m.gated.to_string(), source);
    row("vocab_size", m.vocab_size.to_string(), source);
    row("tied_embeddings", m.tied_embeddings.to_string(), source);
    row("expert_dtype", dtype(m.expert_dtype), source);
    row("dense_dtype", dtype(m.dense_dtype), source);
    row("kv_dtype", dtype(m.kv_dtype), source);
    row("total parameters", count(p.n_total), counted);
    row("active parameters", count(p.n_active), counted);
    row("of these experts", count(p.active_experts), counted);
    row("attention parameters", count(p.attention), counted);
    row("embedding and head", count(p.embedding + p.head), counted);
    row("weights", Bytes(p.weights_bytes).to_string(), counted);
    row("cache per token", Bytes(p.kv_bytes_per_token).to_string(), counted);
    let table = text_table(&[("quantity", false), ("value", true), ("source", false)], rows);
    format!("{}\npublished: {}\ncounted: from the published sizes\n\n{table}", m.name, shown.source)
}

fn attention(attention: &Attention) -> String {
    match attention {
        Attention::Gqa { heads, kv_heads, head_dim, sliding_window, .. } => {
            let window = sliding_window.map_or_else(String::new, |w| {
                format!(", window {} in {} layers", w.window, w.layers)
            });
            format!("{heads} heads, {kv_heads} KV heads of {head_dim}{window}")
        }
        Attention::Mla { heads, kv_lora_rank, qk_rope_head_dim, .. } => {
            format!("MLA, {heads} heads, cached {kv_lora_rank} + {qk_rope_head_dim}")
        }
    }
}

/// The name that configuration files use.
fn dtype(dtype: DType) -> String {
    format!("{dtype:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str) -> Shown {
        Shown::new(preset::load(name).unwrap())
    }

    #[test]
    fn the_list_names_every_model_with_its_counted_parameters() {
        let presets: Vec<Shown> = preset::names().map(shown).collect();
        let text = list_text(&presets);
        assert!(preset::names().all(|name| text.contains(name)), "{text}");
        assert!(text.contains("46.7 B") && text.contains("12.9 B"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }

    #[test]
    fn every_number_of_a_model_has_its_source() {
        for name in preset::names() {
            let text = show_text(&shown(name));
            assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
            assert!(text.contains(&shown(name).source), "{text}");
            let rows = text.lines().skip_while(|l| !l.starts_with("--")).skip(1);
            for line in rows {
                let kind = line.split_whitespace().last();
                assert!(matches!(kind, Some("published" | "counted")), "{line}");
            }
        }
        assert!(show_text(&shown("Mixtral-8x7B")).contains("moe_intermediate_size"));
        assert!(show_text(&shown("DeepSeek-V3")).contains("MLA, 128 heads"));
    }

    #[test]
    fn a_number_without_a_confirmed_source_says_so() {
        let mut preset = shown("Mixtral-8x7B");
        preset.unverified.push("vocab_size".into());
        let text = show_text(&preset);
        let line = text.lines().find(|l| l.starts_with("vocab_size")).unwrap();
        assert!(line.ends_with("not verified"), "{line}");
    }

    #[test]
    fn an_unknown_model_is_a_usage_error_with_suggestions() {
        let args = Args { action: Action::Show { name: "mixtrel".into() } };
        let error = run(&args, Output::new(true)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("Mixtral-8x7B"), "{error}");
    }
}
