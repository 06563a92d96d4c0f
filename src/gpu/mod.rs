//! The CUDA driver, found at run time. One of the two places where `unsafe` is allowed.
