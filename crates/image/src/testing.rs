//! What several unit tests need: images made by hand.

use crate::spec::{Config, Descriptor, Manifest, Process, RootFs, media};
use crate::store::{Image, Session};
use crate::tar::{Entry, Kind, Writer};
use crate::{Digest, Name};

/// A layer's entries with the data of its files.
pub type Layer = Vec<(Entry, Vec<u8>)>;

pub fn directory(path: &str) -> (Entry, Vec<u8>) {
    (Entry::new(path, Kind::Directory, 0o755), Vec::new())
}

pub fn file(path: &str, data: &[u8]) -> (Entry, Vec<u8>) {
    let mut entry = Entry::new(path, Kind::File, 0o644);
    entry.size = data.len() as u64;
    (entry, data.to_vec())
}

pub fn other(path: &str, kind: Kind) -> (Entry, Vec<u8>) {
    (Entry::new(path, kind, 0o644), Vec::new())
}

pub fn symlink(path: &str, target: &str) -> (Entry, Vec<u8>) {
    (Entry::new(path, Kind::Symlink(target.into()), 0o777), Vec::new())
}

pub fn hard_link(path: &str, target: &str) -> (Entry, Vec<u8>) {
    other(path, Kind::Hardlink(target.into()))
}

pub fn tar(layer: &Layer) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, data) in layer {
        writer.append(entry, &data[..]).unwrap();
    }
    writer.finish().unwrap()
}

/// Puts an image of these layers, as they are, into the store.
pub fn image_of_tars(session: &Session<'_>, tars: &[Vec<u8>]) -> Image {
    let layers: Vec<Descriptor> =
        tars.iter().map(|tar| session.add_bytes(media::OCI_LAYER, tar).unwrap()).collect();
    let config = Config {
        created: None,
        author: None,
        architecture: "amd64".into(),
        os: "linux".into(),
        variant: None,
        config: Some(Process { cmd: vec!["sh".into()], ..Process::default() }),
        rootfs: RootFs {
            kind: "layers".into(),
            diff_ids: layers.iter().map(|layer| layer.digest).collect::<Vec<Digest>>(),
        },
        history: Vec::new(),
    };
    let config = session.add_json(media::OCI_CONFIG, &config).unwrap();
    let target = session.add_json(media::OCI_MANIFEST, &Manifest::oci(config, layers)).unwrap();
    session.image_of(&target, "test", None).unwrap()
}

pub fn image_of(session: &Session<'_>, layers: &[Layer]) -> Image {
    let tars: Vec<Vec<u8>> = layers.iter().map(tar).collect();
    image_of_tars(session, &tars)
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Numbers that look random and are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
