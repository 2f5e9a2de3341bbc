//! What a guest is told at its first start, as `cloud-init` looks for it: a small FAT disk with
//! the label `CIDATA` (its "NoCloud" source) that says who the instance is, how its interfaces
//! get their addresses, and what its user wants done.

use std::io::{self, Cursor, Write as _};
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use guise_net::packet::Mac;

const LABEL: [u8; 11] = *b"CIDATA     ";
/// Room for what is not the user's.
const OVERHEAD: usize = 64 << 10;
const SECTOR: usize = 512;

/// What is said where the user says nothing.
const NOTHING: &str = "#cloud-config\n{}\n";

/// A shared folder that the guest is to mount.
#[derive(Clone, Debug)]
pub struct Folder {
    pub tag: String,
    pub target: String,
    pub read_only: bool,
}

/// Who a guest is.
#[derive(Clone, Debug)]
pub struct Seed {
    /// With another one `cloud-init` begins anew.
    pub id: String,
    pub host_name: String,
    /// The user's, of a kind that `cloud-init` knows.
    pub user_data: Option<String>,
    /// Public keys that may log in, each a line.
    pub ssh_keys: Vec<String>,
    pub folders: Vec<Folder>,
}

impl Seed {
    /// Writes the disk to a file. The guest's interfaces have these addresses.
    pub fn write(&self, path: &Path, interfaces: &[Mac]) -> io::Result<()> {
        std::fs::write(path, self.disk(interfaces)?)
    }

    fn disk(&self, interfaces: &[Mac]) -> io::Result<Vec<u8>> {
        let meta = self.meta()?;
        let user = self.user_data.as_deref().unwrap_or(NOTHING);
        let network = network(interfaces);
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
            ("network-config", &network),
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
            meta += &format!("public-keys: {}\n", serde_json::to_string(&self.ssh_keys)?);
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

/// All of them ask for their addresses, whatever they are called. Of patterns of names `cloud-init`
/// makes names with some systems; it finds hardware addresses itself.
fn network(interfaces: &[Mac]) -> String {
    if interfaces.is_empty() {
        return "version: 2\nethernets: {}\n".to_owned();
    }
    let mut text = "version: 2\nethernets:\n".to_owned();
    for (number, mac) in interfaces.iter().enumerate() {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        text +=
            &format!("  guest{number}:\n    match: {{macaddress: \"{mac}\"}}\n    dhcp4: true\n");
    }
    text
}

#[cfg(test)]
mod tests;
