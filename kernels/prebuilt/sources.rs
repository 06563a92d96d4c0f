// Written by kernels/cubins.py: what images are compiled from at run time.
&[
    Source {
        stem: "align",
        generic: true,
        text: include_str!("../align.cu"),
        kernels: &["align_histogram", "align_scan", "align_scatter", "align_small"],
    },
    Source {
        stem: "config_check",
        generic: true,
        text: include_str!("../config_check.cu"),
        kernels: &["config_check"],
    },
    Source {
        stem: "gemv",
        generic: true,
        text: include_str!("../gemv.cu"),
        kernels: &["gemv_bf16_down", "gemv_bf16_up", "gemv_w8_down", "gemv_w8_up"],
    },
    Source {
        stem: "grouped_gemm",
        generic: true,
        text: include_str!("../grouped_gemm.cu"),
        kernels: &["grouped_gemm_bf16_down_fast_m128", "grouped_gemm_bf16_down_fast_m16", "grouped_gemm_bf16_down_fast_m32", "grouped_gemm_bf16_down_fast_m64", "grouped_gemm_bf16_down_m128", "grouped_gemm_bf16_down_m16", "grouped_gemm_bf16_down_m32", "grouped_gemm_bf16_down_m64", "grouped_gemm_bf16_up_m128", "grouped_gemm_bf16_up_m16", "grouped_gemm_bf16_up_m32", "grouped_gemm_bf16_up_m64", "grouped_gemm_w8_down_fast_m16", "grouped_gemm_w8_down_fast_m32", "grouped_gemm_w8_down_fast_m64", "grouped_gemm_w8_down_m16", "grouped_gemm_w8_down_m32", "grouped_gemm_w8_down_m64", "grouped_gemm_w8_up_m16", "grouped_gemm_w8_up_m32", "grouped_gemm_w8_up_m64"],
    },
    Source {
        stem: "grouped_gemm_sm90",
        generic: false,
        text: include_str!("../grouped_gemm_sm90.cu"),
        kernels: &["grouped_gemm_sm90_bf16_down_fast_m128n256", "grouped_gemm_sm90_bf16_down_m128n128", "grouped_gemm_sm90_bf16_down_m128n192", "grouped_gemm_sm90_bf16_down_m128n256", "grouped_gemm_sm90_bf16_down_m256n128", "grouped_gemm_sm90_bf16_down_m256n192", "grouped_gemm_sm90_bf16_down_m64n256", "grouped_gemm_sm90_bf16_up_m128n192", "grouped_gemm_sm90_bf16_up_m128n256", "grouped_gemm_sm90_bf16_up_m256n128", "grouped_gemm_sm90_bf16_up_m256n192", "grouped_gemm_sm90_bf16_up_m64n256"],
    },
    Source {
        stem: "permute",
        generic: true,
        text: include_str!("../permute.cu"),
        kernels: &["combine_bf16", "permute_gather_bf16"],
    },
    Source {
        stem: "probe",
        generic: true,
        text: include_str!("../probe.cu"),
        kernels: &["probe_arithmetic", "probe_atomics", "probe_clock_stamp", "probe_copy", "probe_copy_async", "probe_flush", "probe_gate", "probe_ldmatrix", "probe_mma", "probe_overlap", "probe_read_stream", "probe_shuffle"],
    },
    Source {
        stem: "probe_sm90",
        generic: false,
        text: include_str!("../probe_sm90.cu"),
        kernels: &["probe_read_bulk", "probe_reduce", "probe_stmatrix", "probe_tma", "probe_tma_store", "probe_wgmma", "probe_wgmma_rs"],
    },
    Source {
        stem: "router_topk",
        generic: true,
        text: include_str!("../router_topk.cu"),
        kernels: &["router_topk_bf16", "router_topk_f32", "router_topk_gate_bf16"],
    },
    Source {
        stem: "swap_ab_sm90",
        generic: false,
        text: include_str!("../swap_ab_sm90.cu"),
        kernels: &["swap_ab_sm90_bf16_down_n16", "swap_ab_sm90_bf16_down_n32", "swap_ab_sm90_bf16_down_n64", "swap_ab_sm90_bf16_down_n8", "swap_ab_sm90_bf16_up_n16", "swap_ab_sm90_bf16_up_n32", "swap_ab_sm90_bf16_up_n64", "swap_ab_sm90_bf16_up_n8", "swap_ab_sm90_e4m3_down_n16", "swap_ab_sm90_e4m3_down_n32", "swap_ab_sm90_e4m3_down_n64", "swap_ab_sm90_e4m3_down_n8", "swap_ab_sm90_e4m3_up_n16", "swap_ab_sm90_e4m3_up_n32", "swap_ab_sm90_e4m3_up_n64", "swap_ab_sm90_e4m3_up_n8"],
    },
]
