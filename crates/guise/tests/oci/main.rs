//! `guise oci` as its callers see it: the real binary, on bundles whose root
//! file system is a static busybox.
//!
//! Containers need root (or user namespaces) and a busybox; where a machine
//! lacks them the tests say so and do nothing.

mod bundle;
mod cgroups;
mod escapes;
mod exec;
mod landlock;
mod leaks;
mod lifecycle;
mod mounts;
mod podman;
mod process;
mod rootless;
mod seccomp;
