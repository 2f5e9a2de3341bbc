use super::*;

const GIB: u64 = 1 << 30;

fn wanting(memory: Option<u64>) -> Instance {
    let text = r#"{"id": "0", "name": "it", "created": "", "generation": 1, "spec": {}}"#;
    let mut instance: Instance = serde_json::from_str(text).unwrap();
    instance.spec.resources.memory_bytes = memory;
    instance
}

#[test]
fn memory_is_not_promised_twice_and_some_is_kept() {
    let rules = Rules::default();
    assert!(rules.admit(&wanting(Some(14 * GIB)), &[], 16 * GIB).is_ok());
    // 16 GiB less a tenth.
    assert!(rules.admit(&wanting(Some(15 * GIB)), &[], 16 * GIB).is_err());
    assert!(rules.admit(&wanting(Some(8 * GIB)), &[4 * GIB, 4 * GIB], 16 * GIB).is_err());
    assert!(rules.admit(&wanting(Some(6 * GIB)), &[4 * GIB, 4 * GIB], 16 * GIB).is_ok());
    // Of a large host two are kept, not a tenth.
    assert!(rules.admit(&wanting(Some(97 * GIB)), &[], 100 * GIB).is_ok());
    let refused = rules.admit(&wanting(Some(2 * GIB)), &[u64::MAX], 16 * GIB).unwrap_err();
    assert_eq!(refused.code, Code::Exhausted);
}

#[test]
fn what_is_said_goes() {
    let none_kept = Rules { kept: Some(0), overcommit: false };
    assert!(none_kept.admit(&wanting(Some(16 * GIB)), &[], 16 * GIB).is_ok());
    let over = Rules { kept: None, overcommit: true };
    assert!(over.admit(&wanting(Some(160 * GIB)), &[], 16 * GIB).is_ok());
    assert!(Rules::default().admit(&wanting(None), &[u64::MAX], 16 * GIB).is_ok());
}
