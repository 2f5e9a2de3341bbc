use super::*;

fn recorder() -> (Arc<Mutex<Vec<bool>>>, Arc<dyn IrqLine>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    (seen, Arc::new(move |level: bool| sink.lock().unwrap().push(level)))
}

#[test]
fn a_shared_line_is_high_while_one_source_is() {
    let (seen, line) = recorder();
    let shared = SharedLine::new(line);
    let (a, b) = (shared.source(), shared.source());
    a.set(true);
    a.set(true);
    b.set(true);
    a.set(false);
    assert_eq!(*seen.lock().unwrap(), [true]);
    drop(b);
    assert_eq!(*seen.lock().unwrap(), [true, false]);
}

#[test]
fn a_fanout_reaches_every_line() {
    let (first, a) = recorder();
    let (second, b) = recorder();
    Fanout::new(vec![a, b]).pulse();
    assert_eq!(*first.lock().unwrap(), [true, false]);
    assert_eq!(*second.lock().unwrap(), [true, false]);
}
