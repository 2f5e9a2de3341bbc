//! Root file systems, built by mmdebstrap straight into a layer.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::apt::{architecture, cannot_run, last_lines};
use super::sources::{KEYRING, Mirrors};
use super::{DebianError, Suite};
use crate::codec::{Compression, Encoder};
use crate::digest::{Hasher, Hashing};
use crate::error::IoContext;
use crate::progress::Progress;
use crate::spec::{
    Config, Descriptor, History, Manifest, Platform, Process, RootFs as Layers, media,
};
use crate::store::Session;
use crate::{Error, Result, clock};

/// A root file system to build.
#[derive(Debug, Clone)]
pub struct RootFs {
    pub suite: Suite,
    /// Without documentation and translations.
    pub slim: bool,
    /// Packages beyond the minimum.
    pub include: Vec<String>,
}

/// What images of Docker's without documentation leave out as well; copyright
/// files must stay.
const SLIM: [&str; 9] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/groff/*",
    "path-exclude=/usr/share/linda/*",
];

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl RootFs {
    /// Builds the image into the store and gives its manifest.
    pub fn build(&self, session: &Session<'_>, progress: &dyn Progress) -> Result<Descriptor> {
        if let Some(bad) = self.include.iter().find(|name| !is_package_name(name)) {
            return Err(DebianError::BadPackage(bad.clone()).into());
        }
        let mirrors = Mirrors::of_host(Path::new("/etc/apt"));
        let mut child = self
            .command(&mirrors)
            .spawn()
            .map_err(|e| cannot_run("mmdebstrap", "mmdebstrap", e))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("both are piped");
        };
        // It is not waited for before nobody would signal it any more.
        let process = Pid::from_child(&child);
        let (stored, messages) = std::thread::scope(|scope| {
            let messages = scope.spawn(|| relay(stderr, progress, process));
            let stored = store_layer(session, stdout);
            (stored, messages.join().unwrap_or_default())
        });
        if stored.is_err() {
            // It would write into a closed pipe until it notices.
            let _ = child.kill();
        }
        let status =
            child.wait().map_err(|source| DebianError::Run { tool: "mmdebstrap", source })?;
        let (layer, diff_id) = stored?;
        if !status.success() {
            let why = last_lines(messages.as_bytes());
            return Err(DebianError::Failed { tool: "mmdebstrap", why }.into());
        }
        self.finish(session, layer, diff_id)
    }

    fn command(&self, mirrors: &Mirrors) -> Command {
        let root = rustix::process::geteuid().is_root();
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--variant=minbase", "--format=tar", "--components=main"])
            .arg(if root { "--mode=root" } else { "--mode=unshare" })
            .arg(format!("--architectures={}", architecture()))
            .arg(format!("--keyring={KEYRING}"))
            // Every guise mounts its own /dev.
            .arg("--skip=output/dev")
            // The host's name and name servers are no part of an image.
            .arg("--customize-hook=rm -f \"$1/etc/hostname\" \"$1/etc/resolv.conf\"");
        if !self.include.is_empty() {
            command.arg(format!("--include={}", self.include.join(",")));
        }
        if self.slim {
            command.args(SLIM.map(|option| format!("--dpkgopt={option}")));
        }
        command.arg(self.suite.code_name).arg("-").args(mirrors.lines(self.suite));
        // Its temporary directory must be open to the user it becomes.
        command
            .env("LC_ALL", "C.UTF-8")
            .env("TMPDIR", std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Puts configuration and manifest around the layer.
    fn finish(
        &self,
        session: &Session<'_>,
        layer: Descriptor,
        diff_id: crate::Digest,
    ) -> Result<Descriptor> {
        let platform = Platform::host();
        let now = clock::now();
        let mut created_by = format!("mmdebstrap {}", self.suite.code_name);
        if !self.include.is_empty() {
            created_by.push_str(&format!(" --include={}", self.include.join(",")));
        }
        let config = Config {
            created: Some(now.clone()),
            author: None,
            architecture: platform.architecture,
            os: platform.os,
            variant: None,
            config: Some(Process {
                env: vec![PATH.into()],
                cmd: vec!["bash".into()],
                ..Process::default()
            }),
            rootfs: Layers { kind: "layers".into(), diff_ids: vec![diff_id] },
            history: vec![History {
                created: Some(now),
                created_by: Some(created_by),
                ..History::default()
            }],
        };
        let config = session.add_json(media::OCI_CONFIG, &config)?;
        session.add_json(media::OCI_MANIFEST, &Manifest::oci(config, vec![layer]))
    }
}

/// Compresses an archive into a blob, and gives also the digest of what is in it.
pub(super) fn store_layer(
    session: &Session<'_>,
    mut tar: impl Read,
) -> Result<(Descriptor, crate::Digest)> {
    let writer = session.blob_writer()?;
    let path = writer.path().to_owned();
    let mut encoder = Hashing::new(
        Encoder::new(writer, Compression::Gzip).at("writing", &path)?,
        Hasher::sha256(),
    );
    let mut buffer = vec![0; 256 << 10];
    loop {
        match tar.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => encoder.write_all(&buffer[..n]).at("writing", &path)?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::Io { what: "reading for", path, source }),
        }
    }
    let (encoder, diff_id, _) = encoder.finish();
    let (digest, size) = encoder.finish().at("writing", &path)?.finish()?;
    Ok((Descriptor::new(media::OCI_LAYER_GZIP, digest, size), diff_id))
}

/// Passes mmdebstrap's messages on as they come, and keeps them for an error. It is asked to
/// end, and cleans up, when one comes that nobody wants any more.
fn relay(stderr: impl Read, progress: &dyn Progress, process: Pid) -> String {
    let mut all = String::new();
    for line in BufReader::new(stderr).split(b'\n').map_while(std::result::Result::ok) {
        let line = String::from_utf8_lossy(&line);
        // Its bars redraw themselves with carriage returns.
        let line = line.rsplit('\r').next().unwrap_or("").trim_end();
        if progress.cancelled() {
            // It may have ended by itself.
            let _ = kill_process(process, Signal::TERM);
        }
        if let Some(step) = line.strip_prefix("I: ") {
            progress.note(step);
        }
        if all.len() < 1 << 20 {
            all.push_str(line);
            all.push('\n');
        }
    }
    all
}

/// As Debian's policy has it; so a name is never taken for an option or a
/// pattern.
fn is_package_name(name: &str) -> bool {
    name.len() >= 2
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+-.".contains(&c))
        && name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
}
