//! `start`: the waiting first process becomes the program.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::conversation::Conversation;
use super::delete;
use crate::error::{Context, Error, Result};
use crate::hooks;
use crate::seccomp::Filter;
use crate::state::{Status, Store};
use crate::sys::socket::Channel;

/// Starts a created container; a program that cannot be executed is an error.
pub fn start(store: &Store, id: &str) -> Result<()> {
    let entry = store.find(id)?;
    let state = entry.state()?;
    let status = entry.status(&state);
    if status != Status::Created {
        return Err(not_created(id, status));
    }
    let spec = entry.config()?;
    let process = spec.process.clone().ok_or_else(|| Error::config("process", "is missing"))?;
    // Of two who start at once only one gets to rename the socket.
    let taken = entry.start_socket().with_extension("taken");
    match std::fs::rename(entry.start_socket(), &taken) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(not_created(id, Status::Running));
        }
        Err(e) => return Err(e).during(|| "take the start socket"),
    }
    let directory = File::open(entry.directory()).during(|| "open the state directory")?;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .during(|| "make a socket")?;
    let address = SocketAddrUnix::new(socket_path(&directory, "start.taken"))
        .during(|| "name the start socket")?;
    connect(&socket, &address).during(|| "connect to the waiting container")?;
    let channel = Channel::from_fd(socket);
    let filter = match &spec.linux.seccomp {
        Some(profile) if profile.listener_path.is_some() => {
            Some(Filter::of(profile, store.root())?)
        }
        _ => None,
    };
    let mut talk = Conversation {
        channel: &channel,
        spec: &spec,
        process: &process,
        state: &state,
        listener: filter.as_ref().and_then(Filter::listener),
        master: None,
    };
    let result = talk.run();
    let _ = std::fs::remove_file(&taken);
    // A container that fails to start, or one of whose hooks fails, is stopped.
    let state_now = state.public(Status::Running);
    result
        .and_then(|_| hooks::run("poststart", &spec.hooks.poststart, &state_now))
        .inspect_err(|_| delete::end(&state))
}

fn not_created(id: &str, status: Status) -> Error {
    Error::State {
        id: id.to_owned(),
        status: status.name(),
        wanted: "only a created container can be started",
    }
}

/// A socket's path by way of its directory's descriptor.
pub fn socket_path(directory: &File, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())
}
