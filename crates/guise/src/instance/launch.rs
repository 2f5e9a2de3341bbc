//! `run`, `create`, `exec`: a program begins.

use std::process::ExitCode;

use guise_api::client::{Client, ClientError};
use guise_api::session::Frame;
use guise_api::{Code, Create as Request, Explanation, Instance, KERNEL, Pull, Task};

use super::arguments::{Create, Exec, Options, Run};
use super::console::{self, Console, Outcome};
use super::{Done, remote, tasks};
use crate::Failure;

/// Whatever goes wrong before the program runs.
const NOT_STARTED: u8 = 125;

fn not_started(failure: Failure) -> Failure {
    Failure { code: if failure.code == 1 { NOT_STARTED } else { failure.code }, ..failure }
}

/// Whether a new instance starts, and who sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    Not,
    Alone,
    Attached,
}

/// Makes the instance, fetching its image first where that is missing.
async fn make(client: &Client, options: &Options, begin: Begin) -> Result<Instance, Failure> {
    let mut spec = options.spec()?;
    spec.running = begin != Begin::Not;
    let (rows, columns) = console::size();
    let attach = begin == Begin::Attached;
    let key = Some(new_key().map_err(Failure::failed)?);
    let request = Request { name: options.name.clone(), key, spec, attach, rows, columns };
    if options.pull == "always" && request.spec.path().is_none() {
        fetch(client, options.image_name()).await?;
    }
    let mut fetched = Vec::new();
    loop {
        let made = client.post("/instances", &request).await;
        let missing = match &made {
            Err(ClientError::Api(error)) if options.pull != "never" => match error.code {
                Code::ImageMissing => options.image_name(),
                Code::KernelMissing => KERNEL,
                _ => return Ok(made?),
            },
            _ => return Ok(made?),
        };
        // What was fetched and is missing again will not come by fetching it.
        if fetched.contains(&missing) {
            return Ok(made?);
        }
        fetch(client, missing).await?;
        fetched.push(missing);
    }
}

/// What tells this request from all others, also when it is sent again.
fn new_key() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// Has the daemon fetch an image, and says on standard error what it does.
async fn fetch(client: &Client, image: &str) -> Result<(), Failure> {
    eprintln!("image {image} is not here yet; it is fetched");
    let pull = Pull { image: image.to_owned(), missing: false };
    let task: Task = client.post("/images/pull", &pull).await?;
    tasks::attend(client, task).await.map(drop)
}

pub async fn create(arguments: Create) -> Done {
    let client = remote::connect()?;
    let instance = make(&client, &arguments.options, Begin::Not).await?;
    println!("{}", instance.id);
    Ok(ExitCode::SUCCESS)
}

pub async fn run(arguments: Run) -> Done {
    start(arguments).await.map_err(not_started)
}

async fn start(arguments: Run) -> Done {
    let options = &arguments.options;
    let detach = console::parse_keys(&arguments.detach_keys)?;
    if !arguments.detach && !arguments.explain {
        console::check_terminal(options.tty, options.interactive)?;
    }
    let client = remote::connect()?;
    if arguments.explain {
        let explanation: Explanation = client.post("/explain", &options.spec()?).await?;
        println!("{}", explanation.guise.name());
        for reason in &explanation.reasons {
            println!("  {reason}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.detach {
        let instance = make(&client, options, Begin::Alone).await?;
        let started: Result<Instance, ClientError> =
            client.post(&format!("/instances/{}/start?life=1", instance.id), &()).await;
        warn(&started?);
        println!("{}", instance.id);
        return Ok(ExitCode::SUCCESS);
    }
    let instance = make(&client, options, Begin::Attached).await?;
    let path =
        format!("/instances/{}/attach?life=1&past=true&stdin={}", instance.id, options.interactive);
    let session = client.session(&path).await?;
    let console = Console { terminal: options.tty, stdin: options.interactive, detach };
    finish(console::attend(session, console).await?)
}

/// Tells what could not be done as it was asked for.
pub fn warn(instance: &Instance) {
    console::warn(&instance.name, &instance.status.warnings);
}

/// The program's exit code becomes this command's.
pub fn finish(outcome: Outcome) -> Done {
    match outcome {
        Outcome::Detached => Ok(ExitCode::SUCCESS),
        Outcome::Ended(ended) => {
            if let Some(error) = &ended.error {
                eprintln!("guise: {error}");
            }
            if ended.out_of_memory {
                eprintln!("guise: it was ended for lack of memory; give it more with --memory");
            }
            Ok(ExitCode::from(ended.exit_code))
        }
    }
}

pub async fn exec(arguments: Exec) -> Done {
    execute(arguments).await.map_err(not_started)
}

async fn execute(arguments: Exec) -> Done {
    let detach = console::parse_keys(&arguments.detach_keys)?;
    if !arguments.detach {
        console::check_terminal(arguments.tty, arguments.interactive)?;
    }
    let client = remote::connect()?;
    let (rows, columns) = console::size();
    let mut session =
        client.session(&format!("/instances/{}/exec", super::escaped(&arguments.name))).await?;
    session.send(&Frame::message(&arguments.request(rows, columns))).await?;
    if arguments.detach {
        return detached(&mut session).await;
    }
    let console = Console { terminal: arguments.tty, stdin: arguments.interactive, detach };
    finish(console::attend(session, console).await?)
}

/// Leaves the program running when it has begun, which the first frame tells.
async fn detached(session: &mut guise_api::client::Session) -> Done {
    match session.next().await? {
        Some(Frame::Error(error)) => Err(error.into()),
        Some(_) => Ok(ExitCode::SUCCESS),
        None => Err(Failure::failed("the daemon went away before the program began")),
    }
}
