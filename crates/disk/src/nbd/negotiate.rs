//! The first phase: client and server agree on an export and on features.

use std::io;

use super::wire::{
    MAGIC, MAX_OPTION, MAX_TRANSFER, OPTION_MAGIC, REPLY_MAGIC, protocol_error, u32_of, u64_of,
};
use super::{Connection, Export};
use crate::bytes::{be16, be32};

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META: u32 = 9;
const OPT_SET_META: u32 = 10;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META: u32 = 4;
const ERR_UNSUPPORTED: u32 = 0x8000_0001;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

/// More options than a client has reason to send.
const MAX_OPTIONS: usize = 4096;

/// What block status can tell about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Context {
    Allocation,
    Bitmap(String),
}

impl Context {
    fn name(&self) -> String {
        match self {
            Self::Allocation => "base:allocation".to_owned(),
            Self::Bitmap(name) => format!("qemu:dirty-bitmap:{name}"),
        }
    }
}

/// What was agreed on.
pub(super) struct Session<'a> {
    pub export: &'a Export,
    pub structured: bool,
    /// By their numbers, from 1.
    pub contexts: Vec<Context>,
}

/// Flags that tell a client what an export can do.
fn flags(export: &Export) -> u16 {
    // Flags, flush, FUA, don't fragment, several connections, cache.
    let mut flags = 1 | 4 | 8 | 128 | 256 | 1024;
    if export.writable() {
        // Trim, write zeroes.
        flags |= 32 | 64;
    } else {
        flags |= 2;
    }
    flags
}

/// `None`: the client went away in order.
pub(super) fn negotiate<'a>(
    connection: &mut Connection,
    exports: &'a [Export],
) -> io::Result<Option<Session<'a>>> {
    let output = &mut connection.output;
    output.write_all(&MAGIC.to_be_bytes())?;
    output.write_all(&OPTION_MAGIC.to_be_bytes())?;
    output.write_all(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes())?;
    output.flush()?;
    let client = u32_of(&mut connection.input)?;
    let no_zeroes = client & u32::from(NO_ZEROES) != 0;
    let mut structured = false;
    let mut contexts: (String, Vec<Context>) = Default::default();
    for _ in 0..MAX_OPTIONS {
        if u64_of(&mut connection.input)? != OPTION_MAGIC {
            return Err(protocol_error("an option without its magic"));
        }
        let option = u32_of(&mut connection.input)?;
        let len = u32_of(&mut connection.input)?;
        if len > MAX_OPTION {
            return Err(protocol_error("an option that is too long"));
        }
        let mut data = vec![0; len as usize];
        connection.input.read_exact(&mut data)?;
        match option {
            OPT_EXPORT_NAME => {
                let name = String::from_utf8_lossy(&data);
                let Some(export) = find(exports, &name) else {
                    // This option knows no errors.
                    return Err(protocol_error("an export that is not there"));
                };
                connection.output.write_all(&export.device.size().to_be_bytes())?;
                connection.output.write_all(&flags(export).to_be_bytes())?;
                if !no_zeroes {
                    connection.output.write_all(&[0; 124])?;
                }
                connection.output.flush()?;
                let contexts = agreed(contexts, export);
                return Ok(Some(Session { export, structured, contexts }));
            }
            OPT_ABORT => {
                reply(connection, option, REP_ACK, &[])?;
                return Ok(None);
            }
            OPT_LIST if !data.is_empty() => reply(connection, option, ERR_INVALID, &[])?,
            OPT_LIST => {
                for export in exports {
                    let mut item = (export.name.len() as u32).to_be_bytes().to_vec();
                    item.extend(export.name.as_bytes());
                    item.extend(export.description.as_bytes());
                    reply(connection, option, REP_SERVER, &item)?;
                }
                reply(connection, option, REP_ACK, &[])?;
            }
            OPT_INFO | OPT_GO => {
                let Some((name, wanted)) = info_request(&data) else {
                    reply(connection, option, ERR_INVALID, &[])?;
                    continue;
                };
                let Some(export) = find(exports, &name) else {
                    reply(connection, option, ERR_UNKNOWN, b"there is no such export")?;
                    continue;
                };
                tell(connection, option, export, &wanted)?;
                reply(connection, option, REP_ACK, &[])?;
                if option == OPT_GO {
                    let contexts = agreed(contexts, export);
                    return Ok(Some(Session { export, structured, contexts }));
                }
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                structured = true;
                reply(connection, option, REP_ACK, &[])?;
            }
            OPT_STRUCTURED_REPLY => reply(connection, option, ERR_INVALID, &[])?,
            OPT_LIST_META | OPT_SET_META => {
                let Some((name, queries)) = meta_request(&data).filter(|_| structured) else {
                    reply(connection, option, ERR_INVALID, &[])?;
                    continue;
                };
                let Some(export) = find(exports, &name) else {
                    reply(connection, option, ERR_UNKNOWN, b"there is no such export")?;
                    continue;
                };
                let set = option == OPT_SET_META;
                let found = matching(export, &queries, set);
                for (index, context) in found.iter().enumerate() {
                    let number = if set { index as u32 + 1 } else { 0 };
                    let mut item = number.to_be_bytes().to_vec();
                    item.extend(context.name().as_bytes());
                    reply(connection, option, REP_META, &item)?;
                }
                if set {
                    contexts = (export.name.clone(), found);
                }
                reply(connection, option, REP_ACK, &[])?;
            }
            _ => reply(connection, option, ERR_UNSUPPORTED, &[])?,
        }
    }
    Err(protocol_error("too many options"))
}

fn reply(connection: &mut Connection, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let output = &mut connection.output;
    output.write_all(&REPLY_MAGIC.to_be_bytes())?;
    output.write_all(&option.to_be_bytes())?;
    output.write_all(&kind.to_be_bytes())?;
    output.write_all(&(data.len() as u32).to_be_bytes())?;
    output.write_all(data)?;
    output.flush()
}

/// The export by its name; without one, the first.
fn find<'a>(exports: &'a [Export], name: &str) -> Option<&'a Export> {
    exports
        .iter()
        .find(|export| export.name == name)
        .or_else(|| exports.first().filter(|_| name.is_empty()))
}

/// Contexts count for the export that they were asked for.
fn agreed((name, contexts): (String, Vec<Context>), export: &Export) -> Vec<Context> {
    if name == export.name { contexts } else { Vec::new() }
}

fn tell(
    connection: &mut Connection,
    option: u32,
    export: &Export,
    wanted: &[u16],
) -> io::Result<()> {
    let mut item = INFO_EXPORT.to_be_bytes().to_vec();
    item.extend(export.device.size().to_be_bytes());
    item.extend(flags(export).to_be_bytes());
    reply(connection, option, REP_INFO, &item)?;
    let mut item = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    item.extend(1_u32.to_be_bytes());
    item.extend(4096_u32.to_be_bytes());
    item.extend(MAX_TRANSFER.to_be_bytes());
    reply(connection, option, REP_INFO, &item)?;
    for &kind in wanted {
        let text = match kind {
            INFO_NAME => &export.name,
            INFO_DESCRIPTION if !export.description.is_empty() => &export.description,
            _ => continue,
        };
        let mut item = kind.to_be_bytes().to_vec();
        item.extend(text.as_bytes());
        reply(connection, option, REP_INFO, &item)?;
    }
    Ok(())
}

fn info_request(data: &[u8]) -> Option<(String, Vec<u16>)> {
    let (name, rest) = text(data)?;
    let count = usize::from(be16(rest.get(..2)?, 0));
    let kinds = rest.get(2..).filter(|kinds| kinds.len() == count * 2)?;
    Some((name, kinds.chunks_exact(2).map(|kind| be16(kind, 0)).collect()))
}

fn meta_request(data: &[u8]) -> Option<(String, Vec<String>)> {
    let (name, rest) = text(data)?;
    let count = be32(rest.get(..4)?, 0);
    let mut rest = &rest[4..];
    let mut queries = Vec::new();
    for _ in 0..count {
        let (query, after) = text(rest)?;
        queries.push(query);
        rest = after;
    }
    rest.is_empty().then_some((name, queries))
}

/// Text with its length before it.
fn text(data: &[u8]) -> Option<(String, &[u8])> {
    let len = be32(data.get(..4)?, 0) as usize;
    let rest = &data[4..];
    let text = std::str::from_utf8(rest.get(..len)?).ok()?;
    Some((text.to_owned(), &rest[len..]))
}

/// The contexts that queries name. A list may name a whole group.
fn matching(export: &Export, queries: &[String], set: bool) -> Vec<Context> {
    let mut all = vec![Context::Allocation];
    all.extend(export.bitmaps.iter().map(|name| Context::Bitmap(name.clone())));
    if queries.is_empty() && !set {
        return all;
    }
    all.retain(|context| {
        let name = context.name();
        queries.iter().any(|query| {
            *query == name || (!set && query.ends_with(':') && name.starts_with(&**query))
        })
    });
    all
}
