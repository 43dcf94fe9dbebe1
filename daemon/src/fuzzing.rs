//! What must hold of the head parser, whatever bytes it gets: for the fuzz targets. Not for other use.

use crate::http::{Framing, HEAD_BYTES_MAX, HEADERS_MAX, Head, Method, parse_head};

/// Reads the head of a request.
///
/// # Panics
/// If the result depends on what follows the head, if a limit does not hold, or if the end of the body is in doubt.
pub fn head(bytes: &[u8]) {
    let (head, length) = match parse_head(bytes) {
        Err(refused) => {
            assert!(matches!(refused.status, 400 | 431 | 505) && !refused.to_string().is_empty(), "{refused:?}");
            return;
        }
        Ok(None) => {
            assert!(bytes.len() < HEAD_BYTES_MAX, "{} bytes are no head yet", bytes.len());
            return;
        }
        Ok(Some(found)) => found,
    };
    assert!(length <= bytes.len() && length <= HEAD_BYTES_MAX, "a head of {length} bytes");
    let (again, _) = parse_head(&bytes[..length]).ok().flatten().expect("the head alone is a head");
    assert_eq!(shown(&again), shown(&head), "it depends on what follows");
    assert!(!matches!(parse_head(&bytes[..length - 1]), Ok(Some(_))), "it had ended before its end");
    assert!(head.target.starts_with('/') || head.target == "*", "{:?}", head.target);
    assert!(head.headers.len() <= HEADERS_MAX);
    let chunked = head.headers.contains("transfer-encoding");
    match head.framing {
        Framing::Chunked => assert!(chunked && !head.headers.contains("content-length") && head.chunked_reply),
        Framing::Length(bytes) => assert!(!chunked && bytes > 0),
        Framing::Empty => assert!(!chunked),
    }
    assert!(head.chunked_reply || !head.expects_continue, "HTTP/1.0 expects nothing");
}

fn shown(head: &Head) -> (Method, &str, Framing, bool, bool) {
    (head.method, &head.target, head.framing, head.keep_alive, head.expects_continue)
}
