//! How a disk is given to a machine, also as text: `FILE,format=qcow2,…`.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::format::FormatKind;
use crate::graph::{BackingPolicy, Passphrases};

/// Everything about a disk of a machine.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    pub path: PathBuf,
    /// Not guessed for a disk that is written.
    pub format: Option<FormatKind>,
    pub readonly: bool,
    /// Changes go to a layer that is thrown away in the end.
    pub snapshot: bool,
    /// Past the host's page cache.
    pub direct: bool,
    /// Flushes do nothing.
    pub unsafe_cache: bool,
    pub backing: BackingPolicy,
    pub passphrases: Passphrases,
    /// An image that gets, and keeps, the same contents.
    pub mirror: Option<(PathBuf, FormatKind)>,
}

impl DeviceOptions {
    /// A disk in a format.
    pub fn new(path: impl Into<PathBuf>, format: FormatKind) -> Self {
        Self { path: path.into(), format: Some(format), ..Self::default() }
    }

    /// From `FILE[,format=F][,readonly=on][,snapshot=on][,cache=none|unsafe]
    /// [,mirror=FILE,mirror-format=F]`.
    /// A comma in the file's name is written twice.
    pub fn parse(text: &str) -> Result<Self> {
        let marked = text.replace(",,", "\0");
        let mut parts = marked.split(',').map(|part| part.replace('\0', ","));
        let path = parts.next().filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| Error::option("disk", "needs the name of a file"))?;
        let mut options = Self { path: path.into(), ..Self::default() };
        let (mut mirror, mut mirror_format) = (None, None);
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((&part, "on"));
            let switch = || match value {
                "on" | "yes" | "true" => Ok(true),
                "off" | "no" | "false" => Ok(false),
                _ => Err(Error::option(key, format!("takes on or off, not '{value}'"))),
            };
            match key {
                "format" => options.format = Some(kind(key, value)?),
                "mirror" => mirror = Some(PathBuf::from(value)),
                "mirror-format" => mirror_format = Some(kind(key, value)?),
                "readonly" | "ro" => options.readonly = switch()?,
                "snapshot" => options.snapshot = switch()?,
                "direct" => options.direct = switch()?,
                "cache" => match value {
                    "writeback" => {}
                    "none" => options.direct = true,
                    "unsafe" => options.unsafe_cache = true,
                    _ => return Err(Error::option("cache", format!("'{value}' is not known"))),
                },
                "backing" => match value {
                    "same-directory" => options.backing = BackingPolicy::SameDirectory,
                    "anywhere" => options.backing = BackingPolicy::Anywhere,
                    dir => options.backing = BackingPolicy::Within(vec![dir.into()]),
                },
                _ => return Err(Error::option("disk", format!("has no option '{key}'"))),
            }
        }
        options.mirror = match (mirror, mirror_format) {
            (Some(path), Some(kind)) => Some((path, kind)),
            (None, None) => None,
            _ => return Err(Error::option("mirror", "needs mirror=FILE and mirror-format=FORMAT")),
        };
        Ok(options)
    }
}

fn kind(key: &str, name: &str) -> Result<FormatKind> {
    FormatKind::from_name(name).ok_or_else(|| Error::option(key, format!("'{name}' is not known")))
}
