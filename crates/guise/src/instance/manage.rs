//! Commands about instances and volumes that ask one thing and print the answer.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use guise_api::client::{Client, ClientError};
use guise_api::{Ended, Instance, NamedNetwork, NewNetwork, NewVolume, Phase, Volume as ApiVolume};

use super::console::{self, Console};
use super::{Done, escaped, launch, remote};
use crate::Failure;
use crate::print::{Format, Output, whole};

/// Whether a command comes back before what it asks for is done.
#[derive(Args)]
pub struct Waiting {
    /// Come back when it is done [default]
    #[arg(long)]
    wait: bool,
    /// Come back at once
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
}

impl Waiting {
    fn query(&self) -> &'static str {
        if self.no_wait && !self.wait { "&wait=false" } else { "" }
    }
}

#[derive(Subcommand)]
pub enum Manage {
    /// List instances
    Ps {
        /// Those that do not run as well
        #[arg(short, long)]
        all: bool,
        /// Print nothing but ids
        #[arg(short, long)]
        quiet: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Start instances
    Start {
        /// Attach to its output, and pass signals on
        #[arg(short, long)]
        attach: bool,
        /// Pass input on
        #[arg(short, long)]
        interactive: bool,
        #[command(flatten)]
        waiting: Waiting,
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Ask instances to end, and end them when they do not
    Stop {
        /// Seconds until they are ended
        #[arg(short, long, value_name = "SECONDS")]
        time: Option<u32>,
        #[command(flatten)]
        waiting: Waiting,
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Stop instances and start them again
    Restart {
        /// Seconds until they are ended
        #[arg(short, long, value_name = "SECONDS")]
        time: Option<u32>,
        #[command(flatten)]
        waiting: Waiting,
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove instances and what they wrote
    Rm {
        /// Although they run
        #[arg(short, long)]
        force: bool,
        #[command(flatten)]
        waiting: Waiting,
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Send a signal to instances' programs
    Kill {
        #[arg(short, long, default_value = "KILL")]
        signal: String,
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Stop instances where they are
    Pause {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Let paused instances go on
    #[command(visible_alias = "resume")]
    Unpause {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Show everything about instances
    Inspect {
        /// How to print
        #[arg(short, long, value_enum, default_value = "json")]
        output: Format,
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Wait until instances have ended, and print their exit codes
    Wait {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Give an instance another name
    Rename { name: String, to: String },
    /// Tie this terminal to a running instance
    Attach {
        /// Pass no input on
        #[arg(long)]
        no_stdin: bool,
        /// Keys that leave it running and go
        #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
        detach_keys: String,
        name: String,
    },
}

#[derive(Subcommand)]
pub enum Volume {
    /// Make volumes
    Create {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List volumes
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Remove volumes and what is in them
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Subcommand)]
pub enum Network {
    /// Make a network
    Create {
        /// Its addresses: 10.90.1.0/24, say [default: some that are free]
        #[arg(long, value_name = "NETWORK/LENGTH")]
        subnet: Option<String>,
        name: String,
    },
    /// List networks
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Remove networks
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Removes the objects of these names in a collection.
pub async fn remove_each(client: &Client, collection: &str, names: Vec<String>) -> Done {
    let remove = async |name: &str| {
        client.delete(&format!("{collection}/{name}")).await.map(|()| name.to_owned())
    };
    each(names, remove).await
}

/// Does the same to each; goes on after a failure, and fails in the end.
pub async fn each<F>(names: Vec<String>, act: F) -> Done
where
    F: AsyncFn(&str) -> Result<String, ClientError>,
{
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match act(&escaped(&name)).await {
            Ok(said) => println!("{said}"),
            Err(error) => {
                let failure = Failure::from(error);
                eprintln!("guise: {}", failure.message);
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

pub async fn run(command: Manage) -> Done {
    let client = remote::connect()?;
    let of = async |path: String| {
        client.post::<Instance>(&path, &()).await.map(|instance| instance.name)
    };
    let begun = async |path: String, waiting: &Waiting| -> Result<String, ClientError> {
        let instance: Instance = client.post(&path, &()).await?;
        // Else this life has not begun yet.
        if !waiting.no_wait {
            launch::warn(&instance);
        }
        Ok(instance.name)
    };
    let patience =
        |time: Option<u32>| time.map(|seconds| format!("&seconds={seconds}")).unwrap_or_default();
    // With the number of the life that is wanted, so that the request may be repeated.
    let next_life = async |name: &str, restart: bool| -> Result<u64, ClientError> {
        let instance: Instance = client.get(&format!("/instances/{name}")).await?;
        Ok(match restart {
            true => instance.spec.starts.max(instance.status.starts) + 1,
            false => instance.coming_life(),
        })
    };
    match command {
        Manage::Ps { all, quiet, output } => list(&client, all, quiet, &output).await,
        Manage::Start { attach, interactive, names, .. } if attach || interactive => {
            let [name] = names.as_slice() else {
                return Err(Failure::usage("only one instance can be attached to"));
            };
            start_attached(&client, name, interactive).await
        }
        Manage::Start { names, waiting, .. } => {
            let wait = waiting.query();
            each(names, async |name| {
                let life = next_life(name, false).await?;
                begun(format!("/instances/{name}/start?life={life}{wait}"), &waiting).await
            })
            .await
        }
        Manage::Stop { time, waiting, names } => {
            let query = patience(time) + waiting.query();
            each(names, async |name| of(format!("/instances/{name}/stop?{query}")).await).await
        }
        Manage::Restart { time, waiting, names } => {
            let query = patience(time) + waiting.query();
            each(names, async |name| {
                let life = next_life(name, true).await?;
                begun(format!("/instances/{name}/restart?life={life}{query}"), &waiting).await
            })
            .await
        }
        Manage::Rm { force, waiting, names } => {
            let wait = waiting.query();
            each(names, async |name| {
                client.delete(&format!("/instances/{name}?force={force}{wait}")).await?;
                Ok(name.to_owned())
            })
            .await
        }
        Manage::Kill { signal, names } => {
            let signal = escaped(&signal);
            each(names, async |name| {
                let path = format!("/instances/{name}/kill?signal={signal}");
                client.post_once::<()>(&path, &()).await.map(|()| name.to_owned())
            })
            .await
        }
        Manage::Pause { names } => {
            each(names, async |name| of(format!("/instances/{name}/pause")).await).await
        }
        Manage::Unpause { names } => {
            each(names, async |name| of(format!("/instances/{name}/resume")).await).await
        }
        Manage::Inspect { output, names } => {
            let mut found = Vec::new();
            for name in names {
                let path = format!("/instances/{}", escaped(&name));
                found.push(client.get::<Instance>(&path).await?);
            }
            whole(&found, output)?;
            Ok(ExitCode::SUCCESS)
        }
        Manage::Wait { names } => {
            each(names, async |name| {
                let ended: Ended = client.post(&format!("/instances/{name}/wait"), &()).await?;
                Ok(ended.exit_code.to_string())
            })
            .await
        }
        Manage::Rename { name, to } => {
            let path = format!("/instances/{}/rename?to={}", escaped(&name), escaped(&to));
            client.post_once::<Instance>(&path, &()).await?;
            Ok(ExitCode::SUCCESS)
        }
        Manage::Attach { no_stdin, detach_keys, name } => {
            let detach = console::parse_keys(&detach_keys)?;
            let instance: Instance = client.get(&format!("/instances/{}", escaped(&name))).await?;
            let stdin = instance.spec.stdin && !no_stdin;
            console::check_terminal(instance.spec.tty, stdin)?;
            attach(&client, &instance, "start=false", stdin, detach).await
        }
    }
}

async fn attach(
    client: &Client,
    instance: &Instance,
    query: &str,
    stdin: bool,
    detach: Vec<u8>,
) -> Done {
    let path = format!("/instances/{}/attach?{query}&stdin={stdin}", instance.id);
    let session = client.session(&path).await?;
    let console = Console { terminal: instance.spec.tty, stdin, detach };
    launch::finish(console::attend(session, console).await?)
}

async fn start_attached(client: &Client, name: &str, interactive: bool) -> Done {
    let instance: Instance = client.get(&format!("/instances/{}", escaped(name))).await?;
    let stdin = instance.spec.stdin && interactive;
    console::check_terminal(instance.spec.tty, stdin)?;
    let (rows, columns) = console::size();
    let life = instance.coming_life();
    let query = format!("start=true&life={life}&past=true&rows={rows}&columns={columns}");
    attach(client, &instance, &query, stdin, console::parse_keys("ctrl-p,ctrl-q")?).await
}

async fn list(client: &Client, all: bool, quiet: bool, output: &Output) -> Done {
    let mut instances: Vec<Instance> = client.list("/instances").await?;
    instances.sort_by(|a, b| a.created.cmp(&b.created));
    if !all {
        instances.retain(|instance| instance.status.phase.is_alive());
    }
    if quiet && output.is_table() {
        for instance in &instances {
            println!("{}", instance.id);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let header = ["ID", "NAME", "IMAGE", "GUISE", "STATUS", "CREATED", "COMMAND"];
    output.print(&instances, &header, |instances| instances.iter().map(row).collect())?;
    Ok(ExitCode::SUCCESS)
}

fn row(instance: &Instance) -> Vec<String> {
    let status = &instance.status;
    let phase = match (status.phase, status.exit_code) {
        (Phase::Exited | Phase::Waiting | Phase::Failed, Some(code)) => {
            format!("{} ({code})", status.phase.name())
        }
        // It stands still until the host has room.
        (Phase::Running, _) if status.without_space => "no space".to_owned(),
        (phase, _) => phase.name().to_owned(),
    };
    const SHOWN: usize = 40;
    vec![
        instance.id.clone(),
        instance.name.clone(),
        instance.spec.image.clone(),
        status.guise.name().to_owned(),
        phase,
        instance.created.get(..19).unwrap_or(&instance.created).replace('T', " "),
        instance.spec.command.join(" ").chars().take(SHOWN).collect(),
    ]
}

pub async fn volume(command: Volume) -> Done {
    let client = remote::connect()?;
    match command {
        Volume::Create { names } => {
            let mut code = ExitCode::SUCCESS;
            for name in names {
                match client.post::<ApiVolume>("/volumes", &NewVolume { name }).await {
                    Ok(made) => println!("{}", made.name),
                    Err(error) => {
                        eprintln!("guise: {}", Failure::from(error).message);
                        code = ExitCode::FAILURE;
                    }
                }
            }
            Ok(code)
        }
        Volume::Ls { output } => {
            let volumes: Vec<ApiVolume> = client.list("/volumes").await?;
            let header = ["NAME", "CREATED", "USED BY", "PATH"];
            output.print(&volumes, &header, |volumes| {
                let row = |volume: &ApiVolume| {
                    let created = volume.created.get(..19).unwrap_or_default().replace('T', " ");
                    vec![
                        volume.name.clone(),
                        created,
                        volume.used_by.join(", "),
                        volume.path.clone(),
                    ]
                };
                volumes.iter().map(row).collect()
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Volume::Rm { names } => remove_each(&client, "/volumes", names).await,
    }
}

pub async fn network(command: Network) -> Done {
    let client = remote::connect()?;
    match command {
        Network::Create { subnet, name } => {
            let wanted = NewNetwork { name, subnet };
            let made: NamedNetwork = client.post("/networks", &wanted).await?;
            println!("{}", made.name);
            Ok(ExitCode::SUCCESS)
        }
        Network::Ls { output } => {
            let networks: Vec<NamedNetwork> = client.list("/networks").await?;
            let header = ["NAME", "SUBNET", "CREATED", "USED BY"];
            output.print(&networks, &header, |networks| {
                let row = |network: &NamedNetwork| {
                    let created = network.created.get(..19).unwrap_or_default().replace('T', " ");
                    let (name, subnet) = (network.name.clone(), network.subnet.clone());
                    vec![name, subnet, created, network.used_by.join(", ")]
                };
                networks.iter().map(row).collect()
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Network::Rm { names } => remove_each(&client, "/networks", names).await,
    }
}
