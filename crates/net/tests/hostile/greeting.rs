//! What a hostile process can say to a switch first.

use guise_net::switch::hello;

pub fn run(message: &[u8]) {
    let _ = hello::parse(message);
}
