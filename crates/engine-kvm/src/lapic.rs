//! The local APIC's page and its timer, to and from the neutral state.
//!
//! KVM starts the timer anew whenever it is given a page. It takes a current count of 0
//! for a timer that ends now, and fires: for a one-shot timer that has ended, once too
//! often. Such a timer is given to KVM with an initial count of 0, which means stopped. The
//! count that the guest had written is kept here for the next engine; only a guest that
//! reads this register after a move, and before it writes it, can tell.

use guise_engine::EngineError;
use kvm_bindings::kvm_lapic_state;

const SIZE: usize = 1024;
const REQUEST: usize = 0x200;
const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

pub const CANNOT_READ: &str = "cannot read the local APIC";

/// Nanoseconds for a count of one before the divider.
const BUS_CYCLE: u64 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

/// A page as the neutral state has it.
struct Page(Vec<u8>);

impl Page {
    fn of(kvm: &kvm_lapic_state) -> Self {
        Page(kvm.regs.iter().map(|&byte| byte as u8).collect())
    }

    fn timer_vector(&self) -> u8 {
        self.get(LVT_TIMER) as u8
    }

    /// Whether an interrupt waits for the vCPU.
    fn requested(&self, vector: u8) -> bool {
        self.get(REQUEST + 16 * usize::from(vector / 32)) >> (vector % 32) & 1 == 1
    }

    fn get(&self, at: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|i| self.0[at + i]))
    }

    fn put(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn mode(&self) -> Mode {
        match self.get(LVT_TIMER) >> 17 & 3 {
            0 => Mode::OneShot,
            1 => Mode::Periodic,
            _ => Mode::TscDeadline,
        }
    }

    /// Nanoseconds for a count of one.
    fn tick(&self) -> u64 {
        let code = self.get(DIVIDE) & 3 | self.get(DIVIDE) >> 1 & 4;
        // 0 divides by 2, …, 6 by 128, 7 by 1.
        BUS_CYCLE << ((code + 1) & 7)
    }
}

/// What KVM does not tell of a one-shot timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OneShot {
    /// The initial count, if the timer had ended when KVM got it.
    ended: Option<u32>,
    /// Whether it counted when the vCPU stopped.
    counted: bool,
}

impl OneShot {
    /// The vCPU stopped with this page.
    pub fn stopped(&mut self, page: &kvm_lapic_state) {
        let page = Page::of(page);
        self.counted = page.mode() == Mode::OneShot && page.get(CURRENT_COUNT) != 0;
    }
}

/// Whether a one-shot timer has ended.
pub fn is_over(page: &kvm_lapic_state) -> bool {
    let page = Page::of(page);
    page.mode() == Mode::OneShot && page.get(INITIAL_COUNT) != 0 && page.get(CURRENT_COUNT) == 0
}

/// The neutral page, and nanoseconds until the timer fires.
pub fn neutral(kvm: &kvm_lapic_state, timer: OneShot) -> (Vec<u8>, Option<u64>) {
    let mut page = Page::of(kvm);
    let counts = page.mode() != Mode::TscDeadline && page.get(CURRENT_COUNT) != 0;
    let left = counts.then(|| u64::from(page.get(CURRENT_COUNT)) * page.tick());
    let ended_since = timer.counted && is_over(kvm) && !page.requested(page.timer_vector());
    if let Some(initial) = timer.ended
        && page.mode() == Mode::OneShot
        && page.get(INITIAL_COUNT) == 0
    {
        page.put(INITIAL_COUNT, initial);
    }
    (page.0, if ended_since { Some(0) } else { left })
}

/// The page as KVM is to get it.
pub fn for_kvm(
    page: &[u8],
    timer_ns: Option<u64>,
) -> Result<(kvm_lapic_state, OneShot), EngineError> {
    if page.len() != SIZE {
        let length = page.len();
        return Err(EngineError::State(format!(
            "a local APIC has {SIZE} bytes of registers, not {length}"
        )));
    }
    let mut page = Page(page.to_vec());
    let mut timer = OneShot::default();
    match timer_ns {
        Some(left) => {
            let count = left.div_ceil(page.tick()).min(u64::from(page.get(INITIAL_COUNT)));
            page.put(CURRENT_COUNT, count as u32);
            timer.counted = page.mode() == Mode::OneShot;
        }
        None if page.mode() == Mode::OneShot => {
            let initial = page.get(INITIAL_COUNT);
            timer.ended = (initial != 0).then_some(initial);
            page.put(INITIAL_COUNT, 0);
        }
        None => {}
    }
    let mut state = kvm_lapic_state { regs: [0; SIZE] };
    for (to, from) in state.regs.iter_mut().zip(page.0) {
        *to = from as _;
    }
    Ok((state, timer))
}

#[cfg(test)]
mod tests;
