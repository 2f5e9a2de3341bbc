//! apt with a configuration of its own: it downloads packages of any suite
//! and changes nothing on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::sources::{KEYRING, Mirrors};
use super::{DebianError, Suite};
use crate::progress::Progress;

/// An apt that knows the packages of one suite.
pub struct Apt {
    dir: PathBuf,
    suite: Suite,
}

/// The paragraph that apt has on a package.
pub struct Package {
    text: String,
}

impl Package {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key == name).then(|| value.trim())
        })
    }

    /// The names of packages this one needs: the first of each alternative.
    pub fn depends(&self) -> impl Iterator<Item = &str> {
        self.field("Depends")
            .unwrap_or("")
            .split(',')
            .filter_map(|dependency| dependency.split_whitespace().next())
    }
}

/// Debian's name for this processor.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "i386",
        other => other,
    }
}

/// Runs a tool and gives what it printed.
pub fn run(
    tool: &'static str,
    package: &'static str,
    command: &mut Command,
) -> Result<Vec<u8>, DebianError> {
    let out = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C.UTF-8")
        .output()
        .map_err(|e| cannot_run(tool, package, e))?;
    if !out.status.success() {
        return Err(DebianError::Failed { tool, why: last_lines(&out.stderr) });
    }
    Ok(out.stdout)
}

pub fn cannot_run(tool: &'static str, package: &'static str, e: std::io::Error) -> DebianError {
    match e.kind() {
        std::io::ErrorKind::NotFound => DebianError::NoTool(tool, package),
        _ => DebianError::Run { tool, source: e },
    }
}

/// The lines of a tool's messages that say what is wrong, as one line.
pub fn last_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let errors: Vec<&str> = lines.iter().copied().filter(|line| line.starts_with("E:")).collect();
    let shown = if errors.is_empty() { &lines } else { &errors };
    let from = shown.len().saturating_sub(3);
    if shown.is_empty() { "it gave no reason".into() } else { shown[from..].join("; ") }
}

impl Apt {
    /// Fetches the package lists of a suite. `dir` must be empty and stays
    /// this apt's own.
    pub fn update(
        dir: &Path,
        mirrors: &Mirrors,
        suite: Suite,
        progress: &dyn Progress,
    ) -> Result<Self, DebianError> {
        let apt = Self { dir: dir.to_owned(), suite };
        for below in ["etc/parts", "etc/sources", "state/lists/partial", "cache/archives/partial"] {
            let below = dir.join(below);
            fs::create_dir_all(&below).map_err(|source| DebianError::Io {
                what: "making",
                path: below,
                source,
            })?;
        }
        let arch = architecture();
        let root = dir.display();
        // The host's proxies and time-outs, but none of its hooks.
        let dump = run("apt-config", "apt", Command::new("apt-config").arg("dump"))?;
        let inherited: String = String::from_utf8_lossy(&dump)
            .lines()
            .filter(|line| line.starts_with("Acquire::") && !line.ends_with("\"\";"))
            .map(|line| format!("{line}\n"))
            .collect();
        let config = format!(
            "{inherited}\
             Dir::Etc \"{root}/etc\";\n\
             Dir::Etc::Parts \"{root}/etc/parts\";\n\
             Dir::Etc::SourceList \"{root}/etc/sources.list\";\n\
             Dir::Etc::SourceParts \"{root}/etc/sources\";\n\
             Dir::Etc::Preferences \"{root}/etc/preferences\";\n\
             Dir::Etc::PreferencesParts \"{root}/etc/parts\";\n\
             Dir::Etc::Trusted \"{root}/etc/trusted.gpg\";\n\
             Dir::Etc::TrustedParts \"{root}/etc/parts\";\n\
             Dir::State \"{root}/state\";\n\
             Dir::State::Lists \"{root}/state/lists\";\n\
             Dir::State::Status \"{root}/state/status\";\n\
             Dir::Cache \"{root}/cache\";\n\
             Dir::Log \"{root}\";\n\
             APT::Architecture \"{arch}\";\n\
             APT::Architectures {{ \"{arch}\"; }};\n\
             APT::Sandbox::User \"\";\n\
             APT::Default-Release \"\";\n\
             Acquire::Languages \"none\";\n"
        );
        let sources: String = mirrors
            .lines(suite)
            .iter()
            .map(|line| {
                format!("{}\n", line.replacen("deb ", &format!("deb [signed-by={KEYRING}] "), 1))
            })
            .collect();
        apt.write("etc/apt.conf", &config)?;
        apt.write("etc/sources.list", &sources)?;
        apt.write("state/status", "")?;
        progress.note(&format!("fetching the package lists of {}", suite.code_name));
        run("apt-get", "apt", apt.command("apt-get").args(["-q", "update", "--error-on=any"]))?;
        Ok(apt)
    }

    fn write(&self, path: &str, text: &str) -> Result<(), DebianError> {
        let path = self.dir.join(path);
        fs::write(&path, text).map_err(|source| DebianError::Io { what: "writing", path, source })
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command.env("APT_CONFIG", self.dir.join("etc/apt.conf")).current_dir(&self.dir);
        command
    }

    /// What the suite has under a name, in its newest version.
    pub fn package(&self, name: &str) -> Result<Package, DebianError> {
        let mut command = self.command("apt-cache");
        command.args(["show", "--no-all-versions", "--", name]);
        let text = run("apt-cache", "apt", &mut command)?;
        Ok(Package { text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Downloads a package. apt compares its checksum with the signed lists.
    pub fn download(
        &self,
        name: &str,
        package: &Package,
        progress: &dyn Progress,
    ) -> Result<PathBuf, DebianError> {
        let odd = |missing| DebianError::OddPackage {
            package: name.to_owned(),
            suite: self.suite.code_name.to_owned(),
            missing,
        };
        let version = package.field("Version").ok_or_else(|| odd("version"))?;
        progress.note(&format!("downloading {name} {version}"));
        let into = self.dir.join("packages").join(name);
        fs::create_dir_all(&into).map_err(|source| DebianError::Io {
            what: "making",
            path: into.clone(),
            source,
        })?;
        let mut command = self.command("apt-get");
        command.args(["-q", "download", &format!("{name}={version}")]).current_dir(&into);
        run("apt-get", "apt", &mut command)?;
        let mut found = fs::read_dir(&into)
            .map_err(|source| DebianError::Io { what: "reading", path: into.clone(), source })?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "deb"));
        found.next().ok_or_else(|| odd("archive"))
    }
}
