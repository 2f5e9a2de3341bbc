//! `--vsock SOCKET[,cid=N]` as text.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use guise_virtio::vsock::{FIRST_CID, Host};

use crate::Failure;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    path: PathBuf,
    /// The guest's address.
    pub cid: u32,
}

impl FromStr for Sockets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, cid) = match text.rsplit_once(",cid=") {
            None => (text, FIRST_CID),
            Some((path, cid)) => {
                let number = cid.parse().ok().filter(|cid| (FIRST_CID..u32::MAX).contains(cid));
                (
                    path,
                    number
                        .ok_or_else(|| format!("cid={cid} is not a number from {FIRST_CID} on"))?,
                )
            }
        };
        if path.is_empty() {
            return Err("it begins with the path of a socket".to_owned());
        }
        Ok(Sockets { path: path.into(), cid })
    }
}

impl Sockets {
    /// Listens at the socket.
    pub fn open(&self) -> Result<Arc<Host>, Failure> {
        Host::at(&self.path).map_err(|error| Failure::failed(format!("--vsock: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_an_address_are_told_apart() {
        let parsed = |text: &str| text.parse::<Sockets>().map(|it| (it.path, it.cid));
        assert_eq!(parsed("/run/s"), Ok(("/run/s".into(), 3)));
        assert_eq!(parsed("a,b,cid=77"), Ok(("a,b".into(), 77)));
        for wrong in ["", ",cid=5", "s,cid=2", "s,cid=x", "s,cid=4294967295"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
