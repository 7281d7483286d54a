//! `[token]` for the api and for Crane; in `standalone`, without a setting.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;
use pulp_crane::{Challenge, TokenService};
use pulp_runtime::config::{Config, TokenChallenge, TokenConfig};
use pulp_token::Signer;

/// What signs the api's tokens; none if no key is configured.
pub(crate) fn signer(config: &Config) -> anyhow::Result<Option<Signer>> {
    let token = &config.token;
    let Some(path) = &token.key_file else {
        return Ok(None);
    };
    let signer = open(path, token)?;
    if fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o007 != 0) {
        tracing::warn!(
            file = %path.display(),
            "everybody on this machine can read the key that tokens are signed with; chmod 600 it"
        );
    }
    tracing::info!(key = %signer.id(), "tokens for clients that pull are given out at /token");
    Ok(Some(signer))
}

fn open(key: &Path, token: &TokenConfig) -> anyhow::Result<Signer> {
    Signer::open(key, &token.issuer, &token.service, token.lifetime).context("token.key_file can't be used")
}

/// What Crane takes tokens by; none if no key is configured.
pub(crate) fn service(config: &Config) -> Option<TokenService> {
    let token = &config.token;
    (!token.public_keys.is_empty()).then(|| TokenService {
        realm: token.realm.as_ref().map(ToString::to_string),
        service: token.service.clone(),
        issuer: token.issuer.clone(),
        public_keys: token.public_keys.clone(),
        challenge: match token.challenge {
            TokenChallenge::Protected => Challenge::Protected,
            TokenChallenge::Always => Challenge::Always,
        },
    })
}

/// Makes a pair of keys in the data directory, unless keys are configured. The public one is a file too, for further
/// Cranes over the same data.
pub(crate) fn make_keys(config: &mut Config) -> anyhow::Result<()> {
    if config.token.key_file.is_some() || !config.token.public_keys.is_empty() {
        return Ok(());
    }
    let root = config.storage.root.clone();
    fs::create_dir_all(&root).with_context(|| format!("can't make {}", root.display()))?;
    let (private, public) = (root.join("token.key"), root.join("token.pub"));
    Signer::generate(&private)?;
    let signer = open(&private, &config.token)?;
    write_once(&public, &signer.public_pem()).with_context(|| format!("can't write {}", public.display()))?;
    config.token.key_file = Some(private);
    config.token.public_keys = vec![public];
    Ok(())
}

fn write_once(path: &Path, text: &str) -> std::io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn standalone_makes_its_keys_once_and_takes_those_that_are_configured() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        let mut config = Config::standalone(&root);
        make_keys(&mut config).unwrap();
        let first = signer(&config).unwrap().unwrap();
        assert_eq!(service(&config).unwrap().public_keys, [root.join("token.pub")]);
        let mode = fs::metadata(root.join("token.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut again = Config::standalone(&root);
        make_keys(&mut again).unwrap();
        assert_eq!(signer(&again).unwrap().unwrap().id(), first.id());

        let mut configured = Config::standalone(&folder.path().join("other"));
        configured.token.key_file = Some(root.join("token.key"));
        make_keys(&mut configured).unwrap();
        assert!(configured.token.public_keys.is_empty());
        assert!(!folder.path().join("other").exists());
    }

    #[test]
    fn without_keys_nothing_is_signed_and_nothing_taken() {
        let config = Config::default();
        assert!(signer(&config).unwrap().is_none());
        assert!(service(&config).is_none());
    }
}
