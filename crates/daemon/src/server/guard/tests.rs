use std::collections::BTreeSet;

use guise_api::Grants;

use super::*;

/// What the API's description has, as `METHOD /path`.
fn described() -> BTreeSet<String> {
    let text = crate::openapi();
    let description: serde_json::Value = serde_json::from_str(&text).unwrap();
    let paths = description["paths"].as_object().unwrap();
    let requests = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().keys();
        methods.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    requests.collect()
}

#[test]
fn the_description_has_exactly_what_is_served() {
    let ruled: BTreeSet<String> =
        RULES.iter().map(|rule| format!("{} {}", rule.method, rule.path)).collect();
    assert_eq!(ruled.len(), RULES.len(), "one of them is there twice");
    assert_eq!(described(), ruled);
}

#[test]
fn whatever_changes_something_is_told() {
    let quiet: Vec<&str> = RULES
        .iter()
        .filter(|rule| rule.method != Method::GET && !rule.told)
        .map(|rule| rule.path)
        .collect();
    assert_eq!(quiet, ["/v1/explain", "/v1/instances/{name}/wait"]);
}

#[test]
fn a_wrong_method_is_told_with_the_right_ones() {
    let error = rule_of(&Method::PATCH, "/v1/volumes").err().unwrap();
    assert_eq!((error.code, error.hint.unwrap().as_str()), (Code::Method, "it has GET, POST"));
    assert!(rule_of(&Method::HEAD, "/v1/volumes").is_ok());
}

#[test]
fn a_viewer_of_one_project_sees_that_one() {
    let caller = |project: &str, grants: &[(&str, Role)]| Caller {
        identity: Identity::with(
            "it",
            grants.iter().map(|(name, role)| ((*name).to_owned(), *role)).collect::<Grants>(),
        ),
        project: project.to_owned(),
    };
    let lab = [("lab", Role::Viewer)];
    assert!(caller("lab", &lab).sees("lab"));
    assert!(caller("*", &lab).sees("lab"));
    assert!(!caller("*", &lab).sees("default"));
    assert!(!caller("lab", &lab).sees("*"));
    assert!(!caller("default", &lab).sees("default"));
    let all = [("*", Role::Viewer)];
    assert!(caller("lab", &all).sees("*") && caller("*", &all).sees("default"));
    assert!(!caller("lab", &all).sees("default"));
    assert!(caller("lab", &all).check_host("it").is_err());
    assert!(caller("lab", &[("lab", Role::Admin)]).check_host("it").is_ok());
}

#[test]
fn the_object_is_what_the_path_names() {
    assert_eq!(object_of("/v1/instances/{name}/stop", "/v1/instances/web/stop"), "web");
    assert_eq!(object_of("/v1/instances", "/v1/instances"), "");
}
