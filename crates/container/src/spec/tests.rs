use super::*;

const MINIMAL: &str = r#"{"ociVersion":"1.0.2","process":{"args":["/bin/true"],"cwd":"/"},
    "root":{"path":"rootfs"},"linux":{"namespaces":[{"type":"pid"},{"type":"uts"}]}}"#;

#[test]
fn minimal_configuration_is_read() {
    let spec = parse_spec(MINIMAL.as_bytes()).unwrap();
    assert_eq!(spec.process.unwrap().args, ["/bin/true"]);
    assert!(spec.linux.namespaces.iter().any(|n| n.kind == NamespaceKind::Pid));
}

#[test]
fn null_stands_for_an_absent_list() {
    let text = MINIMAL.replace(r#""linux":{"#, r#""mounts":null,"linux":{"devices":null,"#);
    assert!(parse_spec(text.as_bytes()).unwrap().mounts.is_empty());
}

#[test]
fn bad_configurations_are_refused_with_the_field() {
    let cases = [
        (r#""ociVersion":"1.0.2""#, r#""ociVersion":"2.0.0""#, "ociVersion"),
        (r#""ociVersion":"1.0.2""#, r#""ociVersion":"banana""#, "ociVersion"),
        (r#""args":["/bin/true"]"#, r#""args":[]"#, "process.args"),
        (r#""cwd":"/""#, r#""cwd":"tmp""#, "process.cwd"),
        (r#"{"type":"uts"}"#, r#"{"type":"pid"}"#, "linux.namespaces"),
        (r#"{"type":"uts"}"#, r#"{"type":"user"}"#, "linux.uidMappings"),
        (r#""linux":{"#, r#""linux":{"maskedPaths":["proc"],"#, "linux.maskedPaths"),
        (r#""linux":{"#, r#""linux":{"devices":[{"type":"x","path":"/d"}],"#, "linux.devices"),
        (r#"{"type":"uts"}]"#, r#"{"type":"uts"}],"timeOffsets":{"boottime":{}}"#, "timeOffsets"),
        (r#""root":{"path":"rootfs"},"#, "", "root"),
    ];
    for (from, to, field) in cases {
        let text = MINIMAL.replace(from, to);
        assert_ne!(text, MINIMAL);
        let error = parse_spec(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(field), "{to}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn unknown_namespace_is_an_error_and_unknown_field_is_not() {
    let unknown = MINIMAL.replace(r#""uts""#, r#""quux""#);
    assert!(parse_spec(unknown.as_bytes()).is_err());
    let extra = MINIMAL.replace(r#""root""#, r#""fromTheFuture":{"a":[1]},"root""#);
    assert!(parse_spec(extra.as_bytes()).is_ok());
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let text = format!("{}{}", r#"{"annotations":"#, "[".repeat(1 << 20));
    assert!(parse_spec(text.as_bytes()).is_err());
}
