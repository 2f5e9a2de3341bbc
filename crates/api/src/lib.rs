//! The API: what the daemon is asked and what it answers.
//!
//! Every object has a `spec` (what is wanted), a `status` (what is), a `generation`
//! (counts changes of the spec) and a `revision` (the store's commit that wrote it last;
//! a change may name the revision that it is based on). The types here are the whole
//! vocabulary: the daemon serves them, [`client`] sends them, and the OpenAPI
//! description is made of them.

mod access;
pub mod client;
mod error;
mod event;
mod image;
mod instance;
mod list;
mod network;
mod pool;
pub mod session;
mod size;
mod system;
mod task;
mod volume;

pub(crate) use access::default_project;
pub use access::*;
pub use error::{ApiError, Code};
pub use event::Event;
pub use image::{Build, BuildNetwork, Image, Pull, Push};
pub use instance::*;
pub use list::{Change, Page, Paging};
pub use network::{NamedNetwork, NewNetwork};
pub use pool::{Pool, PoolLevel};
pub use size::human_size;
pub use system::SystemInfo;
pub use task::{Task, TaskState, Work};
pub use volume::{NewVolume, Volume};

/// The version in every path.
pub const PREFIX: &str = "/v1";

/// The image of the kernel that microVMs boot.
pub const KERNEL: &str = "kernel:debian-12";
