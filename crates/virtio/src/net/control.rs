//! The control queue: which frames the driver wants, how many queue pairs, which
//! offloads.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{NetState, OFFLOADS};
use crate::queue::{Chain, Queue, QueueError};

const OK: u8 = 0;
const REFUSED: u8 = 1;

/// The largest command: two tables of addresses.
const LARGEST_COMMAND: u64 = 64 << 10;
/// Addresses of one table; a longer one lets everything of its kind in.
const LARGEST_TABLE: usize = 64;
const VLANS: u16 = 4096;
const VLAN_TAG: [u8; 2] = [0x81, 0x00];

/// Which frames reach the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    pub mac: [u8; 6],
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: Vec<[u8; 6]>,
    multicast: Vec<[u8; 6]>,
    /// Tagged frames of these only; of all while none was ever named.
    vlans: BTreeSet<u16>,
}

impl Filter {
    pub fn new(mac: [u8; 6]) -> Self {
        Self {
            mac,
            promiscuous: false,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Vec::new(),
            multicast: Vec::new(),
            vlans: BTreeSet::new(),
        }
    }

    pub fn set_promiscuous(&mut self, on: bool) {
        self.promiscuous = on;
    }

    /// Whether the guest wants a frame.
    pub fn passes(&self, frame: &[u8]) -> bool {
        let Some((to, rest)) = frame.split_first_chunk::<6>() else { return false };
        if let [_, _, _, _, _, _, a, b, c, d, ..] = *rest
            && [a, b] == VLAN_TAG
            && !self.vlans.is_empty()
            && !self.vlans.contains(&(u16::from_be_bytes([c, d]) & 0xfff))
        {
            return false;
        }
        if self.promiscuous {
            return true;
        }
        if *to == [0xff; 6] {
            return !self.no_broadcast;
        }
        if to[0] & 1 != 0 {
            return !self.no_multicast && (self.all_multicast || self.multicast.contains(to));
        }
        !self.no_unicast && (self.all_unicast || *to == self.mac || self.unicast.contains(to))
    }

    /// Switches of receive mode.
    fn mode(&mut self, command: u8, data: &[u8]) -> Option<()> {
        let [on] = *data else { return None };
        let switch = match command {
            0 => &mut self.promiscuous,
            1 => &mut self.all_multicast,
            2 => &mut self.all_unicast,
            3 => &mut self.no_multicast,
            4 => &mut self.no_unicast,
            5 => &mut self.no_broadcast,
            _ => return None,
        };
        *switch = on != 0;
        Some(())
    }

    fn addresses(&mut self, command: u8, data: &[u8]) -> Option<()> {
        match command {
            0 => {
                let (unicast, rest) = table(data)?;
                let (multicast, rest) = table(rest)?;
                if !rest.is_empty() {
                    return None;
                }
                self.all_unicast |= unicast.len() > LARGEST_TABLE;
                self.all_multicast |= multicast.len() > LARGEST_TABLE;
                self.unicast = unicast.into_iter().take(LARGEST_TABLE).collect();
                self.multicast = multicast.into_iter().take(LARGEST_TABLE).collect();
            }
            1 => self.mac = data.try_into().ok()?,
            _ => return None,
        }
        Some(())
    }

    fn vlan(&mut self, command: u8, data: &[u8]) -> Option<()> {
        let id = u16::from_le_bytes(data.try_into().ok()?);
        match command {
            0 if id < VLANS => _ = self.vlans.insert(id),
            1 => _ = self.vlans.remove(&id),
            _ => return None,
        }
        Some(())
    }
}

/// A count and so many addresses; what follows them.
fn table(data: &[u8]) -> Option<(Vec<[u8; 6]>, &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let length = (u32::from_le_bytes(*count) as usize).checked_mul(6)?;
    let (addresses, rest) = rest.split_at_checked(length)?;
    Some((addresses.as_chunks::<6>().0.to_vec(), rest))
}

/// Does one command. Nothing is changed when it makes no sense.
pub fn execute(state: &mut NetState, pairs: u16, command: &[u8]) -> Option<()> {
    let (&[class, command], data) = command.split_first_chunk::<2>()?;
    match class {
        0 => state.filter.mode(command, data),
        1 => state.filter.addresses(command, data),
        2 => state.filter.vlan(command, data),
        4 if command == 0 => {
            let wanted = u16::from_le_bytes(data.try_into().ok()?);
            if !(1..=pairs).contains(&wanted) {
                return None;
            }
            state.pairs = wanted;
            Some(())
        }
        5 if command == 0 => {
            let wanted = u64::from_le_bytes(data.try_into().ok()?);
            if wanted & !OFFLOADS != 0 {
                return None;
            }
            state.offloads = wanted;
            Some(())
        }
        _ => None,
    }
}

/// Takes a command from the queue and answers it.
pub fn answer(
    queue: &mut Queue,
    chain: Chain,
    state: &mut NetState,
    pairs: u16,
) -> Result<(), QueueError> {
    let mut reader = chain.reader(queue.memory());
    let mut command = vec![0; reader.remaining().min(LARGEST_COMMAND) as usize];
    reader.read(&mut command)?;
    let whole = reader.remaining() == 0;
    let done = if whole { execute(state, pairs, &command) } else { None };
    let mut writer = chain.writer(queue.memory());
    let written = writer.write(&[if done.is_some() { OK } else { REFUSED }])?;
    if written == 0 {
        return Err(QueueError::Request("it has no room for an answer"));
    }
    queue.push(chain, written as u32)
}
