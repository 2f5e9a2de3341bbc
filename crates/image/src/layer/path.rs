//! Paths in layers: relative to the root, whatever they claim.

use crate::error::LayerError;
use crate::limits;

/// The components of a path. A leading slash means the root of the layer;
/// `..` is refused, for no honest layer has it.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    let mut parts = Vec::new();
    for part in path.split(|&c| c == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(LayerError::hostile(path, "leads out of the layer: refused")),
            _ if part.contains(&0) => {
                return Err(LayerError::hostile(path, "contains a NUL byte: refused"));
            }
            _ if part.len() > limits::NAME_BYTES => {
                return Err(LayerError::hostile(path, "has a name longer than 255 bytes: refused"));
            }
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

/// What the name of an entry says about it.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// A file of this name.
    Plain(&'a [u8]),
    /// The file of this name is gone.
    Whiteout(&'a [u8]),
    /// Everything that the layers below have in this directory is gone.
    Opaque,
    /// Book-keeping of the AUFS file system, which means nothing elsewhere.
    Ignored,
}

/// Tells whiteouts from files.
pub fn meaning<'a>(name: &'a [u8], path: &[u8]) -> Result<Meaning<'a>, LayerError> {
    Ok(match name.strip_prefix(b".wh.") {
        None => Meaning::Plain(name),
        Some(b".wh..opq") => Meaning::Opaque,
        Some(rest) if rest.starts_with(b".wh.") => Meaning::Ignored,
        Some(b"" | b"." | b"..") => {
            return Err(LayerError::hostile(path, "is a whiteout outside the root: refused"));
        }
        Some(gone) => Meaning::Whiteout(gone),
    })
}

/// Extended attributes that would steer overlayfs rather than describe a file.
pub fn check_xattr(name: &[u8], path: &[u8]) -> Result<(), LayerError> {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return Err(LayerError::hostile(path, "has an attribute that controls overlayfs: refused"));
    }
    Ok(())
}
