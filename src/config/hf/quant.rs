//! Number formats of a checkpoint: the scheme that it declares and the modules that it leaves alone.

use super::fields::Fields;
use super::json::Json;
use super::modules::Modules;
use crate::config::DType;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Format {
    /// The nearest format that kernels are timed in.
    pub(super) dtype: DType,
    /// Bits, scales and zero points included.
    pub(super) bits: f64,
}

/// The formats of a checkpoint.
#[derive(Debug)]
pub(super) struct Scheme {
    /// Of what is not quantised.
    plain: Format,
    /// Of every linear layer, unless it is listed.
    base: Format,
    /// Of listed modules, the first match counting.
    rules: Vec<(Modules, Format)>,
    /// Of routed experts, where the file says it apart.
    experts: Option<Format>,
    kept: Modules,
    vocabulary: bool,
}

impl Format {
    pub(super) const fn of(dtype: DType) -> Self {
        Self { dtype, bits: dtype.bits() }
    }
}

impl Scheme {
    /// Everything in one format.
    pub(super) fn plain(dtype: DType) -> Self {
        let plain = Format::of(dtype);
        Self {
            plain,
            base: plain,
            rules: Vec::new(),
            experts: None,
            kept: Modules::default(),
            vocabulary: false,
        }
    }

    /// The format of a module of a layer, known under any of these names.
    pub(super) fn of(&self, layer: usize, modules: &[&str], routed: bool) -> Format {
        if modules.iter().any(|m| self.kept.has(layer, m)) {
            return self.plain;
        }
        let rule = self.rules.iter().find(|(list, _)| modules.iter().any(|m| list.has(layer, m)));
        match (rule, self.experts) {
            (Some((_, format)), _) => *format,
            (None, Some(format)) if routed => format,
            _ => self.base,
        }
    }

    /// The format of the embedding or the head.
    pub(super) fn of_vocabulary(&self, modules: &[&str]) -> Format {
        let named = self.rules.iter().find(|(list, _)| modules.iter().any(|m| list.has_outside(m)));
        match named {
            Some((_, format)) => *format,
            None if self.vocabulary && !modules.iter().any(|m| self.kept.has_outside(m)) => {
                self.base
            }
            None => self.plain,
        }
    }
}

/// Reads the scheme of a file, with the `hf_quant_config.json` beside it where there is one.
pub(super) fn scheme(
    fields: &Fields,
    beside: Option<&Json>,
    plain: DType,
    assumed: &mut Vec<String>,
) -> Result<Scheme, String> {
    let mut scheme = Scheme::plain(plain);
    let own = fields.get(&["quantization_config"]);
    // The block beside a file may be one level down.
    let beside = beside.map(|b| b.get("quantization").unwrap_or(b));
    let block = match (own, beside) {
        (Some(own), Some(beside)) if says_too_little(own) => beside,
        (Some(own), _) => own,
        (None, Some(beside)) => beside,
        (None, None) => return with_expert_format(scheme, fields),
    };
    scheme.read(block)?;
    cache_format(&[own, beside], assumed);
    if !scheme.kept.odd.is_empty() {
        let odd = scheme.kept.odd.join(", ");
        assumed.push(format!("kept modules `{odd}` are not understood: taken as quantised"));
    }
    with_expert_format(scheme, fields)
}

/// `expert_dtype` stores routed experts apart from the rest.
fn with_expert_format(mut scheme: Scheme, fields: &Fields) -> Result<Scheme, String> {
    let Some(name) = fields.text(&["expert_dtype"]) else { return Ok(scheme) };
    // A rule of the quantisation is more specific.
    if scheme.rules.is_empty() && scheme.experts.is_none() {
        scheme.experts = Some(match name {
            "fp4" | "mxfp4" => Format::of(DType::Mxfp4),
            other => Format::of(
                other.parse().map_err(|_| format!("expert_dtype `{other}` is not understood"))?,
            ),
        });
    }
    Ok(scheme)
}

/// Whether a block leaves its algorithm to the file beside.
fn says_too_little(block: &Json) -> bool {
    let method = block.get("quant_method").and_then(Json::text);
    let modelopt = method.is_none_or(|m| m.starts_with("modelopt"));
    modelopt && block.get("quant_algo").is_none() && block.get("config_groups").is_none()
}

/// Whether the file beside a configuration has to be read.
pub(super) fn needs_beside(fields: &Fields) -> bool {
    fields.get(&["quantization_config"]).is_none_or(says_too_little)
}

/// Says that a file declares a cache format, which is a setting of the engine.
fn cache_format(blocks: &[Option<&Json>], assumed: &mut Vec<String>) {
    let name = blocks.iter().flatten().find_map(|block| {
        let named = block.get("kv_cache_quant_algo").or_else(|| block.get("kv_cache_scheme"))?;
        match named {
            Json::Text(name) => Some(name.to_lowercase()),
            Json::Object(_) => {
                named.get("num_bits").and_then(Json::number).map(|bits| format!("{bits}-bit"))
            }
            _ => None,
        }
    });
    if let Some(name) = name {
        assumed.push(format!("the file declares an {name} cache; the cache is counted in bf16"));
    }
}

impl Scheme {
    fn read(&mut self, block: &Json) -> Result<(), String> {
        let text = |name: &str| block.get(name).and_then(Json::text);
        let method = text("quant_method").unwrap_or_default();
        // Where experts are quantised on top of a quantised model, the list is of what that left alone.
        if text("moe_quant_algo").is_none() {
            self.keep(block);
        }
        match method {
            "fp8" | "fbgemm_fp8" | "fp_quant" => self.fp8(block),
            "mxfp4" => self.experts_alone(Format::of(DType::Mxfp4)),
            "mxfp8" => self.base = MXFP8,
            "compressed-tensors" => self.groups(block)?,
            "awq" | "gptq" | "auto-round" | "autoround" | "gptq_marlin" | "awq_marlin"
            | "intel/auto-round" => {
                self.grouped_integers(block, method)?;
            }
            "bitsandbytes" => self.bitsandbytes(block)?,
            "quark" => self.quark(block)?,
            "" | "modelopt" | "modelopt_fp4" | "modelopt_mixed" => self.modelopt(block)?,
            other => {
                return Err(format!(
                    "quantisation `{other}` is not understood; fp8, fbgemm_fp8, mxfp4, compressed-tensors, modelopt, awq, gptq, auto-round, bitsandbytes and quark are"
                ));
            }
        }
        Ok(())
    }

    /// Takes the lists of modules that stay as they are.
    fn keep(&mut self, block: &Json) {
        const LISTS: [&str; 6] = [
            "modules_to_not_convert",
            "ignore",
            "exclude_modules",
            "exclude",
            "llm_int8_skip_modules",
            "ignored_layers",
        ];
        for list in LISTS.iter().filter_map(|name| block.get(name)).filter_map(Json::list) {
            for name in list.iter().filter_map(Json::text) {
                self.kept.add(name);
            }
        }
    }

    /// Routed experts in a format, everything else as it was.
    fn experts_alone(&mut self, format: Format) {
        self.base = self.plain;
        self.experts = Some(format);
    }

    fn fp8(&mut self, block: &Json) {
        self.base = fp8(block.get("weight_block_size"));
        // Some files say more about the experts than the method does.
        let moe = block.get("moe_quant_algo").and_then(Json::text).and_then(|a| algorithm(a, None));
        self.experts = moe;
    }

    /// `config_groups`: each with its targets.
    fn groups(&mut self, block: &Json) -> Result<(), String> {
        let groups = block.get("config_groups").and_then(Json::object);
        let groups =
            groups.ok_or("compressed-tensors without `config_groups` is not understood")?;
        let mut base = None;
        for (name, group) in groups {
            let weights = group.get("weights").filter(|w| **w != Json::Null);
            let Some(weights) = weights else { continue };
            let format = group_format(weights)
                .ok_or_else(|| format!("weights of `{name}` are not understood"))?;
            let targets: Vec<&str> = group
                .get("targets")
                .and_then(Json::list)
                .map_or_else(|| vec!["Linear"], |t| t.iter().filter_map(Json::text).collect());
            let classes = ["Linear", "FusedMoE", "MoELinear", "RoutedExperts"];
            if targets.iter().any(|t| classes.contains(t)) {
                base = base.or(Some(format));
            } else {
                self.rules.push((Modules::new(targets.into_iter()), format));
            }
        }
        self.base = base.unwrap_or(self.plain);
        Ok(())
    }

    fn grouped_integers(&mut self, block: &Json, method: &str) -> Result<(), String> {
        let bits = block.get("bits").or_else(|| block.get("w_bit")).and_then(Json::number);
        let bits = bits.ok_or_else(|| format!("`{method}` does not say its bits"))?;
        let size = block.get("group_size").or_else(|| block.get("q_group_size"));
        let zeros = block.get("zero_point").and_then(Json::bool).unwrap_or(false);
        self.base = integers(bits, size.and_then(Json::number), zeros)
            .ok_or_else(|| format!("`{method}` with {bits} bits is not understood"))?;
        self.vocabulary = block.get("lm_head").and_then(Json::bool).unwrap_or(false);
        if self.vocabulary {
            self.kept.add("embed_tokens");
        }
        // GPTQModel excludes modules by expressions that start with `-:`.
        for (name, _) in block.get("dynamic").and_then(Json::object).unwrap_or_default() {
            if let Some(expression) = name.strip_prefix("-:") {
                self.kept.add(&format!("re:{expression}"));
            }
        }
        Ok(())
    }

    fn bitsandbytes(&mut self, block: &Json) -> Result<(), String> {
        /// Weights that share a scale, and scales that share one of their own.
        const BLOCK: f64 = 64.0;
        const NESTED: f64 = 256.0;
        let on = |name: &str| block.get(name).and_then(Json::bool).unwrap_or(false);
        if on("load_in_4bit") || on("_load_in_4bit") {
            let scale = if on("bnb_4bit_use_double_quant") {
                8.0 / BLOCK + 32.0 / (BLOCK * NESTED)
            } else {
                32.0 / BLOCK
            };
            self.base = Format { dtype: DType::Int4, bits: 4.0 + scale };
        } else if on("load_in_8bit") || on("_load_in_8bit") {
            self.base = Format::of(DType::Int8);
        } else {
            return Err("bitsandbytes that loads neither 4 nor 8 bits is not understood".into());
        }
        Ok(())
    }

    fn quark(&mut self, block: &Json) -> Result<(), String> {
        let of = |config: &Json| config.get("weight").and_then(quark_format);
        let global = block.get("global_quant_config").and_then(of);
        self.base = global.ok_or("the weights of `global_quant_config` are not understood")?;
        for (name, config) in
            block.get("layer_quant_config").and_then(Json::object).unwrap_or_default()
        {
            let format = of(config).unwrap_or(self.plain);
            self.rules.push((Modules::new([name.as_str()].into_iter()), format));
        }
        Ok(())
    }

    fn modelopt(&mut self, block: &Json) -> Result<(), String> {
        let size = block.get("group_size").and_then(Json::number);
        let name = block.get("quant_algo").and_then(Json::text);
        match name {
            Some("MIXED_PRECISION") => self.mixed(block)?,
            Some(name) => {
                self.base = algorithm(name, size)
                    .ok_or_else(|| format!("quant_algo `{name}` is not understood"))?;
            }
            None if block.get("config_groups").is_some() => self.groups(block)?,
            None => return Err("a quantisation without quant_method and quant_algo".into()),
        }
        Ok(())
    }

    /// Modules listed with an algorithm each; what is not listed stays as it is.
    fn mixed(&mut self, block: &Json) -> Result<(), String> {
        let listed = block.get("quantized_layers").and_then(Json::object);
        let listed = listed.ok_or("MIXED_PRECISION without `quantized_layers`")?;
        let mut rules: Vec<(Format, Modules)> = Vec::new();
        for (module, how) in listed {
            // All experts of a layer are alike; the first stands for them.
            let number = module.split("experts.").nth(1).and_then(|t| t.split('.').next());
            if number.is_some_and(|n| n != "0" && n.bytes().all(|b| b.is_ascii_digit())) {
                continue;
            }
            let name = how.get("quant_algo").and_then(Json::text).unwrap_or_default();
            let size = how.get("group_size").and_then(Json::number);
            let format = algorithm(name, size)
                .ok_or_else(|| format!("quant_algo `{name}` of `{module}` is not understood"))?;
            match rules.iter_mut().find(|(f, _)| *f == format) {
                Some((_, modules)) => modules.add(module),
                None => rules.push((format, Modules::new([module.as_str()].into_iter()))),
            }
        }
        self.base = self.plain;
        self.rules = rules.into_iter().map(|(format, modules)| (modules, format)).collect();
        Ok(())
    }
}

/// 8-bit floats in groups of 32 with one 8-bit scale each.
const MXFP8: Format = Format { dtype: DType::Fp8, bits: 8.25 };

/// 8-bit floats with a scale for each block, or none worth counting.
fn fp8(block: Option<&Json>) -> Format {
    let sizes: Option<Vec<f64>> =
        block.and_then(Json::list).map(|l| l.iter().filter_map(Json::number).collect());
    let area: Option<f64> = sizes.filter(|s| s.len() == 2).map(|s| s[0] * s[1]);
    match area {
        Some(area) if area >= 1.0 => Format { dtype: DType::Fp8, bits: 8.0 + 32.0 / area },
        _ => Format { dtype: DType::Fp8, bits: 8.0 },
    }
}

/// Integers in groups with a 16-bit scale, and a zero point of their own width where there is one.
fn integers(bits: f64, group: Option<f64>, zeros: bool) -> Option<Format> {
    let dtype = match bits {
        b if (2.0..=4.0).contains(&b) => DType::Int4,
        b if (b - 8.0).abs() < 0.5 => DType::Int8,
        _ => return None,
    };
    let scale = match group {
        Some(size) if size >= 1.0 => (16.0 + if zeros { bits } else { 0.0 }) / size,
        _ => 0.0,
    };
    Some(Format { dtype, bits: bits + scale })
}

/// 4-bit floats: a group of 32 has a power of two as its scale, one of 16 an 8-bit float.
fn floats4(group: Option<f64>) -> Format {
    match group {
        Some(size) if size > 16.0 => Format { dtype: DType::Mxfp4, bits: 4.0 + 8.0 / size },
        Some(size) if size >= 1.0 => Format { dtype: DType::Nvfp4, bits: 4.0 + 8.0 / size },
        _ => Format::of(DType::Nvfp4),
    }
}

/// Weights of a group of compressed-tensors.
fn group_format(weights: &Json) -> Option<Format> {
    let number = |name: &str| weights.get(name).and_then(Json::number);
    let (bits, group) = (number("num_bits")?, number("group_size"));
    let symmetric = weights.get("symmetric").and_then(Json::bool).unwrap_or(true);
    let float = weights.get("type").and_then(Json::text) != Some("int");
    match (float, bits) {
        (true, b) if (b - 8.0).abs() < 0.5 => {
            let block = weights.get("block_structure").filter(|b| b.list().is_some());
            // Groups along a row have a scale each, 1.5 % of the bytes at most. Engines take them as
            // blocks, and so they are counted.
            Some(if group.is_some() { Format::of(DType::Fp8) } else { fp8(block) })
        }
        (true, b) if (b - 4.0).abs() < 0.5 => Some(floats4(group)),
        (true, _) => None,
        (false, bits) => integers(bits, group, !symmetric),
    }
}

/// Weights of a block of quark.
fn quark_format(weight: &Json) -> Option<Format> {
    // Two stages of one tensor: the first is what is stored.
    let weight = weight.list().and_then(<[Json]>::first).unwrap_or(weight);
    let group = weight.get("group_size").and_then(Json::number);
    match weight.get("dtype").and_then(Json::text)? {
        "fp4" | "mxfp4" => Some(floats4(group.or(Some(32.0)))),
        "fp8_e4m3" | "fp8_e5m2" => Some(fp8(None)),
        "int8" | "uint8" => integers(8.0, group, false),
        "int4" | "uint4" => integers(4.0, group, false),
        _ => None,
    }
}

/// The algorithms of modelopt.
fn algorithm(name: &str, group: Option<f64>) -> Option<Format> {
    match name.to_uppercase().as_str() {
        "NVFP4" | "W4A16_NVFP4" | "NVFP4_AWQ" | "W4A8_NVFP4_FP8" | "NVFP4_SVDQUANT" => {
            Some(floats4(group.or(Some(16.0))))
        }
        "MXFP4" | "W4A8_MXFP4_FP8" | "W4A8_MXFP4_MXFP8" | "W4A16_MXFP4" => {
            Some(Format::of(DType::Mxfp4))
        }
        "MXFP8" => Some(MXFP8),
        "FP8" | "FP8_PER_CHANNEL_PER_TOKEN" => Some(fp8(None)),
        "FP8_PB_WO" | "FP8_PB" | "FP8_BLOCK_SCALES" | "FP8_PB_REAL" => Some(Format::of(DType::Fp8)),
        "W4A16_AWQ" | "W4A8_AWQ" | "INT4_AWQ" | "W4A16" | "W4A16_GPTQ" => {
            integers(4.0, group.or(Some(128.0)), false)
        }
        "W8A16" | "INT8_SQ" | "W8A8_SQ_PER_CHANNEL" | "INT8" | "W8A16_GPTQ" => {
            integers(8.0, None, false)
        }
        _ => None,
    }
}
