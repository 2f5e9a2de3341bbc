//! `logs`, `stats`, `events`: what goes on.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use guise_api::client::Client;
use guise_api::session::Frame;
use guise_api::{Event, Instance, Stats as Usage, human_size};

use super::{Done, escaped, remote};
use crate::Failure;
use crate::print::Output;

/// Show what an instance has printed
#[derive(Args)]
pub struct Logs {
    /// And what it prints, until it ends
    #[arg(short, long)]
    follow: bool,
    /// Only so many last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// With the time of each line
    #[arg(short, long)]
    timestamps: bool,
    name: String,
}

pub async fn logs(arguments: Logs) -> Done {
    let client = remote::connect()?;
    let tail = arguments.tail.map(|lines| format!("&tail={lines}")).unwrap_or_default();
    let path = format!(
        "/instances/{}/logs?follow={}&timestamps={}{tail}",
        escaped(&arguments.name),
        arguments.follow,
        arguments.timestamps
    );
    let mut session = client.session(&path).await?;
    while let Some(frame) = session.next().await? {
        let written = match frame {
            Frame::Stdout(bytes) => std::io::stdout().write_all(&bytes),
            Frame::Stderr(bytes) => std::io::stderr().write_all(&bytes),
            Frame::Error(error) => return Err(error.into()),
            Frame::Exit(_) => break,
            _ => Ok(()),
        };
        if written.and_then(|()| std::io::stdout().flush()).is_err() {
            // Whoever read this has read enough.
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Show what instances use
#[derive(Args)]
pub struct Stats {
    /// Again every second
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    output: Output,
    /// Which [default: all that run]
    names: Vec<String>,
}

pub async fn stats(arguments: Stats) -> Done {
    let client = remote::connect()?;
    loop {
        let usages = usages(&client, &arguments.names).await?;
        let header = ["NAME", "CPU TIME", "MEMORY", "LIMIT", "PROCESSES", "READ", "WRITTEN"];
        arguments.output.print(&usages, &header, |usages| usages.iter().map(row).collect())?;
        if !arguments.follow {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn usages(client: &Client, names: &[String]) -> Result<Vec<Usage>, Failure> {
    let mut usages = Vec::new();
    if names.is_empty() {
        let instances: Vec<Instance> = client.list("/instances").await?;
        for instance in instances.iter().filter(|instance| instance.status.phase.has_socket()) {
            // One that has just ended uses nothing.
            if let Ok(usage) = client.get(&format!("/instances/{}/stats", instance.id)).await {
                usages.push(usage);
            }
        }
    }
    for name in names {
        usages.push(client.get(&format!("/instances/{}/stats", escaped(name))).await?);
    }
    Ok(usages)
}

fn row(usage: &Usage) -> Vec<String> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), human_size);
    let seconds = |nanoseconds: u64| format!("{:.2} s", nanoseconds as f64 / 1e9);
    vec![
        usage.name.clone(),
        usage.cpu_nanoseconds.map_or_else(|| "-".to_owned(), seconds),
        size(usage.memory_bytes),
        size(usage.memory_limit),
        usage.processes.map_or_else(|| "-".to_owned(), |count| count.to_string()),
        size(usage.disk_read_bytes),
        size(usage.disk_written_bytes),
    ]
}

/// Show what has happened to instances, volumes and images
#[derive(Args)]
pub struct Events {
    /// And what happens, until interrupted
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    output: Output,
}

pub async fn events(arguments: Events) -> Done {
    let client = remote::connect()?;
    let mut events = client.stream(&format!("/events?follow={}", arguments.follow)).await?;
    crate::pipe::end_with_the_reader();
    while let Some(event) = events.next_value::<Event>().await? {
        if arguments.output.is_table() {
            let Event { time, kind, name, action, detail, .. } = event;
            let detail = detail.map(|detail| format!(" ({detail})")).unwrap_or_default();
            println!("{time} {kind} {name} {action}{detail}");
        } else {
            let line = serde_json::to_string(&event).map_err(Failure::failed)?;
            println!("{line}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
