//! TLS to the broker, as strict as upstream is and no stricter.
//!
//! Upstream verifies the broker only when `ssl_ca_file` is set, and its name only when the transport URL
//! has exactly one host (`impl_rabbit.py`, `_fetch_ssl_params`). A deployment that works with stock
//! Cinder must work unchanged, so the same three levels exist here; the unverified one is logged.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

use crate::config::TlsConfig;
use crate::error::{Code, Error, Result};

/// Builds the client's side of TLS. Reads files: call it outside async tasks, or once at start.
///
/// # Errors
/// [`Code::Config`] naming the file that cannot be read or used.
pub(super) fn client_config(tls: &TlsConfig, hosts: usize) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Code::Config, "TLS cannot be set up").caused_by(e))?;
    let verifier: Arc<dyn ServerCertVerifier> = match &tls.ca {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(ca, "ssl_ca_file")? {
                roots.add(certificate).map_err(|e| unusable(ca, "ssl_ca_file").caused_by(e))?;
            }
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| unusable(ca, "ssl_ca_file").caused_by(e))?;
            if hosts == 1 { inner } else { Arc::new(AnyName(inner)) }
        }
        None => Arc::new(Unverified(provider)),
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    match (&tls.cert, &tls.key) {
        (Some(cert), key) => {
            // As Python's ssl: a certificate file may hold its key too.
            let key_path = key.as_ref().unwrap_or(cert);
            let key = PrivateKeyDer::from_pem_file(key_path)
                .map_err(|e| unusable(key_path, "ssl_key_file").caused_by(e))?;
            builder
                .with_client_auth_cert(certificates(cert, "ssl_cert_file")?, key)
                .map_err(|e| unusable(cert, "ssl_cert_file").caused_by(e))
        }
        (None, _) => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(path: &Path, option: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| unusable(path, option).caused_by(e))?;
    if found.is_empty() { Err(unusable(path, option).detail("no certificate in it")) } else { Ok(found) }
}

fn unusable(path: &Path, option: &str) -> Error {
    Error::new(Code::Config, format!("[oslo_messaging_rabbit] {option}: cannot use {}", path.display()))
}

/// Verifies the chain but not the name: several hosts share one list of names in upstream's eyes.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        // The chain is verified before the name, so an error about the name means the chain is good.
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Encrypts without knowing the peer: upstream's behaviour without `ssl_ca_file`.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let tls = TlsConfig { ca: Some("/nonexistent/ca.pem".into()), ..TlsConfig::default() };
        let error = client_config(&tls, 1).unwrap_err();
        assert_eq!(error.user(), "[oslo_messaging_rabbit] ssl_ca_file: cannot use /nonexistent/ca.pem");
        assert!(client_config(&TlsConfig::default(), 1).is_ok());
    }
}
