//! Smoothing of a measured share of the roofline over layer shapes. Pure arithmetic, no device.
//!
//! The share ln(SOL / measured) varies slowly with three quantities: rows per active expert,
//! bytes of one expert and the number of active experts. A local linear fit over all cells gives a
//! smooth surface; it is tabulated once on a regular grid, so that a lookup costs a few multiplications.

/// Quantities that a share of the roofline is smoothed over.
pub(super) const AXES: usize = 3;

/// One measured share at its natural logarithms of (rows per active expert, bytes of one expert,
/// active experts).
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) at: [f64; AXES],
    pub(super) ln_util: f64,
}

/// How fast neighbours lose weight along each axis: rows decide most, because kernels change
/// their inner loop with them; size and number of experts matter only where overheads show.
const SCALE: [f64; AXES] = [1.0, 0.6, 0.6];

/// Distance (in scaled natural logarithms) within which cells count alike; it averages their noise.
const BANDWIDTH: f64 = 0.35;

/// Ridge on the slopes, relative to the total weight: flat where the data say nothing.
const RIDGE: f64 = 0.05;

/// The box that holds all points.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) low: [f64; AXES],
    pub(super) high: [f64; AXES],
}

impl Bounds {
    /// The smallest box around the points; `None` without any.
    pub(super) fn around<'a>(points: impl Iterator<Item = &'a Point>) -> Option<Self> {
        points.fold(None, |bounds: Option<Self>, point| {
            let mut bounds = bounds.unwrap_or(Self { low: point.at, high: point.at });
            for axis in 0..AXES {
                bounds.low[axis] = bounds.low[axis].min(point.at[axis]);
                bounds.high[axis] = bounds.high[axis].max(point.at[axis]);
            }
            Some(bounds)
        })
    }

    /// The nearest place inside the box, and the distance to it in natural logarithms.
    pub(super) fn clamp(&self, at: [f64; AXES]) -> ([f64; AXES], f64) {
        let mut inside = at;
        let mut squared = 0.0;
        for axis in 0..AXES {
            inside[axis] = at[axis].clamp(self.low[axis], self.high[axis]);
            squared += (at[axis] - inside[axis]).powi(2);
        }
        (inside, squared.sqrt())
    }
}

/// Local linear estimate of ln util at `at`, kept within the range of the points it is made of;
/// `None` without any.
pub(super) fn smooth<'a>(points: impl Iterator<Item = &'a Point>, at: [f64; AXES]) -> Option<f64> {
    // Normal equations of ln_util = c0 + c . (x - at), upper triangle and right-hand side.
    let mut normal = [[0.0; AXES + 1]; AXES + 1];
    let mut right = [0.0; AXES + 1];
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for point in points {
        let mut row = [1.0; AXES + 1];
        let mut squared = BANDWIDTH * BANDWIDTH;
        for axis in 0..AXES {
            row[axis + 1] = SCALE[axis] * (point.at[axis] - at[axis]);
            squared += row[axis + 1] * row[axis + 1];
        }
        let weight = 1.0 / (squared * squared);
        for i in 0..=AXES {
            for j in i..=AXES {
                normal[i][j] += weight * row[i] * row[j];
            }
            right[i] += weight * row[i] * point.ln_util;
        }
        low = low.min(point.ln_util);
        high = high.max(point.ln_util);
    }
    let total = normal[0][0];
    if total <= 0.0 {
        return None;
    }
    for (i, row) in normal.iter_mut().enumerate().skip(1) {
        row[i] += RIDGE * total;
    }
    let value = first_unknown(normal, right);
    Some(value.clamp(low, high))
}

/// Solves the symmetric positive definite system (upper triangle given) for its first unknown, by
/// eliminating the others from the last one up.
fn first_unknown(mut matrix: [[f64; AXES + 1]; AXES + 1], mut right: [f64; AXES + 1]) -> f64 {
    for k in (1..=AXES).rev() {
        for i in 0..k {
            let factor = matrix[i][k] / matrix[k][k];
            let column = matrix.map(|row| row[k]);
            for (entry, below) in matrix[i].iter_mut().zip(column).take(k).skip(i) {
                *entry -= factor * below;
            }
            right[i] -= factor * right[k];
        }
    }
    right[0] / matrix[0][0]
}

/// Nodes along each axis: rows span the widest range and bend the most.
const NODES: [usize; AXES] = [33, 9, 17];

/// The smoothed surface on a regular grid over the points' box.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    bounds: Bounds,
    steps_per_ln: [f64; AXES],
    values: Vec<f64>,
}

impl Grid {
    /// Tabulates the surface; `None` without points.
    pub(super) fn new(points: &[Point]) -> Option<Self> {
        let bounds = Bounds::around(points.iter())?;
        let mut steps_per_ln = [0.0; AXES];
        for axis in 0..AXES {
            let span = bounds.high[axis] - bounds.low[axis];
            // An axis without extent has one value: every lookup falls on its first node.
            steps_per_ln[axis] = if span > 0.0 { (NODES[axis] - 1) as f64 / span } else { 0.0 };
        }
        let place = |axis: usize, node: usize| {
            let share = node as f64 / (NODES[axis] - 1) as f64;
            bounds.low[axis] + share * (bounds.high[axis] - bounds.low[axis])
        };
        let mut values = Vec::with_capacity(NODES.iter().product());
        for i in 0..NODES[0] {
            for j in 0..NODES[1] {
                for k in 0..NODES[2] {
                    let at = [place(0, i), place(1, j), place(2, k)];
                    values.push(smooth(points.iter(), at)?);
                }
            }
        }
        Some(Self { bounds, steps_per_ln, values })
    }

    /// The box of the points.
    pub(super) const fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Trilinear value at a place inside the box.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates and the node is limited to the grid right after it"
    )]
    pub(super) fn at(&self, at: [f64; AXES]) -> f64 {
        let mut node = [0_usize; AXES];
        let mut share = [0.0; AXES];
        for axis in 0..AXES {
            let steps = (at[axis] - self.bounds.low[axis]) * self.steps_per_ln[axis];
            node[axis] = (steps as usize).min(NODES[axis] - 2);
            share[axis] = steps - node[axis] as f64;
        }
        let mut value = 0.0;
        for corner in 0..1_usize << AXES {
            let (mut index, mut weight) = (0, 1.0);
            for axis in 0..AXES {
                let upper = corner >> axis & 1;
                index = index * NODES[axis] + node[axis] + upper;
                weight *= if upper == 1 { share[axis] } else { 1.0 - share[axis] };
            }
            value += weight * self.values[index];
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(at: [f64; AXES]) -> f64 {
        -0.5 + 0.1 * at[0] - 0.05 * at[1] + 0.02 * at[2]
    }

    fn points(f: impl Fn([f64; AXES]) -> f64) -> Vec<Point> {
        let mut points = Vec::new();
        for r in 0..7 {
            for b in 0..3 {
                for a in 0..4 {
                    let at = [f64::from(r), 14.0 + f64::from(b), f64::from(a) * 0.7];
                    points.push(Point { at, ln_util: f(at) });
                }
            }
        }
        points
    }

    #[test]
    fn a_constant_share_is_returned_unchanged() {
        let grid = Grid::new(&points(|_| -0.3)).unwrap();
        for at in [[0.0, 14.0, 0.0], [2.7, 15.1, 1.3], [6.0, 16.0, 2.1]] {
            assert!((grid.at(at) + 0.3).abs() < 1e-9);
        }
    }

    #[test]
    fn a_linear_trend_is_nearly_followed() {
        let grid = Grid::new(&points(plane)).unwrap();
        for at in [[1.5, 14.5, 0.5], [3.0, 15.0, 1.0], [4.4, 15.6, 1.9]] {
            assert!((grid.at(at) - plane(at)).abs() < 0.03, "{} {}", grid.at(at), plane(at));
        }
    }

    #[test]
    fn the_grid_is_the_surface_at_its_nodes_and_continuous_between() {
        let points = points(|at| -(0.2 * at[0] - 0.5).powi(2));
        let grid = Grid::new(&points).unwrap();
        for at in [[0.0, 14.0, 0.0], [6.0, 16.0, 2.0999]] {
            let exact = smooth(points.iter(), at).unwrap();
            assert!((grid.at(at) - exact).abs() < 1e-3);
        }
        let step = 1e-6;
        for i in 0..600 {
            let r = f64::from(i) * 0.01 - step * 0.5;
            let (at, next) = ([r.max(0.0), 15.0, 1.0], [r + step, 15.0, 1.0]);
            assert!((grid.at(at) - grid.at(next)).abs() < 1e-4);
        }
    }

    #[test]
    fn one_point_and_axes_without_extent_work() {
        let one = [Point { at: [0.0, 15.0, 0.0], ln_util: -0.7 }];
        let grid = Grid::new(&one).unwrap();
        assert!((grid.at([0.0, 15.0, 0.0]) + 0.7).abs() < 1e-12);
        assert!(Grid::new(&[]).is_none());
        assert!(smooth([].iter(), [0.0; AXES]).is_none());
    }

    #[test]
    fn places_outside_are_clamped_and_their_distance_told() {
        let bounds = Bounds::around(points(plane).iter()).unwrap();
        let (inside, excess) = bounds.clamp([7.0, 15.0, 1.0]);
        assert!((inside[0] - 6.0).abs() < 1e-12 && (excess - 1.0).abs() < 1e-12);
        assert!(bounds.clamp([3.0, 15.0, 1.0]).1.abs() < 1e-12);
    }
}
