use super::*;
use crate::pci::Msix;

fn identity() -> Identity {
    Identity {
        vendor: 0x1af4,
        device: 0x1042,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        class: 0x01_8000,
        revision: 1,
    }
}

fn read32(config: &ConfigSpace, offset: u16) -> u32 {
    let mut data = [0; 4];
    config.read(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn the_header_tells_the_identity_and_cannot_be_changed() {
    let config = ConfigSpace::new(identity());
    config.write(0, &[0; 4]);
    config.write(8, &[0; 4]);
    assert_eq!(read32(&config, 0), 0x1042_1af4);
    assert_eq!(read32(&config, 8), 0x0180_0001);
    assert_eq!(read32(&config, 0x2c), 0x1100_1af4);
}

#[test]
fn bars_can_be_sized_and_moved() {
    let mut config = ConfigSpace::new(identity());
    config.add_bar(0, BarKind::Port, 32).unwrap();
    config.add_bar(1, BarKind::Memory32, 4096).unwrap();
    config.add_bar(4, BarKind::Memory64 { prefetchable: true }, 1 << 33).unwrap();
    for index in 0..6 {
        config.write(0x10 + 4 * index, &[0xff; 4]);
    }
    assert_eq!(read32(&config, 0x10), 0xffff_ffe1);
    assert_eq!(read32(&config, 0x14), 0xffff_f000);
    assert_eq!(read32(&config, 0x18), 0);
    assert_eq!(read32(&config, 0x20), 0x0000_000c);
    assert_eq!(read32(&config, 0x24), 0xffff_fffe);
    config.write(4, &[3]);
    assert!(config.bars().iter().all(|bar| bar.base.is_none()), "sizing places nothing");
    config.place_bar(0, 0xc000);
    config.place_bar(1, 0xfe00_0000);
    config.place_bar(4, 0x40_0000_0000);
    let bars = config.bars();
    let bases: Vec<_> = bars.iter().map(|bar| bar.base.unwrap()).collect();
    assert_eq!(bases, [0xc000, 0xfe00_0000, 0x40_0000_0000]);
    assert!(bars.iter().all(|bar| bar.decoded));
    config.write(4, &[1]);
    let decoded: Vec<_> = config.bars().iter().map(|bar| bar.decoded).collect();
    assert_eq!(decoded, [true, false, false]);
}

#[test]
fn bars_that_cannot_be_are_refused() {
    let mut config = ConfigSpace::new(identity());
    config.add_bar(0, BarKind::Memory64 { prefetchable: false }, 4096).unwrap();
    for (index, kind, size) in [
        (0, BarKind::Memory32, 4096),
        (1, BarKind::Memory32, 4096),
        (2, BarKind::Memory32, 4097),
        (2, BarKind::Port, 512),
        (5, BarKind::Memory64 { prefetchable: false }, 4096),
        (6, BarKind::Memory32, 4096),
    ] {
        assert!(config.add_bar(index, kind, size).is_err(), "{index} {kind:?} {size}");
    }
}

#[test]
fn capabilities_form_a_chain() {
    let mut config = ConfigSpace::new(identity());
    let first = config.add_capability(9, &[1, 2, 3], &[0, 0xff]).unwrap();
    let second = config.add_capability(5, &[4], &[]).unwrap();
    assert_eq!(read32(&config, 4) >> 20 & 1, 1);
    assert_eq!(read32(&config, 0x34) as u16, first);
    assert_eq!(read32(&config, first), u32::from(second) << 8 | 0x0201_0009);
    assert_eq!(read32(&config, second), 0x0004_0005);
    config.write(first + 2, &[0xaa, 0xbb, 0xcc]);
    assert_eq!(read32(&config, first) >> 16, 0xbb01);
    assert_eq!(config.add_capability(1, &[0; 200], &[]), Err(ConfigError::CapabilityRoom(202)));
}

#[test]
fn error_bits_are_cleared_by_ones_and_interrupt_status_follows_the_line() {
    let config = ConfigSpace::new(identity());
    assert!(config.set_interrupt_status(true));
    config.write(6, &[0xff, 0xff]);
    assert_eq!(read32(&config, 4) >> 16 & 8, 8);
    config.write(5, &[4]);
    assert!(!config.set_interrupt_status(true), "INTx is disabled");
    assert!(!config.set_interrupt_status(false));
    assert_eq!(read32(&config, 4) >> 16 & 8, 0);
}

#[test]
fn message_control_reaches_the_table() {
    let mut config = ConfigSpace::new(identity());
    let msix = Msix::new(3, Arc::new(|_: guise_engine::Msi| ()));
    config.add_bar(1, BarKind::Memory32, 4096).unwrap();
    let at = config.add_msix(msix.clone(), 1, 0, 2048).unwrap();
    assert_eq!(read32(&config, at) >> 16, 2);
    assert_eq!(read32(&config, at + 4), 1);
    assert_eq!(read32(&config, at + 8), 2049);
    config.write(at + 2, &[0xff, 0xff]);
    assert!(msix.enabled());
    assert_eq!(read32(&config, at) >> 16, 0xc002);
    config.reset();
    assert!(!msix.enabled());
}

#[test]
fn a_saved_space_fits_only_its_own_function() {
    let mut config = ConfigSpace::new(identity());
    config.add_bar(0, BarKind::Memory32, 4096).unwrap();
    config.place_bar(0, 0xfe00_0000);
    let state = config.state();
    config.place_bar(0, 0xfd00_0000);
    config.set_state(&state).unwrap();
    assert_eq!(config.bars()[0].base, Some(0xfe00_0000));
    let other = ConfigSpace::new(Identity { device: 0x1041, ..identity() });
    assert_eq!(other.set_state(&state), Err(ForeignConfig));
    assert_eq!(config.set_state(&ConfigState { bytes: vec![0; 3] }), Err(ForeignConfig));
}

#[test]
fn accesses_past_the_end_are_harmless() {
    let config = ConfigSpace::new(identity());
    config.write(0xfff, &[1, 2, 3, 4]);
    config.write(u16::MAX, &[1, 2, 3, 4]);
    let mut data = [0; 4];
    config.read(0xffe, &mut data);
    assert_eq!(data, [0, 0, 0xff, 0xff]);
}
