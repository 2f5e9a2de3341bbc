use std::sync::Arc;

use guise_state::embedded::EmbeddedStore;

use super::*;
use crate::pool::Ballast;

fn objects() -> (tempfile::TempDir, Objects) {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("state.redb")).unwrap();
    let ballast = Ballast::new(folder.path());
    (folder, Objects::new(Arc::new(store), ballast).unwrap())
}

fn code<T: std::fmt::Debug>(result: Result<T, ApiError>) -> Code {
    result.unwrap_err().code
}

#[tokio::test]
async fn a_token_is_known_by_its_secret_alone() {
    let (_folder, objects) = objects();
    let grants = Grants::from([("lab".to_owned(), Role::Operator)]);
    let (record, text) = TokenRecord::make("robot_1", grants, None).unwrap();
    let kept = serde_json::to_string(&record).unwrap();
    let secret = text.rsplit_once('_').unwrap().1;
    assert_eq!(secret.len(), DIGITS);
    assert!(!kept.contains(secret), "{kept}");
    objects.create_token(&record).await.unwrap();
    assert_eq!(code(objects.create_token(&record).await), Code::Conflict);
    let known = Identity::of_token(&objects, &text).unwrap();
    assert_eq!(known.who, "robot_1");
    assert_eq!(known.role_in("lab"), Some(Role::Operator));
    assert_eq!(known.role_in("default"), None);
    assert_eq!(known.role_in(ALL_PROJECTS), None);
    let mut other = text.clone();
    let last = if other.ends_with('0') { '1' } else { '0' };
    other.pop();
    other.push(last);
    for wrong in
        ["", "guise_", "guise__", "guise_robot_1_", "guise_../x_0", "robot_1", &other, &text[1..]]
    {
        assert_eq!(code(Identity::of_token(&objects, wrong)), Code::Unauthorized, "{wrong}");
    }
    objects.remove_token("robot_1").await.unwrap();
    assert_eq!(code(Identity::of_token(&objects, &text)), Code::Unauthorized);
    assert_eq!(code(objects.remove_token("robot_1").await), Code::NotFound);
}

#[tokio::test]
async fn a_token_stops_working_when_its_time_is_over() {
    let (_folder, objects) = objects();
    let life = Some(Duration::ZERO);
    let (record, text) = TokenRecord::make("brief", Grants::default(), life).unwrap();
    assert!(record.shown().expired);
    objects.create_token(&record).await.unwrap();
    assert_eq!(code(Identity::of_token(&objects, &text)), Code::Unauthorized);
    let (long, _) = TokenRecord::make("long", Grants::default(), Some(Duration::MAX)).unwrap();
    assert!(!long.shown().expired);
}

#[test]
fn a_role_everywhere_counts_in_each_project() {
    let grants =
        Grants::from([(ALL_PROJECTS.to_owned(), Role::Viewer), ("lab".to_owned(), Role::Admin)]);
    let somebody = Identity::with("it", grants);
    assert_eq!(somebody.role_in("lab"), Some(Role::Admin));
    assert_eq!(somebody.role_in("other"), Some(Role::Viewer));
    assert_eq!(somebody.role_in(ALL_PROJECTS), Some(Role::Viewer));
    assert_eq!(Identity::owner().role_in("any"), Some(Role::Admin));
}
