//! Tables, plots and pages from finished results; no new numbers are made here.
//!
//! A ranking's page starts from a [`crate::plan::outcome::RankReport`], so that it can be drawn again
//! years later from `rank.json` alone.
mod csv;
mod escape;
mod html;
mod law_plot;
mod laws_view;
mod over_training_view;
mod plot;
mod table;
mod theme;
mod view;
mod write;

pub use law_plot::write_law_plots;
pub use table::rank_text;
pub use write::write_all;

pub mod accuracy;
pub mod glossary;
pub mod grid;
pub mod reliability;
pub mod serving_plot;
