//! Training MFU as a flag: one number, or one an expert count.

use crate::ask::Mfu;
use crate::ask::rank::mfu::MODEL;
use crate::cli::parse::share;

/// Reads `0.4`, `1:0.45,8:0.38` or `model`.
///
/// # Errors
/// A message that names the accepted forms.
pub(super) fn mfu(text: &str) -> Result<Mfu, String> {
    if text == MODEL {
        return Ok(Mfu::modelled());
    }
    let pairs = if text.contains(':') {
        text.split(',').map(pair).collect::<Result<Vec<_>, String>>()?
    } else {
        vec![(1, share(text)?)]
    };
    Mfu::by_experts(pairs).map_err(|error| match error {
        crate::Error::Usage { reason, .. } => reason,
        other => other.to_string(),
    })
}

fn pair(text: &str) -> Result<(usize, f64), String> {
    let form = || format!("`{text}` is not experts:share, such as 8:0.38");
    let (experts, value) = text.split_once(':').ok_or_else(form)?;
    let experts = experts.trim().parse().ok().filter(|e| *e > 0).ok_or_else(form)?;
    Ok((experts, share(value.trim()).map_err(|_| form())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_or_pairs_are_read() {
        assert_eq!(mfu("0.4").unwrap(), Mfu::all(0.4).unwrap());
        let by = mfu("32:0.3,1:0.45, 8:0.38").unwrap();
        assert_eq!(by, Mfu::by_experts([(1, 0.45), (8, 0.38), (32, 0.3)]).unwrap());
        assert_eq!(by.to_string(), "1:0.45,8:0.38,32:0.3");
        assert_eq!(mfu("model").unwrap(), Mfu::modelled());
        for bad in ["nan", "models", "1.2", "8:", "x:0.3", "8:0.3,8:0.4", "0:0.4"] {
            assert!(mfu(bad).is_err(), "{bad}");
        }
    }
}
