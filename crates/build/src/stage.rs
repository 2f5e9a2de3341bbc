//! What is known of an image while its stage is carried out, and the
//! instructions that change only that.

use std::collections::BTreeMap;

use guise_image::spec::{Config, Empty, Healthcheck, History, Process};
use guise_image::{Digest, Image};

use crate::containerfile::{Command, Health, Instruction, Variable};
use crate::error::{Error, Result};
use crate::words;

/// What programs find where an image says nothing.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Build arguments that need no `ARG`.
const WELL_KNOWN: [&str; 8] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
];

pub struct State {
    /// Configuration and layers so far.
    pub config: Config,
    pub layers: Vec<guise_image::spec::Descriptor>,
    /// Stands for all that the files depend on.
    pub key: Digest,
    /// `ARG`s that have been seen, with their values.
    pub arguments: BTreeMap<String, Option<String>>,
    /// `CMD` was set here and not by the base image.
    own_command: bool,
}

impl State {
    pub fn of(image: &Image) -> Self {
        State {
            config: image.config.clone(),
            layers: image.manifest.layers.clone(),
            key: image.manifest.config.digest,
            arguments: BTreeMap::new(),
            own_command: false,
        }
    }

    pub fn process(&self) -> Process {
        self.config.config.clone().unwrap_or_default()
    }

    fn process_mut(&mut self) -> &mut Process {
        self.config.config.get_or_insert_with(Process::default)
    }

    /// The value of a variable: of the environment, or else a build argument.
    pub fn variable(&self, name: &str) -> Option<String> {
        let environment = self.config.config.iter().flat_map(|p| &p.env);
        let found = environment.filter_map(|e| e.split_once('=')).find(|(n, _)| *n == name);
        match found {
            Some((_, value)) => Some(value.to_owned()),
            None => self.arguments.get(name).cloned().flatten(),
        }
    }

    pub fn expand(&self, text: &str, escape: char) -> Result<String> {
        words::expand(text, escape, &|name| self.variable(name)).map_err(Error::Refused)
    }

    /// The environment of a command: the image's, the arguments, and a path.
    pub fn environment(&self, given: &BTreeMap<String, String>) -> Vec<String> {
        let mut environment = self.process().env;
        let has = |list: &[String], name: &str| {
            list.iter().any(|e| e.split_once('=').is_some_and(|(n, _)| n == name))
        };
        if !has(&environment, "PATH") {
            environment.insert(0, format!("PATH={PATH}"));
        }
        for name in WELL_KNOWN {
            if let Some(value) = given.get(name)
                && !has(&environment, name)
            {
                environment.push(format!("{name}={value}"));
            }
        }
        for (name, value) in &self.arguments {
            if let Some(value) = value
                && !has(&environment, name)
            {
                environment.push(format!("{name}={value}"));
            }
        }
        environment
    }

    /// A command as a list of arguments.
    pub fn arguments_of(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(list) => list.clone(),
            Command::Shell(line) => {
                let mut list = self.process().shell;
                if list.is_empty() {
                    list = vec!["/bin/sh".into(), "-c".into()];
                }
                list.push(line.clone());
                list
            }
        }
    }

    /// Where commands run, and relative paths begin.
    pub fn directory(&self) -> String {
        let directory = self.process().working_dir;
        if directory.is_empty() { "/".into() } else { directory }
    }

    /// A path, absolute by way of the working directory.
    pub fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.directory()) }
    }

    /// An `ARG`: its value is the one given for the build, that of the file's
    /// head, or its own.
    pub fn argument(
        &mut self,
        (name, default): &Variable,
        escape: char,
        given: &BTreeMap<String, String>,
        globals: &BTreeMap<String, Option<String>>,
    ) -> Result<()> {
        let value = match (given.get(name), default) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(default)) => Some(self.expand(default, escape)?),
            (None, None) => globals.get(name).cloned().flatten(),
        };
        self.arguments.insert(name.clone(), value);
        Ok(())
    }

    /// Notes a step in the image's history.
    pub fn note(&mut self, text: &str, empty_layer: bool) {
        self.config.history.push(History {
            created: Some(guise_image::clock::now()),
            created_by: Some(text.to_owned()),
            empty_layer,
            ..History::default()
        });
    }

    /// Carries out an instruction that changes no files.
    pub fn configure(&mut self, instruction: &Instruction, escape: char) -> Result<()> {
        match instruction {
            Instruction::Env(pairs) => {
                let pairs = self.expand_pairs(pairs, escape)?;
                let env = &mut self.process_mut().env;
                for (name, value) in pairs {
                    let entry = format!("{name}={value}");
                    let found =
                        env.iter_mut().find(|e| e.split_once('=').is_some_and(|(n, _)| n == name));
                    match found {
                        Some(old) => *old = entry,
                        None => env.push(entry),
                    }
                }
            }
            Instruction::Label(pairs) => {
                let pairs = self.expand_pairs(pairs, escape)?;
                self.process_mut().labels.extend(pairs);
            }
            Instruction::Cmd(command) => {
                self.process_mut().cmd = self.arguments_of(command);
                self.own_command = true;
            }
            Instruction::Entrypoint(command) => {
                self.process_mut().entrypoint = self.arguments_of(command);
                if !self.own_command {
                    // The base's arguments were for the base's program.
                    self.process_mut().cmd.clear();
                }
            }
            Instruction::Shell(shell) => self.process_mut().shell = shell.clone(),
            Instruction::User(user) => self.process_mut().user = self.expand(user, escape)?,
            Instruction::Expose(ports) => {
                for port in ports {
                    let port = self.expand(port, escape)?;
                    for port in words::split(&port) {
                        let port = port_of(&port)
                            .ok_or_else(|| Error::refused(format!("{port:?} is no port")))?;
                        self.process_mut().exposed_ports.insert(port, Empty {});
                    }
                }
            }
            Instruction::Volume(paths) => {
                for path in paths {
                    let path = self.expand(path, escape)?;
                    self.process_mut().volumes.insert(path, Empty {});
                }
            }
            Instruction::StopSignal(signal) => {
                self.process_mut().stop_signal = self.expand(signal, escape)?;
            }
            Instruction::Healthcheck(health) => {
                self.process_mut().healthcheck = Some(self.health(health));
            }
            Instruction::Maintainer(author) => self.config.author = Some(author.clone()),
            Instruction::Arg(_)
            | Instruction::Run { .. }
            | Instruction::Copy(_)
            | Instruction::Workdir(_) => {}
        }
        Ok(())
    }

    fn expand_pairs(
        &self,
        pairs: &[(String, String)],
        escape: char,
    ) -> Result<Vec<(String, String)>> {
        pairs
            .iter()
            .map(|(name, value)| Ok((self.expand(name, escape)?, self.expand(value, escape)?)))
            .collect()
    }

    fn health(&self, health: &Health) -> Healthcheck {
        match health {
            Health::None => Healthcheck { test: vec!["NONE".into()], ..Healthcheck::default() },
            Health::Check { command, interval, timeout, start_period, retries } => {
                let test = match command {
                    Command::Exec(list) => {
                        std::iter::once("CMD".to_owned()).chain(list.iter().cloned()).collect()
                    }
                    Command::Shell(line) => vec!["CMD-SHELL".into(), line.clone()],
                };
                Healthcheck {
                    test,
                    interval: *interval,
                    timeout: *timeout,
                    start_period: *start_period,
                    retries: *retries,
                }
            }
        }
    }

    /// Sets the working directory; the caller makes it.
    pub fn enter(&mut self, path: String) {
        self.process_mut().working_dir = path;
    }
}

/// `80` or `53/udp`, with its protocol.
fn port_of(text: &str) -> Option<String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let valid = ports.split('-').all(|p| p.parse::<u16>().is_ok())
        && matches!(protocol.as_str(), "tcp" | "udp" | "sctp");
    valid.then(|| format!("{ports}/{protocol}"))
}
