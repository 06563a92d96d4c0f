//! Tables, plots and pages from finished results; no new numbers are made here.

pub mod accuracy;
pub mod serving_plot;
