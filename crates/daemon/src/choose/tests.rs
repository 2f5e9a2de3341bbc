use super::*;

fn spec() -> InstanceSpec {
    InstanceSpec { image: "app:1".to_owned(), ..InstanceSpec::default() }
}

#[test]
fn the_image_decides_where_nothing_is_said() {
    let chosen = |spec: &InstanceSpec, content| choose(spec, content).guise;
    assert_eq!(chosen(&spec(), Content::RootFs), Guise::Container);
    assert_eq!(chosen(&spec(), Content::Unknown), Guise::Container);
    assert_eq!(chosen(&spec(), Content::Wasm), Guise::Wasm);
    assert_eq!(chosen(&spec(), Content::WasmInRootFs), Guise::Wasm);
    let entrypoint =
        |name: &str| InstanceSpec { entrypoint: Some(vec![name.to_owned()]), ..spec() };
    assert_eq!(chosen(&entrypoint("/app.wasm"), Content::RootFs), Guise::Wasm);
    assert_eq!(chosen(&entrypoint("/bin/sh"), Content::WasmInRootFs), Guise::Container);
    // Arguments of the image's program are no programs.
    let arguments = InstanceSpec { command: vec!["data.wasm".to_owned()], ..spec() };
    assert_eq!(chosen(&arguments, Content::RootFs), Guise::Container);
    let asked = InstanceSpec { guise: Guise::Microvm, ..spec() };
    assert_eq!(chosen(&asked, Content::Wasm), Guise::Microvm);
    assert!(check(Guise::Microvm, Content::Wasm).is_err());
    assert!(check(Guise::Microvm, Content::WasmInRootFs).is_ok());
    assert!(check(Guise::Vm, Content::Wasm).is_err());
    assert!(check(Guise::Vm, Content::RootFs).is_ok());
    assert!(check(Guise::Vm, Content::Disk).is_ok());
}

#[test]
fn reasons_are_told() {
    for content in [Content::RootFs, Content::Unknown, Content::Wasm, Content::WasmInRootFs] {
        let explained = choose(&spec(), content);
        assert!(!explained.reasons.is_empty(), "{content:?}");
    }
    let of_vm =
        |content| choose(&InstanceSpec { guise: Guise::Vm, ..spec() }, content).reasons.join("\n");
    assert!(of_vm(Content::Disk).contains("a disk") && of_vm(Content::RootFs).contains("init"));
    assert_eq!(
        choose(&InstanceSpec { guise: Guise::Wasm, ..spec() }, Content::RootFs).reasons,
        ["--as wasm was asked for"]
    );
}
