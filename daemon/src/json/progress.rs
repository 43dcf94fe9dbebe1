//! Progress in the words that clients parse: one JSON message a line, each with Docker's ready-made bar.

use baleen_engine::{LayerPhase, Progress};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

/// A line of a message stream.
#[derive(Debug, Default, Serialize)]
struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    progress_detail: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

impl Message<'_> {
    fn line(&self) -> Bytes {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.extend_from_slice(b"\r\n");
        bytes.into()
    }
}

/// The last line of a stream that failed: with both fields, since each is the only one that some client reads.
pub(crate) fn error_line(message: &str) -> Bytes {
    let message = clean(message);
    format!("{}\r\n", json!({ "errorDetail": { "message": message }, "error": message })).into()
}

/// A message without control characters and of bounded length: parts of it may come from a registry or an archive, and it
/// ends on somebody's terminal.
pub(crate) fn clean(message: &str) -> String {
    const CHARACTERS_MAX: usize = 4096;
    message.chars().take(CHARACTERS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Which verb's words are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgressRenderer {
    /// `status` lines.
    Pull,
    /// `stream` lines for what was loaded.
    Load,
}

impl ProgressRenderer {
    /// The line for one message.
    pub(crate) fn line(self, progress: &Progress) -> Bytes {
        let status = |text: &str| Message { status: Some(text), ..Message::default() }.line();
        match progress {
            Progress::PullingFrom { repository, id } => {
                Message { status: Some(&format!("Pulling from {repository}")), id: Some(id), ..Message::default() }
                    .line()
            }
            Progress::PushingTo { repository } => status(&format!("The push refers to repository [{repository}]")),
            Progress::Pushed { tag, digest, size_bytes } => {
                let told = status(&format!("{tag}: digest: {digest} size: {size_bytes}"));
                let aux = json!({ "Tag": tag, "Digest": digest, "Size": size_bytes });
                let aux = json!({ "progressDetail": {}, "aux": aux });
                [told, format!("{aux}\r\n").into()].concat().into()
            }
            Progress::Layer { id, phase } => layer(id, phase),
            Progress::Digest(digest) => status(&format!("Digest: {digest}")),
            Progress::Status(text) => status(&format!("Status: {}", text.strip_prefix("Status: ").unwrap_or(text))),
            Progress::Line(text) if self == ProgressRenderer::Load => {
                let text = format!("{}\n", text.trim_end());
                Message { stream: Some(&text), ..Message::default() }.line()
            }
            Progress::Line(text) => status(text),
        }
    }
}

fn layer(id: &str, phase: &LayerPhase) -> Bytes {
    let (retrying, mounted);
    let (word, counts) = match phase {
        LayerPhase::PullingFsLayer => ("Pulling fs layer", None),
        LayerPhase::Waiting => ("Waiting", None),
        LayerPhase::Downloading { current_bytes, total_bytes } => ("Downloading", Some((*current_bytes, *total_bytes))),
        LayerPhase::VerifyingChecksum => ("Verifying Checksum", None),
        LayerPhase::DownloadComplete => ("Download complete", None),
        LayerPhase::Extracting { current_bytes, total_bytes } => ("Extracting", Some((*current_bytes, *total_bytes))),
        LayerPhase::PullComplete => ("Pull complete", None),
        LayerPhase::AlreadyExists => ("Already exists", None),
        LayerPhase::Loading { current_bytes, total_bytes } => ("Loading layer", Some((*current_bytes, *total_bytes))),
        LayerPhase::SkippingCommonLayer => ("Skipping common layer", None),
        LayerPhase::ComputingDelta { current_bytes, total_bytes } => {
            ("Computing delta", Some((*current_bytes, *total_bytes)))
        }
        LayerPhase::DeltaComplete => ("Delta complete", None),
        LayerPhase::Preparing => ("Preparing", None),
        LayerPhase::Pushing { current_bytes, total_bytes } => ("Pushing", Some((*current_bytes, *total_bytes))),
        LayerPhase::Pushed => ("Pushed", None),
        LayerPhase::LayerAlreadyExists => ("Layer already exists", None),
        LayerPhase::MountedFrom(repository) => {
            mounted = format!("Mounted from {repository}");
            (mounted.as_str(), None)
        }
        LayerPhase::Retrying { seconds, reason } => {
            let plural = if *seconds == 1 { "" } else { "s" };
            retrying = format!("Retrying in {seconds} second{plural}: {reason}");
            (retrying.as_str(), None)
        }
    };
    let detail = match counts {
        Some((current, total)) if total > 0 => json!({ "current": current, "total": total }),
        Some((current, _)) => json!({ "current": current }),
        None => json!({}),
    };
    Message {
        status: Some(word),
        progress_detail: Some(detail),
        progress: counts.map(|(current, total)| bar(current, total)),
        id: Some(id),
        ..Message::default()
    }
    .line()
}

/// `[=====>     ]  1.2MB/3.4MB`, as wide as Docker's.
fn bar(current: u64, total: u64) -> String {
    const WIDTH: usize = 50;
    if total == 0 {
        return format!("{:>8}", size(current));
    }
    let done = usize::try_from(u128::from(current.min(total)) * WIDTH as u128 / u128::from(total)).unwrap_or(WIDTH);
    let head = if done < WIDTH { ">" } else { "" };
    let empty = WIDTH - done - head.len();
    format!("[{}{head}{}] {:>8}/{}", "=".repeat(done), " ".repeat(empty), size(current), size(total))
}

/// A size with four digits at most and units of thousands.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    // Four significant digits, without trailing zeros.
    let decimals = match value {
        _ if unit == 0 => 0,
        value if value >= 100.0 => 1,
        value if value >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(progress: &Progress) -> String {
        String::from_utf8(ProgressRenderer::Pull.line(progress).to_vec()).expect("JSON is UTF-8")
    }

    #[test]
    fn a_pull_is_told_in_the_words_that_clients_parse() {
        let layer = |phase| line(&Progress::Layer { id: "0123456789ab".into(), phase });
        assert_eq!(
            line(&Progress::PullingFrom { repository: "library/x".into(), id: "latest".into() }),
            "{\"status\":\"Pulling from library/x\",\"id\":\"latest\"}\r\n"
        );
        assert_eq!(
            layer(LayerPhase::PullingFsLayer),
            "{\"status\":\"Pulling fs layer\",\"progressDetail\":{},\"id\":\"0123456789ab\"}\r\n"
        );
        assert_eq!(
            layer(LayerPhase::Downloading { current_bytes: 500_000, total_bytes: 1_000_000 }),
            format!(
                "{{\"status\":\"Downloading\",\"progressDetail\":{{\"current\":500000,\"total\":1000000}},\"progress\":\"[{}>{}]    500kB/1MB\",\"id\":\"0123456789ab\"}}\r\n",
                "=".repeat(25),
                " ".repeat(24)
            )
        );
        let retrying = |seconds| layer(LayerPhase::Retrying { seconds, reason: "it broke".into() });
        assert!(retrying(1).contains("\"Retrying in 1 second: it broke\""));
        assert!(retrying(5).contains("\"Retrying in 5 seconds: it broke\""));
        assert_eq!(line(&Progress::Digest("sha256:ab".into())), "{\"status\":\"Digest: sha256:ab\"}\r\n");
    }

    #[test]
    fn an_error_has_both_fields() {
        let line = error_line("no space");
        assert_eq!(&line[..], b"{\"error\":\"no space\",\"errorDetail\":{\"message\":\"no space\"}}\r\n");
    }

    #[test]
    fn a_bar_is_full_at_the_end_and_never_wider() {
        assert_eq!(bar(10, 10), format!("[{}]      10B/10B", "=".repeat(50)));
        assert_eq!(bar(20, 10), format!("[{}]      20B/10B", "=".repeat(50)));
        assert_eq!(bar(0, 10), format!("[>{}]       0B/10B", " ".repeat(49)));
        assert_eq!(bar(1_234_567, 0), " 1.235MB");
        assert!(bar(u64::MAX, u64::MAX).contains("18447PB") || bar(u64::MAX, u64::MAX).contains("18446.7PB"));
    }
}
