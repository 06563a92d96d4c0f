//! JSON with the literals that Python writes beside it.

/// A byte that stands in strings for the letters of a literal; files do not hold it.
const MARK: u8 = 0x7f;

/// JSON text with each literal that Python writes beside it (`NaN`, `Infinity`, `-Infinity`) replaced by
/// a marked string of the same length, so that places in errors stay.
pub(crate) fn without_literals(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let (mut at, mut in_string) = (0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'N' | b'I' | b'-' if !in_string => {
                let names: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
                if let Some(name) = names.into_iter().find(|n| bytes[at..].starts_with(n)) {
                    let end = at + name.len() - 1;
                    out[at..=end].fill(MARK);
                    (out[at], out[end]) = (b'"', b'"');
                    at = end;
                }
            }
            _ => {}
        }
        at += 1;
    }
    out
}

/// The literal that a marked string stands for.
pub(crate) fn masked_literal(text: &str) -> Option<&'static str> {
    let marked = !text.is_empty() && text.bytes().all(|b| b == MARK);
    match text.len() {
        1 if marked => Some("NaN"),
        6 if marked => Some("Infinity"),
        7 if marked => Some("-Infinity"),
        _ => None,
    }
}
