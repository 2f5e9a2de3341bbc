use super::*;
use crate::bus::Bus;
use crate::clock::Clock;
use crate::pci::{ConfigSpace, Identity, PciWindows};
use crate::power::PowerRequest;

struct Function(ConfigSpace);

impl PciFunction for Function {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn bar_read(&self, _: usize, _: u64, _: &mut [u8]) {}
    fn bar_write(&self, _: usize, _: u64, _: &[u8]) {}
    fn reset(&self) {}
}

fn function() -> Arc<Function> {
    Arc::new(Function(ConfigSpace::new(Identity {
        vendor: 1,
        device: 2,
        subsystem_vendor: 0,
        subsystem: 0,
        class: 0,
        revision: 0,
    })))
}

fn rig() -> (Arc<PciHost>, Arc<Acpi>, Arc<PciHotplug>) {
    let power = Arc::new(|_: PowerRequest| ());
    let windows = PciWindows { ports: 0..0, memory32: 0..0, memory64: 0..0 };
    let bus = || Arc::new(Bus::new());
    let host = PciHost::new(bus(), bus(), windows, vec![], power.clone());
    let acpi = Acpi::new(Clock::manual(), Arc::new(|_: bool| ()), power);
    let hotplug = PciHotplug::new(host.clone(), acpi.clone());
    (host, acpi, hotplug)
}

fn read(device: &dyn Device, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn a_filled_slot_is_announced_once() {
    let (_, acpi, hotplug) = rig();
    hotplug.add(3, function()).unwrap();
    assert_eq!(read(&*acpi, crate::acpi::GPE), 1 << EVENT);
    assert_eq!(read(&*hotplug, ADDED), 1 << 3);
    assert_eq!(read(&*hotplug, ADDED), 0);
    assert_eq!(hotplug.add(3, function()), Err(SlotError::Taken(3)));
    assert_eq!(read(&*hotplug, ADDED), 0);
}

#[test]
fn a_slot_is_emptied_when_the_guest_ejects_it() {
    let (host, _, hotplug) = rig();
    hotplug.add(3, function()).unwrap();
    hotplug.request_removal(3);
    hotplug.request_removal(0);
    hotplug.request_removal(32);
    assert_eq!(read(&*hotplug, REMOVING), 1 << 3);
    assert_eq!(host.occupied(), 0b1001);
    hotplug.write(EJECT, &(1_u32 << 3 | 1).to_le_bytes());
    assert_eq!((read(&*hotplug, REMOVING), host.occupied()), (0, 1));
}

#[test]
fn state_goes_through_a_format_and_back() {
    let (_, _, hotplug) = rig();
    hotplug.request_removal(5);
    let saved = serde_json::to_string(&hotplug.state()).unwrap();
    let (_, _, other) = rig();
    other.set_state(&serde_json::from_str(&saved).unwrap());
    assert_eq!(read(&*other, REMOVING), 1 << 5);
    other.reset();
    assert_eq!(read(&*other, REMOVING), 0);
}
