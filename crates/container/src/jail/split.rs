//! One process becomes two: one that keeps the rights that are needed now and then, and reads
//! nothing that a guest wrote, and one that is going to be shut in and does all the rest.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::error::{Context, Result};
use crate::process::caps;
use crate::sys::clone::{Child, Side, close_all_but, fork};
use crate::sys::{cred, files};

/// The process that does the rest, as its keeper knows it.
pub struct Ward(Child);

impl Ward {
    /// Waits for its end; the status is a shell's.
    pub fn wait(&self) -> io::Result<i32> {
        self.0.wait()
    }
}

/// Forks. The parent is given its ward, and has nothing open but `kept` and where errors are
/// written to: locks and sockets are the other's alone. The child ends with its parent. To be
/// called while this process has one thread; the parent must not use anything else that it
/// has opened before.
pub fn split(kept: BorrowedFd<'_>) -> Result<Option<Ward>> {
    super::await_the_end_of_threads();
    // SAFETY: the caller vouches for there being one thread.
    match unsafe { fork(0, None) }.during(|| "make a second process")? {
        Side::Parent(child) => {
            let null = OpenOptions::new().read(true).write(true).open("/dev/null");
            let null = null.during(|| "open /dev/null")?;
            for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO] {
                files::become_standard(null.as_fd(), stream).during(|| "use /dev/null")?;
            }
            drop(null);
            let first = libc::STDERR_FILENO + 1;
            close_all_but(first, &mut [kept.as_raw_fd(), child.pidfd.as_raw_fd()]);
            Ok(Some(Ward(child)))
        }
        Side::Child => {
            cred::set_parent_death_signal(libc::SIGKILL)
                .during(|| "end with the process that keeps this one")?;
            Ok(None)
        }
    }
}

/// Gives up all capabilities but these, for this process and what it starts.
pub fn keep_only(capabilities: u64) -> Result<()> {
    let held = cred::permitted_capabilities().during(|| "ask for capabilities")?;
    let kept = capabilities & held;
    let sets =
        caps::Sets { bounding: kept, permitted: kept, effective: kept, ..Default::default() };
    sets.apply_bounding()?;
    sets.apply(held)
}
