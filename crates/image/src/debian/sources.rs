//! The mirrors this host's apt is configured for, read from both forms of its
//! source lists, and the same mirrors for another suite.

use std::fs;
use std::path::{Path, PathBuf};

use super::{SUITES, Suite};

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    pub main: String,
    pub updates: Option<String>,
    pub security: Option<String>,
}

/// The keys that Debian signs its archive with.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Default for Mirrors {
    fn default() -> Self {
        let main = "http://deb.debian.org/debian".to_owned();
        Self {
            updates: Some(main.clone()),
            main,
            security: Some("http://deb.debian.org/debian-security".into()),
        }
    }
}

/// One source: where, and which suite of it.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
}

impl Mirrors {
    /// What below `/etc/apt` is configured; Debian's own servers if it is
    /// nothing of Debian's.
    pub fn of_host(etc: &Path) -> Self {
        let mut files = vec![etc.join("sources.list")];
        if let Ok(dir) = fs::read_dir(etc.join("sources.list.d")) {
            let mut more: Vec<PathBuf> = dir.flatten().map(|entry| entry.path()).collect();
            more.sort();
            files.extend(more);
        }
        let mut sources = Vec::new();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            match file.extension().and_then(|e| e.to_str()) {
                Some("list") => one_line(&text, &mut sources),
                Some("sources") => deb822(&text, &mut sources),
                _ => {}
            }
        }
        Self::from(&sources)
    }

    fn from(sources: &[Source]) -> Self {
        let first = |suffix: &str| {
            let mut matching = sources.iter().filter(|source| {
                source.suite.strip_suffix(suffix).is_some_and(|base| {
                    base == "stable" || SUITES.iter().any(|s| s.code_name == base)
                })
            });
            matching.next().map(|source| source.uri.clone())
        };
        match first("") {
            Some(main) => Self { main, updates: first("-updates"), security: first("-security") },
            None => Self::default(),
        }
    }

    /// Source lines for a suite.
    pub fn lines(&self, suite: Suite) -> Vec<String> {
        let name = suite.code_name;
        let mut lines = vec![format!("deb {} {name} main", self.main)];
        // What rolls on has neither.
        if suite.version.is_some() {
            if let Some(uri) = &self.updates {
                lines.push(format!("deb {uri} {name}-updates main"));
            }
            if let Some(uri) = &self.security {
                lines.push(format!("deb {uri} {name}-security main"));
            }
        }
        lines
    }
}

/// `deb [options] URI SUITE COMPONENT…`
fn one_line(text: &str, sources: &mut Vec<Source>) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("");
        let Some(rest) = line.trim_start().strip_prefix("deb ") else { continue };
        let rest = match rest.trim_start().strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        let mut words = rest.split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next())
            && words.any(|component| component == "main")
        {
            sources.push(source(uri, suite));
        }
    }
}

/// Paragraphs of `Types:`, `URIs:`, `Suites:`, `Components:`.
fn deb822(text: &str, sources: &mut Vec<Source>) {
    for paragraph in text.split("\n\n") {
        let field = |name: &str| -> Vec<String> {
            let mut words = Vec::new();
            let mut inside = false;
            for line in paragraph.lines().filter(|line| !line.starts_with('#')) {
                let value = if line.starts_with([' ', '\t']) {
                    line
                } else {
                    match line.split_once(':') {
                        Some((key, value)) => {
                            inside = key.eq_ignore_ascii_case(name);
                            value
                        }
                        None => continue,
                    }
                };
                if inside {
                    words.extend(value.split_whitespace().map(str::to_owned));
                }
            }
            words
        };
        let off = field("Enabled").iter().any(|v| v.eq_ignore_ascii_case("no"));
        let has = |name: &str, wanted: &str| field(name).iter().any(|v| v == wanted);
        if off || !has("Types", "deb") || !has("Components", "main") {
            continue;
        }
        if let Some(uri) = field("URIs").first() {
            sources.extend(field("Suites").iter().map(|suite| source(uri, suite)));
        }
    }
}

fn source(uri: &str, suite: &str) -> Source {
    Source { uri: uri.trim_end_matches('/').to_owned(), suite: suite.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        fs::write(
            dir.path().join("sources.list"),
            "# deb http://old bookworm main\ndeb [arch=amd64] https://sec.example/ds/ bookworm-security main # x\n",
        )
        .unwrap();
        fs::write(
            parts.join("a.sources"),
            "Types: deb\n# why\nURIs: http://m.example/debian/\nSuites: bookworm\n bookworm-updates\nComponents: main contrib\n\n\
             Types: deb\nURIs: https://node.example\nSuites: nodistro\nComponents: main\n\n\
             Enabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n",
        )
        .unwrap();
        let mirrors = Mirrors::of_host(dir.path());
        assert_eq!(
            mirrors,
            Mirrors {
                main: "http://m.example/debian".into(),
                updates: Some("http://m.example/debian".into()),
                security: Some("https://sec.example/ds".into()),
            }
        );
        assert_eq!(
            mirrors.lines(Suite::find("13").unwrap()),
            [
                "deb http://m.example/debian trixie main",
                "deb http://m.example/debian trixie-updates main",
                "deb https://sec.example/ds trixie-security main",
            ]
        );
        assert_eq!(mirrors.lines(Suite::find("sid").unwrap()).len(), 1);
    }

    #[test]
    fn hosts_that_are_not_debian_get_debians_own_servers() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("sources.list"),
            "deb http://archive.ubuntu.com/ubuntu noble main universe\n",
        )
        .unwrap();
        assert_eq!(Mirrors::of_host(dir.path()), Mirrors::default());
    }
}
