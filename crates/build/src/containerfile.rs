//! A Containerfile as stages of instructions.
//!
//! Variables are not replaced here: what they are worth is known only while the
//! instructions are carried out.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::lines::{self, Document, Line};
use crate::words;

/// A whole file.
#[derive(Debug)]
pub struct Containerfile {
    pub escape: char,
    /// `ARG`s before the first stage, which only `FROM` sees.
    pub globals: Vec<Variable>,
    pub stages: Vec<Stage>,
}

/// A name and perhaps a value.
pub type Variable = (String, Option<String>);

/// From one `FROM` to the next.
#[derive(Debug)]
pub struct Stage {
    pub line: usize,
    /// What `AS` calls it, in lower case.
    pub name: Option<String>,
    pub base: String,
    pub platform: Option<String>,
    pub steps: Vec<Step>,
}

/// One instruction and where it stands.
#[derive(Debug)]
pub struct Step {
    pub line: usize,
    /// As it was written, for people and for the image's history.
    pub text: String,
    pub instruction: Instruction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    Arg(Vec<Variable>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Run { command: Command, network: Option<String> },
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    Copy(Transfer),
    Workdir(String),
    User(String),
    Expose(Vec<String>),
    Volume(Vec<String>),
    StopSignal(String),
    Healthcheck(Health),
    Maintainer(String),
}

/// A program with its arguments, or a line for the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Exec(Vec<String>),
    Shell(String),
}

/// `COPY` or `ADD`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transfer {
    /// `ADD`: archives are unpacked, URLs are fetched.
    pub adds: bool,
    pub from: Option<String>,
    pub owner: Option<String>,
    pub mode: Option<String>,
    pub checksum: Option<String>,
    pub sources: Vec<String>,
    pub documents: Vec<Document>,
    pub destination: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    None,
    Check {
        command: Command,
        /// Nanoseconds.
        interval: Option<i64>,
        timeout: Option<i64>,
        start_period: Option<i64>,
        retries: Option<i64>,
    },
}

impl Containerfile {
    pub fn parse(text: &str) -> Result<Self> {
        let (lines, escape) = lines::split(text)?;
        let mut file = Containerfile { escape, globals: Vec::new(), stages: Vec::new() };
        for mut line in lines {
            if line.keyword == "FROM" {
                let stage = stage(&line)?;
                if stage.name.is_some() && file.stages.iter().any(|s| s.name == stage.name) {
                    return Err(Error::syntax(line.number, "two stages have the same name"));
                }
                file.stages.push(stage);
                continue;
            }
            let number = line.number;
            let text = written(&line);
            let instruction = Parser { line: &mut line }.instruction()?;
            match (file.stages.last_mut(), instruction) {
                (Some(stage), instruction) => {
                    stage.steps.push(Step { line: number, text, instruction });
                }
                (None, Instruction::Arg(variables)) => file.globals.extend(variables),
                (None, _) => return Err(Error::syntax(number, "comes before the first FROM")),
            }
        }
        if file.stages.is_empty() {
            return Err(Error::syntax(1, "there is no FROM"));
        }
        Ok(file)
    }
}

fn written(line: &Line) -> String {
    let mut text = line.keyword.clone();
    for (name, value) in &line.flags {
        text.push_str(&format!(" --{name}"));
        if let Some(value) = value {
            text.push_str(&format!("={value}"));
        }
    }
    if !line.rest.is_empty() {
        text.push(' ');
        text.push_str(&line.rest);
    }
    text
}

fn stage(line: &Line) -> Result<Stage> {
    let bad = |why: &str| Error::syntax(line.number, format!("FROM {}: {why}", line.rest));
    let mut platform = None;
    for (name, value) in &line.flags {
        match (name.as_str(), value) {
            ("platform", Some(value)) => platform = Some(value.clone()),
            _ => return Err(bad(&format!("--{name} is not known"))),
        }
    }
    let words = words::split(&line.rest);
    let (base, name) = match &words[..] {
        [base] => (base, None),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => (base, Some(name)),
        _ => return Err(bad("FROM takes an image, and AS and a name")),
    };
    let name = name.map(|n| n.to_ascii_lowercase());
    if let Some(name) = &name {
        let valid = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-.".contains(&c));
        if !valid {
            return Err(bad("a stage's name begins with a letter"));
        }
    }
    Ok(Stage { line: line.number, name, base: base.clone(), platform, steps: Vec::new() })
}

struct Parser<'a> {
    line: &'a mut Line,
}

impl Parser<'_> {
    fn bad(&self, why: impl std::fmt::Display) -> Error {
        Error::syntax(self.line.number, format!("{}: {why}", self.line.keyword))
    }

    /// Takes a flag that has a value.
    fn flag(&mut self, name: &str) -> Result<Option<String>> {
        let Some(at) = self.line.flags.iter().position(|(n, _)| n == name) else {
            return Ok(None);
        };
        match self.line.flags.remove(at).1 {
            Some(value) => Ok(Some(value)),
            None => Err(self.bad(format!("--{name} needs a value"))),
        }
    }

    /// What was not taken is not known.
    fn no_more_flags(&self) -> Result<()> {
        match self.line.flags.first() {
            None => Ok(()),
            Some((name, _)) => Err(self.bad(format!("--{name} is not known"))),
        }
    }

    fn instruction(&mut self) -> Result<Instruction> {
        let instruction = match self.line.keyword.as_str() {
            "ARG" => Instruction::Arg(self.variables()?),
            "ENV" => Instruction::Env(self.pairs()?),
            "LABEL" => Instruction::Label(self.pairs()?),
            "RUN" => {
                let network = self.flag("network")?;
                Instruction::Run { command: self.run()?, network }
            }
            "CMD" => Instruction::Cmd(self.command()?),
            "ENTRYPOINT" => Instruction::Entrypoint(self.command()?),
            "SHELL" => match self.json() {
                Some(shell) if !shell.is_empty() => Instruction::Shell(shell),
                _ => return Err(self.bad("takes a JSON list such as [\"/bin/bash\", \"-c\"]")),
            },
            "COPY" => Instruction::Copy(self.transfer(false)?),
            "ADD" => Instruction::Copy(self.transfer(true)?),
            "WORKDIR" => Instruction::Workdir(self.one()?),
            "USER" => Instruction::User(self.one()?),
            "EXPOSE" => Instruction::Expose(self.several()?),
            "VOLUME" => Instruction::Volume(match self.json() {
                Some(list) => list,
                None => self.several()?,
            }),
            "STOPSIGNAL" => Instruction::StopSignal(self.one()?),
            "HEALTHCHECK" => Instruction::Healthcheck(self.health()?),
            "MAINTAINER" => Instruction::Maintainer(self.one()?),
            "ONBUILD" => {
                return Err(self.bad("is not supported: write the instruction where it applies"));
            }
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(Error::syntax(
                    self.line.number,
                    format!("{other:?} is no instruction"),
                ));
            }
        };
        self.no_more_flags()?;
        Ok(instruction)
    }

    fn one(&self) -> Result<String> {
        if self.line.rest.is_empty() {
            Err(self.bad("needs a value"))
        } else {
            Ok(self.line.rest.clone())
        }
    }

    fn several(&self) -> Result<Vec<String>> {
        self.one().map(|text| words::split(&text))
    }

    /// The JSON form of a list; anything else is not one.
    fn json(&self) -> Option<Vec<String>> {
        serde_json::from_str(&self.line.rest).ok()
    }

    fn command(&self) -> Result<Command> {
        Ok(match self.json() {
            Some(list) => Command::Exec(list),
            None => Command::Shell(self.one()?),
        })
    }

    /// `RUN`, whose here-documents are the shell's, or stand for the script.
    fn run(&mut self) -> Result<Command> {
        let command = self.command()?;
        let documents = std::mem::take(&mut self.line.documents);
        let Command::Shell(mut text) = command else { return Ok(command) };
        if let [only] = &documents[..]
            && text.starts_with("<<")
            && words::split(&text).len() == 1
        {
            return Ok(Command::Shell(only.text.clone()));
        }
        for document in documents {
            text.push_str(&format!("\n{}{}\n", document.text, document.name));
        }
        Ok(Command::Shell(text))
    }

    fn variables(&self) -> Result<Vec<Variable>> {
        self.several()?
            .into_iter()
            .map(|word| {
                let (name, value) = match word.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (word, None),
                };
                if is_name(&name) {
                    Ok((name, value))
                } else {
                    Err(self.bad(format!("{name:?} is no name")))
                }
            })
            .collect()
    }

    /// `NAME=value` words, or the old form `NAME the rest of the line`.
    fn pairs(&self) -> Result<Vec<(String, String)>> {
        let words = self.several()?;
        if !words[0].contains('=') {
            return match self.line.rest.split_once(char::is_whitespace) {
                Some((name, value)) => Ok(vec![(name.to_owned(), value.trim().to_owned())]),
                None => Err(self.bad(format!("{} has no value", words[0]))),
            };
        }
        words
            .into_iter()
            .map(|word| match word.split_once('=') {
                Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
                _ => Err(self.bad(format!("{word:?} is not NAME=VALUE"))),
            })
            .collect()
    }

    fn transfer(&mut self, adds: bool) -> Result<Transfer> {
        let from = if adds { None } else { self.flag("from")? };
        let checksum = if adds { self.flag("checksum")? } else { None };
        let (owner, mode) = (self.flag("chown")?, self.flag("chmod")?);
        let mut sources = match self.json() {
            Some(list) => list,
            None => self.several()?,
        };
        let destination = sources
            .pop()
            .filter(|_| !sources.is_empty())
            .ok_or_else(|| self.bad("needs at least a source and a destination"))?;
        sources.retain(|s| !s.starts_with("<<"));
        let documents = std::mem::take(&mut self.line.documents);
        let several = sources.len() + documents.len() > 1;
        if several && !destination.ends_with('/') && destination != "." {
            return Err(self.bad("with several sources the destination has to end with /"));
        }
        Ok(Transfer { adds, from, owner, mode, checksum, sources, documents, destination })
    }

    fn health(&mut self) -> Result<Health> {
        let mut times = BTreeMap::new();
        for name in ["interval", "timeout", "start-period"] {
            if let Some(text) = self.flag(name)? {
                let time = duration(&text)
                    .ok_or_else(|| self.bad(format!("{text:?} is no duration such as 1m30s")))?;
                times.insert(name, time);
            }
        }
        let retries = match self.flag("retries")? {
            None => None,
            Some(text) => Some(
                text.parse::<u32>().map_err(|_| self.bad(format!("{text:?} is no number")))?.into(),
            ),
        };
        let rest = self.line.rest.clone();
        let (keyword, command) =
            rest.split_once(char::is_whitespace).unwrap_or((rest.as_str(), ""));
        match keyword.to_ascii_uppercase().as_str() {
            "NONE" if command.is_empty() => Ok(Health::None),
            "CMD" => {
                self.line.rest = command.trim_start().to_owned();
                Ok(Health::Check {
                    command: self.command()?,
                    interval: times.get("interval").copied(),
                    timeout: times.get("timeout").copied(),
                    start_period: times.get("start-period").copied(),
                    retries,
                })
            }
            _ => Err(self.bad("takes NONE, or CMD and a command")),
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

/// `1m30s` in nanoseconds.
fn duration(text: &str) -> Option<i64> {
    let mut total: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let factor: i64 = match &after[..unit] {
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(factor)?)?;
        rest = &after[unit..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests;
