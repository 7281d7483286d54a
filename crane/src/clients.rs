//! Whom a request comes from, and what that client may see.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use http::HeaderMap;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime, pem::PemObject as _};

use crate::{
    Entitlements,
    entitlement::{Entitlement, path_of_url},
    reloaded::Reloaded,
    tokens::{self, Credential, TokenGate},
};

/// Header in which a proxy hands a client's certificate on, as nginx's `$ssl_client_escaped_cert` gives it.
pub(crate) const CERTIFICATE_HEADER: &str = "ssl-client-cert";
/// How long a verdict on a connection's certificate holds; checking its signatures for each layer costs too much.
const VERDICT_HOLDS: Duration = Duration::from_secs(10);
/// Certificates in a chain at most.
const CHAIN: usize = 8;

/// Who says which certificates are good.
pub(crate) struct Authority {
    pub(crate) verifier: Arc<dyn ClientCertVerifier>,
}

impl Authority {
    /// From the files in the settings, looked after.
    pub(crate) fn open(settings: &Entitlements) -> Reloaded<Self> {
        let files = std::iter::once(settings.ca.clone()).chain(settings.crl.clone());
        let settings = settings.clone();
        Reloaded::open(files.collect(), move || {
            Self::read(&settings.ca, settings.crl.as_ref())
        })
    }

    fn read(ca: &PathBuf, crl: Option<&PathBuf>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots
                .add(certificate)
                .map_err(|e| format!("{} has a certificate of no use: {e}", ca.display()))?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        if let Some(crl) = crl {
            let lists: Result<Vec<_>, _> =
                CertificateRevocationListDer::pem_file_iter(crl).and_then(Iterator::collect);
            let lists =
                lists.map_err(|e| format!("can't read revocation lists from {}: {e}", crl.display()))?;
            if lists.is_empty() {
                return Err(format!("{} has no revocation list", crl.display()));
            }
            builder = builder.with_crls(lists).enforce_revocation_expiration();
        }
        let verifier = builder
            .build()
            .map_err(|e| format!("{} is of no use for checking clients: {e}", ca.display()))?;
        Ok(Self { verifier })
    }

    /// What a chain entitles to, if it leads to the authority, holds now, and isn't revoked.
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Option<Arc<Entitlement>> {
        let (end, between) = chain.split_first()?;
        match self.verifier.verify_client_cert(end, between, UnixTime::now()) {
            Ok(_) => Entitlement::of_certificate(end).map(Arc::new),
            Err(error) => {
                tracing::debug!(%error, "a client's certificate counts for nothing");
                None
            }
        }
    }
}

/// Certificates in a PEM file, at least one.
pub(crate) fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    match read {
        Ok(read) if read.is_empty() => Err(format!("{} has no certificate", file.display())),
        Ok(read) => Ok(read),
        Err(error) => Err(format!(
            "can't read certificates from {}: {error}",
            file.display()
        )),
    }
}

/// The other end of a connection.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// What the client showed in the handshake and proved to own.
    pub(crate) certificate: Option<Arc<Shown>>,
}

/// A chain of certificates, its own first, and the last verdict on it.
pub(crate) struct Shown {
    chain: Vec<CertificateDer<'static>>,
    verdict: Mutex<Option<Verdict>>,
}

struct Verdict {
    by: Arc<Authority>,
    at: Instant,
    entitlement: Option<Arc<Entitlement>>,
}

impl Shown {
    pub(crate) fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        Self {
            chain,
            verdict: Mutex::new(None),
        }
    }

    fn entitlement(&self, authority: &Arc<Authority>) -> Option<Arc<Entitlement>> {
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*verdict
            && Arc::ptr_eq(&last.by, authority)
            && last.at.elapsed() < VERDICT_HOLDS
        {
            return last.entitlement.clone();
        }
        let entitlement = authority.judge(&self.chain);
        *verdict = Some(Verdict {
            by: Arc::clone(authority),
            at: Instant::now(),
            entitlement: entitlement.clone(),
        });
        entitlement
    }
}

/// How clients of protected repositories are told.
pub(crate) struct Gate {
    pub(crate) authority: Arc<Reloaded<Authority>>,
    trusted_proxies: Vec<IpNet>,
}

impl Gate {
    pub(crate) fn open(settings: &Entitlements) -> Self {
        Self {
            authority: Arc::new(Authority::open(settings)),
            trusted_proxies: settings.trusted_proxies.clone(),
        }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted_proxies.iter().any(|net| net.contains(&address))
    }
}

/// The client of one request. Its certificate and its token are looked at only if something protected is asked for.
pub(crate) struct Viewer {
    gate: Option<Arc<Gate>>,
    peer: Option<Arc<Peer>>,
    handed_on: Option<String>,
    entitlement: OnceLock<Option<Arc<Entitlement>>>,
    tokens: Option<Arc<TokenGate>>,
    bearer: Option<String>,
    credential: OnceLock<Credential>,
}

impl Viewer {
    pub(crate) fn new(
        gate: Option<Arc<Gate>>,
        tokens: Option<Arc<TokenGate>>,
        peer: Option<Arc<Peer>>,
        headers: &HeaderMap,
    ) -> Self {
        Self {
            handed_on: gate.as_ref().and_then(|_| handed_on(headers)),
            gate,
            peer,
            entitlement: OnceLock::new(),
            bearer: tokens.as_ref().and_then(|_| tokens::bearer(headers)),
            tokens,
            credential: OnceLock::new(),
        }
    }

    /// Whether the client may know that a repository is there: by an entitlement to its whole url path, whatever
    /// file is asked for, or by a token for its name.
    pub(crate) fn may_see(&self, protected: bool, url: &str, registry_id: &str) -> bool {
        !protected
            || self.credential().opens(registry_id)
            || self.entitlement().is_some_and(|e| e.permits(path_of_url(url)))
    }

    /// Whether the client has shown a certificate that entitles to something.
    pub(crate) fn is_entitled(&self) -> bool {
        self.entitlement().is_some()
    }

    fn entitlement(&self) -> Option<&Arc<Entitlement>> {
        self.entitlement.get_or_init(|| self.find_entitlement()).as_ref()
    }

    /// What the client has shown in `Authorization`.
    pub(crate) fn credential(&self) -> &Credential {
        self.credential
            .get_or_init(|| match (&self.tokens, &self.bearer) {
                (Some(tokens), Some(bearer)) => tokens.judge(bearer),
                _ => Credential::None,
            })
    }

    fn find_entitlement(&self) -> Option<Arc<Entitlement>> {
        let (gate, peer) = (self.gate.as_ref()?, self.peer.as_ref()?);
        let authority = gate.authority.current()?;
        // Behind a proxy the connection's certificate would be the proxy's own.
        if gate.trusts(peer.address.ip()) {
            let chain = chain_of_header(self.handed_on.as_deref()?)?;
            return authority.judge(&chain);
        }
        peer.certificate.as_ref()?.entitlement(&authority)
    }
}

/// What a proxy says of a client's certificate. Of two such headers one is not the proxy's, so neither counts.
fn handed_on(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(CERTIFICATE_HEADER).iter();
    match (values.next(), values.next()) {
        (Some(one), None) => one.to_str().ok().map(ToOwned::to_owned),
        _ => None,
    }
}

/// Certificates in PEM, percent-encoded.
fn chain_of_header(value: &str) -> Option<Vec<CertificateDer<'static>>> {
    let pem = percent_decode_str(value).collect::<Vec<u8>>();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).take(CHAIN).collect();
    chain.ok().filter(|chain| !chain.is_empty())
}
