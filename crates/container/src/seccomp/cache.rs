//! Compiled profiles, kept beside the containers' state.
//!
//! Nearly all containers of a host have one profile, and compiling it takes a sixth of the
//! time in which a container starts. A file is named by a hash of what it was made from: the
//! profile, and the binary that compiled it. It holds that too, so that another profile with
//! the same hash is noticed, and a hash of the program, so that half a file is.

use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::compile::{self, Compiled};
use crate::error::Result;
use crate::spec::Seccomp;
use crate::sys::seccomp::Instruction;

/// Its place below the state's root; no container can be called so.
const DIRECTORY: &str = ".seccomp";
/// When there are as many, all go: they are quickly made.
const MOST_FILES: usize = 64;
/// No file that was written here is larger.
const LARGEST: u64 = 4 << 20;
/// Three numbers: the lengths of the source, the flags with the mark for listeners, the hash.
const HEADER: usize = 24;
/// In the flags: the program passes calls on to a listener.
const NOTIFIES: u64 = 1 << 63;

/// Compiles a profile, or takes what an earlier container's was compiled to.
pub fn compile(profile: &Seccomp, root: &Path) -> Result<Compiled> {
    let Some(source) = source(profile) else { return compile::compile(profile) };
    let directory = root.join(DIRECTORY);
    let path = directory.join(format!("{:016x}", hash(&source)));
    if let Some(compiled) = read(&path, &source) {
        return Ok(compiled);
    }
    let compiled = compile::compile(profile)?;
    if let Err(e) = write(&directory, &path, &source, &compiled) {
        tracing::debug!("the compiled profile is not kept in {}: {e}", path.display());
    }
    Ok(compiled)
}

/// All that the outcome depends on.
fn source(profile: &Seccomp) -> Option<Vec<u8>> {
    let binary = fs::metadata("/proc/self/exe").ok()?;
    let mut source = Vec::new();
    for number in [binary.dev(), binary.ino(), binary.size()] {
        source.extend(number.to_le_bytes());
    }
    for number in [binary.mtime(), binary.mtime_nsec()] {
        source.extend(number.to_le_bytes());
    }
    serde_json::to_writer(&mut source, profile).ok()?;
    Some(source)
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// None if there is no such file, or not one that this user has written.
fn read(path: &Path, source: &[u8]) -> Option<Compiled> {
    let file = File::open(path).ok()?;
    let stat = file.metadata().ok()?;
    if stat.uid() != rustix::process::geteuid().as_raw() || stat.mode() & 0o022 != 0 {
        return None;
    }
    let mut bytes = Vec::with_capacity(usize::try_from(stat.len().min(LARGEST)).ok()?);
    file.take(LARGEST).read_to_end(&mut bytes).ok()?;
    decode(&bytes, source)
}

fn decode(bytes: &[u8], source: &[u8]) -> Option<Compiled> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let (length, flags, expected) = (number(0)?, number(8)?, number(16)?);
    let rest = bytes.get(HEADER..)?;
    if length != source.len() as u64 || !rest.starts_with(source) {
        return None;
    }
    let program = &rest[source.len()..];
    if hash(program) != expected || program.is_empty() || !program.len().is_multiple_of(8) {
        return None;
    }
    let program = program
        .chunks_exact(8)
        .map(|b| Instruction {
            code: u16::from_le_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    Some(Compiled { program, flags: flags & !NOTIFIES, notifies: flags & NOTIFIES != 0 })
}

fn encode(source: &[u8], compiled: &Compiled) -> Vec<u8> {
    let mut program = Vec::with_capacity(compiled.program.len() * 8);
    for instruction in &compiled.program {
        program.extend(instruction.code.to_le_bytes());
        program.extend([instruction.jt, instruction.jf]);
        program.extend(instruction.k.to_le_bytes());
    }
    let flags = compiled.flags | if compiled.notifies { NOTIFIES } else { 0 };
    let mut bytes = Vec::with_capacity(HEADER + source.len() + program.len());
    for number in [source.len() as u64, flags, hash(&program)] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend_from_slice(source);
    bytes.extend_from_slice(&program);
    bytes
}

/// Written under another name first: readers see all of it or nothing.
fn write(directory: &Path, path: &Path, source: &[u8], compiled: &Compiled) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let files: Vec<_> = fs::read_dir(directory)?.flatten().collect();
    if files.len() >= MOST_FILES {
        for file in files {
            let _ = fs::remove_file(file.path());
        }
    }
    let fresh = path.with_extension(std::process::id().to_string());
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    let written = file.write_all(&encode(source, compiled));
    let renamed = written.and_then(|()| fs::rename(&fresh, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    renamed
}

#[cfg(test)]
mod tests;
