use super::*;

#[test]
fn what_was_said_is_heard_although_who_said_it_did_not_listen() {
    let (ours, theirs) = Channel::pair().unwrap();
    ours.send(b"for you", None).unwrap();
    theirs.send(b"last words", None).unwrap();
    drop(theirs);
    assert_eq!(ours.receive().unwrap().0, b"last words");
    assert!(ours.receive().unwrap().0.is_empty(), "then it is gone");
}
