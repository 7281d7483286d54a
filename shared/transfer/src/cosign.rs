//! Private keys as `cosign generate-key-pair` writes them: PKCS#8 within NaCl's secretbox, under a key that scrypt makes
//! of a password, as JSON in PEM (`encrypted.go` of go-securesystemslib).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use crypto_secretbox::{KeyInit as _, Nonce, XSalsa20Poly1305, aead::Aead as _};
use serde::Deserialize;

/// What such a file begins with: since cosign 2, and before.
const BEGINNINGS: [&str; 2] = [
    "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----",
    "-----BEGIN ENCRYPTED COSIGN PRIVATE KEY-----",
];
/// Most bytes that scrypt may take: cosign's own keys take 64 MiB.
const MOST_MEMORY: u64 = 256 * 1024 * 1024;

#[derive(Deserialize)]
struct Sealed {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Deserialize)]
struct Kdf {
    name: String,
    params: Params,
    salt: String,
}

#[derive(Deserialize)]
struct Params {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

/// Whether a file is such a key.
pub(crate) fn is_sealed(pem: &str) -> bool {
    BEGINNINGS.iter().any(|b| pem.trim_start().starts_with(b))
}

/// The DER within; or why not, in words that go after the file's name.
pub(crate) fn open(pem: &str, password: &[u8]) -> Result<Vec<u8>, String> {
    let body: String = pem
        .lines()
        .map(str::trim)
        .filter(|l| !l.starts_with("-----"))
        .collect();
    let decoded = |text: &str| STANDARD.decode(text).map_err(|_| "it is not base64".to_owned());
    let sealed: Sealed =
        serde_json::from_slice(&decoded(&body)?).map_err(|e| format!("it is no key of cosign's: {e}"))?;
    if sealed.kdf.name != "scrypt" || sealed.cipher.name != "nacl/secretbox" {
        let text = format!(
            "it is encrypted by {} and {}",
            sealed.kdf.name, sealed.cipher.name
        );
        return Err(text + ", not by scrypt and nacl/secretbox");
    }
    let key = key_of(password, &decoded(&sealed.kdf.salt)?, &sealed.kdf.params)?;
    let nonce = decoded(&sealed.cipher.nonce)?;
    let nonce: [u8; 24] = nonce
        .try_into()
        .map_err(|n: Vec<u8>| format!("its nonce has {} bytes instead of 24", n.len()))?;
    let secretbox = XSalsa20Poly1305::new(&key.into());
    let opened = secretbox.decrypt(&Nonce::from(nonce), decoded(&sealed.ciphertext)?.as_slice());
    opened.map_err(|_| {
        let other = if password.is_empty() {
            "; put it into a file and name that"
        } else {
            ""
        };
        format!("its password is another one (transfer.signing_key_password_file){other}")
    })
}

fn key_of(password: &[u8], salt: &[u8], params: &Params) -> Result<[u8; 32], String> {
    let memory = params.n.saturating_mul(u64::from(params.r)).saturating_mul(128);
    let is_power = params.n.is_power_of_two() && params.n > 1;
    if !is_power || memory > MOST_MEMORY || params.p > 16 {
        return Err("its parameters of scrypt are none that cosign uses".to_owned());
    }
    let log_n = u8::try_from(params.n.trailing_zeros()).unwrap_or(u8::MAX);
    let mut key = [0; 32];
    let params = scrypt::Params::new(log_n, params.r, params.p, key.len()).map_err(|e| e.to_string())?;
    scrypt::scrypt(password, salt, &params, &mut key).map_err(|e| e.to_string())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Made for this test by PyNaCl, `hashlib.scrypt` and openssl; the password is "a word".
    pub(crate) const KEY: &str = "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----
eyJrZGYiOiB7Im5hbWUiOiAic2NyeXB0IiwgInBhcmFtcyI6IHsiTiI6IDEwMjQs
ICJyIjogOCwgInAiOiAxfSwgInNhbHQiOiAiM0hOdkJ2KytFYWdmWTdVUkNTR0Jj
TmYraENTWUNLZTNHNmFCR3p5Z1NlND0ifSwgImNpcGhlciI6IHsibmFtZSI6ICJu
YWNsL3NlY3JldGJveCIsICJub25jZSI6ICJ2am1VM3BtWU54eEcwU0Ezd2N5dVU0
c1VUVnhFSzR2UCJ9LCAiY2lwaGVydGV4dCI6ICJncEVNR0hSK05PcUZpVmY0Y1Ev
OFdpUmxaamhjclpWVHZTWEZ5M1UxVlJFZWlvSklUb3VUMXppMWlXU01YVkR5VHJt
MTZpa21JUFVKUzVxVVFVRzJwU0hMcFBJenhXLzAwTmFVNExGUitieE4zZlVkTXQy
dEJtOEJDS1N3YWFGckk1UjgxcVV5KzVjZGVoUC9hM1dVWWpOREV5RElFOXFXN05o
cy9Wc1B4T1h6U0drVGoxdlcvTHAyL21yeVJ3QW5lOTBjb1dZclN2WmlMdz09In0=
-----END ENCRYPTED SIGSTORE PRIVATE KEY-----
";

    #[test]
    fn a_key_of_cosigns_opens_by_its_password_and_no_other() {
        assert!(is_sealed(KEY));
        let key = crate::signing::SigningKey::of_pkcs8(&open(KEY, b"a word").unwrap()).unwrap();
        let public = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAECzAHsb9OtRKGJsqJDCd3xrv922uX
IPIqPeJnxPryGCkGj6cqC0Rmdvc+++udBAnZ6J9ep5fu9zYI2wnx/mQpcQ==
-----END PUBLIC KEY-----
";
        assert_eq!(key.public_pem(), public);
        assert!(open(KEY, b"another").unwrap_err().contains("another one"));
        assert!(open(KEY, b"").unwrap_err().contains("put it into a file"));
    }

    #[test]
    fn what_is_no_such_key_is_told_and_costs_no_memory() {
        let sealed = |json: &str| format!("{}\n{}\n", BEGINNINGS[1], STANDARD.encode(json));
        for (json, why) in [
            ("{}", "no key of cosign's"),
            (
                r#"{"kdf":{"name":"argon2","params":{"N":2,"r":8,"p":1},"salt":""},"cipher":{"name":"x","nonce":""},"ciphertext":""}"#,
                "argon2",
            ),
            (
                r#"{"kdf":{"name":"scrypt","params":{"N":4611686018427387904,"r":8,"p":1},"salt":""},"cipher":{"name":"nacl/secretbox","nonce":""},"ciphertext":""}"#,
                "parameters",
            ),
            (
                r#"{"kdf":{"name":"scrypt","params":{"N":2,"r":8,"p":1},"salt":""},"cipher":{"name":"nacl/secretbox","nonce":"AAAA"},"ciphertext":""}"#,
                "nonce",
            ),
        ] {
            let error = open(&sealed(json), b"").unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(!is_sealed("-----BEGIN PRIVATE KEY-----"));
    }
}
