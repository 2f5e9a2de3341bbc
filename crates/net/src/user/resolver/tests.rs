//! Queries for names.

use super::*;

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, kind as u8, 0, 1]);
    bytes
}

fn config() -> Config {
    let addresses = vec!["10.0.2.16".parse().unwrap(), "fd00::16".parse().unwrap()];
    Config { names: [("web".to_owned(), addresses)].into(), ..Config::default() }
}

#[test]
fn names_of_the_network_are_answered() {
    let answer = answer(&config(), &query("WEB", TYPE_A)).unwrap();
    assert_eq!(answer[..4], [0x12, 0x34, 0x85, 0x80]);
    assert_eq!(answer[6..8], [0, 1]);
    assert_eq!(answer[answer.len() - 4..], [10, 0, 2, 16]);
    let six = super::answer(&config(), &query("web", TYPE_AAAA)).unwrap();
    assert_eq!(six[six.len() - 2..], [0, 0x16]);
    // The name exists, but has nothing of this kind: an answer without addresses.
    let none = super::answer(&config(), &query("web", 15)).unwrap();
    assert_eq!(none[6..8], [0, 0]);
}

#[test]
fn others_are_not() {
    assert_eq!(answer(&config(), &query("example.org", TYPE_A)), None);
    let mut response = query("web", TYPE_A);
    response[2] |= 0x80;
    assert_eq!(answer(&config(), &response), None);
}

#[test]
fn no_query_is_too_strange() {
    let good = query("web", TYPE_A);
    for length in 0..good.len() {
        assert_eq!(answer(&config(), &good[..length]), None, "{length}");
    }
    for at in 0..good.len() {
        for value in [0, 1, 63, 64, 0xc0, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            answer(&config(), &bad);
        }
    }
}

#[test]
fn resolvers_are_found() {
    let text =
        "# comment\nnameserver 192.0.2.1\nsearch example\nnameserver fe80::1%eth0\nnameserver x\n";
    let found: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["192.0.2.1:53", "[fe80::1]:53"]);
}
