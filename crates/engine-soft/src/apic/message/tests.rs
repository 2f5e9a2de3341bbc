use super::*;

#[test]
fn msi_formats() {
    let message = Message::from_msi(Msi { address: 0xfee0_3000, data: 0x8041 }).unwrap();
    assert_eq!(message.destination, Destination::Physical(3));
    assert_eq!((message.vector, message.level_triggered), (0x41, true));
    assert_eq!(message.mode, DeliveryMode::Fixed);
    let message = Message::from_msi(Msi { address: 0xfeef_f00c, data: 0x41 }).unwrap();
    assert_eq!(message.destination, Destination::Logical(BROADCAST));
    assert_eq!(message.mode, DeliveryMode::LowestPriority);
    assert_eq!(Message::from_msi(Msi { address: 0xfed0_0000, data: 0x41 }), None);
    assert_eq!(Message::from_msi(Msi { address: 0x1_fee0_0000, data: 0x41 }), None);
}

#[test]
fn icr_formats() {
    let init = Message::from_xapic_icr(0x0000_4500, 0x0200_0000).unwrap();
    assert_eq!((init.mode, init.destination), (DeliveryMode::Init, Destination::Physical(2)));
    assert_eq!(Message::from_xapic_icr(0x0000_8500, 0), None, "INIT deassert");
    let nmi = Message::from_icr(0x000c_4400, 0).unwrap();
    assert_eq!((nmi.mode, nmi.destination), (DeliveryMode::Nmi, Destination::AllButSender));
    let all = Message::from_xapic_icr(0x40fb, 0xff00_0000).unwrap();
    assert_eq!(all.destination, Destination::Physical(BROADCAST));
}

#[test]
fn logical_ids() {
    assert!(LogicalId::Flat(4).matches(6));
    assert!(!LogicalId::Flat(4).matches(3));
    assert!(!LogicalId::Flat(0).matches(0xff));
    assert!(LogicalId::Flat(1).matches(BROADCAST));
    assert!(LogicalId::Cluster(0x21).matches(0x23));
    assert!(!LogicalId::Cluster(0x21).matches(0x31));
    assert!(LogicalId::Cluster(0x21).matches(0xf1));
    assert!(LogicalId::x2(0x13).matches(0x0001_0008));
    assert!(!LogicalId::x2(0x13).matches(0x0000_0008));
    assert_eq!(LogicalId::x2(0x13), LogicalId::X2(0x0001_0008));
}
