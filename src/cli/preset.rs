//! `preset`: the models that come with the program, and what was read from a model file.

use clap::Subcommand;
use serde::Serialize;

use crate::Result;
use crate::cli::{Output, output};
use crate::config::preset;
use crate::config::{DType, Loaded, MoeModel, RouterConfig, Scoring, load_model};
use crate::report::grid::{Column, grid, hanging};
use crate::units::{Bytes, count};

/// Contexts at which the cache is shown, in tokens.
const CONTEXTS: [(&str, f64); 2] = [("1k", 1024.0), ("128k", 131_072.0)];

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
    /// Everything about one model, and what was assumed in reading it.
    #[command(after_help = "Example: moe-frontier preset show mixtral-8x7b")]
    Show {
        /// Name as `preset list` prints it, a `config.json`, a folder with one (and its
        /// `hf_quant_config.json`), or a Hub id such as `Qwen/Qwen3-30B-A3B` or `org/name@revision`.
        name: String,
    },
}

/// Parameters by part, counted from the sizes.
#[derive(Debug, Serialize)]
struct Params {
    n_total: f64,
    n_active: f64,
    n_active_non_embedding: f64,
    embedding: f64,
    head: f64,
    attention: f64,
    linear_mixers: f64,
    router: f64,
    experts: f64,
    active_experts: f64,
    shared_experts: f64,
    dense_ffn: f64,
    norms: f64,
    weights_bytes: f64,
    kv_bytes_per_token: f64,
    kv_bytes_per_token_at_1k: f64,
    kv_bytes_per_token_at_128k: f64,
    state_bytes_per_sequence: f64,
}

impl Params {
    fn of(model: &MoeModel) -> Self {
        let p = model.params();
        let at = |tokens: f64| model.kv_bytes(tokens).0 / tokens;
        Self {
            n_total: p.total(),
            n_active: p.active(),
            n_active_non_embedding: p.active_non_embedding(),
            embedding: p.embedding,
            head: p.head,
            attention: p.attention,
            linear_mixers: p.linear,
            router: p.router,
            experts: p.experts,
            active_experts: p.active_experts,
            shared_experts: p.shared,
            dense_ffn: p.dense_ffn,
            norms: p.norms,
            weights_bytes: model.weight_bytes().0,
            kv_bytes_per_token: model.kv_bytes(1.0).0,
            kv_bytes_per_token_at_1k: at(CONTEXTS[0].1),
            kv_bytes_per_token_at_128k: at(CONTEXTS[1].1),
            state_bytes_per_sequence: model.state_bytes().0,
        }
    }
}

/// Layers of one kind.
#[derive(Debug, Serialize)]
struct LayerKind {
    layers: usize,
    mixer: String,
    feed_forward: String,
    params_per_layer: f64,
}

/// Weights of one kind.
#[derive(Debug, Serialize)]
struct Weights {
    kind: &'static str,
    params: f64,
    bits: f64,
    bytes: f64,
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
    assumed: Vec<String>,
    model: MoeModel,
    params: Params,
    layers: Vec<LayerKind>,
    weights: Vec<Weights>,
}

impl Shown {
    fn new(loaded: Loaded) -> Self {
        let Loaded { model, assumed, source, unverified } = loaded;
        let layers = model.layer_groups().into_iter().map(|g| LayerKind {
            layers: g.layers,
            mixer: g.mixer.label(),
            feed_forward: g.ffn.label(),
            params_per_layer: g.params(model.hidden_size),
        });
        let weights = model.weights_by_kind().into_iter().map(|w| Weights {
            kind: w.kind.label(),
            params: w.params,
            bits: w.bits,
            bytes: w.bytes().0,
        });
        Self {
            schema: None,
            schema_version: None,
            source,
            unverified,
            assumed,
            params: Params::of(&model),
            layers: layers.collect(),
            weights: weights.collect(),
            model,
        }
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
const SCHEMA_VERSION: &str = "1.1";

/// Runs the command.
///
/// # Errors
/// [`crate::Error::Usage`] for an unknown name, with the nearest ones.
pub fn run(args: &Args, output: Output) -> Result<()> {
    match &args.action {
        Action::List => {
            let presets = preset::names()
                .map(|name| load_model(name).map(Shown::new))
                .collect::<Result<Vec<_>>>()?;
            let list = List { schema: SCHEMA, schema_version: SCHEMA_VERSION, presets };
            output.result(&list, || list_text(&list.presets, output::width()))
        }
        Action::Show { name } => {
            let mut shown = Shown::new(load_model(name)?);
            shown.schema = Some(SCHEMA);
            shown.schema_version = Some(SCHEMA_VERSION);
            output.result(&shown, || show_text(&shown, output::width()))
        }
    }
}

fn list_text(presets: &[Shown], width: usize) -> String {
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
    grid(
        &[
            Column::words("model"),
            Column::numbers("total\nparams"),
            Column::numbers("active\nparams"),
            Column::numbers("experts"),
            Column::numbers("top_k"),
            Column::numbers("hidden").left_out(2),
            Column::numbers("expert\ninter").left_out(3),
            Column::numbers("layers").left_out(1),
            Column::words("expert\nweights").left_out(4),
        ],
        &rows.collect::<Vec<_>>(),
        width,
    )
}

/// A table of quantities, each marked by where it comes from.
struct Sheet<'a> {
    rows: Vec<Vec<String>>,
    unverified: &'a [String],
    origin: &'static str,
}

impl Sheet<'_> {
    /// A size as the source gives it.
    fn size(&mut self, name: &str, value: &impl ToString) {
        let source =
            if self.unverified.iter().any(|f| f == name) { "not verified" } else { self.origin };
        self.rows.push(vec![name.to_owned(), value.to_string(), source.to_owned()]);
    }

    /// A figure that was counted from the sizes.
    fn counted(&mut self, name: &str, value: &impl ToString) {
        self.rows.push(vec![name.to_owned(), value.to_string(), "counted".to_owned()]);
    }
}

fn show_text(shown: &Shown, width: usize) -> String {
    // A preset names its publication; anything else is a file.
    let published = preset::load(&shown.model.name).is_ok_and(|p| p.source == shown.source);
    let origin = if published { "published" } else { "file" };
    let mut sheet = Sheet { rows: Vec::new(), unverified: &shown.unverified, origin };
    sizes(&mut sheet, &shown.model);
    for group in &shown.layers {
        sheet.size(&format!("layers x {}", group.layers), &group.mixer);
        sheet.size("", &group.feed_forward);
    }
    counts(&mut sheet, shown);
    // A value may be a sentence: it wraps.
    let columns = [Column::words("quantity"), Column::words("value"), Column::words("source")];
    let table = grid(&columns, &sheet.rows, width);
    let notes = shown.assumed.iter().map(|note| hanging("assumed: ", note, width));
    let notes: String = notes.collect();
    let source = hanging(&format!("{origin}: "), &shown.source, width);
    let head = format!("{}\n{source}counted: from these sizes\n", shown.model.name);
    format!("{head}{notes}\n{table}")
}

fn sizes(sheet: &mut Sheet, m: &MoeModel) {
    sheet.size("hidden_size", &m.hidden_size);
    sheet.size("num_layers", &m.num_layers);
    sheet.size("dense_layers", &m.dense_layers);
    if m.dense_layers > 0 {
        sheet.size("dense_intermediate_size", &m.dense_intermediate_size);
    }
    sheet.size("num_experts", &m.num_experts);
    sheet.size("top_k", &m.top_k);
    sheet.size("moe_intermediate_size", &m.moe_intermediate_size);
    if let Some(shared) = m.shared_experts {
        let value = format!("{}, FFN width {} together", shared.count, shared.intermediate_size);
        sheet.size("shared_experts", &value);
    }
    sheet.size("gated", &m.gated);
    sheet.size("vocab_size", &m.vocab_size);
    sheet.size("tied_embeddings", &m.tied_embeddings);
    sheet.size("router", &router(&m.router, m.is_dense()));
    sheet.size("expert_dtype", &dtype(m.expert_dtype));
    sheet.size("dense_dtype", &dtype(m.dense_dtype));
    sheet.size("kv_dtype", &dtype(m.kv_dtype));
}

fn counts(sheet: &mut Sheet, shown: &Shown) {
    let p = &shown.params;
    sheet.counted("total parameters", &count(p.n_total));
    sheet.counted("active parameters", &count(p.n_active));
    sheet.counted("of these without embedding", &count(p.n_active_non_embedding));
    sheet.counted("of these experts", &count(p.active_experts));
    sheet.counted("attention parameters", &count(p.attention - p.linear_mixers));
    if p.linear_mixers > 0.0 {
        sheet.counted("linear mixer parameters", &count(p.linear_mixers));
    }
    sheet.counted("embedding and head", &count(p.embedding + p.head));
    sheet.counted("weights", &Bytes(p.weights_bytes));
    for w in &shown.weights {
        let value = format!("{} at {:.3} bits", Bytes(w.bytes), w.bits);
        sheet.counted(&format!("  {}", w.kind), &value);
    }
    let caches = [p.kv_bytes_per_token_at_1k, p.kv_bytes_per_token_at_128k];
    sheet.counted("cache per token", &Bytes(p.kv_bytes_per_token));
    for ((name, _), bytes) in CONTEXTS.iter().zip(caches) {
        sheet.counted(&format!("cache per token at {name}"), &Bytes(bytes));
    }
    if p.state_bytes_per_sequence > 0.0 {
        sheet.counted("state per sequence", &Bytes(p.state_bytes_per_sequence));
    }
}

fn router(router: &RouterConfig, dense: bool) -> String {
    if dense {
        return "none".into();
    }
    let scoring = match router.scoring {
        Scoring::Softmax => "softmax",
        Scoring::SoftmaxOverTopK => "softmax over the chosen",
        Scoring::Sigmoid => "sigmoid",
        Scoring::SoftplusSqrt => "square root of softplus",
        Scoring::SparseMixer => "sparsemixer",
        Scoring::Prototype => "prototypes",
    };
    let mut words = vec![scoring.to_owned()];
    if router.bias {
        words.push("bias".into());
    }
    if router.renormalize {
        words.push("renormalised".into());
    }
    if router.n_group > 1 {
        words.push(format!("{} of {} groups", router.topk_group, router.n_group));
    }
    if (router.scaling_factor - 1.0).abs() > 1e-12 {
        words.push(format!("x {}", router.scaling_factor));
    }
    words.join(", ")
}

/// The name that configuration files use.
fn dtype(dtype: DType) -> String {
    format!("{dtype:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str) -> Shown {
        Shown::new(load_model(name).unwrap())
    }

    #[test]
    fn the_list_names_every_model_with_its_counted_parameters() {
        let presets: Vec<Shown> = preset::names().map(shown).collect();
        insta::assert_snapshot!(list_text(&presets, 80));
        let text = list_text(&presets, 100);
        assert!(preset::names().all(|name| text.contains(name)), "{text}");
        assert!(text.contains("46.7 B") && text.contains("12.9 B"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }

    #[test]
    fn every_number_of_a_model_has_its_source() {
        for name in preset::names() {
            let text = show_text(&shown(name), 100);
            assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
            let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(flat.contains(&shown(name).source), "{text}");
            let rows = text.lines().skip_while(|l| !l.starts_with("--")).skip(1);
            // A long value goes on below its name.
            for line in rows.filter(|line| !line.starts_with(' ')) {
                let kind = line.split_whitespace().last();
                assert!(matches!(kind, Some("published" | "counted")), "{line}");
            }
        }
        assert!(show_text(&shown("Mixtral-8x7B"), 100).contains("moe_intermediate_size"));
        assert!(show_text(&shown("DeepSeek-V3"), 100).contains("MLA, 128 heads"));
    }

    #[test]
    fn a_number_without_a_confirmed_source_says_so() {
        let mut preset = shown("Mixtral-8x7B");
        preset.unverified.push("vocab_size".into());
        let text = show_text(&preset, 100);
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
