//! OVA: a tar archive with an OVF description, a manifest and disks.
//!
//! Reading gives the first disk, after its checksum was verified. Writing makes
//! an appliance with one streamOptimized disk; description and manifest have
//! their places at the front, as the standard wants, and are filled in when the
//! disk is complete.

mod tar;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use self::tar::{BLOCK, Entry, header};
use super::vmdk::{CreateOptions, Subformat, Vmdk};
use crate::codec::Codec;
use crate::error::{Blame, Error, Result};
use crate::format::{Below, CheckReport, Detail, Extent, Format, FormatKind, Repair};
use crate::storage::{SharedStorage, SliceStorage, Storage, read_vec};

const MAX_TEXT: u64 = 4 << 20;
/// Room for the description of a new appliance.
const OVF_ROOM: u64 = 4096;
const CHUNK: u64 = 1 << 20;

/// An appliance with its disk.
pub struct Ova {
    archive: SharedStorage,
    disk: Vmdk,
    entries: Vec<Entry>,
    /// What the disk's entry is called, for a new archive without ending.
    name: String,
    writable: bool,
    changed: AtomicBool,
}

/// Names in a new archive: description, manifest, disk.
struct Names {
    ovf: String,
    manifest: String,
    disk: String,
}

impl Names {
    fn of(path: &str) -> Self {
        let file = path.rsplit('/').next().unwrap_or(path);
        let stem = file.strip_suffix(".ova").unwrap_or(file);
        // Names in a tar header have 100 bytes.
        let mut end = stem.len().min(80);
        while !stem.is_char_boundary(end) {
            end -= 1;
        }
        let stem = &stem[..end];
        Self {
            ovf: format!("{stem}.ovf"),
            manifest: format!("{stem}.mf"),
            disk: format!("{stem}-disk1.vmdk"),
        }
    }

    /// The manifest's length does not depend on the contents.
    fn manifest_text(&self, ovf: &str, disk: &str) -> String {
        format!("SHA256({})= {ovf}\nSHA256({})= {disk}\n", self.ovf, self.disk)
    }

    fn manifest_len(&self) -> u64 {
        let digest = "0".repeat(64);
        self.manifest_text(&digest, &digest).len() as u64
    }

    /// Where the disk's bytes begin.
    fn disk_at(&self) -> u64 {
        3 * BLOCK + OVF_ROOM + self.manifest_len().next_multiple_of(BLOCK)
    }
}

impl Ova {
    /// Opens an archive; for writing only one that `create` just made.
    pub fn open(archive: SharedStorage, write: bool) -> Result<Self> {
        let blame = Blame::new("ova", archive.name());
        let entries = tar::list(&*archive, &blame)?;
        let ovf = entries
            .first()
            .filter(|entry| entry.name.to_ascii_lowercase().ends_with(".ovf"))
            .ok_or_else(|| blame.corrupt("an OVF description is not its first file"))?;
        let text = read_text(&*archive, ovf, &blame)?;
        let name =
            disk_name(&text).ok_or_else(|| blame.corrupt("its description refers to no disk"))?;
        let entry = entries
            .iter()
            .find(|entry| entry.name == name)
            .ok_or_else(|| blame.corrupt(format!("the disk '{name}' is not in it")))?;
        if !write {
            verify(&*archive, &entries, ovf, entry, &blame)?;
        }
        let len = if write { None } else { Some(entry.len) };
        let label = format!("{}:{name}", archive.name());
        let slice: SharedStorage =
            Arc::new(SliceStorage::new(Arc::clone(&archive), label, entry.offset, len));
        if write {
            let names = Names::of(archive.name());
            if names.disk != name || entry.offset != names.disk_at() {
                return Err(blame.unsupported("writing to an archive that another program made"));
            }
            // The end of the archive makes room for the disk to grow.
            archive.set_len(entry.offset + entry.len)?;
        }
        let disk = Vmdk::open(slice, write, &|_| {
            Err(Error::Backing { name: name.clone(), why: "it has to be in one piece".to_owned() })
        })?;
        Ok(Self { archive, disk, entries, name, writable: write, changed: AtomicBool::new(write) })
    }

    /// Writes an appliance with an empty disk.
    pub fn create(archive: &SharedStorage, size: u64) -> Result<()> {
        let names = Names::of(archive.name());
        let label = names.disk.clone();
        let slice: SharedStorage =
            Arc::new(SliceStorage::new(Arc::clone(archive), label, names.disk_at(), None));
        let options = CreateOptions {
            size,
            subformat: Subformat::StreamOptimized,
            adapter: Some("lsilogic".to_owned()),
            ..CreateOptions::default()
        };
        Vmdk::create(&slice, &names.disk, &options, &mut |name| {
            Err(Error::option("subformat", format!("'{name}' would be a second file")))
        })?;
        finish(archive, &names, size)
    }
}

/// Writes headers, description, manifest and the archive's end around a disk.
fn finish(archive: &SharedStorage, names: &Names, size: u64) -> Result<()> {
    let disk_at = names.disk_at();
    let disk_len = archive.len()?.saturating_sub(disk_at);
    let mut ovf = description(names, size, disk_len);
    ovf.push_str(&" ".repeat((OVF_ROOM as usize).saturating_sub(ovf.len() + 1)));
    ovf.push('\n');
    if ovf.len() as u64 != OVF_ROOM {
        return Err(Error::option("file name", "is too long for an appliance"));
    }
    let digest = hash::<Sha256>(&**archive, disk_at, disk_len)?;
    let manifest = names.manifest_text(&hex(&Sha256::digest(ovf.as_bytes())), &digest);
    archive.write_at(0, &header(&names.ovf, OVF_ROOM))?;
    archive.write_at(BLOCK, ovf.as_bytes())?;
    archive.write_at(BLOCK + OVF_ROOM, &header(&names.manifest, manifest.len() as u64))?;
    archive.write_at(2 * BLOCK + OVF_ROOM, manifest.as_bytes())?;
    archive.write_at(disk_at - BLOCK, &header(&names.disk, disk_len))?;
    let end = (disk_at + disk_len).next_multiple_of(BLOCK);
    archive.write_at(end, &[0; 2 * BLOCK as usize])?;
    archive.flush()
}

fn description(names: &Names, size: u64, disk_len: u64) -> String {
    let disk = escape(&names.disk);
    let title = escape(names.ovf.trim_end_matches(".ovf"));
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\">\n\
 <References><File ovf:href=\"{disk}\" ovf:id=\"file1\" ovf:size=\"{disk_len}\"/></References>\n\
 <DiskSection><Info>Disks</Info><Disk ovf:capacity=\"{size}\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"vmdisk1\" ovf:fileRef=\"file1\" ovf:format=\"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\"/></DiskSection>\n\
 <VirtualSystem ovf:id=\"{title}\"><Info>A virtual machine</Info><Name>{title}</Name>\n\
  <VirtualHardwareSection><Info>Hardware</Info>\n\
   <Item><rasd:ElementName>1 processor</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>\n\
   <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ElementName>1024 MiB</rasd:ElementName><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>1024</rasd:VirtualQuantity></Item>\n\
   <Item><rasd:ElementName>SCSI controller</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>lsilogic</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>\n\
   <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>Disk</rasd:ElementName><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>\n\
  </VirtualHardwareSection></VirtualSystem>\n\
</Envelope>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

fn read_text(archive: &dyn Storage, entry: &Entry, blame: &Blame) -> Result<String> {
    if entry.len > MAX_TEXT {
        return Err(blame.corrupt(format!("'{}' is too large", entry.name)));
    }
    let bytes = read_vec(archive, entry.offset, entry.len as usize)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The file of the first disk: the references' entry that it names.
fn disk_name(ovf: &str) -> Option<String> {
    let wanted = elements(ovf, "Disk").find_map(|tag| attribute(tag, "fileRef"));
    let mut files = elements(ovf, "File");
    let file = files.find(|tag| match &wanted {
        Some(id) => attribute(tag, "id").as_ref() == Some(id),
        None => attribute(tag, "href").is_some_and(|name| name.ends_with(".vmdk")),
    })?;
    attribute(file, "href")
}

/// The start tags of elements by their local name, whatever the prefix.
fn elements<'a>(xml: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    xml.split('<').skip(1).filter_map(move |part| {
        let tag = &part[..part.find('>')?];
        let full = tag.split([' ', '\t', '\r', '\n', '/']).next()?;
        (full.rsplit(':').next() == Some(name)).then_some(tag)
    })
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let mut rest = tag;
    while let Some(equals) = rest.find('=') {
        let key = rest[..equals].trim_end().rsplit([' ', '\t', '\r', '\n', ':']).next()?;
        let value = rest[equals + 1..].trim_start();
        let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        let end = value[1..].find(quote)? + 1;
        if key == name {
            return Some(unescape(&value[1..end]));
        }
        rest = &value[end + 1..];
    }
    None
}

/// Compares what the manifest says with what is there.
fn verify(
    archive: &dyn Storage,
    entries: &[Entry],
    ovf: &Entry,
    disk: &Entry,
    blame: &Blame,
) -> Result<()> {
    let Some(manifest) = entries.iter().find(|e| e.name.to_ascii_lowercase().ends_with(".mf"))
    else {
        return Ok(());
    };
    for line in read_text(archive, manifest, blame)?.lines() {
        let Some((what, digest)) = line.split_once('=') else { continue };
        let Some((method, rest)) = what.split_once('(') else { continue };
        let name = rest.trim_end().trim_end_matches(')');
        let Some(entry) = [ovf, disk].into_iter().find(|entry| entry.name == name) else {
            continue;
        };
        let found = match method.trim().to_ascii_uppercase().as_str() {
            "SHA1" => hash::<Sha1>(archive, entry.offset, entry.len)?,
            "SHA256" => hash::<Sha256>(archive, entry.offset, entry.len)?,
            "SHA512" => hash::<Sha512>(archive, entry.offset, entry.len)?,
            other => return Err(blame.unsupported(format!("manifest digest {other}"))),
        };
        if !found.eq_ignore_ascii_case(digest.trim()) {
            return Err(blame.corrupt(format!("'{name}' does not match the manifest")));
        }
    }
    Ok(())
}

fn hash<D: Digest>(archive: &dyn Storage, offset: u64, len: u64) -> Result<String> {
    let mut digest = D::new();
    let mut buf = vec![0; CHUNK.min(len.max(1)) as usize];
    let mut done = 0;
    while done < len {
        let step = (len - done).min(CHUNK) as usize;
        archive.read_at(offset + done, &mut buf[..step])?;
        digest.update(&buf[..step]);
        done += step as u64;
    }
    Ok(hex(&digest.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Format for Ova {
    fn kind(&self) -> FormatKind {
        FormatKind::Ova
    }

    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn cluster_size(&self) -> u64 {
        self.disk.cluster_size()
    }

    fn storages(&self) -> &[SharedStorage] {
        self.disk.storages()
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        self.disk.map(offset, len)
    }

    fn read_packed(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.disk.read_packed(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8], below: &dyn Below) -> Result<()> {
        self.disk.write(offset, data, below)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.disk.write_zeroes(offset, len, unmap, below)
    }

    fn discard(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()> {
        self.disk.discard(offset, len, below)
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn codec(&self) -> Option<Codec> {
        self.disk.codec()
    }

    fn always_packed(&self) -> bool {
        self.disk.always_packed()
    }

    fn write_packed(&self, offset: u64, packed: &[u8]) -> Result<()> {
        self.disk.write_packed(offset, packed)
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        self.disk.check(repair)
    }

    fn details(&self) -> Vec<(String, Detail)> {
        let files = self.entries.iter().map(|entry| Detail::text(&entry.name)).collect();
        vec![
            ("disk".to_owned(), Detail::text(&self.name)),
            ("files".to_owned(), Detail::List(files)),
        ]
    }

    fn close(&self) -> Result<()> {
        if self.writable && self.changed.swap(false, Ordering::AcqRel) {
            self.disk.close()?;
            finish(&self.archive, &Names::of(self.archive.name()), self.disk.size())?;
        }
        Ok(())
    }
}
