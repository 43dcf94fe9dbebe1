//! When something is asked for again: how long to wait, what the server told, and the clock that waits.
//!
//! R1  A wait has a maximum whatever a server tells: [`TOLD_MAX`].
//! R2  Our own wall clock is never asked: a date that a server names is compared with the date of the same answer.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{DATE, RETRY_AFTER};

use crate::config::Timeouts;

/// The longest wait that a server may ask for.
pub(crate) const TOLD_MAX: Duration = Duration::from_secs(15 * 60);

/// What waits between attempts; replaced in tests.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Is ready after so long.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>>;
}

/// The time of this machine, monotonic.
#[derive(Debug, Clone, Copy, Default)]
pub struct MonotonicClock;

impl Clock for MonotonicClock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// How long to wait before the attempt that follows so many failures without progress.
pub(crate) fn delay(timeouts: &Timeouts, failures: u32, told: Option<Duration>) -> Duration {
    match told {
        // A server that says "now" still gets the time to mean it.
        Some(told) => told.max(timeouts.retry_first).min(TOLD_MAX),
        None => {
            let factor = 1_u32 << failures.saturating_sub(1).min(16);
            timeouts.retry_first.saturating_mul(factor).min(timeouts.retry_max)
        }
    }
}

/// The wait that an answer asks for (RFC 9110, section 10.2.3), at most [`TOLD_MAX`].
pub(crate) fn told(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    retry_after(text(RETRY_AFTER)?, text(DATE))
}

/// `Retry-After` in seconds, or as a date beside the `Date` of the same answer (R2).
pub fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit ask for the longest wait there is.
        return Some(value.parse().map_or(TOLD_MAX, Duration::from_secs).min(TOLD_MAX));
    }
    let seconds = date_seconds(value)?.checked_sub(date_seconds(date?.trim())?)?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(TOLD_MAX))
}

/// Seconds since 1970 of a date as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn date_seconds(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let number = |digits: &str, length: usize| -> Option<i64> {
        let is_number = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { digits.parse().ok() } else { None }
    };
    let (_weekday, rest) = text.split_once(", ")?;
    let parts: Vec<&str> = rest.split(' ').collect();
    let [day, month, year, time, "GMT"] = parts[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let (day, year) = (number(day, 2)?, number(year, 4)?);
    let clock: Vec<&str> = time.split(':').collect();
    let [hours, minutes, seconds] = clock[..] else { return None };
    let (hours, minutes, seconds) = (number(hours, 2)?, number(minutes, 2)?, number(seconds, 2)?);
    if !(1..=31).contains(&day) || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    // Days since 1970 by the calendar that starts its years in March, so that the leap day is their last.
    let years = if month <= 2 { year - 1 } else { year };
    let months = (month + 9) % 12;
    let days = 365 * years + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_in_seconds_and_as_a_date_beside_the_servers_own() {
        let seconds = |value, date| retry_after(value, date).map(|wait| wait.as_secs());
        assert_eq!(seconds("0", None), Some(0));
        assert_eq!(seconds(" 17 ", None), Some(17));
        assert_eq!(seconds("86400", None), Some(900));
        assert_eq!(seconds("99999999999999999999999", None), Some(900));
        let date = Some("Wed, 28 Feb 2024 23:59:50 GMT");
        assert_eq!(seconds("Thu, 29 Feb 2024 00:00:05 GMT", date), Some(15));
        assert_eq!(seconds("Fri, 01 Mar 2024 00:00:00 GMT", Some("Thu, 29 Feb 2024 23:59:00 GMT")), Some(60));
        assert_eq!(seconds("Wed, 28 Feb 2024 23:00:00 GMT", date), Some(0), "it has passed");
        for value in ["", "-1", "1.5", "soon", "Wed, 28 Feb 2024 23:59:50", "Wed, 28 Feb 2024 24:59:50 GMT"] {
            assert_eq!(seconds(value, date), None, "{value}");
        }
        assert_eq!(seconds("Thu, 29 Feb 2024 00:00:05 GMT", None), None, "our own clock is not asked");
        assert_eq!(date_seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(date_seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
    }

    #[test]
    fn waits_double_up_to_their_maximum_unless_the_server_tells_another() {
        let timeouts = Timeouts::default();
        let waits: Vec<u64> = (1..=10).map(|failures| delay(&timeouts, failures, None).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert_eq!(delay(&timeouts, u32::MAX, None), timeouts.retry_max);
        assert_eq!(delay(&timeouts, 9, Some(Duration::from_secs(5))).as_secs(), 5);
        assert_eq!(delay(&timeouts, 1, Some(Duration::ZERO)), timeouts.retry_first);
        assert_eq!(delay(&timeouts, 1, Some(Duration::MAX)), TOLD_MAX);
    }
}
