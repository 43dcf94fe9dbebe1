//! Credentials as Docker's clients send them.
//!
//! C1  A secret has no `Debug` and no `Display`, so that it cannot reach a log or an error by accident.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

/// A password or token. Has no `Debug` and no `Display` (C1).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Takes a secret.
    pub fn new(secret: impl Into<Box<str>>) -> Secret {
        Secret(secret.into())
    }

    /// The secret, for the one place that sends it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

/// Who asks a registry.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A user with a password.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token of the registry's token server (OAuth 2).
    IdentityToken(Secret),
    /// A bearer token that is sent to the registry as it is.
    RegistryToken(Secret),
}

/// Why a header is no credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the X-Registry-Auth header is not base64 of a JSON object; log in again")]
pub struct CredentialsError;

/// The longest header that is looked at, in bytes. Tokens of large clouds reach several KiB.
const HEADER_BYTES_MAX: usize = 64 << 10;

impl Credentials {
    /// The credentials in an `X-Registry-Auth` header: base64, URL-safe or standard, padded or not, of JSON. An empty
    /// header, `{}` and `null` are nobody.
    pub fn from_header(header: &str) -> Result<Credentials, CredentialsError> {
        let header = header.trim();
        if header.len() > HEADER_BYTES_MAX {
            return Err(CredentialsError);
        }
        if header.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        let json = decode_base64(header).ok_or(CredentialsError)?;
        Credentials::from_json(&json)
    }

    /// The credentials in the JSON that such a header holds.
    pub fn from_json(json: &[u8]) -> Result<Credentials, CredentialsError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Auth {
            username: Option<String>,
            password: Option<String>,
            // Docker's configuration files hold `user:password` in base64 here; some clients pass it on.
            auth: Option<String>,
            identitytoken: Option<String>,
            registrytoken: Option<String>,
        }
        if json.len() > HEADER_BYTES_MAX {
            return Err(CredentialsError);
        }
        let auth: Option<Auth> = serde_json::from_slice(json).map_err(|_| CredentialsError)?;
        let auth = auth.unwrap_or_default();
        let given = |field: Option<String>| field.filter(|text| !text.is_empty());
        if let Some(token) = given(auth.registrytoken) {
            return Ok(Credentials::RegistryToken(Secret::new(token)));
        }
        if let Some(token) = given(auth.identitytoken) {
            return Ok(Credentials::IdentityToken(Secret::new(token)));
        }
        if let Some(username) = given(auth.username) {
            let password = Secret::new(auth.password.unwrap_or_default());
            return Ok(Credentials::Basic { username, password });
        }
        match given(auth.auth) {
            None => Ok(Credentials::Anonymous),
            Some(pair) => {
                let pair =
                    decode_base64(&pair).and_then(|pair| String::from_utf8(pair).ok()).ok_or(CredentialsError)?;
                let (username, password) = pair.split_once(':').ok_or(CredentialsError)?;
                Ok(Credentials::Basic { username: username.to_owned(), password: Secret::new(password) })
            }
        }
    }

    /// As [`Credentials::from_header`], but what cannot be decoded is nobody: Docker's rule for a pull.
    pub fn from_header_or_anonymous(header: &str) -> Credentials {
        Credentials::from_header(header).unwrap_or_default()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Basic { .. } => "Basic",
            Credentials::IdentityToken(_) => "IdentityToken",
            Credentials::RegistryToken(_) => "RegistryToken",
        })
    }
}

/// Decodes base64 in either alphabet, with padding or without.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let alphabet = if text.contains(['-', '_']) { &alphabet::URL_SAFE } else { &alphabet::STANDARD };
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic { username: username.into(), password: Secret::new(password) }
    }

    #[test]
    fn every_alphabet_and_padding_is_read() {
        // Chosen so that the encodings differ: it has bytes that become `+` and `/`.
        let json = r#"{"username":"û>","password":"þ?~ÿ","email":"","serveraddress":"r.example"}"#;
        for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
            let header = engine.encode(json);
            assert_eq!(Credentials::from_header(&header).unwrap(), basic("û>", "þ?~ÿ"), "{header}");
        }
    }

    #[test]
    fn tokens_win_over_passwords() {
        let read = |json: &str| Credentials::from_header(&STANDARD.encode(json)).unwrap();
        let identity = read(r#"{"username":"u","password":"p","identitytoken":"i"}"#);
        assert!(identity == Credentials::IdentityToken(Secret::new("i")));
        let registry = read(r#"{"identitytoken":"i","registrytoken":"r"}"#);
        assert!(registry == Credentials::RegistryToken(Secret::new("r")));
        assert_eq!(read(r#"{"auth":"dTpwOng="}"#), basic("u", "p:x"));
    }

    #[test]
    fn nothing_is_nobody_and_so_is_nonsense_on_a_pull() {
        for header in ["", "  ", &STANDARD.encode("{}"), &STANDARD.encode("null"), "e30"] {
            assert_eq!(Credentials::from_header(header), Ok(Credentials::Anonymous), "{header}");
        }
        for header in ["!", "e3", "====", &STANDARD.encode("[1]"), &"A".repeat(HEADER_BYTES_MAX + 4)] {
            assert_eq!(Credentials::from_header(header), Err(CredentialsError));
            assert_eq!(Credentials::from_header_or_anonymous(header), Credentials::Anonymous);
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", basic("user", "secret")), "Basic");
    }
}
