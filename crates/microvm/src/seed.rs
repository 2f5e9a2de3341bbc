//! What a guest is told at its first start, as `cloud-init` looks for it: a small FAT disk with
//! the label `CIDATA` (its "NoCloud" source) that says who the instance is, how its interfaces
//! get their addresses, and what its user wants done.

use std::io::{self, Cursor, Write as _};
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

const LABEL: [u8; 11] = *b"CIDATA     ";
/// Room for what is not the user's.
const OVERHEAD: usize = 64 << 10;
const SECTOR: usize = 512;

/// What is said where the user says nothing.
const NOTHING: &str = "#cloud-config\n{}\n";
/// Whatever they are called.
const INTERFACES: &str = "version: 2
ethernets:
  all:
    match: {name: \"e*\"}
    dhcp4: true
";

/// A shared folder that the guest is to mount.
#[derive(Clone, Debug)]
pub struct Folder {
    pub tag: String,
    pub target: String,
    pub read_only: bool,
}

/// Who a guest is.
#[derive(Clone, Debug)]
pub struct Seed<'a> {
    /// With another one `cloud-init` begins anew.
    pub id: &'a str,
    pub host_name: &'a str,
    /// The user's, of a kind that `cloud-init` knows.
    pub user_data: Option<&'a str>,
    /// Public keys that may log in, each a line.
    pub ssh_keys: &'a [String],
    pub folders: Vec<Folder>,
}

impl Seed<'_> {
    /// Writes the disk to a file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.disk()?)
    }

    fn disk(&self) -> io::Result<Vec<u8>> {
        let meta = self.meta()?;
        let user = self.user_data.unwrap_or(NOTHING);
        // FAT has 16 clusters at the least; the contents come besides.
        let vendor = self.mounts()?;
        let size =
            (OVERHEAD + 2 * (meta.len() + user.len() + vendor.len())).next_multiple_of(SECTOR);
        let mut disk = Cursor::new(vec![0; size]);
        fatfs::format_volume(&mut disk, FormatVolumeOptions::new().volume_label(LABEL))?;
        let volume = FileSystem::new(&mut disk, FsOptions::new())?;
        let files = [
            ("meta-data", &*meta),
            ("user-data", user),
            ("vendor-data", &vendor),
            ("network-config", INTERFACES),
        ];
        for (name, text) in files {
            volume.root_dir().create_file(name)?.write_all(text.as_bytes())?;
        }
        volume.unmount()?;
        Ok(disk.into_inner())
    }

    /// Who it is, and who may log in.
    fn meta(&self) -> io::Result<String> {
        let mut meta = format!("instance-id: {}\nlocal-hostname: {}\n", self.id, self.host_name);
        if !self.ssh_keys.is_empty() {
            // Of YAML, JSON is a part.
            meta += &format!("public-keys: {}\n", serde_json::to_string(self.ssh_keys)?);
        }
        Ok(meta)
    }

    /// What the host wants done besides: YAML, of which JSON is a part.
    fn mounts(&self) -> io::Result<String> {
        let mount = |folder: &Folder| {
            let options = if folder.read_only { "ro,nofail" } else { "nofail" };
            [&*folder.tag, &*folder.target, "virtiofs", options, "0", "0"].map(str::to_owned)
        };
        let mounts: Vec<[String; 6]> = self.folders.iter().map(mount).collect();
        let mounts = serde_json::to_string(&mounts)?;
        Ok(format!("#cloud-config\nmounts: {mounts}\n"))
    }
}

#[cfg(test)]
mod tests;
