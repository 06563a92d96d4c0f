//! The Pareto set of points with two costs.

/// Costs closer together than this, relative, are the same cost with other rounding.
const SAME: f64 = 1e-9;

/// Indices of the points that no other point beats in both costs, by rising first cost.
///
/// Of points with equal costs the first one is kept. Points with a cost that is not finite are left out.
///
/// ```
/// use moe_frontier::plan::frontier::pareto;
/// assert_eq!(pareto(&[(1.0, 5.0), (2.0, 2.0), (3.0, 3.0), (4.0, 1.0)]), [0, 1, 3]);
/// ```
pub fn pareto(points: &[(f64, f64)]) -> Vec<usize> {
    let mut order: Vec<usize> =
        (0..points.len()).filter(|&i| points[i].0.is_finite() && points[i].1.is_finite()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (points[a], points[b]);
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        let Some(&last) = kept.last() else {
            kept.push(i);
            continue;
        };
        if points[i].1 >= points[last].1 * (1.0 - SAME) {
            continue;
        }
        // The same first cost up to rounding, and less of the second.
        if points[i].0 <= points[last].0 * (1.0 + SAME) {
            kept.pop();
        }
        kept.push(i);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn of_equal_points_the_first_is_kept() {
        assert_eq!(pareto(&[(1.0, 1.0), (1.0, 1.0)]), [0]);
        assert_eq!(pareto(&[(1.0, 2.0), (1.0, 1.0)]), [1]);
        assert!(pareto(&[]).is_empty());
    }

    #[test]
    fn points_without_a_finite_cost_are_left_out() {
        assert_eq!(pareto(&[(f64::NAN, 0.0), (1.0, f64::INFINITY), (2.0, 2.0)]), [2]);
    }

    proptest! {
        #[test]
        fn every_point_is_beaten_by_or_on_the_frontier(
            points in prop::collection::vec((0.0..10.0f64, 0.0..10.0f64), 1..40),
        ) {
            let front = pareto(&points);
            for &(x, y) in &points {
                prop_assert!(front.iter().any(|&f| points[f].0 <= x && points[f].1 <= y));
            }
            for &a in &front {
                for &b in &front {
                    let dominated = points[b].0 <= points[a].0 && points[b].1 <= points[a].1;
                    prop_assert!(a == b || !dominated);
                }
            }
        }
    }
}
