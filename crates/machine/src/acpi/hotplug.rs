//! PCI hot plug in the DSDT: registers, the event's method, and a device for each slot
//! that can be let go of.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local,
    Method, Name, Notify, OpRegion, OpRegionSpace, Path, Scope, Store, ZERO,
};
use guise_devices::pci::hotplug::PciHotplug;

use super::dsdt::Serialised;

/// Notifications: look for a device, and let go of it.
const CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
/// Slot 0 is the bridge.
const SLOTS: std::ops::Range<u8> = 1..32;

fn slot_name(slot: u8) -> String {
    format!("S{slot:03}")
}

/// Everything about hot plug; `ports` is where the registers are.
pub fn build(ports: u16, aml: &mut Vec<u8>) {
    let length = PciHotplug::LENGTH as u8;
    let registers = OpRegion::new(Path::new("HPRG"), OpRegionSpace::SystemIO, &ports, &length);
    let fields = Field::new(
        Path::new("HPRG"),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        [*b"HPAD", *b"HPRM", *b"HPEJ"].map(|name| FieldEntry::Named(name, 32)).to_vec(),
    );
    let slots: Vec<Serialised> = SLOTS.map(slot_device).collect();
    let mut children: Vec<&dyn Aml> = vec![&registers, &fields];
    children.extend(slots.iter().map(|slot| slot as &dyn Aml));
    Scope::new(Path::new("_SB_.PCI0"), children).to_aml_bytes(aml);
    event(aml);
}

/// A slot's device, which exists so that it can be notified and ejected.
fn slot_device(slot: u8) -> Serialised {
    let address = Name::new(Path::new("_ADR"), &(u32::from(slot) << 16));
    let number = Name::new(Path::new("_SUN"), &slot);
    let bit = Serialised::new(&(1_u32 << slot));
    let register = Path::new("HPEJ");
    let eject = Store::new(&register, &bit);
    let method = Method::new(Path::new("_EJ0"), 1, false, vec![&eject]);
    Serialised::new(&Device::new(Path::new(&slot_name(slot)), vec![&address, &number, &method]))
}

/// `\_GPE._E01`: reads which slots changed, and notifies their devices.
fn event(aml: &mut Vec<u8>) {
    let (added, removing) = (Local(0), Local(1));
    let (added_register, removing_register) =
        (Path::new("\\_SB_.PCI0.HPAD"), Path::new("\\_SB_.PCI0.HPRM"));
    let mut body = vec![
        Serialised::new(&Store::new(&added, &added_register)),
        Serialised::new(&Store::new(&removing, &removing_register)),
    ];
    for slot in SLOTS {
        let path = Path::new(&format!("\\_SB_.PCI0.{}", slot_name(slot)));
        for (changed, what) in [(&added, CHECK), (&removing, EJECT_REQUEST)] {
            let bit = 1_u32 << slot;
            let test = And::new(&ZERO, changed, &bit);
            let notify = Notify::new(&path, &what);
            body.push(Serialised::new(&If::new(&test, vec![&notify])));
        }
    }
    let children = body.iter().map(|object| object as &dyn Aml).collect();
    let method = Method::new(Path::new("_E01"), 0, false, children);
    Scope::new(Path::new("_GPE"), vec![&method]).to_aml_bytes(aml);
}
