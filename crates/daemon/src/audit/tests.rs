use super::*;

fn record(who: &str, object: String) -> AuditRecord {
    AuditRecord {
        time: "2026-01-01T00:00:00Z".to_owned(),
        who: who.to_owned(),
        from: None,
        what: "POST /v1/instances".to_owned(),
        project: "default".to_owned(),
        object,
        status: 200,
        unwritten: 0,
    }
}

fn objects(records: &[AuditRecord]) -> Vec<&str> {
    records.iter().map(|record| record.object.as_str()).collect()
}

#[test]
fn records_outlive_the_files_that_they_are_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let audit = Audit { largest: 1000, ..Audit::new(path.clone()) };
    for number in 0..20 {
        audit.write(record("owner", format!("n{number}")));
    }
    assert!(path.with_extension("log.1").exists());
    assert!(std::fs::metadata(&path).unwrap().len() < 1200);
    assert_eq!(objects(&audit.last(3).unwrap()), ["n17", "n18", "n19"]);
    assert_eq!(objects(&audit.last(100).unwrap()).len(), 20);
    // Another daemon goes on where this one ended.
    let again = Audit::new(path);
    again.write(record("owner", "n20".to_owned()));
    assert_eq!(objects(&again.last(2).unwrap()), ["n19", "n20"]);
    for number in 0..1000 {
        audit.write(record("owner", format!("n{number}")));
    }
    assert!(std::fs::read_dir(folder.path()).unwrap().count() <= FILES);
}

#[test]
fn strangers_cannot_push_out_what_others_did() {
    let folder = tempfile::tempdir().unwrap();
    let audit = Audit::new(folder.path().join("audit.log"));
    audit.write(record("owner", "first".to_owned()));
    for _ in 0..10 * STRANGERS {
        audit.write(record("", "x".repeat(10_000)));
    }
    let records = audit.last(10_000).unwrap();
    assert_eq!(records.len() as u64, 1 + STRANGERS);
    assert_eq!(records[0].object, "first");
    assert_eq!(records[1].object.len(), LONGEST_FIELD);
    audit.open.lock().unwrap().minute = None;
    audit.write(record("", String::new()));
    assert_eq!(audit.last(1).unwrap()[0].unwritten, 9 * STRANGERS);
}

#[test]
fn a_line_that_was_cut_off_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let audit = Audit::new(path.clone());
    audit.write(record("owner", "whole".to_owned()));
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"time\":\"20\n").unwrap();
    audit.write(record("owner", "next".to_owned()));
    assert_eq!(objects(&audit.last(9).unwrap()), ["whole", "next"]);
}
