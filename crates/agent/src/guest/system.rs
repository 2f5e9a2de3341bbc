//! What is asked of a system that boots by itself: whether it is up, folders of the host, its
//! networks, to switch itself off.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guise_agent::protocol::{Interface, Mount, Source, Wiring};
use rustix::mount::{MountFlags, mount};

use super::session::DEFAULT_PATH;
use super::{files, network};

/// How often it is looked for what must come.
pub const LOOK: Duration = Duration::from_millis(50);
/// A system that says nothing of itself is taken to be up after this.
const SILENCE: Duration = Duration::from_secs(30);
/// Between questions to a systemd that does not answer yet.
const PAUSE: Duration = Duration::from_millis(300);

/// A program of the system's.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    if let Some((key, value)) = DEFAULT_PATH.split_once('=') {
        command.env_clear().env(key, value);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Has the system load a module of its kernel. Whether that helped shows where it is needed.
pub fn load_module(name: &str) {
    let _ = program("modprobe").args(["-q", name]).status();
}

/// Asks the system to end.
pub fn power_off() -> io::Result<()> {
    let (name, arguments) =
        if is_systemd() { ("systemctl", &["poweroff"][..]) } else { ("poweroff", &[][..]) };
    // The server takes its end, as that of every child.
    let started = program(name).args(arguments).spawn().map(drop);
    started.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
}

fn is_systemd() -> bool {
    fs::read("/proc/1/comm").is_ok_and(|name| name == b"systemd\n")
}

/// Returns when it is up: systemd says so; elsewhere somebody can log in, or is.
pub fn await_it() -> io::Result<()> {
    let begun = Instant::now();
    loop {
        if is_systemd() {
            if systemd_is_up()? {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        } else if somebody_has_a_terminal() || begun.elapsed() > SILENCE {
            return Ok(());
        } else {
            std::thread::sleep(LOOK);
        }
    }
}

/// Waits, if it answers at all, until systemd has done what it was to do at its start, whether
/// that went well or not.
fn systemd_is_up() -> io::Result<bool> {
    let mut ask = program("systemctl");
    ask.args(["is-system-running", "--wait"]).stdout(Stdio::piped());
    let said = match ask.output() {
        Ok(output) => output.stdout,
        // Nobody can be asked.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let up: [&[u8]; 4] = [b"running", b"degraded", b"maintenance", b"stopping"];
    Ok(up.contains(&said.trim_ascii_end()))
}

/// Whether a program has a terminal of its own: a shell, or what asks who wants one.
fn somebody_has_a_terminal() -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    processes.flatten().any(|process| {
        let name = process.file_name();
        let number = name.to_str().and_then(|name| name.parse::<u32>().ok());
        let of_itself = fs::read_to_string(process.path().join("stat"));
        number.is_some_and(|number| number != 1) && of_itself.is_ok_and(|text| has_terminal(&text))
    })
}

/// What a process's `stat` says of its terminal.
fn has_terminal(stat: &str) -> bool {
    // Its name may have anything in it.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    rest.split_whitespace().nth(4).is_some_and(|terminal| terminal != "0")
}

/// Gives addresses to interfaces that the system has left off: nobody in it knows of networks.
pub fn connect(wiring: &Wiring) -> io::Result<()> {
    let is_off = |interface: &&Interface| network::is_off(&interface.mac);
    let off: Vec<Interface> = wiring.interfaces.iter().filter(is_off).cloned().collect();
    if off.is_empty() {
        return Ok(());
    }
    network::set_up(&off)?;
    files::name_resolvers(&wiring.resolvers)
}

/// Mounts folders of the host where the system has not.
pub fn mount_all(mounts: &[Mount]) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for wanted in mounts {
        let Source::Share(tag) = &wanted.source else {
            return Err(io::Error::other(format!(
                "{}: it is no folder of the host",
                wanted.target
            )));
        };
        if !is_mounted(&table, tag, &wanted.target) {
            mount_folder(tag, wanted).map_err(|error| {
                io::Error::new(error.kind(), format!("mounting {}: {error}", wanted.target))
            })?;
        }
    }
    Ok(())
}

fn mount_folder(tag: &str, wanted: &Mount) -> io::Result<()> {
    fs::create_dir_all(Path::new(&wanted.target))?;
    let flags = if wanted.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    Ok(mount(tag, &wanted.target, "virtiofs", flags, None)?)
}

fn is_mounted(table: &str, tag: &str, target: &str) -> bool {
    table.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(tag)
            && fields.next().is_some_and(|place| unescaped(place) == target.as_bytes())
            && fields.next() == Some("virtiofs")
    })
}

/// The kernel writes blanks and the like in octal.
fn unescaped(field: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let [first, after @ ..] = rest {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let value =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_and_mounts_are_read_from_the_kernels_tables() {
        assert!(has_terminal("12 (sh) S 1 12 12 1088 12 4194304"));
        assert!(!has_terminal("12 (a) 1 (b) S 1 12 12 0 -1 4194304"));
        assert!(!has_terminal("") && !has_terminal("12 (a) S"));
        let table = "mount0 /srv virtiofs rw 0 0\nmount1 /a\\040b virtiofs ro 0 0\n";
        assert!(is_mounted(table, "mount0", "/srv") && is_mounted(table, "mount1", "/a b"));
        assert!(!is_mounted(table, "mount1", "/srv") && !is_mounted(table, "mount2", "/x"));
        assert_eq!(unescaped("a\\9b\\04"), b"a\\9b\\04");
    }

    #[test]
    fn a_folder_of_the_guests_own_is_none_of_the_hosts() {
        let wanted = Mount {
            source: Source::Memory { bytes: 0 },
            target: "/somewhere".to_owned(),
            read_only: false,
        };
        assert!(mount_all(&[wanted]).is_err());
    }
}
