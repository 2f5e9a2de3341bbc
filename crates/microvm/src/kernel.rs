//! A stock kernel as it boots fastest.
//!
//! A distribution's kernel is a program that unpacks the kernel. Unpacking it here once,
//! instead of in every guest, saves each of them most of what happens before the kernel's
//! first line. The initial RAM disk is not packed for the same reason: it is small. Both
//! are kept beside the kernel, and made anew when this program's agent is another one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::modules;

/// The first process of every guest.
pub const AGENT: &[u8] = include_bytes!(env!("GUISE_AGENT"));
/// Changes with it.
const AGENT_HASH: &str = env!("GUISE_AGENT_HASH");

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedKernel {
    /// Unpacked, where it was packed in a way that is known here.
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}: {source}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the kernel's modules in {} have no '{name}', which the guest needs", tree.display())]
    NoModule { name: String, tree: PathBuf },
    #[error("{} cannot be unpacked: {reason}", path.display())]
    Unpack { path: PathBuf, reason: String },
}

impl KernelError {
    pub(crate) fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| KernelError::Read { path, source }
    }

    pub(crate) fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| KernelError::Write { path, source }
    }
}

impl PreparedKernel {
    /// Makes what is not there yet. `cache` belongs to this kernel alone, and may be used
    /// by several processes at once.
    pub fn make(kernel: &Path, modules: &Path, cache: &Path) -> Result<Self, KernelError> {
        fs::create_dir_all(cache).map_err(KernelError::writing(cache))?;
        let initrd = cache.join(format!("initrd-{AGENT_HASH}.cpio"));
        if !initrd.is_file() {
            store(&initrd, &initial_ram_disk(modules)?)?;
        }
        let unpacked = cache.join("vmlinux");
        if !unpacked.is_file() {
            let image = fs::read(kernel).map_err(KernelError::reading(kernel))?;
            match unpack(&image) {
                Ok(Some(content)) => store(&unpacked, &content)?,
                // It unpacks itself, in its own time.
                Ok(None) => return Ok(PreparedKernel { kernel: kernel.to_owned(), initrd }),
                Err(reason) => return Err(KernelError::Unpack { path: kernel.to_owned(), reason }),
            }
        }
        Ok(PreparedKernel { kernel: unpacked, initrd })
    }
}

fn initial_ram_disk(tree: &Path) -> Result<Vec<u8>, KernelError> {
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.character_device("dev/console", 5, 1);
    archive.directory("modules");
    let mut packed = Vec::new();
    for (purpose, names) in modules::NEEDED {
        let modules = modules::collect(&tree, names)?;
        modules::pack(&mut archive, purpose, modules, &mut packed);
    }
    archive.file("init", 0o700, AGENT);
    Ok(archive.finish())
}

/// Puts a file in place whole or not at all.
fn store(path: &Path, content: &[u8]) -> Result<(), KernelError> {
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&partial);
        KernelError::writing(path)(error)
    })
}

const SECTOR: usize = 512;
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// LZ4 in the format of its first versions, which the kernel uses.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Each block of LZ4's old format unpacks to this at most.
const LZ4_BLOCK: usize = 8 << 20;
/// No kernel is larger, unpacked.
const LARGEST: usize = 512 << 20;

/// The kernel in a bzImage; nothing where the file is something else, or packed otherwise.
pub(crate) fn unpack(image: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let Some(payload) = payload(image) else { return Ok(None) };
    let unpacked = if payload.starts_with(&LZ4_LEGACY) {
        unpack_lz4(&payload[LZ4_LEGACY.len()..])?
    } else if payload.starts_with(&ZSTD) {
        unpack_zstd(payload)?
    } else {
        return Ok(None);
    };
    if !unpacked.starts_with(b"\x7fELF") {
        return Err("what is packed in it is no kernel".to_owned());
    }
    Ok(Some(unpacked))
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes) as usize)
    };
    let sectors = match *image.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * SECTOR + number(PAYLOAD_OFFSET)?;
    // The kernel's build adds the unpacked size behind the stream.
    let end = start.checked_add(number(PAYLOAD_LENGTH)?)?.checked_sub(4)?;
    image.get(start..end)
}

fn unpack_lz4(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    while let Some(length) = rest.first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = rest.get(4..4 + length).ok_or("a block ends outside of it")?;
        let block = lz4_flex::block::decompress(block, LZ4_BLOCK);
        unpacked.extend_from_slice(&block.map_err(|error| error.to_string())?);
        if unpacked.len() > LARGEST {
            return Err("it is too large".to_owned());
        }
        rest = &rest[4 + length..];
    }
    Ok(unpacked)
}

fn unpack_zstd(payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    // What follows the frame is not of it.
    let decoder = zstd::stream::read::Decoder::with_buffer(payload)
        .map_err(|error| error.to_string())?
        .single_frame();
    let mut decoder = decoder.take(LARGEST as u64 + 1);
    decoder.read_to_end(&mut unpacked).map_err(|error| error.to_string())?;
    if unpacked.len() > LARGEST {
        return Err("it is too large".to_owned());
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests;
