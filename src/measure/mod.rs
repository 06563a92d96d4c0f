//! Timing kernels so that the numbers can be believed.
