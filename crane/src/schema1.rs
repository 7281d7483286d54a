//! Schema 1 manifests made from schema 2, for docker before 1.10, which knows nothing else.
//!
//! What is made is the same each time but for the signature, which is of a key of this process. It is never stored:
//! the published manifest stays the one that has a digest for others.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use data_encoding::BASE32;
use http::{HeaderMap, header};
use pulp_model::{Digest, MediaType};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// A gzip of an empty tar: what schema 1 has for steps that changed no file.
pub(crate) const EMPTY_LAYER: [u8; 32] = [
    31, 139, 8, 0, 0, 9, 110, 136, 0, 255, 98, 24, 5, 163, 96, 20, 140, 88, 0, 8, 0, 0, 255, 255, 46, 175,
    181, 239, 0, 4, 0, 0,
];
/// Its digest.
pub(crate) const EMPTY_LAYER_DIGEST: &str =
    "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4";

/// DER of a P-256 public key up to the point.
const SPKI: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";

/// Whether a client takes schema 1 and nothing newer: it says so, or it is a docker that says nothing yet.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    let schema1 = [MediaType::DOCKER_SCHEMA1, MediaType::DOCKER_SCHEMA1_SIGNED];
    let mut ranges = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|range| range.split(';').next())
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .peekable();
    if ranges.peek().is_some() {
        return ranges.all(|name| schema1.iter().any(|s| name.eq_ignore_ascii_case(s.as_str())));
    }
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok());
    let version = agent.and_then(|a| a.strip_prefix("docker/1."));
    version.is_some_and(|v| matches!(v.split(['.', '-', ' ']).next(), Some("6" | "7" | "8" | "9")))
}

/// A schema 1 manifest without signature, or none if the image has no such form: layers that old clients can't
/// unpack or have to fetch elsewhere, or a history that doesn't fit the layers.
pub(crate) fn convert(manifest: &Value, config: &Value, name: &str, tag: &str) -> Option<Value> {
    let layers = manifest.get("layers")?.as_array()?;
    let gzipped = [MediaType::DOCKER_LAYER_GZIP, MediaType::OCI_LAYER_GZIP];
    let mut digests = Vec::with_capacity(layers.len());
    for layer in layers {
        let media_type = layer.get("mediaType")?.as_str()?;
        if !gzipped.iter().any(|known| known.as_str() == media_type) {
            return None;
        }
        digests.push(layer.get("digest")?.as_str()?);
    }
    let config = config.as_object()?;
    let steps = steps(config, &digests)?;
    let (mut fs_layers, mut history) = (Vec::new(), Vec::new());
    let mut parent: Option<String> = None;
    let last = steps.len().checked_sub(1)?;
    for (place, step) in steps.iter().enumerate() {
        let mut compatibility = if place == last {
            of_config(config)
        } else {
            step.compatibility()
        };
        if step.empty {
            compatibility.insert("throwaway".into(), json!(true));
        }
        let known = serde_json::to_string(&compatibility).ok()?;
        let id = id(step.digest, parent.as_deref(), place, &known);
        if let Some(parent) = parent.replace(id.clone()) {
            compatibility.insert("parent".into(), json!(parent));
        }
        compatibility.insert("id".into(), json!(id));
        fs_layers.push(json!({ "blobSum": step.digest }));
        history.push(json!({ "v1Compatibility": serde_json::to_string(&compatibility).ok()? }));
    }
    // The newest first.
    fs_layers.reverse();
    history.reverse();
    Some(json!({
        "schemaVersion": 1,
        "name": name,
        "tag": tag,
        "architecture": config.get("architecture").cloned().unwrap_or_else(|| json!("amd64")),
        "fsLayers": fs_layers,
        "history": history,
    }))
}

/// What was done to an image at once.
struct Step<'a> {
    digest: &'a str,
    empty: bool,
    /// The config's entry, if it has a history.
    entry: Option<&'a Map<String, Value>>,
}

impl Step<'_> {
    fn compatibility(&self) -> Map<String, Value> {
        let text = |key: &str| {
            self.entry
                .and_then(|e| e.get(key))
                .filter(|v| v.is_string())
                .cloned()
        };
        let mut out = Map::new();
        out.insert(
            "created".into(),
            text("created").unwrap_or_else(|| json!("1970-01-01T00:00:00Z")),
        );
        out.insert(
            "container_config".into(),
            json!({ "Cmd": [text("created_by").unwrap_or_else(|| json!(""))] }),
        );
        for key in ["author", "comment"] {
            out.extend(text(key).map(|value| (key.to_owned(), value)));
        }
        out
    }
}

/// The steps, oldest first; none if the history speaks of another number of layers than there are.
fn steps<'a>(config: &'a Map<String, Value>, digests: &[&'a str]) -> Option<Vec<Step<'a>>> {
    let history = config
        .get("history")
        .and_then(Value::as_array)
        .filter(|h| !h.is_empty());
    let mut digests = digests.iter().copied();
    let Some(history) = history else {
        let step = |digest| Step {
            digest,
            empty: false,
            entry: None,
        };
        return Some(digests.map(step).collect());
    };
    let mut steps = Vec::with_capacity(history.len());
    for entry in history {
        let entry = entry.as_object()?;
        let empty = entry.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
        let digest = if empty {
            EMPTY_LAYER_DIGEST
        } else {
            digests.next()?
        };
        steps.push(Step {
            digest,
            empty,
            entry: Some(entry),
        });
    }
    digests.next().is_none().then_some(steps)
}

/// What a v1 image says of itself: the config without what came with schema 2.
fn of_config(config: &Map<String, Value>) -> Map<String, Value> {
    let newer = ["history", "rootfs", "id", "parent"];
    let old = config.iter().filter(|(key, _)| !newer.contains(&key.as_str()));
    old.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// An id that is the same for the same steps, and no other.
fn id(digest: &str, parent: Option<&str>, place: usize, compatibility: &str) -> String {
    let mut hasher = Sha256::new();
    for part in [
        digest,
        parent.unwrap_or_default(),
        &place.to_string(),
        compatibility,
    ] {
        hasher.update(part);
        hasher.update([0]);
    }
    hex::encode(hasher.finalize())
}

/// A manifest signed, and the digest that it has.
pub(crate) struct Signed {
    pub(crate) bytes: Vec<u8>,
    /// Of the bytes without the signature, as clients count it.
    pub(crate) digest: Digest,
}

/// Signs with ES256 as JSON Web Signature, in the form that has the payload readable.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    jwk: Value,
}

impl Signer {
    /// With a new key. None only if the machine has no randomness.
    pub(crate) fn new() -> Option<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).ok()?;
        let point = key.public_key().as_ref();
        let (x, y) = (point.get(1..33)?, point.get(33..65)?);
        let der = [&hex::decode(SPKI).ok()?, point].concat();
        let hash = BASE32.encode(Sha256::digest(der).get(..30)?);
        let groups: Vec<String> = hash
            .as_bytes()
            .chunks(4)
            .map(|g| String::from_utf8_lossy(g).into_owned())
            .collect();
        let jwk = json!({
            "crv": "P-256", "kid": groups.join(":"), "kty": "EC",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        });
        Some(Self { key, jwk })
    }

    pub(crate) fn sign(&self, manifest: &Value) -> Option<Signed> {
        const TAIL: &str = "\n}";
        let payload = serde_json::to_string_pretty(manifest).ok()?;
        let head = payload.strip_suffix(TAIL)?;
        let protected = json!({
            "formatLength": head.len(),
            "formatTail": URL_SAFE_NO_PAD.encode(TAIL),
            "time": "1970-01-01T00:00:00Z",
        });
        let protected = URL_SAFE_NO_PAD.encode(protected.to_string());
        let signed = format!("{protected}.{}", URL_SAFE_NO_PAD.encode(&payload));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).ok()?;
        let signatures = json!([{
            "header": { "alg": "ES256", "jwk": self.jwk },
            "protected": protected,
            "signature": URL_SAFE_NO_PAD.encode(signature),
        }]);
        Some(Signed {
            bytes: format!("{head},\n  \"signatures\": {signatures}{TAIL}").into_bytes(),
            digest: Digest::sha256(&payload),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::collections::HashMap;

    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    fn image() -> (Value, Value) {
        let layer = |n: &str| json!({ "mediaType": MediaType::DOCKER_LAYER_GZIP, "digest": Digest::sha256(n), "size": 1 });
        let manifest = json!({ "schemaVersion": 2, "layers": [layer("a"), layer("b")] });
        let config = json!({
            "architecture": "arm64", "os": "linux", "created": "2020-01-02T03:04:05Z", "config": { "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": [] },
            "history": [
                { "created": "2020-01-01T00:00:00Z", "created_by": "ADD a" },
                { "created_by": "ENV x", "empty_layer": true },
                { "created_by": "ADD b" },
            ],
        });
        (manifest, config)
    }

    #[test]
    fn layers_and_history_come_newest_first_with_empty_steps() {
        let (manifest, config) = image();
        let made = convert(&manifest, &config, "org/name", "1.0").unwrap();
        assert_eq!(made["architecture"], "arm64");
        assert_eq!((&made["name"], &made["tag"]), (&json!("org/name"), &json!("1.0")));
        let sums: Vec<_> = made["fsLayers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l["blobSum"].clone())
            .collect();
        assert_eq!(
            sums,
            [
                json!(Digest::sha256("b")),
                json!(EMPTY_LAYER_DIGEST),
                json!(Digest::sha256("a"))
            ]
        );
        let history: Vec<Value> = made["history"]
            .as_array()
            .unwrap()
            .iter()
            .map(|h| serde_json::from_str(h["v1Compatibility"].as_str().unwrap()).unwrap())
            .collect();
        assert_eq!(history[0]["config"]["Cmd"], json!(["sh"]));
        assert!(history[0].get("rootfs").is_none() && history[0].get("history").is_none());
        assert_eq!(history[1]["throwaway"], true);
        assert_eq!(history[2]["container_config"]["Cmd"], json!(["ADD a"]));
        for (child, parent) in history.iter().zip(&history[1..]) {
            assert_eq!(child["parent"], parent["id"]);
            assert_eq!(child["id"].as_str().unwrap().len(), 64);
        }
        assert!(history[2].get("parent").is_none());
        assert_eq!(
            made,
            convert(&manifest, &config, "org/name", "1.0").unwrap(),
            "the same each time"
        );
    }

    #[test]
    fn an_image_that_old_clients_can_not_use_has_no_such_form() {
        let (manifest, config) = image();
        let mut zstd = manifest.clone();
        zstd["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+zstd");
        assert!(convert(&zstd, &config, "n", "t").is_none());
        let mut short = config.clone();
        short["history"].as_array_mut().unwrap().pop();
        assert!(convert(&manifest, &short, "n", "t").is_none());
        assert!(convert(&json!({ "layers": [] }), &json!({}), "n", "t").is_none());
        let without = convert(&manifest, &json!({}), "n", "t").unwrap();
        assert_eq!(without["history"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_signature_is_of_the_payload_and_by_the_key_that_it_names() {
        let (manifest, config) = image();
        let made = convert(&manifest, &config, "n", "t").unwrap();
        let signed = Signer::new().unwrap().sign(&made).unwrap();
        let document: HashMap<String, Value> = serde_json::from_slice(&signed.bytes).unwrap();
        let signature = &document["signatures"][0];
        let decode = |value: &Value| URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap();
        let protected: Value = serde_json::from_slice(&decode(&signature["protected"])).unwrap();
        let length = protected["formatLength"].as_u64().unwrap() as usize;
        let payload = [&signed.bytes[..length], &decode(&protected["formatTail"])].concat();
        assert_eq!(serde_json::from_slice::<Value>(&payload).unwrap(), made);
        assert!(signed.digest.matches(&payload));
        let jwk = &signature["header"]["jwk"];
        let point = [&[4][..], &decode(&jwk["x"]), &decode(&jwk["y"])].concat();
        let message = format!(
            "{}.{}",
            signature["protected"].as_str().unwrap(),
            URL_SAFE_NO_PAD.encode(&payload)
        );
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(message.as_bytes(), &decode(&signature["signature"]))
            .unwrap();
        let kid = jwk["kid"].as_str().unwrap();
        assert_eq!((kid.len(), kid.split(':').count()), (59, 12));
    }

    #[test]
    fn the_empty_layer_is_the_one_that_everybody_knows() {
        assert_eq!(Digest::sha256(EMPTY_LAYER).to_string(), EMPTY_LAYER_DIGEST);
    }

    #[test]
    fn it_is_for_clients_that_take_nothing_newer() {
        let headers = |accept: &[&str], agent: &str| -> HeaderMap {
            let accept = accept.iter().map(|a| (header::ACCEPT, a.parse().unwrap()));
            accept
                .chain([(header::USER_AGENT, agent.parse().unwrap())])
                .collect()
        };
        let (s1, signed) = (
            "application/vnd.docker.distribution.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        );
        for (accept, agent, wanted) in [
            (&[s1][..], "skopeo", true),
            (&[s1, signed], "", true),
            (
                &["application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.5"],
                "",
                true,
            ),
            (&[s1, "*/*"], "", false),
            (
                &[s1, "application/vnd.docker.distribution.manifest.v2+json"],
                "docker/1.9.1",
                false,
            ),
            (
                &[],
                "docker/1.9.1 go/go1.4.2 kernel/3.10 os/linux arch/amd64",
                true,
            ),
            (&[], "docker/1.6.0", true),
            (&[], "docker/1.10.3", false),
            (&[], "docker/20.10.24", false),
            (&[], "curl/7.88", false),
        ] {
            assert_eq!(is_wanted(&headers(accept, agent)), wanted, "{accept:?} {agent}");
        }
    }
}
