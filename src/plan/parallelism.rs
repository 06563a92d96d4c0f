//! Parallel sizes as files of measured points write them.

use crate::serving::Layout;

/// Parallelism as the files write it: `tp8`, `tp8pp1 moe_tp8 moe_ep1`, `DEP4`, `TP8 (attn DP)`.
///
/// # Errors
/// A sentence: what is not understood, or that it does not use `gpus` devices.
pub fn parse(text: &str, gpus: Option<usize>) -> Result<Layout, String> {
    let lower = text.to_lowercase();
    let number_after = |prefix: &str| -> Option<usize> {
        lower.split_whitespace().find_map(|word| {
            let digits = word.strip_prefix(prefix)?;
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            digits[..end].parse().ok()
        })
    };
    let unknown = || format!("parallelism `{text}` is not understood");
    if lower.contains("pp") && !lower.contains("pp1") {
        return Err(format!("pipeline parallelism (`{text}`) is not modelled"));
    }
    let layout = if let Some(ranks) = number_after("dep") {
        Layout { attention_tp: 1, attention_dp: ranks, moe_tp: 1, moe_ep: ranks }
    } else if let Some(ranks) = number_after("tep") {
        Layout { attention_tp: ranks, attention_dp: 1, moe_tp: 1, moe_ep: ranks }
    } else if lower.contains("attn dp") {
        let ranks = number_after("tp").ok_or_else(unknown)?;
        // Engines that spread attention over sequences spread experts over the same ranks.
        Layout { attention_tp: 1, attention_dp: ranks, moe_tp: 1, moe_ep: ranks }
    } else if let Some(ranks) = number_after("tp") {
        let dp = number_after("dp").unwrap_or(1);
        let moe_ep = number_after("moe_ep").or_else(|| number_after("ep")).unwrap_or(1);
        let rest = (ranks * dp / moe_ep).max(1);
        let moe_tp = number_after("moe_tp").unwrap_or(rest);
        Layout { attention_tp: ranks, attention_dp: dp, moe_tp, moe_ep }
    } else {
        return Err(unknown());
    };
    match gpus {
        Some(gpus) if gpus != layout.devices() => {
            Err(format!("`{text}` uses {} devices, the row has {gpus}", layout.devices()))
        }
        _ => Ok(layout),
    }
}
