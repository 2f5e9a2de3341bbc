//! Images as files: OCI layouts (a directory), OCI archives (the same in a
//! tar file), Docker archives (what `docker save` writes), plain tar files of a
//! root file system, WebAssembly programs; and folders with a root file
//! system. What an archive is, is told by
//! what it holds.

mod docker;
mod export;
mod folder;
mod import;
mod module;
mod oci;
mod source;

pub use export::{Format, export};
pub use folder::import_folder;
pub use import::{Imported, import};
pub use module::import_module;
