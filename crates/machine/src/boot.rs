//! From files to a machine that is about to execute its first instruction.
//!
//! What a kernel file is decides how it is started: a bzImage by Linux's 64-bit
//! protocol, an ELF file by PVH where it has the note for it, by multiboot 1 where
//! it has that header, or else as an uncompressed 64-bit Linux kernel. A
//! loader puts things into RAM and returns an [`Entry`]: what the first processor's
//! registers must be.
//!
//! Files are untrusted: every length and address from them is checked against the
//! file and against RAM before use, and is refused with the reason.

mod bzimage;
mod elf;
mod entry;
mod linux;
mod multiboot;
mod place;
mod pvh;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use guise_engine::GuestMemory;

pub use entry::Entry;

use crate::layout::{COMMAND_LINE_ROOM, RamLayout};
use place::Initrd;

/// What `guise boot` starts from.
#[derive(Clone, Debug)]
pub struct BootSource {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub command_line: String,
}

/// Why a kernel or an initial RAM disk cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not a kernel: it is neither a bzImage nor an ELF file", path.display())]
    NotAKernel { path: PathBuf },
    #[error("{} cannot be booted: {reason}", path.display())]
    BadKernel { path: PathBuf, reason: String },
    #[error(
        "{what} needs memory up to {end:#x} and the machine's first piece ends at {ram:#x}; \
         give it more with --memory"
    )]
    DoesNotFit { what: &'static str, end: u64, ram: u64 },
    #[error(
        "initrd {} has {size} and {room} of memory are free for it; give the machine more \
         with --memory", path.display()
    )]
    InitrdTooLarge { path: PathBuf, size: String, room: String },
    #[error("the kernel command line has {length} bytes and this kernel takes {limit} at most")]
    CommandLine { length: u64, limit: u64 },
    #[error("the kernel command line has a NUL character in it")]
    CommandLineNul,
    #[error(transparent)]
    Entry(#[from] entry::EntryError),
}

/// The largest kernel file that is read. Debian's kernels with all symbols are not
/// half of that.
const MAX_KERNEL_FILE: u64 = 1 << 30;

/// The machine as loaders see it.
pub struct Target<'a> {
    pub memory: &'a GuestMemory,
    pub ram: RamLayout,
    /// Where the ACPI tables begin.
    pub rsdp: u64,
}

/// Loads the kernel and all that it wants to find.
pub fn load(target: &Target, source: &BootSource) -> Result<Entry, BootError> {
    let image = read_kernel(&source.kernel, target.ram)?;
    let initrd = source.initrd.as_deref().map(Initrd::open).transpose()?;
    load_image(target, &image, initrd, &source.command_line, &source.kernel)
}

/// As [`load`], with a kernel that is in memory. `path` is its name in errors and,
/// where the protocol wants one, in the command line.
pub(crate) fn load_image(
    target: &Target,
    image: &[u8],
    initrd: Option<Initrd>,
    command_line: &str,
    path: &Path,
) -> Result<Entry, BootError> {
    if command_line.contains('\0') {
        return Err(BootError::CommandLineNul);
    }
    let job = Job { target, path, image, initrd, command_line };
    if bzimage::is_bzimage(image) {
        bzimage::load(job)
    } else if image.starts_with(b"\x7fELF") {
        elf::load(job)
    } else if multiboot::find_header(image).is_some() {
        multiboot::load(job)
    } else {
        Err(BootError::NotAKernel { path: path.to_owned() })
    }
}

/// What every loader works on.
pub(crate) struct Job<'a> {
    target: &'a Target<'a>,
    path: &'a Path,
    image: &'a [u8],
    initrd: Option<Initrd>,
    command_line: &'a str,
}

impl Job<'_> {
    fn bad(&self, reason: impl Into<String>) -> BootError {
        BootError::BadKernel { path: self.path.to_owned(), reason: reason.into() }
    }

    /// Puts a command line where boot protocols expect to find it.
    fn write_command_line(&self, text: &str, limit: u64) -> Result<u64, BootError> {
        let length = text.len() as u64;
        let limit = limit.min(COMMAND_LINE_ROOM - 1);
        if length > limit {
            return Err(BootError::CommandLine { length, limit });
        }
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        place::write(self.target, "the command line", crate::layout::COMMAND_LINE, &bytes)?;
        Ok(crate::layout::COMMAND_LINE)
    }
}

fn read_kernel(path: &Path, ram: RamLayout) -> Result<Vec<u8>, BootError> {
    let unreadable = |source| BootError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    // A FIFO or a device has no length to check beforehand; nor has it an end.
    let limit = MAX_KERNEL_FILE.min(ram.low.saturating_mul(8));
    let mut image = Vec::new();
    file.take(limit + 1).read_to_end(&mut image).map_err(unreadable)?;
    if image.len() as u64 > limit {
        return Err(BootError::BadKernel {
            path: path.to_owned(),
            reason: format!("it has more than {limit} bytes"),
        });
    }
    Ok(image)
}

#[cfg(test)]
mod tests;
