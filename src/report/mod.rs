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
mod screen;
mod table;
mod terminal_plot;
mod theme;
mod view;
mod write;

pub use law_plot::write_law_plots;
pub use screen::{Frame, rank_screen};
pub use table::rank_details;
pub use terminal_plot::TerminalPlot;
pub use write::{write_all, write_size_plots};

pub mod accuracy;
pub mod glossary;
pub mod grid;
