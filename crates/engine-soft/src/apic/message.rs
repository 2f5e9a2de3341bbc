//! Interrupts on their way from one place to another.

use guise_engine::Msi;

/// How an interrupt is delivered, with the encodings of ICR, LVTs and MSI data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    Fixed,
    LowestPriority,
    Smi,
    Reserved,
    Nmi,
    Init,
    StartUp,
    External,
}

impl DeliveryMode {
    /// From bits 8 to 10 of a register.
    pub fn of(register: u32) -> Self {
        match register >> 8 & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::External,
        }
    }
}

/// Who is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The APIC with this id, or all.
    Physical(u32),
    /// All APICs whose logical id matches.
    Logical(u32),
    Sender,
    All,
    AllButSender,
}

/// All APICs, in a 32-bit destination. An 8-bit one is widened to this.
pub const BROADCAST: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub mode: DeliveryMode,
    pub vector: u8,
    pub level_triggered: bool,
    pub destination: Destination,
}

fn widen(destination: u8) -> u32 {
    if destination == 0xff { BROADCAST } else { u32::from(destination) }
}

impl Message {
    /// What a write of the interrupt command register sends; `destination` is
    /// already 32 bits wide. None for the deassertion of INIT, which processors
    /// since the Pentium 4 ignore.
    pub fn from_icr(low: u32, destination: u32) -> Option<Self> {
        let mode = DeliveryMode::of(low);
        let (asserted, level_triggered) = (low & 1 << 14 != 0, low & 1 << 15 != 0);
        if mode == DeliveryMode::Init && level_triggered && !asserted {
            return None;
        }
        let destination = match low >> 18 & 3 {
            0 if low & 1 << 11 != 0 => Destination::Logical(destination),
            0 => Destination::Physical(destination),
            1 => Destination::Sender,
            2 => Destination::All,
            _ => Destination::AllButSender,
        };
        // All IPIs are edge-triggered whatever the register says.
        Some(Self { mode, vector: low as u8, level_triggered: false, destination })
    }

    /// The same for the 8-bit destination of the memory-mapped register.
    pub fn from_xapic_icr(low: u32, high: u32) -> Option<Self> {
        Self::from_icr(low, widen((high >> 24) as u8))
    }

    /// None when the address is not one of an interrupt message.
    pub fn from_msi(msi: Msi) -> Option<Self> {
        if msi.address >> 20 != 0xfee {
            return None;
        }
        let destination = widen((msi.address >> 12) as u8);
        let logical = msi.address & 1 << 2 != 0;
        // The redirection hint asks for one of the logical destination's processors.
        let hint = msi.address & 1 << 3 != 0;
        let mode = match DeliveryMode::of(msi.data) {
            DeliveryMode::Fixed if hint && logical => DeliveryMode::LowestPriority,
            mode => mode,
        };
        Some(Self {
            mode,
            vector: msi.data as u8,
            level_triggered: msi.data & 1 << 15 != 0,
            destination: if logical {
                Destination::Logical(destination)
            } else {
                Destination::Physical(destination)
            },
        })
    }
}

/// How an APIC matches logical destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogicalId {
    /// One bit for each of up to 8 processors.
    Flat(u8),
    /// Cluster in the upper half, a bit within it in the lower one.
    Cluster(u8),
    /// Cluster in the upper 16 bits, a bit within it in the lower ones.
    X2(u32),
}

impl LogicalId {
    /// The fixed logical id of x2APIC mode.
    pub fn x2(id: u32) -> Self {
        Self::X2((id >> 4) << 16 | 1 << (id & 15))
    }

    pub fn matches(self, destination: u32) -> bool {
        match self {
            _ if destination == BROADCAST => true,
            Self::Flat(id) => destination <= 0xff && destination as u8 & id != 0,
            Self::Cluster(id) => {
                let wanted = destination as u8;
                let cluster = wanted >> 4 == id >> 4 || wanted >> 4 == 0xf;
                destination <= 0xff && cluster && wanted & id & 0xf != 0
            }
            Self::X2(id) => destination >> 16 == id >> 16 && destination & id & 0xffff != 0,
        }
    }
}

#[cfg(test)]
mod tests;
