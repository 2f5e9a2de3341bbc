use guise_api::{InstanceSpec, InstanceStatus, Quota, Resources};

use super::*;

fn instance(resources: Resources, guise: Guise) -> Instance {
    Instance {
        id: "0123456789ab".to_owned(),
        name: "it".to_owned(),
        project: "lab".to_owned(),
        created: String::new(),
        generation: 1,
        revision: 1,
        removing: false,
        spec: InstanceSpec { resources, ..InstanceSpec::default() },
        status: InstanceStatus { guise, ..InstanceStatus::default() },
    }
}

fn project(quota: Quota) -> Project {
    let name = "lab".to_owned();
    Project { name, created: String::new(), quota, reserved: Reserved::default() }
}

#[test]
fn what_was_taken_is_given_back() {
    let it = instance(
        Resources { cpus: Some(0.1), memory_bytes: Some(5 << 20), ..Resources::default() },
        Guise::Container,
    );
    let mut lab = project(Quota { vcpus: Some(0.3), ..Quota::default() });
    for _ in 0..3 {
        lab.reserved = reserve(&lab, &it).unwrap();
    }
    assert_eq!(reserve(&lab, &it).unwrap_err().code, Code::Exhausted);
    for _ in 0..3 {
        lab.reserved = release(lab.reserved, &it);
    }
    assert_eq!(lab.reserved, Reserved::default());
    assert_eq!(total([&it, &it].into_iter()).memory_bytes, 10 << 20);
}

#[test]
fn each_limit_is_kept_and_asks_for_a_number() {
    let nothing = instance(Resources::default(), Guise::Microvm);
    let much = Resources {
        cpus: Some(2.0),
        memory_bytes: Some(2 << 30),
        disk_bytes: Some(2 << 30),
        ..Resources::default()
    };
    let much = instance(much, Guise::Microvm);
    for quota in [
        Quota { vcpus: Some(1.5), ..Quota::default() },
        Quota { memory_bytes: Some(1 << 30), ..Quota::default() },
        Quota { disk_bytes: Some(1 << 30), ..Quota::default() },
    ] {
        let lab = project(quota);
        assert_eq!(reserve(&lab, &nothing).unwrap_err().code, Code::Invalid);
        assert_eq!(reserve(&lab, &much).unwrap_err().code, Code::Exhausted);
    }
    let none = project(Quota { instances: Some(0), ..Quota::default() });
    assert_eq!(reserve(&none, &nothing).unwrap_err().code, Code::Exhausted);
    let disk = project(Quota { disk_bytes: Some(1 << 40), ..Quota::default() });
    assert!(reserve(&disk, &much).is_ok());
}

#[test]
fn what_has_a_disk_of_its_own_takes_its_size() {
    let size = Resources { disk_bytes: Some(64 << 20), ..Resources::default() };
    let mut lab = project(Quota { disk_bytes: Some(160 << 20), ..Quota::default() });
    for guise in [Guise::Container, Guise::Wasm] {
        let sized = instance(size.clone(), guise);
        lab.reserved = reserve_where(&lab, &sized, || None).unwrap();
        let unsized_one = instance(Resources::default(), guise);
        let unsaid = reserve_where(&lab, &unsized_one, || None).unwrap_err();
        assert_eq!(unsaid.code, Code::Invalid);
        assert!(unsaid.to_string().contains("--disk-size"), "{unsaid}");
        // Who cannot have a limit is told that, and not to ask for one.
        for one in [sized, unsized_one] {
            let refused = reserve_where(&lab, &one, || Some("only root can")).unwrap_err();
            assert_eq!(refused.code, Code::Unsupported);
            let told = refused.to_string();
            assert!(told.contains("only root can") && !told.contains("--disk-size"), "{told}");
            assert_eq!(told.contains("--as microvm"), guise == Guise::Container, "{told}");
        }
    }
    assert_eq!(lab.reserved.disk_bytes, 128 << 20);
    let third = instance(size.clone(), Guise::Container);
    let refused = reserve_where(&lab, &third, || None).unwrap_err();
    assert_eq!(refused.code, Code::Exhausted);
    assert!(refused.message.contains("160 MiB of disk space, and would have 192"), "{refused}");
    lab.reserved = release(lab.reserved, &third);
    assert!(reserve_where(&lab, &third, || None).is_ok());
    // Machines have one everywhere.
    let machine = instance(size, Guise::Microvm);
    assert!(reserve_where(&lab, &machine, || Some("only root can")).is_ok());
}
