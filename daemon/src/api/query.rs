//! Paths and queries: percent-decoding and the API's idea of a boolean.

use super::error::ApiError;

/// The query of a request, decoded, in order.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `a=1&b=2`.
    ///
    /// # Errors
    /// 400 if a name or value is no UTF-8 once decoded, or malformed.
    pub(crate) fn parse(text: &str) -> Result<Query, ApiError> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name, true)?, decode(value, true)?))
        });
        pairs.collect::<Option<Vec<_>>>().map(Query).ok_or_else(|| ApiError::invalid("malformed query"))
    }

    /// The first value of a name; none if it is absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first value of a name that is not empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// All values of a name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A boolean as the API reads one; `default` if the name is absent.
    pub(crate) fn boolean(&self, name: &str, default: bool) -> bool {
        self.get(name).map_or(default, |value| {
            let value = value.trim();
            !["", "0", "no", "false", "none"].iter().any(|word| value.eq_ignore_ascii_case(word))
        })
    }

    /// An integer; none if absent or empty.
    ///
    /// # Errors
    /// 400 with the value.
    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        self.text(name)
            .map(|value| {
                value
                    .parse()
                    .map_err(|_| ApiError::invalid(format!("invalid value for {name}: \"{value}\" is not an integer")))
            })
            .transpose()
    }
}

/// Decodes `%41` and, in a query, `+`. None if a `%` has no two digits after it, or the result is no UTF-8 or has a NUL.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(match byte {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                let digit = |at: usize| char::from(digits[at]).to_digit(16);
                u8::try_from(digit(0)? * 16 + digit(1)?).ok()?
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_read_as_every_client_writes_them() {
        for (text, expected) in [
            ("x=1", true),
            ("x=true", true),
            ("x=True", true),
            ("x=yes", true),
            ("x=2", true),
            ("x=", false),
            ("x", false),
            ("x=0", false),
            ("x=False", false),
            ("x=NO", false),
            ("x=none", false),
            ("x=%20false%20", false),
        ] {
            assert_eq!(Query::parse(text).expect("well-formed").boolean("x", !expected), expected, "{text}");
        }
        assert!(Query::default().boolean("x", true));
        assert!(!Query::default().boolean("x", false));
    }

    #[test]
    fn percent_encoding_is_decoded_and_malformed_text_refused() {
        let query = Query::parse("filters=%7B%22a%22%3A1%7D&t=a+b&t=c&empty=").expect("well-formed");
        assert_eq!(query.get("filters"), Some("{\"a\":1}"));
        assert_eq!(query.all("t").collect::<Vec<_>>(), ["a b", "c"]);
        assert_eq!((query.get("empty"), query.text("empty")), (Some(""), None));
        for bad in ["a=%", "a=%4", "a=%zz", "a=%+1", "a=%ff", "a=%00"] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
    }
}
