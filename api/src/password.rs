//! Password hashes in PHC format, by argon2id.
//!
//! Hashing takes tens of milliseconds and 19 MiB on purpose; it runs off the async threads, and only a few at a
//! time, so that guessing passwords can neither stall the API nor exhaust its memory. The memory is used again and again:
//! freed blocks of this size and alignment are not what the C library's allocator finds again, and a few hundred hashes
//! would leave it with a gigabyte.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::phc::{Output, ParamsString, PasswordHash, Salt},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many hashes are computed at once.
const AT_ONCE: usize = 4;

/// Hashing failed, which takes a fault of the system: no random bytes, no memory, or a runtime that ends.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the password can't be hashed: {0}")]
pub struct HashError(String);

impl HashError {
    fn of(fault: impl std::fmt::Display) -> Self {
        Self(fault.to_string())
    }
}

/// Hashes a password under a new salt.
pub async fn hash(password: &str) -> Result<String, HashError> {
    let (turn, password) = (turn().await, password.to_owned());
    run(turn, move || {
        let (algorithm, version, params) = (Algorithm::default(), Version::default(), Params::default());
        let mut salt = [0; Salt::RECOMMENDED_LENGTH];
        getrandom::fill(&mut salt).map_err(|e| HashError(format!("no random bytes: {e}")))?;
        let salt = Salt::new(&salt).map_err(HashError::of)?;
        let output = compute(
            &password,
            &salt,
            algorithm,
            version,
            &params,
            Params::DEFAULT_OUTPUT_LEN,
        )?;
        let hash = PasswordHash {
            algorithm: algorithm.ident(),
            version: Some(version.into()),
            params: ParamsString::try_from(&params).map_err(HashError::of)?,
            salt: Some(salt),
            hash: Some(output),
        };
        Ok(hash.to_string())
    })
    .await?
}

/// Whether `password` is the one of `hash`. A hash that can't be read fits no password.
pub async fn verify(password: &str, hash: &str) -> Result<bool, HashError> {
    let (turn, password, hash) = (turn().await, password.to_owned(), hash.to_owned());
    run(turn, move || fits(&password, &hash).unwrap_or(false)).await
}

/// None if the hash can't be read.
fn fits(password: &str, hash: &str) -> Option<bool> {
    let hash = PasswordHash::new(hash).ok()?;
    let (salt, wanted) = (hash.salt?, hash.hash?);
    let algorithm = Algorithm::try_from(hash.algorithm.as_str()).ok()?;
    let version = hash
        .version
        .map_or(Ok(Version::default()), Version::try_from)
        .ok()?;
    let params = Params::try_from(&hash).ok()?;
    let output = compute(password, &salt, algorithm, version, &params, wanted.len()).ok()?;
    // Takes the same time wherever they differ.
    Some(output == wanted)
}

fn compute(
    password: &str,
    salt: &Salt,
    algorithm: Algorithm,
    version: Version,
    params: &Params,
    length: usize,
) -> Result<Output, HashError> {
    let argon2 = Argon2::new(algorithm, version, params.clone());
    let mut output = vec![0; length];
    with_memory(params.block_count(), |memory| {
        argon2.hash_password_into_with_memory(password.as_bytes(), salt, &mut output, memory)
    })
    .map_err(HashError::of)?;
    Output::new(&output).map_err(HashError::of)
}

/// Lends so many blocks of what earlier hashes left.
fn with_memory<T>(blocks: usize, work: impl FnOnce(&mut [Block]) -> T) -> T {
    static LEFT: Mutex<Vec<Vec<Block>>> = Mutex::new(Vec::new());
    let left = || LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut memory = left().pop().unwrap_or_default();
    if memory.len() < blocks {
        memory.resize(blocks, Block::default());
    }
    let done = work(&mut memory[..blocks]);
    left().push(memory);
    done
}

/// A new password of 24 letters, digits, `-` and `_`: 144 random bits.
pub fn generate() -> Result<String, HashError> {
    use base64::Engine as _;
    let mut bytes = [0_u8; 18];
    getrandom::fill(&mut bytes).map_err(HashError::of)?;
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
    tokio::task::spawn_blocking(work).await.map_err(HashError::of)
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

    #[tokio::test]
    async fn a_hundred_hashes_take_the_memory_of_the_few_that_are_made_at_once() {
        let before = resident_mebibytes();
        let hash = hash("correct horse").await.unwrap();
        let guesses = (0..100).map(|n| {
            let (guess, hash) = (n.to_string(), hash.clone());
            tokio::spawn(async move { verify(&guess, &hash).await })
        });
        for guess in guesses.collect::<Vec<_>>() {
            assert!(!guess.await.unwrap().unwrap());
        }
        // 4 of 19, and room for what other tests of this process do meanwhile.
        let grown = resident_mebibytes().saturating_sub(before);
        assert!(grown < 250, "{grown} MiB more");
    }

    fn resident_mebibytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
        let kibibytes: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
        kibibytes / 1024
    }

    #[test]
    fn generated_passwords_are_long_and_differ() {
        let (a, b) = (generate().unwrap(), generate().unwrap());
        assert_eq!(a.len(), 24);
        assert_ne!(a, b);
    }
}
