use super::*;
use crate::spec::parse_spec;

fn spec(sysctl: &str, namespaces: &str) -> Spec {
    let text = format!(
        r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},
        "linux":{{"sysctl":{{"{sysctl}":"1"}},"namespaces":[{namespaces}]}}}}"#
    );
    parse_spec(text.as_bytes()).unwrap()
}

#[test]
fn sysctls_of_the_host_are_refused() {
    let net = r#"{"type":"network"}"#;
    assert!(check_sysctls(&spec("net.ipv4.ip_forward", net)).is_ok());
    assert!(check_sysctls(&spec("net/ipv4/conf/eth0.1/forwarding", net)).is_ok());
    assert!(check_sysctls(&spec("net.ipv4.ip_forward", "")).is_err());
    for bad in ["kernel.core_pattern", "vm.swappiness", "net.../x", "net/../kernel/core_pattern"] {
        assert!(check_sysctls(&spec(bad, net)).is_err(), "{bad}");
    }
}

#[test]
fn the_first_separator_decides() {
    assert_eq!(sysctl_file("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
    assert_eq!(sysctl_file("net/ipv4/conf/eth0.1/x"), "net/ipv4/conf/eth0.1/x");
}

#[test]
fn a_mapping_has_what_it_covers() {
    let map = |container, host, size| IdMap { container, host, size };
    let range = map(1, 100_000, 65_536);
    assert!(covers(&range, 1) && covers(&range, 65_536));
    assert!(!covers(&range, 0) && !covers(&range, 65_537));
    assert!(covers(&map(0, 1000, 1), 0) && !covers(&map(0, 1000, 1), 1000));
    assert!(covers(&map(0, 0, u32::MAX), u32::MAX - 1));
    assert!(has_ids(0, &[0]), "everybody is in some namespace with a root");
}
