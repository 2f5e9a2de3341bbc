//! Images from registries into the store. Blobs first, then the manifest:
//! what a name can reach is whole at any time.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Mutex, PoisonError};

use ureq::http::Method;

use super::client::{ATTEMPTS, Access, Client, Payload, back_off, header, read_bounded};
use super::config::Registries;
use super::{PARALLEL, RegistryError};
use crate::progress::Progress;
use crate::spec::{Config, Descriptor, Document, Manifest, Platform, media};
use crate::store::{Session, choose};
use crate::{Digest, Error, Name, Result, limits};

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Pulls an image and gives its manifest's descriptor. Does not name it.
pub fn pull(
    session: &Session<'_>,
    name: &Name,
    platform: Option<&Platform>,
    progress: &dyn Progress,
) -> Result<Descriptor> {
    let registries = Registries::load()?;
    let candidates = registries.candidates(name)?;
    let mut first_error = None;
    for candidate in &candidates {
        for endpoint in registries.endpoints(candidate)? {
            let client = match Client::connect(&endpoint, Access::Pull) {
                Ok(client) => client,
                Err(e) => {
                    first_error.get_or_insert(e.into());
                    continue;
                }
            };
            match pull_from(&client, session, candidate, platform, progress) {
                Ok(target) => return Ok(target),
                // Another mirror, another registry may do better.
                Err(Error::Registry(e)) => {
                    first_error.get_or_insert(Error::Registry(e));
                }
                Err(e) => return Err(e),
            }
        }
    }
    if name.host().is_none() && candidates.len() > 1 {
        let tried: Vec<String> = candidates.iter().map(Name::repository).collect();
        return Err(
            RegistryError::NoneHas { name: name.to_string(), tried: tried.join(", ") }.into()
        );
    }
    Err(first_error.unwrap_or_else(|| Error::NoSuchImage(name.to_string())))
}

fn pull_from(
    client: &Client,
    session: &Session<'_>,
    name: &Name,
    platform: Option<&Platform>,
    progress: &dyn Progress,
) -> Result<Descriptor> {
    let (bytes, target) = fetch_document(client, &name.reference(), name.digest(), "")?;
    match Document::parse(&bytes, &target.media_type)? {
        Document::Manifest(manifest) => {
            fetch_image(client, session, &target, &bytes, &manifest, platform, progress)?;
            Ok(target)
        }
        Document::Index(index) => {
            let host = Platform::host();
            let wanted = platform.unwrap_or(&host);
            let chosen = choose(&index.manifests, wanted, &name.to_string())?;
            let (bytes, fetched) = fetch_document(
                client,
                &chosen.digest.to_string(),
                Some(chosen.digest),
                &chosen.media_type,
            )?;
            let Document::Manifest(manifest) = Document::parse(&bytes, &chosen.media_type)? else {
                return Err(Error::malformed(format!("image {name}"), "an index in an index"));
            };
            fetch_image(client, session, &fetched, &bytes, &manifest, None, progress)?;
            Ok(fetched)
        }
    }
}

/// Fetches a manifest or an index. The digest is the one asked for, or else
/// that of what came, which the registry must agree to.
fn fetch_document(
    client: &Client,
    reference: &str,
    expected: Option<Digest>,
    media_type: &str,
) -> Result<(Vec<u8>, Descriptor)> {
    let what = format!("image {reference}");
    let mut response = client.request(
        &Method::GET,
        &client.url(&format!("manifests/{reference}")),
        &[("accept", ACCEPT)],
        Payload::None,
        &what,
        &[200],
    )?;
    let said = header(&response, "content-type").unwrap_or("");
    let said = said.split(';').next().unwrap_or("").trim().to_owned();
    let announced = header(&response, "docker-content-digest").and_then(|d| d.parse().ok());
    let bytes =
        read_bounded(&mut response, limits::MANIFEST_BYTES).map_err(|e| client.unreachable(&e))?;
    let digest = match expected.or(announced) {
        None => Digest::of(&bytes),
        Some(expected) => {
            let mut hasher = expected.hasher();
            hasher.update(&bytes);
            let found = hasher.finish();
            if found != expected {
                return Err(Error::wrong_digest(what, expected, found));
            }
            expected
        }
    };
    let media_type = if media_type.is_empty() { &said } else { media_type };
    let document = Document::parse(&bytes, media_type)?;
    // A registry that serves files says text/plain; the store must know better.
    let target = Descriptor::new(document.media_type(), digest, bytes.len() as u64);
    Ok((bytes, target))
}

/// Fetches what a manifest needs, checks that it fits together, and stores
/// the manifest.
fn fetch_image(
    client: &Client,
    session: &Session<'_>,
    target: &Descriptor,
    bytes: &[u8],
    manifest: &Manifest,
    platform: Option<&Platform>,
    progress: &dyn Progress,
) -> Result<()> {
    // The configuration first: it tells whether the rest is wanted at all.
    fetch_blob(client, session, &manifest.config, progress)?;
    if manifest.config.media_type != media::KERNEL_CONFIG {
        let config =
            session.small_blob("the configuration", &manifest.config, limits::CONFIG_BYTES)?;
        let config = Config::of(manifest, &config, &target.digest.to_string())?;
        if let Some(platform) = platform
            && !config.platform().serves(platform)
        {
            return Err(Error::NoPlatform {
                image: "the image".into(),
                wanted: platform.to_string(),
                available: config.platform().to_string(),
            });
        }
    }
    let queue: Mutex<VecDeque<&Descriptor>> = Mutex::new(manifest.layers.iter().collect());
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(manifest.layers.len()) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(layer) = next else { break };
                    if let Err(e) = fetch_blob(client, session, layer, progress) {
                        queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                    }
                }
            });
        }
    });
    if let Some(e) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(e);
    }
    session.add_known(target, bytes)
}

/// Fetches one blob, going on where an earlier attempt broke off.
fn fetch_blob(
    client: &Client,
    session: &Session<'_>,
    blob: &Descriptor,
    progress: &dyn Progress,
) -> Result<()> {
    let Some(mut partial) = session.partial(blob)? else { return Ok(()) };
    let meter = progress.start("pulling", blob.digest, blob.size);
    meter.add(partial.have());
    let what = format!("blob {}", blob.digest);
    let url = client.url(&format!("blobs/{}", blob.digest));
    let mut buffer = vec![0; 128 << 10];
    let mut attempt = 0;
    while partial.have() < blob.size {
        let had = partial.have();
        let range = format!("bytes={had}-");
        let headers = [("range", range.as_str())];
        let headers = if had > 0 { &headers[..] } else { &[] };
        let response =
            client.request(&Method::GET, &url, headers, Payload::None, &what, &[200, 206])?;
        if had > 0 && !resumes_at(&response, had) {
            // The registry cannot resume: from the beginning, then.
            partial.restart()?;
        }
        let mut body = response.into_body().into_reader();
        let broke_off = loop {
            match body.read(&mut buffer) {
                Ok(0) => break None,
                Ok(_) if meter.is_cancelled() => return Err(Error::Cancelled),
                Ok(n) => {
                    partial.push(&buffer[..n])?;
                    meter.add(n as u64);
                }
                Err(e) => break Some(e.to_string()),
            }
        };
        if partial.have() < blob.size {
            // As long as there is progress, the line is merely bad.
            attempt = if partial.have() > had { 1 } else { attempt + 1 };
            if attempt >= ATTEMPTS {
                let why = broke_off.unwrap_or_else(|| "it ends the transfer early".into());
                return Err(client.unreachable(&why).into());
            }
            std::thread::sleep(back_off(attempt));
        }
    }
    meter.finish();
    partial.finish()
}

/// Whether an answer begins where we asked it to.
fn resumes_at(response: &ureq::http::Response<ureq::Body>, offset: u64) -> bool {
    response.status() == 206
        && header(response, "content-range")
            .and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok())
            == Some(offset)
}
