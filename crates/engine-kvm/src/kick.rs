//! How other threads get a vCPU out of `KVM_RUN`.
//!
//! A kick notes its reason and sends the vCPU's thread a signal. The handler sets
//! `immediate_exit` in the thread's own `kvm_run`, so that a signal which lands
//! between the look at the reasons and the system call is not lost: the call then
//! returns at once. The reasons survive until the thread takes them.

use std::cell::Cell;
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

impl VcpuHandle for Kick {
    fn kick(&self) {
        self.request(STOP);
    }
}
