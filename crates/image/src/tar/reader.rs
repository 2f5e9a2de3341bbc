//! Reads an archive entry by entry, each entry's data as a stream.

use std::io::{self, Read};

use super::header::{self, BLOCK, Header, Parsed};
use super::pax::{self, Records};
use super::{Device, Entry, Kind, TarError, Time};
use crate::limits;

/// An archive being read.
pub struct Reader<R> {
    inner: R,
    /// Data of the current entry that nobody has read yet.
    remaining: u64,
    /// Zeros between that data and the next header.
    padding: u64,
    global: Records,
    finished: bool,
    /// Where the data of the current entry begins.
    offset: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            remaining: 0,
            padding: 0,
            global: Records::default(),
            finished: false,
            offset: 0,
        }
    }

    /// The next entry; its data is then what `read` gives.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.finished {
            return Ok(None);
        }
        let mut records = self.global.clone();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                self.finished = true;
                return Ok(None);
            };
            self.remaining = header.size;
            self.padding = padding(header.size);
            match header.kind {
                b'x' => pax::parse(&self.meta("a PAX header")?, &mut records)?,
                b'g' => {
                    let bytes = self.meta("a global PAX header")?;
                    pax::parse(&bytes, &mut self.global)?;
                    pax::parse(&bytes, &mut records)?;
                }
                b'L' => long_name = Some(self.gnu_long("a long name")?),
                b'K' => long_link = Some(self.gnu_long("a long link")?),
                _ => return self.entry(header, records, long_name, long_link).map(Some),
            }
        }
    }

    /// Where the data of the current entry begins in the archive.
    pub fn data_offset(&self) -> u64 {
        self.offset
    }

    /// Reads the zeros and whatever else follows the archive's end mark, so
    /// that a digest of the whole stream can be taken.
    pub fn drain(&mut self) -> io::Result<()> {
        io::copy(&mut self.inner, &mut io::sink()).map(drop)
    }

    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    pub fn into_inner(self) -> R {
        self.inner
    }

    fn entry(
        &mut self,
        header: Header,
        records: Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let path = records.path.or(long_name).unwrap_or(header.name);
        let link = records.link.or(long_link).unwrap_or(header.link);
        if path.len() > limits::PATH_BYTES || link.len() > limits::PATH_BYTES {
            return Err(TarError::TooLong("a path", limits::PATH_BYTES as u64));
        }
        let unknown = |kind: u8| TarError::UnknownType {
            path: String::from_utf8_lossy(&path).into_owned(),
            kind: char::from(kind),
        };
        if records.sparse || header.kind == b'S' {
            return Err(unknown(b'S'));
        }
        let device = Device { major: header.major, minor: header.minor };
        let mut size = records.size.unwrap_or(header.size);
        let kind = match header.kind {
            // The old format marks a directory by a slash at the end.
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::Hardlink(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::Character(device),
            b'4' => Kind::Block(device),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(unknown(other)),
        };
        if kind != Kind::File {
            // Some writers put the linked file's size on a link, without data.
            size = 0;
        }
        self.remaining = size;
        self.padding = padding(size);
        let id = |value: u64| {
            u32::try_from(value)
                .ok()
                .filter(|&id| id != u32::MAX)
                .ok_or(TarError::Damaged("an owner's number is larger than 32 bits"))
        };
        Ok(Entry {
            mode: header.mode,
            uid: id(records.uid.unwrap_or(header.uid))?,
            gid: id(records.gid.unwrap_or(header.gid))?,
            mtime: records.mtime.unwrap_or(Time { seconds: header.mtime, nanoseconds: 0 }),
            size,
            xattrs: records.xattrs,
            path,
            kind,
        })
    }

    /// The next header block; none at the end mark or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0; BLOCK];
        let mut length = 0;
        while length < BLOCK {
            match self.inner.read(&mut block[length..]) {
                // Archives without an end mark exist; half a header does not.
                Ok(0) if length == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Cut),
                Ok(n) => length += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.offset += BLOCK as u64;
        match header::parse(&block)? {
            Parsed::Header(header) => Ok(Some(header)),
            Parsed::Zero => Ok(None),
        }
    }

    /// The data of an extension header, whole.
    fn meta(&mut self, what: &'static str) -> Result<Vec<u8>, TarError> {
        if self.remaining > limits::TAR_HEADER_BYTES {
            return Err(TarError::TooLong(what, limits::TAR_HEADER_BYTES));
        }
        let mut bytes = Vec::new();
        let wanted = self.remaining;
        self.by_ref().read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < wanted {
            return Err(TarError::Cut);
        }
        Ok(bytes)
    }

    fn gnu_long(&mut self, what: &'static str) -> Result<Vec<u8>, TarError> {
        let mut bytes = self.meta(what)?;
        if let Some(end) = bytes.iter().position(|&c| c == 0) {
            bytes.truncate(end);
        }
        Ok(bytes)
    }

    /// Reads on to the next header.
    fn skip_rest(&mut self) -> Result<(), TarError> {
        let left = self.remaining + self.padding;
        if left > 0 {
            let skipped = io::copy(&mut (&mut self.inner).take(left), &mut io::sink())?;
            self.offset += skipped;
            // The padding behind the very last entry may be missing.
            if skipped < self.remaining {
                return Err(TarError::Cut);
            }
        }
        self.remaining = 0;
        self.padding = 0;
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    // Not next_multiple_of: a size near the top of u64 must not overflow.
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// The data of the current entry. An archive that ends within it is an error.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.remaining == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.inner.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short"));
        }
        self.remaining -= n as u64;
        self.offset += n as u64;
        Ok(n)
    }
}
