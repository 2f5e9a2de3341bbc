//! Builds the guest's agent, which is linked statically, and hands it to the crate as a
//! file and as a name that changes with it.
//!
//! Cargo cannot yet make a program of one crate for another with other flags, so this
//! calls it, for the one package, with a target directory of its own. Dependencies come
//! from the same lock file and are there already.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "guise-agent";
const PROFILE: &str = "agent";
/// What is promised of its size; every microVM has it in its memory for a while.
const LARGEST: u64 = 2 << 20;

fn main() {
    let agent = Path::new("../agent");
    for path in ["../agent/src", "../agent/Cargo.toml", "../../Cargo.lock", "../../Cargo.toml"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    // The compiler's own triple: with a target given, its flags do not reach build scripts
    // and macros, which cannot be linked statically.
    let target = variable("TARGET");
    let target_directory = out.join("target");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--quiet", "--profile", PROFILE, "--bin", PACKAGE, "--target", &target])
        .arg("--manifest-path")
        .arg(agent.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_directory)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    // These describe the build of this crate, or are flags for it.
    for name in ["RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(name);
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cargo cannot be started: {error}"));
    assert!(
        status.success(),
        "the guest's agent could not be built; it is linked statically, which needs the C \
         library's static archive (Debian: libc6-dev)"
    );
    let program = target_directory.join(&target).join(PROFILE).join(PACKAGE);
    let bytes =
        std::fs::read(&program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(
        bytes.len() as u64 <= LARGEST,
        "the guest's agent has {} bytes and may have {LARGEST}",
        bytes.len()
    );
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    println!("cargo:rustc-env=GUISE_AGENT={}", program.display());
    println!("cargo:rustc-env=GUISE_AGENT_HASH={:016x}", hasher.finish());
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}
