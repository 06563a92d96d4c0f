//! The architecture that a ranking varies: a model's proportions, the law's own, or flags over them.

use std::sync::Arc;

use super::ModelRead;
use super::assumptions::Ledger;
use super::options::RankOptions;
use crate::config::{DType, Loaded, load_model};
use crate::law::{AttentionTemplate, Template};
use crate::{Error, Result, error};

/// Query heads per key/value head of most models that are trained now.
const KV_GROUP: f64 = 8.0;

/// The architecture with the formats of the model behind it, if one was named.
pub(crate) struct Architecture {
    pub(crate) template: Arc<Template>,
    /// Storage of experts and of everything else.
    pub(crate) formats: Option<(DType, DType)>,
    /// What was read of that model.
    pub(crate) read: Option<ModelRead>,
}

/// Resolves `--model` and the flags over it; `own` is the architecture of the law.
///
/// # Errors
/// [`Error::Usage`] for a model whose size cannot be varied, or a flag that does not fit it.
pub(crate) fn resolve(
    options: &RankOptions,
    own: Template,
    ledger: &mut Ledger,
) -> Result<Architecture> {
    let (mut template, formats, read) = if let Some(name) = &options.model {
        let Loaded { model, assumed, .. } = load_model(name)?;
        let source = "given; its proportions stay, its size varies";
        ledger.note("--model", name, None, source, false);
        let read = ModelRead { summary: model.summary(), assumed };
        (Template::of(&model)?, Some((model.expert_dtype, model.dense_dtype)), Some(read))
    } else {
        ledger.note("--model", &own.name, None, "the law's own architecture", true);
        (own, None, None)
    };
    feed_forward(options, &mut template, ledger)?;
    if let Some(aspect) = options.aspect {
        template.aspect = error::positive("--aspect", aspect)?;
    }
    let aspect = format!("{:.1}", template.aspect);
    let (source, given) = source(options.aspect.is_some());
    ledger.note("--aspect", &aspect, None, &format!("{source}; hidden size over layers"), !given);
    let template = attention(options, template, ledger)?;
    Ok(Architecture { template: Arc::new(template), formats, read })
}

/// Where a proportion comes from, and whether a flag gave it.
const fn source(given: bool) -> (&'static str, bool) {
    if given { ("given", true) } else { ("of the architecture", false) }
}

fn feed_forward(options: &RankOptions, template: &mut Template, ledger: &mut Ledger) -> Result<()> {
    // What a token meets of the routed experts is one block, divided into as many as it visits.
    let block = template.active_ratio() - template.shared_ratio;
    if let Some(granularity) = options.granularity {
        template.expert_ratio = block / error::positive("--granularity", granularity)?;
    }
    if let Some(top_k) = options.top_k {
        if top_k == 0 {
            return Err(Error::usage("--top-k", "0 experts a token are none"));
        }
        template.top_k = top_k;
    }
    if let Some(shared) = options.shared {
        template.shared_experts = shared;
        template.shared_ratio = shared as f64 * template.expert_ratio;
    }
    let (from, given) = source(options.top_k.is_some());
    ledger.note("--top-k", &template.top_k.to_string(), None, from, !given);
    let (from, given) = source(options.granularity.is_some());
    let shown = format!("experts of {:.3} hidden sizes", template.expert_ratio);
    ledger.note("--granularity", &shown, None, from, !given);
    let (from, given) = source(options.shared.is_some());
    ledger.note("--shared", &template.shared_experts.to_string(), None, from, !given);
    Ok(())
}

fn attention(options: &RankOptions, template: Template, ledger: &mut Ledger) -> Result<Template> {
    if matches!(template.attention, AttentionTemplate::Latent { .. }) {
        if options.kv_group.is_some() {
            return Err(Error::usage("--kv-group", "latent attention has no key/value heads"));
        }
        ledger.note(
            "--kv-group",
            "1 latent vector for all heads",
            None,
            "of the architecture",
            true,
        );
        return Ok(template);
    }
    let usual = if options.model.is_some() {
        (template.kv_group(), "of the architecture")
    } else {
        (KV_GROUP, "what is trained now; 1 is the multi-head attention of the law's own models")
    };
    let group = ledger.take("--kv-group", options.kv_group, usual, |v| {
        format!("{v} query heads per key/value head")
    });
    Ok(template.with_kv_group(group))
}
