//! Password hashes in PHC format, by argon2id.
//!
//! Hashing takes tens of milliseconds and 19 MiB on purpose; it runs off the async threads, and only a few at a
//! time, so that guessing passwords can neither stall the API nor exhaust its memory.

use std::sync::{Arc, OnceLock};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many hashes are computed at once.
const AT_ONCE: usize = 4;

/// Hashing failed, which takes a fault of the system: no random bytes, no memory, or a runtime that ends.
#[derive(Debug, thiserror::Error)]
#[error("the password can't be hashed: {0}")]
pub struct HashError(String);

/// Hashes a password under a new salt.
pub async fn hash(password: &str) -> Result<String, HashError> {
    let (turn, password) = (turn().await, password.to_owned());
    run(turn, move || {
        Argon2::default()
            .hash_password(password.as_bytes())
            .map(|hash: PasswordHash| hash.to_string())
            .map_err(|e| HashError(e.to_string()))
    })
    .await?
}

/// Whether `password` is the one of `hash`. A hash that can't be read fits no password.
pub async fn verify(password: &str, hash: &str) -> Result<bool, HashError> {
    let (turn, password, hash) = (turn().await, password.to_owned(), hash.to_owned());
    run(turn, move || {
        PasswordHash::new(&hash).is_ok_and(|hash| {
            Argon2::default()
                .verify_password(password.as_bytes(), &hash)
                .is_ok()
        })
    })
    .await
}

/// A new password of 24 letters, digits, `-` and `_`: 144 random bits.
pub fn generate() -> Result<String, HashError> {
    use base64::Engine as _;
    let mut bytes = [0_u8; 18];
    getrandom::fill(&mut bytes).map_err(|e| HashError(e.to_string()))?;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

async fn turn() -> Option<OwnedSemaphorePermit> {
    static TURNS: OnceLock<Arc<Semaphore>> = OnceLock::new();
    let turns = TURNS.get_or_init(|| Arc::new(Semaphore::new(AT_ONCE)));
    // Fails only when closed, which nobody does.
    Arc::clone(turns).acquire_owned().await.ok()
}

async fn run<T: Send + 'static>(
    turn: Option<OwnedSemaphorePermit>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HashError> {
    // The turn ends with the work, even if the request has gone away meanwhile.
    let work = move || {
        let result = work();
        drop(turn);
        result
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| HashError(e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_hash_fits_its_password_only() {
        let hash = hash("correct horse").await.unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert!(verify("correct horse", &hash).await.unwrap());
        assert!(!verify("wrong horse", &hash).await.unwrap());
        assert!(!verify("", "no hash at all").await.unwrap());
    }

    #[test]
    fn generated_passwords_are_long_and_differ() {
        let (a, b) = (generate().unwrap(), generate().unwrap());
        assert_eq!(a.len(), 24);
        assert_ne!(a, b);
    }
}
