//! What the threads of one VM know of each other: the way to a running vCPU, requests
//! between vCPUs, and sections in which all others stand still.
//!
//! A vCPU is *inside* while it may execute guest instructions. Requests for one that is
//! outside (halted, stopped) stay in its queue and are done before it comes in again,
//! so nobody waits for it. Whoever waits for another vCPU and is inside himself serves
//! his own queue meanwhile, or two could wait for each other.

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use guise_engine::{Doorbell, DoorbellAddress, EngineError, MAX_VCPUS, VmConfig};

use super::large::LargePages;
use super::map::MemoryMap;
use super::time::{Time, Timer};
use crate::apic::ApicBus;
use crate::paravirt::Clock;
use guise_engine::processor::Model;

/// Bits of the attention word.
pub mod attention {
    /// The local APIC, or the 8259 pair, may have an interrupt to deliver.
    pub const INTERRUPT: u32 = 1;
    pub const NMI: u32 = 1 << 1;
    /// `run` shall return.
    pub const KICK: u32 = 1 << 2;
    /// Another thread has put something into the queue.
    pub const REQUEST: u32 = 1 << 3;
    /// Somebody wants all others to stand still.
    pub const EXCLUSIVE: u32 = 1 << 4;
    /// INIT or a start-up IPI came.
    pub const SIGNAL: u32 = 1 << 5;
    /// The next instruction runs alone: after STI or a load of SS, with TF set, or
    /// under a debugger.
    pub const ALONE: u32 = 1 << 6;
    /// HLT was executed.
    pub const HALT: u32 = 1 << 7;
    /// A paravirtual kick: HLT ends, whatever IF says.
    pub const UNHALT: u32 = 1 << 8;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// No TLB entry may write this page of host memory any more.
    ForgetWrites { page: *mut u8 },
    /// These bytes were written: forget code that was made from them.
    Invalidate { host: *mut u8, length: usize },
    /// The memory map changed.
    Remap,
    /// The next write to any page must be seen.
    ForgetAllWrites,
}

// SAFETY: the pointers are names of places; who uses them checks what stands there.
unsafe impl Send for Request {}

/// The part of a vCPU that other threads reach.
pub struct VcpuShared {
    pub index: u32,
    attention: Mutex<Option<NonNull<AtomicU32>>>,
    sleeping: AtomicBool,
    pub inside: AtomicBool,
    queue: Mutex<Vec<Request>>,
    asked: AtomicU64,
    pub served: AtomicU64,
}

// SAFETY: the pointer is used under its lock only, and withdrawn before what it points
// to goes away.
unsafe impl Send for VcpuShared {}
// SAFETY: as above.
unsafe impl Sync for VcpuShared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VcpuShared {
    pub fn new(index: u32) -> VcpuShared {
        VcpuShared {
            index,
            attention: Mutex::new(None),
            sleeping: AtomicBool::new(false),
            inside: AtomicBool::new(false),
            queue: Mutex::new(Vec::new()),
            asked: AtomicU64::new(0),
            served: AtomicU64::new(0),
        }
    }

    /// Connects the vCPU's attention word, or disconnects it.
    ///
    /// # Safety
    ///
    /// The word stays where it is until it is disconnected.
    pub unsafe fn connect(&self, word: Option<NonNull<AtomicU32>>) {
        *lock(&self.attention) = word;
    }

    /// Sets bits of the attention word, and wakes the vCPU if it sleeps.
    pub fn raise(&self, bits: u32) {
        let word = lock(&self.attention);
        let Some(word) = *word else { return };
        // SAFETY: connected, so it is there while the lock is held.
        let word = unsafe { word.as_ref() };
        word.fetch_or(bits, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            // SAFETY: a futex call on a word that lives.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    word.as_ptr(),
                    libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                    1,
                );
            }
        }
    }

    /// Sleeps until the attention word is not 0, or for so long. Says whether there is
    /// something to attend to.
    pub fn sleep(&self, word: &AtomicU32, limit: Option<Duration>) -> bool {
        let begun = Instant::now();
        self.sleeping.store(true, Ordering::SeqCst);
        while word.load(Ordering::SeqCst) == 0 {
            let left = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
            if left == Some(Duration::ZERO) {
                break;
            }
            let left = left.map(|left| libc::timespec {
                tv_sec: left.as_secs() as libc::time_t,
                tv_nsec: left.subsec_nanos().into(),
            });
            // SAFETY: a futex call on a word that lives; the time-out does, too, if there
            // is one.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    word.as_ptr(),
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    0,
                    left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
                );
            }
        }
        self.sleeping.store(false, Ordering::SeqCst);
        word.load(Ordering::SeqCst) != 0
    }

    /// Puts a request into the queue; the result is the number to wait for.
    pub fn ask(&self, request: Request) -> u64 {
        let mut queue = lock(&self.queue);
        queue.push(request);
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        drop(queue);
        self.raise(attention::REQUEST);
        number
    }

    /// Takes the queue, with the number to set [`VcpuShared::served`] to when done.
    pub fn take_requests(&self) -> (Vec<Request>, u64) {
        let mut queue = lock(&self.queue);
        (std::mem::take(&mut *queue), self.asked.load(Ordering::SeqCst))
    }

    pub fn has_served(&self, number: u64) -> bool {
        self.served.load(Ordering::SeqCst) >= number || !self.inside.load(Ordering::SeqCst)
    }
}

/// What the vCPUs of a VM, and whoever owns it, share.
pub struct VmShared {
    pub config: VmConfig,
    pub map: RwLock<Arc<MemoryMap>>,
    pub vcpus: [OnceLock<Arc<VcpuShared>>; MAX_VCPUS as usize],
    pub doorbells: RwLock<HashMap<DoorbellAddress, Vec<Doorbell>>>,
    pub has_doorbells: AtomicBool,
    /// Held by who changes the code marks of pages.
    pub code_lock: Mutex<()>,
    /// The vCPU that has, or waits for, the exclusive section; 0xff for none.
    exclusive: AtomicU8,
    pub apics: ApicBus,
    pub model: Model,
    pub clock: Clock,
    pub time: Time,
    pub timer: Timer,
    pub large_pages: LargePages,
}

impl VmShared {
    pub fn new(config: VmConfig, apics: ApicBus) -> Result<VmShared, EngineError> {
        let time = Time::new(config.tsc_khz);
        let model = Model::new(config.model, config.vcpus, time.khz)?;
        let clock = Clock::new(time.khz, time.tsc());
        Ok(VmShared {
            config,
            map: RwLock::default(),
            vcpus: Default::default(),
            doorbells: RwLock::default(),
            has_doorbells: AtomicBool::new(false),
            code_lock: Mutex::new(()),
            exclusive: AtomicU8::new(0xff),
            apics,
            model,
            clock,
            time,
            timer: Timer::default(),
            large_pages: LargePages::default(),
        })
    }

    pub fn memory_map(&self) -> Arc<MemoryMap> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn vcpus(&self) -> impl Iterator<Item = &Arc<VcpuShared>> {
        self.vcpus.iter().filter_map(OnceLock::get)
    }

    /// The vCPUs of a mask.
    pub fn vcpus_in(&self, mask: u8) -> impl Iterator<Item = &Arc<VcpuShared>> {
        self.vcpus().filter(move |vcpu| mask >> vcpu.index & 1 != 0)
    }

    /// Asks all vCPUs of the mask and waits until it is done, serving `meanwhile`.
    pub fn ask_and_wait(&self, mask: u8, request: Request, mut meanwhile: impl FnMut()) {
        let asked: Vec<_> =
            self.vcpus_in(mask).map(|vcpu| (vcpu.clone(), vcpu.ask(request))).collect();
        wait_until(|| asked.iter().all(|(vcpu, number)| vcpu.has_served(*number)), &mut meanwhile);
    }

    /// Waits for all other vCPUs to stand still. Ends with [`VmShared::end_exclusive`].
    pub fn begin_exclusive(&self, me: u32, mut meanwhile: impl FnMut()) {
        wait_until(
            || {
                self.exclusive
                    .compare_exchange(0xff, me as u8, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
            },
            &mut meanwhile,
        );
        for vcpu in self.vcpus().filter(|vcpu| vcpu.index != me) {
            vcpu.raise(attention::EXCLUSIVE);
        }
        wait_until(
            || {
                self.vcpus()
                    .filter(|vcpu| vcpu.index != me)
                    .all(|vcpu| !vcpu.inside.load(Ordering::SeqCst))
            },
            &mut meanwhile,
        );
    }

    pub fn end_exclusive(&self) {
        self.exclusive.store(0xff, Ordering::SeqCst);
    }

    /// Whether a vCPU other than `me` has or wants the exclusive section.
    pub fn others_excluded_me(&self, me: u32) -> bool {
        let holder = self.exclusive.load(Ordering::SeqCst);
        holder != 0xff && holder as u32 != me
    }
}

/// Waits without a bell: what is waited for takes microseconds on a running thread.
pub fn wait_until(done: impl Fn() -> bool, meanwhile: &mut dyn FnMut()) {
    let mut rounds = 0u32;
    while !done() {
        meanwhile();
        rounds += 1;
        if rounds < 64 {
            std::hint::spin_loop();
        } else if rounds < 1024 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }
}
