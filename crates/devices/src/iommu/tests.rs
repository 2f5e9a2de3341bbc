mod commands;
mod dma;
mod interrupts;

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// The function that most tests are about: 00:03.0.
const FUNCTION: RequesterId = RequesterId { bus: 0, device: 3, function: 0 };
const NUMBER: u64 = 0x18;

/// Where tests put tables.
const ROOT: u64 = 0x1_0000;
const CONTEXT: u64 = 0x1_1000;
const QUEUE_AT: u64 = 0x1_2000;
const INTERRUPTS: u64 = 0x1_3000;
const TABLES: u64 = 0x2_0000;

struct Rig {
    iommu: Arc<Iommu>,
    memory: GuestMemory,
    sent: Arc<Mutex<Vec<Msi>>>,
}

fn rig() -> Rig {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let sent: Arc<Mutex<Vec<Msi>>> = Arc::default();
    let sink = sent.clone();
    let sink = Arc::new(move |message: Msi| sink.lock().unwrap().push(message));
    Rig { iommu: Iommu::new(memory.clone(), sink), memory, sent }
}

impl Rig {
    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.iommu.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn get_wide(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.iommu.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn set(&self, offset: u64, value: u32) {
        self.iommu.write(offset, &value.to_le_bytes());
    }

    fn set_wide(&self, offset: u64, value: u64) {
        self.iommu.write(offset, &value.to_le_bytes());
    }

    /// Adds bits to the command register, as a driver does.
    fn command(&self, bits: u32) {
        self.set(0x18, self.get(0x1c) & !(1 << 30 | 1 << 24) | bits);
    }

    fn poke(&self, address: u64, words: &[u64]) {
        for (at, word) in (address..).step_by(8).zip(words) {
            self.memory.write_obj(*word, GuestAddress(at)).unwrap();
        }
    }

    fn peek(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn sent(&self) -> Vec<Msi> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }

    /// Lets faults be told of, with this message.
    fn unmask_faults(&self) -> Msi {
        self.set(0x3c, 0x4055);
        self.set(0x40, 0xfee0_1000);
        self.set(0x38, 0);
        Msi { address: 0xfee0_1000, data: 0x4055 }
    }

    /// The reason of the fault in a record, which must be the function's; none if none is there.
    fn reason(&self, record: u64) -> Option<u8> {
        let high = self.get_wide(0x228 + 16 * record);
        (high >> 63 != 0).then(|| {
            assert_eq!(high & 0xffff, NUMBER);
            (high >> 32) as u8
        })
    }

    /// Takes the only fault there is, as a driver does.
    fn take_fault(&self) -> Option<(u8, u64)> {
        let status = self.get(0x34);
        if status & 2 == 0 {
            return None;
        }
        let record = u64::from(status >> 8 & 0xff);
        let taken = self.reason(record).zip(Some(self.get_wide(0x220 + 16 * record)));
        self.set(0x22c + 16 * record, 1 << 31);
        assert_eq!(self.get(0x34) & 2, 0, "there was another one");
        taken
    }
}

#[test]
fn it_says_what_it_can() {
    let rig = rig();
    assert_eq!(rig.get(0), 0x10);
    let capabilities = rig.get_wide(8);
    assert_eq!(capabilities & 7, 6, "16 bits of domains");
    assert_eq!(capabilities >> 8 & 0x1f, 0b110, "3 and 4 levels");
    assert_eq!(capabilities >> 16 & 0x3f, 47);
    assert_eq!((capabilities >> 24 & 0x3ff) * 16, 0x220);
    assert_eq!(capabilities >> 34 & 0xf, 0b11);
    assert_eq!(capabilities >> 40 & 0xff, 7);
    assert_eq!(capabilities & 1 << 7, 0, "changes are seen without being told of");
    let more = rig.get_wide(0x10);
    assert_eq!(more & 0xff, 0b1100_1011);
    assert_eq!((more >> 8 & 0x3ff) * 16, 0xf0);
    assert_eq!(more & 1 << 4, 0, "no APIC ids of 32 bits");
    // Halves are where they belong, and nothing of it can be changed.
    rig.set_wide(8, 0);
    assert_eq!(u64::from(rig.get(0xc)), capabilities >> 32);
}

#[test]
fn commands_show_in_the_status() {
    let rig = rig();
    for bit in [31, 26, 25, 23] {
        rig.command(1 << bit);
        assert_ne!(rig.get(0x1c) & 1 << bit, 0);
    }
    // These stay, once the tables were put to use.
    for bit in [30, 24] {
        assert_eq!(rig.get(0x1c) & 1 << bit, 0);
        rig.command(1 << bit);
        assert_ne!(rig.get(0x1c) & 1 << bit, 0);
    }
    rig.set(0x18, 0);
    assert_eq!(rig.get(0x1c), 1 << 30 | 1 << 24);
}

#[test]
fn narrow_and_crooked_writes_do_nothing() {
    let rig = rig();
    rig.set_wide(0x20, 0x1234_5000);
    rig.iommu.write(0x20, &[0xff]);
    rig.iommu.write(0x22, &[0xff; 4]);
    rig.iommu.write(0x20, &[0xff; 16]);
    assert_eq!(rig.get_wide(0x20), 0x1234_5000);
    let mut byte = [0];
    rig.iommu.read(0x21, &mut byte);
    assert_eq!(byte, [0x50]);
    rig.iommu.write(0xffe, &[0xff; 4]);
    rig.iommu.read(0xfff, &mut [0; 8]);
}

#[test]
fn a_saved_unit_is_the_same_elsewhere() {
    let first = rig();
    first.set_wide(0x20, ROOT);
    first.command(1 << 30);
    first.command(1 << 31);
    assert!(Dma::read(&*first.iommu.requester(FUNCTION), 0, &mut [0]).is_err());
    let json = serde_json::to_string(&first.iommu.state()).unwrap();
    let second = rig();
    let told = Arc::new(AtomicUsize::new(0));
    let counter = told.clone();
    second.iommu.watch(move || _ = counter.fetch_add(1, Ordering::Relaxed));
    second.iommu.set_state(&serde_json::from_str(&json).unwrap());
    assert_eq!(second.iommu.state(), first.iommu.state());
    assert_eq!(told.load(Ordering::Relaxed), 1, "routes are looked at again");
    assert_eq!(second.take_fault(), Some((1, 0)));
    second.iommu.reset();
    assert_eq!(second.iommu.state(), IommuState::default());
    assert_eq!(second.get(0x38), 1 << 31, "events are masked");
}
