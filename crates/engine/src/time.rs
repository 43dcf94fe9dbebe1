//! Wall-clock times as the API writes them. No decision of the engine uses one: they are shown, never compared with now.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use baleen_runtime::clock;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment in UTC, to the nanosecond; years 1 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// The rest, 0 to 999,999,999.
    pub nanoseconds: u32,
}

const NANOSECONDS_A_SECOND: i128 = 1_000_000_000;

impl Timestamp {
    /// `0001-01-01T00:00:00Z`: how the API writes "never".
    pub const ZERO: Self = Self { seconds: -62_135_596_800, nanoseconds: 0 };

    /// The clock, right or wrong.
    pub fn now() -> Self {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Self { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() },
            Err(_) => Self { seconds: 0, nanoseconds: 0 },
        }
    }

    /// Whether this is [`Timestamp::ZERO`].
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// Nanoseconds since 1970 (the API's `timeNano`), clamped to 64 bits.
    pub fn unix_nanoseconds(&self) -> i64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanoseconds))
    }

    /// RFC 3339 with always 9 decimals: the log's form.
    pub fn to_rfc3339_fixed(self) -> String {
        clock::rfc3339(i128::from(self.seconds) * NANOSECONDS_A_SECOND + i128::from(self.nanoseconds))
    }

    /// Reads RFC 3339, with any offset and any number of decimals (those past nine are cut).
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let nanoseconds = clock::parse_rfc3339(text)?;
        Some(Self {
            seconds: nanoseconds.div_euclid(NANOSECONDS_A_SECOND).try_into().ok()?,
            nanoseconds: nanoseconds.rem_euclid(NANOSECONDS_A_SECOND).try_into().ok()?,
        })
    }
}

/// RFC 3339 as Go prints it: decimals without trailing zeros, none if whole.
impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fixed = self.to_rfc3339_fixed();
        let whole = fixed.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
        // The seconds themselves may end in zeros: never cut into `hh:mm:ss`.
        let text = if self.nanoseconds == 0 { &fixed[..fixed.len() - 11] } else { whole };
        write!(formatter, "{text}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse_rfc3339(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_written_and_read_as_go_writes_them() {
        let cases = [
            (Timestamp::ZERO, "0001-01-01T00:00:00Z"),
            (Timestamp { seconds: 0, nanoseconds: 0 }, "1970-01-01T00:00:00Z"),
            (Timestamp { seconds: 951_782_400, nanoseconds: 500_000_000 }, "2000-02-29T00:00:00.5Z"),
            (Timestamp { seconds: 1_700_000_000, nanoseconds: 1 }, "2023-11-14T22:13:20.000000001Z"),
        ];
        for (time, text) in cases {
            assert_eq!(time.to_string(), text);
            assert_eq!(Timestamp::parse_rfc3339(text), Some(time));
        }
    }

    #[test]
    fn offsets_are_taken_into_account() {
        assert_eq!(
            Timestamp::parse_rfc3339("2023-11-15T00:13:20+02:00"),
            Some(Timestamp { seconds: 1_700_000_000, nanoseconds: 0 })
        );
        assert_eq!(
            Timestamp::parse_rfc3339("2023-11-14T20:43:20.25-01:30"),
            Some(Timestamp { seconds: 1_700_000_000, nanoseconds: 250_000_000 })
        );
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-13-14T22:13:20Z",
            "2023-11-14T22:13:20.Z",
            "é023-11-14T22:13:20Z",
        ] {
            assert_eq!(Timestamp::parse_rfc3339(text), None, "{text}");
        }
    }
}
