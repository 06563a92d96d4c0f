//! The layer latencies behind the answer, for the reader's eye: each expert count's recommended
//! layer shape against tokens, beside what the ceilings allow.

use crate::latency::LayerQuery;
use crate::latency::latency::LatencyModel;
use crate::plan::inputs::RankInputs;
use crate::plan::market::Market;
use crate::plan::outcome::{LatencyCurve, LatencyPoint};

/// Largest number of tokens drawn, as a power of two.
const LAST_POWER: i32 = 12;

/// One curve for each expert count that has a recommended candidate; points that the latency model
/// refuses are left out.
pub fn curves(
    latency: &dyn LatencyModel,
    market: &Market,
    best: &[Option<(usize, f64)>],
    inputs: &RankInputs,
) -> Vec<LatencyCurve> {
    best.iter()
        .zip(&inputs.experts)
        .filter_map(|(best, &experts)| {
            let entry = &market.entries[(*best)?.0];
            let load = &market.routings[entry.family].load;
            let queries = (0..=LAST_POWER)
                .map(|power| entry.priced.geometry.layer_query(load, f64::from(power).exp2(), 1));
            let points: Vec<LatencyPoint> =
                queries.filter_map(|query| point(latency, &query)).collect();
            let shape = entry.priced.geometry.layer_query(load, 1.0, 1);
            Some(LatencyCurve { experts, hidden: shape.hidden, inter: shape.inter, points })
        })
        .collect()
}

fn point(latency: &dyn LatencyModel, query: &LayerQuery) -> Option<LatencyPoint> {
    let found = latency.moe_layer(query).ok()?;
    let rates = latency.ceilings();
    Some(LatencyPoint {
        tokens: query.tokens,
        latency_us: found.value.as_us(),
        lo_us: found.lo.as_us(),
        hi_us: found.hi.as_us(),
        source: found.source,
        roofline_us: query.roofline(&rates).as_us(),
    })
}
