use super::*;

const USERS: &str = "root:x:0:0:root:/root:/bin/bash\n# no\nweb:x:33:34::/srv:/bin/sh\nodd\n";
const GROUPS: &str = "root:x:0:\nwww:x:34:\naudio:x:29:web,other\nlogs:x:30:web\n";

fn find(text: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
    let user = User::find_in(text, &[], USERS, GROUPS)?;
    let groups = user.groups.iter().map(|gid| gid.as_raw()).collect();
    Ok((user.uid.as_raw(), user.gid.as_raw(), groups, user.home))
}

#[test]
fn users_are_found_by_name_and_by_number() {
    assert_eq!(find("").unwrap(), (0, 0, vec![], "/root".to_owned()));
    let web = (33, 34, vec![29, 30], "/srv".to_owned());
    assert_eq!(find("web").unwrap(), web);
    assert_eq!(find("33").unwrap(), web);
}

#[test]
fn a_group_that_is_given_is_the_only_one() {
    assert_eq!(find("web:audio").unwrap(), (33, 29, vec![], "/srv".to_owned()));
    assert_eq!(find("web:77").unwrap(), (33, 77, vec![], "/srv".to_owned()));
    assert_eq!(find(":audio").unwrap(), (0, 29, vec![], "/root".to_owned()));
}

#[test]
fn numbers_need_no_entry_and_names_do() {
    assert_eq!(find("1000").unwrap(), (1000, 0, vec![], "/".to_owned()));
    assert!(find("nobody").unwrap_err().contains("no user 'nobody'"));
    assert!(find("web:none").unwrap_err().contains("no group 'none'"));
    assert!(find("4294967295").is_err());
    assert!(find("odd").is_err());
}

#[test]
fn more_groups_come_on_top() {
    let user = User::find_in("web", &[5, 29], USERS, GROUPS).unwrap();
    let groups: Vec<u32> = user.groups.iter().map(|gid| gid.as_raw()).collect();
    assert_eq!(groups, [5, 29, 30]);
}
