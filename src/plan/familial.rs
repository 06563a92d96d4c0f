//! One trunk with several exits instead of one model: what the training loses, and what each exit costs to
//! serve.

use crate::Result;
use crate::law::beyond::REALISED;
use crate::law::familial2025::{EXPONENT, penalty};
use crate::plan::candidates::Shape;
use crate::plan::inputs::RankInputs;
use crate::plan::market::{Entry, Market};
use crate::plan::operating::operate;
use crate::plan::outcome::{ExitSize, Familial};
use crate::plan::price::Book;
use crate::serving::training_flops;
use crate::units::nearest_whole;

/// The exits asked about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exits {
    /// How many.
    pub count: usize,
    /// Exponent of their number in the loss.
    pub exponent: f64,
}

impl Exits {
    /// Exits with the exponent that is known.
    pub const fn new(count: usize) -> Self {
        Self { count, exponent: EXPONENT }
    }
}

/// One entry of a market as a trunk with exits.
///
/// # Errors
/// When no latency model answers.
pub fn report(
    book: &Book,
    (market, entry): (&Market, &Entry),
    inputs: &RankInputs,
    exits: Exits,
) -> Result<Familial> {
    let point = &entry.point;
    let loss_factor = penalty(exits.count as f64, exits.exponent);
    let (at, data) = ((point.n_active, entry.standing.ratio_limit), inputs.data(REALISED.0));
    let tokens = data.tokens_for(&entry.curve, at, market.reference.loss.0 / loss_factor);
    let training = inputs.training_of(point.shape.experts);
    let model = &entry.priced.model;
    // Every exit but the last has a head of its own, which training runs for every token.
    let heads = (exits.count - 1) as f64 * (model.vocab_size * model.hidden_size) as f64;
    let train_usd = tokens.map(|t| training.cost(training_flops(point.n_active + heads, t)).0);
    let sizes = (1..=exits.count)
        .map(|exit| size(book, &point.shape, (exit, exits.count), inputs))
        .collect::<Result<Vec<_>>>()?;
    let separate = sizes.iter().map(|s| training.cost(training_flops(s.n_active, point.tokens)).0);
    Ok(Familial {
        experts: point.shape.experts,
        exits: exits.count,
        exponent: exits.exponent,
        loss_factor,
        tokens,
        train_usd,
        separate_train_usd: separate.sum(),
        missing: tokens.is_none().then(|| {
            format!("no number of tokens brings the mean of {} exits to the loss", exits.count)
        }),
        sizes,
    })
}

/// The layers up to one exit as a model of their own.
fn size(
    book: &Book,
    trunk: &Shape,
    (exit, of): (usize, usize),
    inputs: &RankInputs,
) -> Result<ExitSize> {
    let layers = nearest_whole((trunk.layers * exit) as f64 / of as f64).max(1);
    let priced = book.get(&Shape { layers, ..*trunk })?;
    let operating = operate(book, &priced, inputs).ok();
    let params = priced.model.params();
    Ok(ExitSize {
        num_layers: layers,
        n_active: params.active() - params.router - params.norms,
        n_total: params.total(),
        serve_usd_per_million_output_tokens: operating.as_ref().map(|o| o.deployed.cost.0),
        tpot_ms: operating.as_ref().map(|o| o.served.tpot.as_ms()),
    })
}
