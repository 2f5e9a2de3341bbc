//! `--control SOCKET`: commands to the running machine, a JSON object a line each, and an
//! answer a line each.
//!
//! A command holds the machine for as long as it takes, so a machine that ends meanwhile
//! waits for it. Clients have a thread each, up to a limit.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guise_machine::Machine;
use guise_virtio::block::Shortage;
use serde::Deserialize;
use serde_json::{Value, json};

use super::devices::Backends;
use crate::Failure;

const LONGEST_LINE: u64 = 64 << 10;
const MOST_CLIENTS: usize = 16;

#[derive(Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
enum Command {
    Status,
    Pause,
    Resume,
    /// Ends the process as Ctrl-A X does.
    Quit,
    PowerButton,
    Stats,
    Devices,
    AddDisk {
        disk: String,
    },
    AddNet {
        net: String,
    },
    Remove {
        name: String,
    },
    Resize {
        name: String,
        size: String,
    },
    Balloon {
        size: String,
    },
    Memory {
        size: String,
    },
    Link {
        name: String,
        up: bool,
    },
    AddForward {
        name: String,
        forward: String,
    },
    RemoveForward {
        name: String,
        forward: String,
    },
}

/// The socket, and the machine that it leads to at the moment.
pub struct Control {
    shared: Arc<Shared>,
    path: PathBuf,
}

struct Shared {
    machine: Mutex<Option<Attached>>,
    backends: Arc<Backends>,
    clients: AtomicUsize,
}

struct Attached {
    machine: Arc<Machine>,
    paused: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Attached>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    pub fn open(path: &Path, backends: Arc<Backends>) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::failed(format!("--control {}: {error}", path.display()))
        };
        // Left behind by a process that was killed: nobody listens there.
        if UnixStream::connect(path)
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        {
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let shared =
            Arc::new(Shared { machine: Mutex::new(None), backends, clients: AtomicUsize::new(0) });
        let weak = Arc::downgrade(&shared);
        shared.backends.set_alarm(move |disk, shortage| {
            // On a thread of its own, because the disk's must not be held up.
            let (shared, disk) = (weak.clone(), disk.to_owned());
            let pause = move || {
                if let Some(shared) = shared.upgrade() {
                    pause_for_space(&shared, &disk, &shortage);
                }
            };
            let thread = std::thread::Builder::new().name("no space".to_owned()).spawn(pause);
            if let Err(error) = thread {
                tracing::error!(%error, "a machine without space on the host is not paused");
            }
        });
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || listen(&listener, &theirs))
            .map_err(failed)?;
        Ok(Control { shared, path: path.to_owned() })
    }

    /// Commands go to this machine from now on.
    pub fn attach(&self, machine: Arc<Machine>) {
        *self.shared.lock() = Some(Attached { machine, paused: false });
    }

    /// The machine has ended. Returns when the command under way is done.
    pub fn detach(&self) {
        self.shared.lock().take();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The host has no space for a disk: the guest waits, rather than see errors.
fn pause_for_space(shared: &Shared, disk: &str, shortage: &Shortage) {
    let mut machine = shared.lock();
    // One of many requests that failed, and the machine has been resumed since.
    if !shortage.lasts() {
        return;
    }
    let Some(attached) = machine.as_mut().filter(|attached| !attached.paused) else { return };
    match attached.machine.pause() {
        Ok(()) => attached.paused = true,
        Err(error) => return eprintln!("guise: {disk} has no space: {error}"),
    }
    eprintln!("guise: {disk} has no space, and the machine is paused; make room and resume it");
}

fn listen(listener: &UnixListener, shared: &Arc<Shared>) {
    for client in listener.incoming().filter_map(Result::ok) {
        if shared.clients.fetch_add(1, Ordering::SeqCst) >= MOST_CLIENTS {
            shared.clients.fetch_sub(1, Ordering::SeqCst);
            let refusal = json!({ "ok": false, "error": "too many clients" });
            let _ = writeln!(&client, "{refusal}");
            continue;
        }
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("control client".to_owned());
        let spawned = thread.spawn(move || {
            serve(&client, &theirs);
            theirs.clients.fetch_sub(1, Ordering::SeqCst);
        });
        if spawned.is_err() {
            shared.clients.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn serve(client: &UnixStream, shared: &Shared) {
    let mut reader = BufReader::new(client);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(length) if length > 0 => {}
            _ => return,
        }
        let whole = line.last() == Some(&b'\n') || (line.len() as u64) < LONGEST_LINE;
        let answer = if whole { answer(&line, shared) } else { Err("the line is too long".into()) };
        let answer = match answer {
            Ok(mut value) => {
                if let Value::Object(map) = &mut value {
                    map.insert("ok".to_owned(), Value::Bool(true));
                }
                value
            }
            Err(error) => json!({ "ok": false, "error": error }),
        };
        if writeln!(&mut &*client, "{answer}").is_err() || !whole {
            return;
        }
    }
}

fn answer(line: &[u8], shared: &Shared) -> Result<Value, String> {
    let command: Command =
        serde_json::from_slice(line).map_err(|error| format!("that is no command: {error}"))?;
    let mut machine = shared.lock();
    let attached = machine.as_mut().ok_or("there is no machine at the moment")?;
    execute(command, attached, &shared.backends)
}

fn execute(
    command: Command,
    attached: &mut Attached,
    backends: &Backends,
) -> Result<Value, String> {
    let machine = &attached.machine;
    let text = |error: guise_machine::MachineError| error.to_string();
    match command {
        Command::Status => {
            let state = if attached.paused { "paused" } else { "running" };
            return Ok(json!({ "state": state, "vcpus": machine.config().vcpus,
                "memory": machine.config().memory }));
        }
        Command::Pause => {
            machine.pause().map_err(text)?;
            attached.paused = true;
        }
        Command::Resume => {
            machine.resume();
            attached.paused = false;
            backends.retry();
        }
        Command::Quit => machine.stopper().leave(),
        Command::PowerButton => machine.press_power_button(),
        Command::Stats => return Ok(statistics(machine, backends)),
        Command::Devices => return Ok(json!({ "devices": backends.list() })),
        Command::AddDisk { disk } => {
            return Ok(json!({ "name": backends.add_disk(&disk, machine)? }));
        }
        Command::AddNet { net } => {
            return Ok(json!({ "name": backends.add_interface(&net, machine)? }));
        }
        Command::AddForward { name, forward } => {
            return Ok(json!({ "address": backends.add_forward(&name, &forward)?.to_string() }));
        }
        Command::RemoveForward { name, forward } => backends.remove_forward(&name, &forward)?,
        Command::Remove { name } => backends.remove(&name, machine)?,
        Command::Resize { name, size } => backends.resize(&name, super::parse_bytes(&size)?)?,
        Command::Balloon { size } => backends.set_balloon(super::parse_bytes(&size)?)?,
        Command::Memory { size } => {
            machine.set_memory(super::parse_bytes(&size)?).map_err(text)?;
        }
        Command::Link { name, up } => backends.set_link(&name, up)?,
    }
    Ok(json!({}))
}

fn statistics(machine: &Machine, backends: &Backends) -> Value {
    let map = |counters: Vec<(String, u64)>| -> Value {
        counters.into_iter().map(|(name, count)| (name, Value::from(count))).collect()
    };
    let (wanted, present) = machine.memory();
    json!({
        "memory": { "wanted": wanted, "present": present },
        "exits": map(machine.exits()),
        "engine": map(machine.engine_statistics()),
        "devices": backends.list(),
        "balloon": backends.balloon_statistics(),
    })
}
