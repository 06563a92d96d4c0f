//! The program inside Python: the documents of `--json`, and the program itself for its console script.

use std::ffi::OsString;

use moe_frontier::cli::embedded;
use pyo3::prelude::*;

/// The document that a command line prints under `--json`: whether it succeeded, the document or the error
/// as JSON, and the warnings.
#[pyfunction]
fn document(py: Python<'_>, words: Vec<String>) -> (bool, String, Vec<String>) {
    py.detach(|| {
        let words = words.into_iter().map(OsString::from).collect();
        let (answer, warnings) = embedded::document(words);
        match answer {
            Ok(text) => (true, text, warnings),
            Err(failure) => (false, failure.line(true), warnings),
        }
    })
}

/// Runs the program with the words of a command line, the program's name first, and returns its exit code.
/// `again` starts it as another process.
#[pyfunction]
fn main(py: Python<'_>, words: Vec<OsString>, again: Vec<OsString>) -> u8 {
    py.detach(|| {
        embedded::started_by(again);
        moe_frontier::cli::program(words)
    })
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(document, module)?)?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
