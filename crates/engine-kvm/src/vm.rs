//! A VM of KVM: memory slots, messages, doorbells, the dirty log, the clock.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use guise_engine::memory::vm_memory::{GuestMemoryRegion, MemoryRegionAddress};
use guise_engine::{
    Doorbell, DoorbellAddress, EngineError, MemorySlot, Msi, Vcpu, Vm, VmConfig, VmState,
};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CLOCK_REALTIME, KVM_IRQ_ROUTING_MSI, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY, KvmIrqRouting, kvm_clock_data, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::cpuid::Offer;
use crate::failed;
use crate::kick::{EXTERNAL_INTERRUPT, Kick};
use crate::vcpu::KvmVcpu;

const IOAPIC_PINS: u32 = 24;
/// Three pages for KVM's own use in real mode on old processors, below the firmware.
const TSS_ADDRESS: usize = 0xfffb_d000;
const PAGE_SIZE: u64 = 4096;

/// Counters that all vCPUs add to.
#[derive(Default)]
pub struct Counters {
    pub port: AtomicU64,
    pub memory: AtomicU64,
    pub interrupt_windows: AtomicU64,
    pub external_interrupts: AtomicU64,
    pub ioapic_ends: AtomicU64,
    pub interrupted: AtomicU64,
}

/// What the vCPUs need of their VM.
pub struct Shared {
    pub fd: VmFd,
    pub kicks: Vec<Arc<Kick>>,
    pub external_interrupt: AtomicBool,
    /// The guests' TSC; known once there is a vCPU.
    pub tsc_khz: AtomicU64,
    pub counters: Counters,
}

pub struct KvmVm {
    shared: Arc<Shared>,
    config: VmConfig,
    offer: Offer,
    slots: Mutex<BTreeMap<u32, Slot>>,
    ioapic: Mutex<[Option<Msi>; IOAPIC_PINS as usize]>,
    nmi: Mutex<Vec<Option<Arc<std::os::fd::OwnedFd>>>>,
}

struct Slot {
    memory: MemorySlot,
    log_dirty: bool,
}

impl KvmVm {
    pub fn new(kvm: &Kvm, config: &VmConfig) -> Result<KvmVm, EngineError> {
        let fd = kvm.create_vm().map_err(failed("cannot make a virtual machine"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(failed("cannot place KVM's task state"))?;
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        split.args[0] = u64::from(IOAPIC_PINS);
        fd.enable_cap(&split).map_err(failed("cannot put the local APICs into the kernel"))?;
        let offer = Offer::of(kvm).map_err(failed("cannot read what KVM supports of CPUID"))?;
        let shared = Shared {
            fd,
            kicks: (0..config.vcpus).map(|_| Kick::new()).collect(),
            external_interrupt: AtomicBool::new(false),
            tsc_khz: AtomicU64::new(config.tsc_khz.unwrap_or(0)),
            counters: Counters::default(),
        };
        Ok(KvmVm {
            shared: Arc::new(shared),
            config: config.clone(),
            offer,
            slots: Mutex::default(),
            ioapic: Mutex::new([None; IOAPIC_PINS as usize]),
            nmi: Mutex::new(vec![None; config.vcpus as usize]),
        })
    }

    fn apply(&self, number: u32, slot: &Slot) -> Result<(), EngineError> {
        let memory = &slot.memory;
        let host = memory
            .region
            .get_host_address(MemoryRegionAddress(memory.offset))
            .map_err(|_| out_of_region(memory))?;
        let flags = if slot.log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 }
            | if memory.read_only { KVM_MEM_READONLY } else { 0 };
        let region = kvm_userspace_memory_region {
            slot: number,
            flags,
            guest_phys_addr: memory.guest_address,
            memory_size: memory.size,
            userspace_addr: host as u64,
        };
        // SAFETY: the range lies within the region, which the slot table keeps mapped
        // for as long as KVM knows it: the entry is removed only after KVM forgot it.
        unsafe { self.shared.fd.set_user_memory_region(region) }
            .map_err(failed("cannot map guest memory"))
    }

    fn routing(pins: &[Option<Msi>]) -> Vec<kvm_irq_routing_entry> {
        let entry = |(pin, msi): (usize, &Option<Msi>)| {
            let msi = (*msi)?;
            let mut entry = kvm_irq_routing_entry {
                gsi: pin as u32,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi.address_lo = msi.address as u32;
            entry.u.msi.address_hi = (msi.address >> 32) as u32;
            entry.u.msi.data = msi.data;
            Some(entry)
        };
        pins.iter().enumerate().filter_map(entry).collect()
    }
}

fn out_of_region(memory: &MemorySlot) -> EngineError {
    EngineError::Memory {
        address: memory.guest_address,
        end: memory.guest_address.saturating_add(memory.size),
        reason: "the slot is not inside its region",
    }
}

impl Vm for KvmVm {
    fn map_memory(&self, number: u32, memory: MemorySlot) -> Result<(), EngineError> {
        let end = memory.offset.checked_add(memory.size);
        if memory.size == 0 || end.is_none_or(|end| end > memory.region.len()) {
            return Err(out_of_region(&memory));
        }
        let mut slots = self.slots.lock().unwrap();
        let slot = Slot { memory, log_dirty: false };
        self.apply(number, &slot)?;
        slots.insert(number, slot);
        Ok(())
    }

    fn unmap_memory(&self, number: u32) -> Result<(), EngineError> {
        let mut slots = self.slots.lock().unwrap();
        if slots.contains_key(&number) {
            let none = kvm_userspace_memory_region { slot: number, ..Default::default() };
            // SAFETY: a slot of size 0 makes KVM forget it.
            unsafe { self.shared.fd.set_user_memory_region(none) }
                .map_err(failed("cannot unmap guest memory"))?;
            slots.remove(&number);
        }
        Ok(())
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        if index >= self.config.vcpus {
            return Err(EngineError::VcpuCount { wanted: index + 1, max: self.config.vcpus });
        }
        let vcpu = KvmVcpu::new(self.shared.clone(), index, &self.config, &self.offer)?;
        // NMIs come from other threads; the descriptor is shared, the memory is not.
        let fd = vcpu.descriptor().map_err(|source| EngineError::Host {
            doing: "cannot share a vCPU's descriptor",
            source,
        })?;
        self.nmi.lock().unwrap()[index as usize] = Some(Arc::new(fd));
        Ok(Box::new(vcpu))
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), EngineError> {
        let message = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..Default::default()
        };
        // A message that no local APIC accepts is dropped, as on a real bus.
        self.shared.fd.signal_msi(message).map(drop).map_err(failed("cannot send an interrupt"))
    }

    fn signal_nmi(&self, vcpu: u32) -> Result<(), EngineError> {
        const KVM_NMI: libc::c_ulong = 0xae9a;
        let nmi = self.nmi.lock().unwrap();
        let Some(Some(fd)) = nmi.get(vcpu as usize) else {
            return Err(EngineError::VcpuCount { wanted: vcpu + 1, max: self.config.vcpus });
        };
        // SAFETY: an ioctl without argument on a vCPU's descriptor.
        match unsafe { libc::ioctl(fd.as_raw_fd(), KVM_NMI, 0) } {
            0 => Ok(()),
            _ => Err(EngineError::last_os_error("cannot send an NMI")),
        }
    }

    fn set_external_interrupt(&self, level: bool) -> Result<(), EngineError> {
        self.shared.external_interrupt.store(level, Ordering::SeqCst);
        if level {
            self.shared.kicks[0].request(EXTERNAL_INTERRUPT);
        }
        Ok(())
    }

    fn route_ioapic_pin(&self, pin: u32, msi: Option<Msi>) -> Result<(), EngineError> {
        let mut pins = self.ioapic.lock().unwrap();
        let Some(place) = pins.get_mut(pin as usize) else { return Ok(()) };
        if *place == msi {
            return Ok(());
        }
        *place = msi;
        let routing =
            KvmIrqRouting::from_entries(&Self::routing(&*pins)).expect("24 routes fit KVM's table");
        self.shared
            .fd
            .set_gsi_routing(&routing)
            .map_err(failed("cannot tell KVM of the I/O APIC's routes"))
    }

    fn log_dirty_pages(&self, number: u32, enable: bool) -> Result<(), EngineError> {
        let mut slots = self.slots.lock().unwrap();
        let slot = slots.get_mut(&number).ok_or_else(|| no_slot(number))?;
        slot.log_dirty = enable;
        slot.memory.region.bitmap().log_dirty(enable);
        self.apply(number, &slots[&number])
    }

    fn take_dirty_pages(&self, number: u32) -> Result<Vec<u64>, EngineError> {
        let slots = self.slots.lock().unwrap();
        let memory = &slots.get(&number).ok_or_else(|| no_slot(number))?.memory;
        let mut pages = self
            .shared
            .fd
            .get_dirty_log(number, memory.size as usize)
            .map_err(failed("cannot read the dirty log"))?;
        pages.resize((memory.size / PAGE_SIZE).div_ceil(64) as usize, 0);
        // What devices wrote is in the region's own marks.
        let first = (memory.offset / PAGE_SIZE) as usize;
        let ours = memory.region.bitmap().take_dirty();
        for page in 0..(memory.size / PAGE_SIZE) as usize {
            let at = first + page;
            if ours.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1) {
                pages[page / 64] |= 1 << (page % 64);
            }
        }
        Ok(pages)
    }

    fn register_doorbell(&self, doorbell: Doorbell) -> Result<(), EngineError> {
        self.doorbell(&doorbell, true)
    }

    fn unregister_doorbell(&self, doorbell: &Doorbell) -> Result<(), EngineError> {
        self.doorbell(doorbell, false)
    }

    fn state(&self) -> Result<VmState, EngineError> {
        let clock = self.shared.fd.get_clock().map_err(failed("cannot read KVM's clock"))?;
        let realtime_ns = if clock.flags & KVM_CLOCK_REALTIME != 0 {
            clock.realtime
        } else {
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
        };
        Ok(VmState {
            version: VmState::VERSION,
            clock_ns: clock.clock,
            realtime_ns,
            tsc_khz: self.shared.tsc_khz.load(Ordering::Relaxed),
        })
    }

    fn set_state(&self, state: &VmState) -> Result<(), EngineError> {
        if state.version != VmState::VERSION {
            return Err(EngineError::State(format!(
                "its clock has version {}, this Guise reads {}",
                state.version,
                VmState::VERSION
            )));
        }
        let clock = kvm_clock_data { clock: state.clock_ns, ..Default::default() };
        self.shared.fd.set_clock(&clock).map_err(failed("cannot set KVM's clock"))
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let counters = &self.shared.counters;
        [
            ("exits.port", &counters.port),
            ("exits.memory", &counters.memory),
            ("exits.interrupt_window", &counters.interrupt_windows),
            ("exits.ioapic_eoi", &counters.ioapic_ends),
            ("exits.interrupted", &counters.interrupted),
            ("interrupts.external", &counters.external_interrupts),
        ]
        .into_iter()
        .map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed)))
        .collect()
    }
}

impl KvmVm {
    fn doorbell(&self, doorbell: &Doorbell, register: bool) -> Result<(), EngineError> {
        let address = match doorbell.address {
            DoorbellAddress::Port(port) => IoEventAddress::Pio(u64::from(port)),
            DoorbellAddress::Memory(address) => IoEventAddress::Mmio(address),
        };
        // KVM keeps its own reference to the event; this duplicate lives for the call.
        let fd = doorbell
            .eventfd
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| EngineError::Host { doing: "cannot share an eventfd", source })?;
        // SAFETY: the descriptor is given up by its owner in the same expression.
        let event = unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) };
        let ring =
            |match_value: Match| match_value.apply(&self.shared.fd, &event, &address, register);
        let result = match (doorbell.value, doorbell.length) {
            (None, _) => ring(Match::Any),
            (Some(value), 1) => ring(Match::Byte(value as u8)),
            (Some(value), 2) => ring(Match::Word(value as u16)),
            (Some(value), 8) => ring(Match::Quad(value)),
            (Some(value), _) => ring(Match::Double(value as u32)),
        };
        result.map_err(failed("cannot register a doorbell with KVM"))
    }
}

/// What a write must be to ring: the width is in the type of the value.
enum Match {
    Any,
    Byte(u8),
    Word(u16),
    Double(u32),
    Quad(u64),
}

impl Match {
    fn apply(
        &self,
        vm: &VmFd,
        event: &EventFd,
        address: &IoEventAddress,
        register: bool,
    ) -> Result<(), kvm_ioctls::Error> {
        fn each<T: Into<u64>>(
            vm: &VmFd,
            event: &EventFd,
            address: &IoEventAddress,
            value: T,
            register: bool,
        ) -> Result<(), kvm_ioctls::Error> {
            if register {
                vm.register_ioevent(event, address, value)
            } else {
                vm.unregister_ioevent(event, address, value)
            }
        }
        match *self {
            Match::Any => each(vm, event, address, NoDatamatch, register),
            Match::Byte(value) => each(vm, event, address, value, register),
            Match::Word(value) => each(vm, event, address, value, register),
            Match::Double(value) => each(vm, event, address, value, register),
            Match::Quad(value) => each(vm, event, address, value, register),
        }
    }
}

fn no_slot(number: u32) -> EngineError {
    EngineError::State(format!("there is no memory slot {number}"))
}
