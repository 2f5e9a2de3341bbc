//! `guise project`, `guise token`, `guise audit`: who may do what, and who did it.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use guise_api::{
    AuditRecord, Grants, MadeToken, NewProject, NewToken, Project as ApiProject, Quota, Role,
    Token as ApiToken, human_size,
};

use super::manage::remove_each;
use super::{Done, escaped, remote};
use crate::image::parse_size;
use crate::print::{Format, Output, table, whole};

#[derive(Subcommand)]
pub enum Project {
    /// Make a project
    #[command(after_help = "Examples:
  guise project create lab --instances 10 --memory 4G
  guise --project lab run --rm -m 512M debian:12 true")]
    Create {
        #[command(flatten)]
        quota: QuotaArgs,
        name: String,
    },
    /// Give a project another quota; what is not said is not limited
    Set {
        #[command(flatten)]
        quota: QuotaArgs,
        name: String,
    },
    /// List projects, what they may have and what is taken of it
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Remove projects that have nothing
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Args)]
pub struct QuotaArgs {
    /// How many instances it may have
    #[arg(long, value_name = "N")]
    instances: Option<u64>,
    /// How many processors all of them together
    #[arg(long, value_name = "N")]
    vcpus: Option<f64>,
    /// How much memory all of them together
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// How much disk space all of them together: each has to say --disk-size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    disk: Option<u64>,
}

impl QuotaArgs {
    fn quota(&self) -> Quota {
        let QuotaArgs { instances, vcpus, memory, disk } = *self;
        Quota { instances, vcpus, memory_bytes: memory, disk_bytes: disk }
    }
}

fn project_row(project: &ApiProject) -> Vec<String> {
    let ApiProject { quota, reserved, .. } = project;
    let of = |taken: String, limit: Option<String>| match limit {
        Some(limit) => format!("{taken} of {limit}"),
        None => taken,
    };
    let size = |taken: u64, limit: Option<u64>| of(human_size(taken), limit.map(human_size));
    vec![
        project.name.clone(),
        of(reserved.instances.to_string(), quota.instances.map(|limit| limit.to_string())),
        of(reserved.vcpus.to_string(), quota.vcpus.map(|limit| limit.to_string())),
        size(reserved.memory_bytes, quota.memory_bytes),
        size(reserved.disk_bytes, quota.disk_bytes),
    ]
}

pub async fn project(command: Project) -> Done {
    let client = remote::connect()?;
    match command {
        Project::Create { quota, name } => {
            let wanted = NewProject { name, quota: quota.quota() };
            let made: ApiProject = client.post("/projects", &wanted).await?;
            println!("{}", made.name);
        }
        Project::Set { quota, name } => {
            let path = format!("/projects/{}", escaped(&name));
            let project: ApiProject = client.put(&path, &quota.quota()).await?;
            println!("{}", project.name);
        }
        Project::Ls { output } => {
            let projects: Vec<ApiProject> = client.list("/projects").await?;
            let header = ["NAME", "INSTANCES", "VCPUS", "MEMORY", "DISK"];
            output.print(&projects, &header, |all| all.iter().map(project_row).collect())?;
        }
        Project::Rm { names } => {
            return remove_each(&client, "/projects", names).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Subcommand)]
pub enum Token {
    /// Make a token, and print it: it is told this once
    #[command(after_help = "Examples:
  guise token create ci --grant lab=operator --expires 30d > ci.token
  guise token create monitor --grant '*=viewer'
  guise --host https://host.example --token-file ci.token --project lab ps")]
    Create {
        /// What it allows: viewer, operator or admin, in a project or in all of them (*)
        #[arg(long = "grant", value_name = "PROJECT=ROLE", required = true)]
        #[arg(value_parser = parse_grant)]
        grants: Vec<(String, Role)>,
        /// How long it works: 90s, 12h, 30d [default: until it is removed]
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        expires: Option<u64>,
        name: String,
    },
    /// List tokens
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Take tokens back
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

fn parse_grant(text: &str) -> Result<(String, Role), String> {
    let role = |text| match text {
        "viewer" => Some(Role::Viewer),
        "operator" => Some(Role::Operator),
        "admin" => Some(Role::Admin),
        _ => None,
    };
    let (project, said) = text.split_once('=').ok_or("it is PROJECT=ROLE")?;
    let role = role(said).ok_or("a role is viewer, operator or admin")?;
    Ok((project.to_owned(), role))
}

/// `90s`, `15m`, `12h`, `30d`, in seconds.
fn parse_time(text: &str) -> Result<u64, String> {
    let unit = |suffix| match suffix {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(60 * 60),
        'd' => Some(24 * 60 * 60),
        _ => None,
    };
    let seconds = || {
        let unit: u64 = unit(text.chars().last()?)?;
        text[..text.len() - 1].parse::<u64>().ok()?.checked_mul(unit)
    };
    seconds().ok_or_else(|| format!("{text:?} is no time such as 90s, 15m, 12h or 30d"))
}

fn token_row(token: &ApiToken) -> Vec<String> {
    let short = |time: &str| time.get(..19).unwrap_or_default().replace('T', " ");
    let grants: Vec<String> =
        token.grants.iter().map(|(project, role)| format!("{project}={}", role.name())).collect();
    let expires = match &token.expires {
        Some(_) if token.expired => "expired".to_owned(),
        Some(time) => short(time),
        None => "-".to_owned(),
    };
    vec![token.name.clone(), grants.join(", "), short(&token.created), expires]
}

pub async fn token(command: Token) -> Done {
    let client = remote::connect()?;
    match command {
        Token::Create { grants, expires, name } => {
            let grants: Grants = grants.into_iter().collect();
            let wanted = NewToken { name, grants, expires_seconds: expires };
            // A second attempt would not be told the first one's secret.
            let made: MadeToken = client.post_once("/tokens", &wanted).await?;
            println!("{}", made.secret);
        }
        Token::Ls { output } => {
            let tokens: Vec<ApiToken> = client.list("/tokens").await?;
            let header = ["NAME", "GRANTS", "CREATED", "EXPIRES"];
            output.print(&tokens, &header, |all| all.iter().map(token_row).collect())?;
        }
        Token::Rm { names } => {
            return remove_each(&client, "/tokens", names).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Show who asked for what, and how it went
#[derive(Args)]
#[command(after_help = "Examples:
  guise audit --last 20
  guise audit -o json | jq 'map(select(.status == 403))'")]
pub struct Audit {
    /// How many records, counted from the end
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    last: usize,
    #[command(flatten)]
    output: Output,
}

fn record_row(record: &AuditRecord) -> Vec<String> {
    let who = if record.who.is_empty() { "?" } else { &record.who };
    vec![
        record.time.get(..19).unwrap_or_default().replace('T', " "),
        who.to_owned(),
        record.from.clone().unwrap_or_else(|| "-".to_owned()),
        record.what.clone(),
        record.project.clone(),
        record.object.clone(),
        record.status.to_string(),
    ]
}

pub async fn audit(arguments: Audit) -> Done {
    let client = remote::connect()?;
    let path = format!("/audit?last={}", arguments.last);
    let records: Vec<AuditRecord> = client.get(&path).await?;
    let header = ["TIME", "WHO", "FROM", "WHAT", "PROJECT", "OBJECT", "STATUS"];
    arguments.output.print(&records, &header, |all| all.iter().map(record_row).collect())?;
    Ok(ExitCode::SUCCESS)
}

/// Show the daemon that is asked: its version, its places and how full they are, its certificate's
/// fingerprint
#[derive(Args)]
#[command(after_help = "Examples:
  guise info
  guise info -o table      # the file systems that it uses
  guise info -o json | jq '.pools[] | {path, level, full_in_seconds}'")]
pub struct Info {
    /// How to print
    #[arg(short, long, value_enum, default_value = "yaml")]
    output: Format,
}

fn pool_row(pool: &guise_api::Pool) -> Vec<String> {
    let all = u128::from(pool.used_bytes) + u128::from(pool.free_bytes);
    let full_in = pool.full_in_seconds.map(Duration::from_secs);
    vec![
        pool.name.clone(),
        human_size(pool.total_bytes),
        format!("{} %", u128::from(pool.used_bytes) * 100 / all.max(1)),
        human_size(pool.free_bytes),
        human_size(pool.promised_bytes),
        pool.level.name().to_owned(),
        full_in.map_or_else(|| "-".to_owned(), guise_daemon::in_words),
    ]
}

pub async fn info(arguments: Info) -> Done {
    let client = remote::connect()?;
    let info: guise_api::SystemInfo = client.get("/system").await?;
    match arguments.output {
        Format::Table => {
            let header = ["POOL", "SIZE", "USED", "LEFT", "PROMISED", "STATE", "FULL IN"];
            table(&header, &info.pools.iter().map(pool_row).collect::<Vec<_>>());
        }
        output => whole(&info, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_and_times_as_people_write_them() {
        assert_eq!(parse_grant("*=viewer"), Ok(("*".to_owned(), Role::Viewer)));
        assert!(parse_grant("lab").is_err() && parse_grant("lab=king").is_err());
        assert_eq!(parse_time("2h"), Ok(7200));
        for bad in ["", "h", "2", "2y", "-1s", "99999999999999999999d", "1é"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
