//! Quantiles of a mixture of simple distributions: the tails of waiting and serving times.

use crate::units::Seconds;

/// Halvings of the interval that holds a quantile: far below a millionth of it.
const HALVINGS: usize = 30;

/// One part of a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shape {
    /// Even between a value and that value plus a width (0 is a single value).
    Uniform { from: f64, width: f64 },
    /// Exponential above a value.
    Exponential { from: f64, rate: f64 },
    /// Normal.
    Normal { mean: f64, sd: f64 },
}

impl Shape {
    /// Share of the part at or below `x`.
    fn below(self, x: f64) -> f64 {
        match self {
            Self::Uniform { from, width } if width > 0.0 => ((x - from) / width).clamp(0.0, 1.0),
            Self::Uniform { from, .. } => f64::from(x >= from),
            Self::Exponential { from, rate } => (1.0 - (-(x - from) * rate).exp()).max(0.0),
            Self::Normal { mean, sd } => normal_below((x - mean) / sd.max(1e-12)),
        }
    }

    /// A value that next to nothing exceeds.
    fn most(self) -> f64 {
        match self {
            Self::Uniform { from, width } => from + width,
            Self::Exponential { from, rate } => from + 20.0 / rate,
            Self::Normal { mean, sd } => mean + 6.0 * sd,
        }
    }
}

/// Weighted parts.
#[derive(Clone, Debug, Default)]
pub(super) struct Mixture {
    parts: Vec<(f64, Shape)>,
}

impl Mixture {
    /// Adds a part; parts without weight are left out.
    pub(super) fn add(&mut self, weight: f64, shape: Shape) {
        if weight > 0.0 {
            self.parts.push((weight, shape));
        }
    }

    /// The value that a share does not exceed; 0 of nothing.
    pub(super) fn quantile(&self, share: f64) -> Seconds {
        let total: f64 = self.parts.iter().map(|p| p.0).sum();
        let (mut low, mut high) = (0.0, self.parts.iter().map(|p| p.1.most()).fold(0.0, f64::max));
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            let below: f64 = self.parts.iter().map(|(w, shape)| w * shape.below(middle)).sum();
            if below < share * total {
                low = middle;
            } else {
                high = middle;
            }
        }
        Seconds(high)
    }
}

/// The normal distribution function to 1.4e-4: Bowling et al., J. Ind. Eng. Manag. 2 (2009).
fn normal_below(z: f64) -> f64 {
    1.0 / (1.0 + (-(0.070_56 * z.powi(3) + 1.5976 * z)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_parts_have_their_textbook_quantiles() {
        let of = |shape, share| {
            let mut mixture = Mixture::default();
            mixture.add(2.0, shape);
            mixture.add(0.0, Shape::Uniform { from: 1e9, width: 1.0 });
            mixture.quantile(share).0
        };
        let uniform = Shape::Uniform { from: 1.0, width: 2.0 };
        assert!((of(uniform, 0.25) - 1.5).abs() < 1e-6);
        assert!((of(Shape::Uniform { from: 1.0, width: 0.0 }, 0.5) - 1.0).abs() < 1e-6);
        let exponential = Shape::Exponential { from: 1.0, rate: 2.0 };
        assert!((of(exponential, 0.99) - (1.0 + 100f64.ln() / 2.0)).abs() < 1e-6);
        let normal = Shape::Normal { mean: 10.0, sd: 2.0 };
        assert!((of(normal, 0.5) - 10.0).abs() < 1e-6);
        assert!((of(normal, 0.975) - (10.0 + 2.0 * 1.96)).abs() < 0.01);
    }

    #[test]
    fn a_rare_slow_part_is_the_tail() {
        let mut mixture = Mixture::default();
        mixture.add(0.98, Shape::Uniform { from: 0.0, width: 1.0 });
        mixture.add(0.02, Shape::Uniform { from: 5.0, width: 1.0 });
        assert!(mixture.quantile(0.9).0 < 1.0);
        assert!((mixture.quantile(0.99).0 - 5.5).abs() < 1e-6);
        assert!(Mixture::default().quantile(0.5).0.abs() < 1e-12);
    }
}
