//! One line that says what was read of a model.

use std::fmt::Write;

use crate::config::MoeModel;
use crate::config::layers::Mixer;
use crate::units::count;

impl MoeModel {
    /// Parameters, layers by kind, experts, weights and cache in one line.
    pub fn summary(&self) -> String {
        let params = self.params();
        let mut line = format!(
            "{}: {} total, {} active, {} layers",
            self.name,
            count(params.total()),
            count(params.active()),
            self.num_layers
        );
        let groups = self.layer_groups();
        let of = |wanted: fn(&Mixer) -> bool| -> usize {
            groups.iter().filter(|g| wanted(&g.mixer)).map(|g| g.layers).sum()
        };
        let attention = of(|m| matches!(m, Mixer::Attention(_)));
        let kinds = [
            (attention, "attention"),
            (of(|m| matches!(m, Mixer::Linear(_))), "linear"),
            (of(|m| matches!(m, Mixer::Mamba(_))), "Mamba"),
            (of(|m| matches!(m, Mixer::ShortConv { .. })), "convolution"),
        ];
        if attention < self.num_layers {
            let present = kinds.iter().filter(|k| k.0 > 0).map(|(n, name)| format!("{n} {name}"));
            let _ = write!(line, " ({})", present.collect::<Vec<_>>().join(", "));
        }
        if self.is_dense() {
            line.push_str(", dense");
        } else {
            let _ = write!(line, ", {} experts (top {})", self.num_experts, self.top_k);
        }
        let _ = write!(
            line,
            ", weights {} (experts {}), cache {} a token",
            self.weight_bytes(),
            self.expert_dtype.label(),
            self.kv_bytes(1.0)
        );
        let state = self.state_bytes();
        if state.0 > 0.0 {
            let _ = write!(line, ", state {state} a sequence");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use crate::config::preset;

    #[test]
    fn a_line_holds_what_matters_of_its_kind() {
        let line = |name: &str| preset::load(name).unwrap().model.summary();
        let mixtral = line("mixtral-8x7b");
        for part in ["46.7 B total", "12.9 B active", "8 experts (top 2)", "bf16", "128 KiB"] {
            assert!(mixtral.contains(part), "{part}: {mixtral}");
        }
        let next = line("qwen3-next-80b-a3b");
        assert!(next.contains("(12 attention, 36 linear)") && next.contains("state"), "{next}");
        assert!(line("qwen3-8b").contains(", dense,"));
        assert!(preset::names().all(|name| !line(name).contains('\n')));
    }
}
