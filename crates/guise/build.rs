//! Links `guise-oci` statically: it starts once for each thing that is done to a container, in
//! a few milliseconds, of which the dynamic linker and the libraries would be a good part. It
//! stays position-independent.
//!
//! The compiler links the C library and its own dynamically, and its switch for the other way is
//! for all programs of a build, while `guise` asks the system for users and hosts in ways that
//! need the dynamic one. So the linker is sent to linker scripts in the libraries' places that
//! name the static ones. Where there are none (Debian has them in libc6-dev), the program is
//! linked as all others are.

use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "guise-oci";

/// What the compiler asks the linker for. Either leads to all of the archives: they need one
/// another.
const LIBRARIES: [&str; 2] = ["libc.so", "libgcc_s.so"];
const ARCHIVES: [&str; 3] = ["libc.a", "libgcc.a", "libgcc_eh.a"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let archives: Option<Vec<String>> = ARCHIVES.iter().map(|name| find(name)).collect();
    let Some(archives) = archives else {
        println!("cargo:warning={PROGRAM} is linked dynamically: there is no static C library");
        return;
    };
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    for library in LIBRARIES {
        let script = format!("GROUP({})\n", archives.join(" "));
        if let Err(error) = std::fs::write(out.join(library), script) {
            panic!("{}: {error}", out.join(library).display());
        }
    }
    let places = format!("-L{}", out.display());
    // What is weak and not there has no address, and is not looked for when the program starts.
    for argument in ["-static-pie", "-Wl,-z,nodynamic-undefined-weak", &places] {
        println!("cargo:rustc-link-arg-bin={PROGRAM}={argument}");
    }
}

/// Where the C compiler has a library; none if it has not.
fn find(name: &str) -> Option<String> {
    let output = Command::new("cc").arg(format!("-print-file-name={name}")).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    // What it does not find it answers as it was asked.
    (path != name && Path::new(&path).exists()).then_some(path)
}
