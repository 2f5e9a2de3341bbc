//! What `guise image` prints.

use std::path::{Path, PathBuf};

use guise_api::human_size;
use guise_image::progress::Progress;
use guise_image::spec::{Document, Platform, media};
use guise_image::{Error, Limits, Name, Result, Store};
use serde_json::{Value, json};

use super::Form;
use crate::print::{self, Format};

/// `10G` and the like.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let (digits, shift) = match text.to_ascii_uppercase().strip_suffix(['K', 'M', 'G', 'T']) {
        Some(digits) => {
            let shift = match text.as_bytes()[text.len() - 1].to_ascii_uppercase() {
                b'K' => 10,
                b'M' => 20,
                b'G' => 30,
                _ => 40,
            };
            (digits.to_owned(), shift)
        }
        None => (text.to_owned(), 0),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|n| n.checked_mul(1 << shift))
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("{text:?} is not a size such as 500M or 64G"))
}

/// All names, what they are and how much room they take.
pub fn list(store: &Store, format: Format) -> Result<()> {
    let mut rows = Vec::new();
    let mut documents = Vec::new();
    for reference in store.references()? {
        let name = &reference.name;
        let (kind, size) = match store.document(&reference.target) {
            Ok(Document::Index(_)) => {
                ("index", store.image(name, None).map(|image| image.size()).ok())
            }
            Ok(Document::Manifest(m)) => {
                let kind =
                    if m.config.media_type == media::KERNEL_CONFIG { "kernel" } else { "image" };
                let layers = m.layers.iter().map(|layer| layer.size).sum::<u64>();
                (kind, Some(layers + m.config.size + reference.target.size))
            }
            Err(_) => ("damaged", None),
        };
        rows.push(vec![
            name.to_string(),
            kind.to_owned(),
            reference.target.digest.short(),
            size.map_or_else(|| "-".into(), human_size),
            reference.updated.clone(),
        ]);
        documents.push(json!({
            "name": name.to_string(),
            "kind": kind,
            "digest": reference.target.digest.to_string(),
            "mediaType": reference.target.media_type,
            "size": size,
            "updated": reference.updated,
        }));
    }
    match format {
        Format::Table => print::table(&["NAME", "KIND", "DIGEST", "SIZE", "UPDATED"], &rows),
        other => print::json(&Value::Array(documents), other),
    }
    Ok(())
}

/// Everything about one image.
pub fn inspect(
    store: &Store,
    name: &Name,
    platform: Option<&Platform>,
    format: Format,
) -> Result<()> {
    let reference = store.reference(name)?;
    let value = match store.image(name, platform) {
        Ok(image) => json!({
            "name": name.to_string(),
            "kind": "image",
            "digest": image.descriptor.digest.to_string(),
            "target": reference.target,
            "updated": reference.updated,
            "size": image.size(),
            "chainId": image.chain_id().to_string(),
            "manifest": image.manifest,
            "config": image.config,
        }),
        Err(Error::IsKernel(_)) => {
            let (target, manifest, config) = store.kernel_config(name)?;
            json!({
                "name": name.to_string(),
                "kind": "kernel",
                "digest": target.digest.to_string(),
                "updated": reference.updated,
                "manifest": manifest,
                "config": config,
            })
        }
        Err(other) => return Err(other),
    };
    print::json(&value, format);
    Ok(())
}

/// What was made of an image.
pub enum Made {
    Layers(Vec<PathBuf>),
    Erofs(PathBuf),
    Kernel(guise_image::debian::Kernel),
}

/// Makes what an instance needs of an image.
pub fn make(
    store: &Store,
    name: &Name,
    form: Option<Form>,
    platform: Option<&Platform>,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Made> {
    let session = store.session()?;
    let kernel = || session.kernel(name).map(Made::Kernel);
    if form == Some(Form::Kernel) {
        return kernel();
    }
    let image = match store.image(name, platform) {
        Err(Error::IsKernel(_)) if form.is_none() => return kernel(),
        other => other?,
    };
    match form {
        Some(Form::Layers) => session.layer_dirs(&image, limits, progress).map(Made::Layers),
        _ => session.erofs(&image, limits, progress).map(Made::Erofs),
    }
}

pub fn print_made(made: &Made, format: Format) {
    if format != Format::Table {
        let value = match made {
            Made::Layers(paths) => json!({ "layers": paths }),
            Made::Erofs(path) => json!({ "erofs": path }),
            Made::Kernel(kernel) => json!({ "kernel": kernel }),
        };
        return print::json(&value, format);
    }
    match made {
        Made::Layers(paths) => {
            for path in paths {
                println!("{}", path.display());
            }
        }
        Made::Erofs(path) => println!("{}", path.display()),
        Made::Kernel(kernel) => {
            println!("{}\n{}", kernel.vmlinuz.display(), kernel.modules.display());
        }
    }
}

/// What to call an imported image: as asked, or as the archive calls it. A
/// mere tag, as in OCI layouts, follows the file's name.
pub fn imported_name(path: &Path, asked: Option<Name>, inside: Option<&str>) -> Result<Name> {
    if let Some(name) = asked {
        return Ok(name);
    }
    if let Some(name) = inside
        && name.contains([':', '/'])
    {
        return name.parse();
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("");
    let stem = stem.strip_suffix(".tar").unwrap_or(stem).to_ascii_lowercase();
    match inside {
        Some(tag) => format!("{stem}:{tag}").parse(),
        None => stem.parse(),
    }
}

/// Collects garbage and says what came of it.
pub fn collect(store: &Store) -> Result<()> {
    match store.collect()? {
        Some(freed) if freed.items > 0 => {
            println!("freed {} in {} items", human_size(freed.bytes), freed.items);
        }
        Some(_) => println!("nothing to free"),
        None => println!("an image is being added just now: `guise image gc` later frees the rest"),
    }
    Ok(())
}
