//! Dense baselines: `L = E + A / N^alpha + B / D^beta`, nats per token, N with embeddings.
//!
//! Hoffmann et al. 2022 (arXiv 2203.15556) printed rounded coefficients that are not usable for
//! optima: at 5.76e23 FLOPs they give 92.6 tokens per parameter where the unrounded ones of the
//! released notebook give 58.9. Besiroglu et al. 2024 (arXiv 2404.10102) refitted the plotted runs.

use crate::law::PowerLawSlice;

/// A published set of coefficients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseLaw {
    /// Identifier.
    pub id: &'static str,
    /// Where the coefficients were published.
    pub source: &'static str,
    /// The law.
    pub slice: PowerLawSlice,
}

impl DenseLaw {
    /// Hoffmann et al. 2022 as printed; two-digit exponents move optima by a factor of two.
    pub const fn hoffmann_printed() -> Self {
        let slice = PowerLawSlice { m: 406.4, mu: -0.34, n: 410.7, nu: -0.28, c: 1.69 };
        Self { id: "hoffmann2022_printed", source: "arXiv 2203.15556, section 3.3", slice }
    }

    /// Hoffmann et al. 2022 with the digits of the released notebook.
    pub fn hoffmann() -> Self {
        let slice = PowerLawSlice {
            m: 6.007_340_4_f64.exp(),
            mu: -0.339_170_84,
            n: 6.017_918_6_f64.exp(),
            nu: -0.284_908_3,
            c: 0.526_722_8_f64.exp(),
        };
        Self { id: "hoffmann2022", source: "arXiv 2203.15556, released notebook", slice }
    }

    /// Besiroglu et al. 2024.
    pub const fn besiroglu() -> Self {
        let slice = PowerLawSlice {
            m: 482.005_72,
            mu: -0.347_81,
            n: 2_085.434_2,
            nu: -0.365_85,
            c: 1.816_86,
        };
        Self { id: "besiroglu2024", source: "arXiv 2404.10102, equation 2", slice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Flops;

    #[test]
    fn losses_and_optima_agree_with_the_computed_values() {
        type Case = (DenseLaw, f64, [f64; 3], [f64; 4]);
        // L(1e9, 20e9); at 1e20: N in M, D in B, loss; at 5.76e23: N in B, D in T, D/N, loss.
        let cases: [Case; 3] = [
            (
                DenseLaw::hoffmann_printed(),
                2.58005,
                [644.9, 25.85, 2.5998],
                [32.19, 2.982, 92.6, 1.9307],
            ),
            (DenseLaw::hoffmann(), 2.53067, [774.9, 21.51, 2.5534], [40.36, 2.379, 58.9, 1.9184]),
            (DenseLaw::besiroglu(), 2.52921, [854.5, 19.50, 2.5526], [72.35, 1.327, 18.3, 1.9740]),
        ];
        let close = |got: f64, expected: f64, relative: f64| {
            assert!((got / expected - 1.0).abs() <= relative, "{got} against {expected}");
        };
        for (law, loss, small, large) in cases {
            assert!((law.slice.loss(1e9, 20e9).0 - loss).abs() <= 1e-5, "{}", law.id);
            let best = law.slice.optimum(Flops(1e20));
            close(best.n_active, small[0] * 1e6, 2e-3);
            close(best.tokens, small[1] * 1e9, 2e-3);
            assert!((best.loss.0 - small[2]).abs() <= 1e-4);
            let best = law.slice.optimum(Flops(5.76e23));
            close(best.n_active, large[0] * 1e9, 2e-3);
            close(best.tokens, large[1] * 1e12, 2e-3);
            close(best.tokens / best.n_active, large[2], 4e-3);
            assert!((best.loss.0 - large[3]).abs() <= 1e-4);
        }
    }
}
