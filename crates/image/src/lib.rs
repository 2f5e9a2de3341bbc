//! Images: what instances start from.
//!
//! A `Store` keeps blobs by digest and names that point at them. Images come
//! in from OCI registries (`registry`), archives (`archive`) and Debian's
//! package archive (`debian`), and go out to each guise in the form it wants:
//! directories for overlayfs, one EROFS file, a kernel with its modules.

pub mod archive;
pub mod clock;
mod codec;
mod digest;
mod erofs;
mod error;
mod layer;
pub mod limits;
mod name;
pub mod progress;
mod pull;
pub mod spec;
mod store;
pub mod tar;
#[cfg(test)]
mod testing;

pub mod debian;
pub mod registry;

pub use codec::{Compression, compress};
pub use digest::{BadDigest, Digest, Hasher};
pub use error::{Error, LayerError, Mismatch, Result};
pub use layer::source::Source as LayerReader;
pub use limits::Limits;
pub use name::Name;
pub use pull::Pull;
pub use store::{Collected, Image, Reference, Scratch, Session, Store};
