//! Who we are to a registry: the files that `docker login` and `podman login`
//! write, and the helper programs they name.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use serde::Deserialize;

use super::RegistryError;

/// What to show a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// A token that gets tokens.
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets stay out of logs.
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// The value of a basic Authorization header.
    pub fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                let plain = format!("{user}:{password}");
                Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain)))
            }
            Self::Identity(_) => None,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthFile {
    auths: HashMap<String, Auth>,
    #[serde(rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// The files to look into, most specific first.
pub fn files() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(file) = var("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = var("HOME");
    let below_home = |path: &str| home.as_ref().map(|home| home.join(path));
    [
        var("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        var("XDG_CONFIG_HOME")
            .map(|dir| dir.join("containers/auth.json"))
            .or_else(|| below_home(".config/containers/auth.json")),
        var("DOCKER_CONFIG")
            .map(|dir| dir.join("config.json"))
            .or_else(|| below_home(".docker/config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Finds credentials for a repository. The first file that has some wins.
pub fn find(
    files: &[PathBuf],
    host: &str,
    repository: &str,
) -> Result<Option<Credentials>, RegistryError> {
    for file in files {
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => {
                return Err(RegistryError::Config { path: file.clone(), why: e.to_string() });
            }
        };
        let parsed: AuthFile = serde_json::from_slice(&text)
            .map_err(|e| RegistryError::Config { path: file.clone(), why: e.to_string() })?;
        if let Some(found) = parsed.find(file, host, repository)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

impl AuthFile {
    fn find(
        &self,
        file: &Path,
        host: &str,
        repository: &str,
    ) -> Result<Option<Credentials>, RegistryError> {
        let keys = keys(host, repository);
        for key in &keys {
            if let Some(helper) = self.helpers.get(key) {
                return ask(helper, key);
            }
        }
        for key in &keys {
            if let Some(auth) = self.auths.get(key)
                && let Some(found) = auth.decode(file)?
            {
                return Ok(Some(found));
            }
        }
        match &self.store {
            Some(helper) => ask(helper, &keys[keys.len() - 1]),
            None => Ok(None),
        }
    }
}

/// Under which keys a file may have a repository: its path, each shorter one,
/// the host. Docker Hub has a name of its own there.
fn keys(host: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = Some(repository);
    while let Some(here) = path {
        keys.push(format!("{host}/{here}"));
        path = here.rsplit_once('/').map(|(above, _)| above);
    }
    keys.push(host.to_owned());
    keys.push(format!("https://{host}"));
    if host == "docker.io" {
        keys.push("index.docker.io".into());
        keys.push("https://index.docker.io/v1/".into());
    } else {
        // Helpers are asked by the last key, which is the plain host.
        keys.push(host.to_owned());
    }
    keys
}

impl Auth {
    fn decode(&self, file: &Path) -> Result<Option<Credentials>, RegistryError> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::Identity(self.identitytoken.clone())));
        }
        if self.auth.is_empty() {
            let some = !self.username.is_empty();
            return Ok(some.then(|| Credentials::Password {
                user: self.username.clone(),
                password: self.password.clone(),
            }));
        }
        let bad = || RegistryError::Config {
            path: file.to_owned(),
            why: "an \"auth\" in it is not USER:PASSWORD in base64".into(),
        };
        let plain = base64::engine::general_purpose::STANDARD
            .decode(self.auth.trim_end_matches('\0'))
            .map_err(|_| bad())?;
        let plain = String::from_utf8(plain).map_err(|_| bad())?;
        let (user, password) = plain.split_once(':').ok_or_else(bad)?;
        Ok(Some(Credentials::Password {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

/// Asks a credential helper.
fn ask(helper: &str, server: &str) -> Result<Option<Credentials>, RegistryError> {
    let failed = |why: String| RegistryError::Helper { helper: helper.to_owned(), why };
    // Part of a program's name: it must not become a path.
    if helper.contains('/') || helper.is_empty() {
        return Err(failed("that is no name of a helper".into()));
    }
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading says why on its own.
        let _ = stdin.write_all(server.as_bytes());
    }
    let out = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).trim().to_owned();
        // The protocol's way to say that it knows nothing.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(said));
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer: Answer = serde_json::from_slice(&out.stdout).map_err(|e| failed(e.to_string()))?;
    Ok(Some(if answer.username == "<token>" {
        Credentials::Identity(answer.secret)
    } else {
        Credentials::Password { user: answer.username, password: answer.secret }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(json: &str, host: &str, repository: &str) -> Option<Credentials> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        std::fs::write(&file, json).unwrap();
        find(&[dir.path().join("absent.json"), file], host, repository).unwrap()
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn the_longest_key_wins() {
        // a:b, c:d
        let json =
            r#"{"auths":{"reg.example":{"auth":"YTpi"},"reg.example/team":{"auth":"Yzpk"}}}"#;
        assert_eq!(look(json, "reg.example", "team/app"), password("c", "d"));
        assert_eq!(look(json, "reg.example", "other/app"), password("a", "b"));
        assert_eq!(look(json, "other.example", "team/app"), None);
    }

    #[test]
    fn docker_hub_has_its_old_key() {
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"identitytoken":"t"}}}"#;
        assert_eq!(
            look(json, "docker.io", "library/debian"),
            Some(Credentials::Identity("t".into()))
        );
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        for text in ["{", r#"{"auths":{"h":{"auth":"!!"}}}"#, r#"{"auths":{"h":{"auth":"YQ=="}}}"#]
        {
            std::fs::write(&file, text).unwrap();
            let error = find(std::slice::from_ref(&file), "h", "r").unwrap_err();
            assert!(error.to_string().contains("auth.json"), "{error}");
        }
    }

    #[test]
    fn helpers_cannot_be_paths() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        std::fs::write(&file, r#"{"credHelpers":{"h":"../../bin/sh"}}"#).unwrap();
        assert!(find(&[file], "h", "r").is_err());
    }
}
