//! Text in cells of CSV files, for readers that take a cell for a formula.

/// A text as a cell: quoted where it must be, and with `'` in front where a spreadsheet would compute it.
///
/// ```
/// use moe_frontier::files::csv::text_cell;
/// assert_eq!(text_cell("h100"), "h100");
/// assert_eq!(text_cell("=1+1"), "'=1+1");
/// assert_eq!(text_cell("a,\"b\""), "\"a,\"\"b\"\"\"");
/// ```
pub fn text_cell(text: &str) -> String {
    let safe = inert(text);
    if safe.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", safe.replace('"', "\"\""))
    } else {
        safe
    }
}

/// The text of a cell without quotes, for writers that quote by themselves. Numbers stay as they are.
pub fn inert(text: &str) -> String {
    let computes = text.trim_start().starts_with(['=', '+', '-', '@', '\t', '\r']);
    if computes && text.trim().parse::<f64>().is_err() {
        format!("'{text}")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_are_text_and_numbers_are_numbers() {
        for formula in ["=cmd()", "+1+1", "-x", "@SUM(A1)", " =1", "\t=1"] {
            assert!(inert(formula).starts_with('\''), "{formula}");
        }
        for plain in ["-1.5", "+3", "1e-9", "h100", "", "a=b"] {
            assert_eq!(inert(plain), plain);
        }
        assert_eq!(text_cell("=a,b"), "\"'=a,b\"");
    }
}
