use super::*;

fn parsed(text: &str) -> Result<Parsed, String> {
    Parsed::from_text(text, 2)
}

fn user(text: &str) -> (Config, Vec<Forward>) {
    match parsed(text).map(|parsed| parsed.kind) {
        Ok(Kind::User { config, forwards }) => (*config, forwards),
        Ok(_) => panic!("not a user network"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn forwards_are_read() {
    let (_, forwards) = user("user,forward=2222-22,forward=udp:0.0.0.0:53-5353,forward=[::1]:0-80");
    let at = |text: &str| text.parse().unwrap();
    let forward = |transport, text, guest_port| Forward { transport, at: at(text), guest_port };
    assert_eq!(
        forwards,
        [
            forward(Transport::Tcp, "127.0.0.1:2222", 22),
            forward(Transport::Udp, "0.0.0.0:53", 5353),
            forward(Transport::Tcp, "[::1]:0", 80),
        ]
    );
}

#[test]
fn options_change_the_network() {
    let text = "user,host,restrict=on,deny=10.0.0.0/8,mac=52:54:00:01:02:03,mtu=9000,queues=1";
    let (config, _) = user(text);
    assert!(config.policy.host && config.policy.restrict);
    assert_eq!(config.policy.deny, [("10.0.0.0".parse().unwrap(), 8)]);
    assert_eq!(config.guest_mac, [0x52, 0x54, 0, 1, 2, 3]);
    assert_eq!(config.mtu, 9000);
    assert_eq!(parsed(text).map(|parsed| parsed.pairs), Ok(1));
}

#[test]
fn ports_of_switches_are_read() {
    let text = "switch=/run/lab.sock,name=web,vlan=12,isolated,capture=/tmp/x.pcapng";
    let Ok(Parsed { kind: Kind::Switch { socket, join }, capture, .. }) = parsed(text) else {
        panic!("refused");
    };
    assert_eq!(socket, Path::new("/run/lab.sock"));
    assert_eq!((join.name.as_str(), join.vlan, join.isolated), ("web", 12, true));
    assert_eq!(capture.as_deref(), Some(Path::new("/tmp/x.pcapng")));
}

#[test]
fn nonsense_is_refused() {
    for text in [
        "bridge",
        "user,colour=red",
        "user,forward=22",
        "user,forward=tcp:1-0",
        "user,forward=x:1-2",
        "user,mac=01:00:00:00:00:00",
        "user,mac=1:2:3",
        "user,deny=10.0.0.0/33",
        "user,host=maybe",
        "user,vlan=1",
        "switch=",
        "tap=",
        "tap=a0,forward=1-2",
        "switch=/run/lab.sock",
        "switch=/run/lab.sock,name=UPPER",
        "switch=/run/lab.sock,name=a,vlan=4095",
        "switch=/run/lab.sock,name=a,forward=1-2",
    ] {
        assert!(parsed(text).is_err(), "{text}");
    }
}
