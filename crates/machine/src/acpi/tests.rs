use super::*;
use crate::layout::ACPI_TABLES;

const HARDWARE: Hardware = Hardware {
    vcpus: 4,
    ports: PowerPorts {
        pm1_event: 0x600,
        pm1_control: 0x604,
        pm_timer: 0x608,
        events: 0x610,
        events_length: 8,
        off_type: 5,
        reset: 0xcf9,
        reset_value: 6,
    },
    hpet: true,
    iommu: true,
    pvpanic: 0x505,
    keyboard: true,
    hotplug: 0x620,
};

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at a guest address, after its checksum has been verified.
fn table(image: &[u8], address: u32) -> &[u8] {
    let start = (address as u64 - ACPI_TABLES) as usize;
    let length = word(image, start + 4) as usize;
    let bytes = &image[start..start + length];
    assert_eq!(sum(bytes), 0, "{}", String::from_utf8_lossy(&bytes[..4]));
    bytes
}

#[test]
fn every_table_is_reached_from_the_root_pointer() {
    let image = build(&HARDWARE);
    assert_eq!(&image[..8], b"RSD PTR ");
    assert_eq!(sum(&image[..20]), 0);
    assert_eq!(sum(&image[..36]), 0);
    let (rsdt, xsdt) = (table(&image, word(&image, 16)), table(&image, word(&image, 24)));
    let short: Vec<u32> = rsdt[36..].chunks(4).map(|entry| word(entry, 0)).collect();
    let long: Vec<u32> = xsdt[36..].chunks(8).map(|entry| word(entry, 0)).collect();
    assert_eq!(short, long);
    let names: Vec<&[u8]> = short.iter().map(|address| &table(&image, *address)[..4]).collect();
    assert_eq!(names, [b"FACP", b"APIC", b"MCFG", b"HPET", b"DMAR"]);
    let fadt = table(&image, short[0]);
    assert_eq!(&table(&image, word(fadt, 40))[..4], b"DSDT");
    assert_eq!(word(fadt, 36) % 64, 0, "the FACS is aligned");
}

#[test]
fn the_tables_fit_their_room_on_the_largest_machine() {
    let image = build(&Hardware { vcpus: guise_engine::MAX_VCPUS, ..HARDWARE });
    assert!(image.len() as u64 <= ACPI_TABLES_ROOM, "{}", image.len());
}

#[test]
fn each_vcpu_has_a_local_apic() {
    let image = build(&HARDWARE);
    let madt = tables::madt(&HARDWARE);
    let (mut at, mut processors) = (44, Vec::new());
    while at < madt.len() {
        if madt[at] == 0 {
            processors.push(madt[at + 3]);
        }
        at += usize::from(madt[at + 1]);
    }
    assert_eq!(processors, [0, 1, 2, 3]);
    assert!(!image.is_empty());
}

/// The structures of the table fill it, each as long as it says.
#[test]
fn the_iommu_covers_pci_and_the_io_apic() {
    let dmar = tables::dmar();
    assert_eq!(dmar.len(), 48 + 24);
    assert_eq!(word(&dmar, 4) as usize, dmar.len());
    assert_eq!(dmar[36..38], [47, 1]);
    assert_eq!(dmar[48..56], [0, 0, 24, 0, 1, 0, 0, 0]);
    assert_eq!(u64::from(word(&dmar, 56)), crate::layout::IOMMU);
    let madt = tables::madt(&HARDWARE);
    let io_apic = madt.windows(2).position(|head| head == [1, 12]).expect("an I/O APIC");
    assert_eq!(dmar[64..], [3, 8, 0, 0, madt[io_apic + 2], 0xff, 31, 0]);
}
