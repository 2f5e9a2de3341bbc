use super::*;

fn message(port: u32, event: u16, value: u16) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    bytes[..4].copy_from_slice(&port.to_le_bytes());
    bytes[4..6].copy_from_slice(&event.to_le_bytes());
    bytes[6..].copy_from_slice(&value.to_le_bytes());
    bytes
}

fn next(conversation: &mut Conversation) -> Option<Vec<u8>> {
    conversation.next(|_| "name", (80, 25))
}

#[test]
fn a_driver_that_repeats_itself_is_not_answered_more() {
    let mut conversation = Conversation::new(true, 2);
    for _ in 0..1000 {
        conversation.hear(message(0, DEVICE_READY, 1));
        conversation.hear(message(2, PORT_READY, 1));
    }
    let mut count = 0;
    while next(&mut conversation).is_some() {
        count += 1;
    }
    // Three ports, and the name and the state of one of them.
    assert_eq!(count, 5);
    assert!(!conversation.has_news());
}

#[test]
fn who_comes_and_goes_is_told_once_each() {
    let mut conversation = Conversation::new(false, 1);
    conversation.set_host_open(1, true);
    assert!(!conversation.has_news(), "the driver does not know the port yet");
    conversation.hear(message(1, PORT_READY, 1));
    assert_eq!(next(&mut conversation), Some([&message(1, PORT_NAME, 1)[..], b"name"].concat()));
    assert_eq!(next(&mut conversation), Some(message(1, PORT_OPEN, 1).to_vec()));
    conversation.set_host_open(1, true);
    assert!(!conversation.has_news());
    conversation.set_host_open(1, false);
    assert!(!conversation.may_come(1), "the driver has not heard that somebody has gone");
    assert_eq!(next(&mut conversation), Some(message(1, PORT_OPEN, 0).to_vec()));
    assert!(conversation.may_come(1));
}

#[test]
fn only_a_port_that_was_open_ends() {
    let mut conversation = Conversation::new(true, 1);
    conversation.hear(message(1, PORT_OPEN, 0));
    assert!(!conversation.ports[1].ending);
    conversation.hear(message(1, PORT_OPEN, 1));
    conversation.hear(message(1, PORT_OPEN, 0));
    assert!(conversation.ports[1].ending && !conversation.ports[1].guest_open);
    conversation.hear(message(1, PORT_READY, 1));
    assert!(!conversation.may_come(1), "what was sent has not arrived yet");
}
