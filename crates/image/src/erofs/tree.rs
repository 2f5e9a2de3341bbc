//! The merged root file system in memory: all but the contents of files.

use std::collections::{BTreeMap, HashSet};

use super::data::FileData;
use super::format::xattr_bytes;
use crate::error::LayerError;
use crate::layer::path::{Meaning, check_xattr, components, meaning};
use crate::tar::{Device, Entry, Kind, Time};

/// Index into the tree's nodes.
pub type NodeId = u32;

pub const ROOT: NodeId = 0;

/// How many symbolic links one path may lead through, as in the kernel.
const MAX_LINKS: u32 = 40;

pub struct Node {
    pub content: Content,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Encoded for the image.
    pub xattrs: Box<[u8]>,
    /// Of a directory: the layer that made it, or that last put something into it.
    layer: u32,
}

pub enum Content {
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    File(FileData),
    Symlink(Box<[u8]>),
    Character(Device),
    Block(Device),
    Fifo,
}

pub struct Tree {
    nodes: Vec<Node>,
    layer: u32,
    /// Names that this layer gave to what is no directory, by their directories. A file has
    /// several names when it is linked, and those of lower layers stay theirs.
    named: HashSet<(NodeId, Box<[u8]>)>,
    limit: u64,
}

impl Tree {
    pub fn new(limit: u64) -> Self {
        let root = Node::directory(0);
        Self { nodes: vec![root], layer: 0, named: HashSet::new(), limit }
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What follows is a layer of its own.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
        self.named.clear();
    }

    /// Applies one entry of the current layer. `store` is called for a file,
    /// and stores what the archive has for it.
    pub fn apply(
        &mut self,
        entry: &Entry,
        store: impl FnOnce(&Entry) -> Result<FileData, LayerError>,
    ) -> Result<(), LayerError> {
        let path = &entry.path;
        let parts = components(path)?;
        for (key, _) in &entry.xattrs {
            check_xattr(key, path)?;
        }
        let Some((last, parents)) = parts.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(LayerError::hostile(path, "would replace the root: refused"));
            }
            return self.describe(ROOT, entry);
        };
        let meaning = meaning(last, path)?;
        if meaning == Meaning::Ignored {
            return Ok(());
        }
        let parent = self.directory_or_make(parents, path)?;
        match meaning {
            Meaning::Ignored => Ok(()),
            Meaning::Opaque => {
                self.prune(parent);
                Ok(())
            }
            Meaning::Whiteout(gone) => {
                self.white_out(parent, gone);
                Ok(())
            }
            Meaning::Plain(last) => self.plain(entry, parent, last, store),
        }
    }

    fn plain(
        &mut self,
        entry: &Entry,
        parent: NodeId,
        last: &[u8],
        store: impl FnOnce(&Entry) -> Result<FileData, LayerError>,
    ) -> Result<(), LayerError> {
        let path = &entry.path;
        let content = match &entry.kind {
            Kind::Directory => {
                let existing = self.child(parent, last).filter(|id| self.is_directory(*id));
                let id = match existing {
                    Some(id) => id,
                    None => {
                        let layer = self.layer;
                        self.add(parent, last, Node::directory(layer))?
                    }
                };
                self.nodes[id as usize].layer = self.layer;
                return self.describe(id, entry);
            }
            Kind::Hardlink(target) => {
                let id = self.find(&components(target)?, path)?.ok_or_else(|| {
                    LayerError::hostile(path, "is a hard link to a file that is nowhere")
                })?;
                if self.is_directory(id) {
                    return Err(LayerError::hostile(
                        path,
                        "is a hard link to a directory: refused",
                    ));
                }
                self.insert(parent, last, id);
                return Ok(());
            }
            Kind::File => Content::File(store(entry)?),
            Kind::Symlink(target) => {
                if target.is_empty() || target.contains(&0) {
                    return Err(LayerError::hostile(path, "is a link to nowhere: refused"));
                }
                Content::Symlink(target.as_slice().into())
            }
            Kind::Character(Device { major: 0, minor: 0 }) => {
                return Err(LayerError::hostile(
                    path,
                    "is device 0:0, which overlayfs takes for a whiteout: refused",
                ));
            }
            Kind::Character(device) => Content::Character(*device),
            Kind::Block(device) => Content::Block(*device),
            Kind::Fifo => Content::Fifo,
        };
        let layer = self.layer;
        let id = self.add(parent, last, Node { content, ..Node::directory(layer) })?;
        self.describe(id, entry)
    }

    fn describe(&mut self, id: NodeId, entry: &Entry) -> Result<(), LayerError> {
        let node = &mut self.nodes[id as usize];
        node.mode = entry.mode & 0o7777;
        node.uid = entry.uid;
        node.gid = entry.gid;
        node.mtime = entry.mtime;
        node.xattrs = xattr_bytes(&entry.xattrs, &entry.path)?;
        Ok(())
    }

    fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.node(id).content, Content::Directory(_))
    }

    fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(parent).content {
            Content::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// Whether the current layer has put something there, or something into it.
    fn is_of_this_layer(&self, parent: NodeId, name: &[u8], id: NodeId) -> bool {
        if self.is_directory(id) {
            self.node(id).layer == self.layer
        } else {
            self.named.contains(&(parent, name.into()))
        }
    }

    fn insert(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        if !self.is_directory(id) {
            self.named.insert((parent, name.into()));
        }
        if let Content::Directory(children) = &mut self.nodes[parent as usize].content {
            children.insert(name.into(), id);
        }
    }

    fn add(&mut self, parent: NodeId, name: &[u8], node: Node) -> Result<NodeId, LayerError> {
        let id = NodeId::try_from(self.nodes.len())
            .ok()
            .filter(|id| u64::from(*id) < self.limit)
            .ok_or(LayerError::TooMany { limit: self.limit })?;
        self.nodes.push(node);
        self.insert(parent, name, id);
        Ok(id)
    }

    /// Finds or makes the directory of these components.
    fn directory_or_make(&mut self, parts: &[&[u8]], path: &[u8]) -> Result<NodeId, LayerError> {
        let mut links = 0;
        let mut stack = vec![ROOT];
        self.walk(&mut stack, parts, path, true, &mut links)?;
        Ok(stack.last().copied().unwrap_or(ROOT))
    }

    /// Goes along components from the directory on top of the stack. Links of
    /// this layer lead on, within the root; whatever a lower layer has in the
    /// place of a directory makes way for one, as in an overlay. False if
    /// something is missing and must not be made.
    fn walk(
        &mut self,
        stack: &mut Vec<NodeId>,
        parts: &[&[u8]],
        path: &[u8],
        make: bool,
        links: &mut u32,
    ) -> Result<bool, LayerError> {
        for part in parts {
            if *part == b".." {
                // Only links have these; the root's parent is the root.
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let here = stack.last().copied().unwrap_or(ROOT);
            let next = match self.child(here, part) {
                Some(id) if self.is_directory(id) => id,
                Some(id) if self.is_of_this_layer(here, part, id) => {
                    let Content::Symlink(target) = &self.node(id).content else {
                        return Err(LayerError::hostile(
                            path,
                            "is below something that is no directory",
                        ));
                    };
                    *links += 1;
                    if *links > MAX_LINKS {
                        return Err(LayerError::hostile(path, "leads through too many links"));
                    }
                    let target = target.clone();
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let inner: Vec<&[u8]> = target
                        .split(|&c| c == b'/')
                        .filter(|part| !part.is_empty() && *part != b".")
                        .collect();
                    if !self.walk(stack, &inner, path, make, links)? {
                        return Ok(false);
                    }
                    continue;
                }
                _ if make => {
                    let layer = self.layer;
                    self.add(here, part, Node::directory(layer))?
                }
                _ => return Ok(false),
            };
            if make {
                self.nodes[next as usize].layer = self.layer;
            }
            stack.push(next);
        }
        Ok(true)
    }

    /// Finds what a hard link points at. The last component is not followed.
    fn find(&mut self, parts: &[&[u8]], path: &[u8]) -> Result<Option<NodeId>, LayerError> {
        let Some((last, parents)) = parts.split_last() else { return Ok(Some(ROOT)) };
        let mut stack = vec![ROOT];
        if !self.walk(&mut stack, parents, path, false, &mut 0)? {
            return Ok(None);
        }
        Ok(stack.last().and_then(|dir| self.child(*dir, last)))
    }

    /// Removes what the layers below have under a name.
    fn white_out(&mut self, parent: NodeId, name: &[u8]) {
        let Some(id) = self.child(parent, name) else { return };
        if self.is_of_this_layer(parent, name, id) {
            // This layer has it again, or something in it.
            self.prune(id);
        } else if let Content::Directory(children) = &mut self.nodes[parent as usize].content {
            children.remove(name);
        }
    }

    /// Removes from a directory what no entry of this layer has put there.
    fn prune(&mut self, id: NodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let Content::Directory(children) = &mut self.nodes[id as usize].content else {
                continue;
            };
            let mut children = std::mem::take(children);
            children.retain(|name, child| self.is_of_this_layer(id, name, *child));
            pending.extend(children.values().filter(|child| self.is_directory(**child)));
            self.nodes[id as usize].content = Content::Directory(children);
        }
    }
}

impl Node {
    /// A directory that no entry has described yet.
    fn directory(layer: u32) -> Self {
        Self {
            content: Content::Directory(BTreeMap::new()),
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Box::default(),
            layer,
        }
    }
}
