//! Arguments of `guise oci`: names and meanings as runc and crun have them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use guise_container::runtime::{CreateOptions, ExecOptions};
use guise_container::spec::{Capabilities, Pids, Process, Resources};
use lexopt::{Arg, Parser, ValueExt};

/// A command line that is not understood.
#[derive(Debug, thiserror::Error)]
#[error("{0}; `guise oci --help` lists commands and options")]
pub struct Usage(String);

impl Usage {
    pub fn new(text: impl Into<String>) -> Self {
        Usage(text.into())
    }
}

impl From<lexopt::Error> for Usage {
    fn from(error: lexopt::Error) -> Self {
        Usage(error.to_string())
    }
}

/// Options before the command.
#[derive(Debug, Default)]
pub struct Global {
    pub root: Option<PathBuf>,
    pub log: Option<PathBuf>,
    pub log_json: bool,
    pub debug: bool,
    pub systemd_cgroup: bool,
    help: bool,
    version: bool,
}

/// Separates the options of the runtime, the command, and the command's own.
pub fn split(args: Vec<OsString>) -> Result<(Global, Option<String>, Vec<OsString>), Usage> {
    let mut parser = Parser::from_args(args);
    let mut global = Global::default();
    loop {
        match parser.next()? {
            Some(Arg::Long("root")) => global.root = Some(parser.value()?.into()),
            Some(Arg::Long("log")) => global.log = Some(parser.value()?.into()),
            Some(Arg::Long("log-format")) => {
                global.log_json = match parser.value()?.string()?.as_str() {
                    "json" => true,
                    "text" => false,
                    other => return Err(Usage(format!("--log-format {other:?}: json or text"))),
                };
            }
            Some(Arg::Long("debug")) => global.debug = true,
            Some(Arg::Long("systemd-cgroup")) => global.systemd_cgroup = true,
            Some(Arg::Long("cgroup-manager")) => {
                global.systemd_cgroup = parser.value()?.string()? == "systemd";
            }
            // Whether this is rootless is found out, not told.
            Some(Arg::Long("rootless")) => drop(parser.optional_value()),
            Some(Arg::Long("log-level")) => {
                global.debug = parser.value()?.string()? == "debug";
            }
            Some(Arg::Long("help") | Arg::Short('h')) => global.help = true,
            Some(Arg::Long("version") | Arg::Short('v')) => global.version = true,
            Some(Arg::Value(command)) => {
                let command = command.string()?;
                return Ok((global, Some(command), parser.raw_args()?.collect()));
            }
            Some(other) => return Err(other.unexpected().into()),
            None => return Ok((global, None, Vec::new())),
        }
    }
}

/// What is only printed: the version, or help.
pub fn information(global: &Global, command: Option<&str>) -> Option<String> {
    if global.version {
        return Some(format!(
            "guise-oci version {}\nspec: {}\n",
            env!("CARGO_PKG_VERSION"),
            guise_container::spec::OCI_VERSION
        ));
    }
    if global.help || matches!(command, None | Some("help")) {
        return Some(HELP.to_owned());
    }
    None
}

const HELP: &str = "\
guise oci: run containers as the OCI runtime specification describes them

usage: guise oci [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND …

  create [-b BUNDLE] [-f CONFIG] [--console-socket SOCK] [--pid-file FILE] [--preserve-fds N]
         [--no-pivot] [--no-new-keyring] ID      make a container that waits to be started
  start ID                                       start it
  run    (options of create) [-d] [--keep] ID    make and start; in the foreground until it ends
  state ID                                       what it is, as JSON
  kill [-a] ID [SIGNAL]                          send a signal (TERM)
  delete [-f] ID                                 delete a stopped container, with -f any
  exec   [-p PROCESS.json] [-t] [-d] [-e K=V] [-u UID[:GID]] [-g GID] [--cwd DIR] [-c CAP]
         [--no-new-privs] [--console-socket SOCK] [--pid-file FILE] [--preserve-fds N]
         [--cgroup PATH] [--ignore-paused] ID [PROGRAM ARG…]
  list [-q] [-f table|json]                      all containers
  ps [-f table|json] ID                          the processes of one
  pause ID, resume ID                            stop and go on
  update [-r FILE|-] [--memory B] [--memory-swap B] [--memory-reservation B] [--pids-limit N]
         [--cpu-share N] [--cpu-quota US] [--cpu-period US] [--cpuset-cpus LIST]
         [--cpuset-mems LIST] [--blkio-weight N] ID
  events [--stats] [--interval 5s] ID            what it uses
  features                                       what this runtime can do
";

/// Options of one command.
#[derive(Debug, Default)]
pub struct Options {
    flags: Vec<&'static str>,
    values: BTreeMap<&'static str, Vec<String>>,
    positional: Vec<String>,
}

/// Long name, short name, whether it takes a value.
type Known = (&'static str, Option<char>, bool);

const CREATE: &[Known] = &[
    ("bundle", Some('b'), true),
    ("config", Some('f'), true),
    ("console-socket", None, true),
    ("pid-file", None, true),
    ("preserve-fds", None, true),
    ("no-pivot", None, false),
    ("no-new-keyring", None, false),
    ("no-subreaper", None, false),
    ("detach", Some('d'), false),
    ("keep", None, false),
];

const EXEC: &[Known] = &[
    ("process", Some('p'), true),
    ("tty", Some('t'), false),
    ("detach", Some('d'), false),
    ("env", Some('e'), true),
    ("user", Some('u'), true),
    ("additional-gids", Some('g'), true),
    ("cwd", None, true),
    ("cap", Some('c'), true),
    ("no-new-privs", None, false),
    ("console-socket", None, true),
    ("pid-file", None, true),
    ("preserve-fds", None, true),
    ("process-label", None, true),
    ("apparmor", None, true),
    ("cgroup", None, true),
    ("ignore-paused", None, false),
    ("no-subreaper", None, false),
];

const UPDATE: &[Known] = &[
    ("resources", Some('r'), true),
    ("memory", None, true),
    ("memory-swap", None, true),
    ("memory-reservation", None, true),
    ("kernel-memory", None, true),
    ("kernel-memory-tcp", None, true),
    ("pids-limit", None, true),
    ("cpu-share", None, true),
    ("cpu-quota", None, true),
    ("cpu-period", None, true),
    ("cpu-rt-period", None, true),
    ("cpu-rt-runtime", None, true),
    ("cpuset-cpus", None, true),
    ("cpuset-mems", None, true),
    ("blkio-weight", None, true),
];

fn known(command: &str) -> &'static [Known] {
    match command {
        "create" | "run" => CREATE,
        "exec" => EXEC,
        "update" => UPDATE,
        "kill" => &[("all", Some('a'), false)],
        "delete" => &[("force", Some('f'), false)],
        "list" => &[("quiet", Some('q'), false), ("format", Some('f'), true)],
        "ps" => &[("format", Some('f'), true)],
        "events" => &[("stats", None, false), ("interval", None, true)],
        _ => &[],
    }
}

impl Options {
    /// Reads a command's arguments; for `exec` everything after the program is
    /// the program's.
    pub fn parse(command: &str, args: Vec<OsString>) -> Result<Self, Usage> {
        let table = known(command);
        let mut options = Options::default();
        let mut parser = Parser::from_args(args);
        loop {
            let found = match parser.next()? {
                Some(Arg::Long(name)) => table.iter().find(|(n, ..)| *n == name),
                Some(Arg::Short(letter)) => table.iter().find(|(_, s, _)| *s == Some(letter)),
                Some(Arg::Value(value)) => {
                    options.positional.push(value.string()?);
                    if command == "exec" {
                        for rest in parser.raw_args()? {
                            options.positional.push(rest.string()?);
                        }
                        return Ok(options);
                    }
                    continue;
                }
                None => return Ok(options),
            };
            match found {
                Some((name, _, true)) => {
                    let value = parser.value()?.string()?;
                    options.values.entry(name).or_default().push(value);
                }
                Some((name, _, false)) => options.flags.push(name),
                None => return Err(Usage(format!("{command} does not have that option"))),
            }
        }
    }

    /// Whether a flag was given.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// The last value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(|v| v.last()).map(String::as_str)
    }

    fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// An argument that is not an option.
    pub fn positional(&self, index: usize) -> Option<&str> {
        self.positional.get(index).map(String::as_str)
    }

    /// The container's name.
    pub fn id(&self) -> Result<&str, Usage> {
        self.positional(0).ok_or_else(|| Usage("the container's id is missing".into()))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Usage> {
        self.value(name)
            .map(|v| v.parse().map_err(|_| Usage(format!("--{name} {v:?} is not a number"))))
            .transpose()
    }

    /// A time such as `500ms`, `5s`, `1m`; a plain number is seconds.
    pub fn duration(&self, name: &str, default: Duration) -> Result<Duration, Usage> {
        let Some(text) = self.value(name) else { return Ok(default) };
        let wrong = || Usage(format!("--{name} {text:?} is not a time such as 5s"));
        let (number, unit) =
            text.find(|c: char| !c.is_ascii_digit()).map_or((text, "s"), |at| text.split_at(at));
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let milliseconds = match unit {
            "ms" => Some(number),
            "s" => number.checked_mul(1000),
            "m" => number.checked_mul(60_000),
            _ => None,
        };
        milliseconds
            .filter(|ms| (1..=86_400_000).contains(ms))
            .map(Duration::from_millis)
            .ok_or_else(wrong)
    }

    /// For `create` and `run`.
    pub fn create(&self) -> Result<CreateOptions, Usage> {
        Ok(CreateOptions {
            id: self.id()?.to_owned(),
            bundle: self.value("bundle").unwrap_or(".").into(),
            config: self.value("config").map(PathBuf::from),
            console_socket: self.value("console-socket").map(PathBuf::from),
            pid_file: self.value("pid-file").map(PathBuf::from),
            preserve_fds: self.preserve_fds()?,
            no_pivot: self.has("no-pivot"),
            no_new_keyring: self.has("no-new-keyring"),
        })
    }

    fn preserve_fds(&self) -> Result<u32, Usage> {
        const MOST: u32 = 1024;
        match self.number("preserve-fds")?.unwrap_or(0) {
            n if n <= MOST => Ok(n),
            n => Err(Usage(format!("--preserve-fds {n} is more than {MOST}"))),
        }
    }

    /// For `exec`.
    pub fn exec(&self, id: String, process: Process) -> Result<ExecOptions, Usage> {
        Ok(ExecOptions {
            id,
            process,
            console_socket: self.value("console-socket").map(PathBuf::from),
            pid_file: self.value("pid-file").map(PathBuf::from),
            detach: self.has("detach"),
            preserve_fds: self.preserve_fds()?,
            cgroup: self.value("cgroup").map(str::to_owned),
            ignore_paused: self.has("ignore-paused"),
        })
    }

    /// The program of an `exec` that is not given as a file.
    pub fn process(&self, mut process: Process) -> Result<Process, Usage> {
        process.args = self.positional.iter().skip(1).cloned().collect();
        if process.args.is_empty() {
            return Err(Usage("the program to run is missing".into()));
        }
        process.terminal = self.has("tty");
        process.env.extend_from_slice(self.all("env"));
        if let Some(cwd) = self.value("cwd") {
            process.cwd = cwd.to_owned();
        }
        if let Some(user) = self.value("user") {
            let (uid, gid) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g)));
            let id = |text: &str| {
                text.parse().map_err(|_| Usage(format!("--user {user:?} is not UID[:GID]")))
            };
            process.user.uid = id(uid)?;
            if let Some(gid) = gid {
                process.user.gid = id(gid)?;
            }
        }
        for group in self.all("additional-gids") {
            let gid = group
                .parse()
                .map_err(|_| Usage(format!("--additional-gids {group:?} is not a number")))?;
            process.user.additional_gids.push(gid);
        }
        if self.has("no-new-privs") {
            process.no_new_privileges = true;
        }
        if !self.all("cap").is_empty() {
            let mut sets = process.capabilities.take().unwrap_or_default();
            add_capabilities(&mut sets, self.all("cap"));
            process.capabilities = Some(sets);
        }
        if let Some(label) = self.value("process-label") {
            process.selinux_label = Some(label.to_owned());
        }
        if let Some(profile) = self.value("apparmor") {
            process.apparmor_profile = Some(profile.to_owned());
        }
        Ok(process)
    }

    /// For `update` without a file.
    pub fn resources(&self, mut resources: Resources) -> Result<Resources, Usage> {
        let memory = &mut resources.memory;
        memory.limit = self.number("memory")?;
        memory.swap = self.number("memory-swap")?;
        memory.reservation = self.number("memory-reservation")?;
        memory.kernel = self.number("kernel-memory")?;
        memory.kernel_tcp = self.number("kernel-memory-tcp")?;
        resources.pids = self.number("pids-limit")?.map(|limit| Pids { limit });
        let cpu = &mut resources.cpu;
        cpu.shares = self.number("cpu-share")?;
        cpu.quota = self.number("cpu-quota")?;
        cpu.period = self.number("cpu-period")?;
        cpu.realtime_period = self.number("cpu-rt-period")?;
        cpu.realtime_runtime = self.number("cpu-rt-runtime")?;
        cpu.cpus = self.value("cpuset-cpus").map(str::to_owned);
        cpu.mems = self.value("cpuset-mems").map(str::to_owned);
        resources.block_io.weight = self.number("blkio-weight")?;
        Ok(resources)
    }
}

fn add_capabilities(sets: &mut Capabilities, names: &[String]) {
    for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
        set.extend_from_slice(names);
    }
}
