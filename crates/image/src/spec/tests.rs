use super::*;

fn descriptor(media_type: &str) -> String {
    format!(
        r#"{{"mediaType":"{media_type}","digest":"{}","size":2,"newField":[1]}}"#,
        Digest::of(b"{}")
    )
}

fn manifest() -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
        media::OCI_MANIFEST,
        descriptor(media::OCI_CONFIG),
        descriptor(media::OCI_LAYER_GZIP)
    )
}

#[test]
fn manifests_parse_and_unknown_fields_pass() {
    let Document::Manifest(m) =
        Document::parse(manifest().as_bytes(), media::OCI_MANIFEST).unwrap()
    else {
        panic!("an index?")
    };
    assert_eq!(m.layers.len(), 1);
    assert_eq!(m.config.size, 2);
}

#[test]
fn a_document_that_two_readers_would_read_differently_is_refused() {
    let both = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}}"#,
        descriptor(media::OCI_CONFIG)
    );
    for media_type in ["", media::OCI_MANIFEST, media::OCI_INDEX] {
        let error = Document::parse(both.as_bytes(), media_type).unwrap_err();
        assert!(error.to_string().contains("both"), "{error}");
    }
    let error = Document::parse(manifest().as_bytes(), media::OCI_INDEX).unwrap_err();
    assert!(error.to_string().contains("descriptor says"), "{error}");
}

#[test]
fn malformed_documents_are_errors() {
    for text in [
        "",
        "[]",
        "{}",
        r#"{"schemaVersion":1,"fsLayers":[]}"#,
        r#"{"schemaVersion":2}"#,
        r#"{"schemaVersion":2,"mediaType":"text/html"}"#,
        r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:0"}]}"#,
        r#"{"schemaVersion":2,"layers":[],"config":{"mediaType":"x","digest":"sha256:","size":-1}}"#,
    ] {
        assert!(Document::parse(text.as_bytes(), "").is_err(), "{text}");
    }
    let huge = manifest().replace("\"size\":2", &format!("\"size\":{}", u64::MAX));
    assert!(Document::parse(huge.as_bytes(), "").is_err());
}

#[test]
fn nulls_from_go_are_empty() {
    let config = Config::parse(
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
            "config":{"Env":null,"Cmd":["sh"],"Volumes":{"/data":{}},"Labels":null,"Entrypoint":null}}"#,
    )
    .unwrap();
    let process = config.config.unwrap();
    assert_eq!(process.cmd, ["sh"]);
    assert!(process.env.is_empty());
    assert!(process.volumes.contains_key("/data"));
}

#[test]
fn chain_ids_follow_the_specification() {
    let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
    let chain = chain_ids(&[a, b, c]);
    assert_eq!(chain[0], a);
    assert_eq!(chain[1], Digest::of(format!("{a} {b}").as_bytes()));
    assert_eq!(chain[2], Digest::of(format!("{} {c}", chain[1]).as_bytes()));
}

#[test]
fn platforms_match_by_what_was_asked() {
    let arm: Platform = "linux/arm/v7".parse().unwrap();
    assert!(arm.serves(&"linux/arm".parse().unwrap()));
    assert!(!arm.serves(&"linux/arm/v6".parse().unwrap()));
    assert!("linux".parse::<Platform>().is_err());
    assert!("linux/a/b/c".parse::<Platform>().is_err());
}
