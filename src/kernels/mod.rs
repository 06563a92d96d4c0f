//! Router, align, grouped GEMM and the whole MoE layer, behind one trait for every device.
