//! TLS: the server's certificate, looked after, and clients' certificates, taken without judging them yet.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::aws_lc_rs,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};

use crate::{TlsFiles, clients::certificates, reloaded::Reloaded};

/// The settings of handshakes, made anew when a file changes.
pub(crate) fn open(files: &TlsFiles, asks_clients: bool) -> Reloaded<ServerConfig> {
    let TlsFiles { certificate, key } = files.clone();
    Reloaded::open(vec![certificate.clone(), key.clone()], move || {
        server_config(&certificate, &key, asks_clients)
    })
}

fn server_config(certificate: &PathBuf, key: &PathBuf, asks_clients: bool) -> Result<ServerConfig, String> {
    let chain = certificates(certificate)?;
    let key_der = PrivateKeyDer::from_pem_file(key)
        .map_err(|e| format!("can't read a private key from {}: {e}", key.display()))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS can't be set up: {e}"))?;
    let builder = if asks_clients {
        builder.with_client_cert_verifier(Arc::new(AnyClient))
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(chain, key_der).map_err(|e| {
        format!(
            "the certificate {} and the key {} don't go together: {e}",
            certificate.display(),
            key.display()
        )
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Takes any certificate that the client proves to own. Whether it counts is found out when something protected is
/// asked for: a handshake that fails would tell more than an absent repository, and shut open ones, too.
#[derive(Debug)]
struct AnyClient;

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints: they would be those of the authority at the handshake's settings, and clients with one certificate
    /// send it anyhow.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
