//! Goes through the stages and instructions of a Containerfile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use guise_container::rootfs::path::clean;
use guise_image::progress::Progress;
use guise_image::spec::{Config, Descriptor, Manifest, Platform, media};
use guise_image::{Digest, Image, Limits, Name, Pull, Session, Store};

use crate::containerfile::{Command, Containerfile, Instruction, Stage, Step, Transfer};
use crate::error::{Error, IoContext, Result};
use crate::fetch;
use crate::mounted::Mounted;
use crate::place::{Placer, Rights};
use crate::run::Run;
use crate::stage::State;
use crate::transfer::{Copy, Inline};
use crate::tree::{self, Selected, Tree};
use crate::{users, words};

/// Begins the names of the leases that keep the cache.
const CACHE: &str = "build-cache:";

/// The network that commands have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// The host's own.
    #[default]
    Host,
    /// Only themselves.
    None,
}

/// Where what commands print goes.
#[derive(Debug, Clone, Default)]
pub enum Output {
    /// To standard error.
    #[default]
    Shown,
    /// Nowhere, but for the end of what a failing one said.
    Kept,
    /// To somebody who takes it.
    To(Arc<dyn Sink>),
}

/// Takes what commands print, as it comes.
pub trait Sink: std::fmt::Debug + Send + Sync {
    fn take(&self, bytes: &[u8]);
}

/// What to build and how.
#[derive(Debug, Default)]
pub struct Build {
    /// The directory that `COPY` reads.
    pub context: PathBuf,
    pub containerfile: PathBuf,
    /// The names that the image gets.
    pub tags: Vec<Name>,
    pub arguments: BTreeMap<String, String>,
    /// A stage other than the last.
    pub target: Option<String>,
    pub no_cache: bool,
    /// Fetch base images even if the store has them.
    pub pull: bool,
    pub network: Network,
    pub limits: Limits,
    pub output: Output,
    /// The `guise` binary, whose `oci` runs the containers.
    pub runtime: PathBuf,
    /// Set to end the build.
    pub interrupted: Arc<AtomicBool>,
}

/// Forgets what earlier builds kept; a collection then removes it.
pub fn forget_cache(store: &Store) -> Result<()> {
    Ok(store.release_all(CACHE)?)
}

impl Build {
    /// The Containerfile of a context, where none is said.
    #[must_use]
    pub fn containerfile_of(context: &Path) -> PathBuf {
        let all = ["Containerfile", "Dockerfile"].map(|name| context.join(name));
        all.iter().find(|path| path.exists()).unwrap_or(&all[0]).clone()
    }

    /// Builds the image and names it.
    pub fn run(&self, store: &Store, progress: &dyn Progress) -> Result<Descriptor> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NeedsRoot);
        }
        let text = fs::read(&self.containerfile).at("reading", &self.containerfile)?;
        let file = Containerfile::parse(&String::from_utf8_lossy(&text))?;
        // In a thread of its own: the mounts it makes are seen by it and what it
        // starts only, and end with it.
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| -> Result<Descriptor> {
                guise_container::namespaces::own_mounts()?;
                let session = store.session()?;
                let tree = Tree::context(&self.context, &self.containerfile)?;
                let globals = BTreeMap::new();
                let built = Vec::new();
                Builder { build: self, file: &file, session, progress, tree, globals, built }.run()
            });
            match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

struct Builder<'a> {
    build: &'a Build,
    file: &'a Containerfile,
    session: Session<'a>,
    progress: &'a dyn Progress,
    tree: Tree,
    /// `ARG`s before the first `FROM`.
    globals: BTreeMap<String, Option<String>>,
    /// Stages that have been built, by number.
    built: Vec<Option<State>>,
}

impl Builder<'_> {
    fn run(mut self) -> Result<Descriptor> {
        for (name, default) in &self.file.globals {
            let lookup = |name: &str| self.globals.get(name).cloned().flatten();
            let value = match (self.build.arguments.get(name), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(
                    words::expand(default, self.file.escape, &lookup).map_err(Error::Refused)?,
                ),
                (None, None) => None,
            };
            self.globals.insert(name.clone(), value);
        }
        let target = match &self.build.target {
            None => self.file.stages.len() - 1,
            Some(name) => self
                .stage_called(name, self.file.stages.len())
                .ok_or_else(|| Error::refused(format!("there is no stage {name:?}")))?,
        };
        let wanted = self.needed_for(target);
        let total: usize = wanted.iter().map(|i| self.file.stages[*i].steps.len() + 1).sum();
        let mut count = 0;
        for index in 0..=target {
            if !wanted.contains(&index) {
                self.built.push(None);
                continue;
            }
            let stage = &self.file.stages[index];
            let state = self.stage(stage, &mut count, total)?;
            self.built.push(Some(state));
        }
        self.warn_of_unused();
        let Some(Some(state)) = self.built.pop() else {
            return Err(Error::refused("the target was not built"));
        };
        let descriptor = self.save(&state)?.descriptor;
        for tag in &self.build.tags {
            self.session.set_reference(tag, &descriptor)?;
        }
        Ok(descriptor)
    }

    /// The stage of a name or number, among those before `end`.
    fn stage_called(&self, name: &str, end: usize) -> Option<usize> {
        let lower = name.to_ascii_lowercase();
        let stages = &self.file.stages[..end];
        stages
            .iter()
            .position(|s| s.name.as_deref() == Some(&lower))
            .or_else(|| name.parse().ok().filter(|n| *n < end))
    }

    /// The stages that one is built from.
    fn needed_for(&self, target: usize) -> BTreeSet<usize> {
        let mut needed = BTreeSet::from([target]);
        for index in (0..=target).rev() {
            if !needed.contains(&index) {
                continue;
            }
            let stage = &self.file.stages[index];
            let from = stage.steps.iter().filter_map(|step| match &step.instruction {
                Instruction::Copy(transfer) => transfer.from.as_deref(),
                _ => None,
            });
            let base = self.stage_called(&stage.base, index).filter(|_| !is_number(&stage.base));
            let sources = from.filter_map(|name| self.stage_called(name, index));
            let more: Vec<usize> = base.into_iter().chain(sources).collect();
            needed.extend(more);
        }
        needed
    }

    fn warn_of_unused(&self) {
        let declared = |name: &str| {
            self.file.globals.iter().any(|(n, _)| n == name)
                || self.file.stages.iter().flat_map(|s| &s.steps).any(|s| match &s.instruction {
                    Instruction::Arg(list) => list.iter().any(|(n, _)| n == name),
                    _ => false,
                })
        };
        for name in self.build.arguments.keys() {
            if !declared(name) && !name.to_ascii_lowercase().ends_with("_proxy") {
                self.progress.note(&format!("no ARG takes the build argument {name}"));
            }
        }
    }

    fn stage(&self, stage: &Stage, count: &mut usize, total: usize) -> Result<State> {
        let in_step = |line: usize, step: &str, e: Error| Error::Step {
            line,
            step: step.chars().take(100).collect(),
            source: Box::new(e),
        };
        *count += 1;
        self.progress.note(&format!("[{count}/{total}] FROM {}", stage.base));
        let text = format!("FROM {}", stage.base);
        let mut state = self.base(stage).map_err(|e| in_step(stage.line, &text, e))?;
        for step in &stage.steps {
            if self.build.is_interrupted() {
                return Err(Error::Interrupted);
            }
            *count += 1;
            self.progress.note(&format!("[{count}/{total}] {}", step.text));
            self.step(&mut state, step).map_err(|e| in_step(step.line, &step.text, e))?;
        }
        Ok(state)
    }

    /// What a stage begins with.
    fn base(&self, stage: &Stage) -> Result<State> {
        let lookup = |name: &str| self.globals.get(name).cloned().flatten();
        let base = words::expand(&stage.base, self.file.escape, &lookup).map_err(Error::Refused)?;
        if let Some(platform) = &stage.platform {
            let platform =
                words::expand(platform, self.file.escape, &lookup).map_err(Error::Refused)?;
            let wanted: Platform = platform.parse().map_err(Error::Refused)?;
            if !Platform::host().serves(&wanted) {
                return Err(Error::refused(format!(
                    "this host builds for {}, not for {wanted}",
                    Platform::host()
                )));
            }
        }
        let earlier = self.stage_called(&base, self.built.len()).filter(|_| !is_number(&base));
        if let Some(earlier) = earlier.and_then(|i| self.built[i].as_ref()) {
            let mut state = State::of(&self.save(earlier)?);
            state.key = earlier.key;
            return Ok(state);
        }
        if base.eq_ignore_ascii_case("scratch") {
            return Ok(State::of(&self.scratch()?));
        }
        Ok(State::of(&self.fetch_image(&base)?))
    }

    /// An image with nothing in it.
    fn scratch(&self) -> Result<Image> {
        let config = Config::of_layers(Platform::host(), Vec::new());
        let described = self.session.add_json(media::OCI_CONFIG, &config)?;
        let manifest = Manifest::oci(described, Vec::new());
        let descriptor = self.session.add_json(media::OCI_MANIFEST, &manifest)?;
        Ok(Image { descriptor, manifest, config })
    }

    /// An image of the store, fetched if it is not there.
    fn fetch_image(&self, name: &str) -> Result<Image> {
        let name: Name = name.parse()?;
        let pull = Pull { missing: !self.build.pull, ..Pull::default() };
        let target = pull.run(&self.session, &name, self.progress)?;
        Ok(self.session.image_of(&target, &name.to_string(), None)?)
    }

    /// Writes configuration and manifest of what there is so far.
    fn save(&self, state: &State) -> Result<Image> {
        let mut config = state.config.clone();
        config.created = Some(guise_image::clock::now());
        let described = self.session.add_json(media::OCI_CONFIG, &config)?;
        let manifest = Manifest::oci(described, state.layers.clone());
        let descriptor = self.session.add_json(media::OCI_MANIFEST, &manifest)?;
        Ok(Image { descriptor, manifest, config })
    }

    fn step(&self, state: &mut State, step: &Step) -> Result<()> {
        let escape = self.file.escape;
        match &step.instruction {
            Instruction::Run { command, network } => {
                self.command(state, step, command, network.as_deref())
            }
            Instruction::Copy(transfer) => self.transfer(state, step, transfer),
            Instruction::Workdir(path) => {
                let path = clean(&state.absolute(&state.expand(path, escape)?));
                let key = key_of(state, &["WORKDIR", &path]);
                self.files(state, key, &step.text, |mounted| {
                    mounted.root_dir()?.make_dir(&path).map(drop).map_err(Error::from)
                })?;
                state.enter(path);
                Ok(())
            }
            Instruction::Arg(variables) => {
                for variable in variables {
                    state.argument(variable, escape, &self.build.arguments, &self.globals)?;
                }
                state.note(&step.text, true);
                Ok(())
            }
            other => {
                state.configure(other, escape)?;
                state.note(&step.text, true);
                Ok(())
            }
        }
    }

    fn command(
        &self,
        state: &mut State,
        step: &Step,
        command: &Command,
        network: Option<&str>,
    ) -> Result<()> {
        let network = match network {
            None => self.build.network,
            Some("none") => Network::None,
            Some("host" | "default") => Network::Host,
            Some(other) => {
                return Err(Error::refused(format!("there is no network {other:?} (host, none)")));
            }
        };
        let process = state.process();
        let run = Run {
            build: self.build,
            arguments: state.arguments_of(command),
            environment: state.environment(&self.build.arguments),
            user: process.user,
            directory: state.directory(),
            network,
        };
        let mut parts: Vec<&str> = vec!["RUN", &run.user, &run.directory];
        parts.push(if network == Network::None { "none" } else { "host" });
        parts.extend(run.arguments.iter().map(String::as_str));
        parts.push("with");
        parts.extend(run.environment.iter().map(String::as_str));
        let key = key_of(state, &parts);
        self.files(state, key, &step.text, |mounted| run.run(mounted))
    }

    fn transfer(&self, state: &mut State, step: &Step, transfer: &Transfer) -> Result<()> {
        let escape = self.file.escape;
        let expand = |text: &str| state.expand(text, escape);
        let expand_option = |text: &Option<String>| text.as_deref().map(expand).transpose();
        let sources: Vec<String> =
            transfer.sources.iter().map(|s| expand(s)).collect::<Result<_>>()?;
        let destination = expand(&transfer.destination)?;
        let into = destination.ends_with('/') || destination == "." || destination.ends_with("/.");
        let destination = clean(&state.absolute(&destination));
        let (owner, mode) = (expand_option(&transfer.owner)?, expand_option(&transfer.mode)?);
        let mode_bits = match &mode {
            None => None,
            Some(text) => Some(
                u32::from_str_radix(text, 8)
                    .ok()
                    .filter(|m| *m <= 0o7777)
                    .ok_or_else(|| Error::refused(format!("{text:?} is no mode such as 0755")))?,
            ),
        };
        let from = expand_option(&transfer.from)?;
        let other = from.as_deref().map(|name| self.source(name)).transpose()?;
        let tree = other.as_ref().map_or(&self.tree, |(tree, _)| tree);
        let fetched = self.session.scratch()?;
        let mut selected: Vec<Selected> = Vec::new();
        for source in &sources {
            if transfer.adds && fetch::is_url(source) {
                selected.push(fetch::fetch(source, transfer.checksum.as_deref(), fetched.path())?);
            } else {
                selected.extend(tree.select(source)?);
            }
        }
        let inline = self.inline(state, transfer)?;
        let contents = tree::digest(&selected)?.to_string();
        let texts: Vec<String> =
            inline.iter().map(|i| Digest::of(i.text.as_bytes()).to_string()).collect();
        let mut parts = vec![
            if transfer.adds { "ADD" } else { "COPY" },
            &contents,
            &destination,
            if into { "into" } else { "as" },
            owner.as_deref().unwrap_or_default(),
            mode.as_deref().unwrap_or_default(),
            if other.is_some() { "kept" } else { "root" },
        ];
        parts.extend(inline.iter().map(|i| i.name.as_str()));
        parts.extend(texts.iter().map(String::as_str));
        let key = key_of(state, &parts);
        self.files(state, key, &step.text, |mounted| {
            let root = mounted.root_dir()?;
            let owner = match &owner {
                Some(text) => Some(users::owner(&root, text)?),
                // What comes out of an image keeps its owners.
                None if other.is_some() => None,
                None => Some((0, 0)),
            };
            let placer = Placer { root: &root, rights: Rights { owner, mode: mode_bits } };
            let copy = Copy {
                selected: &selected,
                inline: &inline,
                destination: &destination,
                into,
                unpacks: transfer.adds && !sources.iter().any(|s| fetch::is_url(s)),
                limits: self.build.limits,
            };
            copy.run(&placer)
        })
    }

    /// The files that a here-document gives.
    fn inline(&self, state: &State, transfer: &Transfer) -> Result<Vec<Inline>> {
        transfer
            .documents
            .iter()
            .map(|document| {
                let text = if document.expands {
                    let lookup = |name: &str| state.variable(name);
                    words::expand_text(&document.text, self.file.escape, &lookup)
                        .map_err(Error::Refused)?
                } else {
                    document.text.clone()
                };
                Ok(Inline { name: document.name.clone(), text })
            })
            .collect()
    }

    /// What `--from` names: an earlier stage, or an image.
    fn source(&self, name: &str) -> Result<(Tree, Mounted)> {
        let image = match self.stage_called(name, self.built.len()).map(|i| &self.built[i]) {
            Some(Some(state)) => self.save(state)?,
            _ => self.fetch_image(name)?,
        };
        let mounted = self.mount(&image)?;
        Ok((Tree::image(&mounted.root())?, mounted))
    }

    fn mount(&self, image: &Image) -> Result<Mounted> {
        let layers = self.session.layer_dirs(image, self.build.limits, self.progress)?;
        Mounted::new(&self.session, &layers)
    }

    /// A step that changes files: out of the cache, or done and put there.
    fn files(
        &self,
        state: &mut State,
        key: Digest,
        text: &str,
        act: impl FnOnce(&Mounted) -> Result<()>,
    ) -> Result<()> {
        let owner = format!("{CACHE}{key}");
        if !self.build.no_cache
            && let Some(cached) = self.cached(&owner)?
        {
            self.progress.note("   as before");
            let added = cached.manifest.layers.len() > state.layers.len();
            state.layers = cached.manifest.layers;
            state.config.rootfs = cached.config.rootfs;
            state.key = key;
            state.note(text, !added);
            return Ok(());
        }
        let image = self.save(state)?;
        let mounted = self.mount(&image)?;
        act(&mounted)?;
        let layer = self.session.pack_layer(&mounted.changes()?)?;
        drop(mounted);
        state.note(text, layer.is_none());
        if let Some((descriptor, diff_id)) = layer {
            state.layers.push(descriptor);
            state.config.rootfs.diff_ids.push(diff_id);
        }
        state.key = key;
        let image = self.save(state)?;
        self.session.hold(&owner, &image.descriptor)?;
        Ok(())
    }

    /// The image after a step that was done before, if all of it is still there.
    fn cached(&self, owner: &str) -> Result<Option<Image>> {
        let Some(target) = self.session.held(owner)? else { return Ok(None) };
        let Ok(image) = self.session.image_of(&target, "the cache", None) else { return Ok(None) };
        let whole = image.manifest.layers.iter().all(|l| self.session.has_blob(l.digest));
        Ok(whole.then_some(image))
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_digit())
}

/// The key of a step: what was there before, and what it does. Each part has its
/// length with it, so that no two lists read the same.
fn key_of(state: &State, parts: &[&str]) -> Digest {
    let mut text = state.key.to_string();
    for part in parts {
        text.push_str(&format!("\n{}:{part}", part.len()));
    }
    Digest::of(text.as_bytes())
}
