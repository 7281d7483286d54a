//! The pair of keys: P-256, in PEM, as `openssl genpkey` and `openssl pkey -pubout` write them.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use data_encoding::BASE32;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use pulp_model::{Puller, RegistryId};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::{Access, Claims};

/// A key that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct KeyError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, and what is right.
    pub problem: String,
}

impl KeyError {
    pub(crate) fn new(path: &Path, problem: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// A token can't be signed: a fault of the system.
#[derive(Debug, thiserror::Error)]
#[error("a token can't be signed: {0}")]
pub struct SignError(String);

/// Which key: the fingerprint that the distribution project's registry knows keys by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyId(pub(crate) String);

impl KeyId {
    /// Of a public key: SHA-256 of its DER, cut to 240 bits, in twelve groups of Base32.
    pub(crate) fn of(public: &[u8]) -> Self {
        let hash = Sha256::digest(public);
        let text = BASE32.encode(hash.get(..30).unwrap_or(&hash));
        let groups: Vec<String> = text
            .as_bytes()
            .chunks(4)
            .map(|group| String::from_utf8_lossy(group).into_owned())
            .collect();
        Self(groups.join(":"))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Signs tokens.
#[derive(Clone)]
pub struct Signer {
    key: EncodingKey,
    id: KeyId,
    public: Vec<u8>,
    issuer: String,
    service: String,
    lifetime: Duration,
}

/// A token, and for how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The JWT.
    pub token: String,
    /// From `issued` on.
    pub lifetime: Duration,
    /// When it was given out.
    pub issued: SystemTime,
}

impl Signer {
    /// With the private key of a file, for tokens of this issuer that this service is to take for `lifetime`.
    pub fn open(path: &Path, issuer: &str, service: &str, lifetime: Duration) -> Result<Self, KeyError> {
        const WANTED: &str = "there is no private key of the curve P-256 in PKCS #8 (PEM) here; make one with \
                              `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`";
        let wrong = |problem: String| KeyError::new(path, problem);
        let pem = fs::read(path).map_err(|e| wrong(format!("can't be read: {e}")))?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| wrong(WANTED.into()))?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
            .map_err(|_| wrong(WANTED.into()))?;
        let public: PublicKeyX509Der<'_> = pair
            .public_key()
            .as_der()
            .map_err(|_| wrong("its public key can't be told".into()))?;
        let public = public.as_ref().to_vec();
        Ok(Self {
            key: EncodingKey::from_ec_pem(&pem).map_err(|_| wrong(WANTED.into()))?,
            id: KeyId::of(&public),
            public,
            issuer: issuer.to_owned(),
            service: service.to_owned(),
            lifetime,
        })
    }

    /// Makes a new private key in a file that only its owner can read. A file that is there is left alone.
    pub fn generate(path: &Path) -> Result<(), KeyError> {
        if path.exists() {
            return Ok(());
        }
        let wrong = |e: io::Error| KeyError::new(path, format!("can't be written: {e}"));
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| KeyError::new(path, "no key can be made"))?;
        // Under a name of its own first: whoever finds the file finds the whole key.
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut unfinished = NamedTempFile::new_in(folder).map_err(wrong)?;
        unfinished
            .write_all(pem("PRIVATE KEY", made.as_ref()).as_bytes())
            .and_then(|()| unfinished.as_file().sync_all())
            .map_err(wrong)?;
        // Of two processes that make one at once, one's becomes the key of both.
        match unfinished.persist_noclobber(path) {
            Err(e) if e.error.kind() != io::ErrorKind::AlreadyExists => Err(wrong(e.error)),
            _ => Ok(()),
        }
    }

    /// The public key, PEM: what Crane needs.
    pub fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &self.public)
    }

    /// Which key it signs with.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The registry that its tokens are for.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// A token that lets `who` pull from these repositories; none is nobody in particular.
    pub fn sign(
        &self,
        who: Option<&Puller>,
        pulls: &BTreeSet<RegistryId>,
        now: SystemTime,
    ) -> Result<Signed, SignError> {
        let seconds = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: who.map(ToString::to_string).unwrap_or_default(),
            aud: self.service.clone(),
            exp: seconds + self.lifetime.as_secs(),
            nbf: seconds,
            iat: seconds,
            jti: uuid::Uuid::new_v4().to_string(),
            access: pulls.iter().map(Access::pull).collect(),
        };
        let header = Header {
            kid: Some(self.id.0.clone()),
            ..Header::new(Algorithm::ES256)
        };
        let token =
            jsonwebtoken::encode(&header, &claims, &self.key).map_err(|e| SignError(e.to_string()))?;
        Ok(Signed {
            token,
            lifetime: self.lifetime,
            issued: now,
        })
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("id", &self.id)
            .field("issuer", &self.issuer)
            .field("service", &self.service)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
