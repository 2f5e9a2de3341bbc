//! Writes archives: ustar, with PAX records where ustar's fields are too small.
//! The same entries always give the same bytes.

use std::io::{self, Read, Write};

use super::header::{self, BLOCK, Header};
use super::pax;
use super::{Entry, Kind};

pub struct Writer<W: Write> {
    inner: W,
}

impl<W: Write> Writer<W> {
    pub fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Appends an entry and, for a file, exactly `entry.size` bytes of data.
    pub fn append(&mut self, entry: &Entry, data: impl Read) -> io::Result<()> {
        self.header(entry)?;
        if entry.kind == Kind::File {
            let written = io::copy(&mut data.take(entry.size), &mut self.inner)?;
            if written != entry.size {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "a file became shorter while it was read",
                ));
            }
            self.pad(entry.size)?;
        }
        Ok(())
    }

    /// Appends a small file.
    pub fn file(&mut self, path: &str, data: &[u8]) -> io::Result<()> {
        let mut entry = Entry::new(path, Kind::File, 0o644);
        entry.size = data.len() as u64;
        self.append(&entry, data)
    }

    /// Writes the end mark.
    pub fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&[0; 2 * BLOCK])?;
        self.inner.flush()?;
        Ok(self.inner)
    }

    fn header(&mut self, entry: &Entry) -> io::Result<()> {
        let (kind, link, device): (u8, &[u8], _) = match &entry.kind {
            Kind::File => (b'0', b"", None),
            Kind::Hardlink(link) => (b'1', link, None),
            Kind::Symlink(link) => (b'2', link, None),
            Kind::Character(device) => (b'3', b"", Some(device)),
            Kind::Block(device) => (b'4', b"", Some(device)),
            Kind::Directory => (b'5', b"", None),
            Kind::Fifo => (b'6', b"", None),
        };
        let mut name = entry.path.clone();
        if kind == b'5' && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let header = Header {
            name,
            link: link.to_vec(),
            kind,
            mode: entry.mode & 0o7777,
            uid: u64::from(entry.uid),
            gid: u64::from(entry.gid),
            size: if kind == b'0' { entry.size } else { 0 },
            mtime: entry.mtime.seconds,
            major: device.map_or(0, |d| d.major),
            minor: device.map_or(0, |d| d.minor),
        };
        let (block, overflow) = header::build(&header);
        let mut records = Vec::new();
        if overflow.path {
            pax::push(&mut records, b"path", &header.name);
        }
        if overflow.link {
            pax::push(&mut records, b"linkpath", &header.link);
        }
        if overflow.uid {
            pax::push(&mut records, b"uid", header.uid.to_string().as_bytes());
        }
        if overflow.gid {
            pax::push(&mut records, b"gid", header.gid.to_string().as_bytes());
        }
        if overflow.size {
            pax::push(&mut records, b"size", header.size.to_string().as_bytes());
        }
        if overflow.mtime {
            pax::push(&mut records, b"mtime", header.mtime.to_string().as_bytes());
        }
        for (name, value) in &entry.xattrs {
            pax::push(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        if !records.is_empty() {
            let (extension, _) = header::build(&Header {
                name: b"PaxHeaders/entry".to_vec(),
                link: Vec::new(),
                kind: b'x',
                mode: 0o644,
                uid: 0,
                gid: 0,
                size: records.len() as u64,
                mtime: 0,
                major: 0,
                minor: 0,
            });
            self.inner.write_all(&extension)?;
            self.inner.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.inner.write_all(&block)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.inner.write_all(&[0; BLOCK][over..]) }
    }
}
