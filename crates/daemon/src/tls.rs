//! The certificate by which other hosts know this daemon.
//!
//! Where none is given one is made, and kept: who was told its fingerprint goes on knowing
//! it. It names this host, and signs itself.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guise_api::client::fingerprint;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{DaemonError, io};

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What accepts TLS, and what it is known by.
pub struct Tls {
    pub acceptor: TlsAcceptor,
    pub fingerprint: String,
}

fn bad(path: &Path, why: &dyn std::fmt::Display) -> DaemonError {
    DaemonError::Certificate(path.to_owned(), why.to_string())
}

/// Reads these files, or those in the folder, which are made where there are none.
pub fn load(files: Option<&Files>, folder: &Path, address: IpAddr) -> Result<Tls, DaemonError> {
    let own = Files { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
    if files.is_none() && !(own.certificate.exists() && own.key.exists()) {
        make(&own, folder, address)?;
    }
    let Files { certificate, key } = files.unwrap_or(&own);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| bad(certificate, &error))?;
    let first = chain.first().ok_or_else(|| bad(certificate, &"there is none in it"))?;
    let fingerprint = fingerprint(first);
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(|error| bad(certificate, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), fingerprint })
}

fn make(files: &Files, folder: &Path, address: IpAddr) -> Result<(), DaemonError> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !address.is_unspecified() && !address.is_loopback() {
        names.push(address.to_string());
    }
    names.extend(Some(host).filter(|host| host.is_ascii() && !host.is_empty()));
    names.dedup();
    let failed = |error: rcgen::Error| bad(&files.certificate, &error);
    let mut parameters = rcgen::CertificateParams::new(names).map_err(failed)?;
    // What is known by its fingerprint lasts until it is taken away.
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2099, 1, 1);
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let certificate = parameters.self_signed(&key).map_err(failed)?;
    fs::create_dir_all(folder).map_err(io("make", folder))?;
    // The certificate last: when it is there, its key is.
    write(&files.key, &key.serialize_pem())?;
    write(&files.certificate, &certificate.pem())
}

/// Puts a file in its place as a whole, for nobody else to read.
fn write(path: &Path, text: &str) -> Result<(), DaemonError> {
    let new = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let mut file = options.open(&new).map_err(io("make", &new))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path))
        .map_err(io("write", path))
}

#[cfg(test)]
mod tests;
