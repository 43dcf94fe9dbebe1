//! Names and numbers of signals, as Docker's clients write them.

use crate::error::EngineError;

pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGTERM: i32 = 15;
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// By number, from 1 (Linux on every architecture that we build for).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The number of a signal given as number or as name, with or without `SIG`.
///
/// # Errors
/// `InvalidParameter` for any other text.
pub(crate) fn parse(text: &str) -> Result<i32, EngineError> {
    let invalid = || EngineError::invalid(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=SIGRTMAX).contains(&number) { Ok(number) } else { Err(invalid()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let alias = match name {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        name => name,
    };
    if let Some(place) = NAMES.iter().position(|known| *known == alias) {
        return Ok(place as i32 + 1);
    }
    let real_time = match (alias.strip_prefix("RTMIN"), alias.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(SIGRTMIN),
        (_, Some("")) => Some(SIGRTMAX),
        (Some(rest), _) => rest.strip_prefix('+').and_then(|more| more.parse::<i32>().ok()).map(|more| SIGRTMIN + more),
        (_, Some(rest)) => rest.strip_prefix('-').and_then(|less| less.parse::<i32>().ok()).map(|less| SIGRTMAX - less),
        _ => None,
    };
    real_time.filter(|number| (SIGRTMIN..=SIGRTMAX).contains(number)).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read_and_others_refused() {
        let cases =
            [("9", 9), ("SIGTERM", 15), ("term", 15), ("KILL", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGIOT", 6)];
        for (text, number) in cases {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "-1", "65", "SIGNOPE", "RTMIN+31", "RTMAX-40", "SIG"] {
            assert!(matches!(parse(text), Err(EngineError::InvalidParameter { .. })), "{text}");
        }
    }
}
