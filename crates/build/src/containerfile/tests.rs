use super::*;

fn steps(text: &str) -> Vec<Instruction> {
    let file = Containerfile::parse(&format!("FROM scratch\n{text}")).unwrap();
    file.stages[0].steps.iter().map(|s| s.instruction.clone()).collect()
}

#[test]
fn stages_and_globals() {
    let file = Containerfile::parse("ARG V=12\nFROM debian:$V AS One\nFROM one\nRUN x\n").unwrap();
    assert_eq!(file.globals, [("V".to_owned(), Some("12".to_owned()))]);
    assert_eq!(file.stages[0].name.as_deref(), Some("one"));
    assert_eq!((file.stages[1].base.as_str(), file.stages[1].steps.len()), ("one", 1));
}

#[test]
fn commands_in_both_forms() {
    assert_eq!(
        steps("CMD [\"a\", \"b\"]\nENTRYPOINT a b\nRUN <<E\nx\nE\nRUN cat <<E > f\ny\nE\n"),
        [
            Instruction::Cmd(Command::Exec(vec!["a".into(), "b".into()])),
            Instruction::Entrypoint(Command::Shell("a b".into())),
            Instruction::Run { command: Command::Shell("x\n".into()), network: None },
            Instruction::Run {
                command: Command::Shell("cat <<E > f\ny\nE\n".into()),
                network: None
            },
        ]
    );
}

#[test]
fn values() {
    let all = steps("ENV A=1 B=\"2 3\"\nENV C the rest\nARG X Y=z\nEXPOSE 80 53/udp");
    assert_eq!(
        all[0],
        Instruction::Env(vec![("A".into(), "1".into()), ("B".into(), "\"2 3\"".into())])
    );
    assert_eq!(all[1], Instruction::Env(vec![("C".into(), "the rest".into())]));
    assert_eq!(all[2], Instruction::Arg(vec![("X".into(), None), ("Y".into(), Some("z".into()))]));
    assert_eq!(all[3], Instruction::Expose(vec!["80".into(), "53/udp".into()]));
}

#[test]
fn transfers() {
    let all = steps("COPY --from=one --chown=1:2 a b /to/\nADD [\"a file\", \"/to\"]");
    let Instruction::Copy(copy) = &all[0] else { panic!("{all:?}") };
    assert_eq!((copy.from.as_deref(), copy.owner.as_deref()), (Some("one"), Some("1:2")));
    assert_eq!((copy.sources.len(), copy.destination.as_str()), (2, "/to/"));
    let Instruction::Copy(add) = &all[1] else { panic!("{all:?}") };
    assert!(add.adds && add.sources == ["a file"]);
}

#[test]
fn health_checks() {
    let all = steps("HEALTHCHECK --interval=1m30s --retries=2 CMD true\nHEALTHCHECK NONE");
    let Instruction::Healthcheck(Health::Check { interval, retries, .. }) = &all[0] else {
        panic!("{all:?}")
    };
    assert_eq!((*interval, *retries), (Some(90_000_000_000), Some(2)));
    assert_eq!(all[1], Instruction::Healthcheck(Health::None));
}

#[test]
fn mistakes_name_their_line() {
    for text in [
        "RUN",
        "COPY a",
        "COPY a b c",
        "COPY --what=1 a b",
        "ONBUILD RUN x",
        "NOSUCH x",
        "SHELL /bin/sh",
        "ENV A",
        "HEALTHCHECK --interval=1 CMD x",
        "ARG 1=2",
        "FROM a b c",
        "RUN --mount=type=cache x",
    ] {
        let error = Containerfile::parse(&format!("FROM scratch\n\n{text}\n")).unwrap_err();
        assert!(error.to_string().starts_with("line 3: "), "{text}: {error}");
    }
    assert!(Containerfile::parse("RUN x").is_err());
    assert!(Containerfile::parse("").is_err());
}
