//! What a MoE layer is given: which token visits which expert, and the work that follows from it.
