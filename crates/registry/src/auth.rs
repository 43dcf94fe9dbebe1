//! Challenges of registries, and the tokens that answer them.
//!
//! A1  A token is asked for the scope that we need, never for the one that a challenge names: a registry could ask for
//!     the right to another repository and use the token itself.
//! A2  The credential goes to the token server only over TLS, or if registry and token server are both insecure by the
//!     user's word; and a redirect of a token server to another origin loses it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use std::sync::Arc;

use crate::connect::Trust;
use crate::credentials::{Credentials, Secret};
use crate::error::{RegistryError, clean};
use crate::exchange::{Answer, Request, Transport};
use crate::retry;
use crate::url::{Origin, Scheme, Url, percent_encode};

/// The largest answer of a token server, and the largest error of a registry, in bytes.
pub(crate) const SMALL_ANSWER_BYTES_MAX: usize = 64 << 10;
pub(crate) const REDIRECTS_MAX: usize = 10;
const CHALLENGES_MAX: usize = 8;
const PARAMETERS_MAX: usize = 16;

/// One challenge of a `WWW-Authenticate` header (RFC 9110, section 11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The scheme in lower case.
    pub scheme: String,
    /// Names in lower case, with their values.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The challenges of one header; what cannot be read ends the list.
pub fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() && challenges.len() < CHALLENGES_MAX {
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let value = after.trim_start().strip_prefix('=');
        match (value, challenges.last_mut()) {
            (Some(value), Some(challenge)) => {
                let Some((value, after)) = parameter_value(value.trim_start()) else { break };
                if challenge.parameters.len() < PARAMETERS_MAX {
                    challenge.parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            (Some(_), None) => break,
            (None, _) => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    challenges
}

/// The longest start of `text` that is a token, and the rest.
fn token(text: &str) -> (&str, &str) {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    text.split_at(text.bytes().position(|byte| !is_token(byte)).unwrap_or(text.len()))
}

fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = token(text);
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(letters.next()?.1),
            letter => value.push(letter),
        }
    }
    None
}

/// All challenges of an answer.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    texts.take(CHALLENGES_MAX).flat_map(parse_challenges).collect()
}

/// A header value that neither hyper nor we will show.
pub(crate) fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_maybe_shared(Bytes::from(text)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

pub(crate) fn basic(username: &str, password: &Secret) -> Option<HeaderValue> {
    sensitive(format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.reveal()))))
}

pub(crate) fn bearer(token: &Secret) -> Option<HeaderValue> {
    sensitive(format!("Bearer {}", token.reveal()))
}

/// What a registry wants to be shown, found from its challenge.
pub(crate) struct Authorizer<'a> {
    pub(crate) transport: &'a Arc<Transport>,
    pub(crate) registry: &'a Origin,
    pub(crate) trust: &'a Trust,
    pub(crate) credentials: &'a Credentials,
    pub(crate) scope: String,
}

impl Authorizer<'_> {
    /// The `Authorization` that answers the challenges of a 401; `None` if we have nothing that does.
    pub(crate) async fn answer(&self, challenges: &[Challenge]) -> Result<Option<HeaderValue>, RegistryError> {
        let of_scheme = |scheme| challenges.iter().find(|challenge| challenge.scheme == scheme);
        if let Some(challenge) = of_scheme("bearer") {
            if let Credentials::RegistryToken(token) = self.credentials {
                return Ok(bearer(token));
            }
            return self.token(challenge).await.map(|token| bearer(&token));
        }
        match (of_scheme("basic"), self.credentials) {
            (Some(_), Credentials::Basic { username, password }) => Ok(basic(username, password)),
            _ => Ok(None),
        }
    }

    async fn token(&self, challenge: &Challenge) -> Result<Secret, RegistryError> {
        let registry = || self.registry.authority();
        let realm = challenge.parameter("realm").and_then(Url::parse);
        let Some(realm) = realm else {
            return Err(RegistryError::Protocol { host: registry(), what: "it names no token server" });
        };
        self.check_realm(&realm).await?;
        let service = challenge.parameter("service").unwrap_or("");
        let mut answer = match self.credentials {
            Credentials::IdentityToken(token) => self.refresh(&realm, service, token).await?,
            _ => self.ask(&realm, service).await?,
        };
        if answer.status != StatusCode::OK {
            return Err(self.refused(answer).await);
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let not_understood =
            RegistryError::Protocol { host: realm.origin.authority(), what: "its answer holds no token" };
        let body = answer.body.read("the token answer", SMALL_ANSWER_BYTES_MAX).await?;
        let Ok(Token { token, access_token }) = serde_json::from_slice(&body) else { return Err(not_understood) };
        let given = token.filter(|token| !token.is_empty()).or(access_token);
        given.filter(|token| !token.is_empty()).map(Secret::new).ok_or(not_understood)
    }

    /// The rule A2.
    async fn check_realm(&self, realm: &Url) -> Result<(), RegistryError> {
        let refused = |why| {
            let (from, to) = (self.registry.authority(), clean(&realm.origin.to_string()));
            Err(RegistryError::Redirect { from, to, why })
        };
        if realm.origin.is_loopback() && !self.registry.is_loopback() {
            return refused("its token server would be on this machine");
        }
        let is_allowed = match realm.origin.scheme {
            Scheme::Https => true,
            Scheme::Http if self.registry.scheme == Scheme::Https && *self.trust == Trust::Verified => false,
            Scheme::Http => self.transport.dialer.trust(&realm.origin).await != Trust::Verified,
        };
        match is_allowed {
            true => Ok(()),
            false => refused("its token server would get credentials over plain HTTP"),
        }
    }

    /// Asks as the distribution project's token specification says: GET, with the password if there is one.
    async fn ask(&self, realm: &Url, service: &str) -> Result<Answer, RegistryError> {
        let mut query = match self.scope.as_str() {
            // Nothing in particular: whether the credentials are right.
            "" => String::new(),
            scope => format!("scope={}", percent_encode(scope)),
        };
        if !service.is_empty() {
            query.push_str(&format!("&service={}", percent_encode(service)));
        }
        let mut authorization = None;
        if let Credentials::Basic { username, password } = self.credentials {
            query.push_str(&format!("&account={}", percent_encode(username)));
            authorization = basic(username, password);
        }
        let separator = if realm.path.contains('?') { '&' } else { '?' };
        let mut url = Url { origin: realm.origin.clone(), path: format!("{}{separator}{query}", realm.path) };
        for _ in 0..=REDIRECTS_MAX {
            let headers = authorization.clone().map(|value| (AUTHORIZATION, value)).into_iter().collect();
            let request = Request { method: Method::GET, url: &url, headers, body: Bytes::new() };
            let answer = self.transport.send(&request).await?;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            let next = redirect_target(self.transport, &answer).await?;
            if next.origin != url.origin {
                authorization = None;
            }
            url = next;
        }
        Err(too_many_redirects(&url))
    }

    /// Asks as OAuth 2 says: POST, with the refresh token in a form.
    async fn refresh(&self, realm: &Url, service: &str, token: &Secret) -> Result<Answer, RegistryError> {
        let form = format!(
            "grant_type=refresh_token&service={}&client_id=baleen&scope={}&refresh_token={}",
            percent_encode(service),
            percent_encode(&self.scope),
            percent_encode(token.reveal()),
        );
        let headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))];
        let request = Request { method: Method::POST, url: realm, headers, body: form.into() };
        self.transport.send(&request).await
    }

    async fn refused(&self, mut answer: Answer) -> RegistryError {
        let detail = error_detail(&mut answer).await;
        let (host, status) = (answer.url.origin.authority(), answer.status);
        let retry_after = retry::told(&answer.headers);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                RegistryError::Unauthorized { registry: self.registry.authority(), detail: detail.text_or(status) }
            }
            _ => RegistryError::Server { host, status: status.as_u16(), detail: detail.text_or(status), retry_after },
        }
    }
}

/// Where an answer's redirect leads, if we may follow it.
pub(crate) async fn redirect_target(transport: &Transport, answer: &Answer) -> Result<Url, RegistryError> {
    let from = &answer.url;
    let location = answer.header(LOCATION).unwrap_or("");
    // Without its query, which may hold a signature.
    let shown = clean(location.split('?').next().unwrap_or(""));
    let refused = |why| RegistryError::Redirect { from: from.origin.authority(), to: shown.clone(), why };
    let target = from.join(location).ok_or_else(|| refused("it is not an address of HTTP"))?;
    if target.origin.is_loopback() && !from.origin.is_loopback() {
        return Err(refused("it leads from another host to this machine"));
    }
    if target.origin.scheme == Scheme::Http {
        if from.origin.scheme == Scheme::Https {
            return Err(refused("it leads from TLS to plain HTTP"));
        }
        if transport.dialer.trust(&target.origin).await == Trust::Verified {
            return Err(refused("it leads to plain HTTP on a host that is not in insecure-registries"));
        }
    }
    Ok(target)
}

pub(crate) fn too_many_redirects(last: &Url) -> RegistryError {
    let (from, to) = (last.origin.authority(), clean(&last.origin.to_string()));
    RegistryError::Redirect { from, to, why: "there were more than ten" }
}

/// What a registry says about an error (OCI distribution-spec, Error Codes).
#[derive(Debug, Default)]
pub(crate) struct ErrorDetail {
    pub(crate) code: String,
    message: String,
}

impl ErrorDetail {
    /// Code and message in the form that Docker shows: `manifest unknown: manifest unknown`.
    pub(crate) fn text(&self) -> String {
        let code = self.code.to_lowercase().replace('_', " ");
        match (code.is_empty(), self.message.is_empty()) {
            (true, _) => self.message.clone(),
            (_, true) => code,
            _ => format!("{code}: {}", self.message),
        }
    }

    pub(crate) fn text_or(&self, status: StatusCode) -> String {
        let text = self.text();
        if text.is_empty() { status.canonical_reason().unwrap_or("no reason given").to_lowercase() } else { text }
    }
}

/// Reads the body of an error, as far as it is small; a body that cannot be read says nothing.
pub(crate) async fn error_detail(answer: &mut Answer) -> ErrorDetail {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Entry>,
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(body) = answer.body.read("the error", SMALL_ANSWER_BYTES_MAX).await else { return ErrorDetail::default() };
    if let Ok(Errors { errors, details }) = serde_json::from_slice(&body) {
        return match errors.into_iter().next() {
            Some(first) => ErrorDetail { code: clean(&first.code), message: clean(&first.message) },
            None => ErrorDetail { code: String::new(), message: clean(&details.unwrap_or_default()) },
        };
    }
    let is_text = answer.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/plain"));
    match is_text {
        true => ErrorDetail { code: String::new(), message: clean(&String::from_utf8_lossy(&body)) },
        false => ErrorDetail::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_quotes_and_several_in_one_header() {
        let header = r#"Basic realm="a \"quoted\", realm", Bearer realm="https://auth.example/token" , service=reg.example,scope="repository:a/b:pull,push",error="insufficient_scope""#;
        let [basic, bearer] = &parse_challenges(header)[..] else { panic!() };
        assert_eq!((basic.scheme.as_str(), basic.parameter("realm")), ("basic", Some("a \"quoted\", realm")));
        assert_eq!(bearer.parameter("realm"), Some("https://auth.example/token"));
        assert_eq!(bearer.parameter("service"), Some("reg.example"));
        assert_eq!(bearer.parameter("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(bearer.parameter("error"), Some("insufficient_scope"));
    }

    #[test]
    fn what_is_no_challenge_ends_the_list() {
        assert_eq!(parse_challenges(""), []);
        assert_eq!(parse_challenges("=x"), []);
        assert_eq!(parse_challenges("realm=x").len(), 0);
        assert_eq!(parse_challenges("Bearer realm=\"open")[0].parameters, []);
        assert_eq!(parse_challenges(&"a, ".repeat(100)).len(), CHALLENGES_MAX);
        assert_eq!(parse_challenges("Bearer é=x")[0].scheme, "bearer");
    }
}
