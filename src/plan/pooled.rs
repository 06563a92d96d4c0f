//! What one model costs over several laws: means of the laws' central values, intervals over all their
//! draws.

use crate::plan::decide::FEWEST;
use crate::plan::outcome::{ChoiceCosts, Interval};

/// The cost of one model under one law.
#[derive(Clone, Debug)]
pub struct LawCosts {
    /// The law's share of the mixture.
    pub weight: f64,
    /// Training dollars and serving dollars per output token without a draw; `None` where the model
    /// cannot be had under this law.
    pub nominal: Option<(f64, f64)>,
    /// Total dollars without a draw.
    pub total_usd: f64,
    /// Total dollars in each draw, infinite where the model cannot be had.
    pub drawn: Vec<f64>,
}

/// Costs over laws of a model with `n_total` parameters; `None` where it cannot be had under any.
pub fn pooled(n_total: f64, laws: &[LawCosts]) -> Option<ChoiceCosts> {
    let had = || laws.iter().filter_map(|law| Some((law, law.nominal?)));
    let weight: f64 = had().map(|(law, _)| law.weight).sum();
    let mean = |of: &dyn Fn(&LawCosts, (f64, f64)) -> f64| {
        had().map(|(law, nominal)| law.weight * of(law, nominal)).sum::<f64>() / weight
    };
    (weight > 0.0).then(|| ChoiceCosts {
        n_total,
        train_usd: mean(&|_, (train, _)| train),
        serve_usd_per_million_output_tokens: mean(&|_, (_, serve)| serve * 1e6),
        total_usd: mean(&|law, _| law.total_usd),
        total_usd_interval: interval(laws),
    })
}

/// 2.5th and 97.5th percentile over the draws of all laws by their weights.
fn interval(laws: &[LawCosts]) -> Option<Interval> {
    let mut values: Vec<(f64, f64)> = Vec::new();
    for law in laws {
        let each = law.weight / law.drawn.len().max(1) as f64;
        values.extend(law.drawn.iter().map(|&total| (total, each)));
    }
    let all: f64 = values.iter().map(|v| v.1).sum();
    values.retain(|v| v.0.is_finite());
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    if values.len() < FEWEST {
        return None;
    }
    let had: f64 = values.iter().map(|v| v.1).sum();
    let at = |share: f64| {
        let mut below = 0.0;
        let reached = values.iter().find(|v| {
            below += v.1;
            below >= share * had
        });
        reached.or(values.last()).map(|v| v.0)
    };
    Some(Interval { lo: at(0.025)?, hi: at(0.975)?, share: had / all })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law(weight: f64, nominal: Option<(f64, f64)>, drawn: &[f64]) -> LawCosts {
        let total_usd = nominal.map_or(f64::INFINITY, |(train, serve)| train + 1e9 * serve);
        LawCosts { weight, nominal, total_usd, drawn: drawn.to_vec() }
    }

    #[test]
    fn means_are_over_laws_that_have_the_model_and_intervals_over_their_draws() {
        let drawn: Vec<f64> = (1..=100).map(f64::from).collect();
        let laws = [
            law(0.6, Some((100.0, 1e-7)), &drawn),
            law(0.2, Some((300.0, 1e-7)), &[f64::INFINITY, 1000.0]),
            law(0.2, None, &[f64::INFINITY, f64::INFINITY]),
        ];
        let found = pooled(5e9, &laws).unwrap();
        assert!((found.train_usd - 150.0).abs() < 1e-9, "{found:?}");
        assert!((found.serve_usd_per_million_output_tokens - 0.1).abs() < 1e-12);
        assert!((found.total_usd - 250.0).abs() < 1e-9);
        let interval = found.total_usd_interval.unwrap();
        // 0.7 of the weight is finite: 0.6 in a hundred draws, then a seventh at 1000.
        assert!((interval.share - 0.7).abs() < 1e-12, "{interval:?}");
        assert_eq!((interval.lo, interval.hi), (3.0, 1000.0));
        assert!(pooled(5e9, &laws[2..]).is_none() && pooled(5e9, &[]).is_none());
    }
}
