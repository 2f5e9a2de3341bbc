use super::*;
use crate::pci::Identity;

#[test]
fn the_guest_writes_a_message_and_switches_it_on() {
    let mut config = ConfigSpace::new(Identity {
        vendor: 1,
        device: 2,
        subsystem_vendor: 0,
        subsystem: 0,
        class: 0,
        revision: 0,
    });
    let msi = MsiCapability::add(&mut config).unwrap();
    let mut first = [0];
    config.read(0x34, &mut first);
    let at = u16::from(first[0]);
    let mut head = [0; 4];
    config.read(at, &mut head);
    assert_eq!(head, [5, 0, 0x80, 0]);
    config.write(at + 4, &0xfee0_1003_u32.to_le_bytes());
    config.write(at + 8, &1_u32.to_le_bytes());
    config.write(at + 12, &0xabcd_4041_u32.to_le_bytes());
    assert_eq!(msi.message(&config), None);
    config.write(at + 2, &0xffff_u16.to_le_bytes());
    // The address has no bits 0 and 1, the data is of 16 bits.
    assert_eq!(msi.message(&config), Some(Msi { address: 0x1_fee0_1000, data: 0x4041 }));
    config.read(at, &mut head);
    assert_eq!(head, [5, 0, 0x81, 0]);
    config.write(at + 2, &[0, 0]);
    assert_eq!(msi.message(&config), None);
}
