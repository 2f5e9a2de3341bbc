//! Host traps in generated code.
//!
//! Generated code runs guest instructions on the host's processor, so it divides by
//! zero, misaligns a vector and divides denormals as the guest pleases. The host's
//! kernel reports such a trap as a signal. The handlers here look up the trapping
//! address among registered ranges of code and let the owner of the range decide
//! where the thread goes on; a trap anywhere else goes to whoever handled the signal
//! before, so that a bug of ours still looks like one.
//!
//! - The table of ranges is read by signal handlers, hence an array of atomics.
//! - Handlers run on an alternative stack of their own, a thread each, because the
//!   stack pointer may be the guest's. The stack is armed with `SS_AUTODISARM`:
//!   without it the kernel judges by the value of the stack pointer whether it is
//!   on the alternative stack already, and that value may be chosen by a guest.

use std::cell::{Cell, OnceCell};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

/// What becomes of a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapAction {
    /// The thread goes on as the frame now says.
    Resume,
    /// The trap does not belong to this range after all.
    Refuse,
}

/// Decides about a trap in a registered range. It runs in a signal handler: it may
/// change the frame and memory that the trapping thread owns, and call nothing that
/// takes a lock or memory. The second argument is the one given to [`register`].
pub type Handler = fn(&mut TrapFrame<'_>, usize) -> TrapAction;

/// The trapped thread's registers, which a handler may change.
pub struct TrapFrame<'a> {
    context: &'a mut ucontext_t,
}

/// Where each general register, in the order of its encoding, is in a signal frame.
const GPR_PLACES: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

impl TrapFrame<'_> {
    fn get(&self, place: c_int) -> u64 {
        self.context.uc_mcontext.gregs[place as usize] as u64
    }

    fn set(&mut self, place: c_int, value: u64) {
        self.context.uc_mcontext.gregs[place as usize] = value as i64;
    }

    pub fn rip(&self) -> u64 {
        self.get(libc::REG_RIP)
    }

    pub fn set_rip(&mut self, rip: u64) {
        self.set(libc::REG_RIP, rip);
    }

    /// A general register by the number of its encoding (0 is RAX, 4 is RSP).
    pub fn gpr(&self, number: usize) -> u64 {
        self.get(GPR_PLACES[number])
    }

    pub fn set_gpr(&mut self, number: usize, value: u64) {
        self.set(GPR_PLACES[number], value);
    }

    pub fn rflags(&self) -> u64 {
        self.get(libc::REG_EFL)
    }

    pub fn set_rflags(&mut self, rflags: u64) {
        self.set(libc::REG_EFL, rflags);
    }

    /// The exception's vector.
    pub fn vector(&self) -> u32 {
        self.get(libc::REG_TRAPNO) as u32
    }

    pub fn error_code(&self) -> u32 {
        self.get(libc::REG_ERR) as u32
    }

    /// The address that a page fault (vector 14) is about.
    pub fn fault_address(&self) -> u64 {
        self.get(libc::REG_CR2)
    }

    /// The thread's MXCSR, with the flags that a SIMD exception has set.
    pub fn mxcsr(&self) -> u32 {
        // SAFETY: on x86-64 the kernel always gives the floating-point state, which
        // lies in the same frame and lives as long as the context.
        unsafe { self.context.uc_mcontext.fpregs.as_ref() }.map_or(0x1f80, |fp| fp.mxcsr)
    }

    pub fn set_mxcsr(&mut self, mxcsr: u32) {
        // SAFETY: as in `mxcsr`; the exclusive borrow of the context covers it.
        if let Some(fp) = unsafe { self.context.uc_mcontext.fpregs.as_mut() } {
            fp.mxcsr = mxcsr;
        }
    }
}

/// How many ranges of generated code there may be in the process at once.
const PLACES: usize = 512;
/// A place that somebody is filling. No code is at this address.
const CLAIMED: usize = 1;

/// One registered range. It is free while `start` is 0.
struct Place {
    start: AtomicUsize,
    end: AtomicUsize,
    handler: AtomicUsize,
    argument: AtomicUsize,
}

static REGISTRY: [Place; PLACES] = [const {
    Place {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        handler: AtomicUsize::new(0),
        argument: AtomicUsize::new(0),
    }
}; PLACES];

/// Places that were ever used are before this one, so that a trap looks no further.
static USED: AtomicUsize = AtomicUsize::new(0);

/// A range stays registered as long as this value lives.
#[derive(Debug)]
pub struct Registration {
    place: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        REGISTRY[self.place].start.store(0, Ordering::Release);
    }
}

/// Has traps in a range of addresses decided by `handler`, in every thread that
/// called [`prepare_thread`]. Ranges do not overlap.
pub fn register(
    range: Range<usize>,
    handler: Handler,
    argument: usize,
) -> io::Result<Registration> {
    install()?;
    for (place, slot) in REGISTRY.iter().enumerate() {
        let claim = slot.start.compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed);
        if claim.is_err() {
            continue;
        }
        slot.end.store(range.end, Ordering::Relaxed);
        slot.handler.store(handler as usize, Ordering::Relaxed);
        slot.argument.store(argument, Ordering::Relaxed);
        slot.start.store(range.start, Ordering::Release);
        USED.fetch_max(place + 1, Ordering::AcqRel);
        return Ok(Registration { place });
    }
    Err(io::Error::other(format!("more than {PLACES} ranges of generated code")))
}

/// Who decides about an address. Signal-safe.
fn find(address: usize) -> Option<(Handler, usize)> {
    for slot in &REGISTRY[..USED.load(Ordering::Acquire)] {
        let start = slot.start.load(Ordering::Acquire);
        if start <= CLAIMED || address < start || address >= slot.end.load(Ordering::Acquire) {
            continue;
        }
        let handler = slot.handler.load(Ordering::Acquire);
        let argument = slot.argument.load(Ordering::Acquire);
        // The place may have changed hands between these loads.
        if slot.start.load(Ordering::Acquire) != start {
            continue;
        }
        // SAFETY: `register` stored a value of this type before `start`.
        let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
        return Some((handler, argument));
    }
    None
}

const SIGNALS: [c_int; 5] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];

/// Who handled each of [`SIGNALS`] before.
static PREVIOUS: OnceLock<[sigaction; SIGNALS.len()]> = OnceLock::new();

fn install() -> io::Result<()> {
    static RESULT: OnceLock<Result<(), i32>> = OnceLock::new();
    let result = RESULT.get_or_init(|| {
        let mut previous: [MaybeUninit<sigaction>; SIGNALS.len()] =
            [const { MaybeUninit::uninit() }; SIGNALS.len()];
        for (signal, old) in SIGNALS.into_iter().zip(&mut previous) {
            // SAFETY: asks only; `old` has room for the answer.
            if unsafe { libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr()) } != 0 {
                return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL));
            }
        }
        // SAFETY: the calls above have filled every element.
        PREVIOUS.get_or_init(|| previous.map(|old| unsafe { old.assume_init() }));
        for signal in SIGNALS {
            // SAFETY: an all-zero sigaction is a valid one.
            let mut action: sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: `on_signal` has the type of such a handler, calls only what is
            // safe in one, and hands on what is not its own.
            if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
                return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL));
            }
        }
        Ok(())
    });
    result.map_err(io::Error::from_raw_os_error)
}

extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a siginfo and the ucontext of this very signal.
    let (code, frame) = unsafe { ((*info).si_code, &mut *context.cast::<ucontext_t>()) };
    let mut frame = TrapFrame { context: frame };
    // A signal that a process sent is not a trap, wherever the thread happens to be.
    if code > 0
        && let Some((handler, argument)) = find(frame.rip() as usize)
        && handler(&mut frame, argument) == TrapAction::Resume
    {
        return;
    }
    if code > 0 {
        report(signal, &frame);
    }
    pass_on(signal, info, context);
}

/// Adds to a line where a guest is. It runs in a signal handler: it may read what the
/// pointer given to [`guest_of_thread`] leads to, and call nothing that takes a lock or memory.
pub type Describe = fn(*const (), &mut Line);

thread_local! {
    static GUEST: Cell<Option<(Describe, *const ())>> = const { Cell::new(None) };
}

/// The calling thread runs a guest as long as this value lives.
pub struct GuestOfThread(());

/// Has reports of signals in this thread say where its guest is. What `describe` reads must
/// live as long as the result.
pub fn guest_of_thread(describe: Describe, guest: *const ()) -> GuestOfThread {
    GUEST.set(Some((describe, guest)));
    GuestOfThread(())
}

impl Drop for GuestOfThread {
    fn drop(&mut self) {
        GUEST.set(None);
    }
}

/// Writes a line without a lock or memory.
fn report(signal: c_int, frame: &TrapFrame<'_>) {
    let mut line = Line { bytes: [0; 256], length: 0 };
    line.text("guise: signal ");
    line.hex(signal as u64);
    line.text(" (trap ");
    line.hex(frame.vector() as u64);
    line.text(") outside of guest code at ");
    line.hex(frame.rip());
    line.text(", address ");
    line.hex(frame.fault_address());
    if let Some((describe, guest)) = GUEST.get() {
        describe(guest, &mut line);
    }
    line.text("\n");
    // SAFETY: `write` is signal-safe, and the bytes are ours.
    unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length) };
}

/// A line of text without memory of its own.
pub struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Line {
    pub fn text(&mut self, text: &str) {
        for &byte in text.as_bytes() {
            if self.length < self.bytes.len() {
                self.bytes[self.length] = byte;
                self.length += 1;
            }
        }
    }

    pub fn hex(&mut self, value: u64) {
        self.text("0x");
        let digits = (64 - value.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            let nibble = (value >> (digit * 4) & 15) as usize;
            self.text(&"0123456789abcdef"[nibble..nibble + 1]);
        }
    }
}

/// Does what would have happened without this module.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS
        .get()
        .and_then(|all| SIGNALS.iter().position(|&other| other == signal).map(|index| &all[index]));
    match previous {
        Some(old) if old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN => {
            if old.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: the flag says that the handler has this type.
                let handler = unsafe {
                    std::mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(
                        old.sa_sigaction,
                    )
                };
                handler(signal, info, context);
            } else {
                // SAFETY: without the flag the handler has this type.
                let handler =
                    unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(old.sa_sigaction) };
                handler(signal);
            }
        }
        _ => {
            // The instruction runs again, traps again, and this time the process ends
            // with the signal that tells why.
            // SAFETY: an all-zero sigaction is the default action.
            unsafe {
                let action: sigaction = std::mem::zeroed();
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    }
}

/// Room for a frame with all vector registers, several times over.
const STACK_SIZE: usize = 128 * 1024;
const GUARD_SIZE: usize = 4096;
/// `SS_AUTODISARM` of the kernel's interface.
const SS_AUTODISARM: c_int = 1 << 31;

/// A thread's stack for signal handlers, gone with the thread.
struct SignalStack {
    mapping: *mut c_void,
}

impl SignalStack {
    fn new() -> io::Result<SignalStack> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                STACK_SIZE + GUARD_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = SignalStack { mapping };
        // SAFETY: the first page of the mapping just made.
        if unsafe { libc::mprotect(mapping, GUARD_SIZE, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let description = libc::stack_t {
            ss_sp: mapping.wrapping_byte_add(GUARD_SIZE),
            ss_flags: SS_AUTODISARM,
            ss_size: STACK_SIZE,
        };
        // SAFETY: the memory stays mapped until `drop`, which disables it first.
        if unsafe { libc::sigaltstack(&description, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        let none =
            libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: the thread leaves this stack before it goes; the mapping is ours.
        unsafe {
            libc::sigaltstack(&none, std::ptr::null_mut());
            libc::munmap(self.mapping, STACK_SIZE + GUARD_SIZE);
        }
    }
}

/// Gives the calling thread what it needs to run generated code that traps. It costs
/// little when it was done before.
pub fn prepare_thread() -> io::Result<()> {
    thread_local! {
        static STACK: OnceCell<SignalStack> = const { OnceCell::new() };
    }
    install()?;
    STACK.with(|cell| {
        if cell.get().is_none() {
            let stack = SignalStack::new()?;
            // It was empty just now, and only this thread sees it.
            let _ = cell.set(stack);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests;
