//! Router: scores, top-k with ties to the lowest id, weights.

use rayon::prelude::*;

use crate::Result;
use crate::kernels::cpu::simd::{Isa, Router, route_rows};
use crate::kernels::reference::{self, nan_logit};
use crate::kernels::{Routed, RouterSpec};

/// Least work of a task, in logits: about 25 us. On two cores the smallest batch that is split, 50 us on one
/// thread, took 29 to 42 us (1,024 tokens of 32 experts), and 4,096 tokens of 256 experts 541 instead of 1,053.
const GRAIN: usize = 32 * 1024;
/// What a row costs beside its logits, in logits: a row of 8 takes as long as one of 32 (50 ns, top-2).
const ROW: usize = 32;

/// Chooses `top_k` of `experts` experts for each token of `logits` `[tokens, experts]` into `routed`,
/// with the fastest instruction set and, for many tokens, on the threads of the current pool.
///
/// Allocates only while `routed` grows; routers of very many groups of very few experts, which no known
/// model has, use the reference.
///
/// # Errors
/// [`crate::Error::Usage`] for a NaN logit or settings that do not fit.
pub fn route(
    logits: &[f32],
    experts: usize,
    top_k: usize,
    spec: &RouterSpec,
    routed: &mut Routed,
) -> Result<()> {
    route_in(Isa::detect(), logits, experts, top_k, spec, routed)
}

/// The same with a given instruction set; one that the processor does not have is replaced by what every
/// processor has.
///
/// # Errors
/// As [`route`].
pub fn route_in(
    isa: Isa,
    logits: &[f32],
    experts: usize,
    top_k: usize,
    spec: &RouterSpec,
    routed: &mut Routed,
) -> Result<()> {
    spec.validate(experts, top_k)?;
    let router = Router { experts, top_k, spec };
    if !router.fits() {
        *routed = reference::route(logits, experts, top_k, spec)?;
        return Ok(());
    }
    let tokens = logits.len() / experts;
    routed.ids.resize(tokens * top_k, 0);
    routed.weights.resize(tokens * top_k, 0.0);
    let grain = GRAIN.div_ceil(experts + ROW);
    let are_numbers = if tokens < 2 * grain || rayon::current_num_threads() == 1 {
        route_rows(isa, router, logits, &mut routed.ids, &mut routed.weights)
    } else {
        let ids = routed.ids.par_chunks_mut(grain * top_k);
        let outputs = ids.zip(routed.weights.par_chunks_mut(grain * top_k));
        logits
            .par_chunks(grain * experts)
            .zip(outputs)
            .all(|(logits, (ids, weights))| route_rows(isa, router, logits, ids, weights))
    };
    if are_numbers {
        return Ok(());
    }
    let bad = logits.chunks_exact(experts).position(|row| row.iter().any(|l| l.is_nan()));
    Err(nan_logit(bad.unwrap_or(0)))
}
