//! Output that nobody reads any more, as in `guise disk map … | head`.
//!
//! Rust's programs ignore SIGPIPE and get an error for each write instead, on which `println!`
//! panics. Commands that only print what they found end by the signal, without a word, as
//! other programs do. Those that write to sockets must not: there, the signal would take the
//! place of an error that says who went away.

/// From here on, a write to a pipe that nobody reads ends this process.
pub fn end_with_the_reader() {
    // SAFETY: no handler is set; the default action takes the place of "ignored", and nothing
    // in a process that is about to print depends on which of them it is.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
