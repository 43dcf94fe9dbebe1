//! Refusals: a status and the text that clients match on.

use std::io;

use baleen_engine::{EngineError, Kind};

use crate::http::Reply;
use crate::json::clean;

/// Why a request is refused.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into() }
    }

    /// 400.
    pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(400, message)
    }

    /// 501 for what is to come.
    pub(crate) fn not_implemented(thing: &str) -> ApiError {
        ApiError::new(501, format!("{thing} is not implemented yet"))
    }

    /// 404 for a path or method that the API does not have.
    pub(crate) fn page_not_found() -> ApiError {
        ApiError::new(404, "page not found")
    }

    /// The reply; 304 has no body.
    pub(crate) fn reply(&self) -> Reply {
        if self.status == 304 {
            return Reply::empty(304);
        }
        let body = serde_json::json!({ "message": clean(&self.message) });
        Reply::whole(self.status, "application/json", format!("{body}\n"))
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> ApiError {
        let status = match error.kind() {
            Kind::NotFound => 404,
            Kind::Conflict => 409,
            Kind::InvalidParameter => 400,
            Kind::NotModified => 304,
            Kind::Forbidden => 403,
            Kind::Unauthorized => 401,
            Kind::NotImplemented => 501,
            Kind::Unavailable => 503,
            Kind::System => 500,
        };
        ApiError::new(status, error.chain())
    }
}

/// What is said of a body that could not be read.
pub(crate) fn body_error(error: &io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::FileTooLarge => ApiError::new(413, "request body is larger than 4 MiB"),
        io::ErrorKind::InvalidData => ApiError::invalid("malformed chunked request body"),
        _ => ApiError::invalid(format!("request body ended early: {error}")),
    }
}
