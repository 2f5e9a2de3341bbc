//! Images as files: OCI layouts (a directory), OCI archives (the same in a
//! tar file), Docker archives (what `docker save` writes), plain tar files of a
//! root file system, and WebAssembly programs. What an archive is, is told by
//! what it holds.

mod docker;
mod export;
mod import;
mod module;
mod oci;
mod source;

pub use export::{Format, export};
pub use import::{Imported, import};
pub use module::import_module;
