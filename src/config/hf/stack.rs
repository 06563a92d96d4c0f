//! Which mixer and which feed-forward block each layer has, in all the ways in which files say it.

use super::fields::{Fields, checked_layers};
use super::json::Json;
use super::names;

/// Kind of mixer of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MixerKind {
    None,
    Full,
    Window,
    Chunk,
    Linear,
    Mamba,
    Conv,
}

/// Kind of feed-forward block of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FfnKind {
    None,
    Dense,
    Moe,
}

/// The kinds of all layers.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    pub(super) mixers: Vec<MixerKind>,
    pub(super) ffns: Vec<FfnKind>,
}

/// Reads the stack of a model of type `kind`, which routes or not.
pub(super) fn stack(fields: &Fields, kind: &str, routed: bool) -> Result<Stack, String> {
    if let Some(stack) = single_blocks(fields)? {
        return Ok(stack);
    }
    if let Some(blocks) = fields.get(&["block_configs"]).and_then(Json::list) {
        return Ok(block_configs(blocks));
    }
    let layers = checked_layers(fields.need(names::LAYERS)?)?;
    let mixers = mixers(fields, kind, layers)?;
    let ffns = if routed { ffns(fields, layers)? } else { vec![FfnKind::Dense; layers] };
    Ok(Stack { mixers, ffns })
}

/// Stacks whose layers are a mixer or a feed-forward block, not both (Nemotron-H).
fn single_blocks(fields: &Fields) -> Result<Option<Stack>, String> {
    let kinds: Vec<(MixerKind, FfnKind)> =
        if let Some(pattern) = fields.text(&["hybrid_override_pattern"]) {
            pattern.chars().map(letter).collect::<Result<_, _>>()?
        } else {
            let Some(words) = fields.words(&["layers_block_type"], None)? else { return Ok(None) };
            if !words.iter().any(|w| matches!(*w, "moe" | "mlp")) {
                return Ok(None);
            }
            words.into_iter().map(block_word).collect::<Result<_, _>>()?
        };
    checked_layers(kinds.len())?;
    if let Some(stated) = fields.size(names::LAYERS)?
        && stated != kinds.len()
    {
        return Err(format!(
            "the pattern has {} layers, num_hidden_layers is {stated}",
            kinds.len()
        ));
    }
    let (mixers, ffns) = kinds.into_iter().unzip();
    Ok(Some(Stack { mixers, ffns }))
}

fn letter(letter: char) -> Result<(MixerKind, FfnKind), String> {
    match letter {
        'M' => Ok((MixerKind::Mamba, FfnKind::None)),
        '*' => Ok((MixerKind::Full, FfnKind::None)),
        'E' => Ok((MixerKind::None, FfnKind::Moe)),
        '-' => Ok((MixerKind::None, FfnKind::Dense)),
        other => Err(format!(
            "`{other}` in `hybrid_override_pattern` is not understood; M, *, E and - are"
        )),
    }
}

fn block_word(word: &str) -> Result<(MixerKind, FfnKind), String> {
    match word {
        "moe" => Ok((MixerKind::None, FfnKind::Moe)),
        "mlp" => Ok((MixerKind::None, FfnKind::Dense)),
        other => Ok((mixer_word(other)?, FfnKind::None)),
    }
}

/// Stacks that say for each layer what was pruned from it (Nemotron-NAS).
fn block_configs(blocks: &[Json]) -> Stack {
    let off = |block: &Json, part: &str| {
        block.at(&format!("{part}.no_op")).and_then(Json::bool).unwrap_or(false)
    };
    let mixer = |b| if off(b, "attention") { MixerKind::None } else { MixerKind::Full };
    let ffn = |b| if off(b, "ffn") { FfnKind::None } else { FfnKind::Dense };
    Stack { mixers: blocks.iter().map(mixer).collect(), ffns: blocks.iter().map(ffn).collect() }
}

fn mixer_word(word: &str) -> Result<MixerKind, String> {
    match word {
        "full_attention"
        | "attention"
        | "global"
        | "global_attention"
        | "full"
        | "deepseek_sparse_attention" => Ok(MixerKind::Full),
        "sliding_attention" | "sliding_window" | "local" | "local_attention" | "swa" => {
            Ok(MixerKind::Window)
        }
        "chunked_attention" => Ok(MixerKind::Chunk),
        "linear_attention" | "linear" | "gated_delta_net" | "kda" => Ok(MixerKind::Linear),
        "mamba" | "mamba2" | "ssm" => Ok(MixerKind::Mamba),
        "conv" | "short_conv" => Ok(MixerKind::Conv),
        other => Err(format!("layer type `{other}` is not understood")),
    }
}

/// Numbers one layer in `period` from `offset`.
const fn falls_on(layer: usize, period: usize, offset: usize) -> bool {
    period > 0 && layer % period == offset % period
}

fn mixers(fields: &Fields, kind: &str, layers: usize) -> Result<Vec<MixerKind>, String> {
    let by = |choose: &dyn Fn(usize) -> MixerKind| (0..layers).map(choose).collect::<Vec<_>>();
    let either =
        |yes: bool, then: MixerKind, otherwise: MixerKind| if yes { then } else { otherwise };
    if let Some(words) = fields.words(names::MIXER_TYPES, Some(layers))? {
        return words.into_iter().map(mixer_word).collect();
    }
    if let Some(marks) = fields.layered(&["hybrid_layer_pattern"], layers)? {
        return Ok(by(&|i| either(marks[i] > 0, MixerKind::Window, MixerKind::Full)));
    }
    if let Some(marks) = fields.layered(&["attn_type_list"], layers)? {
        return Ok(by(&|i| either(marks[i] > 0, MixerKind::Full, MixerKind::Linear)));
    }
    if let Some(period) = fields.positive(&["attn_layer_period"])? {
        let offset = fields.size(&["attn_layer_offset"])?.unwrap_or(0);
        return Ok(by(&|i| either(falls_on(i, period, offset), MixerKind::Full, MixerKind::Mamba)));
    }
    let linear = fields.indices(&["linear_attn_config.kda_layers"])?;
    if !linear.is_empty() {
        // Counted from 1.
        return Ok(by(&|i| either(linear.contains(&(i + 1)), MixerKind::Linear, MixerKind::Full)));
    }
    if let Some(period) = fields.positive(&["full_attention_interval", "layer_group_size"])? {
        return Ok(by(&|i| either(falls_on(i + 1, period, 0), MixerKind::Full, MixerKind::Linear)));
    }
    limited(fields, kind, layers)
}

/// Stacks of attention alone, of which some layers see less than everything.
fn limited(fields: &Fields, kind: &str, layers: usize) -> Result<Vec<MixerKind>, String> {
    let mark = |limited: bool, how| if limited { how } else { MixerKind::Full };
    if kind.starts_with("llama4") && fields.positive(&["attention_chunk_size"])?.is_some() {
        // Layers with rotary positions attend in chunks; every fourth has none and sees everything.
        let rotary = fields.layered(&["no_rope_layers"], layers)?;
        let interval = fields.positive(&["no_rope_layer_interval"])?.unwrap_or(4);
        let chunked =
            |i: usize| rotary.as_ref().map_or(!(i + 1).is_multiple_of(interval), |r| r[i] > 0);
        return Ok((0..layers).map(|i| mark(chunked(i), MixerKind::Chunk)).collect());
    }
    let Some(window) = fields.positive(names::WINDOW)? else {
        return Ok(vec![MixerKind::Full; layers]);
    };
    let longest = fields.positive(&["max_position_embeddings"])?;
    let off = fields.flag(&["use_sliding_window"]).map_or(kind.starts_with("qwen"), |on| !on);
    if off || longest.is_some_and(|longest| window >= longest) {
        return Ok(vec![MixerKind::Full; layers]);
    }
    if let Some(pattern) = fields.text(names::WINDOW_PATTERN) {
        let letters: Vec<char> = pattern.chars().collect();
        let local = |i: usize| letters.get(i % letters.len().max(1)) == Some(&'L');
        return Ok((0..layers).map(|i| mark(local(i), MixerKind::Window)).collect());
    }
    if let Some(period) = fields.positive(names::WINDOW_PATTERN)? {
        return Ok((0..layers).map(|i| mark((i + 1) % period != 0, MixerKind::Window)).collect());
    }
    // Qwen's files carry the number of lower layers that see everything.
    let full = if kind.starts_with("qwen") { fields.size(&["max_window_layers"])? } else { None };
    Ok((0..layers).map(|i| mark(i >= full.unwrap_or(0), MixerKind::Window)).collect())
}

fn ffns(fields: &Fields, layers: usize) -> Result<Vec<FfnKind>, String> {
    let mark = |moe: bool| if moe { FfnKind::Moe } else { FfnKind::Dense };
    if let Some(words) = fields.words(names::FFN_TYPES, Some(layers))? {
        return words.into_iter().map(ffn_word).collect();
    }
    if let Some(Json::List(_)) = fields.get(&["moe_layer_freq"]) {
        let marks = fields.layered(&["moe_layer_freq"], layers)?.unwrap_or_default();
        return Ok(marks.into_iter().map(|m| mark(m > 0)).collect());
    }
    if let Some(period) = fields.positive(&["expert_layer_period"])? {
        let offset = fields.size(&["expert_layer_offset"])?.unwrap_or(0);
        return Ok((0..layers).map(|i| mark(falls_on(i, period, offset))).collect());
    }
    let listed = fields.indices(&["moe_layers", "moe_layers_enum"])?;
    if !listed.is_empty() {
        return Ok((0..layers).map(|i| mark(listed.contains(&i))).collect());
    }
    let leading = fields.size(names::LEADING_DENSE)?.unwrap_or(0);
    let last = fields.size(&["moe_layer_end_index"])?.unwrap_or(usize::MAX);
    let dense = fields.indices(&["mlp_only_layers", "dense_layers"])?;
    let step = fields.positive(names::SPARSE_STEP)?.unwrap_or(1);
    let every = fields.positive(&["moe_layer_freq"])?.unwrap_or(1);
    let moe = |i: usize| {
        (leading..=last).contains(&i)
            && !dense.contains(&i)
            && (i + 1).is_multiple_of(step)
            && i.is_multiple_of(every)
    };
    Ok((0..layers).map(|i| mark(moe(i))).collect())
}

fn ffn_word(word: &str) -> Result<FfnKind, String> {
    match word {
        "dense" | "mlp" => Ok(FfnKind::Dense),
        "sparse" | "moe" => Ok(FfnKind::Moe),
        other => Err(format!("feed-forward type `{other}` is not understood")),
    }
}
