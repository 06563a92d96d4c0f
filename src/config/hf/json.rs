//! JSON as Python writes it: `NaN` and `Infinity` stand beside numbers, and a key must not repeat.
//!
//! Literals that JSON does not know are kept as such: a field that nobody reads may hold one, a field
//! that is read refuses it.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::files::{masked_literal, strict, without_literals};

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
    /// `NaN`, `Infinity` or `-Infinity`.
    Literal(&'static str),
}

impl Json {
    /// Parses text; the error has its line and column.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        strict::from_slice(&without_literals(bytes), super::CAP)
    }

    /// A field of an object.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(fields) => fields.iter().find(|(key, _)| key == name).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The same for a path with dots.
    pub(super) fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |value, name| value.get(name))
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Number(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn object(&self) -> Option<&[(String, Self)]> {
        match self {
            Self::Object(fields) => Some(fields),
            _ => None,
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::List(items) => write!(f, "a list of {}", items.len()),
            Self::Object(_) => f.write_str("an object"),
            Self::Literal(name) => f.write_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

/// Builds the tree.
struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(masked_literal(text).map_or_else(|| Json::Text(text.to_owned()), Json::Literal))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields: Vec<(String, Json)> = Vec::new();
        let mut known = HashSet::new();
        while let Some((name, value)) = map.next_entry::<String, Json>()? {
            if !known.insert(name.clone()) {
                return Err(A::Error::custom(format!("duplicate field `{name}`")));
            }
            fields.push((name, value));
        }
        Ok(Json::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_literals_are_kept_apart_from_text() {
        let json =
            Json::parse(br#"{"a":[0.0, Infinity],"b":-Infinity,"c":NaN,"d":"NaN \" Infinity"}"#);
        let json = json.unwrap();
        assert_eq!(json.at("a").unwrap().list().unwrap()[1], Json::Literal("Infinity"));
        assert_eq!(json.at("b"), Some(&Json::Literal("-Infinity")));
        assert_eq!(json.at("c"), Some(&Json::Literal("NaN")));
        assert_eq!(json.at("d").unwrap().text(), Some("NaN \" Infinity"));
        assert!(Json::parse(b"{\"a\": Nan}").is_err());
        assert!(
            Json::parse(b"{\"a\": 1, \"a\": 2}").unwrap_err().to_string().contains("duplicate")
        );
    }
}
