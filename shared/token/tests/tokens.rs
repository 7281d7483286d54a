//! Tokens from the API's key to Crane's verdict, and what must not get through.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use pulp_model::{Puller, RegistryId};
use pulp_token::{LEEWAY_SECONDS, Refusal, Signer, Verifier};
use serde_json::{Value, json};
use tempfile::TempDir;

const LIFETIME: Duration = Duration::from_mins(5);

struct Keys {
    folder: TempDir,
    signer: Signer,
}

impl Keys {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let private = folder.path().join("key.pem");
        Signer::generate(&private).unwrap();
        let signer = Signer::open(&private, "pulp", "registry", LIFETIME).unwrap();
        fs::write(folder.path().join("public.pem"), signer.public_pem()).unwrap();
        Self { folder, signer }
    }

    fn public(&self) -> PathBuf {
        self.folder.path().join("public.pem")
    }

    fn private_pem(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("key.pem")).unwrap()
    }

    fn verifier(&self) -> Verifier {
        Verifier::open(&[self.public()], "pulp", "registry").unwrap()
    }

    fn token_at(&self, now: SystemTime) -> String {
        let ann: Puller = "ann".parse().unwrap();
        self.signer
            .sign(Some(&ann), &names(&["a/b", "c"]), now)
            .unwrap()
            .token
    }

    fn token(&self) -> String {
        self.token_at(SystemTime::now())
    }

    /// A token of any header and claims, signed by the key.
    fn forged(&self, header: &Header, claims: &Value) -> String {
        let key = EncodingKey::from_ec_pem(&self.private_pem()).unwrap();
        jsonwebtoken::encode(header, claims, &key).unwrap()
    }
}

fn names(names: &[&str]) -> BTreeSet<RegistryId> {
    names.iter().map(|n| n.parse().unwrap()).collect()
}

fn part(token: &str, n: usize) -> Value {
    let part = token.split('.').nth(n).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[test]
fn a_token_says_who_it_is_for_and_what_it_opens() {
    let keys = Keys::new();
    let token = keys.token();
    let pulls = keys.verifier().verify(&token).unwrap();
    assert_eq!(pulls.subject, "ann");
    assert_eq!(pulls.repositories, names(&["a/b", "c"]));

    // The claims that registries know.
    let (header, claims) = (part(&token, 0), part(&token, 1));
    assert_eq!((&header["alg"], &header["typ"]), (&json!("ES256"), &json!("JWT")));
    let id = header["kid"].as_str().unwrap();
    assert_eq!((id.len(), id.split(':').count()), (59, 12), "{id}");
    assert_eq!(claims["aud"], "registry");
    assert_eq!(claims["iss"], "pulp");
    assert_eq!(
        claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
        LIFETIME.as_secs()
    );
    assert_eq!(
        claims["access"][0],
        json!({"type": "repository", "name": "a/b", "actions": ["pull"]})
    );
    assert_ne!(claims["jti"], part(&keys.token(), 1)["jti"]);

    let nobodys = keys
        .signer
        .sign(None, &BTreeSet::new(), SystemTime::now())
        .unwrap();
    let pulls = keys.verifier().verify(&nobodys.token).unwrap();
    assert_eq!((pulls.subject.as_str(), pulls.repositories.len()), ("", 0));
}

#[test]
fn a_token_holds_for_its_time_and_as_long_as_clocks_may_be_apart() {
    let keys = Keys::new();
    let verifier = keys.verifier();
    let now = SystemTime::now();
    let leeway = Duration::from_secs(LEEWAY_SECONDS);
    let margin = Duration::from_secs(10);
    for (issued, good) in [
        (now, true),
        (now - LIFETIME + margin, true),
        (now - LIFETIME - leeway + margin, true),
        (now - LIFETIME - leeway - margin, false),
        (now + leeway - margin, true),
        (now + leeway + margin, false),
    ] {
        let token = keys.token_at(issued);
        // The second time it may be remembered.
        for _ in 0..2 {
            assert_eq!(verifier.verify(&token).is_ok(), good, "{issued:?}");
        }
    }
}

#[test]
fn a_token_of_another_key_issuer_or_registry_counts_for_nothing() {
    let (keys, others) = (Keys::new(), Keys::new());
    assert_eq!(
        keys.verifier().verify(&others.token()).unwrap_err(),
        Refusal::UnknownKey
    );
    // Another's key under the name of ours.
    let header = Header {
        kid: Some(keys.signer.id().to_string()),
        ..Header::new(Algorithm::ES256)
    };
    let claims = part(&keys.token(), 1);
    let forged = others.forged(&header, &claims);
    assert!(matches!(
        keys.verifier().verify(&forged),
        Err(Refusal::Invalid(_))
    ));
    for (issuer, service) in [("other", "registry"), ("pulp", "other")] {
        let verifier = Verifier::open(&[keys.public()], issuer, service).unwrap();
        assert!(
            matches!(verifier.verify(&keys.token()), Err(Refusal::Invalid(_))),
            "{issuer}"
        );
    }
}

#[test]
fn the_key_decides_the_algorithm_and_never_the_token() {
    let keys = Keys::new();
    let verifier = keys.verifier();
    let claims = part(&keys.token(), 1);
    let id = Some(keys.signer.id().to_string());
    let public = fs::read(keys.public()).unwrap();
    // The public key, taken for a secret that both sides know.
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let header = Header {
            kid: id.clone(),
            ..Header::new(algorithm)
        };
        let forged = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(&public)).unwrap();
        assert_eq!(verifier.verify(&forged).unwrap_err(), Refusal::UnknownKey);
    }
    let token = keys.token();
    let signature = token.rsplit('.').next().unwrap();
    for algorithm in ["none", "None", "NONE", "", "HS256", "ES384"] {
        let header = json!({"typ": "JWT", "alg": algorithm, "kid": id});
        let body = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        for forged in [format!("{body}."), format!("{body}.{signature}"), body.clone()] {
            assert!(verifier.verify(&forged).is_err(), "{algorithm}");
        }
    }
    // Without its key's name, or with a key of its own.
    for kid in [None, Some(String::new()), Some("../../dev/null".to_owned())] {
        let header = Header {
            kid,
            ..Header::new(Algorithm::ES256)
        };
        assert_eq!(
            verifier.verify(&keys.forged(&header, &claims)).unwrap_err(),
            Refusal::UnknownKey
        );
    }
}

#[test]
fn claims_that_are_absent_or_of_another_kind_are_refused_and_other_rights_open_nothing() {
    let keys = Keys::new();
    let verifier = keys.verifier();
    let good = part(&keys.token(), 1);
    let header = Header {
        kid: Some(keys.signer.id().to_string()),
        ..Header::new(Algorithm::ES256)
    };
    for claim in ["iss", "sub", "aud", "exp", "nbf", "access"] {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(claim);
        assert!(
            verifier.verify(&keys.forged(&header, &claims)).is_err(),
            "{claim}"
        );
    }
    let mut claims = good;
    claims["access"] = json!([
        {"type": "repository", "name": "pushed", "actions": ["push"]},
        {"type": "registry", "name": "catalog", "actions": ["*", "pull"]},
        {"type": "repository", "name": "../x", "actions": ["pull"]},
        {"type": "repository", "name": "ok", "actions": ["push", "pull"]},
    ]);
    let pulls = verifier.verify(&keys.forged(&header, &claims)).unwrap();
    assert_eq!(pulls.repositories, names(&["ok"]));
}

#[test]
fn keys_are_replaced_one_after_the_other() {
    let (old, new) = (Keys::new(), Keys::new());
    // Two in one file, or in two.
    let both = old.folder.path().join("both.pem");
    fs::write(
        &both,
        format!("{}\n{}", old.signer.public_pem(), new.signer.public_pem()),
    )
    .unwrap();
    for files in [vec![both], vec![old.public(), new.public()]] {
        let verifier = Verifier::open(&files, "pulp", "registry").unwrap();
        assert!(verifier.verify(&old.token()).is_ok());
        assert!(verifier.verify(&new.token()).is_ok());
    }
    assert!(new.verifier().verify(&old.token()).is_err());
}

#[test]
fn a_private_key_is_made_once_and_for_its_owner_alone() {
    let keys = Keys::new();
    let path = keys.folder.path().join("key.pem");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let before = keys.private_pem();
    Signer::generate(&path).unwrap();
    assert_eq!(keys.private_pem(), before);
    assert_eq!(fs::read_dir(keys.folder.path()).unwrap().count(), 2);
    // Nothing of it is ever printed.
    let shown = format!("{:?}", keys.signer);
    assert!(shown.contains("registry") && !shown.contains("key:"), "{shown}");
}

#[test]
fn files_that_are_no_such_keys_are_told_with_their_name() {
    let keys = Keys::new();
    let file = |name: &str, text: &str| {
        let path = keys.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let empty = file("empty.pem", "");
    let garbage = file(
        "garbage.pem",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    );
    for path in [
        empty.clone(),
        garbage.clone(),
        "/nonexistent.pem".into(),
        keys.folder.path().join("key.pem"),
    ] {
        let error = Verifier::open(std::slice::from_ref(&path), "i", "s").unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    for path in [empty, garbage, "/nonexistent.pem".into(), keys.public()] {
        let error = Signer::open(&path, "i", "s", LIFETIME).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

proptest! {
    #[test]
    fn no_text_and_no_changed_token_gets_through(at in 0_usize..600, flip in 1_u8..128, text in ".{0,100}") {
        let keys = Keys::new();
        let verifier = keys.verifier();
        prop_assert!(verifier.verify(&text).is_err());
        let mut bytes = keys.token().into_bytes();
        let at = at % bytes.len();
        bytes[at] = (bytes[at] ^ flip) & 0x7f;
        if let Ok(changed) = String::from_utf8(bytes)
            && changed != keys.token()
        {
            prop_assert!(verifier.verify(&changed).is_err(), "{at}");
        }
    }
}
