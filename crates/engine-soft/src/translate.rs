//! The second tier: from x86-64 to x86-64.
//!
//! Guest code is translated region by region ([`scan`]) into host code that differs
//! from it where the guest's memory, privilege and control flow are concerned, and is
//! the same everywhere else ([`block`]). General and vector registers are the host's
//! while it runs, except three general ones ([`frame`]).
//!
//! | file | subject |
//! |---|---|
//! | `scan` | what is translated together; which flags matter |
//! | `select` | which instructions are translated at all |
//! | `block` | one region, instruction by instruction |
//! | `registers`, `flags`, `deferred`, `memory`, `site`, `stack`, `group`, `strings`, `branches`, `system` | how each kind of thing is translated |
//! | `emit` | a small assembler |
//! | `frame`, `runtime` | the way in and out, and calls to helpers |
//! | `backend` | what the translator sees of a vCPU |
//! | `lockstep` | both tiers, compared |
//! | `paths` | where returns and indirect jumps lead |
//! | `cache` | what was translated, its connections, and its end |
//!
//! What it does not translate it hands to its [`Backend`], one instruction at a time.
//! It knows the guest through that trait only, so that it can be tested without one.
//!
//! A translator belongs to one vCPU and one thread. Nobody else touches its code.

pub mod backend;
mod block;
mod branches;
mod cache;
mod calm;
mod deferred;
mod emit;
mod flags;
pub mod frame;
mod group;
mod lockstep;
mod memory;
mod paths;
mod registers;
mod runtime;
mod scan;
mod select;
mod site;
mod stack;
mod strings;
mod system;

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use iced_x86::Mnemonic;

use block::{Compiler, Setting};
use cache::{Cache, PageKey};
use calm::Calm;
use frame::{ARITHMETIC, Leave, pack_flags, unpack_flags};
pub use lockstep::Oracle;
use memory::AccessInfo;
use paths::Paths;
use runtime::{Helpers, Routines};
use scan::{LONGEST, Scanner};
pub use select::VectorLevel;
use site::Sites;

use crate::host::arena::Arena;
use crate::host::traps::{self, Registration, TrapAction, TrapFrame};
use crate::state::CpuState;
use crate::tlb::{Bank, PAGE_SIZE, code_index};
use guise_engine::extensions::Features;

/// Where an instruction's bytes are.
#[derive(Clone, Copy, Debug)]
pub struct CodePage {
    /// What names the page whatever its linear address is.
    pub physical: u64,
    /// The page in this process.
    pub host: *const [u8; PAGE_SIZE as usize],
}

/// What the translator asks of the rest of the engine.
pub trait Backend {
    /// The vCPU's registers; always the same address.
    fn state(&mut self) -> *mut CpuState;
    /// How code is to be translated now; none if the interpreter must run. Regions of
    /// different modes are kept apart.
    fn mode(&mut self) -> Option<Mode>;
    /// Host address of `size` bytes of data, if they can be accessed at once. Fills the
    /// bank. None if the interpreter must execute the instruction.
    fn resolve(&mut self, address: u64, size: u32, write: bool) -> Option<*mut u8>;
    /// Executes the instruction at RIP, or what happens instead. False if the run loop
    /// wants to be asked before the guest goes on.
    fn step(&mut self) -> bool;
    /// As `step`, for an instruction of which this much is known.
    fn step_known(&mut self, _mnemonic: Mnemonic, _length: u64) -> bool {
        self.step()
    }
    /// The page of an address, if it is RAM that may be executed.
    fn code_page(&mut self, address: u64) -> Option<CodePage>;
    /// Notes in the bank what code is in the page of an address, which `code_page` has
    /// just found.
    fn set_code(&mut self, address: u64, id: u32);
    /// From now on writes to these parts of a page (64 bytes a bit) are noticed.
    fn mark_code(&mut self, physical: u64, granules: u64);
    /// Parts of pages that were written since the last call.
    fn take_code_writes(&mut self, writes: &mut Vec<CodeWrite>);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeWrite {
    pub physical: u64,
    pub granules: u64,
}

/// What of the processor's mode matters to translated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub user: bool,
    pub vectors: VectorLevel,
}

impl Mode {
    fn key(self) -> u32 {
        self.user as u32 | (self.vectors as u32) << 1
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of host code before everything is thrown away.
    pub code_size: usize,
    /// The widest vectors that the guest may have.
    pub vectors: VectorLevel,
    /// What the guest's processor can do.
    pub features: Features,
    /// All flags are kept exact at every point, for comparison with the interpreter.
    pub exact: bool,
    /// For [`Translator::run_lockstep`].
    pub lockstep: bool,
}

/// Counters for `--stats`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub entered: u64,
    pub left_for_next: u64,
    pub left_for_link: u64,
    pub interpreted: u64,
    pub interpreted_inline: u64,
    pub accesses: u64,
    pub traps: u64,
}

const PAGE_FAULT: u32 = 14;
/// No guest return address is this: it is not canonical.
const NO_ADDRESS: u64 = 0x8000_dead_beef_0000;

/// What generated code has called Rust code for: the instruction, and the block it is in.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub rip: u64,
    pub block: u64,
}

/// Generated code cannot go on.
#[derive(Clone, Debug)]
pub struct Broken {
    pub rip: u64,
    pub reason: String,
}

pub struct Translator {
    cache: Cache,
    routines: Routines,
    scanner: Scanner,
    options: Options,
    helpers: Helpers,
    bmi2: bool,
    /// The level that the code in the jump cache was made for.
    vectors: VectorLevel,
    paths: Paths,
    sites: Sites,
    /// The code that runs is the user's.
    user: bool,
    writes: Vec<CodeWrite>,
    backend: *mut (),
    pub counts: Counts,
    lockstep: lockstep::Progress,
    /// A helper of generated code is at work: where it returns to, and the instruction, by
    /// its offset in the page.
    calling: Option<(u64, u16)>,
    /// By mnemonic: how often the interpreter had to.
    fallbacks: Vec<u64>,
    /// Bytes of code that `take_counts` has told of.
    reported: usize,
    /// How long there has been little to do.
    pub calm: Calm,
    _traps: Registration,
}

// SAFETY: `backend` is only set while `run` is on the stack.
unsafe impl Send for Translator {}

impl Translator {
    /// For one kind of backend; [`Translator::run`] is given the same.
    pub fn new<B: Backend>(options: Options) -> io::Result<Translator> {
        let mut arena = Arena::new(options.code_size)?;
        let helpers = Helpers {
            access: access::<B> as extern "C" fn(_, _, _, _) -> _ as usize as u64,
            interpret: interpret::<B> as extern "C" fn(_, _, _, _) -> _ as usize as u64,
        };
        let too_small = || io::Error::other("the code cache is too small");
        let routines =
            Routines::generate(&mut arena, options.vectors, helpers).ok_or_else(too_small)?;
        let registration = traps::register(arena.range(), on_trap, routines.trap as usize)?;
        Ok(Translator {
            cache: Cache::new(arena),
            paths: Paths::new(routines.return_bottom)?,
            routines,
            scanner: Scanner::new(options.lockstep),
            options,
            helpers,
            vectors: VectorLevel::None,
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
            sites: Sites::new(),
            user: false,
            writes: Vec::new(),
            backend: std::ptr::null_mut(),
            counts: Counts::default(),
            lockstep: Default::default(),
            calling: None,
            fallbacks: vec![0; Mnemonic::values().len()],
            reported: 0,
            calm: Calm::new(),
            _traps: registration,
        })
    }

    /// Throws all translated code away. Not from within generated code.
    fn flush(&mut self, state: &mut CpuState) {
        self.cache.clear();
        self.start_over(state);
    }

    /// Begins again with an empty cache.
    fn start_over(&mut self, state: &mut CpuState) {
        self.reported = 0;
        let (vectors, helpers) = (self.options.vectors, self.helpers);
        self.routines = Routines::generate(&mut self.cache.arena, vectors, helpers)
            .expect("the routines fitted before");
        self.sites.start(state);
        self.paths.clear(state, self.routines.return_bottom);
    }

    /// How soon, if nothing comes in between, it is time to [`Translator::give_back`]; none
    /// if there is little to give.
    pub fn gives_back_in(&self) -> Option<Duration> {
        let much = self.cache.arena.taken() > calm::KEPT;
        (much && !self.compares()).then(|| self.calm.left())
    }

    /// Throws all translated code away, with the memory that it was in. Not from within
    /// generated code.
    pub fn give_back(&mut self, state: &mut CpuState) {
        self.cache.give_back();
        self.start_over(state);
    }

    /// Kills code whose bytes were written. True if there was any.
    fn drain<B: Backend>(&mut self, backend: &mut B) -> bool {
        backend.take_code_writes(&mut self.writes);
        let mut any = false;
        for write in std::mem::take(&mut self.writes) {
            let (physical, granules) = (write.physical, write.granules);
            any |= self.cache.invalidate(physical, granules, &self.routines, &mut self.paths);
        }
        any
    }

    /// Runs the guest until something wants attention, the backend says so, or the
    /// processor is in a mode that is not translated.
    pub fn run<B: Backend>(&mut self, backend: &mut B) -> Result<(), Broken> {
        let state_address = self.prepare(backend);
        // SAFETY: the backend's state is valid; other threads change `attention` only,
        // which is atomic. References to it made here do not live across calls to the
        // backend or into generated code.
        let state = || unsafe { &mut *state_address };
        let mut link = None;
        let mut plain = false;
        loop {
            if self.drain(backend) {
                link = None;
            }
            if self.cache.exhausted {
                self.flush(state());
                link = None;
            }
            if state().attention.load(std::sync::atomic::Ordering::Acquire) != 0 {
                return Ok(());
            }
            let Some(mode) = backend.mode() else { return Ok(()) };
            self.user = mode.user;
            if mode.vectors != self.vectors {
                self.vectors = mode.vectors;
                self.paths.clear(state(), self.routines.return_bottom);
            }
            self.paths.select(state(), mode.user);
            let quick = if link.is_none() { self.paths.find(state()) } else { None };
            let found = quick.map(|code| (0, code));
            let found = found.or_else(|| self.find(backend, mode, plain && link.is_some()));
            plain = false;
            let Some((page_id, code)) = found else {
                self.counts.interpreted += 1;
                if !backend.step() {
                    return Ok(());
                }
                link = None;
                continue;
            };
            if let Some(link) = link.take() {
                self.cache.connect(link, page_id, state().rip, code);
            }
            let flags = pack_flags(state().rflags);
            self.enter(state_address, code, flags)?;
            match state().generated.leave {
                leave if leave == Leave::Link as u32 => {
                    self.counts.left_for_link += 1;
                    link = Some(state().generated.argument);
                }
                leave if leave == Leave::Plain as u32 => {
                    self.counts.left_for_link += 1;
                    link = Some(state().generated.argument);
                    plain = true;
                }
                leave if leave == Leave::Next as u32 => self.counts.left_for_next += 1,
                _ => {
                    self.counts.interpreted += 1;
                    let argument = state().generated.argument;
                    self.note_fallback(argument as usize & 0xffff);
                    let goes_on = match Mnemonic::try_from(argument as usize & 0xffff) {
                        Ok(mnemonic) => backend.step_known(mnemonic, u64::from(argument >> 16)),
                        Err(_) => backend.step(),
                    };
                    if !goes_on {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Lends the backend to the helpers of generated code.
    fn prepare<B: Backend>(&mut self, backend: &mut B) -> *mut CpuState {
        let address = backend.state();
        self.backend = std::ptr::from_mut(backend).cast();
        // SAFETY: the backend's state is valid; the reference ends here.
        let state = unsafe { &mut *address };
        state.generated.context = std::ptr::from_mut(self) as u64;
        if state.generated.shadow_top == 0 {
            self.paths.install(state);
            self.sites.start(state);
        }
        address
    }

    /// Runs generated code from an entry until it leaves; everything is in the state then.
    fn enter(&mut self, address: *mut CpuState, code: u64, flags: u64) -> Result<(), Broken> {
        // SAFETY: the backend's state is valid, and no reference to it lives into
        // generated code.
        let state = || unsafe { &mut *address };
        state().generated.flags = flags;
        self.counts.entered += 1;
        self.paths.select(state(), self.user);
        if self.user {
            self.sites.check(state());
        }
        // SAFETY: `code` is an entry of generated code for the guest's present mode,
        // and GS is the state's base.
        unsafe {
            let enter: extern "C" fn(u64) = std::mem::transmute(self.routines.enter);
            enter(code);
        }
        self.flags_to_state(state());
        if state().generated.leave == Leave::Trap as u32 {
            self.after_trap(state())?;
        }
        Ok(())
    }

    /// After generated code has asked for an access to this address.
    fn after_access(&mut self, state: &mut CpuState, address: u64) {
        if !self.user {
            return;
        }
        self.sites.check(state);
        let restless = state.generated.restless_site;
        if restless != 0 && !self.sites.settle(state, address, &self.cache) {
            self.cache.retire(restless);
        }
    }

    /// User code cannot go on where it is: what is mapped may be other code.
    fn is_elsewhere(&self, state: &CpuState) -> bool {
        self.user && !self.paths.is_current(state)
    }

    /// The call of generated code that is being answered.
    pub fn call(&self) -> Option<Call> {
        let (back, offset) = self.calling?;
        let place = self.cache.find(back)?;
        Some(Call { rip: place.linear + u64::from(offset), block: place.start })
    }

    fn note_fallback(&mut self, mnemonic: usize) {
        if let Some(count) = self.fallbacks.get_mut(mnemonic) {
            *count += 1;
        }
    }

    /// What was counted since the last call, by name.
    pub fn take_counts(&mut self) -> Vec<(String, u64)> {
        let counts = std::mem::take(&mut self.counts);
        let cache = std::mem::take(&mut self.cache.counts);
        let mut all: Vec<(String, u64)> = [
            ("translated_regions", cache.regions),
            ("translated_instructions", cache.instructions),
            ("code_cache_bytes", (self.cache.arena.used() - self.reported) as u64),
            ("code_cache_flushes", cache.flushes),
            ("regions_invalidated", cache.invalidated),
            ("links_made", cache.links),
            ("links_retargeted", cache.retargeted),
            ("sites_retired", cache.retired),
            ("guesses_given_up", cache.guesses_given_up),
            ("entered_generated_code", counts.entered),
            ("left_for_lookup", counts.left_for_next),
            ("left_for_link", counts.left_for_link),
            ("left_to_interpret", counts.interpreted),
            ("interpreted_in_place", counts.interpreted_inline),
            ("access_misses", counts.accesses),
            ("host_traps", counts.traps),
            ("lockstep_compared", std::mem::take(&mut self.lockstep.compared)),
            ("lockstep_inconclusive", std::mem::take(&mut self.lockstep.inconclusive)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        self.reported = self.cache.arena.used();
        for (mnemonic, count) in Mnemonic::values().zip(&mut self.fallbacks) {
            if *count != 0 {
                let name = format!("interpreted_{mnemonic:?}").to_lowercase();
                all.push((name, std::mem::take(count)));
            }
        }
        all
    }

    fn flags_to_state(&self, state: &mut CpuState) {
        state.rflags = state.rflags & !ARITHMETIC | unpack_flags(state.generated.flags);
    }

    /// The guest's state at the instruction whose code trapped.
    fn after_trap(&mut self, state: &mut CpuState) -> Result<(), Broken> {
        self.counts.traps += 1;
        let trapped = state.generated.trapped;
        let place = self.cache.find(trapped);
        let trap = state.trap;
        // Guest memory is mapped and checked, so there are no page faults in this code.
        if trap.vector != PAGE_FAULT
            && let Some(place) = &place
            && let Some(origin) = place.origin
        {
            state.rip = place.linear + u64::from(origin.offset);
            if origin.native {
                let flags = unpack_flags(state.scratch[7]);
                state.rflags = state.rflags & !ARITHMETIC | flags;
            }
            return Ok(());
        }
        let mut reason = format!(
            "exception {} in generated code at {trapped:#x}, address {:#x}",
            trap.vector, trap.address
        );
        let mut rip = state.rip;
        if let Some(place) = place {
            let mode = if place.mode & 1 == 1 { "user" } else { "supervisor" };
            rip = place.linear + u64::from(place.origin.map_or(0, |origin| origin.offset));
            let _ = write!(
                reason,
                ", {:#x} bytes into the {mode} code of the block at {:#x}",
                place.inside, place.start
            );
        }
        Err(Broken { rip, reason })
    }

    /// The code for RIP, found or made; `plain` is for that without groups.
    fn find<B: Backend>(&mut self, backend: &mut B, mode: Mode, plain: bool) -> Option<(u32, u64)> {
        let state = backend.state();
        // SAFETY: the backend's state and its bank are valid; no reference outlives the
        // statement.
        let (rip, bank): (u64, *mut Bank) = unsafe { ((*state).rip, (*state).bank) };
        let linear = rip & !(PAGE_SIZE - 1);
        let offset = (rip - linear) as u16;
        // SAFETY: as above.
        let known = unsafe { (*bank).code[code_index(rip)] };
        let known = self
            .cache
            .page(known)
            .filter(|page| page.linear == linear && page.mode == mode.key())
            .map(|_| known);
        if let Some(id) = known
            && let Some(code) = self.cache.entry(id, offset, plain)
        {
            self.remember(state, code, plain);
            return Some((id, code));
        }
        let page = backend.code_page(rip)?;
        let key = PageKey { linear, physical: page.physical, mode: mode.key() };
        let id = self.cache.id(key);
        backend.set_code(rip, id);
        if let Some(code) = self.cache.entry(id, offset, plain) {
            self.remember(state, code, plain);
            return Some((id, code));
        }
        let code = self.translate(backend, (mode, plain), key, id, rip, page.host)?;
        self.remember(state, code, plain);
        Some((id, code))
    }

    fn remember(&mut self, state: *mut CpuState, code: u64, plain: bool) {
        if !plain {
            // SAFETY: the backend's state is valid, and no other reference to it lives.
            self.paths.remember(unsafe { &mut *state }, self.user, code);
        }
    }

    fn translate<B: Backend>(
        &mut self,
        backend: &mut B,
        (mode, plain): (Mode, bool),
        key: PageKey,
        id: u32,
        rip: u64,
        host: *const [u8; PAGE_SIZE as usize],
    ) -> Option<u64> {
        let read = |page: *const [u8; PAGE_SIZE as usize]| {
            let mut bytes = [0; PAGE_SIZE as usize];
            for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
                // SAFETY: the backend's pages are RAM of the guest, mapped as long as the
                // VM. Other threads may write them: what is read is compared again below.
                let value = unsafe { page.cast::<u64>().add(at).read_volatile() };
                word.copy_from_slice(&value.to_le_bytes());
            }
            bytes
        };
        let next_linear = key.linear.wrapping_add(PAGE_SIZE);
        // Asked for when an instruction is found to need it.
        let mut next = None;
        let front = |page: CodePage| {
            let mut bytes = [0; LONGEST];
            bytes.copy_from_slice(&read(page.host)[..LONGEST]);
            bytes
        };
        loop {
            let bytes = read(host);
            let tail = next.map(front);
            let region = self.scanner.scan(
                rip,
                &bytes,
                tail.as_ref(),
                (self.options.exact, plain),
                |offset| self.cache.entry(id, offset, false).is_some(),
            );
            if next.is_none() && region.steps.iter().any(|step| step.cut) {
                next = backend.code_page(next_linear);
                if next.is_some() {
                    continue;
                }
            }
            let mut sources = vec![(key.physical, region.granules)];
            let mut next_id = 0;
            if region.crosses
                && let Some(page) = next
            {
                let next_key = PageKey { linear: next_linear, physical: page.physical, ..key };
                sources.push((next_key.physical, 1));
                next_id = self.cache.id(next_key);
                backend.set_code(next_linear, next_id);
            }
            for &(physical, granules) in &sources {
                backend.mark_code(physical, granules);
            }
            let now = read(host);
            let same = (0..64).all(|granule| {
                region.granules >> granule & 1 == 0
                    || now[granule * 64..][..64] == bytes[granule * 64..][..64]
            });
            if !same || region.crosses && next.map(front) != tail {
                continue;
            }
            let features = self.options.features;
            let (vectors, bmi2, supervisor) = (mode.vectors, self.bmi2, !mode.user);
            let counted = self.options.lockstep;
            let setting = Setting { vectors, bmi2, supervisor, features, counted, plain };
            let compiler = Compiler::new(
                &region,
                &bytes,
                &self.routines,
                setting,
                (id, next_id),
                self.cache.next_link(),
                (self.cache.arena.next(), self.cache.arena.data()),
            );
            let compiled = compiler.compile();
            let size = (region.steps.len(), plain);
            let code = self.cache.add(key, id, &sources, size, compiled);
            if code.is_none() {
                self.cache.exhausted = true;
            }
            return code;
        }
    }
}

/// A check failed in generated code.
extern "C" fn access<B: Backend>(context: u64, address: u64, info: u64, back: u64) -> u64 {
    // SAFETY: `context` is the translator whose `run` is on the stack, with this
    // backend; generated code runs in its middle, where it holds no references.
    let translator = unsafe { &mut *(context as *mut Translator) };
    // SAFETY: as above.
    let backend = unsafe { &mut *translator.backend.cast::<B>() };
    translator.counts.accesses += 1;
    let info = AccessInfo::unpack(info as u32);
    let state_address = backend.state();
    // SAFETY: as above; the bank is the vCPU's current one.
    let changes = || unsafe { (*(*state_address).bank).changes };
    let before = changes();
    translator.calling = Some((back, info.offset));
    let pointer = backend.resolve(address, info.size, info.write);
    translator.calling = None;
    let written = translator.drain(backend);
    // What a group's check has found is used after this.
    let moved = changes() != before;
    // SAFETY: as above.
    let state = unsafe { &mut *state_address };
    let changed = written || moved || translator.is_elsewhere(state);
    translator.after_access(state, address);
    match pointer {
        Some(pointer) if !changed => pointer as u64,
        _ => {
            let place = translator.cache.find(back);
            // SAFETY: as above.
            let state = unsafe { &mut *backend.state() };
            state.rip = place.map_or(0, |place| place.linear) + u64::from(info.offset);
            state.generated.leave = Leave::Interpret as u32;
            // Counted as an access that missed, not by its name.
            state.generated.argument = u32::MAX;
            0
        }
    }
}

/// An instruction is for the interpreter; generated code waits to go on behind it.
extern "C" fn interpret<B: Backend>(context: u64, rip: u64, info: u64, back: u64) -> u64 {
    // SAFETY: as in `access`.
    let translator = unsafe { &mut *(context as *mut Translator) };
    // SAFETY: as in `access`.
    let backend = unsafe { &mut *translator.backend.cast::<B>() };
    let state_address = backend.state();
    // SAFETY: as in `access`; not used across `step`.
    let state = || unsafe { &mut *state_address };
    if translator.options.lockstep {
        state().rip = rip;
        state().generated.leave = Leave::Interpret as u32;
        state().generated.argument = (info >> 48) as u32;
        return 0;
    }
    translator.counts.interpreted_inline += 1;
    state().rip = rip;
    translator.flags_to_state(state());
    translator.note_fallback((info >> 48) as usize);
    let mode = backend.mode();
    translator.calling = Some((back, (rip % PAGE_SIZE) as u16));
    let goes_on = backend.step();
    translator.calling = None;
    let changed = translator.drain(backend);
    state().generated.flags = pack_flags(state().rflags);
    state().generated.leave = Leave::Next as u32;
    let id = (info >> 8) as u32; // the mnemonic is far above
    // SAFETY: the state's bank is valid.
    let still_there = unsafe { (*state().bank).code[code_index(rip)] } == id;
    let straight = state().rip == rip + (info & 0xff);
    let quiet = state().attention.load(std::sync::atomic::Ordering::Acquire) == 0;
    let same_mode = mode.is_some() && backend.mode() == mode;
    if translator.user && same_mode {
        translator.sites.check(state());
    }
    let stays = same_mode && !translator.is_elsewhere(state());
    (goes_on && !changed && still_there && straight && quiet && stays) as u64
}

/// Generated code trapped: it goes on at the routine that leaves. Where it has called too
/// deep it only loses what it knew of its callers.
fn on_trap(frame: &mut TrapFrame<'_>, landing: usize) -> TrapAction {
    let (guard, top): (u64, u64);
    // SAFETY: GS is the base of this thread's state while generated code runs.
    unsafe {
        std::arch::asm!(
            "mov {guard}, gs:[{guard_place}]",
            "mov {top}, gs:[{top_place}]",
            guard = out(reg) guard,
            top = out(reg) top,
            guard_place = const std::mem::offset_of!(CpuState, generated.shadow_guard),
            top_place = const std::mem::offset_of!(CpuState, generated.shadow_top),
            options(nostack, preserves_flags, readonly),
        );
    }
    if frame.vector() == PAGE_FAULT && frame.fault_address().wrapping_sub(guard) < PAGE_SIZE {
        frame.set_gpr(usize::from(emit::RSP), top);
        return TrapAction::Resume;
    }
    // SAFETY: GS is the base of this thread's state while generated code runs.
    unsafe {
        let trap = std::mem::offset_of!(CpuState, trap);
        std::arch::asm!(
            "mov dword ptr gs:[{place}], {vector:e}",
            "mov qword ptr gs:[{place} + 8], {address}",
            place = in(reg) trap,
            vector = in(reg) frame.vector(),
            address = in(reg) frame.fault_address(),
            options(nostack, preserves_flags),
        );
    }
    frame.set_gpr(usize::from(frame::S1), frame.rip());
    frame.set_rip(landing as u64);
    TrapAction::Resume
}

#[cfg(test)]
mod tests;
