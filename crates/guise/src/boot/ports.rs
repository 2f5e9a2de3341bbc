//! `--port SOCKET,name=NAME` as text.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use guise_virtio::console::{LONGEST_NAME, MOST_PORTS, Port};

use crate::Failure;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    socket: PathBuf,
    name: String,
}

impl FromStr for NamedPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(",name=").filter(|(socket, _)| !socket.is_empty());
        let (socket, name) = parts.ok_or("it is the path of a socket, and name=NAME")?;
        if !Port::can_be_named(name) {
            return Err(format!(
                "name= has 1 to {LONGEST_NAME} letters, digits and signs, without / and spaces"
            ));
        }
        Ok(NamedPort { socket: socket.into(), name: name.to_owned() })
    }
}

/// Listens at all the sockets.
pub fn open(ports: &[NamedPort]) -> Result<Vec<Arc<Port>>, Failure> {
    if ports.len() > MOST_PORTS {
        return Err(Failure::usage(format!("--port can be given {MOST_PORTS} times at most")));
    }
    for (index, port) in ports.iter().enumerate() {
        if ports[..index].iter().any(|other| other.name == port.name) {
            return Err(Failure::usage(format!("--port: the name {} is given twice", port.name)));
        }
    }
    let open = |port: &NamedPort| {
        Port::at(&port.name, &port.socket)
            .map_err(|error| Failure::failed(format!("--port {}: {error}", port.socket.display())))
    };
    ports.iter().map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_and_a_name_are_told_apart() {
        let port: NamedPort = "/run/a,b,name=org.example.agent".parse().expect("valid");
        assert_eq!((port.socket, &*port.name), ("/run/a,b".into(), "org.example.agent"));
        for wrong in ["", "/run/a", ",name=x", "/run/a,name=", "/run/a,name=x/y", "/a,name=x y"] {
            assert!(wrong.parse::<NamedPort>().is_err(), "{wrong}");
        }
        let twice = ["/nowhere/a,name=x", "/nowhere/b,name=x"].map(|text| text.parse().unwrap());
        assert!(open(&twice).is_err());
    }
}
