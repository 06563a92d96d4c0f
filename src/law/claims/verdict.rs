//! How a computed answer stands to a published claim: its direction, and its size beside the printed one.

use serde::Serialize;

/// Whether a computed answer points where the claim does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It does.
    SameDirection,
    /// It points the other way.
    OppositeDirection,
    /// The law or the cost cannot answer.
    NotComputable,
}

impl Verdict {
    /// The words for a table.
    pub const fn words(self) -> &'static str {
        match self {
            Self::SameDirection => "same direction",
            Self::OppositeDirection => "opposite direction",
            Self::NotComputable => "not computable",
        }
    }

    pub(super) const fn of(agrees: bool) -> Self {
        if agrees { Self::SameDirection } else { Self::OppositeDirection }
    }
}

/// Where computed magnitudes lie relative to the published ones; stated, not judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// All within the published range.
    Within,
    /// Some within it, or on both sides of it.
    Overlapping,
    /// All below it.
    Below,
    /// All above it.
    Above,
    /// The paper prints no figure, or nothing was computed.
    NotComparable,
}

impl Size {
    /// The words for a table.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Within => "size within the published range",
            Self::Overlapping => "size overlapping the published range",
            Self::Below => "size below the published range",
            Self::Above => "size above the published range",
            Self::NotComparable => "no size to compare",
        }
    }

    /// Compares values with a range, each end with a hundredth of rounding.
    pub(super) fn of(values: &[f64], published: Option<[f64; 2]>) -> Self {
        const ROUNDING: f64 = 0.01;
        let Some([low, high]) = published.filter(|_| !values.is_empty()) else {
            return Self::NotComparable;
        };
        let (low, high) = (low * (1.0 - ROUNDING), high * (1.0 + ROUNDING));
        if values.iter().all(|v| (low..=high).contains(v)) {
            Self::Within
        } else if values.iter().all(|v| *v < low) {
            Self::Below
        } else if values.iter().all(|v| *v > high) {
            Self::Above
        } else {
            Self::Overlapping
        }
    }
}

/// What a paper prints for a claim: the range, and how many of the computed values it is about.
const PUBLISHED: [(&str, [f64; 2], usize); 16] = [
    ("Y1", [2.5, 3.5], 6),
    ("Y2", [2.4, 4.3], 6),
    ("Y3", [0.237, 0.428], 2),
    ("Y4", [3.36e9, 6.14e9], 2),
    ("Y5", [0.316, 0.381], 2),
    // Savings as printed, turned into shares of the base's cost as computed.
    ("Y6", [1.0 - 0.523, 1.0 - 0.490], 2),
    ("Y7", [0.47, 0.52], 2),
    // "Up to" 68.4 %.
    ("Y8", [0.0, 0.684], 2),
    ("Y9", [0.233, 0.282], 2),
    ("Y10", [0.210, 0.251], 2),
    ("Y11", [0.371, 1.252], 4),
    ("Y12", [0.307, 0.695], 3),
    ("Y13", [0.16, 0.30], 4),
    // Single figures, with the rounding of their digits.
    ("Z1", [6.775, 6.785], 1),
    ("Z2", [0.305, 0.315], 1),
    ("Z3", [0.395, 0.405], 1),
];

/// The size of a claim's answer against the published one.
pub(super) fn size_of(id: &str, values: &[f64]) -> (Option<[f64; 2]>, Size) {
    let found = PUBLISHED.iter().find(|(claim, ..)| *claim == id);
    let range = found.map(|(_, range, _)| *range);
    let about = found.map_or(0, |(_, _, about)| *about).min(values.len());
    (range, Size::of(&values[..about], range))
}
