//! The process that holds one instance.
//!
//! The daemon starts one worker for each life of an instance: a process of its own, so
//! that code which reads what a guest wrote can harm nobody else, and so that instances
//! run on when the daemon ends. It is told what to do by a [`job::Job`], makes a
//! [`body::Body`] of it (a container, a machine), and serves a control socket until
//! the body has ended.

pub mod body;
pub mod job;
