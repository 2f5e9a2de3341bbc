//! A small file system of its own, which goes with the test.

use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

pub struct Small {
    place: PathBuf,
    options: CString,
}

impl Small {
    pub fn mount(place: PathBuf, mebibytes: u64) -> Small {
        fs::create_dir_all(&place).unwrap();
        let options = CString::new(format!("size={mebibytes}m,mode=700")).unwrap();
        mount("small", &place, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Small { place, options }
    }

    /// Not as long as somebody has a file open for writing.
    pub fn remount(&self, flags: MountFlags) -> bool {
        mount_remount(&self.place, flags, &self.options).is_ok()
    }

    /// What can be written.
    pub fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.place).unwrap();
        found.f_bavail * found.f_frsize
    }

    /// Writes a file until so much is free.
    pub fn fill(&self, name: &str, leave: u64) -> PathBuf {
        let path = self.place.join(name);
        let mut file = fs::File::create(&path).unwrap();
        while self.free() > leave {
            let length = (self.free() - leave).min(1 << 20) as usize;
            if file.write_all(&vec![1; length]).is_err() {
                break;
            }
        }
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // With whatever is mounted below it, and although something may be open.
        let _ = unmount(&self.place, UnmountFlags::DETACH);
    }
}
