//! Checking tokens by public keys alone.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use pulp_model::RegistryId;
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

use crate::{Access, Claims, KeyError, KeyId, LEEWAY_SECONDS};

/// Tokens remembered as good, at most. A client shows one with every layer, and its signature need be checked only once.
const REMEMBERED: usize = 4096;
/// The longest token looked at, in bytes; those with the names of many repositories are long.
const LONGEST: usize = 64 * 1024;
/// Object identifiers of an elliptic curve's key and of the curve P-256, as they begin such a key's DER.
const P256: [u8; 23] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
];

/// Why a token counts for nothing. For logs: whoever shows it learns only that it does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No JWT, or too long a one.
    #[error("it is no token")]
    Malformed,
    /// By no key of ours, or with another algorithm.
    #[error("it is signed by none of the keys known here")]
    UnknownKey,
    /// Signature, time, issuer or service.
    #[error("{0}")]
    Invalid(String),
}

/// What a good token says.
#[derive(Debug, PartialEq, Eq)]
pub struct Pulls {
    /// Who it was given to; empty for nobody in particular.
    pub subject: String,
    /// The repositories that it lets pull from.
    pub repositories: BTreeSet<RegistryId>,
    /// Its end, seconds since 1970.
    expires: u64,
}

impl Pulls {
    fn hold_at(&self, seconds: u64) -> bool {
        seconds < self.expires.saturating_add(LEEWAY_SECONDS)
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Checks tokens of one issuer for one service, signed by any of some keys.
pub struct Verifier {
    keys: HashMap<String, DecodingKey>,
    validation: Validation,
    remembered: Mutex<HashMap<[u8; 32], Arc<Pulls>>>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    /// With the public keys of these files: one or more in each, so that a new one can be made known before it is
    /// used. Blocks.
    pub fn open(files: &[PathBuf], issuer: &str, service: &str) -> Result<Self, KeyError> {
        let mut keys = HashMap::new();
        for path in files {
            let wrong = |problem: &str| KeyError::new(path, problem);
            let pem = fs::read(path).map_err(|e| KeyError::new(path, format!("can't be read: {e}")))?;
            let mut found = 0;
            for key in SubjectPublicKeyInfoDer::pem_slice_iter(&pem) {
                let key = key.map_err(|_| wrong("is no PEM file"))?;
                let point =
                    point(&key).ok_or_else(|| wrong("has a public key that is not of the curve P-256"))?;
                keys.insert(KeyId::of(&key).0, DecodingKey::from_ec_der(point));
                found += 1;
            }
            if found == 0 {
                return Err(wrong(
                    "has no public key; `openssl pkey -in <private key> -pubout` writes one",
                ));
            }
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[service]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        Ok(Self {
            keys,
            validation,
            remembered: Mutex::default(),
        })
    }

    /// What a token says, if it is good now.
    pub fn verify(&self, token: &str) -> Result<Arc<Pulls>, Refusal> {
        if token.len() > LONGEST {
            return Err(Refusal::Malformed);
        }
        let name: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = self.remembered(&name) {
            return Ok(known);
        }
        let pulls = Arc::new(self.judge(token)?);
        self.remember(name, &pulls);
        Ok(pulls)
    }

    fn judge(&self, token: &str) -> Result<Pulls, Refusal> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refusal::Malformed)?;
        // The key decides the algorithm, never the token.
        let key = header.kid.as_ref().and_then(|id| self.keys.get(id));
        let Some(key) = key.filter(|_| header.alg == Algorithm::ES256) else {
            return Err(Refusal::UnknownKey);
        };
        let decoded = jsonwebtoken::decode::<Claims>(token, key, &self.validation);
        let claims = decoded.map_err(|e| Refusal::Invalid(e.to_string()))?.claims;
        Ok(Pulls {
            subject: claims.sub,
            repositories: claims.access.into_iter().filter_map(Access::pulls).collect(),
            expires: claims.exp,
        })
    }

    fn remembered(&self, name: &[u8; 32]) -> Option<Arc<Pulls>> {
        let now = now();
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(name).filter(|pulls| pulls.hold_at(now)).cloned()
    }

    fn remember(&self, name: [u8; 32], pulls: &Arc<Pulls>) {
        let now = now();
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED {
            remembered.retain(|_, pulls| pulls.hold_at(now));
            // Few have ended: to check the others once more costs less than to look through all of them, mostly in
            // vain, with each token that comes.
            if remembered.len() > REMEMBERED / 2 {
                remembered.clear();
            }
        }
        remembered.insert(name, Arc::clone(pulls));
    }
}

/// The point of a public key of the curve P-256.
fn point<'a>(key: &'a SubjectPublicKeyInfoDer<'_>) -> Option<&'a [u8]> {
    // Behind the identifiers: a bit string of no unused bits, which is the point, uncompressed.
    let point = key.strip_prefix(&P256)?.strip_prefix(&[0x03, 0x42, 0x00])?;
    (point.len() == 65 && point.first() == Some(&0x04)).then_some(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tokens_are_remembered_however_many_there_were() {
        let verifier = Verifier {
            keys: HashMap::new(),
            validation: Validation::new(Algorithm::ES256),
            remembered: Mutex::default(),
        };
        let good = Arc::new(Pulls {
            subject: String::new(),
            repositories: BTreeSet::new(),
            expires: now() + 300,
        });
        for n in 0..3 * REMEMBERED {
            let name = Sha256::digest(n.to_be_bytes()).into();
            verifier.remember(name, &good);
            assert_eq!(verifier.remembered(&name), Some(Arc::clone(&good)));
        }
        let kept = verifier
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len();
        assert!(kept <= REMEMBERED, "{kept}");
    }
}
