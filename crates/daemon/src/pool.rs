//! The space on the file systems where the daemon keeps things.
//!
//! What instances write and what images take grows as it is used, so more can be promised than
//! there is. That is allowed, and told. Before a file system is full, nothing new is begun on it:
//! what runs already needs what is left.
//!
//! ```text
//! pool      how full is how full, and what is refused
//! trend     when it will be full, if it goes on as of late
//! promised  what instances' disks may yet grow by
//! watch     looks now and then, and tells
//! ballast   what makes room for removing where there is none
//! ```

mod ballast;
mod promised;
mod trend;
mod watch;

use std::path::Path;

use guise_api::{ApiError, Code, PoolLevel, human_size};

pub use ballast::Ballast;
pub use trend::in_words;
pub use watch::{Kept, Pools, admit, watch};

/// How much space is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// With so many bytes left nothing new is begun; otherwise 2 GiB or a twentieth, whichever
    /// is less.
    pub kept: Option<u64>,
}

/// How full a file system is, at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    pub used: u64,
    /// What may still be written: less than what is not used, where some is kept for root.
    pub free: u64,
    /// Files that there can be, and that there still can be; none where there is no such limit.
    pub inodes: Option<(u64, u64)>,
}

/// The shares of a file system that are told of, in hundredths.
const FILLING: u64 = 80;
const NEARLY_FULL: u64 = 90;
/// So much less has to be used until that is told, too: not each file that comes and goes is news.
const CALM: u64 = 2;

impl Space {
    /// Of the file system that a folder is on. A folder that is not there yet will be on that of
    /// the nearest one above it.
    pub fn of(folder: &Path) -> std::io::Result<Space> {
        let nearest = folder.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
        let found = rustix::fs::statvfs(nearest)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space {
            total: bytes(found.f_blocks),
            used: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
            free: bytes(found.f_bavail),
            inodes: (found.f_files > 0).then_some((found.f_files, found.f_favail)),
        })
    }

    /// Hundredths that are used of what may be: of bytes, or of files if that is more.
    pub fn used_percent(&self) -> u64 {
        let part = |used: u64, all: u64| {
            u64::try_from(u128::from(used) * 100 / u128::from(all.max(1))).unwrap_or(100)
        };
        let bytes = part(self.used, self.used.saturating_add(self.free));
        let files = self.inodes.map_or(0, |(all, free)| part(all.saturating_sub(free), all));
        bytes.max(files)
    }
}

impl Rules {
    pub fn kept(&self, space: &Space) -> u64 {
        const MOST_KEPT: u64 = 2 << 30;
        self.kept.unwrap_or_else(|| MOST_KEPT.min(space.total / 20))
    }

    /// The same of files. Each instance takes a few dozen, each layer of an image thousands.
    fn kept_inodes(&self, all: u64) -> u64 {
        const MOST_KEPT: u64 = 2000;
        if self.kept == Some(0) { 0 } else { MOST_KEPT.min(all / 100) }
    }

    fn leaves_enough(&self, space: &Space) -> bool {
        let files = |(all, free): (u64, u64)| free >= self.kept_inodes(all);
        space.free >= self.kept(space) && space.inodes.is_none_or(files)
    }

    /// How full it is, when it was so full before.
    pub fn level(&self, space: &Space, before: PoolLevel) -> PoolLevel {
        let used = space.used_percent();
        let at = |level: PoolLevel, share: u64| {
            used >= if before >= level { share - CALM } else { share }
        };
        match () {
            () if space.free == 0 || !self.leaves_enough(space) => PoolLevel::Full,
            () if at(PoolLevel::NearlyFull, NEARLY_FULL) => PoolLevel::NearlyFull,
            () if at(PoolLevel::Filling, FILLING) => PoolLevel::Filling,
            () => PoolLevel::HasRoom,
        }
    }

    /// Refuses what would take of what is kept. `what` is to be done, `place` is where.
    pub fn admit(&self, what: &str, place: &Path, space: &Space) -> Result<(), ApiError> {
        if self.leaves_enough(space) {
            return Ok(());
        }
        let place = place.display();
        let message = if space.free < self.kept(space) {
            format!(
                "{what}: {place} has {} left of {}, and {} are kept",
                human_size(space.free),
                human_size(space.total),
                human_size(self.kept(space))
            )
        } else {
            let (all, free) = space.inodes.unwrap_or_default();
            format!(
                "{what}: {place} has room for {free} files of {all}, and for {} it is kept",
                self.kept_inodes(all)
            )
        };
        Err(ApiError::new(Code::Exhausted, message)
            .hint(
                "remove instances (guise rm), images (guise image rm, guise image gc) or volumes, \
                 or start the daemon with GUISE_KEEP_DISK=MIB",
            )
            .exit_code(125))
    }
}

/// Refuses to add to an image store for which there is no room. For commands that work on it
/// without the daemon, with what the environment says of its rules.
pub fn check_store(store: &Path) -> Result<(), ApiError> {
    let invalid = |error: crate::DaemonError| ApiError::invalid(error.to_string()).exit_code(125);
    let rules = crate::config::disk_rules().map_err(invalid)?;
    // What cannot be measured is found out by writing.
    let Ok(space) = Space::of(store) else { return Ok(()) };
    rules.admit("nothing is added to the images", store, &space)
}

#[cfg(test)]
mod tests;
