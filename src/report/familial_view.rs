//! The table of one training with several exits.

use crate::plan::outcome::RankReport;
use crate::plan::summary::name;
use crate::report::grid::Column;
use crate::report::view::{Table, or_none, serving, short};
use crate::units::{Usd, count};

/// Each exit as a model to serve; no rows unless exits were asked about.
pub(super) fn sizes(report: &RankReport) -> Table {
    let asked = report.familial.as_ref();
    let rows = asked.map(|f| f.sizes.as_slice()).unwrap_or_default().iter().map(|s| {
        vec![
            s.num_layers.to_string(),
            count(s.n_active),
            count(s.n_total),
            or_none(s.serve_usd_per_million_output_tokens, serving),
            or_none(s.tpot_ms, short),
        ]
    });
    Table {
        title: "One training, several sizes to serve".into(),
        columns: vec![
            Column::numbers("layers"),
            Column::numbers("active\nparams"),
            Column::numbers("total\nparams").left_out(2),
            Column::numbers("serve\n$/M out"),
            Column::numbers("TPOT\nms").left_out(1),
        ],
        rows: rows.collect(),
        strong: None,
        note: asked.map(|f| {
            let once = match (&f.train_usd, &f.missing) {
                (Some(usd), _) => format!("{} trains them at once", Usd(*usd)),
                (None, reason) => reason.clone().unwrap_or_default(),
            };
            format!(
                "{} of the first law with {} exits, equally far apart: the mean loss of the exits is {:.3} times \
                 that of one model (arXiv 2512.23407, exponent {}); to the target loss {once}, {} by \
                 themselves on the recommended model's tokens. Costs are of all traffic at one exit.",
                name(f.experts),
                f.exits,
                f.loss_factor,
                f.exponent,
                Usd(f.separate_train_usd)
            )
        }),
    }
}
