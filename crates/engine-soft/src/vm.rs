//! One virtual machine: what its vCPUs and its owner share.
//!
//! | module | subject |
//! |---|---|
//! | [`large`] | large pages of the host |
//! | [`map`] | memory slots and the marks on their pages |
//! | [`shared`] | requests between vCPUs, exclusive sections |
//! | [`time`] | TSC, deadlines, the timer thread |

pub mod large;
pub mod map;
pub mod shared;
pub mod time;

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;

use guise_engine::memory::CodeWatcher;
use guise_engine::{
    Doorbell, EngineError, MAX_VCPUS, MemorySlot, Msi, Vcpu, Vm, VmConfig, VmState,
};

use crate::Tier;
use crate::apic::ApicBus;
use crate::vcpu::SoftVcpu;
use map::{MemoryMap, Region};
use shared::{Request, VcpuShared, VmShared, attention};

pub struct SoftVm {
    tier: Tier,
    shared: Arc<VmShared>,
    created: Mutex<u8>,
    statistics: Arc<Mutex<BTreeMap<String, u64>>>,
    timer: Option<JoinHandle<()>>,
}

/// Tells vCPUs that a device wrote where code was decoded from.
struct Watcher {
    shared: Weak<VmShared>,
    region: Weak<Region>,
}

impl CodeWatcher for Watcher {
    fn code_written(&self, offset: usize, length: usize) {
        let (Some(shared), Some(region)) = (self.shared.upgrade(), self.region.upgrade()) else {
            return;
        };
        const PAGE: usize = guise_engine::memory::PAGE_SIZE;
        let end = offset.saturating_add(length);
        let mut from = offset;
        while from < end {
            let to = end.min(from / PAGE * PAGE + PAGE);
            let marks = region.marks(from / PAGE);
            if marks.code_in(from % PAGE, to - from) {
                let holders = marks.code.load(Ordering::SeqCst);
                let request = Request::Invalidate { host: region.host(from), length: to - from };
                for vcpu in shared.vcpus_in(holders) {
                    vcpu.ask(request);
                }
            }
            from = to;
        }
    }
}

/// Rings an eventfd. A full counter rings already.
pub fn ring(eventfd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight bytes of ours, to a descriptor that is open.
    unsafe { libc::write(eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

impl SoftVm {
    pub fn new(config: &VmConfig, tier: Tier) -> Result<Arc<SoftVm>, EngineError> {
        if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
            return Err(EngineError::VcpuCount { wanted: config.vcpus, max: MAX_VCPUS });
        }
        // The APICs come before what they wake.
        let woken: Arc<OnceLock<Weak<VmShared>>> = Arc::default();
        let target = woken.clone();
        let apics = ApicBus::new(config.vcpus, move |vcpu: u32| {
            if let Some(shared) = target.get().and_then(Weak::upgrade) {
                wake(&shared, vcpu);
            }
        });
        let shared = Arc::new(VmShared::new(config.clone(), apics)?);
        woken.get_or_init(|| Arc::downgrade(&shared));
        let for_timer = shared.clone();
        let timer = std::thread::Builder::new()
            .name("apic-timer".to_owned())
            .spawn(move || {
                for_timer.timer.run(|now| fire_timers(&for_timer, now));
            })
            .map_err(|source| EngineError::Host { doing: "starting the timer thread", source })?;
        Ok(Arc::new(SoftVm {
            tier,
            shared,
            created: Mutex::new(0),
            statistics: Arc::default(),
            timer: Some(timer),
        }))
    }

    /// Changes the memory map; vCPUs that run have seen the new one when this returns.
    fn change_map(
        &self,
        change: impl FnOnce(&mut MemoryMap) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut map = self.shared.map.write().unwrap_or_else(PoisonError::into_inner);
        let mut new = MemoryMap::clone(&map);
        change(&mut new)?;
        *map = Arc::new(new);
        drop(map);
        self.shared.ask_and_wait(0xff, Request::Remap, || {});
        Ok(())
    }

    fn region(&self, slot: u32) -> Result<(Arc<Region>, std::ops::Range<usize>), EngineError> {
        let map = self.shared.memory_map();
        let slot = map
            .slots()
            .iter()
            .find(|s| s.number == slot)
            .ok_or_else(|| EngineError::State(format!("memory slot {slot} is not mapped")))?;
        let first = slot.region.page_of(slot.host);
        let pages = (slot.size / guise_engine::memory::PAGE_SIZE as u64) as usize;
        Ok((slot.region.clone(), first..first + pages))
    }
}

/// Called when an APIC has something new for its vCPU.
fn wake(shared: &VmShared, vcpu: u32) {
    if let Some(vcpu) = shared.vcpus.get(vcpu as usize).and_then(|vcpu| vcpu.get()) {
        vcpu.raise(attention::INTERRUPT | attention::SIGNAL);
    }
}

/// Lets due timers fire; when the next is due.
fn fire_timers(shared: &VmShared, now: u64) -> Option<u64> {
    let mut next = None;
    for index in 0..shared.config.vcpus {
        let apic = shared.apics.apic(index);
        if apic.next_deadline().is_some_and(|deadline| deadline <= now) && apic.expire(now) {
            wake(shared, index);
        }
        next = next.into_iter().chain(apic.next_deadline()).min();
    }
    next
}

impl Drop for SoftVm {
    fn drop(&mut self) {
        self.shared.timer.stop();
        if let Some(timer) = self.timer.take() {
            // It ends at once; had it panicked, there would be nothing to do about it.
            let _ = timer.join();
        }
    }
}

impl Vm for SoftVm {
    fn map_memory(&self, slot: u32, memory: MemorySlot) -> Result<(), EngineError> {
        self.change_map(|map| {
            let known = map.region_of(memory.region.as_ptr()).cloned();
            let region = known.unwrap_or_else(|| {
                let region = Arc::new(Region::new(memory.region.clone()));
                let watcher = Watcher {
                    shared: Arc::downgrade(&self.shared),
                    region: Arc::downgrade(&region),
                };
                // A second VM on the same memory would not be told; there is none.
                region.tracker().set_watcher(Box::new(watcher));
                region
            });
            map.insert(slot, &memory, region)
        })
    }

    fn unmap_memory(&self, slot: u32) -> Result<(), EngineError> {
        self.change_map(|map| {
            if map.remove(slot) {
                Ok(())
            } else {
                Err(EngineError::State(format!("memory slot {slot} is not mapped")))
            }
        })
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let vcpus = self.shared.config.vcpus;
        if index >= vcpus {
            return Err(EngineError::VcpuCount { wanted: index + 1, max: vcpus });
        }
        let mut created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        if *created >> index & 1 != 0 {
            return Err(EngineError::State(format!("vCPU {index} was made before")));
        }
        *created |= 1 << index;
        let me = Arc::new(VcpuShared::new(index));
        let me = self.shared.vcpus[index as usize].get_or_init(|| me).clone();
        let vcpu = SoftVcpu::new(self.shared.clone(), me, self.statistics.clone(), self.tier)?;
        Ok(Box::new(vcpu))
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), EngineError> {
        self.shared.apics.signal_msi(msi);
        Ok(())
    }

    fn signal_nmi(&self, vcpu: u32) -> Result<(), EngineError> {
        self.shared.apics.signal_nmi(vcpu);
        Ok(())
    }

    fn set_external_interrupt(&self, level: bool) -> Result<(), EngineError> {
        self.shared.apics.set_external_interrupt(level);
        Ok(())
    }

    fn log_dirty_pages(&self, slot: u32, enable: bool) -> Result<(), EngineError> {
        let (region, _) = self.region(slot)?;
        region.tracker().log_dirty(enable);
        if enable {
            self.shared.ask_and_wait(0xff, Request::ForgetAllWrites, || {});
        }
        Ok(())
    }

    fn take_dirty_pages(&self, slot: u32) -> Result<Vec<u64>, EngineError> {
        let (region, pages) = self.region(slot)?;
        // Who writes after this notes it again.
        self.shared.ask_and_wait(0xff, Request::ForgetAllWrites, || {});
        let dirty = region.tracker().take_dirty();
        let mut bits = vec![0u64; pages.len().div_ceil(64)];
        for (number, page) in pages.clone().enumerate() {
            if dirty.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 != 0) {
                bits[number / 64] |= 1 << (number % 64);
            }
        }
        // Pages of the region that other slots show stay noted.
        for (word, mut left) in dirty.into_iter().enumerate() {
            while left != 0 {
                let page = word * 64 + left.trailing_zeros() as usize;
                if !pages.contains(&page) {
                    region.tracker().note_dirty(page);
                }
                left &= left - 1;
            }
        }
        Ok(bits)
    }

    fn register_doorbell(&self, doorbell: Doorbell) -> Result<(), EngineError> {
        let mut doorbells = self.shared.doorbells.write().unwrap_or_else(PoisonError::into_inner);
        doorbells.entry(doorbell.address).or_default().push(doorbell);
        self.shared.has_doorbells.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn unregister_doorbell(&self, doorbell: &Doorbell) -> Result<(), EngineError> {
        let mut doorbells = self.shared.doorbells.write().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut here) = doorbells.entry(doorbell.address) {
            here.get_mut()
                .retain(|other| other.length != doorbell.length || other.value != doorbell.value);
            if here.get().is_empty() {
                here.remove();
            }
        }
        self.shared.has_doorbells.store(!doorbells.is_empty(), Ordering::SeqCst);
        Ok(())
    }

    fn state(&self) -> Result<VmState, EngineError> {
        Ok(self.shared.clock.state(self.shared.time.tsc()))
    }

    fn set_state(&self, state: &VmState) -> Result<(), EngineError> {
        if state.version != VmState::VERSION {
            return Err(EngineError::State(format!("unknown version {}", state.version)));
        }
        self.shared.clock.restore(state, self.shared.time.tsc());
        Ok(())
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        statistics.iter().map(|(name, value)| (name.to_string(), *value)).collect()
    }
}
