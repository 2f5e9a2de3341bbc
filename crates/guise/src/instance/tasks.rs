//! `guise task`: what goes on for longer, and what has become of it.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Subcommand;
use guise_api::client::{Client, ClientError};
use guise_api::{Code, Task as Work, TaskState, human_size};

use super::{Done, escaped, remote};
use crate::Failure;
use crate::print::{Format, Output, whole};

#[derive(Subcommand)]
pub enum Task {
    /// List tasks: those under way, and the last that are over
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Show everything about tasks
    Inspect {
        /// How to print
        #[arg(short, long, value_enum, default_value = "json")]
        output: Format,
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Print what a task has printed: the steps of a build, and what its commands said
    #[command(after_help = "Examples:
  guise task logs -f 402857136119")]
    Logs {
        /// And what comes, until the task is over
        #[arg(short, long)]
        follow: bool,
        id: String,
    },
    /// Ask tasks to end
    Cancel {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Wait until tasks are over, and fail if one of them has
    Wait {
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

fn row(task: &Work) -> Vec<String> {
    let done = match (task.done_bytes, task.total_bytes) {
        (0, 0) => "-".to_owned(),
        (done, 0) => human_size(done),
        (done, total) => format!("{} of {}", human_size(done), human_size(total)),
    };
    let error = task.error.as_ref().map(|error| error.message.clone());
    vec![
        task.id.clone(),
        task.work.kind().to_owned(),
        task.work.object().to_owned(),
        task.state.name().to_owned(),
        done,
        task.created.get(..19).unwrap_or_default().replace('T', " "),
        error.unwrap_or_else(|| task.note.clone()),
    ]
}

pub async fn run(command: Task) -> Done {
    let client = remote::connect()?;
    match command {
        Task::Ls { output } => {
            let mut tasks: Vec<Work> = client.list("/tasks").await?;
            tasks.sort_by(|a, b| a.created.cmp(&b.created));
            let header = ["ID", "WORK", "OBJECT", "STATE", "DONE", "CREATED", "NOTE"];
            output.print(&tasks, &header, |tasks| tasks.iter().map(row).collect())?;
        }
        Task::Inspect { output, ids } => {
            let mut found: Vec<Work> = Vec::new();
            for id in ids {
                found.push(client.get(&format!("/tasks/{}", escaped(&id))).await?);
            }
            whole(&found, output)?;
        }
        Task::Logs { follow, id } => {
            print_log(&client, &id, follow, &mut std::io::stdout()).await?;
        }
        Task::Cancel { ids } => {
            for id in ids {
                let path = format!("/tasks/{}/cancel", escaped(&id));
                let task: Work = client.post(&path, &()).await?;
                println!("{} {}", task.id, task.state.name());
            }
        }
        Task::Wait { ids } => {
            for id in ids {
                let task: Work = client.get(&format!("/tasks/{}", escaped(&id))).await?;
                println!("{}", attend(&client, task).await?);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a task's log, and what comes of it where it is followed.
pub async fn print_log(
    client: &Client,
    id: &str,
    follow: bool,
    to: &mut dyn Write,
) -> Result<(), Failure> {
    let mut parts = client.stream(&format!("/tasks/{}/log?follow={follow}", escaped(id))).await?;
    while let Some(bytes) = parts.next().await? {
        to.write_all(&bytes).and_then(|()| to.flush()).map_err(Failure::failed)?;
    }
    Ok(())
}

/// Watches a task until it is over, and says on standard error what it does. Its result.
pub async fn attend(client: &Client, mut task: Work) -> Result<String, Failure> {
    let terminal = std::io::stderr().is_terminal();
    let mut shown = String::new();
    let path = format!("/tasks/{}/follow", task.id);
    // A daemon that is killed meanwhile is followed by one that goes on with the task.
    while !task.state.is_over() {
        let mut news = client.stream(&path).await?;
        loop {
            match news.next_value::<Work>().await {
                Ok(Some(now)) => task = now,
                Ok(None) | Err(ClientError::Broken { .. }) => break,
                Err(error) => return Err(error.into()),
            }
            if terminal && task.total_bytes > 0 {
                let percent = task.done_bytes.min(task.total_bytes) * 100 / task.total_bytes;
                eprint!("\r\x1b[K{percent:3} % {}", task.note);
                // Nobody can do anything about a terminal that is gone.
                let _ = std::io::stderr().flush();
            } else if task.note != shown {
                shown.clone_from(&task.note);
                let (before, after) = if terminal { ("\r\x1b[K", "") } else { ("", "\n") };
                eprint!("{before}{shown}{after}");
                let _ = std::io::stderr().flush();
            }
        }
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    match (task.state, task.result, task.error) {
        (TaskState::Done, result, _) => Ok(result.unwrap_or_default()),
        (_, _, Some(error)) => Err(error.into()),
        (state, _, None) => {
            let (kind, object) = (task.work.kind(), task.work.object());
            let why = format!("{kind} of {object} was {}", state.name());
            Err(guise_api::ApiError::new(Code::State, why).into())
        }
    }
}
