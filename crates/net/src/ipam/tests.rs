use super::*;

fn nobody(_: &str) -> bool {
    false
}

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

#[test]
fn leases_stay_and_are_never_given_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = Book::open(folder.path(), "lab", None).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..200 {
        let lease = book.lease(&format!("vm-{n}"), None, nobody).unwrap();
        assert!(book.subnet().may_be_leased(lease.address));
        assert!(seen.insert(lease.address), "an address given twice");
    }
    let before = book.lease("vm-7", None, nobody).unwrap();
    drop(book);
    let mut book = Book::open(folder.path(), "lab", None).unwrap();
    let after = book.lease("vm-7", None, nobody).unwrap();
    assert_eq!((before.address, before.mac), (after.address, after.mac));
    // MACs follow from names, wherever the book is.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut other = Book::open(elsewhere.path(), "lab", None).unwrap();
    let same = other.lease("vm-7", None, nobody).unwrap();
    assert_eq!((same.address, same.mac), (after.address, after.mac));
}

#[test]
fn overlapping_subnets_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let first = Book::open(folder.path(), "lab", Some(subnet("10.90.1.0/24"))).unwrap();
    let error = Book::open(folder.path(), "other", Some(subnet("10.90.0.0/16"))).err().unwrap();
    let text = error.to_string();
    assert_eq!(
        text,
        "10.90.0.0/16 overlaps 10.90.1.0/24 of the network 'lab'; choose another subnet"
    );
    let second = Book::open(folder.path(), "second", None).unwrap();
    assert!(!second.subnet().overlaps(&first.subnet()));
    let twice = Book::open(folder.path(), "lab", None).err().unwrap();
    assert!(matches!(twice, IpamError::InUse(_)));
    drop(first);
    let changed = Book::open(folder.path(), "lab", Some(subnet("10.91.0.0/24"))).err().unwrap();
    assert!(matches!(changed, IpamError::OtherSubnet { .. }));
}

#[test]
fn static_leases_are_kept_from_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = Book::open(folder.path(), "lab", Some(subnet("10.90.1.0/29"))).unwrap();
    let address = "10.90.1.5".parse().unwrap();
    book.fix("db", address).unwrap();
    assert!(matches!(book.fix("web", address), Err(IpamError::Taken { .. })));
    for wrong in ["10.90.1.0", "10.90.1.2", "10.90.1.7", "10.90.2.5"] {
        let refused = book.fix("web", wrong.parse().unwrap());
        assert!(matches!(refused, Err(IpamError::Outside(..))), "{wrong}");
    }
    // .4 and .6 are left; then it is full as long as those are there.
    let first = book.lease("a", None, nobody).unwrap().address;
    let second = book.lease("b", None, nobody).unwrap().address;
    assert!(first != second && first != address && second != address);
    assert!(matches!(book.lease("c", None, |_| true), Err(IpamError::Full(_))));
    let third = book.lease("c", None, |name| name == "b").unwrap().address;
    assert_eq!(third, first);
    assert_eq!(book.lease("db", None, nobody).unwrap().address, address);
}

#[test]
fn a_mac_belongs_to_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = Book::open(folder.path(), "lab", None).unwrap();
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    assert_eq!(book.lease("a", Some(mac), nobody).unwrap().mac, mac);
    assert!(matches!(book.lease("b", Some(mac), |_| true), Err(IpamError::MacTaken { .. })));
    assert_eq!(book.lease("b", Some(mac), nobody).unwrap().mac, mac);
}

#[test]
fn nonsense_is_refused() {
    for text in ["10.0.0.0", "10.0.0.1/24", "10.0.0.0/8", "10.0.0.0/30", "x/24", "0.1.0.0/16"] {
        assert!(text.parse::<Subnet>().is_err(), "{text}");
    }
    for name in ["", "-a", "a-", "A", "a.b", "../x", &"a".repeat(64)] {
        assert!(check_name(name).is_err(), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.json"), "{").unwrap();
    let error = Book::open(folder.path(), "lab", None).err().unwrap();
    assert!(error.to_string().contains("bad.json"), "{error}");
}
