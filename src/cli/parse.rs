//! Value parsers of the flags: lists and ranges, durations, counts with suffixes.

use crate::ask::DevicePrice;
use crate::bounds::Quantity;
use crate::units::{Seconds, UsdPerHour};

/// Longest list that a range may expand to; a longer one is a typing error.
const MAX_LIST: usize = 4096;

/// A list of positive whole numbers: `8`, `1,2,4`, `1-1024*2` (times two), `16-64+16` (plus sixteen).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountList(pub Vec<usize>);

/// Parses a [`CountList`].
///
/// ```
/// use moe_frontier::cli::parse::count_list;
/// assert_eq!(count_list("1-8*2,12").unwrap().0, [1, 2, 4, 8, 12]);
/// ```
///
/// # Errors
/// A message that names the accepted forms.
pub fn count_list(text: &str) -> Result<CountList, String> {
    let mut values = Vec::new();
    for part in text.split(',') {
        expand(part, &mut values).ok_or_else(|| {
            format!("`{part}` is not a list of positive whole numbers; write 8, 1,2,4, 1-1024*2 or 16-64+16")
        })?;
        if values.len() > MAX_LIST {
            return Err(format!("more than {MAX_LIST} values"));
        }
    }
    Ok(CountList(values))
}

/// Parses a list of sizes in bytes, as [`count_list`] does numbers; K, M and G are 1024 and its powers.
///
/// ```
/// use moe_frontier::cli::parse::byte_list;
/// assert_eq!(byte_list("1K-64K*8,100").unwrap().0, [1024, 8192, 65536, 100]);
/// ```
///
/// # Errors
/// A message that names the accepted forms.
pub fn byte_list(text: &str) -> Result<CountList, String> {
    let mut plain = String::new();
    let mut digits = String::new();
    let form = || format!("`{text}` is not a list of sizes; write 1K, 1K,1M or 1K-256M*4");
    let flush = |digits: &mut String, plain: &mut String, shift: u32| -> Option<()> {
        let value: usize = digits.parse().ok()?;
        plain.push_str(&value.checked_mul(1 << shift)?.to_string());
        digits.clear();
        Some(())
    };
    for c in text.chars() {
        let shift = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            'K' | 'k' => 10,
            'M' | 'm' => 20,
            'G' | 'g' => 30,
            other => {
                if !digits.is_empty() {
                    flush(&mut digits, &mut plain, 0).ok_or_else(form)?;
                }
                plain.push(other);
                continue;
            }
        };
        flush(&mut digits, &mut plain, shift).ok_or_else(form)?;
    }
    plain.push_str(&digits);
    count_list(&plain).map_err(|_| form())
}

/// Appends what one comma-separated part stands for; `None` when it has no accepted form.
fn expand(part: &str, values: &mut Vec<usize>) -> Option<()> {
    let Some((first, rest)) = part.split_once('-') else {
        values.push(positive_count(part)?);
        return Some(());
    };
    let first = positive_count(first)?;
    let at = rest.find(['*', '+'])?;
    let (last, step) = (positive_count(&rest[..at])?, positive_count(&rest[at + 1..])?);
    let times = rest[at..].starts_with('*');
    if last < first || (times && step < 2) {
        return None;
    }
    let mut value = first;
    while value <= last && values.len() <= MAX_LIST {
        values.push(value);
        value = if times { value.checked_mul(step)? } else { value.checked_add(step)? };
    }
    Some(())
}

fn positive_count(text: &str) -> Option<usize> {
    // `str::parse` accepts a leading plus sign; the documented form has digits only.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&n: &usize| digits && n > 0)
}

/// A whole number above zero.
///
/// # Errors
/// A message that says so.
pub fn positive_whole(text: &str) -> Result<usize, String> {
    positive_count(text).ok_or_else(|| "not a whole number above zero".into())
}

/// A finite number above zero, with an optional decimal suffix: `1e21`, `300M`, `2.5B`, `1T`.
///
/// # Errors
/// A message that names the accepted forms.
pub fn quantity(text: &str) -> Result<f64, String> {
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'M') => (&text[..text.len() - 1], 1e6),
        Some(b'B' | b'G') => (&text[..text.len() - 1], 1e9),
        Some(b'T') => (&text[..text.len() - 1], 1e12),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(value) if (value * factor).is_finite() && value > 0.0 => Ok(value * factor),
        _ => Err("not a finite number above zero; write 1e21, 300M, 2.5B or 1T".into()),
    }
}

/// A [`quantity`] within the bounds of its kind.
fn bounded(text: &str, kind: Quantity) -> Result<f64, String> {
    let value = quantity(text)?;
    kind.check(value).map(|()| value)
}

macro_rules! bounded {
    ($($(#[$doc:meta])* $name:ident: $kind:ident;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// A message that names the accepted forms, or the bounds and their reason.
            pub fn $name(text: &str) -> Result<f64, String> {
                bounded(text, Quantity::$kind)
            }
        )*
    };
}

bounded! {
    /// A mean number of tokens of a request: at least one.
    tokens: RequestTokens;
    /// Tokens of a training run or of a lifetime.
    corpus: Tokens;
    /// Requests per second.
    rate: RequestsPerSecond;
    /// Requests at a time.
    concurrency: Concurrency;
    /// FLOPs of a training run.
    train_flops: TrainFlops;
    /// A loss in nats per token.
    loss: LossNats;
    /// A ratio of two sizes.
    ratio: Ratio;
    /// Bits of one weight.
    bits: Bits;
    /// Dollars per hour.
    usd_per_hour: UsdPerHour;
    /// Dollars per million tokens.
    usd_per_million: UsdPerMillionTokens;
}

/// A share of a capacity that is used: one in a million or more.
///
/// # Errors
/// A message that says so.
pub fn utilisation(text: &str) -> Result<f64, String> {
    share(text).and_then(|value| {
        if value >= 1e-6 { Ok(value) } else { Err("a share below 1e-6 is no use".into()) }
    })
}

/// Requests of a simulation: from 1,000, for a 99th percentile with an interval, to ten million.
///
/// # Errors
/// A message with the bounds.
pub fn simulated_requests(text: &str) -> Result<usize, String> {
    match positive_count(text) {
        Some(count) if (1_000..=10_000_000).contains(&count) => Ok(count),
        _ => Err("not a whole number from 1000 to 10000000".into()),
    }
}

/// A finite number of zero or more.
///
/// # Errors
/// A message that says so.
pub fn non_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("not a finite number of zero or more".into()),
    }
}

/// A share above 0 and at most 1.
///
/// # Errors
/// A message that says so.
pub fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("not a share above 0 and at most 1".into()),
    }
}

/// A share from 0 to 1.
///
/// # Errors
/// A message that says so.
pub fn portion(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("not a share from 0 to 1".into()),
    }
}

/// A duration with a unit: `60s`, `20ms`, `500us`, `2m`.
///
/// # Errors
/// A message that names the accepted forms.
pub fn duration(text: &str) -> Result<Seconds, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let factor = match &text[split..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        _ => return Err("a duration needs a unit; write 60s, 20ms, 500us or 2m".into()),
    };
    match text[..split].parse::<f64>() {
        Ok(value) if (value * factor).is_finite() && value > 0.0 => Ok(Seconds(value * factor)),
        _ => Err("not a finite duration above zero; write 60s, 20ms, 500us or 2m".into()),
    }
}

/// Dollars per device and hour, or `tier:NAME` of a published price.
///
/// # Errors
/// A sentence that says what is accepted.
pub fn price(text: &str) -> Result<DevicePrice, String> {
    match text.strip_prefix("tier:") {
        Some(tier) => Ok(DevicePrice::Tier(tier.to_owned())),
        None => quantity(text).map(|usd| DevicePrice::PerHour(UsdPerHour(usd))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_expand() {
        assert_eq!(count_list("8").unwrap().0, [8]);
        assert_eq!(count_list("4,8,16,32").unwrap().0, [4, 8, 16, 32]);
        assert_eq!(count_list("1-10*3").unwrap().0, [1, 3, 9]);
        assert_eq!(count_list("16-64+16").unwrap().0, [16, 32, 48, 64]);
    }

    #[test]
    fn anything_else_is_refused_with_the_accepted_form() {
        for bad in [
            "", "0", "-1", "abc", "1e3", "1,,2", "+4", "8-4*2", "1-8", "1-8*1", "1-8*0", "\u{0663}",
        ] {
            let message = count_list(bad).unwrap_err();
            assert!(message.contains("1-1024*2"), "{bad}: {message}");
        }
        assert!(count_list("1-100000+1").is_err());
        assert!(count_list("99999999999999999999").is_err());
    }

    #[test]
    fn numbers_and_durations_have_units_and_bounds() {
        assert_eq!(quantity("2.5B"), Ok(2.5e9));
        assert_eq!(quantity("1e21"), Ok(1e21));
        for bad in ["", "B", "0", "-1", "nan", "inf", "1e400", "1e300T"] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("20ms"), Ok(Seconds(0.02)));
        for bad in ["", "20", "ms", "-1s", "0s", "nans", "1h30"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(share("0").is_err() && share("1.1").is_err() && share("nan").is_err());
        assert!(non_negative("-1").is_err() && non_negative("0").is_ok());
        assert!(tokens("0.5").is_err() && tokens("1").is_ok() && tokens("nan").is_err());
        assert!(simulated_requests("999").is_err() && simulated_requests("1000").is_ok());
    }
}
