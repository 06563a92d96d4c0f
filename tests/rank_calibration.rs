//! Whether P(best) is a probability: forecasts against synthetic truths over many settings.
//!
//! A truth is one law of the mixture with its error drawn, and a server that errs as the serving model
//! does against the open server rows: one group's mean for all candidates, and for each a row's distance
//! from its group's mean. `just calibration-of-rank` runs it and writes `reports/calibration_of_rank`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/serving.rs"]
mod serving;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{Sketch, inputs};
use moe_frontier::calibrate::predict::apply;
use moe_frontier::config::DeviceSpec;
use moe_frontier::constants::residual;
use moe_frontier::latency::LatencyModel;
use moe_frontier::law::beyond::{ErrorDraw, REALISED};
use moe_frontier::law::{SCALING_IDS, Template, load_scaling};
use moe_frontier::plan::accuracy::{GroupResiduals, Scored, grouped_residuals};
use moe_frontier::plan::draws::{Draw, draws};
use moe_frontier::plan::inputs::{Demand, Lifetime, Limits, Ranges, RankInputs, Target};
use moe_frontier::plan::mixture::{Member, Outcome, Panel};
use moe_frontier::plan::outcome::Mixture;
use moe_frontier::plan::points::{self, Point};
use moe_frontier::plan::price::Book;
use moe_frontier::report::reliability::{Tenth, write_reliability};
use moe_frontier::serving::{EngineCosts, Lengths, ServiceLevel};
use moe_frontier::units::{Flops, Seconds};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Settings, and truths of each.
const SETTINGS: usize = 500;
const TRUTHS: usize = 10;
const SEED: u64 = 20_261_130;
/// Draws of a forecast.
const DRAWS: usize = 400;
/// Probability of what no draw of a forecast gave.
const FLOOR: f64 = 0.5 / DRAWS as f64;
/// Limits on TPOT in milliseconds and (prompt, output) tokens: few of each, because settings that share
/// them share their price tables.
const TPOTS: [f64; 4] = [15.0, 25.0, 40.0, 70.0];
const LENGTHS: [(f64, f64); 2] = [(1000.0, 1000.0), (4000.0, 500.0)];
/// Limit on tokens per parameter of the forecast that this one replaced.
const EARLIER_LIMIT: f64 = 414.0;

/// How far the serving model is off in each group of open rows.
fn server_residuals() -> Vec<GroupResiduals> {
    let known: Mutex<HashMap<String, Arc<dyn LatencyModel>>> = Mutex::default();
    let latency = |device: &DeviceSpec, engine: &str| {
        let key = format!("{} {engine}", device.name);
        if let Some(found) = known.lock().unwrap().get(&key) {
            return Ok(Arc::clone(found));
        }
        let built = serving::shipped(device, engine)?;
        known.lock().unwrap().insert(key, Arc::clone(&built));
        Ok(built)
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/points");
    let files = ["published_rows.csv", "silicon_rows.csv"];
    let points: Vec<Point> =
        files.into_iter().flat_map(|f| points::read(&folder.join(f)).unwrap()).collect();
    let zero: Vec<_> =
        points.iter().map(|p| apply(p, &EngineCosts::of(&p.engine), &latency)).collect();
    let rows: Vec<Scored> = points.iter().zip(&zero).map(|(p, r)| (p, r.as_ref().ok())).collect();
    grouped_residuals(&rows)
}

fn setting(rng: &mut ChaCha8Rng) -> RankInputs {
    let mut between = |low: f64, high: f64| low * (high / low).powf(rng.random::<f64>());
    let budget = Flops(between(1e22, 3e23));
    let demand = Demand { rate: Some(between(3.0, 300.0)), utilisation: 1.0 };
    let lifetime = Lifetime::Tokens(between(1e11, 3e13));
    let tpot = TPOTS[rng.random_range(0..TPOTS.len())];
    let (input, output) = LENGTHS[rng.random_range(0..LENGTHS.len())];
    let base = inputs();
    RankInputs {
        target: Target::Budget { budget, experts: 4 },
        limits: Limits { max_tokens_per_param: 1000.0, ..base.limits },
        lengths: Lengths { input, output },
        demand,
        level: ServiceLevel { tpot: Some(Seconds::from_ms(tpot)), ttft: None },
        lifetime,
        template: Arc::new(Template::ludziejewski2025().with_kv_group(8.0)),
        ranges: Ranges {
            zipf: 1.2,
            shared_log_sigma: residual::BETWEEN_GROUPS,
            own_log_sigma: residual::WITHIN_GROUPS,
            ..base.ranges
        },
        draws: DRAWS,
        ..base
    }
}

/// A draw of what a truth is: that of a ranking, with a server off as the open rows are.
fn truth(rng: &mut ChaCha8Rng, inputs: &RankInputs, servers: &[GroupResiduals]) -> Draw {
    let mut draw = draws(1, rng.random(), &inputs.ranges, inputs.experts.len()).remove(0);
    // Any of a fitted law's joint draws, not the first of one.
    draw.coefficients = Some(rng.random_range(0..DRAWS));
    let any = |rng: &mut ChaCha8Rng| rng.random_range(0..servers.len());
    let shared = servers[any(rng)].mean;
    let mut own = || {
        let within = &servers[any(rng)].within;
        within[rng.random_range(0..within.len())]
    };
    // A step predicted too slow is faster in truth.
    draw.step = inputs.experts.iter().map(|_| (-shared - own()).exp()).collect();
    draw
}

/// Probabilities of the expert counts and of none.
struct Forecast {
    best: Vec<(usize, f64)>,
    none: f64,
}

impl Forecast {
    fn of(mixture: &Mixture) -> Self {
        let best = mixture.choices.iter().map(|c| (c.experts, c.p_best)).collect();
        Self { best, none: mixture.p_none }
    }

    /// What the ranking said before: the first law alone, with its own residual, over-training worth
    /// what the law says, and a tighter limit on it.
    fn earlier(panel: &Panel, inputs: &RankInputs) -> Self {
        let taken_at_its_word = (1.0 - REALISED.0) / REALISED.1;
        let all = draws(DRAWS, inputs.seed, &inputs.ranges, inputs.experts.len());
        let mut wins: HashMap<usize, f64> = HashMap::new();
        for draw in all {
            let nothing = ErrorDraw::none(inputs.experts.len());
            let law =
                ErrorDraw { own: draw.law.own.clone(), realised: taken_at_its_word, ..nothing };
            let outcome = panel.outcome(0, &Draw { law, ..draw });
            *wins.entry(outcome.map_or(0, |o| o.winner)).or_default() += 1.0 / DRAWS as f64;
        }
        let none = wins.remove(&0).unwrap_or(0.0);
        Self { best: wins.into_iter().collect(), none }
    }

    /// Of what happened: one of the expert counts, or none of them.
    fn probability(&self, happened: Option<usize>) -> f64 {
        let of = |experts| self.best.iter().find(|b| b.0 == experts).map_or(0.0, |b| b.1);
        happened.map_or(self.none, of).max(FLOOR)
    }

    /// The expert count most likely to be the cheapest.
    fn favourite(&self) -> Option<usize> {
        self.best.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|b| b.0)
    }
}

/// Sums over all truths.
#[derive(Default)]
struct Score {
    settings: usize,
    truths: usize,
    /// Forecasts of an expert count or of none by the mixture, with whether it happened.
    trials: Vec<(f64, bool)>,
    /// The same by the earlier forecast.
    earlier: Vec<(f64, bool)>,
    /// Log losses: of the mixture, of the first law with the same errors, of the earlier forecast.
    log_loss: [f64; 3],
    /// Truths in which anything can be had.
    had: usize,
    /// Regret over training cost of the choice with the least expected regret: forecast and realised;
    /// realised of the earlier forecast's favourite.
    regret: [f64; 3],
}

/// A law of the mixture by its share.
fn law_of(panel: &Panel, mut share: f64) -> usize {
    let laws = panel.laws();
    let found = laws.iter().position(|(_, weight)| {
        share -= weight;
        share <= 0.0
    });
    found.unwrap_or(laws.len() - 1)
}

impl Score {
    fn add(
        &mut self,
        mixture: &Mixture,
        forecasts: &[Forecast; 3],
        truths: &[Option<Outcome>],
        cost: f64,
    ) {
        let regret = |c: &&moe_frontier::plan::outcome::Choice| c.expected_regret_usd;
        let known = mixture.choices.iter().filter(|c| regret(c).is_some());
        let choice = known.min_by(|a, b| regret(a).unwrap().total_cmp(&regret(b).unwrap()));
        let favourite = forecasts[2].favourite();
        self.settings += 1;
        for truth in truths {
            let happened = truth.as_ref().map(|t| t.winner);
            self.truths += 1;
            for (sum, forecast) in self.log_loss.iter_mut().zip(forecasts) {
                *sum -= forecast.probability(happened).ln();
            }
            for (trials, forecast) in
                [(&mut self.trials, &forecasts[0]), (&mut self.earlier, &forecasts[2])]
            {
                let best = forecast.best.iter().map(|&(e, p)| (p, happened == Some(e)));
                trials.extend(best.chain([(forecast.none, happened.is_none())]));
            }
            let (Some(truth), Some(choice)) = (truth, choice) else { continue };
            let realised = |experts: Option<usize>| {
                let found = truth.regrets.iter().find(|r| Some(r.0) == experts);
                found.map(|r| r.1 / cost)
            };
            let forecast = choice.expected_regret_usd.unwrap() / cost;
            if let (Some(own), Some(other)) = (realised(Some(choice.experts)), realised(favourite))
            {
                self.had += 1;
                let these = [forecast, own, other];
                self.regret.iter_mut().zip(these).for_each(|(sum, v)| *sum += v);
            }
        }
    }
}

/// Of each tenth of probability: forecasts, their mean and the share that happened.
fn tenths(trials: &[(f64, bool)]) -> Vec<Tenth> {
    let tenth = |i: u32| {
        let (low, high) = (f64::from(i) / 10.0, f64::from(i + 1) / 10.0);
        let inside = |t: &&(f64, bool)| t.0 >= low && (t.0 < high || i == 9);
        let these: Vec<_> = trials.iter().filter(inside).collect();
        let count = these.len() as f64;
        Tenth {
            forecasts: these.len(),
            mean_p_best: these.iter().map(|t| t.0).sum::<f64>() / count,
            share_that_happened: these.iter().filter(|t| t.1).count() as f64 / count,
        }
    };
    (0..10).map(tenth).collect()
}

/// The tenth that is furthest off among those with enough forecasts, and how far.
fn furthest_off(tenths: &[Tenth]) -> (f64, usize) {
    /// A share of so many forecasts is good to 0.05 or so, as the truths of one setting go together.
    const ENOUGH: usize = 100;
    let off = |t: &Tenth| (t.mean_p_best - t.share_that_happened).abs();
    let known = tenths.iter().enumerate().filter(|(_, t)| t.forecasts >= ENOUGH);
    let worst = known.map(|(i, t)| (off(t), i)).max_by(|a, b| a.0.total_cmp(&b.0));
    worst.unwrap_or((0.0, 0))
}

fn score() -> Score {
    let member = |id: &&str| Member { law: load_scaling(id).unwrap(), weight: 1.0 };
    let members: Vec<Member> = SCALING_IDS.iter().map(member).collect();
    let servers = server_residuals();
    let mut books: HashMap<String, Book> = HashMap::new();
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut score = Score::default();
    for _ in 0..SETTINGS {
        let inputs = setting(&mut rng);
        let on = |m: &Member| Member { law: m.law.on(&inputs.template), weight: m.weight };
        let on: Vec<Member> = members.iter().map(on).collect();
        let key = format!("{:?} {:?}", inputs.level, inputs.lengths);
        let sketch = || Arc::new(Sketch) as Arc<dyn LatencyModel>;
        let book = books.entry(key).or_insert_with(|| Book::new(sketch(), &inputs).unwrap());
        let Ok(panel) = Panel::new(book, &on, &inputs) else { continue };
        let limits = Limits { max_tokens_per_param: EARLIER_LIMIT, ..inputs.limits };
        let before = RankInputs { limits, ..inputs.clone() };
        let (Ok(alone), Ok(earlier)) =
            (Panel::new(book, &on[..1], &inputs), Panel::new(book, &on[..1], &before))
        else {
            continue;
        };
        let truths: Vec<Option<Outcome>> = (0..TRUTHS)
            .map(|_| {
                let law = law_of(&panel, rng.random());
                panel.outcome(law, &truth(&mut rng, &inputs, &servers))
            })
            .collect();
        let mixture = panel.answer().mixture;
        let forecasts = [
            Forecast::of(&mixture),
            Forecast::of(&alone.answer().mixture),
            Forecast::earlier(&earlier, &before),
        ];
        let Target::Budget { budget, .. } = inputs.target else { continue };
        score.add(&mixture, &forecasts, &truths, inputs.training.cost(budget).0);
    }
    score
}

fn page(score: &Score, tenths: &[Tenth]) -> String {
    let mut table = String::from("| forecasts | mean P | share that happened |\n|---|---|---|\n");
    for t in tenths {
        let cell = |v: f64| if v.is_finite() { format!("{v:.3}") } else { "-".into() };
        let (p, share) = (cell(t.mean_p_best), cell(t.share_that_happened));
        writeln!(table, "| {} | {p} | {share} |", t.forecasts).unwrap();
    }
    let per = |v: f64| v / score.truths as f64;
    let [mixture, alone, earlier] = score.log_loss.map(per);
    let [forecast, own, other] = score.regret.map(|v| 100.0 * v / score.had as f64);
    format!(
        "# P(best) against synthetic truths\n\n\
         Written by `just calibration-of-rank`. {} of {SETTINGS} settings drawn at random (budget \
         1e22 to 3e23 FLOPs, 3 to 300 requests/s, lifetime 1e11 to 3e13 tokens, TPOT 15 to 70 ms, two \
         pairs of lengths; seed {SEED}; in the others the law has no candidate that can be served) with \
         {TRUTHS} truths each. A truth is one law of the mixture with its error drawn, and a server that \
         errs as the serving model does against the open server rows: the mean of one group for all \
         candidates, a row's distance from its group's mean for each.\n\n\
         Forecasts of one expert count, or of none, by tenths of probability:\n\n{table}\n\
         ![reliability](reliability.svg)\n\n\
         Mean log loss of what happened: {mixture:.3} by the mixture, {alone:.3} by the first law alone \
         with the same errors, {earlier:.3} by the first law alone with its residual only, over-training \
         worth what the law says and at most {EARLIER_LIMIT} tokens per parameter, close to \
         what the ranking said before.\n\n\
         Expected regret of the choice with the least of it, as a share of the training cost of the \
         budget: {forecast:.1}% forecast, {own:.1}% realised; {other:.1}% realised by the expert count \
         that the earlier forecast favoured. Means over the {} truths in which any model can be had.\n",
        score.settings, score.had
    )
}

#[test]
#[ignore = "minutes of settings; `just calibration-of-rank` runs it"]
fn probabilities_come_true_as_often_as_they_say() {
    let score = score();
    let tenths = tenths(&score.trials);
    let page = page(&score, &tenths);
    println!("{page}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/calibration_of_rank");
    fs::create_dir_all(&folder).unwrap();
    let subtitle = format!("{} settings, {} truths; seed {SEED}", score.settings, score.truths);
    write_reliability(&tenths, &subtitle, &folder).unwrap();
    fs::write(folder.join("README.md"), page).unwrap();
    let [mixture, alone, earlier] = score.log_loss;
    assert!(mixture < alone && mixture < earlier, "log losses {mixture}, {alone}, {earlier}");
    let (off, tenth) = furthest_off(&tenths);
    assert!(off <= 0.1, "{off} in tenth {tenth}: {tenths:?}");
    // The bound can be missed: the earlier forecast misses it by far.
    let (earlier_off, _) = furthest_off(&self::tenths(&score.earlier));
    assert!(earlier_off > 0.2, "{earlier_off} of the earlier forecast");
    let [forecast, own, other] = score.regret;
    assert!(own < other, "regret {own} against {other} by the earlier favourite");
    assert!((forecast / own).ln().abs() < 0.25, "regret {own} where {forecast} was forecast");
}
