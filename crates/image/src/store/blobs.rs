//! Blobs: in, verified; out, bounded.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::{FileLock, Session, Store, sync_dir, unique_name};
use crate::digest::{Hasher, Hashing};
use crate::error::IoContext;
use crate::spec::Descriptor;
use crate::{Digest, Error, Result};

impl Store {
    /// Where a blob is, or would be.
    #[must_use]
    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path("blobs").join(digest.algorithm()).join(digest.hex())
    }

    #[must_use]
    pub fn has_blob(&self, digest: Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Opens a blob.
    pub fn blob(&self, what: &'static str, digest: Digest) -> Result<File> {
        let path = self.blob_path(digest);
        match File::open(&path) {
            Ok(file) => Ok(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::MissingBlob { what, digest })
            }
            Err(e) => Err(e).at("opening", path),
        }
    }

    /// Reads a blob into memory and checks it once more: manifests decide what
    /// is run, and disks do fail.
    pub fn small_blob(
        &self,
        what: &'static str,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>> {
        let path = self.blob_path(descriptor.digest);
        let mut bytes = Vec::new();
        self.blob(what, descriptor.digest)?
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .at("reading", path)?;
        if bytes.len() as u64 > limit {
            return Err(Error::malformed(what, format!("it is larger than {limit} bytes")));
        }
        let mut hasher = descriptor.digest.hasher();
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != descriptor.digest {
            return Err(Error::wrong_digest(
                format!("{what} in the store"),
                descriptor.digest,
                found,
            ));
        }
        Ok(bytes)
    }
}

impl Session<'_> {
    /// Adds a document that is in memory.
    pub fn add_bytes(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor> {
        let mut writer = self.blob_writer()?;
        writer.write_all(bytes).at("writing", &writer.path)?;
        let (digest, size) = writer.finish()?;
        Ok(Descriptor::new(media_type, digest, size))
    }

    /// Adds a document as JSON.
    pub fn add_json(
        &self,
        media_type: &str,
        document: &impl serde::Serialize,
    ) -> Result<Descriptor> {
        let bytes = serde_json::to_vec(document).map_err(|e| Error::malformed("a document", e))?;
        self.add_bytes(media_type, &bytes)
    }

    /// A writer for a blob whose digest is not known before.
    pub fn blob_writer(&self) -> Result<BlobWriter<'_>> {
        let path = self.path("tmp").join(unique_name());
        let file = OpenOptions::new()
            .write(true)
            .read(true)
            .create_new(true)
            .open(&path)
            .at("making", &path)?;
        Ok(BlobWriter { session: self, out: Some(Hashing::new(file, Hasher::sha256())), path })
    }

    /// Adds a blob of a known digest from a stream, unless it is there already.
    pub fn add_known(&self, descriptor: &Descriptor, mut from: impl Read) -> Result<()> {
        let Some(mut partial) = self.partial(descriptor)? else { return Ok(()) };
        partial.restart()?;
        let path = partial.path.clone();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = from.read(&mut buffer).at("reading for", &path)?;
            if n == 0 {
                return partial.finish();
            }
            partial.push(&buffer[..n])?;
        }
    }

    /// Begins or resumes fetching a blob; none if the store has it. Waits
    /// while another process or thread fetches the same one.
    pub fn partial(&self, descriptor: &Descriptor) -> Result<Option<Partial<'_>>> {
        let digest = descriptor.digest;
        if self.has_blob(digest) {
            return Ok(None);
        }
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        let lock = FileLock::exclusive(&self.path("locks").join(&name))?;
        if self.has_blob(digest) {
            return Ok(None);
        }
        let path = self.path("partial").join(&name);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .at("opening", &path)?;
        let mut hasher = digest.hasher();
        let mut have = 0;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = file.read(&mut buffer).at("reading", &path)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            have += n as u64;
        }
        let mut partial = Partial {
            session: self,
            descriptor: descriptor.clone(),
            file,
            path,
            hasher,
            have,
            _lock: lock,
        };
        if have > descriptor.size {
            partial.restart()?;
        }
        Ok(Some(partial))
    }
}

/// A blob being written under a temporary name.
pub struct BlobWriter<'a> {
    session: &'a Session<'a>,
    /// None once finished.
    out: Option<Hashing<File>>,
    path: PathBuf,
}

impl BlobWriter<'_> {
    /// Gives the blob its name. Returns its digest and size.
    pub fn finish(mut self) -> Result<(Digest, u64)> {
        let Some(out) = self.out.take() else {
            unreachable!("finish takes the writer");
        };
        let (file, digest, size) = out.finish();
        file.sync_all().at("writing", &self.path)?;
        let path = self.session.blob_path(digest);
        fs::rename(&self.path, &path).at("writing", &path)?;
        sync_dir(path.parent().unwrap_or(&path))?;
        Ok((digest, size))
    }

    /// Where the bytes are until `finish`.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.out {
            Some(out) => out.write(buffer),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter<'_> {
    fn drop(&mut self) {
        if self.out.is_some() {
            // Nothing more can be done; a collection removes what stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A blob of known digest being fetched. Dropped unfinished, it stays on disk
/// and the next attempt goes on from there.
pub struct Partial<'a> {
    session: &'a Session<'a>,
    descriptor: Descriptor,
    file: File,
    path: PathBuf,
    hasher: Hasher,
    have: u64,
    _lock: FileLock,
}

impl Partial<'_> {
    /// How many bytes are there.
    #[must_use]
    pub fn have(&self) -> u64 {
        self.have
    }

    /// Throws away what is there.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).at("truncating", &self.path)?;
        self.file.seek(SeekFrom::Start(0)).at("truncating", &self.path)?;
        self.hasher = self.descriptor.digest.hasher();
        self.have = 0;
        Ok(())
    }

    /// Adds bytes at the end; more than the descriptor promised is an error.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let have = self.have + bytes.len() as u64;
        if have > self.descriptor.size {
            let error = Error::WrongSize {
                what: format!("blob {}", self.descriptor.digest),
                expected: self.descriptor.size,
                found: have,
            };
            self.discard();
            return Err(error);
        }
        self.file.write_all(bytes).at("writing", &self.path)?;
        self.hasher.update(bytes);
        self.have = have;
        Ok(())
    }

    /// Verifies the blob and gives it its name.
    pub fn finish(self) -> Result<()> {
        let expected = self.descriptor.digest;
        if self.have != self.descriptor.size {
            return Err(Error::WrongSize {
                what: format!("blob {expected}"),
                expected: self.descriptor.size,
                found: self.have,
            });
        }
        let found = self.hasher.clone().finish();
        if found != expected {
            self.discard();
            return Err(Error::wrong_digest("a blob", expected, found));
        }
        self.file.sync_all().at("writing", &self.path)?;
        let path = self.session.blob_path(expected);
        fs::rename(&self.path, &path).at("writing", &path)?;
        sync_dir(path.parent().unwrap_or(&path))
    }

    /// What is there is wrong: nothing may resume from it.
    fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }
}
