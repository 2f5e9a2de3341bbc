//! `guise run` and what goes with it, as users see it: the real binary, a daemon of the
//! test's own, and an image of a static busybox.
//!
//! Containers need root or user namespaces, and a busybox; where a machine lacks them
//! the tests say so.

mod access;
mod clock;
mod copying;
mod guises;
mod home;
mod limits;
mod lives;
mod nested;
mod network;
mod own_disk;
mod plain_user;
mod processors;
mod programs;
mod small;
mod space;
mod survival;
mod tasks;
mod terminal;
mod tour;
mod users;
mod vm;
mod vm_image;
mod warnings;
mod wasm;
