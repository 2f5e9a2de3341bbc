//! Files as tar, for copying into and out of the guest. Runs as a process of its own with
//! the archive on its standard output or input.

use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

/// Writes a file or directory; the archive's names begin with the path's last part.
pub fn export(path: &str) -> io::Result<()> {
    let out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    export_to(Path::new(path), out)
}

/// Unpacks an archive into a directory; where there is none, what the archive holds gets
/// that name.
pub fn import(path: &str) -> io::Result<()> {
    let path = Path::new(path);
    let archive = io::stdin().lock();
    match (path.is_dir(), path.parent(), path.file_name()) {
        (false, Some(parent), Some(_)) => import_as(path, parent, archive),
        _ => import_from(path, archive),
    }
}

/// Unpacks the one file or directory of an archive under a name of its own. What has that
/// name, also a link, is replaced and not followed.
fn import_as(path: &Path, parent: &Path, archive: impl Read) -> io::Result<()> {
    let scratch = parent.join(format!(".guise-{}", std::process::id()));
    let explain =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", parent.display()));
    fs::create_dir(&scratch).map_err(explain)?;
    let done = import_from(&scratch, archive).and_then(|()| {
        let mut unpacked = fs::read_dir(&scratch)?;
        let Some(first) = unpacked.next().transpose()? else { return Ok(()) };
        if unpacked.next().is_some() {
            let said = format!("{}: it is no directory", path.display());
            return Err(io::Error::other(said));
        }
        fs::rename(first.path(), path)
    });
    let removed = fs::remove_dir_all(&scratch);
    done.and(removed)
}

fn export_to(path: &Path, out: impl Write) -> io::Result<()> {
    let explain =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let metadata = fs::symlink_metadata(path).map_err(explain)?;
    let mut builder = tar::Builder::new(out);
    builder.follow_symlinks(false);
    // `/` and `..` have no last part; what is in them then stands at the archive's top.
    let name = path.file_name().map_or(Path::new("."), Path::new);
    if metadata.is_dir() {
        builder.append_dir_all(name, path).map_err(explain)?;
    } else {
        builder.append_path_with_name(path, name).map_err(explain)?;
    }
    builder.into_inner()?.flush()
}

fn import_from(path: &Path, archive: impl Read) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        // Names with `..`, and those that a link of the archive leads out with.
        if !entry.unpack_in(path)? {
            let name = entry.path()?.into_owned();
            return Err(io::Error::other(format!("{}: leads elsewhere", name.display())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
