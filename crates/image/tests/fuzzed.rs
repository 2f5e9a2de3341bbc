//! What the fuzz targets run, over a corpus and over mutations of it: so that
//! `cargo test` on stable notices what fuzzing once found.

use std::fs;
use std::io::Read;
use std::path::Path;

use guise_image::Name;
use guise_image::spec::{Config, Document, chain_ids, media};
use guise_image::tar::{Device, Entry, Kind, Reader, Writer};

/// The files that fuzzing begins with, too.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = fs::read_dir(directory).unwrap();
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

/// Calls `check` with each seed and with changed, cut and doubled ones.
fn mutations(seeds: &[Vec<u8>], mut check: impl FnMut(&[u8])) {
    let mut state: u64 = 0x2545_F491_4F6C_DD1D;
    let mut random = move |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit.max(1) as u64) as usize
    };
    for seed in seeds {
        check(seed);
        for _ in 0..2000 {
            let mut bytes = seed.clone();
            for _ in 0..1 + random(4) {
                if bytes.is_empty() {
                    break;
                }
                let at = random(bytes.len());
                match random(6) {
                    0 => bytes[at] ^= 1 << random(8),
                    1 => bytes[at] = b"0179-\" /{}[],:\xff\0"[random(16)],
                    2 => bytes.truncate(at),
                    3 => drop(bytes.remove(at)),
                    4 => bytes.insert(at, random(256) as u8),
                    _ => {
                        let end = at + random(bytes.len() - at);
                        let piece = bytes[at..end].to_vec();
                        let to = random(bytes.len());
                        bytes.splice(to..to, piece);
                    }
                }
            }
            check(&bytes);
        }
    }
}

#[test]
fn tar() {
    let mut rich = Writer::new(Vec::new());
    let mut file = Entry::new("f".repeat(180), Kind::File, 0o644);
    file.size = 700;
    file.xattrs = vec![(b"user.k".to_vec(), b"v".to_vec())];
    rich.append(&file, &[9; 700][..]).unwrap();
    for kind in [
        Kind::Directory,
        Kind::Symlink(b"t".repeat(120)),
        Kind::Hardlink(b"f".to_vec()),
        Kind::Character(Device { major: 1, minor: 3 }),
        Kind::Fifo,
    ] {
        rich.append(&Entry::new("other", kind, 0o755), &b""[..]).unwrap();
    }
    let mut seeds = corpus("tar");
    seeds.push(rich.finish().unwrap());
    mutations(&seeds, |bytes| {
        let mut reader = Reader::new(bytes);
        let mut total = 0;
        while let Ok(Some(_)) = reader.next_entry() {
            let mut data = Vec::new();
            if reader.read_to_end(&mut data).is_err() {
                break;
            }
            total += data.len();
        }
        assert!(total <= bytes.len());
    });
}

#[test]
fn manifest() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let descriptor = format!(r#"{{"mediaType":"m","digest":"{digest}","size":5}}"#);
    let seeds = [
        format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor}]}}"#),
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{descriptor}]}}"#,
            media::OCI_INDEX
        ),
    ]
    .map(String::into_bytes);
    let seeds = [corpus("manifest"), seeds.into()].concat();
    mutations(&seeds, |bytes| {
        for media_type in ["", media::OCI_MANIFEST, media::OCI_INDEX] {
            let _ = Document::parse(bytes, media_type);
        }
    });
    mutations(&[b"localhost:5000/team/app:1".to_vec()], |bytes| {
        let text = std::str::from_utf8(bytes).ok();
        if let Some(name) = text.and_then(|text| text.parse::<Name>().ok()) {
            assert_eq!(name.to_string().parse::<Name>().unwrap(), name);
        }
    });
}

#[test]
fn config() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let seed = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["A=b"],"Cmd":null}},
            "rootfs":{{"type":"layers","diff_ids":["{digest}","{digest}"]}}}}"#
    );
    let mut seeds = corpus("config");
    seeds.push(seed.into_bytes());
    mutations(&seeds, |bytes| {
        if let Ok(config) = Config::parse(bytes) {
            let ids = &config.rootfs.diff_ids;
            assert_eq!(chain_ids(ids).len(), ids.len());
            let again = serde_json::to_vec(&config).unwrap();
            assert_eq!(Config::parse(&again).unwrap(), config);
        }
    });
}
