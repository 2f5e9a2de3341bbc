use super::*;
use crate::storage::MemoryStorage;

#[test]
fn zeroes_of_all_lengths() {
    for len in [0, 1, 63, 64, 65, 255, 256, 300, 4096, 5000] {
        let mut bytes = vec![0; len];
        assert!(is_zero(&bytes), "{len}");
        for at in 0..len {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at} of {len}");
            bytes[at] = 0;
        }
    }
}

#[test]
fn formats_by_their_first_bytes() {
    let kind = |bytes: &[u8]| probe(&MemoryStorage::from_bytes("bytes", bytes)).expect("probe");
    assert_eq!(kind(b""), FormatKind::Raw);
    assert_eq!(kind(b"QFI\xfb"), FormatKind::Qcow2);
    assert_eq!(kind(b"KDMV"), FormatKind::Vmdk);
    assert_eq!(kind(b"# Disk DescriptorFile\nversion=1\n"), FormatKind::Vmdk);
    assert_eq!(kind(b"vhdxfile"), FormatKind::Vhdx);
    assert_eq!(kind(b"LUKS\xba\xbe"), FormatKind::Luks);
    let mut fixed = vec![0; 1024];
    fixed[512..520].copy_from_slice(b"conectix");
    assert_eq!(kind(&fixed), FormatKind::Vhd);
    assert_eq!(kind(&[0x5a; 4096]), FormatKind::Raw);
}

#[test]
fn names_of_formats() {
    for kind in FormatKind::ALL {
        assert_eq!(FormatKind::from_name(kind.name()), Some(kind));
        assert_eq!(FormatKind::from_name(kind.qemu_name()), Some(kind));
    }
    assert_eq!(FormatKind::from_name("floppy"), None);
}
