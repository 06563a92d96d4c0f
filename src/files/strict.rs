//! Reading into types without leniency: a struct is an object, never an array of its fields, and the number of
//! values is bounded, so that a small file cannot fill the memory.
//!
//! serde's derived readers take `[1, 2]` for `{"x": 1, "y": 2}` in every format that has arrays. `Strict`
//! sits between them and the format and asks for a map wherever they ask for a struct.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

/// Bytes of a reader's cap for each element of its arrays and maps. The smallest elements take two bytes of
/// the file and up to a hundred of memory; a reader may take four times its cap, of which the file itself and
/// a copy of it take half.
const CAP_PER_ELEMENT: u64 = 64;

/// Longest string of a document, in bytes: the texts of a benchmark's answers are some kilobytes. A message about
/// a longer one would hold it several times over.
const LONGEST_STRING: usize = 4 << 20;

/// Refuses a string that no file of ours or of others has.
pub(super) fn check_length<E: serde::de::Error>(text: &str) -> Result<(), E> {
    if text.len() > LONGEST_STRING {
        return Err(E::custom(format!("a string longer than {} MiB", LONGEST_STRING >> 20)));
    }
    Ok(())
}

/// Reads a JSON document, of a reader that takes at most `cap` bytes.
///
/// # Errors
/// What the document has instead of what the type asks for, with line and column.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8], cap: u64) -> Result<T, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = read(&mut reader, cap)?;
    reader.end()?;
    Ok(value)
}

/// Reads JSON documents one after the other, of a reader that takes at most `cap` bytes for all of them. The
/// first error is the last item.
pub fn values<T: DeserializeOwned>(
    bytes: &[u8],
    cap: u64,
) -> impl Iterator<Item = Result<T, serde_json::Error>> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let left = Elements::within(cap);
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over || reader.end().is_ok() {
            return None;
        }
        let strict = Strict { inner: &mut reader, left: &left, expects: Expects::Any };
        let value = T::deserialize(strict);
        is_over = value.is_err();
        Some(value)
    })
}

/// Reads a TOML document, of a reader that takes at most `cap` bytes.
///
/// # Errors
/// What the document has instead of what the type asks for, with its place.
pub fn from_toml<T: DeserializeOwned>(text: &str, cap: u64) -> Result<T, toml::de::Error> {
    // The parser keeps a tree of everything, some 230 bytes a value, before a type asks for any of it.
    let marks = text.bytes().filter(|byte| b"=,{[.".contains(byte)).count();
    if u64::try_from(marks).is_ok_and(|marks| marks > cap / (2 * CAP_PER_ELEMENT)) {
        return Err(toml::de::Error::custom("more values than any such file has"));
    }
    read(toml::Deserializer::parse(text)?, cap)
}

fn read<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    reader: D,
    cap: u64,
) -> Result<T, D::Error> {
    let left = Elements::within(cap);
    T::deserialize(Strict { inner: reader, left: &left, expects: Expects::Any })
}

/// Elements that a document may still have.
pub(super) struct Elements(Cell<u64>);

impl Elements {
    /// Those of a reader with this cap.
    pub(super) const fn within(cap: u64) -> Self {
        Self(Cell::new(cap / CAP_PER_ELEMENT))
    }

    /// Takes one off.
    pub(super) fn count<E: serde::de::Error>(&self) -> Result<(), E> {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.ok_or_else(|| E::custom("more elements than any such file has"))?);
        Ok(())
    }
}

/// A reader, or a part of one, that asks for maps in place of structs and counts elements.
struct Strict<'a, T> {
    inner: T,
    left: &'a Elements,
    expects: Expects,
}

/// What a type expects of the elements of an array or a map.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// Any number of them.
    Any,
    /// As many as it says, in an array.
    Tuple,
    /// Those that it names, in a map.
    Struct,
}

impl<'a, T> Strict<'a, T> {
    const fn of<U>(&self, inner: U) -> Strict<'a, U> {
        Strict { inner, left: self.left, expects: Expects::Any }
    }

    const fn expecting<U>(&self, inner: U, expects: Expects) -> Strict<'a, U> {
        Strict { inner, left: self.left, expects }
    }
}

macro_rules! forward {
    ($($method:ident($($argument:ident: $kind:ty),*)),* $(,)?) => {
        $(
            fn $method<V: Visitor<'de>>(
                self,
                $($argument: $kind,)*
                visitor: V,
            ) -> Result<V::Value, Self::Error> {
                let visitor = self.of(visitor);
                self.inner.$method($($argument,)* visitor)
            }
        )*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<'_, D> {
    type Error = D::Error;

    forward!(
        deserialize_any(), deserialize_bool(), deserialize_i8(), deserialize_i16(),
        deserialize_i32(), deserialize_i64(), deserialize_i128(), deserialize_u8(),
        deserialize_u16(), deserialize_u32(), deserialize_u64(), deserialize_u128(),
        deserialize_f32(), deserialize_f64(), deserialize_char(), deserialize_str(),
        deserialize_string(), deserialize_bytes(), deserialize_byte_buf(), deserialize_option(),
        deserialize_unit(), deserialize_seq(), deserialize_map(), deserialize_identifier(),
        deserialize_unit_struct(name: &'static str),
        deserialize_newtype_struct(name: &'static str),
        deserialize_tuple_struct(name: &'static str, length: usize),
        deserialize_enum(name: &'static str, variants: &'static [&'static str]),
    );

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let visitor = self.expecting(visitor, Expects::Struct);
        self.inner.deserialize_map(visitor)
    }

    /// What is skipped takes no memory.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_ignored_any(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let visitor = self.expecting(visitor, Expects::Tuple);
        self.inner.deserialize_tuple(length, visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident($kind:ty)),* $(,)?) => {
        $(
            fn $method<E: serde::de::Error>(self, value: $kind) -> Result<V::Value, E> {
                self.inner.$method(value)
            }
        )*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<'_, V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        self.inner.expecting(formatter)
    }

    visit!(
        visit_bool(bool),
        visit_i8(i8),
        visit_i16(i16),
        visit_i32(i32),
        visit_i64(i64),
        visit_i128(i128),
        visit_u8(u8),
        visit_u16(u16),
        visit_u32(u32),
        visit_u64(u64),
        visit_u128(u128),
        visit_f32(f32),
        visit_f64(f64),
        visit_char(char),
        visit_bytes(&[u8]),
        visit_borrowed_bytes(&'de [u8]),
        visit_byte_buf(Vec<u8>),
    );

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<V::Value, E> {
        check_length(text)?;
        self.inner.visit_str(text)
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<V::Value, E> {
        check_length(text)?;
        self.inner.visit_borrowed_str(text)
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<V::Value, E> {
        check_length(&text)?;
        self.inner.visit_string(text)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<V::Value, D::Error> {
        let reader = self.of(reader);
        self.inner.visit_some(reader)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, reader: D) -> Result<V::Value, D::Error> {
        let reader = self.of(reader);
        self.inner.visit_newtype_struct(reader)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        // Some formats take a request for a map for a hint.
        if self.expects == Expects::Struct {
            return Err(A::Error::invalid_type(Unexpected::Seq, &self));
        }
        let access = Strict { inner: access, left: self.left, expects: self.expects };
        self.inner.visit_seq(access)
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = Strict { inner: access, left: self.left, expects: self.expects };
        self.inner.visit_map(access)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.of(access);
        self.inner.visit_enum(access)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<S::Value, D::Error> {
        let reader = self.of(reader);
        self.inner.deserialize(reader)
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Strict<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let seed = self.of(seed);
        let next = self.inner.next_element_seed(seed)?;
        if next.is_some() && self.expects == Expects::Any {
            self.left.count()?;
        }
        Ok(next)
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Strict<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let seed = self.of(seed);
        let key = self.inner.next_key_seed(seed)?;
        if key.is_some() && self.expects == Expects::Any {
            self.left.count()?;
        }
        Ok(key)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.of(seed);
        self.inner.next_value_seed(seed)
    }
}

impl<'a, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Strict<'a, A> {
    type Error = A::Error;
    type Variant = Strict<'a, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let (left, seed) = (self.left, self.of(seed));
        let (value, variant) = self.inner.variant_seed(seed)?;
        Ok((value, Strict { inner: variant, left, expects: Expects::Any }))
    }
}

/// A struct in a variant, asked for as a map.
struct Fields<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Fields<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<V::Value, D::Error> {
        reader.deserialize_map(self.0)
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Strict<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.of(seed);
        self.inner.newtype_variant_seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.of(visitor);
        self.inner.tuple_variant(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let fields = Fields(self.expecting(visitor, Expects::Struct));
        self.inner.newtype_variant_seed(fields)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    use super::*;

    const CAP: u64 = 1 << 20;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Point {
        x: f64,
        y: Option<u64>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Shape {
        Nothing,
        At(Point),
        Pair(u8, u8),
        Box { from: Point, to: Point },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Page {
        name: String,
        shapes: Vec<Shape>,
        pair: (i32, bool),
        named: BTreeMap<String, Point>,
        rest: serde_json::Value,
    }

    fn page() -> Page {
        let point = Point { x: 0.1, y: Some(u64::MAX) };
        let (from, to) = (point.clone(), Point { x: -2.0, y: None });
        Page {
            name: "a\nb".into(),
            shapes: vec![
                Shape::Nothing,
                Shape::At(point.clone()),
                Shape::Pair(1, 2),
                Shape::Box { from, to },
            ],
            pair: (-3, true),
            named: [("p".to_owned(), point)].into(),
            rest: serde_json::json!({"any": [1, {"thing": null}]}),
        }
    }

    #[test]
    fn what_was_written_is_read_as_without_strictness() {
        let bytes = serde_json::to_vec(&page()).unwrap();
        assert_eq!(from_slice::<Page>(&bytes, CAP).unwrap(), page());
        assert_eq!(
            from_toml::<Point>("x = 1.5\ny = 3\n", CAP).unwrap(),
            Point { x: 1.5, y: Some(3) }
        );
    }

    #[test]
    fn no_array_passes_for_a_struct_at_any_depth() {
        let text = serde_json::to_string(&page()).unwrap();
        let point = r#"{"x":0.1,"y":18446744073709551615}"#;
        let array = "[0.1,18446744073709551615]";
        assert_eq!(text.matches(point).count(), 3);
        for at in 0..3 {
            let (start, _) = text.match_indices(point).nth(at).unwrap();
            let edited = [&text[..start], array, &text[start + point.len()..]].concat();
            // serde's own reading takes it.
            assert_eq!(serde_json::from_str::<Page>(&edited).unwrap(), page());
            let error = from_slice::<Page>(edited.as_bytes(), CAP).unwrap_err();
            assert!(error.to_string().contains("invalid type: sequence"), "{error}");
            assert!(error.line() == 1 && error.column() > 1, "{error}");
        }
        let error = from_slice::<Shape>(br#"{"box":[{"x":1},{"x":2}]}"#, CAP).unwrap_err();
        assert!(error.to_string().contains("invalid type: sequence"), "{error}");
        assert!(from_slice::<Point>(b"[1, 2]", CAP).is_err());
        assert!(from_toml::<BTreeMap<String, Point>>("p = [1.5, 3]\n", CAP).is_err());
        let many = format!("x = [{}0]\n", "0,".repeat(9000));
        let error = from_toml::<BTreeMap<String, Vec<u8>>>(&many, CAP).unwrap_err();
        assert!(error.to_string().contains("more values"), "{error}");
    }

    #[test]
    fn documents_are_read_to_their_end_and_their_elements_are_counted() {
        assert!(from_slice::<Point>(br#"{"x":1,"y":null} x"#, CAP).is_err());
        let many = |n: usize| format!("[{}0]", "0,".repeat(n - 1)).into_bytes();
        assert!(from_slice::<Vec<u8>>(&many(100), 6400).is_ok());
        let error = from_slice::<Vec<u8>>(&many(101), 6400).unwrap_err();
        assert!(error.to_string().contains("more elements"), "{error}");
        let stream = |text: &str| values::<Point>(text.as_bytes(), CAP).collect::<Vec<_>>();
        let read = stream("{\"x\":1,\"y\":null}\n\n{\"x\":2,\"y\":3} ");
        assert!(read.len() == 2 && read.iter().all(Result::is_ok), "{read:?}");
        let read = stream("{\"x\":1,\"y\":null} [1, 2] {\"x\":2,\"y\":3}");
        assert!(read.len() == 2 && read[1].is_err(), "{read:?}");
        assert!(stream(" \n").is_empty());
        // What a type fixes needs no limit.
        assert!(from_slice::<[u8; 9]>(&many(9), 0).is_ok());
    }
}
