//! JSON bodies, read as Docker's own engine reads them, which is looser than JSON libraries are.
//!
//! J1  Keys match fields in any case; of several that match the last wins; unknown keys are ignored.
//! J2  `null` is the same as absent, for every type.
//! J3  Integers are integral: `1.0` is none. Nothing follows the document.
//! J4  A document has at most 4 MiB, 128 levels and 256 Ki values.

use std::cell::Cell;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::error::ApiError;

/// Bytes of a JSON body.
pub(crate) const JSON_BYTES_MAX: usize = 4 << 20;
/// Values of a JSON body, since a value in memory is larger than its text.
const VALUES_MAX: usize = 256 << 10;

/// A JSON value, with its keys in order and repeated ones kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    String(String),
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
}

/// Parses one document.
///
/// # Errors
/// 400 `invalid JSON: …` or `unexpected content after JSON`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let left = Cell::new(VALUES_MAX);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed(&left)
        .deserialize(&mut deserializer)
        .map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    deserializer.end().map_err(|_| ApiError::invalid("unexpected content after JSON"))?;
    Ok(value)
}

/// Turns a value into a type (J1 to J3).
///
/// # Errors
/// 400 `invalid JSON: …`.
pub(crate) fn decode<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    T::deserialize(value).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))
}

impl Value {
    /// Takes the last value whose key matches, all others of that key with it; `Null` if there is none.
    pub(crate) fn take(&mut self, key: &str) -> Value {
        let Value::Map(pairs) = self else { return Value::Null };
        let mut found = Value::Null;
        pairs.retain_mut(|(name, value)| {
            let matches = name.eq_ignore_ascii_case(key);
            // A null does not undo an earlier value: it is absent.
            if matches && *value != Value::Null {
                found = std::mem::replace(value, Value::Null);
            }
            !matches
        });
        found
    }

    /// Makes the text of a field that may be text or a list of texts the only item of a list.
    pub(crate) fn listed(&mut self, key: &str) {
        let Value::Map(pairs) = self else { return };
        for (_, value) in pairs.iter_mut().filter(|(name, _)| name.eq_ignore_ascii_case(key)) {
            if let Value::String(_) = value {
                *value = Value::List(vec![std::mem::replace(value, Value::Null)]);
            }
        }
    }

    /// What is wrong with a value, for messages.
    fn unexpected(&self) -> de::Unexpected<'_> {
        match self {
            Value::Null => de::Unexpected::Unit,
            Value::Bool(value) => de::Unexpected::Bool(*value),
            Value::Number(_) => de::Unexpected::Other("number"),
            Value::String(_) => de::Unexpected::Other("string"),
            Value::List(_) => de::Unexpected::Seq,
            Value::Map(_) => de::Unexpected::Map,
        }
    }
}

/// Builds a [`Value`], counting (J4; the depth is serde_json's own limit).
struct Seed<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.0.get().checked_sub(1).ok_or_else(|| de::Error::custom("more than 262144 values"))?;
        self.0.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Seed(self.0))? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = entries.next_key::<String>()? {
            pairs.push((key, entries.next_value_seed(Seed(self.0))?));
        }
        Ok(Value::Map(pairs))
    }
}

type Error = de::value::Error;

impl<'de> IntoDeserializer<'de, Error> for Value {
    type Deserializer = Value;

    fn into_deserializer(self) -> Value {
        self
    }
}

/// For the types: what each asks for decides what `null` becomes.
impl<'de> de::Deserializer<'de> for Value {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_string(text),
            Value::List(items) => visitor.visit_seq(de::value::SeqDeserializer::new(items.into_iter())),
            // Only what has no type of its own is read this way; there too a null is absent (J2).
            Value::Map(pairs) => {
                let pairs = pairs.into_iter().filter(|(_, value)| *value != Value::Null);
                visitor.visit_map(de::value::MapDeserializer::new(pairs))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self == Value::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self == Value::Null { visitor.visit_bool(false) } else { self.deserialize_any(visitor) }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self == Value::Null { visitor.visit_str("") } else { self.deserialize_any(visitor) }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self == Value::Null { visitor.visit_u64(0) } else { self.deserialize_any(visitor) }
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Value::Null => Value::List(Vec::new()).deserialize_any(visitor),
            Value::List(_) => self.deserialize_any(visitor),
            other => Err(de::Error::invalid_type(other.unexpected(), &visitor)),
        }
    }

    /// An array of fixed length: Go fills it with zeros and ignores what is too much.
    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        let mut items = match self {
            Value::Null => Vec::new(),
            Value::List(items) => items,
            other => return Err(de::Error::invalid_type(other.unexpected(), &visitor)),
        };
        items.resize(length, Value::Null);
        Value::List(items).deserialize_any(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Value::Null => visitor.visit_map(de::value::MapDeserializer::new(std::iter::empty::<(String, Value)>())),
            Value::Map(pairs) => visitor.visit_map(de::value::MapDeserializer::new(pairs.into_iter())),
            other => Err(de::Error::invalid_type(other.unexpected(), &visitor)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let pairs = match self {
            Value::Null => Vec::new(),
            Value::Map(pairs) => pairs,
            other => return Err(de::Error::invalid_type(other.unexpected(), &visitor)),
        };
        let pairs = matched(pairs, fields);
        visitor.visit_map(de::value::MapDeserializer::new(pairs.into_iter()))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Value::String(text) => visitor.visit_enum(text.into_deserializer()),
            other => Err(de::Error::invalid_type(other.unexpected(), &visitor)),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! { i128 u128 f32 char bytes byte_buf unit_struct tuple_struct identifier }
}

/// Keeps for each field the last value whose key matches it in any case (J1), under the field's own spelling (J2: no nulls).
fn matched(pairs: Vec<(String, Value)>, fields: &'static [&'static str]) -> Vec<(&'static str, Value)> {
    let mut kept: Vec<(&'static str, Value)> = Vec::new();
    for (key, value) in pairs {
        let exact = fields.iter().find(|field| **field == key);
        let Some(field) = exact.or_else(|| fields.iter().find(|field| field.eq_ignore_ascii_case(&key))) else {
            continue;
        };
        if value == Value::Null {
            continue;
        }
        match kept.iter_mut().find(|(name, _)| name == field) {
            Some(slot) => slot.1 = value,
            None => kept.push((field, value)),
        }
    }
    kept
}

/// A value that is kept as it is.
impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        Seed(&Cell::new(VALUES_MAX)).deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Sample {
        cmd: Option<Vec<String>>,
        env: Vec<String>,
        labels: BTreeMap<String, String>,
        memory: i64,
        tty: bool,
        image: String,
        size: [u32; 2],
        nested: Nested,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Nested {
        name: String,
        count: Option<i64>,
    }

    fn read(text: &str) -> Result<Sample, ApiError> {
        let mut value = parse(text.as_bytes())?;
        value.listed("Cmd");
        decode(value)
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_one_wins() {
        let sample =
            read(r#"{"image":"a","IMAGE":"b","Image":"c","unknown":[1,{"x":2}],"nested":{"NAME":"n","count":3}}"#);
        let sample = sample.expect("well-formed");
        assert_eq!(sample.image, "c");
        assert_eq!(sample.nested, Nested { name: "n".into(), count: Some(3) });
        assert_eq!(read(r#"{"Image":"a","image":"b"}"#).expect("well-formed").image, "b");
    }

    #[test]
    fn null_is_absent_for_every_type() {
        let text =
            r#"{"Cmd":null,"Env":null,"Labels":null,"Memory":null,"Tty":null,"Image":null,"Size":null,"Nested":null}"#;
        assert_eq!(read(text).expect("well-formed"), Sample::default());
        let inner = read(r#"{"Env":["A=1",null],"Labels":{"a":null},"Nested":{"Count":null,"Name":null}}"#)
            .expect("well-formed");
        assert_eq!(inner.env, ["A=1", ""]);
        assert_eq!(inner.labels["a"], "");
        assert_eq!(read(r#"{"Image":"a","Image":null}"#).expect("well-formed").image, "a");
        assert_eq!(read("null").expect("null alone"), Sample::default());
    }

    #[test]
    fn a_command_may_be_text_or_a_list() {
        assert_eq!(read(r#"{"cmd":"a b"}"#).expect("text").cmd, Some(vec!["a b".to_owned()]));
        assert_eq!(read(r#"{"Cmd":["a","b"]}"#).expect("list").cmd, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(read(r#"{"Cmd":[]}"#).expect("empty list").cmd, Some(vec![]));
    }

    #[test]
    fn what_is_not_the_type_is_refused() {
        for bad in [
            r#"{"Memory":1.0}"#,
            r#"{"Memory":1e3}"#,
            r#"{"Memory":"1"}"#,
            r#"{"Memory":99999999999999999999}"#,
            r#"{"Tty":1}"#,
            r#"{"Tty":"true"}"#,
            r#"{"Env":"A=1"}"#,
            r#"{"Env":{"A":"1"}}"#,
            r#"{"Labels":["a"]}"#,
            r#"{"Image":[]}"#,
            r#"{"Size":[1,-1]}"#,
            "[]",
            "",
            "{",
            "{'a':1}",
            "{\"a\":1,}",
        ] {
            let error = read(bad).expect_err(bad);
            assert_eq!(error.status, 400, "{bad}");
            assert!(error.message.starts_with("invalid JSON: "), "{bad}: {}", error.message);
        }
    }

    #[test]
    fn nothing_may_follow_the_document() {
        for text in [r#"{"Image":"a"}{"Image":"b"}"#, "{} x", "null null"] {
            assert_eq!(read(text).expect_err(text).message, "unexpected content after JSON", "{text}");
        }
        assert!(read("  {}\r\n ").is_ok());
    }

    #[test]
    fn deep_and_crowded_documents_are_refused() {
        assert!(read(&"[".repeat(1_000_000)).expect_err("deep").message.contains("recursion limit"));
        let crowded = format!("[{}0]", "0,".repeat(VALUES_MAX));
        assert!(parse(crowded.as_bytes()).expect_err("crowded").message.contains("262144"));
    }

    #[test]
    fn arrays_of_fixed_length_are_filled_up_and_cut() {
        assert_eq!(read(r#"{"Size":[7]}"#).expect("short").size, [7, 0]);
        assert_eq!(read(r#"{"Size":[7,8,9]}"#).expect("long").size, [7, 8]);
    }
}
