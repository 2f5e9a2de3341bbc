//! Image names: `debian:12`, `kernel:debian-12`, `localhost:5000/team/app@sha256:…`.
//!
//! A name has a first part that may be a registry's host (it has a dot or a
//! colon, or is `localhost`), a repository path, and a tag or a digest. Names
//! without a host are *short*; `crate::registry::config` and
//! `crate::debian` say what they resolve to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, Error};

/// A parsed image name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    host: Option<String>,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Name {
    /// The registry's host and port, if the name has one.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The repository within the registry, or the short name.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag: `latest` if the name has neither tag nor digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry's API wants after `/manifests/`.
    #[must_use]
    pub fn reference(&self) -> String {
        match self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag().unwrap_or("latest").to_owned(),
        }
    }

    /// The same image in a registry.
    #[must_use]
    pub fn with_host(&self, host: &str, path: &str) -> Self {
        Self { host: Some(host.to_owned()), path: path.to_owned(), ..self.clone() }
    }

    /// Host and path, without tag and digest.
    #[must_use]
    pub fn repository(&self) -> String {
        match &self.host {
            Some(host) => format!("{host}/{}", self.path),
            None => self.path.clone(),
        }
    }
}

fn is_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

fn valid_host(host: &str) -> bool {
    let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match rest.strip_prefix(':') {
                Some(port) => ("v6", Some(port)),
                None if rest.is_empty() => ("v6", None),
                None => return false,
            }
        }
        None => match host.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host, None),
        },
    };
    let labels = host.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    });
    labels && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// One component: lower-case letters and digits with single separators between them.
fn valid_component(part: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c))
        && edge(part.bytes().next())
        && edge(part.bytes().last())
        && !part.contains("..")
        && !part.contains("._")
        && !part.contains("_.")
}

fn valid_tag(tag: &str) -> bool {
    tag.len() <= 128
        && tag.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
        && tag.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_')
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why| Error::BadName(text.chars().take(300).collect(), why);
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| bad("what follows @ is no digest"))?))
            }
            None => (text, None),
        };
        let (host, rest) = match rest.split_once('/') {
            Some((first, rest)) if is_host(first) => (Some(first), rest),
            _ => (None, rest),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(bad("it has no repository"));
        }
        if path.len() > 255 {
            return Err(bad("it is longer than 255 characters"));
        }
        if !path.split('/').all(valid_component) {
            return Err(bad(
                "a repository is lower-case letters and digits, joined by . _ - and /",
            ));
        }
        if host.is_some_and(|host| host.len() > 255 || !valid_host(host)) {
            return Err(bad("its first part is no host name"));
        }
        if tag.is_some_and(|tag| !valid_tag(tag)) {
            return Err(bad("a tag is up to 128 letters, digits, . _ and -"));
        }
        Ok(Self {
            host: host.map(str::to_owned),
            path: path.to_owned(),
            // So that `app` and `app:latest` are one name.
            tag: tag.or(digest.is_none().then_some("latest")).map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository())?;
        if let Some(tag) = self.tag() {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
