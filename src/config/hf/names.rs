//! The names of each quantity in `config.json` files, the most specific first.
//!
//! A dot reaches into a block. A new family that only renames is one word in one of these lists.

pub(super) const HIDDEN: &[&str] = &["hidden_size", "d_model", "n_embd", "model_dim", "dim"];
pub(super) const LAYERS: &[&str] = &["num_hidden_layers", "n_layers", "num_layers", "n_layer"];
pub(super) const VOCAB: &[&str] = &["vocab_size", "padded_vocab_size", "n_vocab"];
pub(super) const TIED: &[&str] = &["tie_word_embeddings", "tie_embeddings"];

pub(super) const HEADS: &[&str] =
    &["num_attention_heads", "n_heads", "n_head", "num_heads", "attn_config.n_heads"];
pub(super) const KV_HEADS: &[&str] = &[
    "num_key_value_heads",
    "attn_config.kv_n_heads",
    "n_kv_heads",
    "num_kv_heads",
    "num_attention_groups",
    "num_query_groups",
    "multi_query_group_num",
    "n_head_kv",
];
pub(super) const HEAD_DIM: &[&str] =
    &["head_dim", "attention_head_dim", "kv_channels", "attn_config.head_dim", "v_channels"];
pub(super) const WINDOW: &[&str] = &["sliding_window", "sliding_window_size", "window_size"];
pub(super) const WINDOW_PATTERN: &[&str] =
    &["sliding_window_pattern", "global_attn_every_n_layers", "_sliding_window_pattern"];

pub(super) const EXPERTS: &[&str] = &[
    "num_local_experts",
    "n_routed_experts",
    "num_experts",
    "moe_num_experts",
    "ffn_config.moe_num_experts",
    "moe_config.num_experts",
    "num_routed_experts",
    "num_moe_experts",
    "moe_config.n_routed_experts",
    "n_experts",
];
/// Not `top_k`, which is a setting of sampling.
pub(super) const TOP_K: &[&str] = &[
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "ffn_config.moe_top_k",
    "moe_config.num_experts_per_tok",
    "num_selected_experts",
    "moe_router_topk",
    "router_top_k",
    "n_activated_experts",
    "num_experts_per_layer_tok",
];
pub(super) const EXPERT_WIDTH: &[&str] = &[
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "moe_ffn_hidden_size",
    "ffn_config.ffn_hidden_size",
    "expert_intermediate_size",
    "moe_config.intermediate_size",
    "moe_hidden_size",
    "expert_hidden_size",
    "moe_inter_dim",
];
pub(super) const WIDTH: &[&str] =
    &["intermediate_size", "ffn_hidden_size", "n_inner", "d_ff", "ffn_dim", "inter_dim"];
pub(super) const DENSE_WIDTH: &[&str] =
    &["dense_intermediate_size", "intermediate_size_mlp", "ffn_intermediate_size"];
pub(super) const LATENT: &[&str] =
    &["moe_latent_size", "routed_expert_hidden_size", "expert_latent_size"];
pub(super) const ZERO_EXPERTS: &[&str] = &["zero_expert_num", "num_zero_experts", "n_zero_experts"];

pub(super) const SHARED: &[&str] = &[
    "n_shared_experts",
    "num_shared_experts",
    "num_shared_expert",
    "moe_num_shared_experts",
    "num_share_experts",
    "moe_config.num_shared_experts",
];
pub(super) const SHARED_WIDTH: &[&str] = &[
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
    "share_expert_dim",
    "moe_shared_intermediate_size",
    "shared_expert_hidden_size",
];

pub(super) const LEADING_DENSE: &[&str] = &[
    "first_k_dense_replace",
    "num_dense_layers",
    "moe_layer_start_index",
    "n_dense_layers",
    "first_num_dense_layers",
    "num_dense_replace",
];
pub(super) const SPARSE_STEP: &[&str] = &[
    "decoder_sparse_step",
    "interleave_moe_layer_step",
    "moe_layer_interval",
    "moe_layer_frequency",
];
pub(super) const FFN_TYPES: &[&str] = &["mlp_layer_types", "ffn_layer_types"];
pub(super) const MIXER_TYPES: &[&str] =
    &["layer_types", "layers_block_type", "layer_block_types", "attention_layer_types"];

pub(super) const SCORING: &[&str] = &[
    "scoring_func",
    "score_function",
    "score_func",
    "moe_router_activation_func",
    "router_score_function",
    "moe_router_score_function",
    "router_scoring_func",
    "moe_scoring_func",
    "moe_router_activation",
    "gating_function",
];
pub(super) const RENORMALIZE: &[&str] = &[
    "norm_topk_prob",
    "moe_renormalize",
    "route_norm",
    "norm_topk_weights",
    "moe_norm_topk_prob",
    "norm_expert_weight",
    "ffn_config.moe_normalize_expert_weights",
    "moe_norm_min",
];
pub(super) const BIAS: &[&str] = &[
    "use_routing_bias",
    "use_moe_router_bias",
    "moe_router_enable_expert_bias",
    "use_expert_bias",
    "moe_use_aux_free",
    "router_bias",
    "moe_router_use_expert_bias",
];
pub(super) const SCALING: &[&str] = &[
    "routed_scaling_factor",
    "moe_router_scaling_factor",
    "route_scale",
    "router_scaling_factor",
    "moe_routed_scaling_factor",
    "moe_router_topk_scaling_factor",
];
pub(super) const GROUPS: &[&str] = &["n_group", "num_expert_group", "moe_router_num_groups"];
pub(super) const TOP_GROUPS: &[&str] = &["topk_group", "moe_router_group_topk"];

pub(super) const DTYPE: &[&str] = &["torch_dtype", "dtype", "params_dtype"];
pub(super) const ACTIVATION: &[&str] = &[
    "mlp_hidden_act",
    "hidden_act",
    "hidden_activation",
    "ffn_config.ffn_act_fn.name",
    "activation_function",
];
