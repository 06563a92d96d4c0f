//! Values that no parser has seen: options come from programs as well as from flags.

use crate::{Error, Result, error};

/// Refuses values that are not finite and above zero.
///
/// # Errors
/// [`Error::Usage`] with the name of the first that is not.
pub(super) fn positive(values: &[(&str, Option<f64>)]) -> Result<()> {
    let mut given = values.iter().filter_map(|(name, value)| Some((name, (*value)?)));
    given.try_for_each(|(name, value)| error::positive(name, value).map(drop))
}

/// Refuses values outside of 0 to 1.
///
/// # Errors
/// [`Error::Usage`] with the name of the first that is.
pub(super) fn shares(values: &[(&str, Option<f64>)]) -> Result<()> {
    for (name, value) in values {
        if let Some(value) = value.filter(|v| !(0.0..=1.0).contains(v)) {
            return Err(Error::usage(*name, format!("{value} is not a share from 0 to 1")));
        }
    }
    Ok(())
}
