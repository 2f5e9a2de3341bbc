//! Images from Containerfiles.
//!
//! A Containerfile is read as lines (`lines`), which become stages of
//! instructions (`containerfile`). `builder` goes through the stages that the
//! result needs, and through their instructions: those about the configuration
//! only change values (`stage`), those about files mount the layers so far with
//! overlayfs (`mounted`), copy (`transfer`, from trees that `tree` reads and
//! `ignore` restricts) or run a container (`run`), and what overlayfs was made
//! to write becomes the next layer.
//!
//! Every such step has a key: a digest of all that its outcome depends on. The
//! store keeps the image after each step under its key, and a later build that
//! comes to the same key takes it from there.

mod builder;
mod containerfile;
mod error;
mod fetch;
mod ignore;
mod lines;
mod mounted;
mod pattern;
mod place;
mod run;
mod stage;
mod transfer;
mod tree;
mod users;
mod words;

pub use builder::{Build, Network, Output, Sink, forget_cache};
pub use error::{Error, Result};

/// Reads a Containerfile without building anything: what the fuzz target and the
/// regression test over its corpus enter by.
pub fn probe_containerfile(text: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(text);
    let file = containerfile::Containerfile::parse(&text)?;
    for stage in &file.stages {
        let lookup = |_: &str| Some("value".to_owned());
        let _ = words::expand(&stage.base, file.escape, &lookup);
    }
    ignore::Ignore::parse(&text).excludes(b"some/path");
    Ok(())
}
