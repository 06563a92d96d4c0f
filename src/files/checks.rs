//! What a document or a header must keep before it is read into types.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::seal;
use super::strict::{Elements, check_length};
use crate::{Error, Result};

/// Deepest nesting of a JSON document.
const DEPTH: usize = 64;

/// Checks a JSON document before it is read into types: one document, an object at its root, no key
/// twice in any object, nesting of at most 64. Maps and trees would keep the last of two keys in
/// silence, and a struct would take an array for its fields. A reader that takes at most `cap` bytes also
/// bounds the number of elements.
///
/// # Errors
/// [`Error::BadFile`] with line and column.
pub fn check_json(path: &Path, bytes: &[u8], cap: u64) -> Result<()> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::bad_file(path, "empty"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let left = Elements::within(cap);
    let root = Checked { depth: 0, left: &left };
    root.deserialize(&mut reader).and_then(|()| reader.end()).map_err(|e| seal::at(path, &e))
}

/// A value whose objects have every key once.
#[derive(Clone, Copy)]
struct Checked<'a> {
    depth: usize,
    left: &'a Elements,
}

impl Checked<'_> {
    fn below<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= DEPTH {
            return Err(E::custom(format!("nested deeper than {DEPTH}")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Checked<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        if self.depth == 0 { reader.deserialize_map(self) } else { reader.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Checked<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let below = self.below()?;
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            check_length(&key)?;
            map.next_value_seed(below)?;
            self.left.count()?;
            if let Some(twice) = keys.replace(key) {
                let shown = crate::error::shown(&twice);
                return Err(A::Error::custom(format!("duplicate field `{shown}`")));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let below = self.below()?;
        while seq.next_element_seed(below)?.is_some() {
            self.left.count()?;
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        check_length(text)
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Checks that no column of a table has the name of another.
///
/// # Errors
/// [`Error::BadFile`] that names the column.
pub fn check_columns<'a>(path: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name.trim()) {
            let reason = format!("column `{}` appears twice", crate::error::shown(name));
            return Err(Error::bad_file_at(path, 1, 1, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_every_key_once_and_is_not_deep() {
        let check = |text: &str| check_json(Path::new("a.json"), text.as_bytes(), 1 << 20);
        check(r#"{"a": [1, -2, 3.5, true, null, "x", {"a": 1}], "b": {"a": 1}}"#).unwrap();
        for (text, word) in [
            ("", "empty"),
            (" \n", "empty"),
            (r#"{"a": {"b": 1, "b": 2}}"#, "duplicate field `b`"),
            (r#"[{"a": 1, "a": 2}]"#, "expected an object"),
            (r#"{"a": 1} {"b": 1}"#, "trailing"),
            (r#"{"a": 1"#, "EOF"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.exit_code() == 3 && error.to_string().contains(word), "{error}");
        }
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(100), "]".repeat(100));
        assert!(check(&deep).unwrap_err().to_string().contains("nested deeper"));
        let long = "x".repeat(5 << 20);
        for text in [format!("{{\"a\": \"{long}\"}}"), format!("{{\"{long}\": 1}}")] {
            let error = check_json(Path::new("a.json"), text.as_bytes(), 64 << 20).unwrap_err();
            assert!(error.to_string().contains("a string longer than 4 MiB"), "{error}");
            let read = super::super::strict::from_slice::<serde_json::Value>;
            let error = read(text.as_bytes(), 64 << 20).unwrap_err();
            assert!(error.to_string().contains("a string longer than 4 MiB"), "{error}");
        }
    }

    #[test]
    fn a_column_s_name_appears_once() {
        let check = |names: &[&str]| check_columns(Path::new("a.csv"), names.iter().copied());
        check(&["a", "b"]).unwrap();
        let error = check(&["a", "b", "a "]).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains("twice"), "{error}");
    }
}
