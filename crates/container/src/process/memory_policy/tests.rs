use super::*;

fn policy(mode: &str, nodes: &str, flags: &[&str]) -> MemoryPolicy {
    MemoryPolicy {
        mode: mode.into(),
        nodes: nodes.into(),
        flags: flags.iter().map(|&flag| flag.into()).collect(),
    }
}

#[test]
fn names_and_nodes() {
    let parsed = parse(&policy("MPOL_BIND", "0-1,3", &["MPOL_F_STATIC_NODES"])).unwrap();
    assert_eq!(parsed, Policy { mode: 2 | 1 << 15, nodes: vec![0, 1, 3] });
    assert!(parse(&policy("MPOL_DEFAULT", "", &[])).unwrap().nodes.is_empty());
    for bad in [
        policy("BIND", "0", &[]),
        policy("", "0", &[]),
        policy("MPOL_BIND", "0", &["STATIC"]),
        policy("MPOL_BIND", "0-9876543210", &[]),
        policy("MPOL_BIND", "3-1", &[]),
    ] {
        assert!(check(&bad).is_err(), "{bad:?}");
    }
}
