//! What a client certificate entitles to: pure decisions on its extensions below 1.3.6.1.4.1.2312.9.
//!
//! Version 1 lists content urls, each in an extension of its own; version 3 has a compressed tree of them in one.
//! Both mean prefixes, taken here by whole parts of a path; a part that begins with `$` stands for any one part.

mod tree;

use x509_parser::{
    asn1_rs::{Any, FromDer as _, Tag},
    prelude::X509Certificate,
};

use self::tree::Tree;

/// Where the extensions are.
const NAMESPACE: &str = "1.3.6.1.4.1.2312.9.";
/// Order name, which makes a version 1 certificate an entitlement.
const ORDER: &str = "4.1";
/// Version of the certificate's scheme.
const VERSION: &str = "6";
/// Version 3: the tree.
const TREE: &str = "7";

/// What a certificate entitles to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entitlement {
    /// Version 1: content paths in parts.
    Paths(Vec<Vec<String>>),
    /// Version 3.
    Tree(Tree),
}

impl Entitlement {
    /// Reads a certificate. None if it is none, or entitles to nothing: an identity, a product, another version, or
    /// one whose paths can't be read.
    pub(crate) fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let ours: Vec<(String, &[u8])> = certificate
            .extensions()
            .iter()
            .filter_map(|extension| {
                let oid = extension.oid.to_id_string();
                Some((oid.strip_prefix(NAMESPACE)?.to_owned(), extension.value))
            })
            .collect();
        let value = |oid: &str| ours.iter().find(|(o, _)| o == oid).map(|(_, value)| *value);
        let version = match value(VERSION) {
            Some(value) => text(value)?,
            None => "1.0".to_owned(),
        };
        match version.split('.').next() {
            Some("1") => {
                value(ORDER)?;
                let urls = ours.iter().filter(|(oid, _)| is_content_url(oid));
                let paths = urls.filter_map(|(_, value)| Some(parts(&text(value)?)));
                // A url without parts would be everything.
                Some(Self::Paths(
                    paths.filter(|p: &Vec<String>| !p.is_empty()).collect(),
                ))
            }
            Some("3") => Tree::decode(content(value(TREE)?)?).map(Self::Tree),
            _ => None,
        }
    }

    /// Whether it covers a path.
    pub(crate) fn permits(&self, path: &str) -> bool {
        let path = parts(path);
        match self {
            Self::Paths(paths) => paths.iter().any(|entitled| {
                path.len() >= entitled.len()
                    && entitled.iter().zip(&path).all(|(word, part)| fits(word, part))
            }),
            Self::Tree(tree) => tree.permits(&path),
        }
    }
}

/// `2.<content id>.….1.6`: the url of a content set.
fn is_content_url(oid: &str) -> bool {
    oid.starts_with("2.") && oid.ends_with(".1.6")
}

/// Whether a word of an entitlement stands for a part of a path.
fn fits(word: &str, part: &str) -> bool {
    word.starts_with('$') || word == part
}

/// A path in parts, with empty ones, `.` and `..` resolved.
fn parts(path: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for part in path.trim().split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part.to_owned()),
        }
    }
    parts
}

/// The bytes within an extension's DER.
fn content(value: &[u8]) -> Option<&[u8]> {
    let (_, any) = Any::from_der(value).ok()?;
    let texts = [
        Tag::Utf8String,
        Tag::OctetString,
        Tag::PrintableString,
        Tag::Ia5String,
    ];
    texts.contains(&any.tag()).then_some(any.data)
}

fn text(value: &[u8]) -> Option<String> {
    String::from_utf8(content(value)?.to_vec()).ok()
}

/// The path within a url; a url without scheme is a path.
pub(crate) fn path_of_url(url: &str) -> &str {
    let rest = match url.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or_default(),
        None => url,
    };
    rest.split(['?', '#']).next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::{fs, path::Path};

    use rcgen::{CertificateParams, CustomExtension, KeyPair};
    use rustls_pki_types::{CertificateDer, pem::PemObject as _};

    use super::*;

    /// The tree of the original's test certificate: `/foo/path`.
    const EXAMPLE: &str = "78dacb4b2d4b2d6248cbcf6748cc294fac2c6628482cc96000005b8d07a304772f09e0";

    fn der_value(tag: u8, bytes: &[u8]) -> Vec<u8> {
        let mut der = vec![tag];
        match u8::try_from(bytes.len()) {
            Ok(length) if length < 128 => der.push(length),
            _ => der.extend([0x82, (bytes.len() >> 8) as u8, bytes.len() as u8]),
        }
        der.extend(bytes);
        der
    }

    fn certificate(extensions: &[(&[u64], u8, &[u8])]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        for (below, tag, value) in extensions {
            let oid: Vec<u64> = [1, 3, 6, 1, 4, 1, 2312, 9]
                .iter()
                .chain(*below)
                .copied()
                .collect();
            let value = der_value(*tag, value);
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(&oid, value));
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    const UTF8: u8 = 0x0c;
    const OCTETS: u8 = 0x04;

    fn version_1(urls: &[&str]) -> Vec<u8> {
        let ids: Vec<Vec<u64>> = (1..=urls.len() as u64).map(|n| vec![2, n, 1, 6]).collect();
        let mut extensions: Vec<(&[u64], u8, &[u8])> = vec![(&[4, 1], UTF8, b"an order")];
        extensions.extend(
            ids.iter()
                .zip(urls)
                .map(|(id, url)| (&**id, UTF8, url.as_bytes())),
        );
        certificate(&extensions)
    }

    #[test]
    fn version_1_permits_below_its_urls_by_whole_parts() {
        let urls = [
            "/foo/path/bar",
            "/content/beta/$basearch/",
            "//dist/$releasever/os",
            "/a.c/(x)",
            "/",
            "",
        ];
        let entitlement = Entitlement::of_certificate(&version_1(&urls)).unwrap();
        for (path, permitted) in [
            ("/foo/path/bar", true),
            ("/foo/path/bar/baz/images", true),
            ("/foo/path/barn", false),
            ("/foo/path", false),
            ("foo/path/bar/x", true),
            ("/content/beta/x86_64", true),
            ("/content/beta/x86_64/more", true),
            ("/content/beta", false),
            ("/content/alpha/x86_64", false),
            ("/dist/7/os", true),
            ("/dist/7/extra/os", false),
            ("/dist//7///os/", true),
            ("/foo/path/bar/../baz", false),
            ("/other/../foo/path/bar", true),
            ("/a.c/(x)/y", true),
            ("/abc/x", false),
            ("/", false),
            ("", false),
            ("/listing", false),
        ] {
            assert_eq!(entitlement.permits(path), permitted, "{path}");
        }
    }

    #[test]
    fn version_3_permits_what_its_tree_leads_to() {
        let tree = hex::decode(EXAMPLE).unwrap();
        let der = certificate(&[(&[6], UTF8, b"3.2"), (&[7], OCTETS, &tree)]);
        let entitlement = Entitlement::of_certificate(&der).unwrap();
        for (path, permitted) in [
            ("/foo/path", true),
            ("/foo/path/never", true),
            ("/foo/path/always/x", true),
            ("/foo", false),
            ("/foo/pathology", false),
            ("/foo/listing", false),
            ("/listing", false),
            ("/", false),
        ] {
            assert_eq!(entitlement.permits(path), permitted, "{path}");
        }
    }

    #[test]
    fn other_certificates_entitle_to_nothing() {
        let tree = hex::decode(EXAMPLE).unwrap();
        for (what, der) in [
            ("no extensions", certificate(&[])),
            ("an identity", certificate(&[(&[5, 1], UTF8, b"x")])),
            ("no order", certificate(&[(&[2, 1, 1, 6], UTF8, b"/foo")])),
            (
                "version 2",
                certificate(&[(&[6], UTF8, b"2.0"), (&[7], OCTETS, &tree)]),
            ),
            (
                "a version that is none",
                certificate(&[(&[6], UTF8, b"new"), (&[4, 1], UTF8, b"x")]),
            ),
            ("version 3 without a tree", certificate(&[(&[6], UTF8, b"3.0")])),
            (
                "a broken tree",
                certificate(&[(&[6], UTF8, b"3.0"), (&[7], OCTETS, b"garbage")]),
            ),
            ("a text that is no text", certificate(&[(&[6], UTF8, b"\xff")])),
            ("no certificate", b"garbage".to_vec()),
        ] {
            assert_eq!(Entitlement::of_certificate(&der), None, "{what}");
        }
    }

    /// Certificates of real tools, where they are at hand.
    #[test]
    fn certificates_made_elsewhere_are_judged_as_the_original_judged_them() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/crane/certs");
        if !dir.is_dir() {
            println!("skipped: no {}", dir.display());
            return;
        }
        let (baz, qux) = ("/foo/path/bar/baz/images", "/some/invalid/path/qux/images");
        let rhel = "/content/dist/rhel/server/7/x86_64/os";
        for (name, verdicts) in [
            ("v1", Some([true, false, true])),
            ("v3_vars", Some([true, false, true])),
            ("v3_expired", Some([true, false, true])),
            ("test_entitlement.cert-only", Some([true, false, false])),
            ("identity_san", None),
            ("identity_nosan", None),
            ("test_no_entitlement.cert-only", None),
            ("v1_no_order", None),
            ("v2", None),
            ("v3_no_payload", None),
            ("v3_bad_payload", None),
            ("garbage", None),
        ] {
            let pem = fs::read(dir.join(format!("{name}.pem"))).unwrap();
            let der = CertificateDer::from_pem_slice(&pem).ok();
            let entitlement = der.and_then(|der| Entitlement::of_certificate(&der));
            let got = entitlement.map(|e| [baz, qux, rhel].map(|path| e.permits(path)));
            assert_eq!(got, verdicts, "{name}");
        }
        // Trees of more than 127 nodes, and of a single one.
        for name in ["v3_big", "v3_single"] {
            let der = CertificateDer::from_pem_file(dir.join(format!("{name}.pem"))).unwrap();
            let entitlement = Entitlement::of_certificate(&der).unwrap();
            assert!(!entitlement.permits("/not/in/any"), "{name}");
        }
    }
}
