//! Images of a daemon on another host. On this one, commands work on the store itself, which
//! any number of processes may use at the same time, and need no daemon.

use std::process::ExitCode;

use guise_api::{Image, Pull, Push, Task, human_size};

use super::{ImageCommand, build};
use crate::Failure;
use crate::instance::{Done, attend, block_on, connect, escaped, print_log};

pub fn run(command: ImageCommand, host: &str) -> Done {
    block_on(ask(command, host))
}

async fn ask(command: ImageCommand, host: &str) -> Done {
    let here = |what: &str| {
        Failure::usage(format!(
            "guise image {what} works on this host's files, and {host} is another"
        ))
    };
    match command {
        ImageCommand::Pull {
            name,
            platform: None,
            include,
            stored_as: None,
            missing,
            unpack: None,
            quiet,
            ..
        } if include.is_empty() => {
            let wanted = Pull { image: name.to_string(), missing };
            finish(connect()?.post("/images/pull", &wanted).await?, quiet).await
        }
        ImageCommand::Pull { .. } => Err(Failure::usage(
            "another host pulls images as they are: leave out --platform, --include, --as, --unpack",
        )),
        ImageCommand::Push { name, to, quiet } => {
            let wanted = Push { image: name.to_string(), to: to.map(|to| to.to_string()) };
            finish(connect()?.post("/images/push", &wanted).await?, quiet).await
        }
        ImageCommand::Ls { output } => {
            let images: Vec<Image> = connect()?.list("/images").await?;
            let row = |image: &Image| {
                vec![
                    image.name.clone(),
                    image.digest.clone(),
                    image.bytes.map_or_else(|| "-".into(), human_size),
                    image.updated.clone(),
                ]
            };
            let header = ["NAME", "DIGEST", "SIZE", "UPDATED"];
            output.print(&images, &header, |images| images.iter().map(row).collect())?;
            Ok(ExitCode::SUCCESS)
        }
        ImageCommand::Rm { names, remote: false } => {
            let client = connect()?;
            for name in names {
                client.delete(&format!("/images/{}", escaped(&name.to_string()))).await?;
                println!("{name}");
            }
            Ok(ExitCode::SUCCESS)
        }
        ImageCommand::Rm { .. } => Err(here("rm --remote")),
        ImageCommand::Inspect { .. } => Err(here("inspect")),
        ImageCommand::Import { .. } => Err(here("import")),
        ImageCommand::Export { .. } => Err(here("export")),
        ImageCommand::Tag { .. } => Err(here("tag")),
        ImageCommand::Unpack { .. } => Err(here("unpack")),
        ImageCommand::Build(args) => {
            let (wanted, quiet) = build::request(args).map_err(Failure::usage)?;
            let client = connect()?;
            let task: Task = client.post("/images/build", &wanted).await?;
            if !quiet {
                print_log(&client, &task.id, true, &mut std::io::stderr()).await?;
            }
            let path = format!("/tasks/{}", escaped(&task.id));
            println!("{}", attend(&client, client.get(&path).await?).await?);
            Ok(ExitCode::SUCCESS)
        }
        ImageCommand::Gc { .. } => Err(here("gc")),
    }
}

async fn finish(task: Task, quiet: bool) -> Done {
    let digest = attend(&connect()?, task).await?;
    if !quiet {
        println!("{digest}");
    }
    Ok(ExitCode::SUCCESS)
}
