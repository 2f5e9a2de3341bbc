//! Messages of functions and of the I/O APIC.

use super::*;

const PRESENT: u64 = 1;
/// Made out to the function, all bits of whose number count.
const NAMED: u64 = NUMBER | 1 << 18;

/// A message in the remappable format.
fn handle(handle: u64, subhandle: Option<u32>) -> Msi {
    let with = if subhandle.is_some() { 1 << 3 } else { 0 };
    let address = 0xfee0_0000 | (handle & 0x7fff) << 5 | 1 << 4 | with | (handle >> 15) << 2;
    Msi { address, data: subhandle.unwrap_or(0xffff) }
}

/// Vector 0x51 for APIC 3.
const ENTRY: u64 = PRESENT | 0x51 << 16 | 3 << 40;
const INTERRUPT: Msi = Msi { address: 0xfee0_3000, data: 0x4051 };

impl Rig {
    /// With a table of `2 << exponent` entries.
    fn remapping(exponent: u64) -> Self {
        let rig = rig();
        rig.set_wide(0xb8, INTERRUPTS | exponent);
        rig.command(1 << 24);
        rig.command(1 << 25);
        rig
    }

    fn entry(&self, index: u64, low: u64, high: u64) {
        self.poke(INTERRUPTS + 16 * index, &[low, high]);
    }

    fn signal(&self, message: Msi) -> Vec<Msi> {
        self.iommu.requester(FUNCTION).signal(message);
        self.sent()
    }

    /// Why a message was refused, and which index it had.
    fn refusal(&self, message: Msi) -> (u8, u64) {
        assert_eq!(self.signal(message), []);
        let (reason, information) = self.take_fault().expect("a fault");
        (reason, information >> 48)
    }
}

#[test]
fn messages_go_through_as_they_are_until_it_is_switched_on() {
    let rig = rig();
    let message = Msi { address: 0xfee0_1004, data: 0x31 };
    assert_eq!(rig.signal(message), [message]);
}

#[test]
fn an_index_stands_for_an_interrupt() {
    let rig = Rig::remapping(7);
    rig.entry(5, ENTRY, NAMED);
    assert_eq!(rig.signal(handle(5, None)), [INTERRUPT]);
    rig.entry(9, PRESENT | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 0x60 << 16 | 0xff << 40, NAMED);
    let logical = Msi { address: 0xfeef_f00c, data: 0xc160 };
    // The subhandle is added to the handle.
    assert_eq!(rig.signal(handle(5, Some(4))), [logical]);
    assert_eq!(rig.signal(handle(5, Some(0))), [INTERRUPT]);
    assert_eq!(rig.take_fault(), None);
}

#[test]
fn all_bits_of_an_index_count() {
    let rig = Rig::remapping(15);
    // The table is larger than the memory that is left for it.
    assert_eq!(rig.refusal(handle(0xffff, None)), (0x23, 0xffff));
    rig.entry(0x4321, ENTRY, NAMED);
    assert_eq!(rig.signal(handle(0x4321, None)), [INTERRUPT]);
    assert_eq!(rig.signal(handle(0x4000, Some(0x321))), [INTERRUPT]);
}

#[test]
fn the_format_of_old_is_let_through_on_demand() {
    let rig = Rig::remapping(7);
    let message = Msi { address: 0xfee0_1004, data: 0x31 };
    assert_eq!(rig.refusal(message).0, 0x25);
    rig.command(1 << 23);
    assert_eq!(rig.signal(message), [message]);
    // What is not a message at all is lost.
    assert_eq!(rig.signal(Msi { address: 0x1_fee0_0000, data: 0x31 }), []);
    assert_eq!(rig.take_fault(), None);
}

#[test]
fn each_flaw_has_its_reason() {
    let rig = Rig::remapping(1);
    assert_eq!(rig.refusal(handle(4, None)), (0x21, 4));
    assert_eq!(rig.refusal(handle(3, Some(1))), (0x21, 4));
    assert_eq!(rig.refusal(handle(0xffff, Some(0xffff))).0, 0x21);
    assert_eq!(rig.refusal(handle(2, Some(1 << 16))), (0x20, 2));
    assert_eq!(rig.refusal(handle(3, None)), (0x22, 3));
    for (low, high) in [
        (1 << 12, 0),
        (1 << 15, 0),
        (1 << 24, 0),
        (1 << 32, 0),
        (1 << 48, 0),
        (0, 1 << 20),
        (0, 3 << 18),
    ] {
        rig.entry(2, ENTRY | low, NAMED | high);
        assert_eq!(rig.refusal(handle(2, None)), (0x24, 2), "{low:#x} {high:#x}");
        // Unless the guest does not want to know.
        rig.entry(2, ENTRY | low | 1 << 1, NAMED | high);
        assert_eq!(rig.signal(handle(2, None)), []);
        assert_eq!(rig.take_fault(), None);
    }
    rig.entry(2, 1 << 1, 0);
    assert_eq!(rig.signal(handle(2, None)), []);
    assert_eq!(rig.take_fault(), None, "not present, and not to be told of");
}

#[test]
fn an_entry_may_be_made_out_to_somebody() {
    let rig = Rig::remapping(7);
    let full = |named: u64, left_out: u64| named | left_out << 16 | 1 << 18;
    let buses = |first: u64, last: u64| first << 8 | last | 2 << 18;
    let cases = [
        (0, true),
        (full(NUMBER, 0), true),
        (full(NUMBER + 1, 0), false),
        (full(NUMBER + 4, 1), true),
        (full(NUMBER + 1, 1), false),
        (full(NUMBER + 6, 2), true),
        (full(NUMBER + 7, 2), false),
        (full(NUMBER + 7, 3), true),
        (full(NUMBER + 8, 3), false),
        (buses(0, 0), true),
        (buses(0, 255), true),
        (buses(1, 255), false),
    ];
    for (high, allowed) in cases {
        rig.entry(1, ENTRY, high);
        if allowed {
            assert_eq!(rig.signal(handle(1, None)), [INTERRUPT], "{high:#x}");
        } else {
            assert_eq!(rig.refusal(handle(1, None)), (0x26, 1), "{high:#x}");
        }
    }
}

#[test]
fn the_io_apic_is_not_asked_who_it_is() {
    let rig = Rig::remapping(7);
    let io_apic = rig.iommu.io_apic();
    rig.entry(1, ENTRY, NAMED);
    assert_eq!(io_apic.preview(handle(1, None)), Some(INTERRUPT));
    assert_eq!(rig.sent(), []);
    io_apic.signal(handle(1, None));
    assert_eq!(rig.sent(), [INTERRUPT]);
    // A look leaves no trace.
    assert_eq!(io_apic.preview(handle(2, None)), None);
    assert_eq!(rig.get(0x34), 0);
    io_apic.signal(handle(2, None));
    assert_eq!(rig.get_wide(0x228), 1 << 63 | 0x22 << 32 | 0xfff8);
}

#[test]
fn changes_of_what_messages_mean_are_told() {
    let rig = rig();
    let told = Arc::new(AtomicUsize::new(0));
    let (counter, weak) = (told.clone(), Arc::downgrade(&rig.iommu));
    rig.iommu.watch(move || {
        // Whoever is told may look at once.
        weak.upgrade().unwrap().io_apic().preview(handle(0, None));
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let mut changes = 0;
    let mut changed = || {
        let now = told.load(Ordering::Relaxed);
        std::mem::replace(&mut changes, now) != now
    };
    rig.set_wide(0xb8, INTERRUPTS | 7);
    assert!(!changed());
    rig.command(1 << 24);
    assert!(changed());
    rig.command(1 << 25);
    assert!(changed());
    rig.command(1 << 31);
    assert!(!changed());
    rig.command(1 << 23);
    assert!(changed());
}
