//! What `guise run`, `create` and `exec` take, and the spec that it makes.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use clap::Args;
use guise_api::{Engine, Guise, InstanceSpec, Mount, Network, Port, Protocol, Resources, Restart};

use crate::Failure;
use crate::image::parse_size;

/// How `run` and `create` are used, as words say it that stand for several things.
macro_rules! usage {
    ($command:literal) => {
        concat!(
            "guise ",
            $command,
            " [OPTIONS] IMAGE [PROGRAM [ARGUMENT]...]\n       guise ",
            $command,
            " [OPTIONS] --disk FILE [PROGRAM [ARGUMENT]...]\n       guise ",
            $command,
            " [OPTIONS] --rootfs DIR [PROGRAM [ARGUMENT]...]"
        )
    };
}

/// Make an instance of an image and start it
#[derive(Args)]
#[command(override_usage = usage!("run"), after_help = "Examples:
  guise run -it debian:12 sh
  guise run --rm debian:12 true
  guise run -d --name web -v data:/srv -e MODE=fast registry.example/web:1
  guise run --rm -v data:/data ./app.wasm first second
  guise run -it --disk debian.qcow2 --ssh-key ~/.ssh/id_ed25519.pub -p 2222:22
  guise run --rm --disk debian.qcow2 -e MODE=fast sh -c 'uname -r; echo $MODE'
  guise run -d --name sys --as vm debian-vm
  guise run -d --name batch --cpus 1.5 --cpu-weight 50 --cpuset 0,2-3 -m 1G debian:12 ./work
  guise run -it --as vm --rootfs ./debian-root
  guise run --rm --timeout 60 debian:12 sh -c 'might take for ever'
  guise run --explain debian:12")]
pub struct Run {
    /// Keep running in the background, and print the instance's id
    #[arg(short, long)]
    pub detach: bool,
    /// Say which guise the instance would get, and why; make nothing
    #[arg(long)]
    pub explain: bool,
    /// Keys that leave the instance running and go
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,
    #[command(flatten)]
    pub options: Options,
}

/// Make an instance without starting it
#[derive(Args)]
#[command(override_usage = usage!("create"))]
pub struct Create {
    #[command(flatten)]
    pub options: Options,
}

#[derive(Args)]
pub struct Options {
    /// What to run it as: auto, container, microvm (with a kernel of Guise's), vm (an image that has
    /// a kernel and boots by itself) or wasm
    #[arg(long = "as", value_name = "GUISE", default_value = "auto", value_parser = parse_guise)]
    guise: Guise,
    /// A disk image, of any format, that boots by itself, as a VM, in place of IMAGE; it is not
    /// written. A program that is named runs when the system is up, which then ends with it
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// A folder with a root file system, in place of IMAGE. It is copied into the image store, and
    /// stays as it is
    #[arg(long, value_name = "DIR", conflicts_with = "disk")]
    rootfs: Option<PathBuf>,
    /// What cloud-init is to do in a VM
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// Public keys that may log in to a VM over ssh, by its cloud-init
    #[arg(long, value_name = "FILE")]
    ssh_key: Vec<PathBuf>,
    /// What executes a machine: auto, kvm or soft
    #[arg(long, default_value = "auto", value_parser = parse_engine)]
    engine: Engine,
    /// Keep the program's input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove the instance when it has ended
    #[arg(long = "rm")]
    pub remove: bool,
    /// What to call it [default: made up]
    #[arg(long)]
    pub name: Option<String>,
    /// How many processors; a part of one is a limit (0.5), and machines have whole ones to share it
    #[arg(long, value_name = "N")]
    cpus: Option<f64>,
    /// Its share of processors that others want too, from 1 to 10000 [default: 100]; twice as much
    /// gets twice as much
    #[arg(long, value_name = "N")]
    cpu_weight: Option<u64>,
    /// The host's processors that it runs on (0,2-3)
    #[arg(long, value_name = "LIST")]
    cpuset: Option<String>,
    /// How much memory (suffixes K, M, G, T)
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// How many processes
    #[arg(long, value_name = "N")]
    pids_limit: Option<u64>,
    /// How much may be written to the root file system [default: 10G for machines, and no limit
    /// for containers, which only root's can have]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    disk_size: Option<u64>,
    /// A variable of the environment; without a value, this shell's
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Variables from a file, one on each line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Mount a volume or a path of this host
    #[arg(short, long = "volume", value_name = "SOURCE:TARGET[:ro]")]
    volumes: Vec<String>,
    /// Lead a port of this host inside
    #[arg(short, long = "publish", value_name = "[ADDRESS:]PORT:PORT[/udp]")]
    ports: Vec<String>,
    /// auto, none, host, user (outwards through this user's own sockets), or the name of a
    /// network of instances, which may be said beside one of these
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// The program's working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Who the program runs as
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// What the instance calls itself [default: its id]
    #[arg(long)]
    hostname: Option<String>,
    /// Instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Start it again when it ends: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no", value_parser = parse_restart)]
    restart: Restart,
    /// Nothing can be written to the root file system
    #[arg(long)]
    read_only: bool,
    /// The signal that asks it to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds that it then has
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u32>,
    /// End it when it has run for so long; its exit code is 124 then
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// A label
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
    /// Whether to fetch the image: missing, always, never
    #[arg(long, default_value = "missing", value_parser = ["missing", "always", "never"])]
    pub pull: String,
    /// What to run (debian:12, registry.example/app:1, ./app.wasm), unless that is --disk or
    /// --rootfs, and the program and its arguments [default: the image's; a VM's whole system]; no
    /// options follow
    #[arg(required_unless_present_any = ["disk", "rootfs"], trailing_var_arg = true, value_name = "WORDS")]
    words: Vec<String>,
}

impl Options {
    pub fn spec(&self) -> Result<InstanceSpec, Failure> {
        let mut env = Vec::new();
        for file in &self.env_file {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
            let lines = text.lines().map(str::trim);
            env.extend(lines.filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned));
        }
        env.extend(self.env.iter().cloned());
        let mounts: Result<Vec<Mount>, Failure> =
            self.volumes.iter().map(|said| parse_mount(said)).collect();
        let ports: Result<Vec<Port>, Failure> =
            self.ports.iter().map(|said| parse_port(said)).collect();
        let (network, join) = networks(&self.network)?;
        let labels = self.labels.iter().map(|label| {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            (key.to_owned(), value.to_owned())
        });
        let (image, guise) = match (&self.disk, &self.rootfs, self.guise) {
            (None, None, guise) => (image(self.image_name())?, guise),
            // What ends so is a folder.
            (None, Some(folder), guise) => {
                (format!("{}/", absolute(folder)?.trim_end_matches('/')), guise)
            }
            (Some(disk), _, Guise::Auto | Guise::Vm) => (absolute(disk)?, Guise::Vm),
            (Some(_), _, other) => {
                let why = format!("--disk is for --as vm, not for --as {}", other.name());
                return Err(Failure::usage(why));
            }
        };
        for (option, is_said) in
            [("--user-data", self.user_data.is_some()), ("--ssh-key", !self.ssh_key.is_empty())]
        {
            if is_said && guise != Guise::Vm {
                return Err(Failure::usage(format!("{option} is for --as vm")));
            }
        }
        Ok(InstanceSpec {
            image,
            guise,
            user_data: self
                .user_data
                .as_deref()
                .map(|file| read_text("--user-data", file))
                .transpose()?,
            ssh_keys: ssh_keys(&self.ssh_key)?,
            engine: self.engine,
            entrypoint: self.entrypoint.clone().map(|program| vec![program]),
            command: self.program(),
            env: with_values(env),
            user: self.user.clone(),
            workdir: self.workdir.clone(),
            hostname: self.hostname.clone(),
            tty: self.tty,
            stdin: self.interactive,
            resources: Resources {
                cpus: self.cpus,
                cpu_weight: self.cpu_weight,
                cpuset: self.cpuset.clone(),
                memory_bytes: self.memory,
                processes: self.pids_limit,
                disk_bytes: self.disk_size,
            },
            read_only: self.read_only,
            mounts: mounts?,
            network,
            join,
            ports: ports?,
            restart: self.restart,
            remove_on_exit: self.remove,
            stop_signal: self.stop_signal.clone(),
            stop_seconds: self.stop_timeout,
            timeout_seconds: self.timeout,
            labels: labels.collect(),
            ..InstanceSpec::default()
        })
    }
}

impl Options {
    /// As it was said; nothing where a disk or a folder was.
    pub fn image_name(&self) -> &str {
        match self.has_image() {
            true => self.words.first().map_or("", String::as_str),
            false => "",
        }
    }

    /// Beside a disk or a folder there is none: what would be its name is the program's.
    fn has_image(&self) -> bool {
        self.disk.is_none() && self.rootfs.is_none()
    }

    fn program(&self) -> Vec<String> {
        let image = usize::from(self.has_image());
        self.words.iter().skip(image).cloned().collect()
    }
}

/// An image's name, or the absolute path of a program: what begins like a path, or ends like a
/// program and is there.
fn image(said: &str) -> Result<String, Failure> {
    let is_file = said.ends_with(".wasm") && Path::new(said).is_file();
    if !said.starts_with(['/', '.']) && !is_file {
        return Ok(said.to_owned());
    }
    absolute(Path::new(said))
}

fn absolute(path: &Path) -> Result<String, Failure> {
    let bad = |why: &str| Failure::usage(format!("{}: {why}", path.display()));
    let path = std::path::absolute(path).map_err(|error| bad(&error.to_string()))?;
    path.to_str().map(str::to_owned).ok_or_else(|| bad("its path is not UTF-8"))
}

/// More than this no `cloud-init` takes.
const LONGEST_TEXT: u64 = 1 << 20;

fn read_text(option: &str, file: &Path) -> Result<String, Failure> {
    let bad = |why: String| Failure::usage(format!("{option} {}: {why}", file.display()));
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(LONGEST_TEXT + 1).read_to_string(&mut text))
        .map_err(|error| bad(error.to_string()))?;
    match text.len() as u64 > LONGEST_TEXT {
        true => Err(bad("it is longer than 1 MiB".to_owned())),
        false => Ok(text),
    }
}

/// The keys in files, one on each line.
fn ssh_keys(files: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let mut keys = Vec::new();
    for file in files {
        let text = read_text("--ssh-key", file)?;
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let kind = line.split_whitespace().next().unwrap_or_default();
            if !["ssh-", "ecdsa-", "sk-"].iter().any(|known| kind.starts_with(known)) {
                return Err(Failure::usage(format!(
                    "--ssh-key {}: it has no public keys (a file like ~/.ssh/id_ed25519.pub has)",
                    file.display()
                )));
            }
            keys.push(line.to_owned());
        }
    }
    Ok(keys)
}

/// Variables without a value get this process's, or are left out.
fn with_values(env: Vec<String>) -> Vec<String> {
    env.into_iter()
        .filter_map(|entry| {
            if entry.contains('=') {
                return Some(entry);
            }
            std::env::var(&entry).ok().map(|value| format!("{entry}={value}"))
        })
        .collect()
}

/// Run one more program in a running instance
#[derive(Args)]
pub struct Exec {
    /// Run it in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Pass input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// A variable of the environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Its working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Who it runs as
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Keys that leave it running and go
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,
    pub name: String,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Exec {
    pub fn request(&self, rows: u16, columns: u16) -> guise_api::Exec {
        guise_api::Exec {
            command: self.command.clone(),
            env: with_values(self.env.clone()),
            user: self.user.clone(),
            workdir: self.workdir.clone(),
            tty: self.tty,
            stdin: self.interactive,
            rows,
            columns,
        }
    }
}

fn parse_guise(text: &str) -> Result<Guise, String> {
    match text {
        "auto" => Ok(Guise::Auto),
        "container" => Ok(Guise::Container),
        "microvm" => Ok(Guise::Microvm),
        "vm" => Ok(Guise::Vm),
        "wasm" => Ok(Guise::Wasm),
        _ => Err("it is auto, container, microvm, vm or wasm".to_owned()),
    }
}

fn parse_engine(text: &str) -> Result<Engine, String> {
    match text {
        "auto" => Ok(Engine::Auto),
        "kvm" => Ok(Engine::Kvm),
        "soft" => Ok(Engine::Soft),
        _ => Err("it is auto, kvm or soft".to_owned()),
    }
}

/// The way outwards, and the named network.
fn networks(said: &[String]) -> Result<(Network, Option<String>), Failure> {
    let (mut outwards, mut join) = (None, None);
    for text in said {
        let twice = match text.as_str() {
            "auto" => outwards.replace(Network::Auto).is_some(),
            "none" => outwards.replace(Network::None).is_some(),
            "host" => outwards.replace(Network::Host).is_some(),
            "user" => outwards.replace(Network::User).is_some(),
            name => join.replace(name.to_owned()).is_some(),
        };
        if twice {
            return Err(Failure::usage(format!(
                "--network {text}: there is one named network at the most, and one of auto, none, \
                 host and user"
            )));
        }
    }
    Ok((outwards.unwrap_or_default(), join))
}

fn parse_restart(text: &str) -> Result<Restart, String> {
    match text.split_once(':') {
        None if text == "no" => Ok(Restart::No),
        None if text == "on-failure" => Ok(Restart::OnFailure(None)),
        None if matches!(text, "always" | "unless-stopped") => Ok(Restart::Always),
        Some(("on-failure", most)) => most
            .parse()
            .map(|most| Restart::OnFailure(Some(most)))
            .map_err(|_| format!("{most:?} is no number of restarts")),
        _ => Err("it is no, on-failure[:N], always or unless-stopped".to_owned()),
    }
}

/// `SOURCE:TARGET[:ro]`; a source with a slash or dot at its beginning is a path here.
fn parse_mount(said: &str) -> Result<Mount, Failure> {
    let bad = |why: &str| Failure::usage(format!("--volume {said}: {why}"));
    let mut parts = said.split(':');
    let (source, target) = match (parts.next(), parts.next()) {
        (Some(source), Some(target)) if !source.is_empty() && !target.is_empty() => {
            (source, target)
        }
        _ => return Err(bad("it is SOURCE:TARGET or SOURCE:TARGET:ro")),
    };
    let read_only = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(bad("after the target comes ro, rw or nothing")),
    };
    let source = if source.starts_with(['/', '.', '~']) {
        let path = std::path::absolute(source).map_err(|error| bad(&error.to_string()))?;
        let path = path.to_str().ok_or_else(|| bad("its path is not UTF-8"))?;
        path.to_owned()
    } else {
        source.to_owned()
    };
    Ok(Mount { source, target: target.to_owned(), read_only })
}

/// `[ADDRESS:]HOST:INSIDE[/PROTOCOL]`, with an IPv6 address in brackets.
fn parse_port(said: &str) -> Result<Port, Failure> {
    let bad = |why: &str| Failure::usage(format!("--publish {said}: {why}"));
    let (rest, protocol) = match said.rsplit_once('/') {
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some(_) => return Err(bad("the protocol is tcp or udp")),
        None => (said, Protocol::Tcp),
    };
    let (rest, inside) = rest.rsplit_once(':').ok_or_else(|| bad("it is PORT:PORT"))?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            (address.parse().map_err(|_| bad("its address is none"))?, host)
        }
        None => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), rest),
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    match (port(host), port(inside)) {
        (Some(host), Some(inside)) => Ok(Port { address, host, inside, protocol }),
        _ => Err(bad("ports are numbers from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_stands_in_place_of_an_image() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            run: Run,
        }
        let spec = |words: &[&str]| {
            let line = <Line as clap::Parser>::try_parse_from([&["run"], words].concat());
            line.ok().and_then(|line| line.run.options.spec().ok())
        };
        let spec_of = |words: &[&str]| {
            let spec = spec(words).unwrap();
            (spec.image, spec.command.join(" "))
        };
        let says = |image: &str, command: &str| (image.to_owned(), command.to_owned());
        assert_eq!(spec_of(&["box:1", "ls", "-l"]), says("box:1", "ls -l"));
        // What is not said before the image is the program's.
        assert_eq!(spec_of(&["box:1", "--rm", "-l"]), says("box:1", "--rm -l"));
        assert!(spec(&["--no-such-option", "box:1"]).is_none());
        assert_eq!(spec_of(&["--disk", "/d", "ls", "-l"]), says("/d", "ls -l"));
        assert_eq!(spec_of(&["--disk", "/d", "-e", "A=1", "env"]), says("/d", "env"));
        assert_eq!(spec_of(&["--disk", "/d"]), says("/d", ""));
        assert_eq!(spec_of(&["--rootfs", "/r/", "ls"]), says("/r/", "ls"));
        assert_eq!(spec(&["--as", "vm", "--rootfs", "/r"]).unwrap().folder(), Some("/r/".as_ref()));
        assert!(spec(&["--rootfs", "/r", "--disk", "/d"]).is_none());
        assert!(spec(&[]).is_none() && spec(&["--as", "microvm", "--disk", "/d"]).is_none());
    }

    #[test]
    fn mounts_ports_and_policies_as_people_write_them() {
        let mount = parse_mount("data:/srv:ro").ok().unwrap();
        assert_eq!((mount.volume(), mount.read_only), (Some("data"), true));
        assert_eq!(parse_mount("/tmp:/tmp").ok().unwrap().volume(), None);
        for bad in ["data", ":/x", "a:/b:rx", "a:/b:ro:z"] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
        let port = parse_port("8080:80").ok().unwrap();
        assert_eq!((port.host, port.inside, port.protocol), (8080, 80, Protocol::Tcp));
        let port = parse_port("[::1]:53:5353/udp").ok().unwrap();
        assert_eq!((port.address, port.protocol), ("::1".parse().unwrap(), Protocol::Udp));
        for bad in ["80", "0:80", "80:80/icmp", "x:1:2", "70000:1"] {
            assert!(parse_port(bad).is_err(), "{bad}");
        }
        let said = |words: &[&str]| {
            networks(&words.iter().map(ToString::to_string).collect::<Vec<_>>()).ok()
        };
        assert_eq!(said(&[]), Some((Network::Auto, None)));
        assert_eq!(said(&["lab", "none"]), Some((Network::None, Some("lab".to_owned()))));
        assert_eq!(said(&["lab", "other"]), None);
        assert_eq!(parse_restart("on-failure:3"), Ok(Restart::OnFailure(Some(3))));
        assert!(parse_restart("sometimes").is_err());
    }
}
