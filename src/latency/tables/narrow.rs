//! Numbers in the narrow types that tables keep them in.

/// A size in 32 bits; larger ones do not exist and saturate.
pub(super) fn word(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// A whole number that was kept as a real one, in 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates; sizes are whole and not negative"
)]
pub(super) fn whole(value: f64) -> u32 {
    value.round() as u32
}

/// A time or a place in 32 bits: 1e-7 of relative rounding.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what is meant")]
pub(super) fn single(value: f64) -> f32 {
    value as f32
}

/// The nearest whole number.
#[expect(clippy::cast_possible_truncation, reason = "the cast saturates, far outside any count")]
pub(super) fn level(value: f64) -> i64 {
    value.round() as i64
}
