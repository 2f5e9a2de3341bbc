//! Kernel modules, which lie in the initial RAM disk, with a list for each purpose.

use std::fs::{self, File};
use std::io;
use std::path::Path;

const DIRECTORY: &str = "/modules";

/// Loads what is listed for a purpose. What is there already is left as it is.
pub fn load(purpose: &str) -> io::Result<()> {
    let directory = Path::new(DIRECTORY);
    let list = match fs::read_to_string(directory.join(purpose)) {
        Ok(list) => list,
        // A kernel that has everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in list.lines() {
        let file = File::open(directory.join(name))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            // Without it something else will fail, and say what it lacks.
            Err(error) => eprintln!("guise-agent: {name}: {error}"),
        }
    }
    Ok(())
}
