//! The APIC timer: one-shot, periodic, and TSC deadline.
//!
//! It counts at 1 GHz before the divider, so that a tick without division is a
//! nanosecond.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    /// From the timer's local vector.
    pub fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            _ => Self::TscDeadline,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timer {
    pub mode: Mode,
    pub initial: u32,
    /// The divide configuration register.
    pub divide: u32,
    /// When the count reaches zero, or the TSC its deadline.
    pub deadline: Option<u64>,
    /// The TSC value behind the deadline.
    pub tsc: u64,
}

impl Timer {
    /// Nanoseconds for a count of one.
    pub fn tick(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        // 0 divides by 2, …, 6 by 128, 7 by 1.
        1 << ((code + 1) & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.tick()
    }

    /// The count at this moment.
    pub fn current(&self, now: u64) -> u32 {
        let Some(deadline) = self.deadline else { return 0 };
        let left = match self.mode {
            Mode::TscDeadline => return 0,
            Mode::Periodic if now >= deadline => {
                let period = self.period().max(1);
                period - (now - deadline) % period
            }
            _ => deadline.saturating_sub(now),
        };
        left.div_ceil(self.tick()).min(u64::from(self.initial)) as u32
    }

    pub fn set_initial(&mut self, count: u32, now: u64) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = count;
        self.deadline = (count != 0).then(|| now.saturating_add(self.period()));
    }

    pub fn set_divide(&mut self, divide: u32, now: u64) {
        let left = u64::from(self.current(now));
        self.divide = divide & 0xb;
        if self.mode != Mode::TscDeadline && self.deadline.is_some() {
            self.deadline = Some(now.saturating_add(left * self.tick()));
        }
    }

    /// Applies the mode of a local vector. A count goes on when periodic becomes
    /// one-shot or the reverse; to and from TSC deadline the timer stops.
    pub fn set_mode(&mut self, lvt: u32, now: u64) {
        let mode = Mode::of(lvt);
        if mode == self.mode {
            return;
        }
        if mode == Mode::TscDeadline || self.mode == Mode::TscDeadline {
            self.deadline = None;
            self.initial = 0;
            self.tsc = 0;
        } else if self.mode == Mode::Periodic && self.deadline.is_some() {
            // A turn that ended unnoticed is not the one that counts.
            let left = u64::from(self.current(now)) * self.tick();
            self.deadline = Some(now.saturating_add(left));
        }
        self.mode = mode;
    }

    /// The deadline MSR: ignored in the other modes. Zero disarms.
    pub fn set_tsc_deadline(&mut self, tsc: u64, at: u64) {
        if self.mode == Mode::TscDeadline {
            self.tsc = tsc;
            self.deadline = (tsc != 0).then_some(at);
        }
    }

    /// Whether the timer fired. Turns of a periodic timer that were missed are one.
    pub fn expire(&mut self, now: u64) -> bool {
        let Some(deadline) = self.deadline else { return false };
        if deadline > now {
            return false;
        }
        self.deadline = None;
        self.tsc = 0;
        if self.mode == Mode::Periodic {
            let period = self.period().max(1);
            let turns = (now - deadline) / period + 1;
            self.deadline = Some(deadline.saturating_add(turns.saturating_mul(period)));
        }
        true
    }
}

#[cfg(test)]
mod tests;
