//! What the commands share: how images are named and opened, and how a
//! failure ends the program.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use guise_disk::Error;
use guise_disk::format::FormatKind;
use guise_disk::graph::{BackingPolicy, Image, OpenOptions, Passphrases};

use super::Persona;

/// What a command ends with: an exit code, or a line of text and one.
pub type Outcome = Result<u8, Failure>;

/// A failed command.
pub struct Failure {
    pub text: String,
    pub code: u8,
}

impl Failure {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: 1 }
    }

    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut text = error.to_string();
        match &error {
            Error::Backing { .. } => {
                text.push_str("; allow it with --backing-dir DIR or --backing-anywhere");
            }
            Error::Secret { .. } => text.push_str(" (--passphrase-file FILE)"),
            _ if error.is_no_space() => text.push_str("; free some and start again"),
            _ => {}
        }
        Self::new(text)
    }
}

/// Options of every command that opens images.
#[derive(Args, Clone, Default)]
pub struct Opening {
    /// Open although another process may be writing
    #[arg(short = 'U', long)]
    pub force_share: bool,
    /// The file name is a list of options: driver=…,file.filename=…
    #[arg(long)]
    pub image_opts: bool,
    /// An object, in the way of qemu-img: secret,id=…,data=…|file=…
    #[arg(long, value_name = "OBJECT")]
    pub object: Vec<String>,
    /// A file whose contents are the passphrase of encrypted images
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<String>,
    /// Also follow references to files in this directory
    #[arg(long, value_name = "DIR")]
    pub backing_dir: Vec<std::path::PathBuf>,
    /// Follow references to files anywhere: only for images you trust
    #[arg(long)]
    pub backing_anywhere: bool,
}

/// An image on the command line.
pub struct Named {
    pub path: String,
    pub options: OpenOptions,
}

impl Opening {
    /// The name and how to open it, for reading.
    pub fn named(
        &self,
        name: &str,
        format: Option<&str>,
        cache: Option<&str>,
        persona: Persona,
    ) -> Result<Named, Failure> {
        let mut options = OpenOptions {
            share: self.force_share,
            backing: self.policy(persona),
            passphrases: self.passphrases()?,
            ..OpenOptions::default()
        };
        if let Some(cache) = cache {
            apply_cache(&mut options, cache)?;
        }
        options.format = format.map(kind).transpose()?;
        let path =
            if self.image_opts { image_options(name, &mut options)? } else { plain_name(name)? };
        Ok(Named { path, options })
    }

    pub fn policy(&self, persona: Persona) -> BackingPolicy {
        if self.backing_anywhere || persona == Persona::QemuImg {
            BackingPolicy::Anywhere
        } else if self.backing_dir.is_empty() {
            BackingPolicy::SameDirectory
        } else {
            BackingPolicy::Within(self.backing_dir.clone())
        }
    }

    pub fn passphrases(&self) -> Result<Passphrases, Failure> {
        if let Some(file) = &self.passphrase_file {
            return read_secret(file);
        }
        for object in &self.object {
            let Some(rest) = object.strip_prefix("secret,") else {
                return Err(Failure::new(format!("object '{object}': only secrets are known")));
            };
            let fields = key_values(rest)?;
            if let Some(data) = fields.get("data") {
                return Ok(Passphrases::one(data.as_bytes()));
            }
            if let Some(file) = fields.get("file") {
                return read_secret(file);
            }
        }
        Ok(Passphrases::default())
    }
}

fn read_secret(file: &str) -> Result<Passphrases, Failure> {
    let mut bytes = std::fs::read(file).map_err(|e| Failure::new(format!("open '{file}': {e}")))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(Passphrases::one(bytes))
}

/// A file name as it is, or with the protocol that means the same.
fn plain_name(name: &str) -> Result<String, Failure> {
    if let Some(rest) = name.strip_prefix("file:") {
        return Ok(rest.to_owned());
    }
    let protocol = name.split_once("://").map(|(protocol, _)| protocol);
    match protocol {
        Some(protocol) if protocol.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') => {
            Err(Failure::new(format!("'{name}': Unknown protocol '{protocol}'")))
        }
        _ => Ok(name.to_owned()),
    }
}

/// `driver=qcow2,file.filename=…` and what else can be in such a list.
fn image_options(list: &str, options: &mut OpenOptions) -> Result<String, Failure> {
    let mut path = None;
    for (key, value) in key_values(list)? {
        match key.as_str() {
            "driver" => options.format = Some(kind(&value)?),
            "file.filename" | "filename" => path = Some(value),
            "file.driver" if value == "file" || value == "host_device" => {}
            "encrypt.key-secret" | "encrypt.format" | "key-secret" => {}
            "backing.driver" => options.backing_format = Some(kind(&value)?),
            _ => return Err(Failure::new(format!("--image-opts: '{key}={value}' is not known"))),
        }
    }
    path.ok_or_else(|| Failure::new("--image-opts: file.filename is missing"))
}

/// `a=b,c=d`, where `,,` stands for a comma in a value.
pub fn key_values(list: &str) -> Result<BTreeMap<String, String>, Failure> {
    let mut pairs = BTreeMap::new();
    let marked = list.replace(",,", "\0");
    for part in marked.split(',').filter(|part| !part.is_empty()) {
        let part = part.replace('\0', ",");
        let (key, value) = part.split_once('=').unwrap_or((&part, "on"));
        pairs.insert(key.trim().to_owned(), value.to_owned());
    }
    Ok(pairs)
}

/// All `-o` options together.
pub fn all_options(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut all = BTreeMap::new();
    for list in given {
        all.extend(key_values(list)?);
    }
    Ok(all)
}

/// Whether somebody wants to know which options there are.
pub fn asks_for_help(given: &[String]) -> bool {
    given.iter().any(|list| list.split(',').any(|option| option == "help" || option == "?"))
}

/// A format by its name.
pub fn kind(name: &str) -> Result<FormatKind, Failure> {
    FormatKind::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = FormatKind::ALL.iter().map(|kind| kind.name()).collect();
        Failure::new(format!("Unknown file format '{name}' (known: {})", known.join(", ")))
    })
}

fn apply_cache(options: &mut OpenOptions, mode: &str) -> Result<(), Failure> {
    match mode {
        "writeback" | "writethrough" => {}
        "none" | "directsync" => options.direct = true,
        "unsafe" => options.unsafe_cache = true,
        _ => return Err(Failure::new(format!("Invalid cache option: {mode}"))),
    }
    Ok(())
}

impl Named {
    /// Opens for reading.
    pub fn read(&self) -> Result<Image, Failure> {
        Ok(Image::open(Path::new(&self.path), &self.options)?)
    }

    /// Opens for writing. Only as `qemu-img` a format is found out for that.
    pub fn write(&self, persona: Persona) -> Result<Image, Failure> {
        self.write_with(persona, |_| {})
    }

    /// The same, with other options.
    pub fn write_with(
        &self,
        persona: Persona,
        change: impl FnOnce(&mut OpenOptions),
    ) -> Result<Image, Failure> {
        let mut options = OpenOptions { write: true, ..self.options.clone() };
        if options.format.is_none() && persona == Persona::QemuImg {
            options.format = Some(self.probed()?);
        }
        if options.format.is_none() {
            let guess = self.probed()?;
            return Err(Failure::new(format!(
                "say which format '{}' has (it looks like -f {guess}): formats are not guessed for writing",
                self.path,
                guess = guess.name()
            )));
        }
        change(&mut options);
        Ok(Image::open(Path::new(&self.path), &options)?)
    }

    /// What the contents look like.
    pub fn probed(&self) -> Result<FormatKind, Failure> {
        let options = OpenOptions {
            format: None,
            without_contents: true,
            backing: BackingPolicy::Ignore,
            share: true,
            ..OpenOptions::default()
        };
        Ok(Image::open(Path::new(&self.path), &options)?.kind())
    }
}
