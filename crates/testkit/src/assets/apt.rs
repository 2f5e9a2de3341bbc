//! Packages through apt, with a configuration and state of our own, so that any
//! Debian or Ubuntu host gets the same Debian packages, without root and without
//! a change to what the host has installed or configured.
//!
//! The mirror is the host's own where it has a Debian one. Signatures are checked
//! against Debian's archive keys as apt always does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Package;
use crate::TestkitError;
use crate::error::run;

/// Used where the host's own sources have no Debian mirror.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Fetches the newest version of a package of the suite into `work`.
pub fn download(work: &Path, package: Package) -> Result<PathBuf, TestkitError> {
    let apt = Private::new(work, package.suite)?;
    apt.update()?;
    let name =
        if package.depends_on { apt.image_behind(package)? } else { package.name.to_owned() };
    let downloads = apt.root.join("downloads");
    // A package that an interrupted run left behind is not the one we look for.
    let _ = fs::remove_dir_all(&downloads);
    fs::create_dir_all(&downloads).map_err(TestkitError::file("making", &downloads))?;
    run(apt.command("apt-get").args(["--quiet=2", "download", &name]).current_dir(&downloads))?;
    super::only_entry(&downloads, |file| file.ends_with(".deb"))
}

pub fn unpack(archive: &Path, target: &Path) -> Result<(), TestkitError> {
    run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(target)).map(drop)
}

/// An apt that knows one suite of Debian and nothing else.
struct Private {
    root: PathBuf,
    suite: &'static str,
}

impl Private {
    fn new(work: &Path, suite: &'static str) -> Result<Self, TestkitError> {
        let root =
            std::path::absolute(work.join(suite)).map_err(TestkitError::file("finding", work))?;
        for directory in ["state/lists/partial", "cache/archives/partial"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(TestkitError::file("making", &path))?;
        }
        let apt = Private { root, suite };
        let source = source(suite) + "\n";
        for (name, text) in [("sources.list", source.as_str()), ("state/status", "")] {
            let path = apt.root.join(name);
            fs::write(&path, text).map_err(TestkitError::file("writing", &path))?;
        }
        Ok(apt)
    }

    /// apt-get or apt-cache with everything pointed at our own directories.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let own = |key: &str, name: &str| format!("{key}={}", self.root.join(name).display());
        for option in [
            own("Dir::State", "state"),
            own("Dir::State::status", "state/status"),
            own("Dir::Cache", "cache"),
            own("Dir::Etc::SourceList", "sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    fn update(&self) -> Result<(), TestkitError> {
        run(self.command("apt-get").args(["--quiet=2", "update"])).map(drop)
    }

    /// The package with the kernel that a metapackage depends on.
    fn image_behind(&self, package: Package) -> Result<String, TestkitError> {
        let listing = run(self.command("apt-cache").args(["depends", package.name]))?;
        listing
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .map(str::to_owned)
            .ok_or_else(|| TestkitError::Package {
                package: package.name.to_owned(),
                suite: self.suite,
                problem: "names no kernel package that it depends on",
            })
    }
}

/// Where a suite comes from, as apt writes it.
pub fn source(suite: &str) -> String {
    format!("deb [signed-by={KEYRING}] {} {suite} main", mirror())
}

/// The Debian mirror among the host's own sources.
fn mirror() -> String {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]);
    let listing = run(&mut command).unwrap_or_default();
    listing
        .lines()
        .map(|uri| uri.trim_end_matches('/'))
        .find(|uri| uri.ends_with("/debian"))
        .unwrap_or(DEFAULT_MIRROR)
        .to_owned()
}
