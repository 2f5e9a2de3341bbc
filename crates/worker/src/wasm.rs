//! The WebAssembly form: a program in a sandbox of its own, in a worker that is shut in.
//!
//! An image's files are under the program's root as they are under a container's; a bare
//! program has an empty root. What it writes there stays as long as the instance. Volumes are
//! folders beside the root, which the program's library finds by their paths.
//!
//! A program has no user, no processes beside it and no handlers of signals: what would end
//! any other program ends it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guise_container::jail::{Identity, Strangers};
use guise_container::rootfs::path::{RootDir, clean, components, open_host};
use guise_wasm::{End, Folder, Running, StartError, Streams};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, SpecialCodeIndex, Termios, tcgetattr};

use crate::body::{
    Body, BodyError, Exit, Process, Program, Session, Size, Stats, failed, folders_only, system,
    unsupported,
};
use crate::container::own_disk;
use crate::container::root;
use crate::group::{Bounds, Group, TO_COMPILE};
use crate::job::{self, Job, Module, Network};
use crate::place::UPPER;
use crate::{files, jail, terminal};

/// Of a program's file; the largest that are known have a tenth of this.
const LARGEST: u64 = 512 << 20;

const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGABRT: u8 = 6;
const SIGKILL: i32 = 9;
/// SIGCHLD, SIGCONT, SIGURG, SIGWINCH: nothing happens to a program without handlers.
const IGNORED: [i32; 4] = [17, 18, 23, 28];
/// SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
const STOPPING: [i32; 4] = [19, 20, 21, 22];

pub struct Wasm {
    code: Mutex<Vec<u8>>,
    program: Program,
    root: PathBuf,
    mounts: Vec<job::Mount>,
    read_only: bool,
    network: guise_wasm::Network,
    memory: Option<u64>,
    processors: Option<f64>,
    stop_signal: i32,
    terminal: Mutex<Option<Terminal>>,
    running: Mutex<Option<Arc<Running>>>,
    group: Group,
}

/// What its worker is held to: without a limit on its memory a program has none, as others have
/// none. Its part of a processor it keeps to itself.
pub fn bounds(job: &Job) -> Bounds {
    let with_compiler = |bytes: u64| bytes.saturating_add(TO_COMPILE);
    Bounds { memory: job.resources.memory_bytes.map(with_compiler), cpus: None }
}

/// Both sides of a terminal.
struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Wasm {
    /// Makes everything but the program's thread, and shuts this process in. To be called
    /// while it has one thread; `map` has somebody outside map the ids of its new user
    /// namespace. Gives warnings for the user besides.
    pub fn prepare(
        job: &Job,
        module: &Module,
        layers: &[PathBuf],
        group: Group,
        mut map: impl FnMut() -> io::Result<()>,
    ) -> Result<(Wasm, Vec<String>), BodyError> {
        check(job)?;
        let mut warnings = Vec::new();
        let terminal = job.program.terminal.map(Terminal::open).transpose()?;
        let plain = !rustix::process::geteuid().is_root();
        let identity = jail::identity(job);
        let strangers = match &identity {
            Identity::Stranger(strangers) => Some(strangers),
            Identity::Same | Identity::NoStranger(_) => None,
        };
        let has_mounts = !layers.is_empty() || job.resources.disk_bytes.is_some() && !plain;
        if has_mounts {
            root::enter_namespaces(&mut map)?;
        }
        let own = own_disk::folder(job, "program", &mut warnings)?;
        let root = if layers.is_empty() {
            let root = own.join(UPPER);
            fs::create_dir_all(&root).map_err(system(format!("make {}", root.display())))?;
            root
        } else {
            root::mount(job, layers, &own, strangers)?
        };
        make_targets(job, &root, strangers)?;
        let file = match module {
            Module::File(file) => Some(&**file),
            Module::Inside(_) => None,
        };
        let mapped = plain && !layers.is_empty();
        let mut shut_in = jail::of_program(job, &root, file, identity, mapped);
        shut_in.ends_with_parent = group.is_another;
        let entered = shut_in.enter(map).map_err(failed)?;
        warnings.extend(jail::warnings(entered));
        let code = read(module, &root, &job.program)?;
        let wasm = Wasm {
            code: Mutex::new(code),
            program: job.program.clone(),
            root,
            mounts: job.mounts.clone(),
            read_only: job.read_only,
            network: match job.network {
                Network::None => guise_wasm::Network::None,
                Network::User => guise_wasm::Network::Outwards,
                Network::Host => guise_wasm::Network::Host,
            },
            memory: job.resources.memory_bytes,
            processors: job.resources.cpus,
            stop_signal: job.stop_signal,
            terminal: Mutex::new(terminal),
            running: Mutex::default(),
            group,
        };
        Ok((wasm, warnings))
    }

    fn running(&self) -> Result<Arc<Running>, BodyError> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.clone().ok_or(BodyError::NotRunning)
    }

    fn folders(&self) -> Vec<Folder> {
        let root =
            Folder { host: self.root.clone(), guest: "/".to_owned(), read_only: self.read_only };
        let mounts = self.mounts.iter().map(|mount| Folder {
            host: mount.source.clone(),
            guest: clean(&mount.target),
            read_only: mount.read_only,
        });
        [root].into_iter().chain(mounts).collect()
    }

    /// The folder of the host that a path leads to, and the path in it.
    fn place(&self, path: &str) -> Result<(OwnedFd, String), BodyError> {
        let path = clean(path);
        let parts: Vec<&str> = components(&path).collect();
        let below = |folder: &Folder| {
            let own: Vec<&str> = components(&folder.guest).collect();
            parts.starts_with(&own).then_some(own.len())
        };
        let folders = self.folders();
        let (depth, folder) = folders
            .iter()
            .filter_map(|folder| Some((below(folder)?, folder)))
            .max_by_key(|(depth, _)| *depth)
            .ok_or(BodyError::NotRunning)?;
        let place = open_host(&folder.host).map_err(system(format!("open {path}")))?;
        Ok((place, format!("/{}", parts[depth..].join("/"))))
    }

    /// The streams of the program, and the other ends of them.
    fn streams(&self) -> Result<(Streams, Ends), BodyError> {
        let mut terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        let stdin = self.program.stdin;
        let made = match terminal.take() {
            Some(terminal) => terminal.streams(stdin),
            None => pipes(stdin),
        };
        made.map_err(system("make the program's streams"))
    }
}

/// Makes the folders below the root at which others are shown.
fn make_targets(job: &Job, root: &Path, strangers: Option<&Strangers>) -> Result<(), BodyError> {
    let open = || system("open the program's root");
    let folder = RootDir::new(open_host(root).map_err(open())?);
    let make = || job.mounts.iter().try_for_each(|mount| folder.make_dir(&mount.target).map(drop));
    let owner = fs::metadata(root).map_err(open())?.uid();
    // Whose root it is, theirs are the folders.
    match strangers.filter(|strangers| strangers.hold(owner)) {
        Some(strangers) => strangers.acting(make).and_then(|made| made),
        None => make(),
    }
    .map_err(failed)
}

/// Refuses what no WebAssembly program has.
fn check(job: &Job) -> Result<(), BodyError> {
    folders_only(&job.mounts, "a WebAssembly program")?;
    if !job.ports.is_empty() {
        return Err(unsupported(
            "a published port of a WebAssembly program",
            "with --network host it can listen itself",
        ));
    }
    if job.plug.is_some() {
        return Err(unsupported(
            "a WebAssembly program on a network of instances",
            "use --network user or --network host",
        ));
    }
    if !job.program.user.is_empty() || !job.program.cwd.is_empty() {
        return Err(unsupported(
            "a user or a working directory for a WebAssembly program",
            "leave --user and --workdir away: its paths begin at /",
        ));
    }
    Ok(())
}

/// The program's bytes.
fn read(module: &Module, root: &Path, program: &Program) -> Result<Vec<u8>, BodyError> {
    let name = program.argv.first().cloned().unwrap_or_default();
    let opened = match module {
        Module::File(file) => File::open(file),
        Module::Inside(path) => open_host(root).and_then(|root| {
            RootDir::new(root).open(path, OFlags::RDONLY, Mode::empty()).map(File::from)
        }),
    };
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            BodyError::ProgramNotFound(name.clone())
        }
        _ => BodyError::ProgramNotExecutable { program: name.clone(), why: error.to_string() },
    };
    let mut code = Vec::new();
    opened.and_then(|file| file.take(LARGEST + 1).read_to_end(&mut code)).map_err(refused)?;
    if code.len() as u64 > LARGEST {
        let why = format!("it is larger than {} MiB", LARGEST >> 20);
        return Err(BodyError::ProgramNotExecutable { program: name, why });
    }
    Ok(code)
}

/// The ends of a program's streams that are not the program's.
struct Ends {
    stdin: Option<File>,
    stdout: File,
    stderr: Option<File>,
    /// The terminal, where it is one.
    master: Option<OwnedFd>,
}

fn pipes(stdin: bool) -> io::Result<(Streams, Ends)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    let input = if stdin { Some(pipe()?) } else { None };
    let ((stdout, output), (stderr, errors)) = (pipe()?, pipe()?);
    let (input, stdin) = input.unzip();
    let streams = Streams { input, output, errors, terminal: false };
    let ends = Ends {
        stdin: stdin.map(File::from),
        stdout: File::from(stdout),
        stderr: Some(File::from(stderr)),
        master: None,
    };
    Ok((streams, ends))
}

impl Terminal {
    /// To be called where there is a `/dev`.
    fn open(size: Size) -> Result<Terminal, BodyError> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let failed = |error: rustix::io::Errno| system("make a terminal")(error.into());
        let master = rustix::pty::openpt(flags).map_err(failed)?;
        rustix::pty::unlockpt(&master).map_err(failed)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(failed)?;
        terminal::set_size(&master, size)?;
        Ok(Terminal { master, slave })
    }

    fn streams(self, stdin: bool) -> io::Result<(Streams, Ends)> {
        let Terminal { master, slave } = self;
        let input = if stdin { Some(slave.try_clone()?) } else { None };
        let streams = Streams { input, output: slave.try_clone()?, errors: slave, terminal: true };
        let ends = Ends {
            stdin: if stdin { Some(File::from(master.try_clone()?)) } else { None },
            stdout: File::from(master.try_clone()?),
            stderr: None,
            master: Some(master),
        };
        Ok((streams, ends))
    }
}

/// What is typed at a program's terminal. The kernel has nobody to send its signals to.
struct Keyboard {
    input: terminal::Input,
    running: Arc<Running>,
}

impl Keyboard {
    /// The signal that a key stands for.
    fn signal(modes: &Termios, key: u8) -> Option<i32> {
        if !modes.local_modes.contains(LocalModes::ISIG) {
            return None;
        }
        [(SpecialCodeIndex::VINTR, SIGINT), (SpecialCodeIndex::VQUIT, SIGQUIT)]
            .into_iter()
            .find_map(|(index, signal)| (modes.special_codes[index] == key).then_some(signal))
    }
}

impl Write for Keyboard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let modes = tcgetattr(&self.input.0)?;
        let written = self.input.write(bytes)?;
        let signal = bytes[..written].iter().find_map(|key| Keyboard::signal(&modes, *key));
        if let Some(signal) = signal {
            self.running.kill(signal);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The program, to those who wait for it.
struct Handle {
    running: Arc<Running>,
    terminal: Option<OwnedFd>,
}

impl Process for Handle {
    fn signal(&self, signal: i32) -> Result<(), BodyError> {
        if STOPPING.contains(&signal) {
            return Err(unsupported(
                "a signal that stops a WebAssembly program",
                "guise pause holds it where it is",
            ));
        }
        if signal != 0 && !IGNORED.contains(&signal) {
            self.running.kill(signal);
        }
        Ok(())
    }

    fn resize(&self, size: Size) -> Result<(), BodyError> {
        match &self.terminal {
            Some(terminal) => terminal::set_size(terminal, size),
            None => Ok(()),
        }
    }

    fn wait(&self) -> Result<Exit, BodyError> {
        Ok(match self.running.wait() {
            End::Code(code) => Exit::Code(code as u8),
            End::Killed(signal) => Exit::Signal(signal as u8),
            End::Trapped(_) => Exit::Signal(SIGABRT),
            End::OutOfMemory => Exit::OutOfMemory,
        })
    }
}

impl Body for Wasm {
    fn start(&self) -> Result<Session, BodyError> {
        let (streams, ends) = self.streams()?;
        let name = self.program.argv.first().cloned().unwrap_or_default();
        let variable = |entry: &String| {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            (name.to_owned(), value.to_owned())
        };
        let code = std::mem::take(&mut *self.code.lock().unwrap_or_else(PoisonError::into_inner));
        let program = guise_wasm::Program {
            code,
            arguments: self.program.argv.clone(),
            environment: self.program.env.iter().map(variable).collect(),
            folders: self.folders(),
            network: self.network,
            memory: self.memory,
            processors: self.processors,
            streams,
        };
        let running = Running::start(program).map_err(|error| match error {
            StartError::NotExecutable(why) => {
                BodyError::ProgramNotExecutable { program: name, why }
            }
            StartError::Failed { .. } => failed(error),
        })?;
        let running = Arc::new(running);
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(running.clone());
        let typed = ends.stdin.map(|file| match &ends.master {
            Some(_) => {
                let input = terminal::Input(file);
                Box::new(Keyboard { input, running: running.clone() }) as Box<dyn Write + Send>
            }
            None => Box::new(file),
        });
        Ok(Session {
            stdin: typed,
            stdout: Some(Box::new(ends.stdout)),
            stderr: ends.stderr.map(|file| Box::new(file) as Box<dyn Read + Send>),
            process: Arc::new(Handle { running, terminal: ends.master }),
        })
    }

    fn open(&self, _: &Program) -> Result<Session, BodyError> {
        Err(unsupported(
            "a second program in a WebAssembly instance",
            "run it as an instance of its own, with the same volumes",
        ))
    }

    fn pause(&self) -> Result<(), BodyError> {
        self.running()?.pause();
        Ok(())
    }

    fn resume(&self) -> Result<(), BodyError> {
        self.running()?.resume();
        Ok(())
    }

    fn stats(&self) -> Result<Stats, BodyError> {
        self.running()?;
        Ok(Stats { memory_limit: self.memory, processes: Some(1), ..self.group.stats() })
    }

    fn stop(&self, grace: Duration) -> Result<(), BodyError> {
        let running = self.running()?;
        let asks = !grace.is_zero() && !IGNORED.contains(&self.stop_signal);
        running.kill(if asks { self.stop_signal } else { SIGKILL });
        // How it ended is told by who waits for it.
        let _ = running.wait();
        Ok(())
    }

    fn copy_out(&self, path: &str, archive: &mut dyn Write) -> Result<(), BodyError> {
        let (folder, path) = self.place(path)?;
        files::copy_out(folder, &path, archive)
    }

    fn copy_in(&self, path: &str, archive: &mut dyn Read) -> Result<(), BodyError> {
        let (folder, path) = self.place(path)?;
        files::copy_in(folder, &path, archive)
    }

    fn clean_up(&self) -> Result<(), BodyError> {
        // One that could not be started to its end has nothing left.
        if let Ok(running) = self.running() {
            running.kill(SIGKILL);
            let _ = running.wait();
        }
        Ok(())
    }
}
