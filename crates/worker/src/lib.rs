//! The process that holds one instance.
//!
//! The daemon starts one worker for each life of an instance: a process of its own, so
//! that code which reads what a guest wrote can harm nobody else, and so that instances
//! run on when the daemon ends. It is told what to do by a [`job::Job`], makes a
//! [`body::Body`] of it (a container, a machine), and serves a control socket until
//! the body has ended.
//!
//! ```text
//! birth     the daemon's channel to a worker that is being made
//! life      one life from its job to its recorded end
//! output    what the workload prints: to the log, and to whoever listens
//! log       the log's files
//! control   the control socket, and what can be asked over it
//! place     the files of an instance, and who may run it
//! jail      what is left to a worker that reads what a guest wrote
//! group     what of the host's processors and memory it may use
//! files     files in and out of a root file system
//! removal   taking away what an instance wrote
//! terminal  terminals, from the side of whoever sits at them
//! container the container form
//! machine   what machines of both forms are given
//! guest     what the agent in a guest does for both
//! microvm   the microVM form
//! vm        the VM form
//! wasm      the WebAssembly form, where the build has it
//! ```

pub mod birth;
pub mod body;
mod container;
pub mod control;
mod files;
pub mod group;
mod guest;
pub mod jail;
pub mod job;
mod life;
pub mod log;
mod machine;
mod microvm;
mod output;
pub mod place;
pub mod removal;
mod terminal;
mod vm;
#[cfg(feature = "wasm")]
mod wasm;

pub use container::own_disk::obstacle as own_disk_obstacle;
pub use life::{copy, run};

/// Whether this build runs WebAssembly programs.
pub const HAS_WASM: bool = cfg!(feature = "wasm");
