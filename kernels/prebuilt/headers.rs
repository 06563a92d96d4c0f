// Written by kernels/cubins.py: what sources include.
&[
    ("align.cuh", include_str!("../align.cuh")),
    ("common.cuh", include_str!("../common.cuh")),
    ("ptx.cuh", include_str!("../ptx.cuh")),
]
