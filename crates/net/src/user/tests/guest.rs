//! A guest's driver in process, with a small TCP of its own.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::frame::{Interface, Offload, Receives};
use crate::packet::{
    ACK, Ethernet, FIN, Headers, PROTOCOL_TCP, PROTOCOL_UDP, Packet, SYN, TcpFields, tcp_frame,
    udp_frame,
};
use crate::user::UserNetwork;

const PATIENCE: Duration = Duration::from_secs(60);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

pub struct Guest {
    pub network: UserNetwork,
    pub receives: Receives,
    /// Every so many frames from the network get lost.
    pub lose_every: Option<u64>,
    /// Buffers in the driver's ring.
    pub ring: usize,
    pub frames: VecDeque<(Vec<u8>, Offload)>,
    next_port: u16,
    delivered: u64,
}

/// The side that the network delivers to.
struct Driver<'a> {
    receives: Receives,
    lose_every: Option<u64>,
    ring: usize,
    frames: &'a mut VecDeque<(Vec<u8>, Offload)>,
    room: Vec<u8>,
    count: u64,
}

impl Interface for Driver<'_> {
    fn receives(&self) -> Receives {
        self.receives
    }

    fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        if self.frames.len() > self.ring {
            return None;
        }
        self.room.resize(size.max(self.room.len()), 0xee);
        Some(&mut self.room)
    }

    fn filled(&self, size: usize) -> &[u8] {
        &self.room[..size]
    }

    fn deliver(&mut self, size: usize, offload: Offload) {
        self.count += 1;
        if self.lose_every.is_none_or(|every| !self.count.is_multiple_of(every)) {
            self.frames.push_back((self.room[..size].to_vec(), offload));
        }
    }
}

impl Guest {
    pub fn new(network: UserNetwork) -> Guest {
        Guest {
            network,
            receives: Receives { checksum: true, tcp4: true, tcp6: true },
            lose_every: None,
            ring: 256,
            frames: VecDeque::new(),
            next_port: 40_000,
            delivered: 0,
        }
    }

    /// Lets the network do what it has to do.
    pub fn turn(&mut self) {
        self.turn_at(Instant::now());
    }

    /// The same at another time.
    pub fn turn_at(&mut self, now: Instant) {
        let mut driver = Driver {
            receives: self.receives,
            lose_every: self.lose_every,
            ring: self.ring,
            frames: &mut self.frames,
            room: Vec::new(),
            count: self.delivered,
        };
        self.network.poll_at(&mut driver, now);
        self.delivered = driver.count;
    }

    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Guest) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited in vain for: {what}");
            self.turn();
            std::thread::yield_now();
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn();
            std::thread::yield_now();
        }
    }

    /// A frame's source and destination MAC, from the guest's side.
    pub fn macs(&self) -> ([u8; 6], [u8; 6]) {
        ([0x52, 0x55, 10, 0, 2, 2], [0x52, 0x54, 0, 0x12, 0x34, 0x56])
    }

    pub fn send_datagram(&mut self, port: u16, to: SocketAddr, payload: &[u8]) {
        let mut frame = vec![0; 42 + payload.len()];
        frame[42..].copy_from_slice(payload);
        let from = SocketAddr::new(ADDRESS.into(), port);
        udp_frame(&mut frame, self.macs(), from, to, payload.len(), Receives::default());
        self.network.input(&frame, Offload::default());
        self.turn();
    }

    /// The next datagram to a port of the guest.
    pub fn receive_datagram(&mut self, port: u16) -> (SocketAddr, Vec<u8>) {
        let mut found = None;
        self.until("a datagram", |guest| {
            while let Some((frame, offload)) = guest.frames.pop_front() {
                let ethernet = Ethernet::parse(&frame).unwrap();
                let Ok(packet) = Packet::parse(ethernet.kind, ethernet.payload) else { continue };
                if packet.protocol != PROTOCOL_UDP {
                    continue;
                }
                let udp = packet.udp(&offload).unwrap();
                if udp.destination == port {
                    let source = SocketAddr::new(packet.source, udp.source);
                    found = Some((source, udp.payload.to_vec()));
                    return true;
                }
            }
            false
        });
        found.unwrap()
    }
}

/// One TCP connection of the guest.
pub struct Connection {
    port: u16,
    remote: SocketAddr,
    send_next: u32,
    acknowledged: u32,
    receive_next: u32,
    peer_window: u32,
    peer_shift: u8,
    pub window: u16,
    pub received: Vec<u8>,
    pub ended: bool,
}

impl Connection {
    pub fn begin(guest: &mut Guest, port: u16) -> Connection {
        guest.next_port += 1;
        let mut connection = Connection {
            port: guest.next_port,
            remote: SocketAddr::new(ROUTER.into(), port),
            send_next: 0xffff_fff0,
            acknowledged: 0xffff_fff0,
            receive_next: 0,
            peer_window: 0,
            peer_shift: 0,
            window: 65_535,
            received: Vec::new(),
            ended: false,
        };
        connection.send_with(guest, SYN, &[], Some((1460, Some(7))));
        connection.send_next = connection.send_next.wrapping_add(1);
        connection
    }

    pub fn open(guest: &mut Guest, port: u16) -> Connection {
        let mut connection = Connection::begin(guest, port);
        let mut answered = false;
        guest.until("an answer to SYN", |guest| {
            while let Some(flags) = connection.take(guest) {
                answered |= flags & SYN != 0;
            }
            answered
        });
        connection
    }

    /// Takes a connection that the network asks for.
    pub fn accept(guest: &mut Guest, port: u16) -> Connection {
        let mut connection = Connection::begin(guest, 1);
        connection.port = port;
        let mut found = None;
        guest.until("a SYN", |guest| {
            while let Some((frame, offload)) = guest.frames.pop_front() {
                let ethernet = Ethernet::parse(&frame).unwrap();
                let packet = Packet::parse(ethernet.kind, ethernet.payload).unwrap();
                let tcp = packet.tcp(&offload).unwrap();
                if tcp.flags == SYN && tcp.destination == port {
                    found = Some((packet.source, tcp.source, tcp.sequence, tcp.window_shift));
                    return true;
                }
            }
            false
        });
        let (address, source, sequence, shift) = found.unwrap();
        connection.remote = SocketAddr::new(address, source);
        connection.receive_next = sequence.wrapping_add(1);
        connection.peer_shift = shift.unwrap();
        connection.send_next = connection.send_next.wrapping_sub(1);
        connection.send_with(guest, SYN | ACK, &[], Some((1460, Some(7))));
        connection.send_next = connection.send_next.wrapping_add(1);
        guest.until("the handshake", |guest| {
            while connection.take(guest).is_some() {}
            connection.acknowledged == connection.send_next
        });
        connection
    }

    pub fn send(&mut self, guest: &mut Guest, flags: u8, payload: &[u8]) {
        self.send_with(guest, flags, payload, None);
    }

    fn send_with(
        &mut self,
        guest: &mut Guest,
        flags: u8,
        payload: &[u8],
        options: Option<(u16, Option<u8>)>,
    ) {
        let macs = guest.macs();
        let headers = Headers {
            to_mac: macs.0,
            from_mac: macs.1,
            source: IpAddr::V4(ADDRESS),
            destination: self.remote.ip(),
        };
        let fields = TcpFields {
            source: self.port,
            destination: self.remote.port(),
            sequence: self.send_next,
            acknowledgement: self.receive_next,
            flags,
            window: self.window,
            options,
        };
        let at = fields.payload_at(&headers);
        let mut frame = vec![0; at + payload.len()];
        frame[at..].copy_from_slice(payload);
        let receives = Receives { checksum: true, tcp4: true, tcp6: true };
        let (_, offload) = tcp_frame(&mut frame, &headers, &fields, payload.len(), 1460, receives);
        guest.network.input(&frame, offload);
        guest.turn();
    }

    /// Takes one segment of the network, acknowledges data, and says its flags.
    pub fn take(&mut self, guest: &mut Guest) -> Option<u8> {
        let place = guest.frames.iter().position(|(frame, _)| {
            let ethernet = Ethernet::parse(frame).unwrap();
            let packet = Packet::parse(ethernet.kind, ethernet.payload);
            packet.is_ok_and(|packet| {
                packet.protocol == PROTOCOL_TCP && packet.payload[2..4] == self.port.to_be_bytes()
            })
        })?;
        let (frame, offload) = guest.frames.remove(place).unwrap();
        let ethernet = Ethernet::parse(&frame).unwrap();
        let packet = Packet::parse(ethernet.kind, ethernet.payload).unwrap();
        let tcp = packet.tcp(&offload).expect("a good segment");
        let (flags, mut answer) = (tcp.flags, false);
        if tcp.has(ACK) {
            self.acknowledged = tcp.acknowledgement;
            self.peer_window = u32::from(tcp.window) << self.peer_shift;
        }
        if tcp.has(SYN) {
            self.receive_next = tcp.sequence.wrapping_add(1);
            self.peer_shift = tcp.window_shift.expect("a scaled window");
            answer = true;
        } else if tcp.sequence != self.receive_next {
            answer = tcp.length() > 0 || tcp.sequence.wrapping_add(1) == self.receive_next;
        } else if tcp.length() > 0 {
            let room = usize::from(self.window).max(1) << 7;
            assert!(tcp.payload.len() <= room, "more than the window");
            self.received.extend(tcp.payload);
            self.receive_next = self.receive_next.wrapping_add(tcp.length());
            self.ended |= tcp.has(FIN);
            answer = true;
        }
        if answer {
            self.send(guest, ACK, &[]);
        }
        Some(flags)
    }

    /// Sends as much as the window takes; how much that is.
    pub fn write_some(&mut self, guest: &mut Guest, bytes: &[u8]) -> usize {
        let end = Instant::now() + Duration::from_millis(300);
        loop {
            while self.take(guest).is_some() {}
            let in_flight = self.send_next.wrapping_sub(self.acknowledged);
            let open = self.peer_window.saturating_sub(in_flight) as usize;
            let count = bytes.len().min(open).min(60_000);
            if count > 0 || Instant::now() > end {
                if count > 0 {
                    self.send(guest, ACK, &bytes[..count]);
                    self.send_next = self.send_next.wrapping_add(count as u32);
                }
                return count;
            }
            guest.turn();
        }
    }

    pub fn write_all(&mut self, guest: &mut Guest, mut bytes: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while !bytes.is_empty() {
            assert!(Instant::now() < deadline, "the window stays closed");
            let count = self.write_some(guest, bytes);
            bytes = &bytes[count..];
        }
        guest.until("everything is acknowledged", |guest| {
            while self.take(guest).is_some() {}
            self.acknowledged == self.send_next
        });
    }

    pub fn finish(&mut self, guest: &mut Guest) {
        self.send(guest, FIN | ACK, &[]);
        self.send_next = self.send_next.wrapping_add(1);
        guest.until("the end is acknowledged", |guest| {
            while self.take(guest).is_some() {}
            self.acknowledged == self.send_next
        });
    }

    pub fn wait_for_end(&mut self, guest: &mut Guest) {
        guest.until("the other end's end", |guest| {
            while self.take(guest).is_some() {}
            self.ended
        });
    }

    pub fn read_to_end(&mut self, guest: &mut Guest) -> Vec<u8> {
        self.wait_for_end(guest);
        std::mem::take(&mut self.received)
    }
}
