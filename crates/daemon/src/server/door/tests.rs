use super::*;

#[test]
fn one_address_cannot_take_every_place() {
    let places = Arc::new(Places::default());
    let address = |last: u8| IpAddr::from([192, 0, 2, last]);
    let mut held: Vec<Place> = (0..MOST_OF_ONE).filter_map(|_| places.take(address(1))).collect();
    assert_eq!(held.len(), MOST_OF_ONE);
    assert!(places.take(address(1)).is_none());
    assert!(places.take(address(2)).is_some());
    held.pop();
    assert!(places.take(address(1)).is_some());
    for last in 3..8 {
        held.extend((0..MOST_OF_ONE).filter_map(|_| places.take(address(last))));
    }
    assert_eq!(held.len(), MOST_CONNECTIONS);
    drop(held);
    assert!(places.0.lock().unwrap().is_empty());
}
