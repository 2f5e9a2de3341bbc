//! Bounds on what an image may ask of this host. Everything that parses bytes
//! from a registry or an archive takes its bounds from here.

/// The largest manifest or index: what the distribution specification obliges
/// registries to accept.
pub const MANIFEST_BYTES: u64 = 4 << 20;

/// The largest image configuration.
pub const CONFIG_BYTES: u64 = 8 << 20;

/// The most layers an image may have; overlayfs stops at 500.
pub const LAYERS: usize = 500;

/// The longest path inside a layer, as in the kernel's PATH_MAX.
pub const PATH_BYTES: usize = 4096;

/// The longest file name.
pub const NAME_BYTES: usize = 255;

/// The most bytes of extended attributes on one file.
pub const XATTR_BYTES: usize = 128 << 10;

/// The largest PAX or GNU header record.
pub const TAR_HEADER_BYTES: u64 = 1 << 20;

/// How much one layer may hold once unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed layer.
    pub unpacked_bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { unpacked_bytes: 64 << 30, entries: 4_000_000 }
    }
}
