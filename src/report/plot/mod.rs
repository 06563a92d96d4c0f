//! The figures of a ranking, each drawn once as a [`scene::Scene`] and written as SVG and PNG.
//!
//! Figures draw what the report holds and compute no new results: at most a ratio of two of its
//! numbers.

mod axis;
mod decision_map;
mod frontier;
#[cfg(feature = "native")]
pub(super) mod law;
mod layer_latency;
mod legend;
mod panel;
#[cfg(feature = "native")]
mod raster;
#[cfg(feature = "native")]
pub(super) mod reliability;
mod scene;
#[cfg(feature = "native")]
pub(super) mod serving;
mod total_cost;

use rayon::prelude::*;

use crate::Result;
use crate::plan::outcome::RankReport;
#[cfg(feature = "native")]
use crate::report::theme;
use crate::report::theme::Looks;
use scene::Scene;

/// A finished figure.
pub(super) struct Figure {
    /// File name without its ending.
    pub(super) name: &'static str,
    /// What it shows, in one sentence: its caption and its description for those who cannot see it.
    pub(super) caption: &'static str,
    /// The vector form.
    pub(super) svg: String,
    /// The raster form.
    #[cfg(feature = "native")]
    pub(super) png: Vec<u8>,
}

/// What draws one figure.
type Draw = fn(&RankReport, &Looks) -> Scene;

/// Name, caption and drawing of every figure, in the order of the page.
const FIGURES: [(&str, &str, Draw); 5] = [
    (
        "cost_frontier",
        "Training cost against serving cost of every candidate at equal loss.",
        frontier::draw,
    ),
    (
        "total_cost",
        "Training plus serving cost against output tokens served over the model's life.",
        total_cost::draw,
    ),
    (
        "decision_map_traffic",
        "Cheapest expert count over request rate and lifetime output tokens.",
        decision_map::draw_traffic,
    ),
    (
        "decision_map_budget",
        "Cheapest expert count over training budget and the limit on time per output token.",
        decision_map::draw_budget,
    ),
    (
        "layer_latency",
        "Latency of one MoE layer against the tokens that enter it, beside the roofline.",
        layer_latency::draw,
    ),
];

/// Draws all figures.
///
/// # Errors
/// [`crate::Error::Io`] when a figure cannot be encoded.
pub(super) fn figures(report: &RankReport) -> Result<Vec<Figure>> {
    #[cfg(feature = "native")]
    theme::register_fonts()?;
    let looks = Looks::new(expert_counts(report));
    FIGURES
        .par_iter()
        .map(|&(name, caption, draw)| {
            let scene = draw(report, &looks);
            Ok(Figure {
                name,
                caption,
                svg: scene.svg(name)?,
                #[cfg(feature = "native")]
                png: scene.png(name)?,
            })
        })
        .collect()
}

/// Every expert count that any figure names.
fn expert_counts(report: &RankReport) -> impl Iterator<Item = usize> + '_ {
    let maps = [&report.decision_map.traffic, &report.decision_map.budget];
    let winners = maps.into_iter().flat_map(|m| m.winner.iter().flatten().copied().flatten());
    let candidates = report.candidates.iter().map(|c| c.experts);
    let curves = report.total_cost.iter().map(|c| c.experts);
    winners.chain(candidates).chain(curves).chain(report.layer_latency.iter().map(|c| c.experts))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::sample;

    /// Every figure in both forms, checked for being whole.
    fn check(report: &RankReport) -> Vec<Figure> {
        let figures = figures(report).unwrap();
        assert_eq!(figures.len(), FIGURES.len());
        for figure in &figures {
            assert!(figure.svg.starts_with("<svg width=\"960\" height=\"600\" viewBox=\"0 0 3840"));
            assert!(figure.svg.trim_end().ends_with("</svg>"));
            assert!(figure.png.starts_with(b"\x89PNG"), "{}", figure.name);
            assert!(figure.png.ends_with(b"IEND\xaeB`\x82"), "{}", figure.name);
            assert!(numbers_are_finite(&figure.svg), "{}", figure.name);
        }
        figures
    }

    /// Whether no attribute is a number that is none. Words are a report's own: a device may be
    /// called `NaN`.
    fn numbers_are_finite(svg: &str) -> bool {
        svg.split('<')
            .filter_map(|element| element.split_once('>'))
            .all(|(tag, _)| !tag.contains("NaN") && !tag.contains("inf"))
    }

    #[test]
    fn axes_name_their_units_and_legends_their_expert_counts() {
        let figures = check(&sample::report());
        let expected: [(&str, &[&str]); 5] = [
            ("cost_frontier", &["training cost, $", "$ per million output tokens", "4 experts"]),
            ("total_cost", &["lifetime output tokens", "total cost, $", "dense"]),
            ("decision_map_traffic", &["requests per second", "your point", "32 experts"]),
            ("decision_map_budget", &["training budget, FLOPs", "no feasible answer"]),
            ("layer_latency", &["tokens entering the layer", "layer latency, µs", "roofline"]),
        ];
        for (figure, (name, words)) in figures.iter().zip(expected) {
            assert_eq!(figure.name, name);
            for word in words {
                assert!(figure.svg.contains(word), "{name} lacks `{word}`");
            }
        }
    }

    #[test]
    fn reports_with_nothing_or_one_thing_to_show_are_drawn() {
        check(&sample::empty());
        let mut one = sample::report();
        one.candidates.truncate(3);
        one.frontier = vec![2];
        one.total_cost.truncate(1);
        one.total_cost[0].points.truncate(1);
        one.layer_latency.truncate(1);
        one.layer_latency[0].points.truncate(1);
        one.crossovers.clear();
        check(&one);
    }

    #[test]
    fn equal_values_and_infeasible_cells_are_drawn() {
        let mut report = sample::report();
        for c in &mut report.candidates {
            c.train_usd = 5.0;
            c.serve_usd_per_million_output_tokens = Some(5.0);
            c.train_usd_interval = None;
            c.serve_usd_interval = None;
        }
        for curve in &mut report.total_cost {
            for point in &mut curve.points {
                (point.lifetime_tokens, point.total_usd) = (1e12, 1.0);
            }
        }
        for map in [&mut report.decision_map.traffic, &mut report.decision_map.budget] {
            map.winner.iter_mut().flatten().for_each(|w| *w = None);
            map.p_best.iter_mut().flatten().for_each(|p| *p = 0.0);
        }
        check(&report);
    }

    #[test]
    fn names_that_spell_numbers_are_only_words() {
        let mut report = sample::report();
        report.profile.device = "NaN inf".into();
        assert!(check(&report)[0].svg.contains("NaN inf"));
        assert!(!numbers_are_finite("<svg><circle cx=\"NaN\"/></svg>"));
        assert!(!numbers_are_finite("<svg><path d=\"M 0 -inf\"/></svg>"));
    }

    #[test]
    fn the_same_report_gives_the_same_files() {
        let (a, b) = (figures(&sample::report()).unwrap(), figures(&sample::report()).unwrap());
        for (a, b) in a.iter().zip(&b) {
            assert!(a.svg == b.svg && a.png == b.png, "{}", a.name);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4))]
        #[test]
        fn any_finite_report_becomes_files(report in sample::arbitrary()) {
            check(&report);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_finite_report_becomes_scenes(report in sample::arbitrary()) {
            theme::register_fonts().unwrap();
            let looks = Looks::new(expert_counts(&report));
            for (name, _, draw) in FIGURES {
                let svg = draw(&report, &looks).svg(name).unwrap();
                prop_assert!(numbers_are_finite(&svg), "{}", name);
            }
        }
    }
}
