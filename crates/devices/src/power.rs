//! What a guest can ask of the machine as a whole. Several devices carry such
//! requests: ACPI registers, the keyboard controller, the reset control register,
//! pvpanic, the debug-exit port.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Sleep state S5.
    PowerOff,
    Reset,
    /// The guest's kernel panicked and says so.
    Panicked,
    /// The guest's kernel panicked and has loaded a crash kernel, which goes on.
    CrashLoaded,
    /// Leave with this exit code: the guest is a test program.
    Exit(u32),
}

/// Who hears of requests. Called on vCPU threads, in the middle of an instruction:
/// it notes the request and lets the vCPU go on until it can be stopped.
pub trait PowerSink: Send + Sync {
    fn request(&self, request: PowerRequest);
}

impl<F: Fn(PowerRequest) + Send + Sync> PowerSink for F {
    fn request(&self, request: PowerRequest) {
        self(request);
    }
}
