//! OCI registries: pull, push and delete by the distribution specification.
//!
//! Our own client, blocking: a pull is a handful of streams into files, each
//! in a thread of its own, and an asynchronous runtime would only add to the
//! binary. It resumes what broke off, asks mirrors first, authenticates as
//! Docker's and Podman's configuration says, and believes no byte that does
//! not have the digest it should.
//!
//! - `config`: registries.conf, mirrors, aliases, which names lead where;
//! - `credentials`: who we are, from auth files and credential helpers;
//! - `challenge`: what a registry wants to see before it answers;
//! - `client`: requests to one repository, authenticated and repeated;
//! - `pull`, `push`: images in and out.

mod challenge;
mod client;
mod config;
mod credentials;
mod pull;
mod push;

pub use config::Registries;
pub use pull::pull;
pub use push::{delete, push};

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{host} cannot be reached: {why}")]
    Unreachable { host: String, why: String },

    #[error("{host} does not have {what}")]
    NotFound { host: String, what: String },

    #[error(
        "{host} refuses {what}: {why} (credentials come from `podman login` or `docker login`)"
    )]
    Denied { host: String, what: String, why: String },

    #[error("{host} answered {status} to {what}{why}")]
    Status { host: String, what: String, status: u16, why: String },

    #[error("{host} answered nonsense to {what}: {why}")]
    Protocol { host: String, what: String, why: String },

    #[error("registry {0} is blocked in registries.conf")]
    Blocked(String),

    #[error("{}: {why}", path.display())]
    Config { path: PathBuf, why: String },

    #[error("credential helper docker-credential-{helper} failed: {why}")]
    Helper { helper: String, why: String },

    #[error("{name} is short, and none of the registries asked has it: {tried}")]
    NoneHas { name: String, tried: String },

    #[error("{0} has no registry to push to (name it HOST/PATH:TAG)")]
    NoHost(String),
}

/// How many blobs move at once, as in other clients; registries limit more.
const PARALLEL: usize = 4;
