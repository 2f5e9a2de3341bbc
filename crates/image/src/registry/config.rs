//! `registries.conf`, as Podman and Skopeo read it: mirrors, insecure and
//! blocked registries, aliases, and where short names are looked for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::RegistryError;
use crate::Name;

/// What is configured about registries.
#[derive(Debug, Default, Clone)]
pub struct Registries {
    search: Vec<String>,
    registries: Vec<Registry>,
    aliases: BTreeMap<String, String>,
}

/// Where a repository may be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub repository: String,
    /// Certificates need not be valid, and plain HTTP will do.
    pub insecure: bool,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    registry: Vec<Registry>,
    aliases: BTreeMap<String, String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Registry {
    prefix: Option<String>,
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Mirror {
    location: String,
    insecure: bool,
}

impl Registries {
    /// The user's or the system's configuration. Guise's own file goes before
    /// the one that it shares with Podman.
    pub fn load() -> Result<Self, RegistryError> {
        let user = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
        let bases = user.into_iter().chain([PathBuf::from("/etc")]);
        let candidates = bases.flat_map(|base| {
            ["guise/registries.conf", "containers/registries.conf"].map(|file| base.join(file))
        });
        match candidates.into_iter().find(|path| path.is_file()) {
            Some(path) => Self::read(&path),
            None => Ok(Self::default()),
        }
    }

    /// A file, and the directory of additions beside it.
    pub fn read(path: &Path) -> Result<Self, RegistryError> {
        let mut all = Self::default();
        all.add(path)?;
        let mut parts = path.as_os_str().to_owned();
        parts.push(".d");
        if let Ok(dir) = fs::read_dir(&parts) {
            let mut more: Vec<PathBuf> = dir
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|e| e == "conf"))
                .collect();
            more.sort();
            for path in more {
                all.add(&path)?;
            }
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path) -> Result<(), RegistryError> {
        let bad = |why: String| RegistryError::Config { path: path.to_owned(), why };
        let text = fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        let file: File = toml::from_str(&text).map_err(|e| bad(e.message().to_owned()))?;
        if let Some(search) = file.unqualified_search_registries {
            self.search = search;
        }
        self.registries.extend(file.registry);
        self.aliases.extend(file.aliases);
        Ok(())
    }

    /// The full names that a name may stand for, in the order to try them.
    pub fn candidates(&self, name: &Name) -> Result<Vec<Name>, RegistryError> {
        if name.host().is_some() {
            return Ok(vec![hub(name)]);
        }
        if let Some(target) = self.aliases.get(name.path()) {
            let target: Name = target.parse().map_err(|_| RegistryError::Protocol {
                host: "registries.conf".into(),
                what: format!("alias {}", name.path()),
                why: format!("{target:?} is no image name"),
            })?;
            if let Some(host) = target.host() {
                return Ok(vec![hub(&name.with_host(host, target.path()))]);
            }
        }
        let docker = ["docker.io".to_owned()];
        let search = if self.search.is_empty() { &docker[..] } else { &self.search };
        Ok(search
            .iter()
            .map(|entry| {
                let (host, path) = match entry.split_once('/') {
                    Some((host, above)) => (host, format!("{above}/{}", name.path())),
                    None => (entry.as_str(), name.path().to_owned()),
                };
                hub(&name.with_host(host, &path))
            })
            .collect())
    }

    /// Where to ask for a full name: mirrors first, the registry itself last.
    pub fn endpoints(&self, name: &Name) -> Result<Vec<Endpoint>, RegistryError> {
        let full = name.repository();
        let matching = self
            .registries
            .iter()
            .filter_map(|registry| {
                let prefix = registry.prefix.as_ref().or(registry.location.as_ref())?;
                matches(prefix, &full).map(|rest| (prefix.len(), registry, rest))
            })
            .max_by_key(|(length, ..)| *length);
        let Some((_, registry, rest)) = matching else {
            return Ok(vec![endpoint(&full, false)]);
        };
        if registry.blocked {
            return Err(RegistryError::Blocked(full));
        }
        let mut all: Vec<Endpoint> = registry
            .mirror
            .iter()
            .map(|mirror| endpoint(&format!("{}{rest}", mirror.location), mirror.insecure))
            .collect();
        let own = match &registry.location {
            Some(location) => format!("{location}{rest}"),
            None => full,
        };
        all.push(endpoint(&own, registry.insecure));
        Ok(all)
    }
}

/// What follows the prefix, if it matches up to a boundary. `*.example.com`
/// matches the hosts below.
fn matches<'a>(prefix: &str, full: &'a str) -> Option<&'a str> {
    let rest = match prefix.strip_prefix("*.") {
        Some(domain) => {
            let host = full.split('/').next().unwrap_or(full);
            let below = host.strip_suffix(domain)?.ends_with('.');
            return below.then(|| &full[host.len()..]);
        }
        None => full.strip_prefix(prefix)?,
    };
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn endpoint(full: &str, insecure: bool) -> Endpoint {
    let (host, repository) = full.split_once('/').unwrap_or((full, ""));
    // As every other tool has it: this machine is trusted.
    let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
    let local = bare == "localhost" || bare == "[::1]" || bare.starts_with("127.");
    Endpoint {
        host: host.to_owned(),
        repository: repository.to_owned(),
        insecure: insecure || local,
    }
}

/// Docker Hub's official images live below `library`.
fn hub(name: &Name) -> Name {
    match name.host() {
        Some("docker.io" | "index.docker.io") => {
            let path = if name.path().contains('/') {
                name.path().to_owned()
            } else {
                format!("library/{}", name.path())
            };
            name.with_host("docker.io", &path)
        }
        _ => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"
        unqualified-search-registries = ["reg.example", "other.example/mirror"]
        short-name-mode = "enforcing"

        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "cache.example:5000/hub"
        insecure = true

        [[registry]]
        location = "bad.example"
        blocked = true

        [[registry]]
        prefix = "*.corp.example"
        location = "gate.example"

        [aliases]
        "fedora" = "registry.fedoraproject.org/fedora"
    "#;

    fn conf() -> (tempfile::TempDir, Registries) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.conf");
        fs::write(&path, CONF).unwrap();
        let registries = Registries::read(&path).unwrap();
        (dir, registries)
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn short_names_resolve_in_order() {
        let (_dir, conf) = conf();
        let names = |text| -> Vec<String> {
            conf.candidates(&name(text)).unwrap().iter().map(Name::to_string).collect()
        };
        assert_eq!(names("app:1"), ["reg.example/app:1", "other.example/mirror/app:1"]);
        assert_eq!(names("fedora:40"), ["registry.fedoraproject.org/fedora:40"]);
        assert_eq!(names("docker.io/debian"), ["docker.io/library/debian:latest"]);
        let hub = Registries::default().candidates(&name("alpine")).unwrap();
        assert_eq!(hub[0].to_string(), "docker.io/library/alpine:latest");
    }

    #[test]
    fn mirrors_come_first() {
        let (_dir, conf) = conf();
        let all = conf.endpoints(&name("docker.io/library/debian")).unwrap();
        assert_eq!(
            all[0],
            Endpoint {
                host: "cache.example:5000".into(),
                repository: "hub/library/debian".into(),
                insecure: true
            }
        );
        assert_eq!(all[1].host, "docker.io");
        assert!(!all[1].insecure);
        let gate = conf.endpoints(&name("a.corp.example/x/y")).unwrap();
        assert_eq!((&*gate[0].host, &*gate[0].repository), ("gate.example", "x/y"));
        assert!(conf.endpoints(&name("bad.example/x")).is_err());
        // A prefix ends at a boundary.
        assert_eq!(conf.endpoints(&name("bad.example2/x")).unwrap()[0].host, "bad.example2");
    }

    #[test]
    fn this_machine_is_trusted() {
        let conf = Registries::default();
        for (text, insecure) in [
            ("localhost:5000/a", true),
            ("127.0.0.1:5000/a", true),
            ("[::1]:5000/a", true),
            ("localhost.example/a", false),
        ] {
            assert_eq!(conf.endpoints(&name(text)).unwrap()[0].insecure, insecure, "{text}");
        }
    }
}
