use guise_agent::protocol::{GUEST, Hello, Kind, ToHost, VERSION, encode};
use std::io::{Read, Write};

use guise_virtio::vsock::Host;

use super::*;

fn link() -> Arc<Link> {
    let listener = Host::private().unwrap().listen(1).unwrap();
    Arc::new(Link::new(listener, Vec::new(), None))
}

/// Says who it is, as the agent does.
fn caller(secret: &[u8]) -> (UnixStream, UnixStream) {
    let (mut theirs, ours) = UnixStream::pair().unwrap();
    let hello = Hello {
        version: VERSION,
        kernel: "6.1".to_owned(),
        uptime_ms: 1,
        secret: secret.to_owned(),
    };
    let mut bytes = Vec::new();
    encode(&mut bytes, Kind::Control, GUEST, &ToHost::Hello(hello).bytes());
    theirs.write_all(&bytes).unwrap();
    (theirs, ours)
}

#[test]
fn only_who_knows_the_secret_is_the_agent() {
    let secret = Secret::new();
    assert!(secret != Secret::new());
    for wrong in [&Secret::new().0[..], b"", &secret.bytes()[..31]] {
        let (mut theirs, ours) = caller(wrong);
        assert!(greet(ours, &secret).is_err());
        // It is told nothing.
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }
    let (_theirs, ours) = caller(secret.bytes());
    assert!(greet(ours, &secret).is_ok());
}

#[test]
fn who_waits_for_an_agent_hears_why_there_is_none() {
    let link = link();
    assert!(matches!(link.agent(), Err(LinkError::Ended(_))));
    link.begin(Secret::new(), Some("it is too small")).unwrap();
    let said = link.up().map(drop).unwrap_err().to_string();
    assert!(said.contains("it is too small; use its console"), "{said}");
    // It starts again, and ends before there is a call.
    link.begin(Secret::new(), None).unwrap();
    assert!(link.present().is_none());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| link.agent().map(drop));
        link.end("the guest has ended");
        assert_eq!(waiting.join().unwrap().unwrap_err().to_string(), "the guest has ended");
    });
}
