//! Signatures of an export's manifest: Ed25519, and ECDSA over P-256 with SHA-256 as cosign makes them.
//!
//! A key is a PEM file: PKCS#8 for the private one, SubjectPublicKeyInfo for the public one. The signature's file is
//! one line of base64, of what `openssl` and `cosign verify-blob` know: the 64 bytes of Ed25519 (RFC 8032) or the
//! ASN.1 of ECDSA.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    encoding::AsDer as _,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair as _, UnparsedPublicKey,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use pulp_model::Digest;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject as _};

use crate::{TransferError, cosign};

/// A key that signs exports.
pub struct SigningKey {
    kind: Kind,
    /// DER of the public key.
    public: Vec<u8>,
}

enum Kind {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

impl SigningKey {
    /// Reads a private key: Ed25519 or ECDSA P-256, PKCS#8 in PEM, not encrypted; or one of cosign's, whose password
    /// is the first line of `password_file`, or empty.
    pub fn read(path: &Path, password_file: Option<&Path>) -> Result<Self, TransferError> {
        let fault = |reason: String| key_fault(path, reason);
        let pem = fs::read(path).map_err(|e| fault(e.to_string()))?;
        if let Ok(text) = std::str::from_utf8(&pem)
            && cosign::is_sealed(text)
        {
            let password = match password_file {
                Some(file) => fs::read_to_string(file).map_err(|e| key_fault(file, e.to_string()))?,
                None => String::new(),
            };
            let password = password.lines().next().unwrap_or_default();
            let der = cosign::open(text, password.as_bytes()).map_err(fault)?;
            return Self::of_pkcs8(&der)
                .ok_or_else(|| fault("it is neither an Ed25519 nor an ECDSA P-256 key".to_owned()));
        }
        if pem.windows(9).any(|w| w == b"ENCRYPTED") {
            let reason = "it is encrypted, and not by cosign; take the encryption off and protect the file by its mode \
                          instead, or make a key by `pulp signing-key`";
            return Err(fault(reason.to_owned()));
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| {
            fault(
                "it is no PKCS#8 key in PEM (`-----BEGIN PRIVATE KEY-----`); make one by `pulp signing-key`"
                    .to_owned(),
            )
        })?;
        Self::of_pkcs8(der.secret_pkcs8_der())
            .ok_or_else(|| fault("it is neither an Ed25519 nor an ECDSA P-256 key".to_owned()))
    }

    pub(crate) fn of_pkcs8(der: &[u8]) -> Option<Self> {
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8(der) {
            let public = pair.public_key().as_der().ok()?.as_ref().to_vec();
            let kind = Kind::Ed25519(pair);
            return Some(Self { kind, public });
        }
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).ok()?;
        let public = pair.public_key().as_der().ok()?.as_ref().to_vec();
        let kind = Kind::P256(pair);
        Some(Self { kind, public })
    }

    /// The public key in PEM, for the other side.
    pub fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &self.public)
    }

    /// By what the key is known in logs and results: SHA-256 of the public key's DER.
    pub fn id(&self) -> Digest {
        Digest::sha256(&self.public)
    }

    /// The line of a signature's file.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<String, TransferError> {
        let signature = match &self.kind {
            Kind::Ed25519(pair) => pair.sign(bytes).as_ref().to_vec(),
            Kind::P256(pair) => pair
                .sign(&SystemRandom::new(), bytes)
                .map_err(|_| TransferError::Key {
                    path: self.id().to_string(),
                    reason: "it can't sign".to_owned(),
                })?
                .as_ref()
                .to_vec(),
        };
        Ok(format!("{}\n", STANDARD.encode(signature)))
    }
}

/// Makes an Ed25519 key in a file that only its owner can read; refuses to replace one.
pub fn generate_key(path: &Path) -> Result<SigningKey, TransferError> {
    let unusable = |_| key_fault(path, "no key can be made".to_owned());
    let pair = Ed25519KeyPair::generate().map_err(unusable)?;
    let der = pair.to_pkcs8v1().map_err(unusable)?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| key_fault(path, e.to_string()))?;
    file.write_all(pem("PRIVATE KEY", der.as_ref()).as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|e| key_fault(path, e.to_string()))?;
    SigningKey::read(path, None)
}

/// The public keys whose exports are taken.
#[derive(Debug)]
pub struct TrustedKeys {
    directory: PathBuf,
    keys: Vec<PublicKey>,
}

#[derive(Debug)]
struct PublicKey {
    id: Digest,
    der: Vec<u8>,
}

impl TrustedKeys {
    /// Reads every `*.pem` and `*.pub` of a directory; none if it isn't there.
    pub fn read(directory: &Path) -> Result<Self, TransferError> {
        let mut keys = Vec::new();
        let entries = match fs::read_dir(directory) {
            Ok(entries) => Some(entries),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(key_fault(directory, e.to_string())),
        };
        for entry in entries.into_iter().flatten() {
            let path = entry.map_err(|e| key_fault(directory, e.to_string()))?.path();
            let ending = path.extension().and_then(|e| e.to_str());
            if !matches!(ending, Some("pem" | "pub")) {
                continue;
            }
            let pem = fs::read(&path).map_err(|e| key_fault(&path, e.to_string()))?;
            let der = SubjectPublicKeyInfoDer::from_pem_slice(&pem).map_err(|_| {
                let reason = "it is no public key in PEM (`-----BEGIN PUBLIC KEY-----`)";
                key_fault(&path, reason.to_owned())
            })?;
            keys.push(PublicKey {
                id: Digest::sha256(&der),
                der: der.to_vec(),
            });
        }
        Ok(Self {
            directory: directory.to_owned(),
            keys,
        })
    }

    /// Whether no key is trusted.
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The trusted key that signed `bytes`.
    pub(crate) fn verify(&self, bytes: &[u8], line: &str) -> Result<Digest, TransferError> {
        let wrong = |reason: String| TransferError::WrongSignature {
            reason,
            keys: self.directory.display().to_string(),
        };
        let signature = STANDARD
            .decode(line.trim())
            .map_err(|_| wrong("it is not base64".to_owned()))?;
        let made_it = |key: &&PublicKey| {
            UnparsedPublicKey::new(&ED25519, &key.der)
                .verify(bytes, &signature)
                .is_ok()
                || UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key.der)
                    .verify(bytes, &signature)
                    .is_ok()
        };
        let found = self.keys.iter().find(made_it).map(|key| key.id.clone());
        found.ok_or_else(|| {
            wrong(match self.keys.len() {
                0 => "no key is trusted".to_owned(),
                1 => "the one key that is trusted did not".to_owned(),
                n => format!("none of the {n} that are trusted did"),
            })
        })
    }
}

fn key_fault(path: &Path, reason: String) -> TransferError {
    TransferError::Key {
        path: path.display().to_string(),
        reason,
    }
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    fn trusting(directory: &Path, keys: &[&SigningKey]) -> TrustedKeys {
        let directory = directory.join("trusted");
        fs::create_dir_all(&directory).unwrap();
        for (n, key) in keys.iter().enumerate() {
            fs::write(directory.join(format!("{n}.pem")), key.public_pem()).unwrap();
        }
        fs::write(directory.join("README"), "no key").unwrap();
        TrustedKeys::read(&directory).unwrap()
    }

    fn openssl(words: &[&str]) -> bool {
        let output = Command::new("openssl").args(words).output().unwrap();
        output.status.success()
    }

    #[test]
    fn what_a_trusted_key_signed_is_known_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let ours = generate_key(&directory.path().join("ours")).unwrap();
        let other = generate_key(&directory.path().join("other")).unwrap();
        let line = ours.sign(b"bytes").unwrap();
        let both = trusting(directory.path(), &[&other, &ours]);
        assert_eq!(both.verify(b"bytes", &line).unwrap(), ours.id());
        assert!(both.verify(b"Bytes", &line).is_err());
        assert!(both.verify(b"bytes", "no base64!").is_err());
        assert!(both.verify(b"bytes", "").is_err());
        let elsewhere = tempfile::tempdir().unwrap();
        let error = trusting(elsewhere.path(), &[&other])
            .verify(b"bytes", &line)
            .unwrap_err();
        assert!(
            error.to_string().contains("the one key that is trusted did not"),
            "{error}"
        );
        let none = TrustedKeys::read(&directory.path().join("absent")).unwrap();
        assert!(
            none.verify(b"bytes", &line)
                .unwrap_err()
                .to_string()
                .contains("no key is trusted")
        );
    }

    #[test]
    fn a_key_is_not_replaced_and_others_can_not_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        generate_key(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(generate_key(&path).is_err());
    }

    #[test]
    fn keys_of_openssl_sign_and_openssl_knows_what_was_signed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        fs::write(path("bytes"), "bytes").unwrap();
        for (algorithm, option) in [("ED25519", None), ("EC", Some("ec_paramgen_curve:P-256"))] {
            let out = path(algorithm);
            let mut words = vec!["genpkey", "-algorithm", algorithm, "-out", &out];
            if let Some(option) = option {
                words.extend(["-pkeyopt", option]);
            }
            assert!(openssl(&words));
            let key = SigningKey::read(Path::new(&out), None).unwrap();
            let line = key.sign(b"bytes").unwrap();
            fs::write(path("signature"), STANDARD.decode(line.trim()).unwrap()).unwrap();
            fs::write(path("public.pem"), key.public_pem()).unwrap();
            let (public, signature, bytes) = (path("public.pem"), path("signature"), path("bytes"));
            let verify = if algorithm == "EC" {
                vec![
                    "dgst",
                    "-sha256",
                    "-verify",
                    &public,
                    "-signature",
                    &signature,
                    &bytes,
                ]
            } else {
                vec![
                    "pkeyutl", "-verify", "-pubin", "-inkey", &public, "-rawin", "-in", &bytes, "-sigfile",
                    &signature,
                ]
            };
            assert!(openssl(&verify), "{algorithm}");
            let trusted = trusting(&directory.path().join(format!("of-{algorithm}")), &[&key]);
            assert_eq!(trusted.verify(b"bytes", &line).unwrap(), key.id());
        }
        let rsa = path("rsa");
        assert!(openssl(&["genpkey", "-algorithm", "RSA", "-out", &rsa]));
        assert!(
            SigningKey::read(Path::new(&rsa), None)
                .err()
                .unwrap()
                .to_string()
                .contains("neither")
        );
        fs::write(path("encrypted"), "-----BEGIN ENCRYPTED PRIVATE KEY-----\n").unwrap();
        let encrypted = SigningKey::read(Path::new(&path("encrypted")), None)
            .err()
            .unwrap();
        assert!(encrypted.to_string().contains("encrypted"), "{encrypted}");
    }
}
