//! DHCPv6 (RFC 8415): the guest gets the IPv6 address that goes with its IPv4 one, and
//! the resolver. Who makes its own address of the advertised prefix needs none of it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Context;
use super::dhcp::Handled;
use crate::frame::{Offload, Reason, Receives};
use crate::packet::{ETHERNET, IPV6, Mac, Packet, UDP, udp_frame};

const CLIENT_PORT: u16 = 546;
const SERVER_PORT: u16 = 547;
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION: u8 = 11;

const CLIENT: u16 = 1;
const SERVER: u16 = 2;
const ADDRESSES: u16 = 3;
const ADDRESS: u16 = 5;
const STATUS: u16 = 13;
const RAPID: u16 = 14;
const RESOLVERS: u16 = 23;

const SUCCESS: u16 = 0;
const NONE_LEFT: u16 = 2;
const NOT_ON_LINK: u16 = 4;
const LIFETIME: u32 = 86_400;
/// A client's identifier (RFC 8415, 11.1).
const LONGEST_CLIENT: usize = 130;
/// Associations that one message asks addresses for.
const MOST_ASSOCIATIONS: usize = 4;
const HEADER: usize = 4;

/// What a client says, as far as it matters here.
struct Question<'a> {
    kind: u8,
    transaction: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    /// Their numbers, and the addresses that they name.
    associations: Vec<([u8; 4], Vec<Ipv6Addr>)>,
    rapid: bool,
}

/// The options in bytes; an error where they do not end with the bytes.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Reason>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let read = |bytes: &[u8], at: usize| {
            Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
        };
        let (Some(kind), Some(length)) = (read(bytes, 0), read(bytes, 2)) else {
            bytes = &[];
            return Some(Err(Reason::Malformed));
        };
        let end = 4 + usize::from(length);
        let Some(value) = bytes.get(4..end) else {
            bytes = &[];
            return Some(Err(Reason::Malformed));
        };
        bytes = &bytes[end..];
        Some(Ok((kind, value)))
    })
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets))
}

impl<'a> Question<'a> {
    fn parse(message: &'a [u8]) -> Result<Question<'a>, Reason> {
        let ([kind, transaction @ ..], rest) =
            message.split_first_chunk::<HEADER>().ok_or(Reason::Malformed)?;
        let mut question = Question {
            kind: *kind,
            transaction: *transaction,
            client: None,
            server: None,
            associations: Vec::new(),
            rapid: false,
        };
        for option in options(rest) {
            match option? {
                (CLIENT, value) if value.len() <= LONGEST_CLIENT => question.client = Some(value),
                (CLIENT, _) => return Err(Reason::Malformed),
                (SERVER, value) => question.server = Some(value),
                (RAPID, _) => question.rapid = true,
                (ADDRESSES, value) if question.associations.len() < MOST_ASSOCIATIONS => {
                    let number = value.first_chunk().ok_or(Reason::Malformed)?;
                    let inner = options(value.get(12..).ok_or(Reason::Malformed)?);
                    let mut named = Vec::new();
                    for option in inner {
                        if let (ADDRESS, value) = option? {
                            named.push(address(value).ok_or(Reason::Malformed)?);
                        }
                    }
                    question.associations.push((*number, named));
                }
                _ => {}
            }
        }
        Ok(question)
    }
}

/// Takes a datagram if it is for the DHCPv6 server.
pub fn input(
    context: &mut Context,
    packet: &Packet<'_>,
    offload: &Offload,
) -> Result<Handled, Reason> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
        return Ok(Handled::No);
    };
    let udp = packet.udp(offload)?;
    if udp.destination != SERVER_PORT || destination != ALL_SERVERS {
        return Ok(Handled::No);
    }
    if !source.is_unicast_link_local() {
        return Err(Reason::Spoofed);
    }
    let question = Question::parse(udp.payload)?;
    if let Some(answer) = answer(context, &question)? {
        send(context, source, &answer);
    }
    Ok(Handled::Yes)
}

/// This server's identifier, made of its MAC.
fn server_identifier(mac: Mac) -> Vec<u8> {
    [&[0, 3, 0, 1][..], &mac].concat()
}

fn put(answer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    answer.extend(kind.to_be_bytes());
    answer.extend((value.len() as u16).to_be_bytes());
    answer.extend(value);
}

/// The answer to a question; none where it is for somebody else.
fn answer(context: &Context, question: &Question<'_>) -> Result<Option<Vec<u8>>, Reason> {
    let config = &context.config;
    let own = server_identifier(config.router_mac);
    let names_server = matches!(question.kind, REQUEST | RENEW | RELEASE | DECLINE);
    match question.server {
        Some(server) if server != own => return Ok(None),
        None if names_server => return Err(Reason::Malformed),
        _ => {}
    }
    if question.client.is_none() && question.kind != INFORMATION {
        return Err(Reason::Malformed);
    }
    let kind = match question.kind {
        SOLICIT if !question.rapid => ADVERTISE,
        SOLICIT | REQUEST | CONFIRM | RENEW | REBIND | RELEASE | DECLINE | INFORMATION => REPLY,
        _ => return Ok(None),
    };
    let mut answer = vec![kind];
    answer.extend(question.transaction);
    put(&mut answer, SERVER, &own);
    if let Some(client) = question.client {
        put(&mut answer, CLIENT, client);
    }
    match question.kind {
        CONFIRM => {
            let mut named = question.associations.iter().flat_map(|(_, named)| named);
            let status =
                if named.all(|address| *address == config.guest6) { SUCCESS } else { NOT_ON_LINK };
            put(&mut answer, STATUS, &status.to_be_bytes());
        }
        RELEASE | DECLINE => put(&mut answer, STATUS, &SUCCESS.to_be_bytes()),
        INFORMATION => {}
        _ => {
            if question.kind == SOLICIT && question.rapid {
                put(&mut answer, RAPID, &[]);
            }
            for (place, (number, _)) in question.associations.iter().enumerate() {
                let mut value = number.to_vec();
                value.extend((LIFETIME / 2).to_be_bytes());
                value.extend((LIFETIME / 5 * 4).to_be_bytes());
                if place == 0 {
                    let mut address = config.guest6.octets().to_vec();
                    address.extend(LIFETIME.to_be_bytes());
                    address.extend(LIFETIME.to_be_bytes());
                    put(&mut value, ADDRESS, &address);
                } else {
                    put(&mut value, STATUS, &NONE_LEFT.to_be_bytes());
                }
                put(&mut answer, ADDRESSES, &value);
            }
        }
    }
    put(&mut answer, RESOLVERS, &config.dns6.octets());
    Ok(Some(answer))
}

fn send(context: &mut Context, to: Ipv6Addr, answer: &[u8]) {
    let config = &context.config;
    let headers = ETHERNET + IPV6 + UDP;
    let mut frame = vec![0; headers + answer.len()];
    frame[headers..].copy_from_slice(answer);
    let from = SocketAddr::new(super::neighbour::link_local(config.router_mac).into(), SERVER_PORT);
    let to = SocketAddr::new(to.into(), CLIENT_PORT);
    let mac = (config.guest_mac, config.router_mac);
    udp_frame(&mut frame, mac, from, to, answer.len(), Receives::default());
    context.queue.push(&mut context.counters, frame);
}
