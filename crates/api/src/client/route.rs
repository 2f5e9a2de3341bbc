//! The way to a daemon: this host's socket, or another host by TLS.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};

/// The port of a daemon that listens for other hosts, where none is said.
pub const DEFAULT_PORT: u16 = 8443;
/// How long another host may take to answer a connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An address that is none, or trust that cannot be established.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    #[error("{0} is no address of a daemon; it is https://HOST[:PORT]")]
    Address(String),
    #[error("{0} would send everything in the clear; that is only for this host's own addresses")]
    Clear(String),
    #[error("{0:?} is no fingerprint; it is sha256: and 64 hexadecimal digits")]
    Fingerprint(String),
    #[error("certificates in {path}: {why}")]
    Roots { path: String, why: String },
}

/// By what the other host's certificate is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// This host's certificate authorities.
    System,
    /// The authorities, or the certificate itself, in a file.
    File(PathBuf),
    /// The SHA-256 of the certificate, as the daemon tells it.
    Fingerprint(String),
}

#[derive(Clone)]
pub enum Route {
    Socket(PathBuf),
    Tcp { host: String, port: u16, tls: Option<TlsConnector> },
}

/// `sha256:` and hexadecimal digits of a certificate.
#[must_use]
pub fn fingerprint(certificate: &[u8]) -> String {
    let digits: String =
        Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

impl Route {
    /// `https://HOST[:PORT]`, or `http://` and an address of this host itself.
    pub fn to(url: &str, trust: &Trust) -> Result<Route, RouteError> {
        let bad = || RouteError::Address(url.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?)
            }
            _ => (authority, DEFAULT_PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || host.contains(['/', '@', '?', '#', ' ']) {
            return Err(bad());
        }
        let tls = match scheme {
            "https" => Some(TlsConnector::from(Arc::new(config(trust)?))),
            "http" => {
                let own = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
                if !own && host != "localhost" {
                    return Err(RouteError::Clear(url.to_owned()));
                }
                None
            }
            _ => return Err(bad()),
        };
        Ok(Route::Tcp { host, port, tls })
    }

    pub(super) async fn open(&self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Route::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Route::Tcp { host, port, tls } => {
                let connect = async {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    let Some(tls) = tls else { return Ok(Box::new(stream) as Box<dyn Stream>) };
                    let name = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
                    Ok(Box::new(tls.connect(name, stream).await?) as Box<dyn Stream>)
                };
                match tokio::time::timeout(PATIENCE, connect).await {
                    Ok(done) => done,
                    Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
                }
            }
        }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Route::Socket(path) => write!(f, "{}", path.display()),
            Route::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
        }
    }
}

/// What is wrong with what another host showed of itself, and what to do about it.
pub(super) fn distrust(error: &std::io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<TlsError>()?;
    let TlsError::InvalidCertificate(why) = error else {
        return Some(format!("{error}; it may listen without TLS, or be no daemon at all"));
    };
    let owner = "its owner is told of the right one by guise info";
    Some(match why {
        CertificateError::UnknownIssuer => format!(
            "nobody vouches for its certificate; say which one it has with --fingerprint: {owner}"
        ),
        CertificateError::ApplicationVerificationFailure => {
            format!("its certificate has another fingerprint than the one that was said; {owner}")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; whoever owns the daemon gives it another one with \
             --tls-cert"
                .to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is for the future; see that both hosts have the right time".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!(
                "its certificate is for another name; use that one, or say which certificate it \
                 has with --fingerprint: {owner}"
            )
        }
        _ => format!("{error}; {owner}"),
    })
}

fn config(trust: &Trust) -> Result<ClientConfig, RouteError> {
    let failed = |path: &str, why: &dyn std::fmt::Display| RouteError::Roots {
        path: path.to_owned(),
        why: why.to_string(),
    };
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed("this program", &error))?;
    let mut roots = RootCertStore::empty();
    match trust {
        Trust::Fingerprint(text) => {
            let digits = text.strip_prefix("sha256:").unwrap_or_default();
            if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(RouteError::Fingerprint(text.clone()));
            }
            let pinned = Pinned { fingerprint: text.to_ascii_lowercase(), provider };
            return Ok(builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(pinned))
                .with_no_client_auth());
        }
        Trust::File(path) => {
            let name = path.display().to_string();
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| failed(&name, &error))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| failed(&name, &error))?;
                roots.add(certificate).map_err(|error| failed(&name, &error))?;
            }
            if roots.is_empty() {
                return Err(failed(&name, &"there are none"));
            }
        }
        Trust::System => {
            // Some of a system's may be of no use: the others are what counts.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Takes exactly one certificate, whoever signed it, from who has its key.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if fingerprint(certificate) == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
