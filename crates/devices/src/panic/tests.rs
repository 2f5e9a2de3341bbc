use std::sync::Mutex;

use super::*;

#[test]
fn events_are_told() {
    let seen: Arc<Mutex<Vec<PowerRequest>>> = Arc::default();
    let sink = seen.clone();
    let port = Pvpanic::new(Arc::new(move |request| sink.lock().unwrap().push(request)));
    let mut data = [0];
    port.read(0, &mut data);
    assert_eq!(data, [3]);
    for event in [0, 1, 2, 3, 4] {
        port.write(0, &[event]);
    }
    port.write(0, &[]);
    let expected = [PowerRequest::Panicked, PowerRequest::CrashLoaded, PowerRequest::CrashLoaded];
    assert_eq!(*seen.lock().unwrap(), expected);
}
