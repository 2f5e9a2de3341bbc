//! Images from the store to a registry, and out of a registry.

use std::collections::VecDeque;
use std::io::{Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};

use ureq::http::Method;

use super::client::{ATTEMPTS, Access, Client, Payload, back_off, header};
use super::config::Registries;
use super::{PARALLEL, RegistryError};
use crate::progress::{Meter, Progress};
use crate::spec::{Descriptor, Document};
use crate::store::Store;
use crate::{Digest, Error, Name, Result, limits};

/// Pushes what a name of the store points at to a registry, under a name
/// there. Gives the digest that the registry has it by.
pub fn push(store: &Store, name: &Name, to: &Name, progress: &dyn Progress) -> Result<Digest> {
    // Nothing that is being pushed may be collected meanwhile.
    let _session = store.session()?;
    let target = store.reference(name)?.target;
    let client = connect(to, Access::Push)?;
    push_document(&client, store, &target, &to.reference(), progress)?;
    Ok(target.digest)
}

/// Deletes an image from a registry. A tag goes with its manifest, and with
/// every other tag of the same manifest.
pub fn delete(name: &Name) -> Result<Digest> {
    let client = connect(name, Access::Delete)?;
    let what = format!("image {name}");
    let digest = match name.digest() {
        Some(digest) => digest,
        None => {
            let accept = "application/vnd.oci.image.index.v1+json, \
                application/vnd.oci.image.manifest.v1+json, \
                application/vnd.docker.distribution.manifest.list.v2+json, \
                application/vnd.docker.distribution.manifest.v2+json";
            let url = client.url(&format!("manifests/{}", name.reference()));
            let response = client.request(
                &Method::HEAD,
                &url,
                &[("accept", accept)],
                Payload::None,
                &what,
                &[200],
            )?;
            header(&response, "docker-content-digest")
                .and_then(|digest| digest.parse().ok())
                .ok_or_else(|| client.nonsense(&what, "it does not say the image's digest"))?
        }
    };
    let url = client.url(&format!("manifests/{digest}"));
    client.request(&Method::DELETE, &url, &[], Payload::None, &what, &[200, 202])?;
    Ok(digest)
}

fn connect(name: &Name, access: Access) -> Result<Client> {
    if name.host().is_none() {
        return Err(RegistryError::NoHost(name.to_string()).into());
    }
    let registries = Registries::load()?;
    let [full] = &registries.candidates(name)?[..] else {
        return Err(RegistryError::NoHost(name.to_string()).into());
    };
    // Mirrors are for reading: the registry itself is the last.
    let endpoints = registries.endpoints(full)?;
    let Some(endpoint) = endpoints.last() else {
        return Err(RegistryError::NoHost(name.to_string()).into());
    };
    Ok(Client::connect(endpoint, access)?)
}

/// Pushes a manifest or an index after all it points at.
fn push_document(
    client: &Client,
    store: &Store,
    target: &Descriptor,
    reference: &str,
    progress: &dyn Progress,
) -> Result<()> {
    let bytes = store.small_blob("the manifest", target, limits::MANIFEST_BYTES)?;
    match Document::parse(&bytes, &target.media_type)? {
        Document::Manifest(manifest) => {
            let mut blobs: VecDeque<&Descriptor> = manifest.layers.iter().collect();
            blobs.push_back(&manifest.config);
            push_blobs(client, store, blobs, progress)?;
        }
        Document::Index(index) => {
            for manifest in &index.manifests {
                push_document(client, store, manifest, &manifest.digest.to_string(), progress)?;
            }
        }
    }
    client.request(
        &Method::PUT,
        &client.url(&format!("manifests/{reference}")),
        &[("content-type", &target.media_type)],
        Payload::Bytes(&bytes),
        &format!("image {reference}"),
        &[200, 201],
    )?;
    Ok(())
}

fn push_blobs(
    client: &Client,
    store: &Store,
    blobs: VecDeque<&Descriptor>,
    progress: &dyn Progress,
) -> Result<()> {
    let workers = PARALLEL.min(blobs.len());
    let queue = Mutex::new(blobs);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(blob) = next else { break };
                    if let Err(e) = push_blob(client, store, blob, progress) {
                        queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(e),
        None => Ok(()),
    }
}

/// Uploads one blob unless it is there, going on where the line broke.
fn push_blob(
    client: &Client,
    store: &Store,
    blob: &Descriptor,
    progress: &dyn Progress,
) -> Result<()> {
    let what = format!("blob {}", blob.digest);
    let there = client.request(
        &Method::HEAD,
        &client.url(&format!("blobs/{}", blob.digest)),
        &[],
        Payload::None,
        &what,
        &[200, 404],
    )?;
    if there.status() == 200 {
        return Ok(());
    }
    let begun = client.request(
        &Method::POST,
        &client.url("blobs/uploads/"),
        &[],
        Payload::None,
        &what,
        &[202],
    )?;
    let mut location = next_location(client, &begun, &what)?;
    let meter = progress.start("pushing", blob.digest, blob.size);
    let mut file = store.blob("layer", blob.digest)?;
    let mut sent = 0;
    let mut attempt = 0;
    while sent < blob.size {
        let path = store.blob_path(blob.digest);
        file.seek(SeekFrom::Start(sent)).map_err(|source| Error::Io {
            what: "reading",
            path,
            source,
        })?;
        let left = blob.size - sent;
        let range = format!("{sent}-{}", blob.size - 1);
        let mut headers = vec![("content-type", "application/octet-stream")];
        if sent > 0 {
            headers.push(("content-range", &range));
        }
        let mut stream = meter.reader((&mut file).take(left));
        let payload = Payload::Stream(&mut stream, left);
        match client.request(&Method::PATCH, &location, &headers, payload, &what, &[202]) {
            Ok(response) => {
                location = next_location(client, &response, &what)?;
                sent = blob.size;
            }
            Err(e @ RegistryError::Unreachable { .. }) => {
                attempt += 1;
                if attempt >= ATTEMPTS {
                    return Err(e.into());
                }
                std::thread::sleep(back_off(attempt));
                let status =
                    client.request(&Method::GET, &location, &[], Payload::None, &what, &[204])?;
                let have = received(&status);
                if have > sent {
                    attempt = 0;
                }
                sent = have.min(blob.size);
                location = next_location(client, &status, &what)?;
            }
            Err(e) => return Err(e.into()),
        }
    }
    finish_upload(client, &location, blob, &meter, &what)
}

fn finish_upload(
    client: &Client,
    location: &str,
    blob: &Descriptor,
    meter: &Meter,
    what: &str,
) -> Result<()> {
    let separator = if location.contains('?') { '&' } else { '?' };
    let url = format!("{location}{separator}digest={}", blob.digest);
    client.request(&Method::PUT, &url, &[], Payload::None, what, &[201, 204])?;
    meter.finish();
    Ok(())
}

fn next_location(
    client: &Client,
    response: &ureq::http::Response<ureq::Body>,
    what: &str,
) -> Result<String, RegistryError> {
    let location = header(response, "location")
        .ok_or_else(|| client.nonsense(what, "it does not say where to upload to"))?;
    client.absolute(location, what)
}

/// How many bytes of an upload have arrived: `Range: 0-N`, both inclusive,
/// and `0-0` for none, which is one byte fewer than it says.
fn received(response: &ureq::http::Response<ureq::Body>) -> u64 {
    header(response, "range")
        .and_then(|range| range.trim_start_matches("bytes=").split_once('-'))
        .and_then(|(_, last)| last.parse::<u64>().ok())
        .map_or(0, |last| if last == 0 { 0 } else { last + 1 })
}
