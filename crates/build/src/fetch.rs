//! `ADD` of a URL.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use guise_image::Hasher;

use crate::error::{Error, IoContext, Result};
use crate::tree::Selected;

/// More is not fetched.
const LARGEST: u64 = 16 << 30;

pub fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Fetches a file into a directory, where it is to be copied from.
pub fn fetch(url: &str, checksum: Option<&str>, into: &Path) -> Result<Selected> {
    let failed = |why: &dyn std::fmt::Display| Error::refused(format!("cannot fetch {url}: {why}"));
    let plain = url.split(['?', '#']).next().unwrap_or(url);
    let name = plain.rsplit('/').next().unwrap_or_default();
    if name.is_empty() || name == "." || name == ".." {
        return Err(Error::refused(format!("{url} names no file")));
    }
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .build()
        .into();
    let mut response = agent.get(url).call().map_err(|e| failed(&e))?;
    let path = into.join("fetched");
    let mut file = File::create(&path).at("making", &path)?;
    let mut hashing = Hashed { hasher: Hasher::sha256(), file: &mut file };
    let mut body = response.body_mut().with_config().limit(LARGEST).reader();
    io::copy(&mut body, &mut hashing).map_err(|e| failed(&e))?;
    let digest = hashing.hasher.finish().to_string();
    if let Some(expected) = checksum
        && expected != digest
    {
        return Err(Error::refused(format!("{url} has digest {digest}, not {expected}: refused")));
    }
    // As Docker has it: only the owner may read what came from elsewhere.
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::fchmod(&file, mode).at("setting the mode of", &path)?;
    let file: OwnedFd = File::open(&path).at("opening", &path)?.into();
    let stat = rustix::fs::fstat(&file).at("reading", &path)?;
    Ok(Selected { name: name.to_owned(), file, stat, items: Vec::new() })
}

struct Hashed<'a> {
    hasher: Hasher,
    file: &'a mut File,
}

impl io::Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
