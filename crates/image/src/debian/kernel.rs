//! Kernels: the files of Debian's kernel packages, without installing them.
//!
//! In the store a kernel is an image like any other: a manifest, a
//! configuration of a media type of its own, and one layer with `boot/` and
//! `lib/modules/`. For use it is unpacked once, into `kernels/`.

use std::fs;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::apt::{Apt, architecture, cannot_run};
use super::rootfs::store_layer;
use super::sources::Mirrors;
use super::{DebianError, Flavour, Suite};
use crate::error::IoContext;
use crate::limits::{self, Limits};
use crate::progress::Progress;
use crate::spec::{Descriptor, Document, Manifest, media};
use crate::store::{FileLock, Session, Store, sync_dir, unique_name};
use crate::tar::{Entry, Kind, Reader, Writer};
use crate::{Digest, Error, Name, Result};

/// A kernel, unpacked.
#[derive(Debug, Clone, Serialize)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub version: String,
    pub vmlinuz: PathBuf,
    /// How it was configured.
    pub config: PathBuf,
    /// `lib/modules/VERSION`.
    pub modules: PathBuf,
}

/// The configuration of a kernel image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelConfig {
    pub architecture: String,
    pub version: String,
    pub suite: String,
    pub package: String,
    pub package_version: String,
    /// Of the uncompressed layer.
    pub diff_id: Digest,
    /// Of the kernel itself.
    pub vmlinuz: Digest,
}

/// Builds a kernel image into the store and gives its manifest.
pub fn build(
    session: &Session<'_>,
    suite: Suite,
    flavour: Flavour,
    progress: &dyn Progress,
) -> Result<Descriptor> {
    let scratch = session.path("tmp").join(unique_name());
    fs::create_dir(&scratch).at("making", &scratch)?;
    let built = build_in(&scratch, session, suite, flavour, progress);
    // A collection removes what cannot be removed now.
    let _ = fs::remove_dir_all(&scratch);
    built
}

fn build_in(
    scratch: &Path,
    session: &Session<'_>,
    suite: Suite,
    flavour: Flavour,
    progress: &dyn Progress,
) -> Result<Descriptor> {
    let arch = architecture();
    let apt_dir = scratch.join("apt");
    fs::create_dir(&apt_dir).at("making", &apt_dir)?;
    let apt = Apt::update(&apt_dir, &Mirrors::of_host(Path::new("/etc/apt")), suite, progress)?;
    // A package without files that depends on the newest kernel.
    let meta = match flavour {
        Flavour::Cloud => format!("linux-image-cloud-{arch}"),
        Flavour::Generic => format!("linux-image-{arch}"),
    };
    let odd = |package: &str, missing| DebianError::OddPackage {
        package: package.to_owned(),
        suite: suite.code_name.to_owned(),
        missing,
    };
    let image = apt
        .package(&meta)?
        .depends()
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| odd(&meta, "kernel behind it"))?
        .to_owned();
    let version = image["linux-image-".len()..].to_owned();
    let package = apt.package(&image)?;
    let package_version =
        package.field("Version").ok_or_else(|| odd(&image, "version"))?.to_owned();
    let mut archives = vec![apt.download(&image, &package, progress)?];
    // Newer suites have the modules in a package of their own.
    for part in package.depends() {
        if part.starts_with("linux-modules-") || part.starts_with("linux-binary-") {
            archives.push(apt.download(part, &apt.package(part)?, progress)?);
        }
    }
    progress.note("extracting the kernel");
    let tree = scratch.join("kernel.tar");
    let vmlinuz =
        extract(&archives, &version, &tree)?.ok_or_else(|| odd(&image, "boot/vmlinuz"))?;
    let tar = fs::File::open(&tree).at("opening", &tree)?;
    let (layer, diff_id) = store_layer(session, BufReader::new(tar))?;
    let config = session.add_json(
        media::KERNEL_CONFIG,
        &KernelConfig {
            architecture: arch.to_owned(),
            version,
            suite: suite.code_name.to_owned(),
            package: image,
            package_version,
            diff_id,
            vmlinuz,
        },
    )?;
    session.add_json(media::OCI_MANIFEST, &Manifest::oci(config, vec![layer]))
}

/// Copies kernel, its configuration and its modules out of packages into one
/// archive. Gives the kernel's digest.
fn extract(packages: &[PathBuf], version: &str, into: &Path) -> Result<Option<Digest>> {
    let file = fs::File::create(into).at("making", into)?;
    let mut out = Writer::new(io::BufWriter::with_capacity(256 << 10, file));
    for dir in ["boot", "lib", "lib/modules"] {
        let entry = Entry::new(dir, Kind::Directory, 0o755);
        out.append(&entry, io::empty()).at("writing", into)?;
    }
    let mut digest = None;
    for package in packages {
        let mut child = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| cannot_run("dpkg-deb", "dpkg", e))?;
        let Some(stdout) = child.stdout.take() else { unreachable!("it is piped") };
        let copied = copy_kernel(stdout, version, &mut out, into, &mut digest);
        if copied.is_err() {
            let _ = child.kill();
        }
        let status =
            child.wait().map_err(|source| DebianError::Run { tool: "dpkg-deb", source })?;
        copied?;
        if !status.success() {
            let why = format!("{} is damaged", package.display());
            return Err(DebianError::Failed { tool: "dpkg-deb", why }.into());
        }
    }
    out.finish().at("writing", into)?;
    Ok(digest)
}

fn copy_kernel(
    from: impl Read,
    version: &str,
    out: &mut Writer<impl io::Write>,
    into: &Path,
    digest: &mut Option<Digest>,
) -> Result<()> {
    let mut tar = Reader::new(BufReader::with_capacity(256 << 10, from));
    while let Some(mut entry) =
        tar.next_entry().map_err(|e| Error::malformed("a kernel package", e))?
    {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let path = path.trim_start_matches("./");
        // Merged /usr or not, modules are found below lib.
        let path = path.strip_prefix("usr/").unwrap_or(path).trim_end_matches('/');
        let wanted = path == format!("boot/vmlinuz-{version}")
            || path == format!("boot/config-{version}")
            || path == format!("lib/modules/{version}")
            || path.starts_with(&format!("lib/modules/{version}/"));
        // Links lead to the build tree, which is not here.
        if !wanted || !matches!(entry.kind, Kind::File | Kind::Directory) {
            continue;
        }
        entry.path = path.as_bytes().to_vec();
        let mut data = crate::digest::Hashing::new(&mut tar, crate::digest::Hasher::sha256());
        out.append(&entry, &mut data).at("writing", into)?;
        if path.starts_with("boot/vmlinuz") {
            *digest = Some(data.finish().1);
        }
    }
    Ok(())
}

impl Store {
    /// What a kernel image says about itself.
    pub fn kernel_config(&self, name: &Name) -> Result<(Descriptor, Manifest, KernelConfig)> {
        let target = self.reference(name)?.target;
        let not_one = || Error::IsNotKernel(name.to_string());
        let Document::Manifest(manifest) = self.document(&target)? else {
            return Err(not_one());
        };
        if manifest.config.media_type != media::KERNEL_CONFIG {
            return Err(not_one());
        }
        let bytes = self.small_blob("the configuration", &manifest.config, limits::CONFIG_BYTES)?;
        let config: KernelConfig = serde_json::from_slice(&bytes)
            .map_err(|e| Error::malformed("the kernel's configuration", e))?;
        // It becomes part of paths.
        if config.version.contains('/') || config.version.starts_with('.') {
            return Err(Error::malformed("the kernel's configuration", "odd version"));
        }
        Ok((target, manifest, config))
    }
}

impl Session<'_> {
    /// The files of a kernel image, unpacked on first use.
    pub fn kernel(&self, name: &Name) -> Result<Kernel> {
        let (target, manifest, config) = self.kernel_config(name)?;
        let dir = self.path("kernels").join(target.digest.hex());
        let lock = self.path("locks").join(format!("kernel-{}", target.digest.hex()));
        let _lock = FileLock::exclusive(&lock)?;
        if !dir.is_dir() {
            let [layer] = &manifest.layers[..] else {
                return Err(Error::malformed("the kernel image", "it has not just one layer"));
            };
            let temporary = self.path("tmp").join(unique_name());
            fs::create_dir(&temporary).at("making", &temporary)?;
            let blob = self.blob("layer", layer.digest)?;
            crate::layer::unpack_alone(blob, config.diff_id, &temporary, Limits::default())
                .map_err(|e| Error::Layer { layer: layer.digest, source: Box::new(e) })?;
            index_modules(&temporary, &config.version);
            let handle = fs::File::open(&temporary).at("syncing", &temporary)?;
            rustix::fs::syncfs(handle).at("syncing", &temporary)?;
            fs::rename(&temporary, &dir).at("naming", &dir)?;
            sync_dir(&self.path("kernels"))?;
        }
        let version = &config.version;
        Ok(Kernel {
            vmlinuz: dir.join(format!("boot/vmlinuz-{version}")),
            config: dir.join(format!("boot/config-{version}")),
            modules: dir.join("lib/modules").join(version),
            version: version.clone(),
        })
    }
}

/// Makes `modules.dep`, which the package leaves to its installation. Without
/// depmod on the host the modules are there all the same, and whoever loads
/// them reads their dependencies from the modules themselves.
fn index_modules(root: &Path, version: &str) {
    let _ = Command::new("depmod")
        .arg("-b")
        .arg(root)
        .arg(version)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}
