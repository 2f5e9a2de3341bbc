//! The loop: frames of the host, ends of children, and what processes read and write.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use guise_agent::protocol::{
    Frame, GUEST, Hello, Kind, MODULES_OF_NETWORKS, ToGuest, ToHost, VERSION,
};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, WaitOptions, WaitStatus};

use super::cgroup::Cgroup;
use super::channel::Channel;
use super::root::MountedRoot;
use super::session::{Port, Session};
use super::sys::ChildSignals;
use super::{files, init, modules, network, root, statistics, sys, system};

/// More than this many processes at once are not started for the host.
const MOST_SESSIONS: usize = 1024;
/// How long the host may take to switch off a guest that is at rest.
const TIME_TO_SWITCH_OFF: Duration = Duration::from_secs(2);

/// Why the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Shutdown,
    Disconnected,
}

pub struct Server {
    channel: Channel,
    children: ChildSignals,
    sessions: BTreeMap<u32, Session>,
    root: Option<MountedRoot>,
    /// Where processes that the host starts are limited.
    cgroup: Option<Cgroup>,
    /// What the host knows this agent by, where it is beside a system of its own.
    secret: Option<Vec<u8>>,
}

/// What a descriptor that `poll` looks at belongs to.
#[derive(Clone, Copy)]
enum Watched {
    Channel,
    Children,
    Session(u32, Port),
}

impl Server {
    pub fn new(channel: Channel) -> io::Result<Self> {
        let children = ChildSignals::open()?;
        let sessions = BTreeMap::new();
        Ok(Server { channel, children, sessions, root: None, cgroup: None, secret: None })
    }

    /// The same beside a system of its own.
    pub fn beside(channel: Channel, secret: Vec<u8>) -> io::Result<Self> {
        Ok(Server { secret: Some(secret), ..Self::new(channel)? })
    }

    pub fn run(&mut self) -> io::Result<End> {
        let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        self.channel.send(
            GUEST,
            &ToHost::Hello(Hello {
                version: VERSION,
                kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
                uptime_ms: uptime.tv_sec as u64 * 1000 + uptime.tv_nsec as u64 / 1_000_000,
                secret: self.secret.clone().unwrap_or_default(),
            }),
        );
        loop {
            self.channel.flush()?;
            // Those that waited for the channel: what comes next need not be about them.
            self.finish_sessions();
            self.channel.flush()?;
            for (watched, ready) in self.wait()? {
                match watched {
                    Watched::Channel if ready.contains(PollFlags::OUT) => self.channel.flush()?,
                    Watched::Channel => {
                        if !self.channel.receive()? {
                            return Ok(End::Disconnected);
                        }
                    }
                    Watched::Children => self.reap(),
                    Watched::Session(number, port) => {
                        if let Some(session) = self.sessions.get_mut(&number) {
                            session.move_data(port, number, &mut self.channel);
                        }
                    }
                }
            }
            while let Some(frame) = self.channel.next_frame()? {
                if self.take(frame)? == Some(End::Shutdown) {
                    return Ok(End::Shutdown);
                }
            }
        }
    }

    /// Waits until something can be done, and says what.
    fn wait(&self) -> io::Result<Vec<(Watched, PollFlags)>> {
        let mut list: Vec<(Watched, BorrowedFd<'_>, PollFlags)> = Vec::new();
        list.push((Watched::Channel, self.channel.fd(), PollFlags::IN));
        if self.channel.has_output() {
            list.push((Watched::Channel, self.channel.fd(), PollFlags::OUT));
        }
        list.push((Watched::Children, self.children.fd().as_fd(), PollFlags::IN));
        for (number, session) in &self.sessions {
            for (port, fd, flags) in session.interests(self.channel.is_busy()) {
                list.push((Watched::Session(*number, port), fd, flags));
            }
        }
        let mut fds: Vec<PollFd<'_>> =
            list.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = list.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((watched, _, _), fd)| (*watched, fd.revents())).collect())
    }

    fn take(&mut self, frame: Frame) -> io::Result<Option<End>> {
        let number = frame.session;
        if frame.kind == Kind::Input {
            if let Some(session) = self.sessions.get_mut(&number) {
                session.input(&frame.payload)?;
                session.move_data(Port::Input, number, &mut self.channel);
            }
            return Ok(None);
        }
        if frame.kind != Kind::Control {
            return Err(io::Error::other("the host sent output"));
        }
        let message = frame.message_to_guest().map_err(io::Error::other)?;
        if let ToGuest::Open(open) = &message {
            self.open(number, open);
            return Ok(None);
        }
        if number != GUEST {
            // A session that has ended may still be spoken to.
            if let Some(session) = self.sessions.get_mut(&number) {
                session.control(&message);
            }
            return Ok(None);
        }
        let result = match message {
            ToGuest::SetUp(set_up) => self.set_up(&set_up),
            ToGuest::SetClock(clock) => init::set_clock(clock),
            ToGuest::Statistics => {
                self.channel.send(GUEST, &ToHost::Statistics(statistics::read()));
                return Ok(None);
            }
            ToGuest::Mount(mounts) if self.secret.is_some() => system::mount_all(&mounts),
            ToGuest::Connect(wiring) if self.secret.is_some() => system::connect(&wiring),
            ToGuest::Shutdown if self.secret.is_some() => system::power_off(),
            ToGuest::Shutdown => {
                let result = self.shut_down().map_err(|error| error.to_string());
                self.channel.send(GUEST, &ToHost::Done(result));
                self.channel.flush_all()?;
                // It switches the machine off when it has read that. A guest that did so now
                // could be gone before, and its answer with it.
                self.channel.await_host(TIME_TO_SWITCH_OFF)?;
                return Ok(Some(End::Shutdown));
            }
            _ => Err(io::Error::other("that is for a session")),
        };
        let result = result.map_err(|error| error.to_string());
        self.channel.send(GUEST, &ToHost::Done(result));
        Ok(None)
    }

    fn open(&mut self, number: u32, open: &guise_agent::protocol::Open) {
        let session = if self.sessions.len() >= MOST_SESSIONS {
            Err(Session::failed("the guest runs as many processes for the host as it can"))
        } else {
            Session::start(open, self.cgroup.as_ref())
        };
        match session {
            Ok(session) => {
                self.channel.send(number, &ToHost::Started { pid: session.pid() });
                self.sessions.insert(number, session);
            }
            Err(exit) => self.channel.send(number, &ToHost::Exited(exit)),
        }
    }

    fn set_up(&mut self, set_up: &guise_agent::protocol::SetUp) -> io::Result<()> {
        if std::process::id() != 1 || self.root.is_some() {
            return Err(io::Error::other("this guest has been set up already"));
        }
        init::set_clock(set_up.clock)?;
        init::add_entropy(&set_up.entropy);
        if !set_up.interfaces.is_empty() {
            modules::load(MODULES_OF_NETWORKS)?;
        }
        network::set_up(&set_up.interfaces)?;
        let root = root::mount_all(&set_up.root)?;
        root.mount_into(&set_up.mounts)?;
        root::enter()?;
        files::write(set_up)?;
        self.cgroup = set_up.processes.map(Cgroup::limited_to).transpose()?;
        root.seal(set_up.root.read_only)?;
        self.root = Some(root);
        Ok(())
    }

    fn shut_down(&mut self) -> io::Result<()> {
        if std::process::id() != 1 {
            return Err(io::Error::other("this is no guest of its own"));
        }
        sys::kill_everybody_else();
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::empty()) {}
        self.root.as_ref().map_or(Ok(()), MountedRoot::rest)
    }

    /// Takes the ends of all children, also of those that lost their parents.
    fn reap(&mut self) {
        self.children.clear();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.ended(pid, status);
        }
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        let pid = pid.as_raw_nonzero().get() as u32;
        if let Some(session) = self.sessions.values_mut().find(|session| session.pid() == pid) {
            session.set_status(status);
        }
    }

    /// Tells of sessions whose process has ended and whose output has been sent.
    fn finish_sessions(&mut self) {
        let channel = &mut self.channel;
        self.sessions.retain(|number, session| {
            let Some(exit) = session.finish(*number, channel) else { return true };
            channel.send(*number, &ToHost::Exited(exit));
            false
        });
    }
}
