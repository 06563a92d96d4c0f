//! The one place where text becomes HTML.

use crate::error::turns_text;

/// Text as it may stand in an element or in a quoted attribute.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() || turns_text(c) => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn markup_and_control_characters_lose_their_meaning() {
        assert_eq!(escape("<a href='x'>\"&\0"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp; ");
        assert_eq!(escape("4 experts, 20 µs"), "4 experts, 20 µs");
    }

    proptest! {
        #[test]
        fn no_text_opens_an_element_or_ends_an_attribute(text in any::<String>()) {
            prop_assert!(!escape(&text).contains(['<', '>', '"', '\'', '\0']));
        }
    }
}
