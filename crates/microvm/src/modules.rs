//! Kernel modules: finds them in a kernel's tree and orders them so that each comes after
//! those that it needs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use guise_agent::protocol;

use crate::cpio::Archive;
use crate::files::Kind;
use crate::kernel::KernelError;

/// What a microVM's guest needs of modules, by what it needs them for: every guest the bus,
/// the connection to the host and its root; others a disk of their own, a network, folders
/// of the host. Loading one costs a guest milliseconds, so it loads what it uses.
pub const NEEDED: [(&str, &[&str]); 4] = [
    (
        protocol::MODULES_OF_ALL,
        &["virtio_pci", "vmw_vsock_virtio_transport", "virtio_blk", "erofs", "overlay"],
    ),
    (protocol::MODULES_OF_DISKS, &["ext4"]),
    (protocol::MODULES_OF_NETWORKS, &["virtio_net"]),
    (protocol::MODULES_OF_SHARES, &["virtiofs"]),
];

/// The largest module that is taken.
const LARGEST: u64 = 32 << 20;
/// Trees are this deep at most: a loop of directories cannot be longer.
const DEEPEST: u32 = 16;
/// The mark at the end of a module that is signed.
const SIGNED: &[u8] = b"~Module signature appended~\n";
const SIGNATURE_INFORMATION: usize = 12;

#[derive(Debug)]
pub struct Module {
    pub name: String,
    pub content: Vec<u8>,
}

/// The tree of a kernel's modules, whose folders and files have paths from its top.
pub trait Tree {
    /// What it is called where something is wrong with it.
    fn path(&self) -> PathBuf;
    fn list(&self, folder: &str) -> io::Result<Vec<(String, Kind)>>;
    fn read(&self, file: &str, limit: u64) -> io::Result<Vec<u8>>;
}

/// One in a folder of this host.
impl Tree for &Path {
    fn path(&self) -> PathBuf {
        self.to_path_buf()
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, Kind)>> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            let kind = match entry.file_type()? {
                kind if kind.is_file() => Kind::File,
                kind if kind.is_dir() => Kind::Folder,
                kind if kind.is_symlink() => Kind::Link,
                _ => Kind::Other,
            };
            Ok((entry.file_name().to_string_lossy().into_owned(), kind))
        };
        fs::read_dir(self.join(folder))?.map(entry).collect()
    }

    fn read(&self, file: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(self.join(file))?.take(limit + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > limit {
            true => Err(io::Error::other("it is larger than any module")),
            false => Ok(bytes),
        }
    }
}

/// Modules that are packed, and what is in them.
pub struct Modules<'t> {
    tree: &'t dyn Tree,
    keeps_signatures: bool,
    files: BTreeMap<String, String>,
    builtin: Vec<String>,
    /// Those that wait for what they need.
    pending: Vec<String>,
    collected: Vec<Module>,
}

/// The modules of these names, with all that they need, in the order in which they go in.
/// What is built into the kernel is left out.
pub fn collect(tree: &dyn Tree, names: &[&str]) -> Result<Vec<Module>, KernelError> {
    let mut modules = Modules::find(tree)?;
    for name in names {
        modules.add(name)?;
    }
    Ok(modules.collected())
}

/// Puts modules into an archive, unless they are in it, and a list of what is to be loaded for a
/// purpose, in this order.
pub fn pack(archive: &mut Archive, purpose: &str, modules: Vec<Module>, packed: &mut Vec<String>) {
    let mut list = String::new();
    for module in modules {
        list.push_str(&format!("{}.ko\n", module.name));
        if !packed.contains(&module.name) {
            archive.file(&format!("modules/{}.ko", module.name), 0o600, &module.content);
            packed.push(module.name);
        }
    }
    archive.file(&format!("modules/{purpose}"), 0o600, list.as_bytes());
}

/// A module's name: its file's without endings, with `_` for `-`.
fn name_of(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

impl<'t> Modules<'t> {
    /// Finds out which there are.
    pub fn find(tree: &'t dyn Tree) -> Result<Modules<'t>, KernelError> {
        const BUILTIN: &str = "modules.builtin";
        let builtin = tree.read(BUILTIN, LARGEST).map_err(reading(tree, BUILTIN))?;
        let builtin = String::from_utf8_lossy(&builtin);
        let mut modules = Modules {
            tree,
            keeps_signatures: false,
            files: BTreeMap::new(),
            builtin: builtin.lines().map(|line| name_of(Path::new(line))).collect(),
            pending: Vec::new(),
            collected: Vec::new(),
        };
        modules.look_into("", 0)?;
        Ok(modules)
    }

    /// As they are: a kernel may want to verify them itself.
    pub fn with_signatures(self) -> Modules<'t> {
        Modules { keeps_signatures: true, ..self }
    }

    /// Those that were added, in the order in which they go in.
    pub fn collected(self) -> Vec<Module> {
        self.collected
    }

    fn look_into(&mut self, folder: &str, depth: u32) -> Result<(), KernelError> {
        if depth > DEEPEST {
            return Ok(());
        }
        for (name, kind) in self.tree.list(folder).map_err(reading(self.tree, folder))? {
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            match kind {
                Kind::Folder => self.look_into(&path, depth + 1)?,
                Kind::File if name.contains(".ko") => {
                    self.files.insert(name_of(Path::new(&name)), path);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether there is no need to add it.
    fn has(&self, name: &str) -> bool {
        let is = |other: &String| other == name;
        self.builtin.iter().any(is)
            || self.pending.iter().any(is)
            || self.collected.iter().any(|module| module.name == name)
    }

    /// Whether the kernel has it, in whichever way.
    pub fn know(&self, name: &str) -> bool {
        self.has(name) || self.files.contains_key(name)
    }

    /// Adds a module and all that it needs.
    pub fn add(&mut self, name: &str) -> Result<(), KernelError> {
        if self.has(name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            return Err(KernelError::NoModule { name: name.to_owned(), tree: self.tree.path() });
        };
        let content = read(self.tree, path)?;
        self.pending.push(name.to_owned());
        for need in listed(&content, b"\0depends=", ',') {
            self.add(&need)?;
        }
        for wish in listed(&content, b"\0softdep=pre: ", ' ') {
            // What is asked for by an algorithm's name is in a module that has it too.
            let named = [wish.clone(), format!("{wish}_generic")];
            if let Some(name) = named.iter().find(|name| self.files.contains_key(*name)) {
                self.add(&name.clone())?;
            }
        }
        self.pending.pop();
        let content = if self.keeps_signatures { content } else { unsigned(content) };
        self.collected.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

fn reading(tree: &dyn Tree, what: &str) -> impl FnOnce(io::Error) -> KernelError {
    move |source| KernelError::Read { path: tree.path().join(what), source }
}

fn read(tree: &dyn Tree, path: &str) -> Result<Vec<u8>, KernelError> {
    let bytes = tree.read(path, LARGEST).map_err(reading(tree, path))?;
    if !path.ends_with(".xz") {
        return Ok(bytes);
    }
    let mut unpacked = Bounded(Vec::new());
    lzma_rs::xz_decompress(&mut &bytes[..], &mut unpacked).map_err(|error| {
        KernelError::Unpack { path: tree.path().join(path), reason: error.to_string() }
    })?;
    Ok(unpacked.0)
}

/// Takes no more than a module may have.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.0.len() + bytes.len()) as u64 > LARGEST {
            return Err(io::Error::other("it is larger than any module"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The modules in one of a module's lists, `depends=a,b` for instance, between zeros.
fn listed(module: &[u8], mark: &[u8], separator: char) -> Vec<String> {
    let Some(at) = module.windows(mark.len()).position(|window| window == mark) else {
        return Vec::new();
    };
    let rest = &module[at + mark.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let text = String::from_utf8_lossy(&rest[..end]);
    let names = text.split(separator).filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

/// Leaves a signature out. The image store has verified the module; that the guest does so
/// again would cost it more time than loading it.
fn unsigned(mut module: Vec<u8>) -> Vec<u8> {
    let Some(rest) = module.strip_suffix(SIGNED) else { return module };
    // The last four bytes before the mark are the signature's length.
    let Some(information) = rest.len().checked_sub(SIGNATURE_INFORMATION) else { return module };
    let Some(length) = rest.last_chunk::<4>() else { return module };
    let length = u32::from_be_bytes(*length) as usize;
    if let Some(end) = information.checked_sub(length) {
        module.truncate(end);
    }
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        let directory = tree.path().join("kernel/drivers");
        fs::create_dir_all(&directory).unwrap();
        for (name, needs) in modules {
            let content = format!("ELF\0license=GPL\0depends={needs}\0end");
            fs::write(directory.join(name), content).unwrap();
        }
        tree
    }

    fn names(tree: &Path, wanted: &[&str]) -> Vec<String> {
        let modules = collect(&tree, wanted).unwrap();
        modules.into_iter().map(|module| module.name).collect()
    }

    #[test]
    fn each_comes_after_what_it_needs_and_once() {
        let tree = tree(&[
            ("virtio-net.ko", "net-failover,virtio"),
            ("net_failover.ko", "failover"),
            ("failover.ko", ""),
            ("virtio.ko", ""),
        ]);
        let expected = ["failover", "net_failover", "virtio", "virtio_net"];
        assert_eq!(names(tree.path(), &["virtio_net", "virtio", "ext4"]), expected);
    }

    #[test]
    fn wishes_are_fulfilled_where_they_can_be() {
        let tree = tree(&[
            ("libcrc32c.ko", "\0softdep=pre: crc32c\0"),
            ("crc32c_generic.ko", ""),
            ("other.ko", "\0softdep=pre: gone\0"),
        ]);
        let expected = ["crc32c_generic", "libcrc32c", "other"];
        assert_eq!(names(tree.path(), &["libcrc32c", "other"]), expected);
    }

    #[test]
    fn a_loop_ends_and_a_missing_module_is_named() {
        let tree = tree(&[("a.ko", "b"), ("b.ko", "a"), ("c.ko", "gone")]);
        assert_eq!(names(tree.path(), &["a"]), ["b", "a"]);
        let error = collect(&tree.path(), &["c"]).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }

    #[test]
    fn packed_modules_are_unpacked_and_signatures_left_out() {
        let tree = tree(&[]);
        let mut content = b"ELF\0depends=\0code".to_vec();
        let bare = content.clone();
        content.extend_from_slice(&[0xaa; 77]);
        content.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 77]);
        content.extend_from_slice(SIGNED);
        let mut packed = Vec::new();
        lzma_rs::xz_compress(&mut &content[..], &mut packed).unwrap();
        fs::write(tree.path().join("kernel/m.ko.xz"), packed).unwrap();
        let modules = collect(&tree.path(), &["m"]).unwrap();
        assert_eq!(modules[0].content, bare);
        // A length that is no length.
        let mut broken = [0xff; SIGNATURE_INFORMATION].to_vec();
        broken.extend_from_slice(SIGNED);
        assert_eq!(unsigned(broken.clone()), broken);
    }
}
