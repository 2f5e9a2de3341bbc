//! Names: those of other instances are answered here, all others go to the host's
//! resolvers.

use std::net::{IpAddr, SocketAddr};

use super::Config;

const PORT: u16 = 53;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const HEADER: usize = 12;
const TTL_SECONDS: u32 = 5;
/// An answer that is certain to fit a datagram of any resolver.
const LARGEST: usize = 512;

/// The resolvers in /etc/resolv.conf.
pub fn of_host() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    parse(&text)
}

fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = (words.next()? == "nameserver").then(|| words.next())??;
            let address: IpAddr = address.split('%').next()?.parse().ok()?;
            Some(SocketAddr::new(address, PORT))
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Question,
    Answer,
}

/// The identifier of a message, if it is one of this kind.
pub fn identifier(message: &[u8], kind: Kind) -> Option<u16> {
    let header = message.get(..HEADER)?;
    let answers = header[2] & 0x80 != 0;
    (answers == (kind == Kind::Answer)).then(|| u16::from_be_bytes([header[0], header[1]]))
}

/// The answer to a query for a name of this network; none for all others.
pub fn answer(config: &Config, query: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]));
    let (flags, questions) = (word(2)?, word(4)?);
    // An ordinary query with one question.
    if flags & 0xf800 != 0 || questions != 1 {
        return None;
    }
    let (name, end) = read_name(query, HEADER)?;
    let (kind, class) = (word(end)?, word(end + 2)?);
    let addresses = config.names.get(&name)?;
    if class != CLASS_IN {
        return None;
    }
    let mut answer = query.get(..end + 4)?.to_vec();
    // A response with authority; recursion as was asked for, and available.
    answer[2..4].copy_from_slice(&(0x8480 | (flags & 0x0100)).to_be_bytes());
    answer[6..HEADER].fill(0);
    let mut count: u16 = 0;
    for address in addresses {
        let (own, octets) = match address {
            IpAddr::V4(address) => (TYPE_A, address.octets().to_vec()),
            IpAddr::V6(address) => (TYPE_AAAA, address.octets().to_vec()),
        };
        if (kind != own && kind != TYPE_ANY) || answer.len() + 12 + octets.len() > LARGEST {
            continue;
        }
        // The name is the question's, by reference.
        answer.extend([0xc0, HEADER as u8]);
        answer.extend(own.to_be_bytes());
        answer.extend(CLASS_IN.to_be_bytes());
        answer.extend(TTL_SECONDS.to_be_bytes());
        answer.extend((octets.len() as u16).to_be_bytes());
        answer.extend(octets);
        count += 1;
    }
    answer[6..8].copy_from_slice(&count.to_be_bytes());
    Some(answer)
}

/// The name in a question, in lower case with dots, and where it ends. A question has
/// no references.
fn read_name(bytes: &[u8], start: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = start;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        match length {
            0 => return Some((name, at)),
            1..=63 => {
                let label = bytes.get(at..at + length)?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(&std::str::from_utf8(label).ok()?.to_ascii_lowercase());
                at += length;
            }
            _ => return None,
        }
        if name.len() > 255 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests;
