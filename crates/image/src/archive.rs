//! Images as files: OCI layouts (a directory), OCI archives (the same in a
//! tar file), Docker archives (what `docker save` writes) and plain tar files
//! of a root file system. What an archive is, is told by what it holds.

mod docker;
mod export;
mod import;
mod oci;
mod source;

pub use export::{Format, export};
pub use import::{Imported, import};
