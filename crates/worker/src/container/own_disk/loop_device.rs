//! Loop devices: files as block devices.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const CONTROL: &str = "/dev/loop-control";
/// `LOOP_CTL_GET_FREE`, `LOOP_CONFIGURE`, `LOOP_GET_STATUS64` of linux/loop.h.
const GET_FREE: libc::c_ulong = 0x4c82;
const CONFIGURE: libc::c_ulong = 0x4c0a;
const GET_STATUS: libc::c_ulong = 0x4c05;
/// It lets go of its file when nobody has it open or mounted.
const AUTOCLEAR: u32 = 4;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl Info {
    const NONE: Info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config`.
#[repr(C)]
struct Configuration {
    file: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A device that has a file. It keeps it as long as this is there, or it is mounted.
pub struct Loop {
    path: PathBuf,
    _device: File,
}

fn at(what: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", what.display()))
}

impl Loop {
    /// The device that has the file. If an earlier life's worker has it mounted yet, that is the same
    /// file system to the kernel; by way of two devices it would be two, and torn.
    pub fn of(file: &File) -> io::Result<Loop> {
        match Loop::holding(file)? {
            Some(device) => Ok(device),
            None => Loop::attach(file),
        }
    }

    fn attach(file: &File) -> io::Result<Loop> {
        // Each time that another takes the one that was free, one more is tried.
        const ATTEMPTS: u32 = 64;
        let open =
            |path: &Path| OpenOptions::new().read(true).write(true).open(path).map_err(at(path));
        let control = open(Path::new(CONTROL))?;
        for _ in 0..ATTEMPTS {
            // SAFETY: this request has no argument, and gives a number.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
            if number < 0 {
                return Err(at(Path::new(CONTROL))(io::Error::last_os_error()));
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = open(&path)?;
            match configure(&device, file) {
                Ok(()) => return Ok(Loop { path, _device: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(at(&path)(error)),
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "others take every loop device"))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The device that has the file, if one does.
    fn holding(file: &File) -> io::Result<Option<Loop>> {
        let wanted = file.metadata()?;
        let devices = match fs::read_dir("/sys/block") {
            Ok(devices) => devices,
            // What cannot be looked at cannot be attached either.
            Err(_) => return Ok(None),
        };
        for name in devices.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            // Only one that has a file has this folder.
            let has_file = name.starts_with("loop")
                && Path::new("/sys/block").join(&name).join("loop").is_dir();
            if !has_file {
                continue;
            }
            let path = Path::new("/dev").join(&name);
            // While it is open it does not let go.
            let Ok(device) = File::open(&path) else { continue };
            let of = status(&device);
            if of.is_some_and(|of| (of.device, of.inode) == (wanted.dev(), wanted.ino())) {
                return Ok(Some(Loop { path, _device: device }));
            }
        }
        Ok(None)
    }
}

fn configure(device: &File, file: &File) -> io::Result<()> {
    let mut configuration = Configuration {
        file: file.as_fd().as_raw_fd() as u32,
        block_size: 0,
        info: Info { flags: AUTOCLEAR, ..Info::NONE },
        reserved: [0; 8],
    };
    // SAFETY: the structure is as the kernel has it, and is there until the call is over.
    match unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw mut configuration) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a device has; nothing where it has no file any more.
fn status(device: &File) -> Option<Info> {
    let mut info = Info::NONE;
    // SAFETY: the structure is as the kernel has it, and is there until the call is over.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), GET_STATUS, &raw mut info) } == 0;
    done.then_some(info)
}
