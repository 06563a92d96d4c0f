//! The best constants of a tree of groups: robust residuals, normal priors, Gauss-Newton.
//!
//! Every observation belongs to a path of nodes; its constants are the sum of the nodes' deviations.
//! Each node's deviation has a normal prior, so that a node with few observations stays near its
//! parent (partial pooling). Residuals are logarithms with Huber's loss.
//!
//! Huber, Robust estimation of a location parameter, Ann. Math. Statist. 35 (1964).

/// Residual standard deviation that one observation has beside its node, as a logarithm.
pub const ROW_SIGMA: f64 = 0.1;
/// Residual in [`ROW_SIGMA`] at which the loss turns linear.
const HUBER: f64 = 2.0;
/// Iterations; it converges in about ten.
const ITERATIONS: usize = 30;
/// Step of the numerical slopes.
const H: f64 = 1e-4;
/// Largest move of a logarithm in one iteration.
const LARGEST_MOVE: f64 = 0.7;

/// Logarithm of predicted over measured by the constants' deviations.
pub type Residual<'a, const P: usize> = Box<dyn Fn(&[f64; P]) -> f64 + 'a>;

/// One measured value.
pub struct Observation<'a, const P: usize> {
    /// Its nodes.
    pub path: Vec<usize>,
    /// Weight relative to one observation.
    pub weight: f64,
    /// Logarithm of predicted over measured at the summed deviations.
    pub residual: Residual<'a, P>,
}

/// What is known of the deviations before any observation: mean and precision over all nodes.
pub struct Before {
    /// Mean, node by node.
    pub mean: Vec<f64>,
    /// Precision matrix, row by row.
    pub precision: Vec<f64>,
}

impl Before {
    /// Independent deviations around 0 with the given standard deviations, node by node.
    pub fn independent<const P: usize>(deviations: &[[f64; P]]) -> Self {
        let n = deviations.len() * P;
        let mut precision = vec![0.0; n * n];
        for (i, sd) in deviations.iter().flatten().enumerate() {
            precision[i * n + i] = sd.powi(-2);
        }
        Self { mean: vec![0.0; n], precision }
    }
}

/// Deviations with their precision.
pub struct Solution<const P: usize> {
    /// Deviations, node by node.
    pub at: Vec<f64>,
    /// Negative logarithm of the posterior, up to a constant.
    pub loss: f64,
    factor: Vec<f64>,
}

impl<const P: usize> Solution<P> {
    /// Summed deviations along a path.
    pub fn total(&self, path: &[usize]) -> [f64; P] {
        total(&self.at, path)
    }

    /// Covariance of the summed deviations along a path.
    pub fn covariance(&self, path: &[usize]) -> [[f64; P]; P] {
        let n = self.at.len();
        let mut covariance = [[0.0; P]; P];
        for p in 0..P {
            let mut unit = vec![0.0; n];
            for &node in path {
                unit[node * P + p] = 1.0;
            }
            solve_factored(&self.factor, &mut unit);
            for (q, row) in covariance.iter_mut().enumerate() {
                row[p] = path.iter().map(|&node| unit[node * P + q]).sum();
            }
        }
        covariance
    }
}

fn total<const P: usize>(at: &[f64], path: &[usize]) -> [f64; P] {
    std::array::from_fn(|p| path.iter().map(|&node| at[node * P + p]).sum())
}

/// The most probable deviations from `start`.
pub fn solve<const P: usize>(
    observations: &[Observation<P>],
    before: &Before,
    start: &[f64],
) -> Solution<P> {
    let n = before.mean.len();
    let mut at = start.to_vec();
    let mut loss = objective(observations, before, &at);
    for _ in 0..ITERATIONS {
        let (mut normal, mut step) = equations(observations, before, &at);
        factorise(&mut normal, n);
        solve_factored(&normal, &mut step);
        let largest = step.iter().fold(0.0_f64, |m, s| m.max(s.abs()));
        let mut scale = (LARGEST_MOVE / largest.max(1e-12)).min(1.0);
        let mut moved = false;
        for _ in 0..8 {
            let next: Vec<f64> = at.iter().zip(&step).map(|(a, s)| a - scale * s).collect();
            let next_loss = objective(observations, before, &next);
            if next_loss < loss {
                moved = loss - next_loss > 1e-9 * loss.abs().max(1.0);
                (at, loss) = (next, next_loss);
                break;
            }
            scale /= 2.0;
        }
        if !moved {
            break;
        }
    }
    let (mut factor, _) = equations(observations, before, &at);
    factorise(&mut factor, n);
    Solution { at, loss, factor }
}

fn objective<const P: usize>(observations: &[Observation<P>], before: &Before, at: &[f64]) -> f64 {
    let data: f64 = observations
        .iter()
        .map(|o| {
            let r = (o.residual)(&total(at, &o.path)).abs() / ROW_SIGMA;
            o.weight * if r <= HUBER { 0.5 * r * r } else { HUBER * (r - HUBER / 2.0) }
        })
        .sum();
    let off: Vec<f64> = at.iter().zip(&before.mean).map(|(a, m)| a - m).collect();
    data + 0.5 * dot(&off, &times(&before.precision, &off))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn times(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(vector.len()).map(|row| dot(row, vector)).collect()
}

/// Normal equations: matrix and right side, priors included.
fn equations<const P: usize>(
    observations: &[Observation<P>],
    before: &Before,
    at: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let n = at.len();
    let mut normal = before.precision.clone();
    let off: Vec<f64> = at.iter().zip(&before.mean).map(|(a, m)| a - m).collect();
    let mut right = times(&before.precision, &off);
    for o in observations {
        let here: [f64; P] = total(at, &o.path);
        let r = (o.residual)(&here);
        let slope: [f64; P] = std::array::from_fn(|p| {
            let mut moved = here;
            moved[p] += H;
            ((o.residual)(&moved) - r) / H
        });
        let robust = (HUBER * ROW_SIGMA / r.abs().max(1e-12)).min(1.0);
        let weight = o.weight * robust / ROW_SIGMA.powi(2);
        for &a in &o.path {
            for p in 0..P {
                right[a * P + p] += weight * slope[p] * r;
                for &b in &o.path {
                    for q in 0..P {
                        normal[(a * P + p) * n + b * P + q] += weight * slope[p] * slope[q];
                    }
                }
            }
        }
    }
    (normal, right)
}

/// Cholesky factor in the lower triangle, in place; priors keep the pivots above zero.
fn factorise(matrix: &mut [f64], n: usize) {
    for j in 0..n {
        let (above, below) = matrix.split_at_mut((j + 1) * n);
        let row = &mut above[j * n..];
        let diagonal = (row[j] - dot(&row[..j], &row[..j])).max(1e-12).sqrt();
        row[j] = diagonal;
        for other in below.chunks_exact_mut(n) {
            other[j] = (other[j] - dot(&other[..j], &row[..j])) / diagonal;
        }
    }
}

/// Solves with a factor from [`factorise`], in place.
fn solve_factored(factor: &[f64], right: &mut [f64]) {
    let n = right.len();
    for i in 0..n {
        let row = &factor[i * n..];
        right[i] = (right[i] - dot(&row[..i], &right[..i])) / row[i];
    }
    for i in (0..n).rev() {
        let below: f64 = (i + 1..n).map(|k| factor[k * n + i] * right[k]).sum();
        right[i] = (right[i] - below) / factor[i * n + i];
    }
}

/// Inverse of a positive definite matrix of constants.
pub fn inverse<const P: usize>(matrix: &[[f64; P]; P]) -> [[f64; P]; P] {
    let mut factor: Vec<f64> = matrix.iter().flatten().copied().collect();
    factorise(&mut factor, P);
    let mut columns = [[0.0; P]; P];
    for (p, column) in columns.iter_mut().enumerate() {
        column[p] = 1.0;
        solve_factored(&factor, column);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Observations whose value is their node's total alone.
    fn plain(values: &[(Vec<usize>, f64)]) -> Vec<Observation<'static, 1>> {
        let one = |(path, value): &(Vec<usize>, f64)| {
            let value = *value;
            Observation {
                path: path.clone(),
                weight: 1.0,
                residual: Box::new(move |x: &[f64; 1]| x[0] - value),
            }
        };
        values.iter().map(one).collect()
    }

    #[test]
    fn a_group_with_few_rows_stays_near_its_parent() {
        let sd = [[0.001], [0.1], [0.1]];
        let many: Vec<_> = (0..100).map(|_| (vec![0, 1], 0.15)).collect();
        let all: Vec<_> = many.into_iter().chain([(vec![0, 2], 0.15)]).collect();
        let s = solve(&plain(&all), &Before::independent(&sd), &[0.0; 3]);
        // Shrinkage of a normal mean: n / (n + 1) with equal variances.
        assert!((s.total(&[0, 1])[0] - 0.15 * 100.0 / 101.0).abs() < 2e-3);
        assert!((s.total(&[0, 2])[0] - 0.075).abs() < 2e-3);
        assert!((s.covariance(&[2])[0][0] - 0.005).abs() < 1e-4);
        assert!((s.covariance(&[1])[0][0] - 0.01 / 101.0).abs() < 1e-5);
    }

    #[test]
    fn one_wild_row_does_not_move_the_others() {
        let mut rows: Vec<_> = (0..10).map(|_| (vec![0], 0.0)).collect();
        rows.push((vec![0], 3.0));
        let s = solve(&plain(&rows), &Before::independent(&[[1.0]]), &[0.0]);
        assert!(s.at[0].abs() < 0.03, "{}", s.at[0]);
    }

    #[test]
    fn an_inverse_times_its_matrix_is_one() {
        let m = [[2.0, 0.5], [0.5, 1.0]];
        let i = inverse(&m);
        assert!((m[0][0] * i[0][0] + m[0][1] * i[1][0] - 1.0).abs() < 1e-12);
        assert!((m[0][0] * i[0][1] + m[0][1] * i[1][1]).abs() < 1e-12);
    }
}
