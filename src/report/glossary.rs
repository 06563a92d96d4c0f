//! The terms of tables, pages and flags, each in a sentence or two.

use serde::Serialize;

/// A term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Term {
    /// As tables and pages write it.
    pub term: &'static str,
    /// Other words that it is found by.
    pub also: &'static [&'static str],
    /// What it means here, with its unit.
    pub meaning: &'static str,
}

const fn term(term: &'static str, also: &'static [&'static str], meaning: &'static str) -> Term {
    Term { term, also, meaning }
}

/// Every term, by the alphabet.
pub const TERMS: [Term; 44] = [
    term(
        "active parameters",
        &["n_active", "active"],
        "Parameters that one token meets: attention, router, shared experts and the top-k routed experts. They set the arithmetic of a token.",
    ),
    term(
        "all-to-all",
        &["exchange", "dispatch"],
        "Exchange of tokens between devices that hold different experts: to the experts before the FFN (dispatch), back after it (combine).",
    ),
    term(
        "at scale",
        &["fractional replicas"],
        "Replicas counted in fractions, as in a fleet so large that one replica more or less does not show.",
    ),
    term(
        "batch",
        &["mean batch", "max batch"],
        "Sequences that decode in one step of a replica. The mean follows from the load, the maximum from memory and service level.",
    ),
    term(
        "chunked prefill",
        &["chunk", "mixed"],
        "Prompts cut into pieces that ride on decode steps, so that a long prompt does not stop the sequences that decode.",
    ),
    term(
        "crossover",
        &["crossovers"],
        "Number of lifetime tokens at which another expert count becomes cheapest.",
    ),
    term(
        "data parallel",
        &["dp", "attention dp"],
        "Groups of devices that hold different sequences. Under data-parallel attention the experts are still spread over all groups.",
    ),
    term(
        "decision map",
        &["map"],
        "Which expert count is cheapest on a grid of two assumptions, with the probability of it.",
    ),
    term(
        "decode",
        &[],
        "Steps that add one token to each running sequence. At small batches the weights read from memory take the time, not arithmetic.",
    ),
    term(
        "dense model",
        &["dense"],
        "A model without experts: each token meets all parameters of every FFN.",
    ),
    term(
        "expert",
        &["experts", "e"],
        "One of the FFNs of a MoE layer. The router picks the top-k of them for each token.",
    ),
    term(
        "expert parallel",
        &["ep"],
        "Experts of a layer spread over devices, each whole on one of them; tokens travel to their experts.",
    ),
    term(
        "extrapolation",
        &["in_fit_range"],
        "By which factor an input lies outside what a law was fitted to, the largest over all inputs; 1 is inside.",
    ),
    term(
        "fp8",
        &["e4m3", "bf16", "mxfp4", "nvfp4", "int8", "int4", "f32"],
        "Storage of a number: bf16 16 bits, fp8 (e4m3) 8 with a scale a block, mxfp4 4.25 and nvfp4 4.5 bits with their scales, int8 and int4 whole numbers with scales.",
    ),
    term(
        "frontier",
        &["pareto"],
        "Candidates that no other beats in both training cost and serving cost.",
    ),
    term(
        "GQA",
        &["grouped-query attention", "mha"],
        "Attention whose query heads share fewer key and value heads, so the KV cache is smaller.",
    ),
    term(
        "granularity",
        &["g"],
        "How many times finer the experts are than the FFN of the dense model: G times as many, each 1/G as wide, and G times as many picked.",
    ),
    term(
        "grouped GEMM",
        &["gemm"],
        "Matrix products of all experts of a layer in one launch, each expert with its own rows.",
    ),
    term(
        "ISL and OSL",
        &["isl", "osl"],
        "Tokens of a prompt and of an answer, on average over requests.",
    ),
    term(
        "iso-loss",
        &["equal loss", "iso_loss"],
        "Models of different expert counts that reach the same loss; cost is compared only between those.",
    ),
    term(
        "KV cache",
        &["cache", "kv"],
        "Keys and values of all earlier tokens of a sequence, kept in device memory; it bounds the batch.",
    ),
    term(
        "lifetime tokens",
        &["lifetime"],
        "Output tokens served over the life of the model. Total cost is training plus these.",
    ),
    term(
        "loss law",
        &["law", "scaling law"],
        "A formula for the loss, in nats per token, from parameters, training tokens and experts, fitted to training runs.",
    ),
    term(
        "loss-optimal",
        &["compute-optimal", "loss_optimal"],
        "Size and tokens with the lowest loss for a training budget.",
    ),
    term(
        "MFU",
        &["model flops utilisation"],
        "Share of a device's peak arithmetic that training reaches. Training cost is FLOPs over peak times MFU.",
    ),
    term(
        "MLA",
        &["multi-head latent attention"],
        "Attention that caches one compressed vector a token in place of keys and values (DeepSeek).",
    ),
    term(
        "noise floor",
        &["noise"],
        "Difference that a machine finds between a kernel and itself. Smaller differences say nothing.",
    ),
    term(
        "over-training",
        &["over_trained", "tokens per parameter"],
        "A smaller model on more tokens than is loss-optimal: more expensive to train at equal loss, cheaper to serve.",
    ),
    term(
        "P(best)",
        &["p_best", "probability"],
        "Share of the draws over law coefficients, prices and latencies in which a candidate is cheapest of all that keep the limits.",
    ),
    term(
        "prefill",
        &["prompt"],
        "Steps that read a prompt. Arithmetic takes the time; it decides the TTFT.",
    ),
    term(
        "profile",
        &[],
        "A file of latencies measured by `measure`, with their intervals and where they come from.",
    ),
    term(
        "regret",
        &[],
        "Expected cost above the best choice's, over the draws, if this candidate is chosen.",
    ),
    term(
        "replica",
        &["replicas"],
        "One copy of the model on its devices. Replicas serve independently of each other.",
    ),
    term(
        "roofline",
        &["ceiling"],
        "Shortest time that memory bandwidth and peak arithmetic allow for an operation. A share of 1 is the bound itself.",
    ),
    term(
        "router",
        &["gate", "gating"],
        "The small matrix and the top-k choice that send each token to its experts.",
    ),
    term(
        "scale-up domain",
        &["nvlink", "domain"],
        "Devices joined by the fast links: a host of eight, or a rack of 72.",
    ),
    term(
        "service level",
        &["sla", "slo", "limit"],
        "Promised limits on TTFT and TPOT, on the mean or a percentile over requests.",
    ),
    term(
        "tensor parallel",
        &["tp"],
        "Each matrix split over devices, which add up their parts after attention and after each FFN.",
    ),
    term("top-k", &["top_k", "k"], "Number of routed experts that each token visits."),
    term(
        "total parameters",
        &["n_total", "total"],
        "All parameters. They set the memory of a deployment.",
    ),
    term(
        "TPOT",
        &["itl", "inter-token latency", "time per output token"],
        "Time per output token after the first: (end-to-end time - TTFT) / (output tokens - 1), in milliseconds.",
    ),
    term(
        "transfer",
        &["transferred"],
        "A latency carried from a measured shape or device to another by their rooflines; its interval carries the error of that.",
    ),
    term(
        "TTFT",
        &["time to first token"],
        "Time from a request's arrival to its first output token, in milliseconds; with queueing unless said otherwise.",
    ),
    term(
        "utilisation",
        &["load"],
        "Requests served over those that the replicas could serve within the limits. Dollars per token depend on it.",
    ),
];

/// The term by its name or another word for it, upper and lower case alike.
pub fn find(word: &str) -> Option<&'static Term> {
    let word = word.trim().to_lowercase().replace('_', " ");
    TERMS.iter().find(|t| {
        let names = [t.term].into_iter().chain(t.also.iter().copied());
        names.into_iter().any(|name| name.to_lowercase().replace('_', " ") == word)
    })
}

/// Every word that [`find`] knows.
pub fn words() -> impl Iterator<Item = &'static str> {
    TERMS.iter().flat_map(|t| [t.term].into_iter().chain(t.also.iter().copied()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn terms_are_in_order_and_no_word_means_two_things() {
        let order: Vec<String> = TERMS.iter().map(|t| t.term.to_lowercase()).collect();
        let mut sorted = order.clone();
        sorted.sort();
        assert_eq!(order, sorted);
        let all: Vec<String> = words().map(|w| w.to_lowercase().replace('_', " ")).collect();
        let unique: BTreeSet<&String> = all.iter().collect();
        assert_eq!(unique.len(), all.len());
        assert!(TERMS.iter().all(|t| t.meaning.ends_with('.')));
    }

    #[test]
    fn a_term_is_found_by_any_of_its_words() {
        assert_eq!(find("tpot").unwrap().term, "TPOT");
        assert_eq!(find("Inter-Token latency").unwrap().term, "TPOT");
        assert_eq!(find("p_best").unwrap().term, "P(best)");
        assert!(find("nothing").is_none());
    }
}
