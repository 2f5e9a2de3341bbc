//! Where returns and indirect jumps lead: shadow stacks and jump caches.
//!
//! **Shadow stack.** While generated code runs, the host's stack holds return addresses of
//! generated code, so that the processor predicts returns. Beside it, [`BESIDE`] bytes
//! further, are the guest's return addresses that they stand for; a return compares. Below
//! those is a page that cannot be accessed: who calls too deep traps there, and starts
//! again at the top.
//!
//! The supervisor and the user have a stack each. The user's is true for one bank and its
//! epoch, and is emptied when user code is about to run under another. So a return in user
//! code need not look whether the page that it comes back to is still there. The
//! supervisor's code can change banks, and looks.
//!
//! **Jump caches.** The same goes for where indirect jumps lead: user code has a few caches,
//! one for each of the banks and epochs that it ran under last. The supervisor has one, with
//! the epoch in each entry.

use std::io;

use super::NO_ADDRESS;
use super::frame::{JUMPS, Jump, jump_index};
use crate::state::CpuState;
use crate::tlb::PAGE_SIZE;

/// Bytes of return addresses.
const DEPTH: usize = 128 << 10;
/// Room for what helpers push at the lower end.
const ROOM: usize = PAGE_SIZE as usize;
/// From a host return address to the guest's.
pub const BESIDE: i32 = (DEPTH + ROOM) as i32;
const GUARD: usize = PAGE_SIZE as usize;
const TOTAL: usize = ROOM + DEPTH + GUARD + DEPTH;

/// Banks and epochs that user code's jumps are known for at once.
const USER_CACHES: usize = 4;

/// `ROOM`, host addresses, a page without access, guest addresses.
struct Shadow {
    memory: *mut u8,
    /// Where the stack pointer is while the other stack is used.
    place: u64,
}

impl Shadow {
    fn new() -> io::Result<Shadow> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a mapping at an address of the kernel's choice disturbs nothing.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), TOTAL, protection, kind, -1, 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let shadow = Shadow { memory: memory.cast(), place: 0 };
        // SAFETY: the page is in the middle of what was mapped just now.
        let done = unsafe { libc::mprotect(shadow.guard() as *mut _, GUARD, libc::PROT_NONE) };
        if done == 0 { Ok(shadow) } else { Err(io::Error::last_os_error()) }
    }

    fn guard(&self) -> u64 {
        self.memory as u64 + (ROOM + DEPTH) as u64
    }

    /// The place of the last entry, which never goes away.
    fn top(&self) -> u64 {
        self.guard() - 8
    }

    fn reset(&mut self, bottom: u64) {
        self.place = self.top();
        // SAFETY: both places are in the mapping, and generated code does not run.
        unsafe {
            (self.place as *mut u64).write(bottom);
            ((self.place + BESIDE as u64) as *mut u64).write(NO_ADDRESS);
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this size, and goes with this.
        unsafe { libc::munmap(self.memory.cast(), TOTAL) };
    }
}

/// What the user's stack, or a jump cache, is true for.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct View {
    bank: u64,
    epoch: u64,
}

impl View {
    fn of(state: &CpuState) -> View {
        // SAFETY: the bank is the vCPU's current one.
        View { bank: state.bank as u64, epoch: unsafe { (*state.bank).epoch } }
    }
}

struct UserCache {
    view: View,
    last_use: u64,
    jumps: Box<[Jump; JUMPS]>,
}

pub struct Paths {
    /// The supervisor's and the user's.
    shadows: [Shadow; 2],
    supervisor: Box<[Jump; JUMPS]>,
    users: Vec<UserCache>,
    /// The cache in use while user code runs, and its view.
    current: usize,
    view: View,
    uses: u64,
    user: bool,
    /// Where a return without a call goes.
    bottom: u64,
}

impl Paths {
    pub fn new(bottom: u64) -> io::Result<Paths> {
        let empty = || Box::new(std::array::from_fn(Jump::empty));
        let cache = || UserCache { view: View::default(), last_use: 0, jumps: empty() };
        let mut paths = Paths {
            shadows: [Shadow::new()?, Shadow::new()?],
            supervisor: empty(),
            users: (0..USER_CACHES).map(|_| cache()).collect(),
            current: 0,
            view: View::default(),
            uses: 0,
            user: false,
            bottom,
        };
        paths.shadows.iter_mut().for_each(|shadow| shadow.reset(bottom));
        Ok(paths)
    }

    /// Forgets everything: code is elsewhere now.
    pub fn clear(&mut self, state: &mut CpuState, bottom: u64) {
        self.bottom = bottom;
        *self.supervisor = std::array::from_fn(Jump::empty);
        for cache in &mut self.users {
            cache.view = View::default();
        }
        self.view = View::default();
        self.shadows.iter_mut().for_each(|shadow| shadow.reset(bottom));
        self.install(state);
    }

    /// Lets generated code have what it needs.
    pub fn install(&mut self, state: &mut CpuState) {
        let shadow = &self.shadows[usize::from(self.user)];
        let frame = &mut state.generated;
        frame.shadow = shadow.place;
        frame.shadow_top = shadow.top();
        frame.shadow_guard = shadow.guard();
        let user = &self.users[self.current].jumps;
        frame.jumps = if self.user { user.as_ptr() } else { self.supervisor.as_ptr() } as u64;
    }

    /// Before code of the user or the supervisor runs in the current bank.
    pub fn select(&mut self, state: &mut CpuState, user: bool) {
        if self.user == user && (!user || self.is_current(state)) {
            return;
        }
        self.shadows[usize::from(self.user)].place = state.generated.shadow;
        self.user = user;
        if user && !self.is_current(state) {
            self.change_view(View::of(state));
        }
        self.install(state);
    }

    /// Whether what is known of user code holds in the current bank.
    pub fn is_current(&self, state: &CpuState) -> bool {
        self.view == View::of(state)
    }

    fn change_view(&mut self, view: View) {
        self.view = view;
        self.shadows[1].reset(self.bottom);
        self.uses += 1;
        let known = self.users.iter().position(|cache| cache.view == view);
        let oldest = || (0..USER_CACHES).min_by_key(|&place| self.users[place].last_use);
        self.current = known.or_else(oldest).unwrap_or(0);
        let cache = &mut self.users[self.current];
        if known.is_none() {
            *cache.jumps = std::array::from_fn(Jump::empty);
            cache.view = view;
        }
        cache.last_use = self.uses;
    }

    fn jumps(&mut self) -> &mut [Jump; JUMPS] {
        match self.user {
            true => &mut self.users[self.current].jumps,
            false => &mut self.supervisor,
        }
    }

    /// The code for RIP, if it is known here.
    pub fn find(&mut self, state: &CpuState) -> Option<u64> {
        let epoch = View::of(state).epoch;
        let jump = self.jumps()[jump_index(state.rip)];
        (jump.rip == state.rip && jump.epoch == epoch).then_some(jump.code)
    }

    /// The code for RIP in the mode that it is for.
    pub fn remember(&mut self, state: &mut CpuState, user: bool, code: u64) {
        self.select(state, user);
        let (rip, epoch) = (state.rip, View::of(state).epoch);
        self.jumps()[jump_index(rip)] = Jump { rip, epoch, code };
    }

    /// Code that is dead, for an address of the guest.
    pub fn forget(&mut self, rip: u64, code: u64) {
        let users = self.users.iter_mut().map(|cache| &mut cache.jumps);
        for jumps in users.chain([&mut self.supervisor]) {
            let place = jump_index(rip);
            if jumps[place].code == code {
                jumps[place] = Jump::empty(place);
            }
        }
    }
}
