//! The options that new images and `amend` take, for lists and for completion.

use crate::format::FormatKind;

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHelp {
    pub name: &'static str,
    /// What it takes.
    pub takes: Takes,
    pub text: &'static str,
}

/// What an option takes, in the words of QEMU's tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    Text,
    Switch,
    Size,
    Number,
}

impl Takes {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "str",
            Self::Switch => "bool (on/off)",
            Self::Size => "size",
            Self::Number => "num",
        }
    }
}

const fn text(name: &'static str, text: &'static str) -> OptionHelp {
    OptionHelp { name, takes: Takes::Text, text }
}

const fn switch(name: &'static str, text: &'static str) -> OptionHelp {
    OptionHelp { name, takes: Takes::Switch, text }
}

const fn size(name: &'static str, text: &'static str) -> OptionHelp {
    OptionHelp { name, takes: Takes::Size, text }
}

const fn number(name: &'static str, text: &'static str) -> OptionHelp {
    OptionHelp { name, takes: Takes::Number, text }
}

const BACKING_FILE: OptionHelp = text("backing_file", "image below this one");
const BACKING_FORMAT: OptionHelp = text("backing_fmt", "format of the image below");
const COMPAT: OptionHelp = text("compat", "version: v2 (0.10) or v3 (1.1)");
const DATA_FILE: OptionHelp = text("data_file", "file for the data");
const DATA_FILE_RAW: OptionHelp = switch("data_file_raw", "the data file is a raw disk");
const LAZY: OptionHelp = switch("lazy_refcounts", "postpone reference counts");
const NO_COW: OptionHelp = switch("nocow", "the file is not copied on write (btrfs)");
const REFCOUNT_BITS: OptionHelp = number("refcount_bits", "width of a reference count, 1 to 64");
const SIZE: OptionHelp = size("size", "size of the disk");
const RESERVE: OptionHelp = text("preallocation", "off, falloc or full");
const RESERVE_FIXED: OptionHelp =
    text("preallocation", "for fixed and flat variants: off, falloc or full");
const SUBFORMAT: OptionHelp = text("subformat", "dynamic or fixed");

/// The options of a new image, by name.
pub fn create_options(kind: FormatKind) -> &'static [OptionHelp] {
    match kind {
        FormatKind::Raw => const { &[NO_COW, RESERVE, SIZE] },
        FormatKind::Qcow2 => {
            const {
                &[
                    BACKING_FILE,
                    BACKING_FORMAT,
                    size("cluster_size", "unit of space, 512 to 2M"),
                    COMPAT,
                    text("compression_type", "zlib or zstd"),
                    DATA_FILE,
                    DATA_FILE_RAW,
                    text("encrypt.cipher-alg", "aes-128 or aes-256"),
                    text("encrypt.cipher-mode", "xts or cbc"),
                    text("encrypt.format", "luks"),
                    text("encrypt.hash-alg", "sha1, sha256 or sha512"),
                    number("encrypt.iter-time", "milliseconds of key derivation"),
                    number("encrypt.iterations", "rounds of key derivation"),
                    text("encrypt.ivgen-alg", "plain, plain64 or essiv"),
                    text("encrypt.ivgen-hash-alg", "for essiv: sha256"),
                    text("encrypt.key-secret", "which secret holds the passphrase"),
                    switch("extended_l2", "clusters have parts"),
                    LAZY,
                    NO_COW,
                    text("preallocation", "off, metadata, falloc or full"),
                    REFCOUNT_BITS,
                    SIZE,
                ]
            }
        }
        FormatKind::Vmdk => {
            const {
                &[
                    text("adapter_type", "ide, lsilogic, buslogic, legacyESX or pvscsi"),
                    BACKING_FILE,
                    BACKING_FORMAT,
                    switch("compat6", "the same as hwversion=6"),
                    text("hwversion", "version of the virtual hardware"),
                    NO_COW,
                    RESERVE_FIXED,
                    SIZE,
                    text(
                        "subformat",
                        "monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, \
                         twoGbMaxExtentFlat or streamOptimized",
                    ),
                    text("toolsversion", "version of the guest's tools"),
                    switch("zeroed_grain", "zeroes take no space"),
                ]
            }
        }
        FormatKind::Vhd => {
            const {
                &[
                    BACKING_FILE,
                    switch("force_size", "accepted: sizes are always exact"),
                    NO_COW,
                    RESERVE_FIXED,
                    SIZE,
                    SUBFORMAT,
                ]
            }
        }
        FormatKind::Vhdx => {
            const {
                &[
                    BACKING_FILE,
                    size("block_size", "unit of space, 1M to 256M"),
                    switch("block_state_zero", "accepted: zeroes are always marked"),
                    size("log_size", "size of the log, from 1M"),
                    NO_COW,
                    RESERVE_FIXED,
                    SIZE,
                    SUBFORMAT,
                ]
            }
        }
        FormatKind::Vdi => {
            const {
                &[
                    NO_COW,
                    text("preallocation", "off or metadata"),
                    SIZE,
                    switch("static", "all blocks from the start"),
                ]
            }
        }
        FormatKind::Parallels => {
            const { &[size("cluster_size", "unit of space"), NO_COW, RESERVE, SIZE] }
        }
        FormatKind::Luks => {
            const {
                &[
                    text("cipher-alg", "aes-128 or aes-256"),
                    text("cipher-mode", "xts or cbc"),
                    text("hash-alg", "sha1, sha256 or sha512"),
                    number("iter-time", "milliseconds of key derivation"),
                    number("iterations", "rounds of key derivation"),
                    text("ivgen-alg", "plain, plain64 or essiv"),
                    text("ivgen-hash-alg", "for essiv: sha256"),
                    text("key-secret", "which secret holds the passphrase"),
                    NO_COW,
                    RESERVE,
                    SIZE,
                ]
            }
        }
        FormatKind::Ova => const { &[NO_COW, SIZE] },
    }
}

/// What `amend` can change.
pub fn amend_options(kind: FormatKind) -> &'static [OptionHelp] {
    match kind {
        FormatKind::Qcow2 => {
            const {
                &[
                    BACKING_FILE,
                    BACKING_FORMAT,
                    COMPAT,
                    DATA_FILE,
                    DATA_FILE_RAW,
                    LAZY,
                    REFCOUNT_BITS,
                    SIZE,
                ]
            }
        }
        _ => &[],
    }
}
