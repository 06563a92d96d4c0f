//! Order statistics and verdicts that hold without assumptions about the noise.

pub mod interval;
pub mod outlier;
pub mod paired;
pub mod quantile;

pub use interval::{MedianInterval, Percentile, median_interval, percentile};
pub use outlier::{OutlierCounts, robust_cv, tukey_counts};
pub use paired::{PairedEffect, Verdict, paired_effect};
pub use quantile::quantile;

/// Half the width of a normal's 95 % interval in standard deviations.
pub const Z95: f64 = 1.959_963_984_540_054;
