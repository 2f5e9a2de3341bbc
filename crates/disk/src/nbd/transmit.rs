//! The second phase: requests and replies.

use std::io::{self, Write};

use super::Connection;
use super::negotiate::{Context, Session};
use super::wire::{
    MAX_TRANSFER, REQUEST_MAGIC, SIMPLE_MAGIC, chunk, protocol_error, u16_of, u32_of, u64_of,
};
use crate::error::{Error, Result};
use crate::graph::{Image, Node};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;
const FLAG_ONE_PIECE: u16 = 4;
const FLAG_ONE_EXTENT: u16 = 8;

const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 0x8001;

const HOLE: u32 = 1;
const ZERO: u32 = 2;
const DIRTY: u32 = 1;
/// Extents in one answer about block status.
const MAX_EXTENTS: usize = 2048;

struct Request {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

/// Serves requests until the client goes.
pub(super) fn transmit(connection: &mut Connection, session: &Session<'_>) -> io::Result<()> {
    loop {
        let input = &mut connection.input;
        if u32_of(input)? != REQUEST_MAGIC {
            return Err(protocol_error("a request without its magic"));
        }
        let request = Request {
            flags: u16_of(input)?,
            kind: u16_of(input)?,
            cookie: u64_of(input)?,
            offset: u64_of(input)?,
            len: u32_of(input)?,
        };
        let mut data = Vec::new();
        if request.kind == WRITE {
            if request.len > MAX_TRANSFER {
                return Err(protocol_error("a write that is too long"));
            }
            data.resize(request.len as usize, 0);
            input.read_exact(&mut data)?;
        }
        if request.kind == DISCONNECT {
            return Ok(());
        }
        answer(&mut *connection.output, session, &request, &data)?;
        connection.output.flush()?;
    }
}

fn answer(
    output: &mut dyn Write,
    session: &Session<'_>,
    request: &Request,
    data: &[u8],
) -> io::Result<()> {
    match request.kind {
        READ => read(output, session, request),
        BLOCK_STATUS => block_status(output, session, request),
        _ => {
            let result = change(session, request, data);
            finish(output, session, request, result)
        }
    }
}

/// The reply to a request without data in it.
fn finish(
    output: &mut dyn Write,
    session: &Session<'_>,
    request: &Request,
    result: Result<()>,
) -> io::Result<()> {
    match result {
        Ok(()) if session.structured => chunk(output, request.cookie, true, CHUNK_NONE, &[]),
        Ok(()) => simple(output, request.cookie, 0),
        Err(error) => fail(output, session, request, &error),
    }
}

fn simple(output: &mut dyn Write, cookie: u64, error: u32) -> io::Result<()> {
    output.write_all(&SIMPLE_MAGIC.to_be_bytes())?;
    output.write_all(&error.to_be_bytes())?;
    output.write_all(&cookie.to_be_bytes())
}

fn fail(
    output: &mut dyn Write,
    session: &Session<'_>,
    request: &Request,
    error: &Error,
) -> io::Result<()> {
    // The protocol has its own few numbers.
    let number: u32 = match error.errno() {
        libc::EPERM | libc::EROFS => 1,
        libc::ENOMEM => 12,
        libc::EINVAL => 22,
        libc::ENOSPC | libc::EDQUOT => 28,
        libc::ENOTSUP => 95,
        _ => 5,
    };
    if !session.structured {
        return simple(output, request.cookie, number);
    }
    let mut text = error.to_string();
    let mut end = text.len().min(1024);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    let len = (text.len() as u16).to_be_bytes();
    chunk(
        output,
        request.cookie,
        true,
        CHUNK_ERROR,
        &[&number.to_be_bytes(), &len, text.as_bytes()],
    )
}

fn change(session: &Session<'_>, request: &Request, data: &[u8]) -> Result<()> {
    let device = &session.export.device;
    let (offset, len) = (request.offset, u64::from(request.len));
    let writes = matches!(request.kind, WRITE | TRIM | WRITE_ZEROES);
    if writes && !session.export.writable() {
        return Err(Error::ReadOnly { name: session.export.name.clone() });
    }
    match request.kind {
        WRITE => device.write(offset, data)?,
        TRIM => device.discard(offset, len)?,
        WRITE_ZEROES => device.write_zeroes(offset, len, request.flags & FLAG_NO_HOLE == 0)?,
        FLUSH => return device.flush(),
        CACHE => {}
        _ => return Err(Error::option("request", format!("{} is not known", request.kind))),
    }
    if writes && request.flags & FLAG_FUA != 0 {
        device.flush()?;
    }
    Ok(())
}

fn read(output: &mut dyn Write, session: &Session<'_>, request: &Request) -> io::Result<()> {
    let device = &session.export.device;
    let (offset, len) = (request.offset, u64::from(request.len));
    if request.len > MAX_TRANSFER {
        let error = Error::option("request", "reads are limited to 32 MiB");
        return fail(output, session, request, &error);
    }
    if let Err(error) = crate::graph::check_range(offset, len, device.size()) {
        return fail(output, session, request, &error);
    }
    let mut data = vec![0; request.len as usize];
    if !session.structured || request.flags & FLAG_ONE_PIECE != 0 {
        return match device.read(offset, &mut data) {
            Err(error) => fail(output, session, request, &error),
            Ok(()) if session.structured => {
                let at = offset.to_be_bytes();
                chunk(output, request.cookie, true, CHUNK_DATA, &[&at, &data])
            }
            Ok(()) => {
                simple(output, request.cookie, 0)?;
                output.write_all(&data)
            }
        };
    }
    // Holes need not travel.
    let mut done = 0;
    while done < len {
        let at = offset + done;
        let status = match device.status(at, len - done) {
            Ok(status) => status,
            Err(error) => return fail(output, session, request, &error),
        };
        let last = done + status.len == len;
        let place = at.to_be_bytes();
        if status.zero {
            let hole = (status.len as u32).to_be_bytes();
            chunk(output, request.cookie, last, CHUNK_HOLE, &[&place, &hole])?;
        } else {
            let part = &mut data[..status.len as usize];
            if let Err(error) = device.read(at, part) {
                return fail(output, session, request, &error);
            }
            chunk(output, request.cookie, last, CHUNK_DATA, &[&place, part])?;
        }
        done += status.len;
    }
    if len == 0 {
        return chunk(output, request.cookie, true, CHUNK_NONE, &[]);
    }
    Ok(())
}

fn block_status(
    output: &mut dyn Write,
    session: &Session<'_>,
    request: &Request,
) -> io::Result<()> {
    let image = session.export.device.image();
    let (offset, len) = (request.offset, u64::from(request.len));
    let checked = crate::graph::check_range(offset, len, image.size());
    if session.contexts.is_empty() || len == 0 || checked.is_err() {
        let error = Error::option("request", "no status can be told for that");
        return fail(output, session, request, &error);
    }
    let limit = if request.flags & FLAG_ONE_EXTENT != 0 { 1 } else { MAX_EXTENTS };
    for (index, context) in session.contexts.iter().enumerate() {
        let extents = match context {
            Context::Allocation => allocation(image, offset, len, limit),
            Context::Bitmap(name) => dirty(image, name, offset, len, limit),
        };
        let extents = match extents {
            Ok(extents) => extents,
            Err(error) => return fail(output, session, request, &error),
        };
        let mut item = (index as u32 + 1).to_be_bytes().to_vec();
        for (len, flags) in extents {
            item.extend(len.to_be_bytes());
            item.extend(flags.to_be_bytes());
        }
        let last = index + 1 == session.contexts.len();
        chunk(output, request.cookie, last, CHUNK_STATUS, &[&item])?;
    }
    Ok(())
}

fn push(extents: &mut Vec<(u32, u32)>, len: u64, flags: u32) {
    match extents.last_mut() {
        // Requests are of 32 bits, and so are sums of their parts.
        Some((before, same)) if *same == flags => *before += len as u32,
        _ => extents.push((len as u32, flags)),
    }
}

fn allocation(image: &Image, offset: u64, len: u64, limit: usize) -> Result<Vec<(u32, u32)>> {
    let mut extents = Vec::new();
    let mut done = 0;
    while done < len {
        let status = image.status(offset + done, len - done)?;
        let flags = match (status.zero, status.data) {
            (true, true) => ZERO,
            (true, false) => HOLE | ZERO,
            _ => 0,
        };
        push(&mut extents, status.len, flags);
        if extents.len() > limit {
            extents.pop();
            break;
        }
        done += status.len;
    }
    Ok(extents)
}

fn dirty(
    image: &Image,
    name: &str,
    offset: u64,
    len: u64,
    limit: usize,
) -> Result<Vec<(u32, u32)>> {
    let Some(qcow2) = image.format().as_qcow2() else {
        return Err(Error::NoSuchOperation { format: image.kind().name(), what: "bitmaps" });
    };
    let end = offset + len;
    let mut extents = Vec::new();
    let mut at = offset;
    for (start, length) in qcow2.dirty_stretches(name)? {
        let (start, stop) = (start.clamp(at, end), (start + length).clamp(at, end));
        if start > at {
            push(&mut extents, start - at, 0);
        }
        if stop > start {
            push(&mut extents, stop - start, DIRTY);
        }
        at = stop;
        if at == end || extents.len() >= limit {
            break;
        }
    }
    if at < end && extents.len() < limit {
        push(&mut extents, end - at, 0);
    }
    extents.truncate(limit);
    Ok(extents)
}
