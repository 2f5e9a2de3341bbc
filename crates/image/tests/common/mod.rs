//! Images made by hand, tools of the distribution, and a registry server that
//! misbehaves on request.

#![allow(dead_code, reason = "each test program uses its own part of this")]

pub mod server;

use std::path::Path;
use std::process::Command;

use guise_image::spec::{Config, Descriptor, Manifest, Process, RootFs, media};
use guise_image::tar::{Entry, Kind, Writer};
use guise_image::{Compression, Digest, Image, Name, Session, Store, compress};

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn store(dir: &Path) -> Store {
    Store::open(dir).unwrap()
}

/// Bytes that do not compress, the same in every run.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// A layer with one directory and one file.
pub fn layer(file: &str, data: &[u8]) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new());
    tar.append(&Entry::new("data", Kind::Directory, 0o755), &b""[..]).unwrap();
    tar.file(&format!("data/{file}"), data).unwrap();
    tar.finish().unwrap()
}

/// Puts an image of these layers into a store.
pub fn image(session: &Session<'_>, tars: &[Vec<u8>], how: Compression) -> Image {
    let media_type = match how {
        Compression::None => media::OCI_LAYER,
        Compression::Gzip => media::OCI_LAYER_GZIP,
        Compression::Zstd => media::OCI_LAYER_ZSTD,
    };
    let layers: Vec<Descriptor> = tars
        .iter()
        .map(|tar| session.add_bytes(media_type, &compress(tar, how)).unwrap())
        .collect();
    let config = Config {
        created: Some("2026-01-01T00:00:00Z".into()),
        author: None,
        architecture: "amd64".into(),
        os: "linux".into(),
        variant: None,
        config: Some(Process { cmd: vec!["sh".into()], ..Process::default() }),
        rootfs: RootFs {
            kind: "layers".into(),
            diff_ids: tars.iter().map(|tar| Digest::of(tar)).collect(),
        },
        history: Vec::new(),
    };
    let config = session.add_json(media::OCI_CONFIG, &config).unwrap();
    let target = session.add_json(media::OCI_MANIFEST, &Manifest::oci(config, layers)).unwrap();
    session.image_of(&target, "test", None).unwrap()
}

/// Runs a tool that must succeed.
pub fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// Whether the tools are installed; says which are not.
pub fn have(tools: &[(&str, &str)]) -> bool {
    let missing: Vec<String> = tools
        .iter()
        .filter(|(tool, _)| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            !std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
        })
        .map(|(tool, package)| format!("{tool} (apt install {package})"))
        .collect();
    if !missing.is_empty() {
        println!("not run: {} missing", missing.join(", "));
    }
    missing.is_empty()
}
