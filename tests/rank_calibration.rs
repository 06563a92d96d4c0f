//! Whether P(best) is a probability: forecasts against made-up truths over many settings.
//!
//! A truth is one law of the mixture with its error drawn, and a server whose error has heavier tails
//! than what a ranking draws (two-sided exponential with the median that the serving model's residuals
//! have). `just calibration-of-rank` runs it and writes the figures into `reports/calibration_of_rank`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{Sketch, inputs};
use moe_frontier::latency::LatencyModel;
use moe_frontier::law::{SCALING_IDS, Template, load_scaling};
use moe_frontier::plan::draws::{Draw, draws};
use moe_frontier::plan::inputs::{Demand, Lifetime, RankInputs, Target};
use moe_frontier::plan::mixture::{Member, Panel};
use moe_frontier::plan::outcome::Mixture;
use moe_frontier::plan::price::Book;
use moe_frontier::serving::ServiceLevel;
use moe_frontier::units::{Flops, Seconds};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Settings, and truths of each.
const SETTINGS: (usize, usize) = (100, 5);
/// Draws of a forecast.
const DRAWS: usize = 400;
/// Probabilities of a model that a forecast gave no draw at all.
const FLOOR: f64 = 0.5 / DRAWS as f64;
/// A normal's median absolute value in standard deviations over an exponential's in means.
const SAME_MEDIAN: f64 = 0.6745 / std::f64::consts::LN_2;

/// One forecast of one expert count with what happened.
struct Trial {
    p: f64,
    happened: bool,
}

fn setting(rng: &mut ChaCha8Rng) -> RankInputs {
    let mut between = |low: f64, high: f64| low * (high / low).powf(rng.random::<f64>());
    let base = inputs();
    RankInputs {
        target: Target::Budget { budget: Flops(between(1e22, 3e23)), experts: 4 },
        demand: Demand { rate: Some(between(3.0, 300.0)), utilisation: 1.0 },
        level: ServiceLevel { tpot: Some(Seconds(between(0.015, 0.08))), ttft: None },
        lifetime: Lifetime::Tokens(between(1e11, 3e13)),
        template: Arc::new(Template::ludziejewski2025().with_kv_group(8.0)),
        draws: DRAWS,
        ..base
    }
}

/// A draw of what a truth is: that of a ranking, with a heavier-tailed error of the server.
fn truth(rng: &mut ChaCha8Rng, inputs: &RankInputs) -> Draw {
    let count = inputs.experts.len();
    let mut draw = draws(1, rng.random(), &inputs.ranges, count).remove(0);
    let mut heavy = |sigma: f64| {
        let share: f64 = rng.random::<f64>().max(1e-12);
        let size = -share.ln() * sigma * SAME_MEDIAN;
        if rng.random::<bool>() { size } else { -size }
    };
    let shared = heavy(inputs.ranges.shared_log_sigma);
    draw.step = (0..count).map(|_| (shared + heavy(inputs.ranges.own_log_sigma)).exp()).collect();
    draw
}

/// Probability of what happened: one of the expert counts, or none of them.
fn probability(mixture: &Mixture, winner: Option<usize>) -> f64 {
    let of =
        |experts| mixture.choices.iter().find(|c| c.experts == experts).map_or(0.0, |c| c.p_best);
    winner.map_or(mixture.p_none, of).max(FLOOR)
}

/// Trials of all settings, and the summed log losses of the mixture and of the first law alone.
fn trials() -> (Vec<Trial>, (f64, f64)) {
    let members: Vec<Member> = SCALING_IDS
        .iter()
        .map(|id| Member { law: load_scaling(id).unwrap(), weight: 1.0 })
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(20_261_130);
    let (mut trials, mut losses) = (Vec::new(), (0.0, 0.0));
    for _ in 0..SETTINGS.0 {
        let inputs = setting(&mut rng);
        let on: Vec<Member> = members
            .iter()
            .map(|m| Member { law: m.law.on(&inputs.template), weight: m.weight })
            .collect();
        let book = Book::new(Arc::new(Sketch) as Arc<dyn LatencyModel>, &inputs).unwrap();
        let Ok(panel) = Panel::new(&book, &on, &inputs) else { continue };
        let laws: Vec<f64> = panel.laws().iter().map(|l| l.1).collect();
        let truths: Vec<Option<usize>> = (0..SETTINGS.1)
            .map(|_| {
                let mut share: f64 = rng.random();
                let index = laws.iter().position(|w| {
                    share -= w;
                    share <= 0.0
                });
                let draw = truth(&mut rng, &inputs);
                panel.cheapest_in(index.unwrap_or(laws.len() - 1), &draw)
            })
            .collect();
        let (_, mixture) = panel.answer();
        let alone = Panel::new(&book, &on[..1], &inputs).map(|p| p.answer().1);
        for happened in truths {
            losses.0 -= probability(&mixture, happened).ln();
            losses.1 -= alone.as_ref().map_or(FLOOR, |m| probability(m, happened)).ln();
            trials.extend(
                mixture
                    .choices
                    .iter()
                    .map(|c| Trial { p: c.p_best, happened: happened == Some(c.experts) }),
            );
        }
    }
    (trials, losses)
}

/// Of each tenth of probability: forecasts, their mean and the share that happened.
fn tenths(trials: &[Trial]) -> Vec<(usize, f64, f64)> {
    (0..10)
        .map(|i| {
            let (low, high) = (f64::from(i) / 10.0, f64::from(i + 1) / 10.0);
            let inside = |t: &&Trial| t.p >= low && (t.p < high || i == 9);
            let these: Vec<&Trial> = trials.iter().filter(inside).collect();
            let count = these.len();
            let mean = |sum: f64| if count > 0 { sum / count as f64 } else { f64::NAN };
            let happened = these.iter().filter(|t| t.happened).count();
            (count, mean(these.iter().map(|t| t.p).sum()), mean(happened as f64))
        })
        .collect()
}

/// The diagram: forecast along x, what happened along y, areas by the number of forecasts.
fn drawing(tenths: &[(usize, f64, f64)]) -> String {
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 440 440\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"440\" height=\"440\" fill=\"white\"/>\n\
         <path d=\"M40 400H420M40 400V20\" stroke=\"black\" fill=\"none\"/>\n\
         <path d=\"M40 400L420 20\" stroke=\"gray\" stroke-dasharray=\"4 4\"/>\n\
         <path d=\"M40 362L382 20M78 400L420 58\" stroke=\"lightgray\"/>\n\
         <text x=\"230\" y=\"430\" text-anchor=\"middle\">P(best) that was forecast</text>\n\
         <text x=\"14\" y=\"210\" transform=\"rotate(-90 14 210)\" text-anchor=\"middle\">share that \
         happened (gray: 10 points to either side)</text>\n",
    );
    for &(count, p, share) in tenths.iter().filter(|t| t.0 > 0) {
        let (x, y) = (40.0 + 380.0 * p, 400.0 - 380.0 * share);
        let radius = 2.0 + (count as f64).sqrt() / 4.0;
        writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" fill=\"steelblue\"/>")
            .unwrap();
    }
    svg + "</svg>\n"
}

#[test]
#[ignore = "minutes of settings; `just calibration-of-rank` runs it"]
fn probabilities_come_true_as_often_as_they_say() {
    let (trials, (mixture, alone)) = trials();
    let tenths = tenths(&trials);
    let count = trials.len() / 5;
    let mut csv = String::from("forecasts,mean_p_best,share_that_happened\n");
    for (n, p, share) in &tenths {
        writeln!(csv, "{n},{p:.3},{share:.3}").unwrap();
    }
    let (mixture, alone) = (mixture / count as f64, alone / count as f64);
    println!("{csv}log loss {mixture:.3} against {alone:.3} of one law alone");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/calibration_of_rank");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("reliability.csv"), &csv).unwrap();
    fs::write(folder.join("reliability.svg"), drawing(&tenths)).unwrap();
    let note = format!(
        "# P(best) against made-up truths\n\n\
         Written by `just calibration-of-rank`: {} settings drawn at random (budget, rate, TPOT, \
         lifetime; seed fixed), {} truths of each: one law of the mixture with its error drawn, and a \
         server whose error has heavier tails than the ranking draws. The table holds forecasts of one \
         expert count each by tenths of P(best).\n\n```text\n{csv}```\n\n\
         Mean log loss of what happened: {mixture:.3} by the mixture, {alone:.3} by the first law \
         alone.\n\n![reliability](reliability.svg)\n",
        SETTINGS.0, SETTINGS.1
    );
    fs::write(folder.join("README.md"), note).unwrap();
    assert!(mixture < alone, "log loss {mixture} against {alone}");
    for (n, p, share) in tenths.iter().filter(|t| t.0 >= 30) {
        assert!((p - share).abs() <= 0.1, "{n} forecasts of {p:.2} came true in {share:.2}");
    }
}
