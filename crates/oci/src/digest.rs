//! Digests, and the three identities that are made of them.
//!
//! D1  A `Digest` holds bytes, not text: its text form is always `sha256:` or `sha512:` and lower-case hex of the
//!     exact length, so that it is safe as a path component or in a URL.
//! D2  A layer's digest, its diff ID and its chain ID are different types: none is taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest as _, Sha256, Sha512};

/// A hash function that content may be named by (OCI image-spec, Registered Algorithms).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256: 32 bytes.
    Sha256,
    /// SHA-512: 64 bytes.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The length of its hashes in bytes.
    pub const fn length_bytes(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }
}

/// The name of exact bytes: `algorithm:hex` (OCI image-spec, Digests).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// A SHA-256 digest.
    Sha256([u8; 32]),
    /// A SHA-512 digest.
    Sha512([u8; 64]),
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// There is no colon.
    #[error("digest has no algorithm; write sha256: and 64 hex digits")]
    NoAlgorithm,
    /// The algorithm is neither `sha256` nor `sha512`.
    #[error("digest algorithm is not supported; sha256 and sha512 are")]
    UnknownAlgorithm,
    /// The hexadecimal part has another length than the algorithm's.
    #[error("{algorithm} digest has {found} characters after the colon; it must have {expected}")]
    WrongLength {
        /// The algorithm named.
        algorithm: &'static str,
        /// Characters it needs.
        expected: usize,
        /// Characters found.
        found: usize,
    },
    /// A character is not one of `0-9a-f`.
    #[error("digest has a character that is not a lower-case hexadecimal digit")]
    NotHex,
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256_of(bytes: &[u8]) -> Digest {
        Digest::Sha256(Sha256::digest(bytes).into())
    }

    /// The digest of `bytes` by `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = DigestHasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest whose hash is already known.
    pub const fn from_sha256(hash: [u8; 32]) -> Digest {
        Digest::Sha256(hash)
    }

    /// The digest whose hash is `bytes`; `None` if the length is not the algorithm's.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Digest> {
        match algorithm {
            Algorithm::Sha256 => bytes.try_into().ok().map(Digest::Sha256),
            Algorithm::Sha512 => bytes.try_into().ok().map(Digest::Sha512),
        }
    }

    /// The algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The hash: 32 or 64 bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(hash) => hash,
            Digest::Sha512(hash) => hash,
        }
    }

    /// The part after the colon: 64 or 128 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        let bytes = self.as_bytes();
        let mut hex = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            hex.push(char::from(HEX_DIGITS[usize::from(byte >> 4)]));
            hex.push(char::from(HEX_DIGITS[usize::from(byte & 15)]));
        }
        hex
    }

    /// The first 12 hexadecimal digits: the `id` of a layer in Docker's progress lines.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }

    /// Whether this is the digest of `bytes`.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        Digest::of(self.algorithm(), bytes) == *self
    }
}

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn decode_hex<const N: usize>(algorithm: Algorithm, hex: &str) -> Result<[u8; N], DigestError> {
    debug_assert_eq!(algorithm.length_bytes(), N);
    let digits = hex.as_bytes();
    if digits.len() != 2 * N {
        let (expected, found) = (2 * N, digits.len());
        return Err(DigestError::WrongLength { algorithm: algorithm.name(), expected, found });
    }
    let mut hash = [0; N];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let high = hex_value(pair[0]).ok_or(DigestError::NotHex)?;
        let low = hex_value(pair[1]).ok_or(DigestError::NotHex)?;
        *byte = high << 4 | low;
    }
    Ok(hash)
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::NoAlgorithm)?;
        match algorithm {
            "sha256" => decode_hex(Algorithm::Sha256, hex).map(Digest::Sha256),
            "sha512" => decode_hex(Algorithm::Sha512, hex).map(Digest::Sha512),
            _ => Err(DigestError::UnknownAlgorithm),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        struct TextVisitor;
        impl serde::de::Visitor<'_> for TextVisitor {
            type Value = Digest;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a digest such as sha256:<64 hex digits>")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Digest, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// Computes a digest over bytes that arrive in parts.
#[derive(Clone)]
pub struct DigestHasher(Hasher);

#[derive(Clone)]
enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl DigestHasher {
    /// A hasher that has seen nothing yet.
    pub fn new(algorithm: Algorithm) -> DigestHasher {
        DigestHasher(match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Hasher::Sha256(state) => state.update(bytes),
            Hasher::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything taken.
    pub fn finish(self) -> Digest {
        match self.0 {
            Hasher::Sha256(state) => Digest::Sha256(state.finalize().into()),
            Hasher::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }

    /// By which algorithm it works.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Hasher::Sha256(_) => Algorithm::Sha256,
            Hasher::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Its state as bytes, from which [`DigestHasher::resume`] goes on: chaining values, length, and the block begun.
    pub fn state(&self) -> Vec<u8> {
        match &self.0 {
            Hasher::Sha256(state) => state.serialize().to_vec(),
            Hasher::Sha512(state) => state.serialize().to_vec(),
        }
    }

    /// A hasher in the given state; `None` if these bytes are none.
    pub fn resume(algorithm: Algorithm, state: &[u8]) -> Option<DigestHasher> {
        Some(DigestHasher(match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::deserialize(state.try_into().ok()?).ok()?),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::deserialize(state.try_into().ok()?).ok()?),
        }))
    }
}

impl fmt::Debug for DigestHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestHasher")
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl $name {
            /// The digest that it is.
            pub const fn digest(&self) -> &Digest {
                &self.0
            }

            /// The part after the colon.
            pub fn hex(&self) -> String {
                self.0.hex()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;
            fn from_str(text: &str) -> Result<$name, DigestError> {
                text.parse().map($name)
            }
        }
    };
}

identity! {
    /// The digest of a layer's uncompressed tar (OCI image-spec, Layer DiffID).
    DiffId
}
identity! {
    /// The identity of a stack of layers (OCI image-spec, Layer ChainID).
    ChainId
}
identity! {
    /// The digest of an image's configuration (OCI image-spec, ImageID).
    ImageId
}

impl ChainId {
    /// The identity of a stack of one layer.
    pub const fn base(bottom: DiffId) -> ChainId {
        ChainId(bottom.0)
    }

    /// The identity of this stack with one more layer on top.
    pub fn push(&self, top: &DiffId) -> ChainId {
        ChainId(Digest::sha256_of(format!("{} {}", self.0, top.0).as_bytes()))
    }

    /// The identity of the stack of `layers`, lowest first; `None` for no layers, whose stack has none.
    pub fn of(layers: &[DiffId]) -> Option<ChainId> {
        let (bottom, above) = layers.split_first()?;
        Some(above.iter().fold(ChainId::base(*bottom), |chain, layer| chain.push(layer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_comes_back_from_its_text() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"whale");
            assert_eq!(digest.to_string().parse(), Ok(digest));
            assert_eq!(Digest::from_bytes(algorithm, digest.as_bytes()), Some(digest));
            let json = serde_json::to_string(&digest).unwrap();
            assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        }
    }

    #[test]
    fn a_hasher_goes_on_from_its_state_wherever_it_stood() {
        let bytes: Vec<u8> = (0..1000u32).map(|at| (at * 7) as u8).collect();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for cut in 0..=bytes.len() {
                let mut hasher = DigestHasher::new(algorithm);
                hasher.update(&bytes[..cut]);
                let state = hasher.state();
                let mut resumed = DigestHasher::resume(hasher.algorithm(), &state).expect("a state");
                resumed.update(&bytes[cut..]);
                assert_eq!(resumed.finish(), Digest::of(algorithm, &bytes), "cut at {cut}");
                assert!(DigestHasher::resume(algorithm, &state[1..]).is_none());
            }
        }
    }

    #[test]
    fn the_digest_of_nothing_is_the_published_one() {
        let published = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::sha256_of(b"").to_string(), published);
        assert_eq!(Digest::sha256_of(b"").short(), "e3b0c44298fc");
    }

    #[test]
    fn a_digest_of_any_other_form_is_refused() {
        let hex = Digest::sha256_of(b"").hex();
        let wrong_length = |found| DigestError::WrongLength { algorithm: "sha256", expected: 64, found };
        for (text, error) in [
            (String::new(), DigestError::NoAlgorithm),
            (hex.clone(), DigestError::NoAlgorithm),
            ("sha256:".into(), wrong_length(0)),
            ("sha256:../../x".into(), wrong_length(7)),
            (format!("sha256:{}", &hex[1..]), wrong_length(63)),
            (format!("sha256:{hex}0"), wrong_length(65)),
            (format!("sha256:{}", hex.to_uppercase()), DigestError::NotHex),
            (format!("sha256:{}/", &hex[1..]), DigestError::NotHex),
            (format!("SHA256:{hex}"), DigestError::UnknownAlgorithm),
            (format!("md5:{}", &hex[..32]), DigestError::UnknownAlgorithm),
            (format!(" sha256:{hex}"), DigestError::UnknownAlgorithm),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_chain_id_folds_the_diff_ids_from_the_bottom() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| DiffId(Digest::sha256_of(bytes)));
        let ab = Digest::sha256_of(format!("{a} {b}").as_bytes());
        let abc = Digest::sha256_of(format!("{ab} {c}").as_bytes());
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]), Some(ChainId(a.0)));
        assert_eq!(ChainId::of(&[a, b, c]), Some(ChainId(abc)));
    }
}
