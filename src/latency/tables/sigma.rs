//! Standard deviations of ln(time) of an answer by how it was obtained, from what the tables
//! themselves show (see `errors`): the share of cells predicted within an error is matched at
//! about two thirds. Kept in one place; `reports/accuracy.md` prints the errors.

/// A measured cell whose series holds no repetition: two runs of one cell differ by a median of 1 %
/// where tables repeat them.
pub(super) const MEASURED: f64 = 0.015;
/// Between measured points of one series (points left out and predicted from their neighbours).
pub(super) const INTERPOLATED: f64 = 0.04;
/// Between measured GEMM sizes.
pub(super) const GEMM_SIZE: f64 = 0.12;
/// Another layout (TP, EP) of a measured MoE shape.
pub(super) const LAYOUT: f64 = 0.10;
/// Other MoE shapes (a shape left out and predicted from the others).
pub(super) const SHAPE: f64 = 0.25;
/// Other head counts, window or head size.
pub(super) const HEADS: f64 = 0.10;
/// Another device (H100 tables against H200's).
pub(super) const DEVICE: f64 = 0.07;
/// Another engine: kernels of two engines differ by a median of 1.3 to 1.6 on one shape.
pub(super) const ENGINE: f64 = 0.35;
/// Another number of ranks or nodes than measured.
pub(super) const RANKS: f64 = 0.25;

/// Independent contributions together.
pub(super) fn together(parts: &[f64]) -> f64 {
    parts.iter().map(|p| p * p).sum::<f64>().sqrt()
}
