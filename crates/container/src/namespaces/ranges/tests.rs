use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n\
                      :x:1000:1000::/:/bin/sh\nalso:x:1000:1000::/home/ann:/bin/sh\n";

fn map(container: u32, host: u32, size: u32) -> IdMap {
    IdMap { container, host, size }
}

#[test]
fn a_user_has_all_names_of_its_number() {
    assert_eq!(names_of(1000, PASSWD), ["ann", "also"]);
    assert!(names_of(7, PASSWD).is_empty());
}

#[test]
fn ranges_are_those_of_the_users_names_and_number() {
    let names = names_of(1000, PASSWD);
    let text = "bob:100000:65536\nann:165536:65536\n1000:300000:5\n# ann:1:1\n ann:7:1 \n";
    assert_eq!(ranges(text, 1000, &names), [(165_536, 65_536), (300_000, 5), (7, 1)]);
    assert!(ranges(text, 1001, &[]).is_empty());
}

#[test]
fn what_is_no_range_is_left_out() {
    for odd in [
        "",
        "ann",
        "ann:1",
        "ann:1:",
        "ann:x:2",
        "ann:1:0",
        "ann:-1:5",
        "ann:4294967295:1",
        "ann:4294967290:6",
        "ann:1:4294967295",
        "ann:99999999999:1",
        "annx:1:1",
        ":1:1",
    ] {
        assert!(ranges(odd, 1000, &["ann".to_owned()]).is_empty(), "{odd}");
    }
    let many = "ann:1:1\n".repeat(1000);
    assert_eq!(ranges(&many, 1000, &["ann".to_owned()]).len(), MAX_RANGES);
}

#[test]
fn the_user_is_root_and_the_ranges_follow() {
    assert_eq!(mapping(1000, &[]), None);
    let two = [(100_000, 65_536), (300_000, 10)];
    let all = [map(0, 1000, 1), map(1, 100_000, 65_536), map(65_537, 300_000, 10)];
    assert_eq!(mapping(1000, &two), Some(all.to_vec()));
}

#[test]
fn nobody_is_mapped_twice() {
    // The user itself, the same range again, one that begins within another.
    let odd = [(999, 2), (100_000, 10), (100_000, 10), (100_009, 5), (99_999, 2), (100_010, 1)];
    let all = [map(0, 1000, 1), map(1, 100_000, 10), map(11, 100_010, 1)];
    assert_eq!(mapping(1000, &odd), Some(all.to_vec()));
    // There is no room behind it for another.
    let wide = [(2000, u32::MAX - 2001), (5, 1), (6, 1)];
    let room = mapping(1000, &wide).unwrap();
    assert!(room.iter().all(|map| map.container.checked_add(map.size).is_some()));
}

#[test]
fn programs_are_found() {
    assert!(find_program("sh").is_some());
    assert!(find_program("no-such-program").is_none());
}

#[test]
fn a_mapping_is_read_as_the_kernel_writes_it() {
    let text = "         0       1000          1\n         1     100000      65536\n";
    assert_eq!(parse(text), [map(0, 1000, 1), map(1, 100_000, 65_536)]);
    assert_eq!(parse("0 0 4294967295\n"), [map(0, 0, u32::MAX)]);
    for odd in ["", "0 0", "x y z", "18446744073709551615 0 9", "-1 0 1"] {
        assert!(parse(odd).is_empty(), "{odd}");
    }
}
