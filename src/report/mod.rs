//! Tables, plots and pages from finished results; no new numbers are made here.
//!
//! A ranking's page starts from a [`crate::plan::outcome::RankReport`], so that it can be drawn again
//! years later from `rank.json` alone.
mod csv;
mod escape;
mod familial_view;
mod html;
#[cfg(feature = "native")]
mod law_plot;
mod laws_view;
#[cfg(feature = "native")]
mod live;
mod over_training_view;
mod plot;
mod screen;
mod table;
mod terminal_plot;
mod theme;
mod view;

use crate::Result;
use crate::plan::outcome::RankReport;

#[cfg(feature = "native")]
mod write;

#[cfg(feature = "native")]
pub use law_plot::write_law_plots;
#[cfg(feature = "native")]
pub use live::Live;
pub use screen::{Frame, rank_screen};
pub use table::rank_details;
pub use terminal_plot::TerminalPlot;
#[cfg(feature = "native")]
pub use write::{write_all, write_size_plots};

pub mod accuracy;
pub mod glossary;
pub mod grid;
#[cfg(feature = "native")]
pub mod reliability;

/// What a page says of a ranking: its tables and figures as HTML.
///
/// # Errors
/// [`crate::Error::Io`] when a figure cannot be drawn.
pub fn body(report: &RankReport) -> Result<String> {
    Ok(html::answer(report, &plot::figures(report)?))
}
