//! Wall-clock times as the API writes them. No decision of the engine uses one: they are shown, never compared with now.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment in UTC, to the nanosecond; years 1 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// The rest, 0 to 999,999,999.
    pub nanoseconds: u32,
}

const SECONDS_A_DAY: i64 = 86_400;

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
        let (year, month, day, seconds) = self.civil();
        format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            self.nanoseconds
        )
    }

    /// Reads RFC 3339, with any offset and any number of decimals (those past nine are cut).
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let number = |range: std::ops::Range<usize>| -> Option<i64> {
            let part = text.get(range)?;
            if part.bytes().all(|byte| byte.is_ascii_digit()) { part.parse().ok() } else { None }
        };
        let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
        if bytes.len() < 20 || separators.iter().any(|&(at, byte)| bytes[at] != byte) {
            return None;
        }
        if !matches!(bytes[10], b'T' | b't' | b' ') {
            return None;
        }
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let mut rest = text.get(19..)?;
        let mut nanoseconds = 0_u32;
        if let Some(fraction) = rest.strip_prefix('.') {
            let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
            if length == 0 {
                return None;
            }
            for place in 0..9 {
                let digit = fraction.as_bytes().get(place).filter(|_| place < length).map_or(0, |byte| byte - b'0');
                nanoseconds = nanoseconds * 10 + u32::from(digit);
            }
            rest = &fraction[length..];
        }
        let offset = match rest.as_bytes() {
            [b'Z' | b'z'] => 0,
            [sign @ (b'+' | b'-'), hours @ .., _, _, _] if rest.len() == 6 && hours.len() == 2 => {
                let at = text.len() - 6;
                if bytes[at + 3] != b':' {
                    return None;
                }
                let minutes = number(at + 1..at + 3)? * 60 + number(at + 4..at + 6)?;
                if *sign == b'-' { -minutes * 60 } else { minutes * 60 }
            }
            _ => return None,
        };
        let seconds = days_from_civil(year, month, day) * SECONDS_A_DAY + hour * 3600 + minute * 60 + second - offset;
        Some(Self { seconds, nanoseconds })
    }

    /// Year, month, day and second of the day.
    fn civil(self) -> (i64, i64, i64, i64) {
        let days = self.seconds.div_euclid(SECONDS_A_DAY);
        let (year, month, day) = civil_from_days(days);
        (year, month, day, self.seconds.rem_euclid(SECONDS_A_DAY))
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

/// Days since 1970 of a date in the proleptic Gregorian calendar. Years are counted from March, so that the leap day is
/// the last of its year, in eras of 400 years (146,097 days).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
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
    fn every_day_of_eight_centuries_comes_back() {
        for days in -150_000..150_000 {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
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
