use super::*;
use crate::apic::{ApicBus, Pending};
use guise_engine::Msi;

fn write(bus: &ApicBus, register: u32, value: u32) {
    bus.write(0, u64::from(register), &value.to_le_bytes(), 0);
}

/// An APIC with something in every register.
fn busy() -> ApicBus {
    let bus = ApicBus::new(1, |_| ());
    write(&bus, offset::SPURIOUS, 0x1ff);
    write(&bus, offset::LOGICAL_DESTINATION, 0x0100_0000);
    write(&bus, offset::TASK_PRIORITY, 0x20);
    write(&bus, offset::LVT_TIMER, 0x2_00ec);
    write(&bus, offset::LVT_ERROR, 0xfe);
    write(&bus, offset::DIVIDE, 0b1011);
    write(&bus, offset::INITIAL_COUNT, 5000);
    bus.signal_msi(Msi { address: 0xfee0_0000, data: 0x8091 });
    bus.apic(0).accept();
    bus.signal_msi(Msi { address: 0xfee0_0000, data: 0xa1 });
    bus.signal_nmi(0);
    bus
}

#[test]
fn a_loaded_apic_goes_on_where_the_saved_one_was() {
    let bus = busy();
    let saved = bus.apic(0).save(1000);
    assert_eq!(saved.timer_ns, Some(4000));
    assert_eq!(get(&saved.page, offset::CURRENT_COUNT), 4000);
    let other = ApicBus::new(1, |_| ());
    let apic = other.apic(0);
    apic.load(&saved, 50_000, 0).unwrap();
    assert_eq!(apic.save(50_000), saved);
    assert_eq!(apic.next_deadline(), Some(54_000));
    assert!(apic.pending().has(Pending::NMI));
    assert_eq!(apic.accept().unwrap(), 0xa1);
    assert_eq!(other.write(0, u64::from(offset::END_OF_INTERRUPT), &[0; 4], 0), None);
    assert_eq!(other.write(0, u64::from(offset::END_OF_INTERRUPT), &[0; 4], 0), Some(0x91));
    assert!(apic.expire(54_000));
}

#[test]
fn x2apic_mode_and_the_tsc_deadline_are_kept() {
    let bus = ApicBus::new(2, |_| ());
    let apic = bus.apic(1);
    apic.set_base(apic.base() | 1 << 10, 46).unwrap();
    bus.write_msr(1, 0x80f, 0x1ff, 0).unwrap();
    bus.write_msr(1, 0x832, 2 << 17 | 0xec, 0).unwrap();
    apic.set_tsc_deadline(777, 300);
    let saved = apic.save(100);
    assert_eq!((saved.timer_ns, saved.tsc_deadline), (None, 777));
    assert_eq!(get(&saved.page, offset::ID), 1);
    let other = ApicBus::new(2, |_| ());
    other.apic(1).load(&saved, 0, 200).unwrap();
    assert_eq!(other.apic(1).save(0), saved);
    assert_eq!(other.apic(1).next_deadline(), Some(200));
    assert_eq!(other.apic(1).read_msr(0x802, 0), Ok(1));
}

#[test]
fn saving_notes_no_errors() {
    let bus = busy();
    bus.apic(0).save(0);
    write(&bus, offset::ERROR_STATUS, 0);
    let saved = bus.apic(0).save(0);
    assert_eq!(get(&saved.page, offset::ERROR_STATUS), 0);
}

#[test]
fn a_short_page_is_refused() {
    let bus = busy();
    let mut saved = bus.apic(0).save(0);
    saved.page.pop();
    assert_eq!(bus.apic(0).load(&saved, 0, 0), Err(PageLength(0x3ff)));
}
