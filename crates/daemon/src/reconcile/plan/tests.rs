use guise_api::InstanceSpec;

use super::*;

fn instance(phase: Phase, spec: InstanceSpec) -> Instance {
    let mut instance: Instance = serde_json::from_str(
        r#"{"id": "0123456789ab", "name": "it", "created": "", "generation": 1, "spec": {}}"#,
    )
    .unwrap();
    instance.spec = spec;
    instance.status.phase = phase;
    instance.status.starts = 1;
    instance
}

fn wanted(running: bool, starts: u64) -> InstanceSpec {
    InstanceSpec { running, starts, ..InstanceSpec::default() }
}

#[test]
fn each_step_follows_from_what_is_wanted_and_what_is() {
    use Phase::*;
    let cases = [
        (Created, wanted(false, 1), Action::Wait),
        (Created, wanted(true, 2), Action::Start),
        (Starting, wanted(false, 1), Action::Wait),
        (Running, wanted(true, 1), Action::Wait),
        (Running, wanted(false, 1), Action::Stop { kill: false }),
        // A restart: first the one life, then the other.
        (Running, wanted(true, 2), Action::Stop { kill: false }),
        (Stopping, wanted(true, 2), Action::Wait),
        (Exited, wanted(true, 2), Action::Start),
        // It has ended by itself: nobody asked for another life.
        (Exited, wanted(true, 1), Action::Wait),
        (Failed, wanted(true, 1), Action::Wait),
        (Running, InstanceSpec { paused: true, ..wanted(true, 1) }, Action::Pause(true)),
        (Paused, wanted(true, 1), Action::Pause(false)),
        (Paused, InstanceSpec { paused: true, ..wanted(true, 1) }, Action::Wait),
        (Exited, InstanceSpec { remove_on_exit: true, ..wanted(true, 1) }, Action::Forget),
    ];
    for (phase, spec, expected) in cases {
        assert_eq!(
            plan(&instance(phase, spec.clone()), false, false),
            expected,
            "{phase:?} {spec:?}"
        );
    }
}

#[test]
fn removal_ends_what_runs_and_waits_for_who_looks() {
    let mut running = instance(Phase::Running, wanted(true, 1));
    running.removing = true;
    assert_eq!(plan(&running, true, false), Action::Stop { kill: true });
    running.status.phase = Phase::Exited;
    assert_eq!(plan(&running, true, false), Action::Remove);
    let once = instance(Phase::Exited, InstanceSpec { remove_on_exit: true, ..wanted(true, 1) });
    assert_eq!(plan(&once, true, false), Action::Wait);
    assert_eq!(plan(&once, false, true), Action::Wait);
}

#[test]
fn policies_restart_what_nobody_stopped() {
    let with = |restart, running| {
        let spec = InstanceSpec { restart, ..wanted(running, 1) };
        instance(Phase::Running, spec)
    };
    let always = with(Restart::Always, true);
    assert_eq!(restart_after(&always, Some(0), 0), Some(Duration::from_millis(100)));
    assert_eq!(restart_after(&always, None, 3), Some(Duration::from_millis(800)));
    assert_eq!(restart_after(&always, Some(1), 4000), Some(Duration::from_secs(60)));
    assert_eq!(restart_after(&with(Restart::Always, false), Some(0), 0), None);
    assert_eq!(restart_after(&with(Restart::No, true), Some(1), 0), None);
    let on_failure = with(Restart::OnFailure(Some(2)), true);
    assert_eq!(restart_after(&on_failure, Some(0), 0), None);
    assert!(restart_after(&on_failure, Some(3), 1).is_some());
    assert_eq!(restart_after(&on_failure, Some(3), 2), None);
}
