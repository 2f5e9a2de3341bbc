//! The API: what the daemon is asked and what it answers.
//!
//! Every object has a `spec` (what is wanted), a `status` (what is), a `generation`
//! (counts changes of the spec) and a `revision` (the store's commit that wrote it last;
//! a change may name the revision that it is based on). The types here are the whole
//! vocabulary: the daemon serves them, [`client`] sends them, and the OpenAPI
//! description is made of them.

pub mod client;
mod error;
mod event;
mod instance;
mod network;
pub mod session;
mod system;
mod volume;

pub use error::{ApiError, Code};
pub use event::Event;
pub use instance::*;
pub use network::{NamedNetwork, NewNetwork};
pub use system::{Pull, PullNews, SystemInfo};
pub use volume::Volume;

/// The version in every path.
pub const PREFIX: &str = "/v1";

/// The image of the kernel that microVMs boot.
pub const KERNEL: &str = "kernel:debian-12";
