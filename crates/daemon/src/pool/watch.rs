//! Looks at the pools now and then, and tells when one has become fuller, or has room again.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use guise_api::{ApiError, Pool, PoolLevel, human_size};

use super::trend::{Trend, in_words};
use super::{Rules, Space, promised};
use crate::Daemon;
use crate::config::Config;

/// How often it is looked, and how often where little is left.
const USUALLY: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(10);

/// What the daemon keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    State,
    Instances,
    Volumes,
    Images,
}

impl Kept {
    const ALL: [Kept; 4] = [Kept::State, Kept::Instances, Kept::Volumes, Kept::Images];

    fn name(self) -> &'static str {
        match self {
            Kept::State => "state",
            Kept::Instances => "instances",
            Kept::Volumes => "volumes",
            Kept::Images => "images",
        }
    }

    fn folder(self, config: &Config) -> PathBuf {
        match self {
            Kept::State => config.state.clone(),
            Kept::Instances => config.state.join("instances"),
            Kept::Volumes => config.state.join("volumes"),
            Kept::Images => config.images.clone(),
        }
    }
}

/// The file systems, and what was seen of them.
pub struct Pools {
    rules: Rules,
    begun: Instant,
    watched: Mutex<Vec<Watched>>,
}

#[derive(Default)]
struct Watched {
    name: &'static str,
    trend: Trend,
    level: PoolLevel,
    over_promised: bool,
}

/// One file system, as it was found.
struct Found {
    holds: Vec<Kept>,
    device: u64,
    folder: PathBuf,
    space: Space,
}

/// The file systems that there are, each once.
fn find(config: &Config) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for kept in Kept::ALL {
        let folder = kept.folder(config);
        // What has not been made yet is where it will be made.
        let nearest = folder.ancestors().find_map(|above| above.metadata().ok());
        let Some(device) = nearest.map(|nearest| nearest.dev()) else { continue };
        if let Some(same) = found.iter_mut().find(|other| other.device == device) {
            same.holds.push(kept);
        } else if let Ok(space) = Space::of(&folder) {
            found.push(Found { holds: vec![kept], device, folder, space });
        }
    }
    found
}

impl Pools {
    pub fn new(rules: Rules) -> Pools {
        Pools { rules, begun: Instant::now(), watched: Mutex::default() }
    }

    /// Looks at all of them. What has changed is told.
    pub fn look(&self, daemon: &Daemon) -> Vec<Pool> {
        let now = self.begun.elapsed();
        let instances: u64 = daemon
            .table
            .all()
            .iter()
            .map(|entry| promised::to(&entry.instance(), &daemon.config.place(&entry.id)))
            .fold(0, u64::saturating_add);
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pools = Vec::new();
        for found in find(&daemon.config) {
            let Some(name) = found.holds.first().map(|kept| kept.name()) else { continue };
            if found.holds.contains(&Kept::State) {
                daemon.objects.ballast.keep(&found.space);
            }
            let at = watched.iter().position(|seen| seen.name == name).unwrap_or_else(|| {
                watched.push(Watched { name, ..Watched::default() });
                watched.len() - 1
            });
            let promised = if found.holds.contains(&Kept::Instances) { instances } else { 0 };
            let seen = &mut watched[at];
            seen.trend.take(now, found.space.free);
            let pool = self.tell_of(&found, seen, promised);
            let level = std::mem::replace(&mut seen.level, pool.level);
            if level != pool.level {
                tell(daemon, &pool, pool.level.name(), &fullness(&pool));
            }
            let over = promised > found.space.free;
            if over && !std::mem::replace(&mut seen.over_promised, over) {
                tell(daemon, &pool, "over-promised", &over_promise(&pool));
            }
            seen.over_promised = over;
            pools.push(pool);
        }
        pools
    }

    fn tell_of(&self, found: &Found, seen: &Watched, promised: u64) -> Pool {
        let space = &found.space;
        Pool {
            name: seen.name.to_owned(),
            holds: found.holds.iter().map(|kept| kept.name().to_owned()).collect(),
            path: found.folder.display().to_string(),
            total_bytes: space.total,
            used_bytes: space.used,
            free_bytes: space.free,
            kept_bytes: self.rules.kept(space),
            promised_bytes: promised,
            total_inodes: space.inodes.map(|(all, _)| all),
            free_inodes: space.inodes.map(|(_, free)| free),
            level: self.rules.level(space, seen.level),
            full_in_seconds: seen.trend.full_in(space.free).map(|time| time.as_secs()),
        }
    }
}

fn fullness(pool: &Pool) -> String {
    let when = pool
        .full_in_seconds
        .map(|seconds| format!(", full in about {}", in_words(Duration::from_secs(seconds))));
    format!(
        "{} left of {}{}",
        human_size(pool.free_bytes),
        human_size(pool.total_bytes),
        when.unwrap_or_default()
    )
}

fn over_promise(pool: &Pool) -> String {
    format!(
        "disks of instances may grow by {}, and {} are left",
        human_size(pool.promised_bytes),
        human_size(pool.free_bytes)
    )
}

fn tell(daemon: &Daemon, pool: &Pool, action: &str, detail: &str) {
    match pool.level {
        PoolLevel::HasRoom => tracing::info!("{} is {action}: {detail}", pool.path),
        _ => tracing::warn!("{} is {action}: {detail}", pool.path),
    }
    daemon.events.pool(&pool.name, &pool.path, action, detail);
}

/// Refuses what would add to something on a file system that has only left what is kept.
pub fn admit(daemon: &Daemon, kept: Kept, what: &str) -> Result<(), ApiError> {
    let folder = kept.folder(&daemon.config);
    // What cannot be measured is found out by writing.
    let Ok(space) = Space::of(&folder) else { return Ok(()) };
    daemon.pools.rules.admit(what, &folder, &space).inspect_err(|_| {
        // Who listens hears of it now.
        daemon.pools.look(daemon);
    })
}

/// Looks for as long as the daemon runs.
pub async fn watch(daemon: Arc<Daemon>) {
    loop {
        let looking = daemon.clone();
        let looked = tokio::task::spawn_blocking(move || looking.pools.look(&looking)).await;
        let close = |pool: &Pool| {
            let soon = pool.full_in_seconds.is_some_and(|left| left < 10 * USUALLY.as_secs());
            soon || pool.level >= PoolLevel::NearlyFull
        };
        let soon = looked.is_ok_and(|pools| pools.iter().any(close));
        tokio::time::sleep(if soon { SOON } else { USUALLY }).await;
    }
}
