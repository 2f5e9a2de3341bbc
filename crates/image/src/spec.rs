//! Manifests, indexes and configurations of the OCI image specification, and
//! Docker's schema 2, which has the same shape under other media types.
//!
//! These are our own types rather than a crate's: what is pushed must be the
//! bytes that were pulled, so documents are kept as bytes and these types only
//! read them; and they refuse what they do not know at the door, which keeps
//! the rest of the crate free of checks.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Digest, Error, limits};

pub mod media {
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// A WebAssembly program, its own bytes and nothing around them; and other names for it.
    pub const WASM: &str = "application/wasm";
    pub const WASM_LAYERS: [&str; 3] = [
        WASM,
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/vnd.module.wasm.content.layer.v1+wasm",
    ];
    /// What is known of a WebAssembly program.
    pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
    /// The configuration of a kernel image: `crate::kernel::KernelConfig`.
    pub const KERNEL_CONFIG: &str = "application/vnd.guise.kernel.config.v1+json";
}

/// Points at a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn is_index(&self) -> bool {
        self.media_type == media::OCI_INDEX || self.media_type == media::DOCKER_LIST
    }

    #[must_use]
    pub fn is_manifest(&self) -> bool {
        self.media_type == media::OCI_MANIFEST || self.media_type == media::DOCKER_MANIFEST
    }
}

/// Operating system and processor, as images name them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This host's.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Every host's that runs WebAssembly.
    #[must_use]
    pub fn wasm() -> Self {
        Self { os: "wasi".into(), architecture: "wasm".into(), variant: None }
    }

    /// Whether it is WebAssembly's, which names itself in several ways.
    #[must_use]
    pub fn is_wasm(&self) -> bool {
        matches!(self.architecture.as_str(), "wasm" | "wasm32")
    }

    /// Whether an image made for `self` serves `wanted`. A wanted variant must
    /// be there; an image's variant that nobody asked for does no harm.
    #[must_use]
    pub fn serves(&self, wanted: &Self) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (wanted.variant.is_none() || wanted.variant == self.variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl std::str::FromStr for Platform {
    type Err = String;

    /// `linux/amd64`, `linux/arm/v7`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None)
                if !os.is_empty() && !architecture.is_empty() =>
            {
                Ok(Self {
                    os: os.into(),
                    architecture: architecture.into(),
                    variant: variant.map(str::to_owned),
                })
            }
            _ => Err(format!("{text:?} is not a platform such as linux/amd64")),
        }
    }
}

/// One image: its configuration and its layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    #[must_use]
    pub fn oci(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media::OCI_MANIFEST.into()),
            config,
            layers,
            annotations: BTreeMap::new(),
        }
    }
}

impl Manifest {
    /// The WebAssembly program that it consists of, unless it is a root file system's.
    #[must_use]
    pub fn module(&self) -> Option<&Descriptor> {
        let is_module = |layer: &&Descriptor| media::WASM_LAYERS.contains(&&*layer.media_type);
        self.layers.iter().find(is_module)
    }
}

/// One image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a reference can point at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Reads a manifest or an index. `media_type` is what the registry or the
    /// descriptor said; the document itself must not say otherwise.
    pub fn parse(bytes: &[u8], media_type: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            schema_version: Option<u32>,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let bad = |why: &dyn fmt::Display| Error::malformed("the manifest", why);
        if bytes.len() as u64 > limits::MANIFEST_BYTES {
            return Err(bad(&"it is larger than 4 MiB"));
        }
        let kind: Kind = serde_json::from_slice(bytes).map_err(|e| bad(&e))?;
        if kind.fs_layers.is_some() || kind.schema_version == Some(1) {
            return Err(bad(
                &"it is Docker's schema 1, which has been retired (push the image again with a newer tool)",
            ));
        }
        if kind.schema_version != Some(2) {
            return Err(bad(&"it has no schemaVersion 2"));
        }
        // The same bytes must not be an index to one reader and a manifest to
        // another (CVE-2021-41190).
        if kind.manifests.is_some() && kind.layers.is_some() {
            return Err(bad(&"it has both manifests and layers"));
        }
        if let Some(inner) = &kind.media_type
            && !media_type.is_empty()
            && inner != media_type
        {
            return Err(bad(&format!("it says {inner}, its descriptor says {media_type}")));
        }
        let said = kind.media_type.as_deref().unwrap_or(media_type);
        let is_index = match said {
            media::OCI_INDEX | media::DOCKER_LIST => true,
            media::OCI_MANIFEST | media::DOCKER_MANIFEST => false,
            // Registries of static files say nothing useful; the fields do.
            "" | "application/json" | "text/plain" | "application/octet-stream" => {
                kind.manifests.is_some()
            }
            other => return Err(bad(&format!("its media type is {other:?}"))),
        };
        if is_index {
            let index: Index = serde_json::from_slice(bytes).map_err(|e| bad(&e))?;
            Ok(Self::Index(index))
        } else {
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| bad(&e))?;
            if manifest.layers.len() > limits::LAYERS {
                return Err(bad(&format!("it has more than {} layers", limits::LAYERS)));
            }
            if manifest.config.size > limits::CONFIG_BYTES {
                return Err(bad(&"its configuration is larger than 8 MiB"));
            }
            let sum = manifest.layers.iter().try_fold(0u64, |sum, l| sum.checked_add(l.size));
            if sum.is_none_or(|sum| sum > i64::MAX as u64) {
                return Err(bad(&"its layers' sizes are impossible"));
            }
            Ok(Self::Manifest(manifest))
        }
    }

    /// The media type to store the document under.
    #[must_use]
    pub fn media_type(&self) -> &str {
        match self {
            Self::Manifest(m) => m.media_type.as_deref().unwrap_or(media::OCI_MANIFEST),
            Self::Index(i) => i.media_type.as_deref().unwrap_or(media::OCI_INDEX),
        }
    }
}

/// An image's configuration: platform, what to run, and the layers' digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    #[serde(default)]
    pub config: Option<Process>,
    pub rootfs: RootFs,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

impl Config {
    /// Of an image that says nothing but what it consists of.
    pub fn of_layers(platform: Platform, diff_ids: Vec<Digest>) -> Self {
        Config {
            created: None,
            author: None,
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
            config: None,
            rootfs: RootFs { kind: "layers".into(), diff_ids },
            history: Vec::new(),
        }
    }
}

/// How a container of the image starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Process {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub user: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub exposed_ports: BTreeMap<String, Empty>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub volumes: BTreeMap<String, Empty>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub stop_signal: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub shell: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// The JSON object `{}` that sets are made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Docker's health check; durations are nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    pub diff_ids: Vec<Digest>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// Go writes absent lists as null.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Config {
    /// The configuration that goes with a manifest. Of a WebAssembly program there is nothing
    /// that it would take to run it.
    pub fn of(manifest: &Manifest, bytes: &[u8], image: &str) -> Result<Self, Error> {
        if manifest.module().is_some() {
            return Ok(Self::of_layers(Platform::wasm(), Vec::new()));
        }
        let config = Self::parse(bytes)?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(Error::malformed(
                format!("image {image}"),
                format!(
                    "its manifest has {} layers, its configuration {}",
                    manifest.layers.len(),
                    config.rootfs.diff_ids.len()
                ),
            ));
        }
        Ok(config)
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let bad = |why: &dyn fmt::Display| Error::malformed("the image's configuration", why);
        if bytes.len() as u64 > limits::CONFIG_BYTES {
            return Err(bad(&"it is larger than 8 MiB"));
        }
        let config: Self = serde_json::from_slice(bytes).map_err(|e| bad(&e))?;
        if config.rootfs.kind != "layers" {
            return Err(bad(&format!("its rootfs is of type {:?}", config.rootfs.kind)));
        }
        if config.rootfs.diff_ids.len() > limits::LAYERS {
            return Err(bad(&format!("it has more than {} layers", limits::LAYERS)));
        }
        Ok(config)
    }

    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// The digest of a stack of layers: the identity of the root file system
/// that the lowest layers make together.
#[must_use]
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

#[cfg(test)]
mod tests;
