//! Addresses of DMA.

use super::*;

const READ: u64 = 1;
const WRITE: u64 = 2;
const LARGE: u64 = 1 << 7;

impl Rig {
    /// Tables of three or four levels for the function, with nothing in them.
    fn translating(levels: u64) -> Self {
        let rig = rig();
        rig.poke(ROOT, &[CONTEXT | 1, 0]);
        rig.poke(CONTEXT + 16 * NUMBER, &[TABLES | 1, (levels - 2) | (7 << 8)]);
        rig.set_wide(0x20, ROOT);
        rig.command(1 << 30);
        rig.command(1 << 31);
        rig
    }

    /// Maps a page: one table for each level, at the next page each.
    fn map(&self, levels: u64, leaf: u64, address: u64, entry: u64) {
        for level in (leaf..=levels).rev() {
            let at = TABLES + 0x1000 * (levels - level);
            let index = address >> (12 + 9 * (level - 1)) & 0x1ff;
            let entry = if level == leaf { entry } else { (at + 0x1000) | READ | WRITE };
            self.poke(at + 8 * index, &[entry]);
        }
    }

    fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, Unreachable> {
        let mut data = vec![0; length];
        Dma::read(&*self.iommu.requester(FUNCTION), address, &mut data).map(|()| data)
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Unreachable> {
        Dma::write(&*self.iommu.requester(FUNCTION), address, data)
    }

    /// The reason why nothing could be read there.
    fn refused(&self, address: u64) -> u8 {
        assert!(self.read(address, 4).is_err());
        let (reason, information) = self.take_fault().expect("a fault");
        assert_eq!(information, address & !0xfff);
        reason
    }
}

#[test]
fn nothing_is_translated_before_it_is_switched_on() {
    let rig = rig();
    rig.write(0x5ffe, b"across").unwrap();
    assert_eq!(rig.read(0x5ffe, 6).unwrap(), b"across");
    assert!(rig.read(0x10_0000, 1).is_err());
    // Messages are not memory, for nobody.
    assert_eq!(rig.write(0xfee0_0000, &[0; 4]), Err(Unreachable(0xfee0_0000)));
    assert_eq!(rig.take_fault(), None);
}

#[test]
fn pages_are_found_through_three_and_four_levels() {
    for levels in [3, 4] {
        let rig = Rig::translating(levels);
        let top = (1 << (12 + 9 * levels)) - 0x1000;
        rig.map(levels, 1, top, 0x8000 | READ | WRITE);
        rig.write(top + 0xffc, b"last").unwrap();
        assert_eq!(rig.peek(0x8ff8) >> 32, u64::from(u32::from_le_bytes(*b"last")));
        assert_eq!(rig.read(top + 0xffc, 4).unwrap(), b"last");
        // What is beyond is another matter.
        assert_eq!(rig.read(top + 0xffc, 5), Err(Unreachable(top + 0x1000)));
        assert_eq!(rig.take_fault(), Some((4, top + 0x1000)));
        assert_eq!(rig.refused(0), 6, "nothing is mapped at 0");
    }
}

#[test]
fn pages_next_to_each_other_need_not_be_so_in_memory() {
    let rig = Rig::translating(3);
    rig.map(3, 1, 0x1000, 0x9000 | READ | WRITE);
    rig.map(3, 1, 0x2000, 0x7000 | READ | WRITE);
    rig.write(0x1ffd, b"abcdef").unwrap();
    let mut found = [0; 3];
    rig.memory.read_slice(&mut found, GuestAddress(0x9ffd)).unwrap();
    assert_eq!(&found, b"abc");
    rig.memory.read_slice(&mut found, GuestAddress(0x7000)).unwrap();
    assert_eq!(&found, b"def");
}

#[test]
fn large_pages_are_pages() {
    let rig = Rig::translating(4);
    rig.map(4, 3, 5 << 30, READ | WRITE | LARGE);
    rig.write(5 << 30 | 0xa010, b"huge").unwrap();
    assert_eq!(rig.peek(0xa010) as u32, u32::from_le_bytes(*b"huge"));
    rig.map(4, 2, 3 << 21, READ | LARGE);
    assert_eq!(rig.read(3 << 21 | 0xa010, 4).unwrap(), b"huge");
    assert_eq!(rig.write(3 << 21, b"no"), Err(Unreachable(3 << 21)));
    assert_eq!(rig.take_fault(), Some((5, 3 << 21)));
    // Not at the top, and not at any address.
    rig.map(4, 4, 0, READ | LARGE);
    assert_eq!(rig.refused(0), 0xc);
    rig.map(4, 2, 3 << 21, 0x1000 | READ | LARGE);
    assert_eq!(rig.refused(3 << 21), 0xc);
}

#[test]
fn every_level_has_to_allow_it() {
    let rig = Rig::translating(3);
    rig.map(3, 1, 0x4000, 0x8000 | READ | WRITE);
    rig.write(0x4000, &[1]).unwrap();
    // The middle one does not let writes through.
    rig.poke(TABLES + 0x1000, &[(TABLES + 0x2000) | READ]);
    assert!(rig.write(0x4000, &[1]).is_err());
    assert_eq!(rig.take_fault(), Some((5, 0x4000)));
    assert_eq!(rig.read(0x4000, 1).unwrap(), [1]);
    rig.poke(TABLES, &[(TABLES + 0x1000) | WRITE]);
    assert_eq!(rig.refused(0x4000), 6);
}

#[test]
fn each_flaw_of_a_table_has_its_reason() {
    let rig = Rig::translating(3);
    rig.map(3, 1, 0x4000, 0x8000 | READ);
    rig.read(0x4000, 4).unwrap();
    let context = CONTEXT + 16 * NUMBER;
    let good = [rig.peek(context), rig.peek(context + 8)];
    let flaws: [(u64, [u64; 2], u8); 16] = [
        (ROOT, [0, 0], 1),
        (ROOT, [CONTEXT | 1 | 2, 0], 0xa),
        (ROOT, [CONTEXT | 1, 1], 0xa),
        (ROOT, [0xffff_ffff_f001, 0], 9),
        (context, [good[0] & !1, good[1]], 2),
        (context, [good[0] | 1 << 4, good[1]], 0xb),
        (context, [good[0], good[1] | 1 << 24], 0xb),
        (context, [good[0], 0], 3),
        (context, [good[0], 3], 3),
        (context, [good[0] | 1 << 2, good[1]], 3),
        (context, [good[0] | 2 << 2, good[1]], 3),
        (context, [good[0] | 3 << 2, good[1]], 3),
        (context, [0xffff_ffff_f001, good[1]], 7),
        (TABLES, [0x10_0000 | READ, 0], 7),
        (TABLES, [1 << 51 | READ, 0], 0xc),
        (TABLES, [0, 0], 6),
    ];
    for (at, flaw, reason) in flaws {
        let before = [rig.peek(at), rig.peek(at + 8)];
        rig.poke(at, &flaw);
        assert_eq!(rig.refused(0x4000), reason, "{flaw:x?}");
        rig.poke(at, &before);
        rig.read(0x4000, 4).unwrap();
    }
    assert_eq!(rig.refused(1 << 39), 4);
    // A root table that is not there.
    rig.set_wide(0x20, 0xffff_ffff_ffff_f000);
    rig.command(1 << 30);
    assert_eq!(rig.refused(0x4000), 8);
}

#[test]
fn a_function_can_be_let_through_as_it_is() {
    let rig = Rig::translating(4);
    rig.poke(CONTEXT + 16 * NUMBER, &[1 | 2 << 2, 2]);
    rig.write(0xb000, b"pass").unwrap();
    assert_eq!(rig.peek(0xb000) as u32, u32::from_le_bytes(*b"pass"));
    let other = rig.iommu.requester(RequesterId::in_slot(4));
    assert!(Dma::write(&*other, 0xb000, b"not ").is_err());
}

#[test]
fn the_guest_is_told_of_the_first_fault_of_each_function() {
    let rig = Rig::translating(3);
    let message = rig.unmask_faults();
    assert!(rig.read(0x5123, 4).is_err());
    assert_eq!(rig.sent(), [message]);
    assert_eq!(rig.get_wide(0x220), 0x5000);
    // A read, for the reason that it may not be done.
    assert_eq!(rig.get_wide(0x228), 1 << 63 | 1 << 62 | 6 << 32 | NUMBER);
    assert!(rig.write(0x6000, &[0]).is_err());
    assert_eq!(rig.reason(1), None, "one of this function waits");
    // Others' do not wait for it, until there is no place left.
    for slot in 10..20 {
        assert!(Dma::read(&*rig.iommu.requester(RequesterId::in_slot(slot)), 0, &mut [0]).is_err());
    }
    assert_eq!(rig.get(0x34), 1 | 2);
    assert_eq!(rig.sent(), []);
    for record in 0..8 {
        rig.set(0x22c + 16 * record, 1 << 31);
    }
    assert_eq!(rig.get(0x34), 1);
    rig.set(0x34, 1);
    assert_eq!(rig.get(0x34), 0);
    assert!(rig.write(0x6000, &[0]).is_err());
    assert_eq!(rig.sent(), [message]);
    assert_eq!(rig.take_fault(), Some((5, 0x6000)));
}

#[test]
fn a_masked_event_waits() {
    let rig = Rig::translating(3);
    let message = rig.unmask_faults();
    rig.set(0x38, 1 << 31);
    assert!(rig.read(0, 4).is_err());
    assert_eq!(rig.get(0x38), 3 << 30);
    assert_eq!(rig.sent(), []);
    rig.set(0x38, 0);
    assert_eq!((rig.sent(), rig.get(0x38)), (vec![message], 0));
    rig.take_fault().unwrap();
    // One whose fault was seen before does not come any more.
    rig.set(0x38, 1 << 31);
    rig.refused(0);
    rig.set(0x38, 0);
    assert_eq!(rig.sent(), []);
}

#[test]
fn a_function_that_may_fail_silently_does() {
    let rig = Rig::translating(3);
    let context = CONTEXT + 16 * NUMBER;
    for flags in [1 << 1, 1 << 1 | 1] {
        rig.poke(context, &[TABLES | flags]);
        assert!(rig.read(0, 4).is_err());
        assert_eq!(rig.take_fault(), None);
    }
}
