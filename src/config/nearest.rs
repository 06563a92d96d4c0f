//! Suggestions for a misspelt name.

use crate::Error;

/// The error for an unknown name, with the known names nearest to it.
pub(crate) fn unknown_name<'a>(
    what: &str,
    given: &str,
    known: impl Iterator<Item = &'a str>,
) -> Error {
    /// Suggestions shown.
    const SHOWN: usize = 4;
    let given_lower = given.to_lowercase();
    let mut names: Vec<(f64, &str)> =
        known.map(|k| (strsim::jaro_winkler(&given_lower, &k.to_lowercase()), k)).collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0));
    let nearest: Vec<&str> = names.iter().take(SHOWN).map(|(_, name)| *name).collect();
    Error::usage(what, format!("`{given}` is not known; nearest are {}", nearest.join(", ")))
}
