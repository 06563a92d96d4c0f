//! Laws that rank architectures: what each must say, and a law put on an architecture's sizes.

use std::fmt::Debug;
use std::sync::Arc;

use crate::law::beyond::{Data, OPTIMAL_RATIO, Trained, ratio_limit};
use crate::law::{Closure, Inputs, LawInfo, Slice, Template, TokenCurve, Variable};
use crate::{Error, Result};

/// A size at which proportions are asked about, which decide at every size alike.
const ANY_SIZE: f64 = 1e9;

/// A law as a ranking asks it: the loss of one architecture along its training tokens.
///
/// Every law that can rank implements this in its own file; what its paper lacks is mapped by the rule
/// that [`Self::mapping`] states, or refused by [`Self::admits`].
pub trait ArchitectureLaw: Send + Sync + Debug {
    /// How an architecture becomes the law's own variables, in one sentence.
    fn mapping(&self) -> &'static str;

    /// Why the law says nothing about this architecture, if so.
    fn admits(&self, at: &Closure) -> std::result::Result<(), String>;

    /// The loss of an architecture that the law admits, against training tokens.
    fn curve(&self, at: &Closure) -> TokenCurve;

    /// How far a training of this architecture lies outside the runs that the law was fitted to.
    fn extrapolation(&self, at: &Closure, tokens: f64) -> Extrapolation;

    /// Standard deviation of the law's residual in nats within its runs.
    fn residual_nats(&self) -> f64;

    /// The law with each joint draw of its coefficients; empty for published laws, whose covariance is
    /// not published.
    fn drawn(&self) -> Vec<Arc<dyn ArchitectureLaw>> {
        Vec::new()
    }

    /// The law of active parameters and expansion alone, where it has that form.
    fn power_law(&self, _expansion: f64) -> Option<crate::law::PowerLawSlice> {
        None
    }
}

/// A law with each of its joint draws of coefficients.
pub(super) fn with_each<C: Copy, L: ArchitectureLaw + 'static>(
    draws: &[C],
    with: impl Fn(C) -> L,
) -> Vec<Arc<dyn ArchitectureLaw>> {
    draws.iter().map(|c| Arc::new(with(*c)) as Arc<dyn ArchitectureLaw>).collect()
}

/// A law of parameters, tokens and experts, with the architecture its sizes stand for.
#[derive(Clone, Debug)]
pub struct Scaling {
    id: String,
    law: Arc<dyn ArchitectureLaw>,
    template: Arc<Template>,
    drawn: Vec<Arc<dyn ArchitectureLaw>>,
    /// What stands between the law and the models trained; `None` is the law by itself.
    data: Option<Data>,
    /// Share of the parameters that the bits of a training leave ([`crate::law::precision`]).
    effective: f64,
}

impl Scaling {
    /// A law on the sizes of an architecture.
    pub fn new(id: impl Into<String>, law: Arc<dyn ArchitectureLaw>, template: Template) -> Self {
        let drawn = law.drawn();
        let template = Arc::new(template);
        Self { id: id.into(), law, template, drawn, data: None, effective: 1.0 }
    }

    /// The same law on another architecture.
    pub fn on(&self, template: &Arc<Template>) -> Self {
        Self { template: Arc::clone(template), ..self.clone() }
    }

    /// The same law as its models turn out with such data, instead of by itself.
    pub fn trained(&self, data: Data) -> Self {
        Self { data: Some(data), ..self.clone() }
    }

    /// The same law of models that are worth a share of their parameters.
    pub fn worth(&self, effective: f64) -> Self {
        Self { effective, ..self.clone() }
    }

    /// Share of the parameters that models are worth.
    pub const fn effective(&self) -> f64 {
        self.effective
    }

    /// Identifier of the law.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The architecture.
    pub const fn template(&self) -> &Arc<Template> {
        &self.template
    }

    /// How an architecture becomes the law's own variables.
    pub fn mapping(&self) -> &'static str {
        self.law.mapping()
    }

    /// The law at one expert count (1 is dense).
    ///
    /// # Errors
    /// [`Error::Usage`] for an expert count that has no meaning; [`Error::Unfit`] for an architecture
    /// that the law says nothing about.
    pub fn slice(&self, experts: usize) -> Result<Arc<dyn Slice>> {
        self.admits(experts)?;
        let slice = self.on_template(&self.law, experts);
        Ok(match self.data {
            Some(data) => {
                let ratio_limit =
                    ratio_limit(&self.extrapolation(experts, ANY_SIZE, OPTIMAL_RATIO * ANY_SIZE));
                Arc::new(Trained { slice, ratio_limit, data })
            }
            None => slice,
        })
    }

    /// Whether the law says anything about an expert count of the architecture.
    ///
    /// # Errors
    /// As [`Self::slice`].
    pub fn admits(&self, experts: usize) -> Result<()> {
        let at = self.closure(experts, ANY_SIZE)?;
        self.law.admits(&at).map_err(|reason| Error::unfit(&self.id, reason))
    }

    fn on_template(&self, law: &Arc<dyn ArchitectureLaw>, experts: usize) -> Arc<dyn Slice> {
        let expansion = self.template.at_width(experts, self.template.aspect).expansion();
        let whole: Arc<dyn Slice> = match law.power_law(expansion) {
            Some(power) => Arc::new(power),
            None => Arc::new(OnTemplate {
                law: Arc::clone(law),
                template: Arc::clone(&self.template),
                experts,
            }),
        };
        if self.effective < 1.0 {
            return Arc::new(Worth { slice: whole, effective: self.effective });
        }
        whole
    }

    /// The sizes of `n_active` active parameters.
    ///
    /// # Errors
    /// [`Error::Usage`] for sizes without a meaning.
    pub fn closure(&self, experts: usize, n_active: f64) -> Result<Closure> {
        self.template.at_size(experts, n_active)
    }

    /// How far a point lies outside the runs that the law was fitted to.
    pub fn extrapolation(&self, experts: usize, n_active: f64, tokens: f64) -> Extrapolation {
        self.law.extrapolation(&self.template.sized(experts, n_active), tokens)
    }

    /// Standard deviation of the law's residual in nats within its runs.
    pub fn residual_nats(&self) -> f64 {
        self.law.residual_nats()
    }

    /// The law at one expert count for every joint draw of its coefficients, in the same order for
    /// all expert counts; empty for published laws.
    pub fn drawn_slices(&self, experts: usize) -> Vec<Arc<dyn Slice>> {
        self.drawn.iter().map(|law| self.on_template(law, experts)).collect()
    }

    /// Number of joint draws of the coefficients.
    pub const fn draws(&self) -> usize {
        self.drawn.len()
    }
}

/// A law of models that are worth a share of their parameters.
#[derive(Clone, Debug)]
struct Worth {
    slice: Arc<dyn Slice>,
    effective: f64,
}

impl Slice for Worth {
    fn curve(&self, n_active: f64) -> TokenCurve {
        self.slice.curve(self.effective * n_active)
    }
}

/// A law along the sizes of one expert count.
#[derive(Clone, Debug)]
struct OnTemplate {
    law: Arc<dyn ArchitectureLaw>,
    template: Arc<Template>,
    experts: usize,
}

impl Slice for OnTemplate {
    fn curve(&self, n_active: f64) -> TokenCurve {
        self.law.curve(&self.template.sized(self.experts, n_active))
    }
}

/// Each variable over the largest value in the fitted runs; above 1 is outside, 0 where a law states
/// no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extrapolation {
    /// Training FLOPs.
    pub train_flops: f64,
    /// Active parameters, or the size that the law counts.
    pub n_active: f64,
    /// Training tokens.
    pub tokens: f64,
    /// Tokens per active parameter.
    pub tokens_per_param: f64,
    /// Experts per layer, as the law counts them.
    pub experts: f64,
}

impl Extrapolation {
    /// The factors of values against the ranges of a law's description.
    pub(crate) fn of(info: &LawInfo, state: &Inputs) -> Self {
        let over = |variables: &[Variable]| {
            let ranges = info.ranges.iter().filter(|r| variables.contains(&r.variable));
            let factors = ranges.filter_map(|r| Some(state.get(r.variable)? / r.high?));
            factors.fold(0.0, f64::max)
        };
        Self {
            train_flops: over(&[Variable::TrainFlops]),
            n_active: over(&[Variable::NActive, Variable::NTotal, Variable::NDense]),
            tokens: over(&[Variable::Tokens]),
            tokens_per_param: over(&[Variable::TokensPerParam]),
            experts: over(&[Variable::Experts]),
        }
    }

    /// The largest of the factors, at least 1.
    pub fn worst(&self) -> f64 {
        [self.train_flops, self.n_active, self.tokens, self.tokens_per_param, self.experts]
            .into_iter()
            .fold(1.0, f64::max)
    }

    /// Whether every variable lies within the fitted runs.
    pub fn in_fit_range(&self) -> bool {
        self.worst() <= 1.0
    }
}

/// What a law's ranges are compared with: the architecture's sizes and its training.
pub(crate) fn state(at: &Closure, tokens: f64) -> Inputs {
    Inputs::default()
        .with(Variable::Experts, at.expansion())
        .with(Variable::NActive, at.n_active)
        .with(Variable::NTotal, at.n_total)
        .with(Variable::Tokens, tokens)
        .with(Variable::TrainFlops, 6.0 * at.n_active * tokens)
        .with(Variable::TokensPerParam, tokens / at.n_active)
}
