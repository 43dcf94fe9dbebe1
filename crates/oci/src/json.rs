//! One reading of a JSON text: the check that every document passes before it is looked at.
//!
//! J1  Refused: more bytes than allowed, bytes that are not one JSON value, nesting deeper than 128, an object with
//!     the same key twice, an object with too many keys.
//! J2  Memory stays within a small multiple of the largest object: values are walked, never kept.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::limits::{DEPTH_MAX, OBJECT_KEYS_MAX};

/// Why a text cannot be read in one way only.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The text is longer than allowed.
    #[error("{size_bytes} bytes are more than the {size_bytes_max} that are allowed")]
    TooLarge {
        /// Its length.
        size_bytes: usize,
        /// The limit.
        size_bytes_max: usize,
    },
    /// The text is not JSON, or breaks one of the rules J1.
    #[error("not acceptable as JSON")]
    Invalid(#[source] serde_json::Error),
}

/// Checks the rules J1 and returns the keys of the outermost object; of any other value, none.
pub fn check(text: &[u8], size_bytes_max: usize) -> Result<TopLevelKeys<'_>, JsonError> {
    if text.len() > size_bytes_max {
        return Err(JsonError::TooLarge { size_bytes: text.len(), size_bytes_max });
    }
    let top_level = Cell::new(HashSet::new());
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let walk = Walk { depth: 0, top_level: &top_level };
    serde::de::DeserializeSeed::deserialize(walk, &mut deserializer).map_err(JsonError::Invalid)?;
    deserializer.end().map_err(JsonError::Invalid)?;
    Ok(TopLevelKeys(top_level.into_inner()))
}

/// Checks the rules J1 and reads the text as a `T`.
pub fn parse<'a, T: Deserialize<'a>>(text: &'a [u8], size_bytes_max: usize) -> Result<T, JsonError> {
    check(text, size_bytes_max)?;
    serde_json::from_slice(text).map_err(JsonError::Invalid)
}

/// The keys of an object.
#[derive(Debug)]
pub struct TopLevelKeys<'a>(HashSet<Cow<'a, str>>);

impl TopLevelKeys<'_> {
    /// Whether the object has the key.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }

    /// A key that equals one of `known` for a parser that folds case, as Go's does, but not for one that does not.
    pub fn look_alike(&self, known: &[&str]) -> Option<&str> {
        let mut keys = self.0.iter().map(Cow::as_ref);
        keys.find(|&key| known.iter().any(|known| *known != key && folded(known) == folded(key)))
    }
}

/// The form in which Go's JSON package compares keys: two letters outside ASCII fold into it.
fn folded(key: &str) -> String {
    let fold = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).collect()
}

struct Walk<'k, 'de> {
    depth: usize,
    top_level: &'k Cell<HashSet<Cow<'de, str>>>,
}

impl Walk<'_, '_> {
    fn deeper<E: Error>(&self) -> Result<Self, E> {
        match self.depth < DEPTH_MAX {
            true => Ok(Walk { depth: self.depth + 1, top_level: self.top_level }),
            false => Err(E::custom("nested too deep")),
        }
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for Walk<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
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
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.deeper()?)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut keys: HashSet<Cow<'de, str>> = HashSet::new();
        while let Some(Key(key)) = entries.next_key::<Key<'de>>()? {
            if keys.len() == OBJECT_KEYS_MAX {
                return Err(A::Error::custom("an object has too many keys"));
            }
            if !keys.insert(key) {
                return Err(A::Error::custom("an object has the same key twice"));
            }
            entries.next_value_seed(self.deeper()?)?;
        }
        if self.depth == 0 {
            self.top_level.set(keys);
        }
        Ok(())
    }
}

/// A key, borrowed where it holds no escapes. (Serde's own `Cow` always copies.)
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(key)))
            }
            fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// Reads `null` as the default, as Go does.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_stand_once_in_each_object() {
        check(br#"{"a":{"a":[{"a":1},{"a":2}]},"b":null}"#, 100).unwrap();
        for text in [r#"{"a":1,"a":2}"#, r#"{"x":[{"a":1,"\u0061":2}]}"#, r#"[{"":0,"":0}]"#] {
            assert!(matches!(check(text.as_bytes(), 100), Err(JsonError::Invalid(_))), "{text}");
        }
    }

    #[test]
    fn depth_and_size_and_keys_are_limited() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        check(nested(127).as_bytes(), 1000).unwrap();
        assert!(check(nested(129).as_bytes(), 1000).is_err());
        assert!(matches!(check(b"12345", 4), Err(JsonError::TooLarge { size_bytes: 5, size_bytes_max: 4 })));
        let keys: Vec<_> = (0..=OBJECT_KEYS_MAX).map(|key| format!("\"{key}\":0")).collect();
        assert!(check(format!("{{{}}}", keys.join(",")).as_bytes(), 1 << 20).is_err());
        assert!(check(b"{} {}", 100).is_err());
        assert!(check(b"\xff", 100).is_err());
    }

    #[test]
    fn a_key_that_folds_to_a_known_one_is_a_look_alike() {
        let found = |text: &'static str| {
            check(text.as_bytes(), 100).unwrap().look_alike(&["manifests", "layers"]).map(str::to_owned)
        };
        assert_eq!(found(r#"{"manifests":1,"other":2}"#), None);
        assert_eq!(found(r#"{"Layers":1}"#).as_deref(), Some("Layers"));
        assert_eq!(found("{\"manife\u{17f}ts\":1}").as_deref(), Some("manife\u{17f}ts"));
    }
}
