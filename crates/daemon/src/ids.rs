//! Who there is in the user namespaces that workers and their helpers make.

use guise_api::{ApiError, Code};
use guise_container::namespaces::ranges::{self, Kind};
use guise_container::namespaces::write_mappings;
use guise_container::spec::IdMap;
use guise_worker::birth::Users;

/// Maps the ids of a worker's namespace: of its first process, or of a child of that. A plain user
/// is root inside, and where others are wanted and the host has given them to this user, they are
/// there; root's has all ids as they are.
pub fn map(process: u32, worker: u32, users: Users) -> Result<(), ApiError> {
    if process != worker && parent_of(process) != Some(worker) {
        let what = format!("process {process} is none of worker {worker}");
        return Err(ApiError::internal(what).exit_code(125));
    }
    let unsupported = |error: guise_container::Error| {
        ApiError::new(Code::Unsupported, error.to_string()).exit_code(125)
    };
    let process = process.cast_signed();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if uid == 0 {
        let (uids, gids) = (as_they_are(Kind::User), as_they_are(Kind::Group));
        return write_mappings(process, &uids, &gids, true).map_err(unsupported);
    }
    if users == Users::All
        && let Ok(ids) = ranges::of(uid, gid)
    {
        match write_mappings(process, &ids.uids, &ids.gids, true) {
            Ok(()) => return Ok(()),
            // As where there are none.
            Err(error) => tracing::warn!("no users but root in a container: {error}"),
        }
    }
    ranges::map_own(process, uid, gid).map_err(unsupported)
}

/// Which users a plain user's containers have, for whoever asks what would be run.
pub fn told() -> Option<String> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        return None;
    }
    Some(match ranges::of(uid.as_raw(), gid.as_raw()) {
        Ok(_) => "root in it is this user, and others are ids of this user's ranges in \
                  /etc/subuid and /etc/subgid"
            .to_owned(),
        Err(lack) => format!("root in it is this user, and there are no others: {lack}"),
    })
}

/// All ids of this process's own namespace.
fn as_they_are(kind: Kind) -> Vec<IdMap> {
    let same = |map: IdMap| IdMap { host: map.container, ..map };
    let all: Vec<IdMap> = kind.here().into_iter().map(same).collect();
    if all.is_empty() { vec![IdMap { container: 0, host: 0, size: 1 }] } else { all }
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may hold anything, come the state and the parent.
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}
