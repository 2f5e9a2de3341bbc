//! The local APICs of a VM and what connects them.
//!
//! Pure logic: no threads, no clock, no guest memory. Whoever calls passes the time
//! in nanoseconds, and does what is asked of him in return.
//!
//! | module | what it holds |
//! |---|---|
//! | [`message`] | interrupts on their way: ICR and MSI formats, who is meant |
//! | `registers` | one APIC's registers and priorities |
//! | `access` | reading and writing them as a memory page and as MSRs |
//! | `timer` | the three timer modes |
//! | [`local`] | a [`LocalApic`]: registers behind a lock, and a word that sums them up |
//! | [`bus`] | an [`ApicBus`]: all of them, and delivery between them |
//! | [`saved`] | to and from the neutral state |
//!
//! How a vCPU's run loop uses it. [`LocalApic::pending`] is one load; it is looked at
//! when the vCPU's attention word says so (the wake callback sets it), and after
//! instructions that can unblock an interrupt (STI, POPF, IRET, writes to CR8 or the
//! APIC). In this order, between two instructions:
//!
//! 1. [`Pending::INIT`]: [`LocalApic::take_init`], reset the vCPU; then
//!    [`Pending::SIPI`]: [`LocalApic::take_sipi`], which is dropped unless the vCPU
//!    waits for it. Both before the vCPU is stopped for its state;
//! 2. [`Pending::NMI`], if NMIs are not blocked: [`LocalApic::take_nmi`],
//!    and [`LocalApic::merge_nmis`] when they no longer are;
//! 3. with interrupts enabled, [`Pending::EXTERNAL`]: the platform's acknowledge
//!    cycle; or [`Pending::INTERRUPT`]: [`LocalApic::accept`].
//!
//! After every access that may start the timer, and after [`LocalApic::expire`],
//! [`LocalApic::next_deadline`] says when `expire` wants to be called again.

mod access;
pub mod bus;
pub mod local;
pub mod message;
mod registers;
pub mod saved;
mod timer;

pub use access::Refused;
pub use bus::{ApicBus, Wake};
pub use local::{LocalApic, Pending};
pub use saved::SavedApic;
