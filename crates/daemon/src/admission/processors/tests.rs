use super::*;

fn asked(cpus: Option<f64>, weight: Option<u64>, set: Option<&str>) -> Result<(), String> {
    let resources = Resources {
        cpus,
        cpu_weight: weight,
        cpuset: set.map(str::to_owned),
        ..Resources::default()
    };
    let host = Processors { numbers: vec![0, 1, 2, 5, 7], count: 5 };
    check_on(&host, &resources).map_err(|error| error.message)
}

#[test]
fn lists_are_understood_and_name_what_is_there() {
    for good in ["0", "0,2", "0-2", "7,5", "0-1,1-2", "5-5"] {
        assert_eq!(asked(None, None, Some(good)), Ok(()), "{good}");
    }
    for bad in ["", ",", "0,", "2-0", "a", "0 1", "0, 1", "-1", "0-", "99999999999999999999"] {
        let error = asked(None, None, Some(bad)).unwrap_err();
        assert!(error.contains("no list of processors"), "{bad}: {error}");
    }
    let missing = "processor 3 was asked for, and this host has 0-2,5,7";
    assert_eq!(asked(None, None, Some("2-4")), Err(missing.to_owned()));
    assert!(asked(None, None, Some("8191")).is_err() && asked(None, None, Some("0-8191")).is_err());
}

#[test]
fn no_instance_has_more_processors_than_there_are_for_it() {
    assert_eq!(asked(Some(5.0), None, None), Ok(()));
    let many = "5.5 processors were asked for, and this host has 5";
    assert_eq!(asked(Some(5.5), None, None), Err(many.to_owned()));
    assert_eq!(asked(Some(1.5), None, Some("0,5")), Ok(()));
    let many = "3 processors were asked for, and --cpuset 0,5,5 has 2";
    assert_eq!(asked(Some(3.0), None, Some("0,5,5")), Err(many.to_owned()));
    for none in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(asked(Some(none), None, None).is_err(), "{none}");
    }
}

#[test]
fn weights_are_those_of_the_kernel() {
    for weight in [1, 100, 10_000] {
        assert_eq!(asked(None, Some(weight), None), Ok(()));
    }
    for weight in [0, 10_001, u64::MAX] {
        assert!(asked(None, Some(weight), None).unwrap_err().contains("no weight"));
    }
}

#[test]
fn this_host_has_some() {
    let host = Processors::of_host();
    assert!(host.count >= 1 && host.numbers.len() >= host.count);
}
