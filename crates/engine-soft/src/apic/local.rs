//! One vCPU's local APIC, which any thread may reach.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::access::{Effect, Refused};
use super::message::{DeliveryMode, Message};
use super::registers::{BASE_ADDRESS, Registers, TIMER};

/// What an APIC has for its vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending(u32);

impl Pending {
    /// A vector above the processor priority.
    pub const INTERRUPT: Pending = Pending(1);
    /// The 8259 pair's request.
    pub const EXTERNAL: Pending = Pending(2);
    pub const NMI: Pending = Pending(4);
    pub const INIT: Pending = Pending(8);
    pub const SIPI: Pending = Pending(16);

    pub fn has(self, other: Pending) -> bool {
        self.0 & other.0 != 0
    }

    pub fn any(self) -> bool {
        self.0 != 0
    }
}

impl std::ops::BitOr for Pending {
    type Output = Pending;

    fn bitor(self, other: Pending) -> Pending {
        Pending(self.0 | other.0)
    }
}

/// No deadline.
const NEVER: u64 = u64::MAX;

/// A local APIC. Its vCPU uses the methods here; [`super::ApicBus`] has those that
/// involve others.
pub struct LocalApic {
    registers: Mutex<Registers>,
    /// A [`Pending`], kept in step with the registers.
    pending: AtomicU32,
    /// The timer's deadline, or [`NEVER`].
    deadline: AtomicU64,
    /// Copies for the run loop: the base MSR and the task priority.
    base: AtomicU64,
    task_priority: AtomicU32,
}

/// The registers while they are changed. When it goes, the summary is brought up to
/// date; `gained` says whether there is something in it that was not there before.
struct Change<'a> {
    apic: &'a LocalApic,
    registers: MutexGuard<'a, Registers>,
}

impl Change<'_> {
    fn finish(self) -> bool {
        let registers = &*self.registers;
        let bits = [
            (Pending::INTERRUPT, registers.deliverable().is_some()),
            (Pending::EXTERNAL, registers.external_pending()),
            (Pending::NMI, registers.nmis != 0),
            (Pending::INIT, registers.init),
            (Pending::SIPI, registers.start_up.is_some()),
        ];
        let new = bits.iter().filter(|(_, on)| *on).fold(0, |all, (bit, _)| all | bit.0);
        let apic = self.apic;
        apic.deadline.store(registers.timer.deadline.unwrap_or(NEVER), Ordering::Relaxed);
        apic.base.store(registers.base, Ordering::Relaxed);
        apic.task_priority.store(u32::from(registers.task_priority), Ordering::Relaxed);
        let old = apic.pending.swap(new, Ordering::SeqCst);
        new & !old != 0
    }
}

impl LocalApic {
    pub(super) fn new(id: u32) -> Self {
        let apic = Self {
            registers: Mutex::new(Registers::new(id)),
            pending: AtomicU32::new(0),
            deadline: AtomicU64::new(NEVER),
            base: AtomicU64::new(0),
            task_priority: AtomicU32::new(0),
        };
        apic.change(|_| ());
        apic
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the registers; also says whether the vCPU has something new to look at.
    pub(super) fn change<T>(&self, with: impl FnOnce(&mut Registers) -> T) -> (T, bool) {
        let mut change = Change { apic: self, registers: self.lock() };
        let result = with(&mut change.registers);
        (result, change.finish())
    }

    /// Takes a message that is meant for this APIC. Says whether to wake the vCPU.
    pub(super) fn receive(&self, message: &Message) -> bool {
        let receive = |registers: &mut Registers| match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                registers.pend(message.vector, message.level_triggered);
            }
            DeliveryMode::Nmi => registers.pend_nmi(),
            DeliveryMode::Init => {
                registers.init = true;
                registers.start_up = None;
            }
            DeliveryMode::StartUp => registers.start_up = Some(message.vector),
            // There is no system management mode; an external interrupt comes by wire.
            DeliveryMode::Smi | DeliveryMode::Reserved | DeliveryMode::External => {}
        };
        self.change(receive).1
    }

    /// What there is to do: one load.
    pub fn pending(&self) -> Pending {
        Pending(self.pending.load(Ordering::SeqCst))
    }

    /// Moves the highest deliverable vector from requested to in service.
    pub fn accept(&self) -> Option<u8> {
        self.change(Registers::accept).0
    }

    pub fn take_nmi(&self) -> bool {
        let take = |registers: &mut Registers| {
            let pending = registers.nmis != 0;
            registers.nmis = registers.nmis.saturating_sub(1);
            pending
        };
        self.change(take).0
    }

    /// An NMI handler has ended: of those that came during it, one is left.
    pub fn merge_nmis(&self) {
        self.change(|registers| registers.nmis = registers.nmis.min(1));
    }

    /// Takes an INIT and resets the APIC as it does.
    pub fn take_init(&self) -> bool {
        let take = |registers: &mut Registers| {
            let taken = std::mem::take(&mut registers.init);
            if taken {
                registers.reset();
            }
            taken
        };
        self.change(take).0
    }

    /// Takes a start-up IPI: the page at which to start. Whoever does not wait for
    /// one takes it nevertheless, and drops it.
    pub fn take_sipi(&self) -> Option<u8> {
        self.change(|registers| registers.start_up.take()).0
    }

    pub fn cr8(&self) -> u64 {
        u64::from(self.task_priority.load(Ordering::Relaxed) >> 4)
    }

    /// CR8 is the upper half of the task priority. The value is 0 to 15.
    pub fn set_cr8(&self, value: u64) {
        self.change(|registers| registers.task_priority = (value as u8 & 15) << 4);
    }

    /// The APIC base MSR.
    pub fn base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    /// `address_bits`: how wide physical addresses are, as CPUID says.
    pub fn set_base(&self, value: u64, address_bits: u32) -> Result<(), Refused> {
        self.change(|registers| registers.set_base(value, address_bits)).0
    }

    /// Where the register page is now, in xAPIC mode.
    pub fn page(&self) -> Option<u64> {
        use super::registers::{BASE_ENABLE, BASE_X2APIC};
        let base = self.base();
        (base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE).then_some(base & BASE_ADDRESS)
    }

    /// A read of the register page. Only aligned double words are registers.
    pub fn read(&self, offset: u64, data: &mut [u8], now: u64) {
        data.fill(0);
        let start = (offset & 15) as usize;
        if start + data.len() <= 4 {
            let register = offset as u32 & 0xff0;
            let (value, _) = self.change(|registers| registers.read_page(register, now));
            data.copy_from_slice(&value.to_le_bytes()[start..start + data.len()]);
        }
    }

    /// A read of MSR 0x800 to 0x8ff.
    pub fn read_msr(&self, msr: u32, now: u64) -> Result<u64, Refused> {
        let register = register_of(msr).ok_or(Refused)?;
        self.change(|registers| registers.read_msr(register, now)).0
    }

    pub(super) fn write_page(&self, offset: u64, value: u32, now: u64) -> (Effect, bool) {
        self.change(|registers| registers.write_page(offset as u32 & 0xff0, value, now))
    }

    pub(super) fn write_msr(
        &self,
        msr: u32,
        value: u64,
        now: u64,
    ) -> (Result<Effect, Refused>, bool) {
        let Some(register) = register_of(msr) else { return (Err(Refused), false) };
        self.change(|registers| registers.write_msr(register, value, now))
    }

    /// The TSC deadline MSR.
    pub fn tsc_deadline(&self) -> u64 {
        self.lock().timer.tsc
    }

    /// Sets the TSC deadline MSR; `at` is when this vCPU's TSC gets there. To be
    /// called again when the TSC is set.
    pub fn set_tsc_deadline(&self, tsc: u64, at: u64) {
        self.change(|registers| registers.timer.set_tsc_deadline(tsc, at));
    }

    /// When [`LocalApic::expire`] wants to be called: one load.
    pub fn next_deadline(&self) -> Option<u64> {
        let deadline = self.deadline.load(Ordering::Relaxed);
        (deadline != NEVER).then_some(deadline)
    }

    /// Lets the timer fire if it is due. Says whether the vCPU has something new.
    pub fn expire(&self, now: u64) -> bool {
        let expire = |registers: &mut Registers| {
            if registers.timer.expire(now) {
                registers.local(TIMER);
            }
        };
        self.change(expire).1
    }
}

/// The page offset that an MSR stands for.
fn register_of(msr: u32) -> Option<u32> {
    (0x800..0x900).contains(&msr).then(|| (msr - 0x800) << 4)
}
