//! Logarithmic axes: range, ticks and their labels.

/// Longest axis that is labelled at every factor of ten.
const MOST_DECADES: f64 = 9.0;

/// A logarithmic axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// Logarithm (base 10) of the low end.
    low: f64,
    /// Logarithm of the high end.
    high: f64,
    /// What it shows, with its unit.
    pub(super) label: String,
    /// What stands before each tick label.
    prefix: &'static str,
}

/// A labelled place on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    /// The value.
    pub(super) value: f64,
    /// Its text.
    pub(super) text: String,
}

impl Axis {
    /// An axis that holds all values above zero, with a little room at both ends.
    pub(super) fn around(label: impl Into<String>, values: impl Iterator<Item = f64>) -> Self {
        let logs = values.filter(|v| is_shown(*v)).map(f64::log10);
        let ends = logs.fold(None, |ends: Option<(f64, f64)>, v| {
            Some(ends.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
        });
        let (low, high) = ends.unwrap_or((0.0, 1.0));
        // Equal values still need an axis: a third of a decade around them.
        let room = ((high - low) * 0.06).max((0.3 - (high - low)) / 2.0);
        Self { low: low - room, high: high + room, label: label.into(), prefix: "" }
    }

    /// An axis from the first value to the last, without room at its ends.
    pub(super) fn exactly(label: impl Into<String>, values: &[f64]) -> Self {
        match (values.first(), values.last()) {
            (Some(&low), Some(&high)) if is_shown(low) && is_shown(high) && low < high => {
                Self { low: low.log10(), high: high.log10(), label: label.into(), prefix: "" }
            }
            _ => Self::around(label, values.iter().copied()),
        }
    }

    /// The same with a sign in front of each tick label.
    pub(super) fn with_prefix(self, prefix: &'static str) -> Self {
        Self { prefix, ..self }
    }

    /// Share of the axis that lies below a value, from 0 to 1; what lies outside is moved to the end.
    pub(super) fn share(&self, value: f64) -> f64 {
        if !is_shown(value) {
            return 0.0;
        }
        ((value.log10() - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Labelled ticks: powers of ten over many decades, 1-2-5 over a few, even steps within one.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        let span = self.high - self.low;
        let values = if span > 3.0 {
            powers(self.low, self.high, (span / MOST_DECADES).ceil())
        } else if span > 1.4 {
            self.multiples(&[1.0, 2.0, 5.0])
        } else if span > 0.45 {
            self.multiples(&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0])
        } else {
            even_steps(10f64.powf(self.low), 10f64.powf(self.high))
        };
        let text = |value: f64| format!("{}{}", self.prefix, number(value));
        values.into_iter().map(|value| Tick { value, text: text(value) }).collect()
    }

    /// Unlabelled ticks between the powers of ten, which show at a glance that the axis is logarithmic.
    pub(super) fn small_ticks(&self) -> Vec<f64> {
        let span = self.high - self.low;
        if (0.45..=MOST_DECADES).contains(&span) {
            self.multiples(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
        } else {
            Vec::new()
        }
    }

    fn multiples(&self, of: &[f64]) -> Vec<f64> {
        let decades = powers(self.low.floor(), self.high, 1.0);
        let all = decades.iter().flat_map(|d| of.iter().map(move |m| m * d));
        all.filter(|v| (self.low..=self.high).contains(&v.log10())).collect()
    }
}

/// Whether a value has a place on a logarithmic axis.
pub(super) fn is_shown(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

/// Powers of ten between two logarithms, every `step` decades.
fn powers(low: f64, high: f64, step: f64) -> Vec<f64> {
    let first = (low / step).ceil();
    let count = counted(((high / step).floor() - first + 1.0).clamp(0.0, 700.0));
    (0..count).map(|i| 10f64.powf((first + f64::from(i)) * step)).collect()
}

/// About six round values above zero between two others.
pub(super) fn even_steps(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 7.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|s| *s >= rough * 0.999)
        .unwrap_or(rough);
    let first = (low / step).ceil();
    let count = counted(((high / step).floor() - first + 1.0).clamp(0.0, 20.0));
    (0..count).map(|i| (first + f64::from(i)) * step).filter(|v| is_shown(*v)).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped by its callers; a NaN becomes 0"
)]
fn counted(value: f64) -> u32 {
    value as u32
}

/// A value as a tick label: up to four digits and a suffix (k, M, B, T), or a power of ten.
pub(super) fn number(value: f64) -> String {
    let steps = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, "")];
    if !(1e-4..1e15).contains(&value) {
        return power_of_ten(value);
    }
    let (factor, suffix) =
        steps.into_iter().find(|(factor, _)| value >= factor * (1.0 - 1e-9)).unwrap_or((1.0, ""));
    format!("{}{suffix}", digits(value / factor))
}

/// `10²¹`, `2·10²¹` or `2.5·10²¹`.
fn power_of_ten(value: f64) -> String {
    let text = format!("{value:.1e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let raised: String = exponent.chars().map(superscript).collect();
    match mantissa.trim_end_matches(".0") {
        "1" => format!("10{raised}"),
        mantissa => format!("{mantissa}·10{raised}"),
    }
}

fn superscript(digit: char) -> char {
    match digit {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '0'..='9' => char::from_u32('⁰' as u32 + (digit as u32 - '0' as u32)).unwrap_or(digit),
        other => other,
    }
}

/// At most four significant digits without zeros at the end.
fn digits(value: f64) -> String {
    let decimals = match value {
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        v if v >= 1.0 => 3,
        _ => 5,
    };
    let text = format!("{value:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(values: &[f64]) -> Vec<String> {
        let axis = Axis::around("x", values.iter().copied());
        axis.ticks().into_iter().map(|t| t.text).collect()
    }

    #[test]
    fn labels_follow_the_width_of_the_range() {
        assert_eq!(texts(&[1e20, 1e25]), ["10²⁰", "10²¹", "10²²", "10²³", "10²⁴", "10²⁵"]);
        assert_eq!(texts(&[1.0, 100.0]), ["1", "2", "5", "10", "20", "50", "100"]);
        assert_eq!(texts(&[1e5, 6e5]), ["100k", "150k", "200k", "300k", "400k", "500k"]);
        assert_eq!(texts(&[1e6, 4e6]), ["1M", "1.5M", "2M", "3M", "4M"]);
        assert_eq!(texts(&[0.40, 0.48]), ["0.35", "0.4", "0.45", "0.5", "0.55", "0.6"]);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0625, "0.0625"),
            (1.0, "1"),
            (999.9, "999.9"),
            (1000.0, "1k"),
            (2.5e9, "2.5B"),
            (1e12, "1T"),
            (1e15, "10¹⁵"),
            (2e21, "2·10²¹"),
            (1e-5, "10⁻⁵"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn an_axis_without_values_or_with_equal_ones_still_has_ticks() {
        assert!(texts(&[]).len() > 2);
        assert!(texts(&[5.0, 5.0, 5.0]).len() > 2);
        assert!(texts(&[f64::NAN, 0.0, -1.0]).len() > 2);
    }

    proptest! {
        #[test]
        fn ticks_are_few_and_inside(values in prop::collection::vec(prop::num::f64::POSITIVE, 0..9)) {
            let axis = Axis::around("x", values.iter().copied());
            let ticks = axis.ticks();
            prop_assert!(ticks.len() <= 12, "{:?}", ticks);
            for value in values.iter().copied().filter(|v| is_shown(*v)) {
                prop_assert!((0.0..=1.0).contains(&axis.share(value)));
            }
        }
    }
}
