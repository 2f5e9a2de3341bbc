//! How other threads get a vCPU out of `KVM_RUN`.
//!
//! A kick notes its reason and sends the vCPU's thread a signal. The handler sets
//! `immediate_exit` in the thread's own `kvm_run`, so that a signal which lands
//! between the look at the reasons and the system call is not lost: the call then
//! returns at once. The reasons survive until the thread takes them.
//!
//! A vCPU that stops goes into `KVM_RUN` once more, with a signal pending
//! ([`SignalPending`]). The kernel then executes nothing of the guest, but it does finish
//! what it had begun: the rest of an instruction whose access was answered, an
//! acknowledgement for the I/O APIC, the interrupt of a timer that has ended, and one of the
//! 8259 that was handed over, which are in no register before. `immediate_exit` would come back
//! too early for the last three.

use std::cell::Cell;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Once};

use guise_engine::VcpuHandle;

/// [`guise_engine::Exit::Interrupted`] was asked for.
pub const STOP: u32 = 1;
/// The 8259's line went up.
pub const EXTERNAL_INTERRUPT: u32 = 2;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(std::ptr::null()) };
}

/// A vCPU as other threads see it.
#[derive(Default)]
pub struct Kick {
    /// The thread that is in or about to enter `KVM_RUN`, or 0.
    thread: AtomicI32,
    reasons: AtomicU32,
}

fn signal_number() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn on_signal(_: libc::c_int) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is set only while the `kvm_run` that it leads into is
        // mapped ([`Kick::enter`]), and the handler runs on the thread that set it.
        unsafe { (*flag).store(1, Ordering::Relaxed) };
    }
}

fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is valid; the handler touches one byte only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            libc::sigaction(signal_number(), &action, std::ptr::null_mut());
        }
    });
}

impl Kick {
    pub fn new() -> Arc<Kick> {
        install_handler();
        Arc::new(Kick::default())
    }

    /// Notes a reason and gets the vCPU's thread to look at it.
    pub fn request(&self, reason: u32) {
        self.reasons.fetch_or(reason, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: a signal whose handler is ours; a thread id that has gone away in
            // between gives an error, which means that nobody needs the kick.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal_number()) };
        }
    }

    pub fn take(&self, reason: u32) -> bool {
        self.reasons.fetch_and(!reason, Ordering::SeqCst) & reason != 0
    }

    /// The calling thread is about to run the vCPU whose `immediate_exit` this is.
    ///
    /// # Safety
    ///
    /// `immediate_exit` stays valid until the returned guard is dropped.
    pub unsafe fn enter(&self, immediate_exit: *const AtomicU8) -> Entered<'_> {
        IMMEDIATE_EXIT.set(immediate_exit);
        // SAFETY: gettid has no preconditions.
        self.thread.store(unsafe { libc::gettid() }, Ordering::SeqCst);
        Entered(self)
    }
}

/// While it lives, kicks reach this thread.
pub struct Entered<'a>(&'a Kick);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.thread.store(0, Ordering::SeqCst);
        IMMEDIATE_EXIT.set(std::ptr::null());
    }
}

/// While it lives, every `KVM_RUN` of this thread's vCPU ends before the guest executes an
/// instruction, and no kick makes it end earlier.
pub struct SignalPending<'a> {
    vcpu: BorrowedFd<'a>,
    others: libc::sigset_t,
}

/// What KVM_SET_SIGNAL_MASK reads: the kernel's own set of 64 signals.
#[repr(C)]
struct KernelMask {
    length: u32,
    blocked: [u8; 8],
}

impl<'a> SignalPending<'a> {
    pub fn new(vcpu: BorrowedFd<'a>) -> std::io::Result<Self> {
        let nothing = KernelMask { length: 8, blocked: [0; 8] };
        set_mask(vcpu, &nothing)?;
        // SAFETY: both sets are valid for sigaddset and pthread_sigmask once emptied, and
        // the signal, which has a handler, goes to this thread.
        let others = unsafe {
            let mut kicks: libc::sigset_t = std::mem::zeroed();
            let mut others: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut kicks);
            libc::sigaddset(&mut kicks, signal_number());
            libc::pthread_sigmask(libc::SIG_BLOCK, &kicks, &mut others);
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal_number());
            others
        };
        Ok(SignalPending { vcpu, others })
    }
}

impl Drop for SignalPending<'_> {
    fn drop(&mut self) {
        // The descriptor took a mask before, so it takes none as well.
        let _ = set_mask(self.vcpu, std::ptr::null());
        // SAFETY: the mask is the one that the thread had. The signal is delivered now, to a
        // handler that sets a flag at most.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.others, std::ptr::null_mut()) };
    }
}

/// The signals that `KVM_RUN` blocks; with a null pointer, those of the thread.
fn set_mask(vcpu: BorrowedFd<'_>, mask: *const KernelMask) -> std::io::Result<()> {
    const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;
    // SAFETY: the ioctl reads a length and as many bytes, or nothing through a null pointer.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, mask) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

impl VcpuHandle for Kick {
    fn kick(&self) {
        self.request(STOP);
    }
}
