use std::sync::{Arc, Mutex};

use super::*;
use crate::apic::Pending;
use crate::apic::registers::{BASE_ENABLE, BASE_X2APIC, offset};

struct Rig {
    bus: ApicBus,
    woken: Arc<Mutex<Vec<u32>>>,
}

/// APICs that are enabled, in xAPIC mode with flat logical ids.
fn rig(vcpus: u32) -> Rig {
    let woken: Arc<Mutex<Vec<u32>>> = Arc::default();
    let log = woken.clone();
    let rig = Rig { bus: ApicBus::new(vcpus, move |vcpu| log.lock().unwrap().push(vcpu)), woken };
    for vcpu in 0..vcpus {
        rig.write(vcpu, offset::SPURIOUS, 0x1ff);
        rig.write(vcpu, offset::LOGICAL_DESTINATION, 1 << (24 + vcpu));
    }
    rig
}

impl Rig {
    fn write(&self, vcpu: u32, register: u32, value: u32) -> Option<u8> {
        self.bus.write(vcpu, u64::from(register), &value.to_le_bytes(), 0)
    }

    fn read(&self, vcpu: u32, register: u32) -> u32 {
        let mut data = [0; 4];
        self.bus.apic(vcpu).read(u64::from(register), &mut data, 0);
        u32::from_le_bytes(data)
    }

    fn msi(&self, address: u64, data: u32) {
        self.bus.signal_msi(Msi { address, data });
    }

    fn accept(&self, vcpu: u32) -> Option<u8> {
        self.bus.apic(vcpu).accept()
    }

    fn to_x2apic(&self, vcpu: u32) {
        let apic = self.bus.apic(vcpu);
        apic.set_base(apic.base() | BASE_X2APIC, 46).unwrap();
    }

    fn woken(&self) -> Vec<u32> {
        std::mem::take(&mut self.woken.lock().unwrap())
    }
}

#[test]
fn priorities_decide_what_is_delivered() {
    let rig = rig(1);
    let apic = rig.bus.apic(0);
    rig.msi(0xfee0_0000, 0x41);
    rig.msi(0xfee0_0000, 0x51);
    rig.msi(0xfee0_0000, 0x52);
    assert_eq!(rig.accept(0), Some(0x52));
    assert_eq!(rig.read(0, offset::PROCESSOR_PRIORITY), 0x50);
    assert_eq!(rig.accept(0), None, "same class");
    assert!(!apic.pending().has(Pending::INTERRUPT));
    rig.msi(0xfee0_0000, 0x61);
    assert_eq!(rig.accept(0), Some(0x61));
    rig.write(0, offset::END_OF_INTERRUPT, 0);
    rig.write(0, offset::END_OF_INTERRUPT, 0);
    assert_eq!(rig.accept(0), Some(0x51));
    rig.write(0, offset::END_OF_INTERRUPT, 0);
    apic.set_cr8(4);
    assert_eq!(apic.cr8(), 4);
    assert_eq!(rig.read(0, offset::TASK_PRIORITY), 0x40);
    assert_eq!(rig.accept(0), None);
    apic.set_cr8(3);
    assert!(apic.pending().has(Pending::INTERRUPT));
    assert_eq!(rig.accept(0), Some(0x41));
}

#[test]
fn ending_a_level_triggered_vector_is_reported() {
    let rig = rig(1);
    rig.msi(0xfee0_0000, 0x8041);
    rig.msi(0xfee0_0000, 0x0051);
    assert_eq!(rig.read(0, offset::TRIGGER_MODE + 0x20), 2);
    assert_eq!(rig.accept(0), Some(0x51));
    assert_eq!(rig.write(0, offset::END_OF_INTERRUPT, 0), None);
    assert_eq!(rig.accept(0), Some(0x41));
    assert_eq!(rig.write(0, offset::END_OF_INTERRUPT, 0), Some(0x41));
    assert_eq!(rig.write(0, offset::END_OF_INTERRUPT, 0), None);
}

#[test]
fn wakes_come_once_for_what_is_new() {
    let rig = rig(2);
    rig.woken();
    rig.msi(0xfee0_1000, 0x41);
    rig.msi(0xfee0_1000, 0x41);
    rig.msi(0xfee0_1000, 0x31);
    assert_eq!(rig.woken(), [1]);
    rig.bus.signal_nmi(1);
    rig.bus.signal_nmi(7);
    assert_eq!(rig.woken(), [1]);
    assert!(rig.bus.apic(1).take_nmi());
    assert!(!rig.bus.apic(1).take_nmi());
}

#[test]
fn shorthands_and_destinations() {
    let rig = rig(4);
    let got = |vector| -> Vec<u32> {
        (0..4)
            .filter(|&vcpu| {
                let accepted = rig.accept(vcpu) == Some(vector);
                rig.write(vcpu, offset::END_OF_INTERRUPT, 0);
                accepted
            })
            .collect()
    };
    rig.write(1, offset::COMMAND_LOW, 0x4_40f0);
    assert_eq!(got(0xf0), [1]);
    rig.write(1, offset::COMMAND_LOW, 0x8_40f0);
    assert_eq!(got(0xf0), [0, 1, 2, 3]);
    rig.write(1, offset::COMMAND_LOW, 0xc_40f0);
    assert_eq!(got(0xf0), [0, 2, 3]);
    rig.write(1, offset::COMMAND_HIGH, 0x0a00_0000);
    rig.write(1, offset::COMMAND_LOW, 0x0_48f0);
    assert_eq!(got(0xf0), [1, 3]);
    rig.write(1, offset::COMMAND_HIGH, 0x0200_0000);
    rig.write(1, offset::COMMAND_LOW, 0x0_40f0);
    assert_eq!(got(0xf0), [2]);
    rig.write(1, offset::COMMAND_HIGH, 0xff00_0000);
    rig.write(1, offset::COMMAND_LOW, 0x0_40f0);
    assert_eq!(got(0xf0), [0, 1, 2, 3]);
}

#[test]
fn cluster_mode() {
    let rig = rig(2);
    for vcpu in 0..2 {
        rig.write(vcpu, offset::DESTINATION_FORMAT, 0);
        rig.write(vcpu, offset::LOGICAL_DESTINATION, (0x11 + 0x10 * vcpu) << 24);
    }
    rig.msi(0xfee2_1004, 0x41);
    assert_eq!((rig.accept(0), rig.accept(1)), (None, Some(0x41)));
}

#[test]
fn lowest_priority_picks_one_and_takes_turns() {
    let rig = rig(3);
    rig.bus.apic(1).set_cr8(2);
    let mut counts = [0; 3];
    for _ in 0..20 {
        rig.msi(0xfee0_7004, 0x141);
        for vcpu in 0..3 {
            if rig.accept(vcpu).is_some() {
                counts[vcpu as usize] += 1;
                rig.write(vcpu, offset::END_OF_INTERRUPT, 0);
            }
        }
    }
    assert_eq!(counts.iter().sum::<i32>(), 20);
    assert_eq!(counts[1], 0);
    assert!(counts[0] > 0 && counts[2] > 0);
}

#[test]
fn init_and_start_up() {
    let rig = rig(2);
    rig.write(1, offset::LVT_TIMER, 0x41);
    rig.write(0, offset::COMMAND_HIGH, 0x0100_0000);
    rig.write(0, offset::COMMAND_LOW, 0x4500);
    rig.write(0, offset::COMMAND_LOW, 0x0608);
    let apic = rig.bus.apic(1);
    assert!(apic.pending().has(Pending::INIT) && apic.pending().has(Pending::SIPI));
    assert!(apic.take_init());
    assert_eq!(rig.read(1, offset::LVT_TIMER), 1 << 16);
    assert_eq!(rig.read(1, offset::SPURIOUS), 0xff);
    assert_eq!(apic.take_sipi(), Some(8));
    assert!(!apic.pending().any());
}

#[test]
fn the_legacy_controller_reaches_vcpu_0_by_virtual_wire() {
    let rig = rig(1);
    let fresh = ApicBus::new(2, |_| ());
    fresh.set_external_interrupt(true);
    assert_eq!(fresh.apic(0).pending(), Pending::EXTERNAL);
    assert!(!fresh.apic(1).pending().any());
    fresh.set_external_interrupt(false);
    assert!(!fresh.apic(0).pending().any());
    // Masked by an operating system that uses the I/O APIC.
    rig.bus.set_external_interrupt(true);
    rig.write(0, 0x350, 0x1_0700);
    assert!(!rig.bus.apic(0).pending().any());
    rig.write(0, 0x350, 0x700);
    assert!(rig.bus.apic(0).pending().has(Pending::EXTERNAL));
    // With the APIC off the wire is direct.
    rig.write(0, 0x350, 0x1_0700);
    rig.bus.apic(0).set_base(0xfee0_0100, 46).unwrap();
    assert!(rig.bus.apic(0).pending().has(Pending::EXTERNAL));
}

#[test]
fn a_fixed_vector_on_the_wire() {
    let rig = rig(1);
    rig.write(0, 0x350, 0x8031);
    rig.bus.set_external_interrupt(true);
    assert_eq!(rig.accept(0), Some(0x31));
    assert_eq!(rig.write(0, offset::END_OF_INTERRUPT, 0), Some(0x31));
    rig.bus.set_external_interrupt(false);
    rig.write(0, 0x350, 0x0400);
    rig.bus.set_external_interrupt(true);
    assert!(rig.bus.apic(0).take_nmi());
}

#[test]
fn the_timer_pends_its_vector_unless_masked() {
    let rig = rig(1);
    let apic = rig.bus.apic(0);
    rig.write(0, offset::DIVIDE, 0b1011);
    rig.write(0, offset::LVT_TIMER, 0x40ec);
    rig.write(0, offset::INITIAL_COUNT, 1000);
    assert_eq!(apic.next_deadline(), Some(1000));
    assert!(!apic.expire(999));
    assert!(apic.expire(1000));
    assert_eq!(rig.accept(0), Some(0xec));
    assert_eq!(apic.next_deadline(), None);
    rig.write(0, offset::LVT_TIMER, 0x1_00ec);
    rig.write(0, offset::INITIAL_COUNT, 1000);
    assert!(!apic.expire(5000));
    rig.write(0, offset::LVT_TIMER, 2 << 17 | 0xec);
    apic.set_tsc_deadline(123, 6000);
    assert_eq!((apic.tsc_deadline(), apic.next_deadline()), (123, Some(6000)));
}

#[test]
fn base_transitions() {
    let rig = rig(1);
    let apic = rig.bus.apic(0);
    assert_eq!(apic.base(), 0xfee0_0900);
    assert_eq!(apic.page(), Some(0xfee0_0000));
    assert_eq!(apic.set_base(0xfee0_0900 | 1, 46), Err(Refused));
    assert_eq!(apic.set_base(1 << 46 | BASE_ENABLE, 46), Err(Refused));
    assert_eq!(apic.set_base(0xfee0_0000 | BASE_X2APIC, 46), Err(Refused));
    rig.to_x2apic(0);
    assert_eq!(apic.page(), None);
    assert_eq!(apic.set_base(0xfee0_0000 | BASE_ENABLE, 46), Err(Refused));
    assert_eq!(apic.set_base(0xfee0_0000 | BASE_X2APIC, 46), Err(Refused));
    apic.set_base(0xfee0_0000, 46).unwrap();
    assert_eq!(apic.set_base(0xfee0_0000 | BASE_ENABLE | BASE_X2APIC, 46), Err(Refused));
    apic.set_base(0xfee0_0000 | BASE_ENABLE, 46).unwrap();
    assert_eq!(rig.read(0, offset::SPURIOUS), 0xff, "off means reset");
}

#[test]
fn x2apic_registers() {
    let rig = rig(3);
    assert_eq!(rig.bus.apic(2).read_msr(0x802, 0), Err(Refused));
    for vcpu in 0..3 {
        rig.to_x2apic(vcpu);
    }
    let apic = rig.bus.apic(2);
    assert_eq!(apic.read_msr(0x802, 0), Ok(2));
    assert_eq!(apic.read_msr(0x80d, 0), Ok(4));
    for write_only_or_missing in [0x800, 0x80b, 0x80e, 0x831, 0x83f, 0x8ff, 0x900, 0x809] {
        assert_eq!(apic.read_msr(write_only_or_missing, 0), Err(Refused));
    }
    for (msr, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x80a, 0),
        (0x80d, 0),
        (0x80e, 0),
        (0x831, 0),
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x1000_01ff),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x832, 1 << 19),
        (0x838, 1 << 32),
        (0x839, 0),
        (0x83e, 4),
        (0x83f, 0x100),
        (0x8ff, 0),
    ] {
        assert_eq!(rig.bus.write_msr(2, msr, value, 0), Err(Refused), "{msr:#x} {value:#x}");
    }
    rig.bus.write_msr(2, 0x83f, 0x77, 0).unwrap();
    assert_eq!(rig.accept(2), Some(0x77));
    rig.bus.write_msr(2, 0x80b, 0, 0).unwrap();
    rig.bus.write_msr(2, 0x830, 1 << 32 | 0x4078, 0).unwrap();
    assert_eq!(rig.accept(1), Some(0x78));
    rig.bus.write_msr(2, 0x830, 3 << 32 | 0x4879, 0).unwrap();
    assert_eq!((rig.accept(0), rig.accept(1), rig.accept(2)), (Some(0x79), None, None));
    assert_eq!(apic.read_msr(0x830, 0), Ok(3 << 32 | 0x4879));
    let mut data = [1; 4];
    rig.bus.apic(2).read(0xfff, &mut data, 0);
    assert_eq!(data, [0; 4]);
}

#[test]
fn errors_are_latched_by_a_write_and_raise_their_vector() {
    let rig = rig(2);
    rig.write(0, offset::LVT_ERROR, 0xfe);
    rig.write(0, offset::COMMAND_LOW, 0x4_4005);
    assert_eq!(rig.read(0, offset::ERROR_STATUS), 0);
    rig.write(0, offset::ERROR_STATUS, 0);
    assert_eq!(rig.read(0, offset::ERROR_STATUS), 1 << 5);
    assert_eq!(rig.accept(0), Some(0xfe));
    rig.msi(0xfee0_1000, 0x0f);
    rig.write(1, offset::ERROR_STATUS, 0);
    assert_eq!(rig.read(1, offset::ERROR_STATUS), 1 << 6);
    rig.write(1, 0x40, 0);
    rig.read(1, 0x3c0);
    rig.write(1, offset::ERROR_STATUS, 0);
    assert_eq!(rig.read(1, offset::ERROR_STATUS), 1 << 7);
    // An illegal error vector must not chase its own tail.
    rig.write(1, offset::LVT_ERROR, 3);
    rig.read(1, 0x3c0);
}

#[test]
fn a_software_disabled_apic_takes_no_vectors_and_masks_its_own() {
    let rig = rig(1);
    rig.write(0, offset::LVT_TIMER, 0xec);
    rig.write(0, offset::SPURIOUS, 0xff);
    assert_eq!(rig.read(0, offset::LVT_TIMER), 0x1_00ec);
    rig.msi(0xfee0_0000, 0x41);
    assert_eq!(rig.accept(0), None);
    rig.write(0, offset::LVT_TIMER, 0xec);
    assert_eq!(rig.read(0, offset::LVT_TIMER), 0x1_00ec);
    rig.bus.signal_nmi(0);
    assert!(rig.bus.apic(0).take_nmi());
}

#[test]
fn two_nmis_wait_and_one_after_a_handler() {
    let rig = rig(1);
    for _ in 0..3 {
        rig.bus.signal_nmi(0);
    }
    assert!(rig.bus.apic(0).take_nmi());
    assert!(rig.bus.apic(0).take_nmi());
    assert!(!rig.bus.apic(0).take_nmi());
    rig.bus.signal_nmi(0);
    rig.bus.signal_nmi(0);
    rig.bus.apic(0).merge_nmis();
    assert!(rig.bus.apic(0).take_nmi());
    assert!(!rig.bus.apic(0).pending().any());
}

#[test]
fn odd_accesses_to_the_page() {
    let rig = rig(1);
    rig.bus.write(0, 0x80, &[0x50], 0);
    rig.bus.write(0, 0x82, &[0x50, 0, 0, 0], 0);
    assert_eq!(rig.read(0, offset::TASK_PRIORITY), 0);
    rig.bus.write(0, 0x80, &[0x50, 0, 0, 0, 9, 9, 9, 9], 0);
    let mut byte = [0];
    rig.bus.apic(0).read(0x32, &mut byte, 0);
    assert_eq!(byte, [5]);
    assert_eq!(rig.read(0, offset::TASK_PRIORITY), 0x50);
}

#[test]
fn random_accesses_never_panic_and_keep_the_summary_true() {
    let rig = rig(4);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for now in 0..200_000_u64 {
        let (random, value) = (next(), next());
        let vcpu = random as u32 & 3;
        let apic = rig.bus.apic(vcpu);
        match random >> 8 & 15 {
            0..4 => {
                let length = (random >> 16) as usize % 9;
                rig.bus.write(vcpu, random >> 32 & 0xfff, &value.to_le_bytes()[..length], now);
            }
            4 => _ = rig.bus.write_msr(vcpu, 0x800 + (random >> 32) as u32 % 0x50, value, now),
            5 => _ = apic.read_msr(0x800 + (random >> 32) as u32 % 0x110, now),
            6 => apic.read(random >> 32 & 0xfff, &mut [0; 8][..(random >> 16) as usize % 9], now),
            7 => _ = apic.set_base(0xfee0_0000 | value & 0xd00, 46),
            8 => rig
                .bus
                .signal_msi(Msi { address: 0xfee0_0000 | value & 0xf_ffff, data: value as u32 }),
            9 => apic.set_cr8(value),
            10 => _ = apic.expire(now + value % 1000),
            11 => apic.set_tsc_deadline(value, now + value % 1000),
            12 => apic.merge_nmis(),
            13 => rig.bus.set_external_interrupt(value & 1 != 0),
            _ => {
                let expected = apic.pending().has(Pending::INTERRUPT);
                assert_eq!(apic.accept().is_some(), expected);
                apic.take_init();
                apic.take_sipi();
            }
        }
    }
}

#[test]
fn vcpus_interrupt_each_other_from_several_threads() {
    let rig = rig(2);
    for vcpu in 0..2 {
        rig.to_x2apic(vcpu);
    }
    let rounds = 2000;
    let bus = &rig.bus;
    std::thread::scope(|scope| {
        for vcpu in 0..2_u32 {
            scope.spawn(move || {
                for round in 0..rounds {
                    // Ping-pong: all but the very first wait for the other side.
                    if vcpu == 1 || round > 0 {
                        while bus.apic(vcpu).accept().is_none() {
                            std::thread::yield_now();
                        }
                        bus.write_msr(vcpu, 0x80b, 0, 0).unwrap();
                    }
                    bus.write_msr(vcpu, 0x830, u64::from(1 - vcpu) << 32 | 0x4051, 0).unwrap();
                }
            });
        }
    });
    // The first one's last interrupt was answered, and nobody waited for the answer.
    assert_eq!(rig.accept(0), Some(0x51));
    assert_eq!(rig.accept(1), None);
    assert_eq!(rig.bus.apic(0).base() & BASE_ENABLE, BASE_ENABLE);
}
