//! Works that stand beside the laws: what this program carries of each, and why nothing where a paper
//! brings nothing to compute here.

use serde::Serialize;

/// One work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Work {
    /// What it is about.
    pub title: &'static str,
    /// arXiv number.
    pub arxiv: &'static str,
    /// Where its idea is used here; `None` when nothing of it is.
    pub used_as: Option<&'static str>,
    /// What to know, or why nothing of it is used.
    pub note: &'static str,
}

/// The works, those in use first.
pub const WORKS: [Work; 19] = [
    Work {
        title: "Step Law",
        arxiv: "2503.04715",
        used_as: Some("learning rate and batch beside each candidate of `rank`"),
        note: "LR 1.79 N^-0.713 D^0.307, batch 0.58 D^0.571 tokens, N without the vocabulary; advice, \
               no part of the ranking",
    },
    Work {
        title: "Inference-aware accounting (Sardana et al.)",
        arxiv: "2401.00448",
        used_as: Some("`law optimal --served-tokens`, and the FLOPs-only table of `rank`"),
        note: "6 N D + 2 N D_served; measured cost replaces its constant MFU in the ranking",
    },
    Work {
        title: "Mu-parametrisation for MoE",
        arxiv: "2508.09752",
        used_as: Some("a note beside the learning rates of `rank`"),
        note: "a learning rate carries over to other widths and expert counts, not to other expert \
               widths",
    },
    Work {
        title: "Expert prototyping (M6-T)",
        arxiv: "2105.15082",
        used_as: Some("`measure --routing prototype`, and a router score of the kernels"),
        note: "k groups of E/k experts, top-1 inside each, outputs summed: the FLOPs of top-k, \
               (E/k)^k reachable sets; a balancing loss hurt there (PPL 2.694 with, 2.645 without)",
    },
    Work {
        title: "MC-MoE, mixed-precision compression",
        arxiv: "2410.06270",
        used_as: Some("`rank --weight-bits`, averages such as 2.54 included"),
        note: "bytes and bandwidth follow the bits, the loss as served by Kumar et al.; the paper's 76.6 % \
               smaller for 3.8 % of accuracy cannot be derived from its sizes",
    },
    Work {
        title: "Scaling laws for precision (Kumar et al.)",
        arxiv: "2411.04330",
        used_as: Some(
            "the loss that `rank --weights` and `--weight-bits` add below 16 bits, and what `--train-bits` \
             leaves of the parameters",
        ),
        note: "rounding after training, 0.0598 D^0.5068 / N^0.3439 exp(1.1277 - bits / 0.5907) nats; training \
               in few bits, parameters times 1 - exp(0.3037 - bits / 2.6745) for weights, 1.4072 and 2.2102 for \
               activations, 2.4185 and 0.9578 for the cache; fitted to runs of at most 220M parameters and 26B tokens",
    },
    Work {
        title: "Data-constrained language models (Muennighoff et al.)",
        arxiv: "2305.16264",
        used_as: Some("`rank --unique-tokens`"),
        note: "U unique tokens seen D times are worth U + U R (1 - exp(-(D/U - 1) / R)), R = 15.387756",
    },
    Work {
        title: "Over-training (Gadre et al.)",
        arxiv: "2403.08540",
        used_as: Some(
            "the share of over-training that pays beyond a law's runs, and downstream error from loss: `law \
             fit --form gadre2024`, `law eval --downstream`, `rank --downstream`",
        ),
        note: "104 released runs up to 640 tokens per parameter: fits to ratios up to 85 promise a third \
               more than comes true; Err = epsilon - k exp(-gamma L), coefficients from runs of one's own",
    },
    Work {
        title: "Familial models",
        arxiv: "2512.23407",
        used_as: Some("`law eval` and `law fit` of form familial2025, and `rank --exits`"),
        note: "one trunk with G exits, its mean loss times G^gamma with gamma about 0.033; the other \
               coefficients come from the user",
    },
    Work {
        title: "qs inequality",
        arxiv: "2603.08960",
        used_as: Some("the dense baseline that `rank` includes"),
        note: "at decode, fragmented routing and lost cache can make a MoE model lose to a dense one \
               of equal quality",
    },
    Work {
        title: "FLP and FLP-M, downstream accuracy from loss",
        arxiv: "2410.08527",
        used_as: None,
        note: "its coefficients are not published; the form of Gadre et al. gives downstream error from \
               loss instead",
    },
    Work {
        title: "Multi-model collaboration",
        arxiv: "2512.23340",
        used_as: None,
        note: "ensembles chosen by an oracle, not one model to train",
    },
    Work {
        title: "Sparse MoEs meet efficient ensembles",
        arxiv: "2110.03360",
        used_as: None,
        note: "ensembles of sparse models (up to 45 % fewer FLOPs than a deep ensemble, published)",
    },
    Work {
        title: "Mixtures of experts in deep reinforcement learning",
        arxiv: "2402.08609",
        used_as: None,
        note: "value networks: no language loss",
    },
    Work {
        title: "Superposition in Transformers",
        arxiv: "2501.00530",
        used_as: None,
        note: "merges models by autoencoders: no law of the number of experts",
    },
    Work {
        title: "Duo-LLM",
        arxiv: "2410.10846",
        used_as: None,
        note: "compute that varies by token: no law of size and data",
    },
    Work {
        title: "Holistic MoE scaling",
        arxiv: "2603.21862",
        used_as: None,
        note: "known from other papers only: D 22.89 C^0.4563, forward FLOPs per token 0.0437 C^0.5437, \
               total over active parameters 18-25",
    },
    Work {
        title: "Optimal sparsity for reasoning (Nakamura et al.)",
        arxiv: "2508.18672",
        used_as: None,
        note: "known from other papers only: memorisation likes sparsity, reasoning does not; not a \
               statement about loss",
    },
    Work {
        title: "Farseer",
        arxiv: "2506.10972",
        used_as: None,
        note: "a dense law without expert terms; the dense laws here are the baselines",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_has_its_number_and_says_what_is_used_or_why_nothing_is() {
        for work in WORKS {
            let (month, number) = work.arxiv.split_once('.').unwrap();
            assert!(month.len() == 4 && number.len() == 5, "{}", work.arxiv);
            assert!(work.note.len() > 20 && work.used_as.is_none_or(|u| u.len() > 10));
        }
        let mut numbers: Vec<&str> = WORKS.iter().map(|w| w.arxiv).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), WORKS.len(), "a work is listed twice");
    }
}
