use super::*;

fn parsed(text: &str) -> Result<Parsed, String> {
    Parsed::from_text(text, 2)
}

#[test]
fn forwards_are_read() {
    let Ok(parsed) = parsed("user,forward=2222-22,forward=udp:0.0.0.0:53-5353,forward=[::1]:0-80")
    else {
        panic!("refused");
    };
    let at = |text: &str| text.parse().unwrap();
    let forward = |transport, text, guest_port| Forward { transport, at: at(text), guest_port };
    assert_eq!(
        parsed.forwards,
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
    let Ok(parsed) = parsed(text) else { panic!("refused") };
    assert!(parsed.config.policy.host && parsed.config.policy.restrict);
    assert_eq!(parsed.config.policy.deny, [("10.0.0.0".parse().unwrap(), 8)]);
    assert_eq!(parsed.config.guest_mac, [0x52, 0x54, 0, 1, 2, 3]);
    assert_eq!((parsed.config.mtu, parsed.pairs), (9000, 1));
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
    ] {
        assert!(parsed(text).is_err(), "{text}");
    }
}
