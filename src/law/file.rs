//! Laws from a file: coefficients of a published form, made by `law fit` or written by hand.
//!
//! ```json
//! {
//!   "schema": "moe-frontier/law", "schema_version": "1.0",
//!   "form": "hoffmann2022", "source": "our runs",
//!   "names": ["e", "a", "b", "alpha", "beta"],
//!   "coefficients": [1.8, 480.0, 2000.0, 0.35, 0.37],
//!   "residual_nats": 0.005
//! }
//! ```
//!
//! `ranges` and joint `draws` of the coefficients may follow. The major version is checked; unknown
//! keys are refused, so that a misspelt one is not silently a default.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bounds::Quantity;
use crate::law::{
    Inputs, LawInfo, LossLaw, Question, Range, Variable, abnar2025, ask, clark2022, dense,
    familial2025, krajewski2024, ludziejewski2025, yun2024, zhao2025,
};
use crate::{Error, Result, files};

/// Schema of the file.
pub const SCHEMA: &str = "moe-frontier/law";
/// Version of the schema.
pub const SCHEMA_VERSION: &str = "1.0";
/// Largest file that is read; thousands of draws take about a megabyte.
const MAX_BYTES: u64 = 64 << 20;
/// Largest coefficient; the largest published one is some 1e10.
const LARGEST: f64 = 1e18;
/// Most joint draws.
const MOST_DRAWS: usize = 100_000;
/// Variables whose ranges are combined into corners.
const MOST_CORNER_VARIABLES: usize = 6;

/// A law as a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LawFile {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`SCHEMA_VERSION`].
    pub schema_version: String,
    /// Identifier of the law whose form this is.
    pub form: String,
    /// Where the coefficients are from.
    pub source: String,
    /// Names of the coefficients, in the order of the two fields below.
    pub names: Vec<String>,
    /// The coefficients.
    pub coefficients: Vec<f64>,
    /// Standard deviation of the residual in nats.
    pub residual_nats: f64,
    /// What a form holds fixed: training tokens for `clark2022`, the expansion rate for
    /// `krajewski2024`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<f64>,
    /// Ranges of the fitted runs.
    #[serde(default)]
    pub ranges: Vec<Range>,
    /// Joint draws of the coefficients.
    #[serde(default)]
    pub draws: Vec<Vec<f64>>,
    /// How the fit went; for readers, not used by the law.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Value>,
}

/// Reads a law from a file.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::BadFile`] when it is no such file.
pub fn load_file(path: &Path) -> Result<Box<dyn LossLaw>> {
    let bytes = files::read_capped(path, MAX_BYTES)?;
    files::checks::check_json(path, &bytes, MAX_BYTES)?;
    let file: LawFile = files::strict::from_slice(&bytes, MAX_BYTES).map_err(|e| {
        let text = e.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text).to_owned();
        Error::bad_file_at(path, e.line(), e.column(), reason)
    })?;
    file.into_law()
        .and_then(|law| plausible(law.as_ref()).map(|()| law))
        .map_err(|reason| Error::bad_file(path, reason))
}

impl LawFile {
    /// The law that the file describes, or what is wrong with it.
    pub fn into_law(self) -> Result<Box<dyn LossLaw>, String> {
        let minor = self.schema_version.strip_prefix("1.");
        let is_known =
            minor.is_some_and(|m| !m.is_empty() && m.bytes().all(|b| b.is_ascii_digit()));
        if self.schema != SCHEMA || !is_known {
            return Err(format!(
                "schema `{}` {} is not {SCHEMA} 1.x",
                self.schema, self.schema_version
            ));
        }
        if !(self.residual_nats.is_finite() && self.residual_nats >= 0.0) {
            return Err("residual_nats is not a finite number of zero or more".into());
        }
        Quantity::LossNats.check(self.residual_nats).map_err(|e| format!("residual_nats: {e}"))?;
        self.check_numbers()?;
        Ok(match self.form.as_str() {
            "ludziejewski2025" => {
                let published = published(ludziejewski2025::Ludziejewski2025::published())?;
                let (coefficients, draws) = self.sets()?;
                Box::new(ludziejewski2025::Ludziejewski2025::fitted(
                    self.info(&published.info),
                    coefficients,
                    self.residual_nats,
                    draws,
                ))
            }
            "yun2024" => {
                let (coefficients, draws) = self.sets()?;
                let form = toml::from_str(yun2024::INFO).map_err(|e| e.to_string())?;
                let info = self.info(&form);
                let residual_nats = self.residual_nats;
                Box::new(yun2024::Yun2024 { info, coefficients, residual_nats, draws })
            }
            "zhao2025" => {
                let published = published(zhao2025::Zhao2025::published())?;
                let (coefficients, draws) = self.sets()?;
                let (info, residual_nats) = (self.info(&published.info), self.residual_nats);
                Box::new(zhao2025::Zhao2025 { info, coefficients, residual_nats, draws })
            }
            "abnar2025" => {
                let published = published(abnar2025::Abnar2025::published())?;
                let (coefficients, draws) = self.sets()?;
                let (info, residual_nats) = (self.info(&published.info), self.residual_nats);
                Box::new(abnar2025::Abnar2025 { info, coefficients, residual_nats, draws })
            }
            "krajewski2024" => {
                let published = published(krajewski2024::Krajewski2024::published(None))?;
                let expansion = self.fixed.ok_or("`fixed` is missing: the expansion rate")?;
                let info = self.info(published.info());
                let (sets, residual) = (self.sets()?, self.residual_nats);
                Box::new(krajewski2024::Krajewski2024::fitted(info, expansion, sets, residual))
            }
            "clark2022" => {
                let published = published(clark2022::Clark2022::published(None))?;
                let tokens = self.fixed.ok_or("`fixed` is missing: the training tokens")?;
                let (coefficients, draws) = self.sets()?;
                let (info, residual_nats) = (self.info(&published.info), self.residual_nats);
                Box::new(clark2022::Clark2022 { info, coefficients, tokens, residual_nats, draws })
            }
            "hoffmann2022" => {
                let published = published(dense::hoffmann(None))?;
                let (coefficients, _): (dense::Coefficients, _) = self.sets()?;
                Box::new(published.fitted(self.info(published.info()), coefficients.slice()))
            }
            "familial2025" => {
                let (coefficients, _): (familial2025::Coefficients, _) = self.sets()?;
                let form = toml::from_str(familial2025::INFO).map_err(|e| e.to_string())?;
                Box::new(familial2025::Familial2025 { info: self.info(&form), coefficients })
            }
            other => {
                return Err(format!("form `{other}` is not known; there is {}", FORMS.join(", ")));
            }
        })
    }

    /// Checks what can be checked of the numbers without knowing the form.
    fn check_numbers(&self) -> Result<(), String> {
        let values = || self.coefficients.iter().chain(self.draws.iter().flatten());
        if let Some(value) = values().find(|v| !(v.is_finite() && v.abs() <= LARGEST)) {
            return Err(format!(
                "a coefficient of {value:e} is not a number of at most {LARGEST:e}"
            ));
        }
        if self.draws.len() > MOST_DRAWS {
            return Err(format!("{} draws; at most {MOST_DRAWS}", self.draws.len()));
        }
        for range in &self.ranges {
            let (low, high) = (range.low.unwrap_or(1e-9), range.high.unwrap_or(1e32));
            if !(low.is_finite() && high.is_finite() && 0.0 < low && low <= high && high <= 1e32) {
                return Err(format!(
                    "the range of {} is not two numbers above zero in order",
                    range.variable.name()
                ));
            }
        }
        Ok(())
    }

    /// The coefficients and their draws as the form's own type.
    fn sets<T: DeserializeOwned>(&self) -> Result<(T, Vec<T>), String> {
        let draws = self.draws.iter().map(|draw| self.set(draw)).collect::<Result<_, _>>()?;
        Ok((self.set(&self.coefficients)?, draws))
    }

    fn set<T: DeserializeOwned>(&self, values: &[f64]) -> Result<T, String> {
        if values.len() != self.names.len() {
            return Err(format!("{} names but {} values", self.names.len(), values.len()));
        }
        let named: Map<String, Value> =
            self.names.iter().cloned().zip(values.iter().map(|&v| Value::from(v))).collect();
        // A value that is not finite becomes null here and is refused by its type.
        serde_json::from_value(Value::Object(named)).map_err(|e| format!("coefficients: {e}"))
    }

    /// The form's description with this file's source and ranges.
    fn info(&self, form: &LawInfo) -> LawInfo {
        LawInfo {
            id: format!("{} (file)", self.form),
            title: format!("Coefficients from a file, in the form of: {}", form.title),
            source: self.source.clone(),
            fitted_to: "see the file's `fit`".into(),
            variants: Vec::new(),
            ranges: self.ranges.clone(),
            ..form.clone()
        }
    }
}

/// Where a variable lies in usual runs, for a file that does not say. What differs between forms has no usual
/// range: without one, a law that needs it is not asked.
const fn usual(variable: Variable) -> Option<Range> {
    let (low, high) = match variable {
        Variable::NActive | Variable::NDense => (1e8, 1e10),
        Variable::NTotal => (1e10, 1e11),
        Variable::Tokens => (1e9, 1e11),
        Variable::Experts => (4.0, 16.0),
        _ => return None,
    };
    Some(Range { variable, low: Some(low), high: Some(high) })
}

/// The ends of a range; an open one ends where usual runs do, but not beyond its other end.
fn ends(range: &Range) -> [f64; 2] {
    let usual = usual(range.variable);
    let (low, high) = (usual.and_then(|r| r.low), usual.and_then(|r| r.high));
    match (range.low, range.high) {
        (Some(low), Some(high)) => [low, high],
        (Some(own), None) => [own, high.map_or(own, |high| high.max(own))],
        (None, Some(own)) => [low.map_or(own, |low| low.min(own)), own],
        (None, None) => [low.unwrap_or(1.0), high.unwrap_or(1.0)],
    }
}

/// Checks that a law gives a loss that can be, at the corners of the ranges that it names or of usual ones, and
/// that more parameters and more tokens do not raise it, as an exponent with the wrong sign would have it.
fn plausible(law: &dyn LossLaw) -> Result<(), String> {
    let info = law.info();
    let is_named = |variable| info.ranges.iter().any(|range| range.variable == variable);
    let needed = info.variables.iter().filter(|v| !v.optional && !is_named(v.name));
    let usual: Vec<Range> = needed.filter_map(|variable| usual(variable.name)).collect();
    let ranges: Vec<&Range> =
        info.ranges.iter().chain(&usual).take(MOST_CORNER_VARIABLES).collect();
    let mut losses = vec![None; 1_usize << ranges.len()];
    for (corner, found) in losses.iter_mut().enumerate() {
        let values = ranges.iter().enumerate().map(|(i, range)| {
            let [low, high] = ends(range);
            (range.variable, if (corner >> i) & 1 == 1 { high } else { low })
        });
        // A variable that the law needs may have no range, and corners may lie outside its domain.
        let Ok(inputs) = Inputs::new(values) else { continue };
        match ask(law, &inputs, Question::Loss) {
            Ok(answer) => {
                let loss = answer.loss_nats;
                Quantity::LossNats
                    .check(loss)
                    .map_err(|e| format!("at a corner of its ranges, {e}"))?;
                *found = Some(loss);
            }
            Err(Error::Usage { .. } | Error::Unfit { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    falling(&ranges, &losses)
}

/// Checks losses at the corners of ranges: bit i of a corner's number says whether variable i is at its high end.
fn falling(ranges: &[&Range], losses: &[Option<f64>]) -> Result<(), String> {
    for (i, range) in ranges.iter().enumerate() {
        if !matches!(range.variable, Variable::Tokens | Variable::NActive) {
            continue;
        }
        for low in (0..losses.len()).filter(|corner| (corner >> i) & 1 == 0) {
            let (Some(at_low), Some(at_high)) = (losses[low], losses[low | 1 << i]) else {
                continue;
            };
            if at_high > at_low {
                return Err(format!(
                    "the loss rises with {}, from {at_low:.4} to {at_high:.4} nats over its range: an \
                     exponent has the wrong sign",
                    range.variable.name()
                ));
            }
        }
    }
    Ok(())
}

/// Forms that a file can hold and a fit can make.
pub const FORMS: [&str; 8] = [
    "ludziejewski2025",
    "yun2024",
    "zhao2025",
    "krajewski2024",
    "clark2022",
    "abnar2025",
    "hoffmann2022",
    "familial2025",
];

fn published<T>(law: Result<T>) -> Result<T, String> {
    law.map_err(|e| e.to_string())
}

/// Names and values of coefficients, in the order of their declaration.
///
/// # Errors
/// A message when the type is no struct of numbers.
pub fn named<T: Serialize>(coefficients: &T) -> Result<BTreeMap<String, f64>, String> {
    let value = serde_json::to_value(coefficients).map_err(|e| e.to_string())?;
    serde_json::from_value(value).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::{load, load_scaling};

    fn file(form: &str, coefficients: BTreeMap<String, f64>) -> LawFile {
        LawFile {
            schema: SCHEMA.into(),
            schema_version: SCHEMA_VERSION.into(),
            form: form.into(),
            source: "test".into(),
            names: coefficients.keys().cloned().collect(),
            coefficients: coefficients.into_values().collect(),
            residual_nats: 0.004,
            fixed: None,
            ranges: Vec::new(),
            draws: Vec::new(),
            fit: None,
        }
    }

    fn ludziejewski() -> LawFile {
        let published = ludziejewski2025::Ludziejewski2025::published().unwrap();
        file("ludziejewski2025", named(&published.coefficients).unwrap())
    }

    fn written(file: &LawFile) -> tempfile::NamedTempFile {
        let at = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
        std::fs::write(at.path(), serde_json::to_vec(file).unwrap()).unwrap();
        at
    }

    #[test]
    fn a_published_law_survives_its_file() {
        let inputs = [(Variable::Experts, 8.0), (Variable::NActive, 1e9), (Variable::Tokens, 2e10)];
        let inputs = Inputs::new(inputs).unwrap();
        let at = written(&ludziejewski());
        let from_file =
            ask(load_file(at.path()).unwrap().as_ref(), &inputs, Question::Loss).unwrap();
        let published = load("ludziejewski2025", None).unwrap();
        let published = ask(published.as_ref(), &inputs, Question::Loss).unwrap();
        assert!((from_file.loss_nats - published.loss_nats).abs() < 1e-15);
        assert!(from_file.in_fit_range, "a file without ranges has none to leave");
    }

    #[test]
    fn a_ranking_takes_a_file_with_its_draws() {
        let mut with_draws = ludziejewski();
        with_draws.draws = vec![with_draws.coefficients.clone(); 3];
        let at = written(&with_draws);
        let law = load_scaling(at.path().to_str().unwrap()).unwrap();
        assert_eq!(law.drawn_slices(8).len(), 3);
        let loss = |slice: &dyn crate::law::Slice| slice.loss(1e9, 2e10);
        assert_eq!(loss(law.drawn_slices(8)[0].as_ref()), loss(law.slice(8).unwrap().as_ref()));
        assert!((law.residual_nats() - 0.004).abs() < 1e-12);
    }

    #[test]
    fn bad_files_are_refused_with_the_reason() {
        let good = ludziejewski();
        let cases: [(LawFile, &str); 5] = [
            (LawFile { schema: "other".into(), ..good.clone() }, "schema"),
            (LawFile { form: "tian2025".into(), ..good.clone() }, "form `tian2025`"),
            (LawFile { names: good.names[1..].to_vec(), ..good.clone() }, "names but"),
            (LawFile { residual_nats: -1.0, ..good.clone() }, "residual_nats"),
            (
                LawFile {
                    names: good.names[1..].to_vec(),
                    coefficients: good.coefficients[1..].to_vec(),
                    ..good.clone()
                },
                "missing field `a`",
            ),
        ];
        for (bad, reason) in cases {
            let at = written(&bad);
            let error = load_file(at.path()).err().unwrap();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(reason), "{error}");
        }
        let at = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(at.path(), b"{\"schema\": \"moe-frontier/law\", ").unwrap();
        assert_eq!(load_file(at.path()).err().unwrap().exit_code(), 3);
        assert_eq!(load_file(Path::new("/no/such/file.json")).err().unwrap().exit_code(), 7);
    }

    #[test]
    fn an_exponent_with_the_wrong_sign_is_refused() {
        let names = ["e", "a", "b", "alpha", "beta"];
        let with = |(a, alpha): (f64, f64), (b, beta): (f64, f64)| {
            let values = [1.8, a, b, alpha, beta];
            let named = names.iter().map(ToString::to_string).zip(values).collect();
            let range = |variable, low, high| Range { variable, low: Some(low), high: Some(high) };
            let ranges =
                vec![range(Variable::NActive, 1e8, 1e10), range(Variable::Tokens, 1e9, 1e11)];
            let law = LawFile { ranges, ..file("hoffmann2022", named) };
            load_file(written(&law).path()).err().map(|error| error.to_string())
        };
        let (sizes, tokens, rising) = ((480.0, 0.35), (2000.0, 0.37), (0.5, -0.05));
        assert_eq!(with(sizes, tokens), None);
        let reason = with(rising, tokens).unwrap_or_default();
        assert!(reason.contains("the loss rises with n_active"), "{reason}");
        let reason = with(sizes, rising).unwrap_or_default();
        assert!(reason.contains("the loss rises with tokens"), "{reason}");
    }

    #[test]
    fn a_value_that_is_no_number_is_refused() {
        let mut text = serde_json::to_value(ludziejewski()).unwrap();
        text["coefficients"][0] = Value::Null;
        let at = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(at.path(), text.to_string()).unwrap();
        assert_eq!(load_file(at.path()).err().unwrap().exit_code(), 3);
    }
}
