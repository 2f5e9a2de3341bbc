//! `guise cp`: files between this host and an instance, as tar archives.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;

use guise_api::ApiError;
use guise_api::client::{Client, Session};
use guise_api::session::{CHUNK, Frame};
use guise_image::tar::{Entry, Kind, Reader, Time, Writer};

use super::{Done, escaped, remote};
use crate::Failure;

/// `NAME:PATH`, unless it is a path here.
fn remote_end(text: &str) -> Option<(&str, &str)> {
    let (name, path) = text.split_once(':')?;
    (!name.is_empty() && !name.starts_with(['/', '.'])).then_some((name, path))
}

pub async fn copy(from: String, to: String) -> Done {
    match (remote_end(&from), remote_end(&to)) {
        (Some((name, path)), None) => {
            let client = remote::connect()?;
            out(&client, name, path, &to).await
        }
        (None, Some((name, path))) => {
            let client = remote::connect()?;
            into(&client, &from, name, path).await
        }
        _ => Err(Failure::usage("one of the two is NAME:PATH, the other a path here or -")),
    }
}

/// 125 and its like are for programs that did not start; a copy has just failed.
fn not_copied(error: ApiError) -> Failure {
    Failure { code: 1, ..error.into() }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |error| Failure::failed(format!("{}: {error}", path.display()))
}

async fn out(client: &Client, name: &str, path: &str, to: &str) -> Done {
    let url = format!("/instances/{}/copy-out?path={}", escaped(name), escaped(path));
    let mut session = client.session(&url).await?;
    let (sender, receiver) = mpsc::sync_channel(16);
    let target = PathBuf::from(to);
    let taker = std::thread::spawn(move || {
        let mut archive = Pieces { receiver, piece: Vec::new(), at: 0 };
        if target.as_os_str() == "-" {
            return io::copy(&mut archive, &mut io::stdout()).map(drop).map_err(Failure::failed);
        }
        unpack(&mut archive, &target)
    });
    loop {
        match session.next().await? {
            Some(Frame::Stdout(bytes)) => {
                // What takes it may have failed: that is told below.
                if sender.send(bytes).is_err() {
                    break;
                }
            }
            Some(Frame::Exit(_)) => break,
            Some(Frame::Error(error)) => return Err(not_copied(error)),
            Some(_) => {}
            None => return Err(Failure::failed("the copy broke off")),
        }
    }
    drop(sender);
    match taker.join() {
        Ok(taken) => taken.map(|()| ExitCode::SUCCESS),
        Err(_) => Err(Failure::failed("the copy broke off")),
    }
}

/// Pieces of an archive as a reader.
struct Pieces {
    receiver: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => (self.piece, self.at) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let rest = &self.piece[self.at..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}

/// Unpacks what an instance sent, which is not trusted: every name is a plain path below
/// the target, and nothing is written through a link.
fn unpack(archive: &mut impl Read, target: &Path) -> Result<(), Failure> {
    // Into a folder that is there, or under a new name.
    let into_folder = target.is_dir();
    let mut reader = Reader::new(archive);
    while let Some(entry) = reader.next_entry().map_err(Failure::failed)? {
        let name = String::from_utf8(entry.path.clone()).map_err(Failure::failed)?;
        let mut parts = Vec::new();
        for part in Path::new(&name).components() {
            match part {
                Component::Normal(part) => parts.push(part),
                Component::CurDir => {}
                _ => return Err(Failure::failed(format!("{name:?} leads elsewhere: refused"))),
            }
        }
        let mut path = target.to_owned();
        path.extend(parts.iter().skip(usize::from(!into_folder)));
        let folders = path.ancestors().skip(1).take(parts.len().saturating_sub(1));
        if folders.into_iter().any(Path::is_symlink) {
            return Err(Failure::failed(format!("{name:?} leads through a link: refused")));
        }
        write_entry(&entry, &path, &mut reader)?;
    }
    Ok(())
}

fn write_entry(entry: &Entry, path: &Path, data: &mut impl Read) -> Result<(), Failure> {
    let mode = fs::Permissions::from_mode(entry.mode & 0o777);
    match &entry.kind {
        Kind::Directory => {
            if path.is_symlink() || !path.is_dir() {
                fs::create_dir(path).map_err(at(path))?;
            }
            fs::set_permissions(path, mode).map_err(at(path))
        }
        Kind::File => {
            remove(path)?;
            let mut file =
                File::options().write(true).create_new(true).open(path).map_err(at(path))?;
            io::copy(&mut data.take(entry.size), &mut file).map_err(at(path))?;
            file.set_permissions(mode).map_err(at(path))
        }
        Kind::Symlink(target) => {
            remove(path)?;
            let target = Path::new(std::ffi::OsStr::from_bytes(target));
            std::os::unix::fs::symlink(target, path).map_err(at(path))
        }
        // What is sent has none of the others.
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

async fn into(client: &Client, from: &str, name: &str, path: &str) -> Done {
    // A path that is no folder inside is the new name of what is copied.
    let (folder, new_name) = match path.strip_suffix('/') {
        Some(folder) => (if folder.is_empty() { "/" } else { folder }, None),
        None if from == "-" => (path, None),
        None => match path.rsplit_once('/') {
            Some((folder, last)) => (if folder.is_empty() { "/" } else { folder }, Some(last)),
            None => ("/", Some(path)),
        },
    };
    let open = async |folder: &str| {
        let url = format!("/instances/{}/copy-in?path={}", escaped(name), escaped(folder));
        client.session(&url).await
    };
    // A folder of this name takes it in under its own.
    if let Some(last) = new_name.filter(|last| !last.is_empty()) {
        if is_folder(open(path).await?).await? {
            return send(open(path).await?, from, None).await;
        }
        return send(open(folder).await?, from, Some(last)).await;
    }
    send(open(folder).await?, from, None).await
}

/// Whether archives can be unpacked there: an empty one tells.
async fn is_folder(mut probe: Session) -> Result<bool, Failure> {
    const EMPTY_ARCHIVE: usize = 1024;
    for frame in [Frame::Stdin(vec![0; EMPTY_ARCHIVE]), Frame::StdinEnd] {
        // Where it is none, nobody may listen any more: what was said is read below.
        if probe.send(&frame).await.is_err() {
            break;
        }
    }
    Ok(matches!(probe.next().await?, Some(Frame::Exit(_))))
}

/// Sends an archive, and waits until it has been unpacked.
async fn send(mut session: Session, from: &str, name: Option<&str>) -> Done {
    let (sender, mut pieces) = tokio::sync::mpsc::channel::<Vec<u8>>(16);
    let (from, name) = (PathBuf::from(from), name.map(str::to_owned));
    let packer = std::thread::spawn(move || pack(&from, name.as_deref(), Sender(sender)));
    let mut heard = true;
    while let Some(piece) = pieces.recv().await {
        // The other end has given up, and has said why.
        heard = session.send(&Frame::Stdin(piece)).await.is_ok();
        if !heard {
            break;
        }
    }
    drop(pieces);
    match packer.join() {
        // One that was interrupted fails too.
        Ok(packed) if heard => packed?,
        Ok(_) => {}
        Err(_) => return Err(Failure::failed("the copy broke off")),
    }
    if heard {
        let _ = session.send(&Frame::StdinEnd).await;
    }
    loop {
        match session.next().await? {
            Some(Frame::Exit(_)) => return Ok(ExitCode::SUCCESS),
            Some(Frame::Error(error)) => return Err(not_copied(error)),
            Some(_) => {}
            None => return Err(Failure::failed("the copy broke off")),
        }
    }
}

/// A writer whose pieces are sent.
struct Sender(tokio::sync::mpsc::Sender<Vec<u8>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(CHUNK);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(bytes[..length].to_vec()).map_err(gone)?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pack(from: &Path, name: Option<&str>, mut to: Sender) -> Result<(), Failure> {
    if from.as_os_str() == "-" {
        return io::copy(&mut io::stdin().lock(), &mut to).map(drop).map_err(Failure::failed);
    }
    let own = fs::canonicalize(from).map_err(at(from))?;
    let own = own.file_name().and_then(|name| name.to_str()).unwrap_or("root").to_owned();
    let mut writer = Writer::new(io::BufWriter::with_capacity(CHUNK, to));
    add(&mut writer, from, name.unwrap_or(&own))?;
    writer.finish().map(drop).map_err(Failure::failed)
}

fn add(writer: &mut Writer<impl Write>, path: &Path, name: &str) -> Result<(), Failure> {
    let about = fs::symlink_metadata(path).map_err(at(path))?;
    let mut entry = Entry::new(name, Kind::Directory, about.mode() & 0o7777);
    entry.mtime = Time { seconds: about.mtime(), nanoseconds: 0 };
    if about.is_dir() {
        writer.append(&entry, io::empty()).map_err(at(path))?;
        for child in fs::read_dir(path).map_err(at(path))? {
            let child = child.map_err(at(path))?;
            let child_name = format!("{name}/{}", child.file_name().to_string_lossy());
            add(writer, &child.path(), &child_name)?;
        }
        Ok(())
    } else if about.is_symlink() {
        let target = fs::read_link(path).map_err(at(path))?;
        entry.kind = Kind::Symlink(target.as_os_str().as_bytes().to_vec());
        writer.append(&entry, io::empty()).map_err(at(path))
    } else if about.is_file() {
        entry.kind = Kind::File;
        entry.size = about.len();
        let file = File::open(path).map_err(at(path))?;
        writer.append(&entry, file).map_err(at(path))
    } else {
        // Devices, pipes and sockets mean nothing elsewhere.
        Ok(())
    }
}
