//! An image's layers as directories, each made once and shared by all images
//! that have the same layers below it.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::root::Root;
use super::unpack::{Unpacked, unpack};
use crate::error::{IoContext, LayerError};
use crate::limits::Limits;
use crate::progress::Progress;
use crate::store::{FileLock, Image, Session, sync_dir, unique_name};
use crate::{Digest, Error, Result};

/// A layer that has to be unpacked.
struct Job {
    index: usize,
    /// Where it is unpacked to until it is whole.
    temporary: PathBuf,
    unpacked: Option<std::result::Result<Unpacked, LayerError>>,
}

impl Session<'_> {
    /// The directories of an image's layers, bottom first, for `lowerdir=`
    /// (which wants them top first). Those that are not there yet are
    /// unpacked, several at once. Directories that hide what is below are
    /// marked with `trusted.overlay.opaque`, or, where this process may not
    /// set that, with `user.overlay.opaque` for mounts with `userxattr`.
    pub fn layer_dirs(
        &self,
        image: &Image,
        limits: Limits,
        progress: &dyn Progress,
    ) -> Result<Vec<PathBuf>> {
        let chain = image.chain_ids();
        let paths: Vec<PathBuf> =
            chain.iter().map(|id| self.path("layers").join(id.hex())).collect();
        if paths.iter().all(|path| path.is_dir()) {
            return Ok(paths);
        }
        // Always from the bottom up, so that two images with common layers
        // never wait for each other.
        let mut locks = Vec::new();
        let mut jobs = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            if path.is_dir() {
                continue;
            }
            let lock = format!("layer-{}", chain[index].hex());
            locks.push(FileLock::exclusive(&self.path("locks").join(lock))?);
            if path.is_dir() {
                continue;
            }
            let temporary = self.path("tmp").join(unique_name());
            fs::create_dir(&temporary).at("making", &temporary)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&temporary, mode).at("making", &temporary)?;
            jobs.push(Mutex::new(Job { index, temporary, unpacked: None }));
        }
        let result = self
            .unpack_all(image, &jobs, limits, progress)
            .and_then(|()| self.settle_all(image, jobs.iter(), &paths));
        if result.is_err() {
            for job in &jobs {
                let job = job.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                // What cannot be removed now goes at the next collection.
                let _ = crate::store::remove_tree(&job.temporary);
            }
        }
        result?;
        Ok(paths)
    }

    /// Fills the jobs' directories, several at once. Stops at the first error.
    fn unpack_all(
        &self,
        image: &Image,
        jobs: &[Mutex<Job>],
        limits: Limits,
        progress: &dyn Progress,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let mut job = job.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        let layer = &image.manifest.layers[job.index];
                        let diff_id = image.config.rootfs.diff_ids[job.index];
                        let bar = progress.start("unpacking", layer.digest, layer.size);
                        let outcome = self
                            .blob("layer", layer.digest)
                            .map(|blob| unpack(bar.reader(blob), diff_id, &job.temporary, limits));
                        bar.finish();
                        match outcome {
                            Ok(unpacked) => job.unpacked = Some(unpacked),
                            Err(error) => {
                                next.store(jobs.len(), Ordering::Relaxed);
                                let mut failed = failed
                                    .lock()
                                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                                failed.get_or_insert(error);
                            }
                        }
                        if let Some(Err(_)) = job.unpacked {
                            next.store(jobs.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Finishes the jobs from the bottom up and gives them their names.
    fn settle_all<'j>(
        &self,
        image: &Image,
        jobs: impl Iterator<Item = &'j Mutex<Job>>,
        paths: &[PathBuf],
    ) -> Result<()> {
        let layer_error = |index: usize| {
            let layer: Digest = image.manifest.layers[index].digest;
            move |source: LayerError| Error::Layer { layer, source: Box::new(source) }
        };
        let mut done: Vec<(PathBuf, PathBuf)> = Vec::new();
        // A failure further up explains why the ones after it never began.
        let mut pending = Vec::new();
        for job in jobs {
            let mut job = job.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match job.unpacked.take() {
                Some(Ok(unpacked)) => pending.push((job.index, job.temporary.clone(), unpacked)),
                Some(Err(e)) => return Err(layer_error(job.index)(e)),
                None => {}
            }
        }
        for (index, temporary, unpacked) in pending {
            let below = (0..index)
                .rev()
                .map(|i| {
                    let path = done.iter().find(|(_, path)| *path == paths[i]);
                    Root::open(path.map_or(&paths[i], |(temporary, _)| temporary))
                })
                .collect::<Result<Vec<_>, _>>()
                .map_err(layer_error(index))?;
            unpacked.settle(&below).map_err(layer_error(index))?;
            done.push((temporary, paths[index].clone()));
        }
        // On disk before it has its name, or a power failure would leave a
        // layer of empty files that looks whole.
        if let Some((temporary, _)) = done.first() {
            let dir = fs::File::open(temporary).at("syncing", temporary)?;
            rustix::fs::syncfs(dir).at("syncing", temporary)?;
        }
        for (temporary, path) in &done {
            fs::rename(temporary, path).at("naming", path)?;
        }
        sync_dir(&self.path("layers"))
    }
}
