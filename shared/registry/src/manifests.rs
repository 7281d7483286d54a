//! Manifests: fetched by tag or digest, checked, kept verbatim.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use pulp_model::{
    Digest, MediaType, RegistryId, TagName,
    image::{MAX_MANIFEST_BYTES, Manifest},
};
use reqwest::{
    Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Client, RegistryError, Result, counters::Purpose, request::Ask};

/// All kinds that the system takes, today's first. Without the older ones a registry answers old images by 404.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.5, \
    application/vnd.docker.distribution.manifest.v1+json;q=0.4";

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A name that may move.
    Tag(TagName),
    /// The content itself.
    Digest(Digest),
}

/// Text that is neither a tag nor a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a tag nor a digest")]
pub struct InvalidReference(pub String);

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(digest) = text.parse() {
            return Ok(Self::Digest(digest));
        }
        text.parse()
            .map(Self::Tag)
            .map_err(|_| InvalidReference(text.chars().take(300).collect()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => fmt::Display::fmt(tag, f),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

/// A manifest as it came, checked against its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedManifest {
    /// The verbatim bytes.
    pub bytes: Bytes,
    /// The type that the registry declared, if any; what the bytes themselves say is up to
    /// [`Manifest::parse`](pulp_model::image::Manifest::parse).
    pub media_type: Option<MediaType>,
    /// Its digest: the one asked for, or computed.
    pub digest: Digest,
}

impl FetchedManifest {
    /// Reads it.
    pub fn parse(&self) -> Result<Manifest, pulp_model::image::ManifestError> {
        Manifest::parse(&self.bytes, self.media_type.as_ref())
    }
}

/// What a registry says of a manifest without sending it. Nothing of it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// `Docker-Content-Digest`; some registries leave it out.
    pub digest: Option<Digest>,
    /// `Content-Type`.
    pub media_type: Option<MediaType>,
    /// `Content-Length`.
    pub size: Option<u64>,
}

impl Client {
    /// Whether a manifest is there, and which; none if it isn't. Who knows one already says so by `known`: registries
    /// need not read their manifest to answer that it is still that one. Nothing but its digest is told then.
    ///
    /// Source: RFC 9110 §13.1.2; registries have the digest as the `ETag`, or don't care, which does no harm.
    pub async fn head_manifest(
        &self,
        name: &RegistryId,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<Option<ManifestHead>> {
        let url = self.url(&format!("v2/{name}/manifests/{reference}"))?;
        let ask = Ask {
            method: &Method::HEAD,
            accept: Some(ACCEPT),
            known,
            ..Ask::document(&url, name.as_str(), Purpose::ManifestHead)
        };
        match self.request(ask).await {
            Ok(response) if response.status() == StatusCode::NOT_MODIFIED => Ok(Some(ManifestHead {
                digest: known.cloned(),
                media_type: None,
                size: None,
            })),
            Ok(response) => {
                let headers = response.headers();
                // reqwest's own `content_length` speaks of the body, which a HEAD has none of.
                let size = headers
                    .get(CONTENT_LENGTH)
                    .and_then(|v| v.to_str().ok()?.parse().ok());
                Ok(Some(ManifestHead {
                    digest: declared_digest(headers),
                    media_type: declared_type(headers),
                    size,
                }))
            }
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Fetches a manifest. One asked for by digest must hash to it; and what the registry declares as its digest
    /// must be right.
    pub async fn manifest(&self, name: &RegistryId, reference: &Reference) -> Result<FetchedManifest> {
        let url = self.url(&format!("v2/{name}/manifests/{reference}"))?;
        let ask = Ask {
            accept: Some(ACCEPT),
            ..Ask::document(&url, name.as_str(), Purpose::Manifest)
        };
        let document = self.document(ask, MAX_MANIFEST_BYTES).await?;
        let (media_type, declared) = (
            declared_type(&document.headers),
            declared_digest(&document.headers),
        );
        let bytes = document.bytes;
        self.received(bytes.len());
        let payload = signed_payload(&bytes).unwrap_or_else(|| bytes.clone());
        let hash = |like: &Digest, of: &[u8]| {
            let mut hasher = like.algorithm().hasher();
            hasher.update(of);
            hasher.finish()
        };
        let asked = match reference {
            Reference::Digest(digest) => Some(digest),
            Reference::Tag(_) => None,
        };
        for expected in [asked, declared.as_ref()].into_iter().flatten() {
            if !expected.matches(&payload) && !expected.matches(&bytes) {
                let (expected, got) = (expected.clone(), hash(expected, &payload));
                return Err(RegistryError::Mismatch {
                    url: url.to_string(),
                    expected,
                    got,
                });
            }
        }
        let digest = asked.cloned().unwrap_or_else(|| Digest::sha256(&payload));
        Ok(FetchedManifest {
            bytes,
            media_type,
            digest,
        })
    }
}

fn declared_type(headers: &HeaderMap) -> Option<MediaType> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let essence = text.split(';').next().unwrap_or_default().trim();
    (!essence.is_empty()).then(|| MediaType::new(essence))
}

fn declared_digest(headers: &HeaderMap) -> Option<Digest> {
    headers
        .get("docker-content-digest")?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The digest by which registries know a signed manifest of schema 1: that of the part that was signed. None if the
/// bytes are no such manifest; then it is that of all bytes.
pub fn signed_digest(bytes: &[u8]) -> Option<Digest> {
    signed_payload(bytes).map(Digest::sha256)
}

/// The part of a signed schema 1 manifest that was signed; its digest is that of this part.
///
/// Source: Docker distribution `manifest-v2-1.md`, "Signed Manifests": the first `formatLength` bytes, then
/// `formatTail`. Only schema 1 is signed so, and only if the signatures are all that the bytes have beyond that
/// part: or else bytes with layers of somebody's choice would pass for those of the digest.
fn signed_payload(bytes: &[u8]) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Signed {
        signatures: Vec<Signature>,
    }
    #[derive(Deserialize)]
    struct Signature {
        protected: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Protected {
        format_length: usize,
        format_tail: String,
    }
    let signed: Signed = serde_json::from_slice(bytes).ok()?;
    let protected = URL_SAFE_NO_PAD
        .decode(&signed.signatures.first()?.protected)
        .ok()?;
    let protected: Protected = serde_json::from_slice(&protected).ok()?;
    let mut payload = bytes.get(..protected.format_length)?.to_vec();
    payload.extend(URL_SAFE_NO_PAD.decode(&protected.format_tail).ok()?);
    let mut whole: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    let part: Map<String, Value> = serde_json::from_slice(&payload).ok()?;
    whole.remove("signatures");
    (whole == part && part.get("schemaVersion") == Some(&Value::from(1))).then(|| payload.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reference_is_a_tag_or_a_digest() {
        let digest = Digest::sha256(b"x");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
        assert_eq!("1.35".parse(), Ok(Reference::Tag("1.35".parse().unwrap())));
        assert!("sha256:abc".parse::<Reference>().is_err());
    }

    /// Signs `payload` the way libtrust does, with `extra` slipped in behind the signed part.
    fn sign(payload: &str, extra: &str) -> String {
        let length = payload.len() - 2;
        let tail = URL_SAFE_NO_PAD.encode("\n}");
        let protected = format!(r#"{{"formatLength":{length},"formatTail":"{tail}","time":"t"}}"#);
        let protected = URL_SAFE_NO_PAD.encode(protected);
        format!(
            "{},{extra}\n   \"signatures\": [{{\"protected\": \"{protected}\"}}]\n}}",
            &payload[..length]
        )
    }

    #[test]
    fn the_signed_part_of_schema_1_is_what_its_digest_is_of() {
        let payload = "{\n   \"schemaVersion\": 1,\n   \"name\": \"a\"\n}";
        assert_eq!(
            signed_payload(sign(payload, "").as_bytes()).unwrap(),
            payload.as_bytes()
        );
        assert_eq!(signed_payload(payload.as_bytes()), None);
        // A length that lies is no way out of the bytes.
        let lies = URL_SAFE_NO_PAD.encode(r#"{"formatLength":99999999,"formatTail":""}"#);
        assert_eq!(
            signed_payload(format!(r#"{{"signatures":[{{"protected":"{lies}"}}]}}"#).as_bytes()),
            None
        );
    }

    #[test]
    fn nothing_passes_for_signed_that_the_digest_does_not_cover() {
        let payload = "{\n   \"schemaVersion\": 1,\n   \"name\": \"a\"\n}";
        assert_eq!(
            signed_payload(sign(payload, "\"fsLayers\": [],").as_bytes()),
            None
        );
        assert_eq!(signed_payload(sign(payload, "\"name\": \"b\",").as_bytes()), None);
        assert_eq!(
            signed_payload(sign(&payload.replace('1', "2"), "").as_bytes()),
            None
        );
    }
}
