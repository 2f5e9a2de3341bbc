//! WebAssembly programs as files: they become artifacts of one layer, which is the file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;

use crate::error::IoContext;
use crate::spec::{Descriptor, Manifest, media};
use crate::store::Session;
use crate::{Digest, Error, Result};

/// What every program begins with; a number for its kind follows.
const MAGIC: &[u8] = b"\0asm";
/// The kind of components.
const COMPONENT: &[u8] = b"\x0d\0\x01\0";

/// What the artifact says of its program. The same file makes the same artifact at any time.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct About {
    architecture: &'static str,
    os: &'static str,
    layer_digests: [Digest; 1],
}

/// The file's first bytes, if it is a program.
fn beginning(path: &Path) -> Result<Option<[u8; 8]>> {
    let mut bytes = [0; 8];
    if !path.is_file() {
        return Ok(None);
    }
    match File::open(path).and_then(|mut file| file.read_exact(&mut bytes)) {
        Ok(()) => Ok(bytes.starts_with(MAGIC).then_some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error).at("reading", path),
    }
}

pub fn is_module(path: &Path) -> Result<bool> {
    beginning(path).map(|bytes| bytes.is_some())
}

/// Puts a WebAssembly program into the store.
pub fn import_module(session: &Session<'_>, path: &Path) -> Result<Descriptor> {
    let file = File::open(path).at("opening", path)?;
    let Some(beginning) = beginning(path)? else {
        let why = "it is no WebAssembly program (which begin with \\0asm)".into();
        return Err(Error::BadArchive { path: path.to_owned(), why });
    };
    let module = super::import::add_stream(session, media::WASM, file, path)?;
    let os = if beginning.ends_with(COMPONENT) { "wasip2" } else { "wasip1" };
    let about = About { architecture: "wasm", os, layer_digests: [module.digest] };
    let config = session.add_json(media::WASM_CONFIG, &about)?;
    session.add_json(media::OCI_MANIFEST, &Manifest::oci(config, vec![module]))
}
