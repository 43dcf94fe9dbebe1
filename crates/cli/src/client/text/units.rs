//! Sizes, durations and times, read and written as docker does.

use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_A_DAY: i64 = 86_400;

/// Bytes as `512`, `512k`, `1.5g`, `64MiB`; every unit counts in 1024, as `docker run -m` does.
pub(crate) fn parse_bytes(text: &str) -> Option<i64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        "p" | "pb" | "pi" | "pib" => 50,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1_i64 << shift);
    }
    let bytes = number.parse::<f64>().ok()? * (1_i64 << shift) as f64;
    (bytes < i64::MAX as f64).then_some(bytes as i64)
}

/// A decimal in billionths: `1.5` is 1,500,000,000.
pub(crate) fn parse_nano(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 9 || !part.bytes().all(|byte| byte.is_ascii_digit()) || (whole.is_empty() && part.is_empty()) {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok().filter(|whole| *whole >= 0)? };
    let part: i64 = format!("{part:0<9}").parse().ok()?;
    whole.checked_mul(1_000_000_000)?.checked_add(part)
}

/// A duration as Go writes it (`1h30m`, `1.5s`, `300ms`), in nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let (mut rest, sign) = match text.strip_prefix('-') {
        Some(rest) => (rest, -1),
        None => (text, 1),
    };
    let mut total: i64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let nanoseconds: i64 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        // In billionths of the unit, so that no decimal is lost.
        let billionths = i128::from(parse_nano(number)?) * i128::from(nanoseconds) / 1_000_000_000;
        total = total.checked_add(i64::try_from(billionths).ok()?)?;
        rest = after;
    }
    Some(total * sign)
}

/// A size in decimal units with three digits, as `4.26MB`.
pub(crate) fn size(bytes: i64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// A size in decimal units with four digits, as `1.234MB`.
pub(crate) fn size_of_four_digits(bytes: i64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 4)
}

/// A size in binary units with four digits, as `7.656GiB`.
pub(crate) fn memory(bytes: i64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

fn scaled(mut value: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    // Significant digits, without zeros at the end, as C's %g.
    let before = if value >= 1000.0 {
        4
    } else if value >= 100.0 {
        3
    } else if value >= 10.0 {
        2
    } else {
        1
    };
    let mut text = format!("{value:.*}", digits.saturating_sub(before));
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text + units[unit]
}

/// A duration as people say it: `5 minutes`, `About an hour`.
pub(crate) fn human_duration(seconds: i64) -> String {
    // Hours are rounded to the nearest, everything else is cut.
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        ..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 730 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// How long ago a moment was.
pub(crate) fn ago(unix_seconds: i64) -> String {
    human_duration(now().0 - unix_seconds) + " ago"
}

/// The clock: seconds since 1970, and nanoseconds.
pub(crate) fn now() -> (i64, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or_default(), since.subsec_nanos())
}

/// The days since 1970 of a date (proleptic Gregorian).
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March here, so that the day that comes and goes is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let century = year.div_euclid(100);
    365 * year + year.div_euclid(4) - century + century.div_euclid(4) + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// Year, month and day of a number of days since 1970.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

fn civil(seconds: i64) -> (i64, i64, i64, i64, i64, i64) {
    let (year, month, day) = date(seconds.div_euclid(SECONDS_A_DAY));
    let rest = seconds.rem_euclid(SECONDS_A_DAY);
    (year, month, day, rest / 3600, rest / 60 % 60, rest % 60)
}

/// `2024-05-01T10:00:00Z`, with nine decimals where they are given.
pub(crate) fn rfc3339(seconds: i64, nanoseconds: Option<u32>) -> String {
    let (year, month, day, hour, minute, second) = civil(seconds);
    let part = nanoseconds.map(|nanoseconds| format!(".{nanoseconds:09}")).unwrap_or_default();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{part}Z")
}

/// `2024-05-01 10:00:00 +0000 UTC`, as Go prints a time.
pub(crate) fn go_time(seconds: i64) -> String {
    let (year, month, day, hour, minute, second) = civil(seconds);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
}

/// RFC 3339 with any offset; also without a time, seconds or an offset, then in UTC. Answers seconds and nanoseconds.
pub(crate) fn parse_time(text: &str) -> Option<(i64, u32)> {
    let number = |from: usize, to: usize| {
        text.get(from..to).filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))?.parse::<i64>().ok()
    };
    let is = |at: usize, byte: u8| text.as_bytes().get(at) == Some(&byte);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    if !is(4, b'-') || !is(7, b'-') || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let mut seconds = days(year, month, day) * SECONDS_A_DAY;
    let mut at = 10;
    if is(at, b'T') || is(at, b' ') {
        seconds += number(11, 13)? * 3600;
        at = 13;
        if is(at, b':') {
            seconds += number(14, 16)? * 60;
            at = 16;
        }
        if is(at, b':') {
            seconds += number(17, 19)?;
            at = 19;
        }
    }
    let mut nanoseconds = 0;
    if is(at, b'.') {
        let digits = text[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let part = &text[at + 1..at + 1 + digits.min(9)];
        nanoseconds = format!("{part:0<9}").parse().ok()?;
        at += 1 + digits;
    }
    match text.get(at..)? {
        "" | "Z" => {}
        offset if offset.len() == 6 && is(at + 3, b':') => {
            let shift = number(at + 1, at + 3)? * 3600 + number(at + 4, at + 6)? * 60;
            seconds += match offset.as_bytes()[0] {
                b'+' => -shift,
                b'-' => shift,
                _ => return None,
            };
        }
        _ => return None,
    }
    Some((seconds, nanoseconds))
}

/// A moment as `--since` takes it, as the API wants it: unix seconds with decimals. Takes those, a time, or a duration before
/// now.
pub(crate) fn moment(text: &str) -> Option<String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if digits(whole) && (part.is_empty() || digits(part)) {
        return Some(text.to_owned());
    }
    let (seconds, nanoseconds) = match parse_duration(text) {
        Some(duration) => {
            let (seconds, nanoseconds) = now();
            let then = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds) - i128::from(duration);
            let seconds = i64::try_from(then.div_euclid(1_000_000_000)).ok()?;
            (seconds, then.rem_euclid(1_000_000_000) as u32)
        }
        None => parse_time(text)?,
    };
    Some(format!("{seconds}.{nanoseconds:09}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_as_docker_does() {
        for (text, bytes) in [("512", 512), ("64k", 65_536), ("6MB", 6 << 20), ("1.5g", 3 << 29), ("2GiB", 2 << 30)] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "k", "1x", "1.2.3", "9999999999g", "-5"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
        for (bytes, text) in [(0, "0B"), (999, "999B"), (1000, "1kB"), (4_262_410, "4.26MB"), (123_456_789, "123MB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(memory(8_220_000_000), "7.655GiB");
        assert_eq!(
            (parse_nano("1.5"), parse_nano(".5"), parse_nano("x")),
            (Some(1_500_000_000), Some(500_000_000), None)
        );
    }

    #[test]
    fn durations_are_read_and_written_as_docker_does() {
        for (text, nanoseconds) in
            [("1h30m", 5_400_000_000_000), ("1.5s", 1_500_000_000), ("300ms", 300_000_000), ("0", 0)]
        {
            assert_eq!(parse_duration(text), Some(nanoseconds), "{text}");
        }
        for text in ["", "5", "s", "1x", "-"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (100, "About a minute"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (3 * 3600, "3 hours"),
            (3 * 86_400, "3 days"),
            (21 * 86_400, "3 weeks"),
            (90 * 86_400, "3 months"),
            (1000 * 86_400, "2 years"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }

    #[test]
    fn times_come_back_as_they_were_written() {
        for seconds in [0, 1, 951_827_696, 951_868_800, 1_714_557_600, 4_107_542_400, -86_401] {
            let text = rfc3339(seconds, Some(5));
            assert_eq!(parse_time(&text), Some((seconds, 5)), "{text}");
        }
        assert_eq!(rfc3339(1_709_208_000, None), "2024-02-29T12:00:00Z");
        assert_eq!(parse_time("2024-02-29T14:00:00.25+02:00"), Some((1_709_208_000, 250_000_000)));
        assert_eq!(parse_time("2024-02-29"), Some((1_709_164_800, 0)));
        assert_eq!(parse_time("2024-13-01"), None);
        assert_eq!(moment("12.5").as_deref(), Some("12.5"));
        assert_eq!(moment("2024-02-29T12:00:00Z").as_deref(), Some("1709208000.000000000"));
        assert_eq!(moment("yesterday"), None);
        assert!(moment("10m").expect("a duration") < moment("5m").expect("a duration"));
    }
}
