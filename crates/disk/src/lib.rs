//! Disk images: every format in use, from the bytes on storage up to what a
//! device or a server reads and writes.
//!
//! The layers, lowest first; each knows only the one below it:
//!
//! - [`storage`]: positioned bytes, in a file, a block device or memory;
//! - [`format`]: what all formats can do; [`formats`] has one module for each;
//! - [`graph`]: an image over its backing files, with options on top;
//! - [`device`]: a front end's view, for several queue threads;
//! - [`nbd`]: a server for other programs;
//! - [`partitions`]: what a guest divided its disk into;
//! - [`ops`]: what `guise disk` does with whole images.

pub mod bytes;
pub mod codec;
pub mod crypt;
pub mod device;
mod error;
pub mod format;
pub mod formats;
pub mod graph;
pub mod nbd;
pub mod ops;
pub mod partitions;
pub mod storage;

pub use error::{Error, Result};
