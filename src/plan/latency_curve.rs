//! The layer latencies behind the answer, for the reader's eye: each expert count's recommended
//! layer shape against tokens, beside what the ceilings allow.

use crate::config::MoeModel;
use crate::latency::{MoeQuery, Query};
use crate::plan::market::Market;
use crate::plan::outcome::{LatencyCurve, LatencyPoint};
use crate::plan::price::Book;
use crate::serving::LoadModel;

/// Largest number of tokens drawn, as a power of two.
const LAST_POWER: i32 = 12;

/// One curve for each expert count that has a recommended candidate; points that no latency model
/// answers are left out.
pub fn curves(book: &Book, market: &Market, best: &[Option<(usize, f64)>]) -> Vec<LatencyCurve> {
    best.iter()
        .filter_map(|best| {
            let entry = &market.entries[(*best)?.0];
            let model = &entry.priced.model;
            let load = &book.routing(model.num_experts).ok()?.load;
            let points: Vec<LatencyPoint> = (0..=LAST_POWER)
                .filter_map(|power| point(book, model, load, f64::from(power).exp2()))
                .collect();
            Some(LatencyCurve {
                experts: model.num_experts,
                hidden: model.hidden_size,
                inter: model.moe_intermediate_size,
                points,
            })
        })
        .collect()
}

/// The routed experts of one layer on one device.
fn point(book: &Book, model: &MoeModel, load: &LoadModel, tokens: f64) -> Option<LatencyPoint> {
    let all = load.busiest(tokens, 1);
    let query = MoeQuery {
        hidden: model.hidden_size,
        inter: model.moe_intermediate_size,
        experts: model.num_experts,
        top_k: model.top_k,
        gated: model.gated,
        weights: model.expert_dtype,
        weight_bits: model.expert_bits(),
        tensor_parallel: 1,
        expert_parallel: 1,
        dispatched: false,
        tokens,
        rows: all.rows,
        active: all.active,
        max_rows: all.max_rows,
    };
    let found = book.latency().answer(&Query::Moe(query)).ok()?;
    Some(LatencyPoint {
        tokens,
        latency_us: found.value.as_us(),
        lo_us: found.lo().as_us(),
        hi_us: found.hi().as_us(),
        source: found.source,
        roofline_us: found.floor.as_us(),
    })
}
