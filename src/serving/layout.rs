//! How a model is spread over the devices of one replica.

use crate::config::{Attention, DType, MoeModel};
use crate::constants::FP8_BLOCK;
use crate::{Error, Result};

/// Parallel sizes of one replica.
///
/// Attention and MoE use the same devices: `attention_tp x attention_dp = moe_tp x moe_ep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Layout {
    /// Ranks that share each attention head group.
    pub attention_tp: usize,
    /// Groups that hold different sequences (attention data parallel).
    pub attention_dp: usize,
    /// Ranks that share each expert.
    pub moe_tp: usize,
    /// Groups that hold different experts.
    pub moe_ep: usize,
}

impl Layout {
    /// Plain tensor parallelism.
    pub const fn tensor(devices: usize) -> Self {
        Self { attention_tp: devices, attention_dp: 1, moe_tp: devices, moe_ep: 1 }
    }

    /// Tensor-parallel attention, experts spread over the same ranks.
    pub const fn tensor_expert(devices: usize) -> Self {
        Self { attention_tp: devices, attention_dp: 1, moe_tp: 1, moe_ep: devices }
    }

    /// Attention by sequences, experts spread over the same ranks.
    pub const fn data_expert(devices: usize) -> Self {
        Self { attention_tp: 1, attention_dp: devices, moe_tp: 1, moe_ep: devices }
    }

    /// The layouts of `model` with so many copies of experts that are tried on each of `sizes` devices.
    pub fn candidates(model: &MoeModel, redundant: usize, sizes: &[usize]) -> Vec<Self> {
        let mut all = Vec::new();
        for &devices in sizes {
            all.push(Self::tensor(devices));
            if devices > 1 && !model.is_dense() {
                all.push(Self::tensor_expert(devices));
                all.push(Self::data_expert(devices));
            }
        }
        all.retain(|layout| layout.validate_with(model, redundant).is_ok());
        all
    }

    /// Devices of the replica.
    pub const fn devices(&self) -> usize {
        self.attention_tp * self.attention_dp
    }

    /// Scale-up domains of `domain` devices that the replica spans.
    pub const fn nodes(&self, domain: usize) -> usize {
        self.devices().div_ceil(domain)
    }

    /// Checks that the layout divides the model.
    ///
    /// # Errors
    /// [`Error::Usage`] that names what does not divide.
    pub fn validate(&self, model: &MoeModel) -> Result<()> {
        self.validate_with(model, 0)
    }

    /// The same with so many copies of experts beside the model's own.
    ///
    /// # Errors
    /// As [`Self::validate`]; copies without expert-parallel ranks to balance.
    pub fn validate_with(&self, model: &MoeModel, redundant: usize) -> Result<()> {
        let bad = |reason: String| Err(Error::usage("layout", reason));
        let parts = [self.attention_tp, self.attention_dp, self.moe_tp, self.moe_ep];
        if parts.contains(&0) || self.devices() != self.moe_tp * self.moe_ep {
            return bad(format!("{self}: attention and MoE use different numbers of devices"));
        }
        let heads = match model.attention {
            Attention::Gqa { heads, .. } | Attention::Mla { heads, .. } => heads,
        };
        if !heads.is_multiple_of(self.attention_tp) {
            return bad(format!("{heads} heads do not divide over {} ranks", self.attention_tp));
        }
        let experts = model.num_experts;
        if redundant > 0 && (self.moe_ep == 1 || redundant > experts * (self.moe_ep - 1)) {
            return bad(format!(
                "{redundant} copies of {experts} experts have no place on {} rank(s)",
                self.moe_ep
            ));
        }
        if !(experts + redundant).is_multiple_of(self.moe_ep) {
            let copies =
                if redundant > 0 { format!(" and {redundant} copies") } else { String::new() };
            return bad(format!(
                "{experts} experts{copies} do not divide over {} ranks",
                self.moe_ep
            ));
        }
        let width = model.moe_intermediate_size;
        if !width.is_multiple_of(self.moe_tp) {
            return bad(format!("expert width {width} does not divide over {}", self.moe_tp));
        }
        let local = width / self.moe_tp;
        if model.expert_dtype == DType::Fp8 && !model.is_dense() && !local.is_multiple_of(FP8_BLOCK)
        {
            return bad(format!(
                "{width} / {} is no multiple of the {FP8_BLOCK} that fp8 weights are scaled in",
                self.moe_tp
            ));
        }
        Ok(())
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tp{}", self.attention_tp)?;
        if self.attention_dp > 1 {
            write!(f, " dp{}", self.attention_dp)?;
        }
        if self.moe_ep > 1 {
            write!(f, " ep{}", self.moe_ep)?;
            if self.moe_tp > 1 {
                write!(f, " moe-tp{}", self.moe_tp)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::preset;

    #[test]
    fn layouts_that_do_not_divide_are_refused() {
        let model = preset::load("mixtral-8x7b").unwrap().model;
        for (attention_tp, attention_dp, moe_tp, moe_ep) in
            [(3, 1, 3, 1), (2, 1, 4, 1), (1, 16, 1, 16), (0, 1, 1, 1)]
        {
            let layout = Layout { attention_tp, attention_dp, moe_tp, moe_ep };
            assert_eq!(layout.validate(&model).unwrap_err().exit_code(), 2, "{layout}");
        }
    }

    #[test]
    fn blocks_of_fp8_weights_are_never_split() {
        let mut model = preset::load("qwen3-30b-a3b").unwrap().model;
        model.expert_dtype = DType::Fp8;
        // 768 / 8 = 96.
        assert!(Layout::tensor(8).validate(&model).is_err());
        assert!(Layout::tensor(2).validate(&model).is_ok());
    }
}
