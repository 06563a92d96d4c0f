//! YAML of a JSON value, as far as manifests need it.

use std::fmt::Write;

use serde_json::Value;

/// A document: maps and lists in blocks, strings in double quotes unless they are plain words.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// The entries of a map or list, each on lines of its own.
fn block(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let _ = write!(text, "{:indent$}{}:", "", word(key));
                entry(value, indent + 2, text);
            }
        }
        Value::Array(list) => {
            for value in list {
                let _ = write!(text, "{:indent$}-", "");
                item(value, indent + 2, text);
            }
        }
        scalar => {
            let _ = writeln!(text, "{:indent$}{}", "", plain(scalar));
        }
    }
}

/// The value of a key.
fn entry(value: &Value, indent: usize, text: &mut String) {
    if is_block(value) {
        text.push('\n');
        block(value, indent, text);
    } else {
        scalar(value, indent, text);
    }
}

/// Behind a key or a dash: text of several lines as it is, below.
fn scalar(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::String(lines)
            if lines.ends_with('\n') && !lines.starts_with(char::is_whitespace) =>
        {
            text.push_str(" |\n");
            for line in lines.lines() {
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
        }
        other => {
            let _ = writeln!(text, " {}", plain(other));
        }
    }
}

/// An item of a list: its first line follows the dash.
fn item(value: &Value, indent: usize, text: &mut String) {
    if !is_block(value) {
        return scalar(value, indent, text);
    }
    let mut inner = String::new();
    block(value, indent, &mut inner);
    text.push(' ');
    text.push_str(inner.trim_start());
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        other => other.to_string(),
    }
}

/// Words that YAML reads as text stay plain; the rest is quoted as in JSON, which YAML reads alike.
fn word(text: &str) -> String {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let simple = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
        .contains(&text.to_lowercase().as_str());
    if starts && simple && !reserved { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn maps_lists_and_scalars_are_laid_out() {
        let value = json!({"a": {"b": [1, "x y", {"c": "8", "d": true}]}, "e": {}, "f/g": "no"});
        let expected =
            "a:\n  b:\n    - 1\n    - \"x y\"\n    - c: \"8\"\n      d: true\ne: {}\nf/g: \"no\"\n";
        assert_eq!(document(&value), expected);
        let value = json!({"run": ["sh", "a \\\n    --b\n"], "text": "one\ntwo"});
        let expected = "run:\n  - sh\n  - |\n    a \\\n        --b\ntext: \"one\\ntwo\"\n";
        assert_eq!(document(&value), expected);
    }
}
