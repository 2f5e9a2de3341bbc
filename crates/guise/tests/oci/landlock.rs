//! Landlock rules on real programs.

use serde_json::json;

use crate::bundle::Bundle;

/// Whether the kernel that runs this test has Landlock.
fn has_landlock() -> bool {
    let there = guise_container::process::landlock::version() > 0;
    if !there {
        println!("did not run: this kernel runs without Landlock");
    }
    there
}

#[test]
fn only_what_is_allowed_is_within_reach() {
    let script = "cat /etc/hello; cat /opt/secret; echo x > /tmp/new && echo written; \
                  echo x > /etc/new; ls / ; true";
    let Some(mut bundle) = Bundle::new("landlock", script) else { return };
    std::fs::write(bundle.path("etc/hello"), "hello\n").unwrap();
    std::fs::create_dir(bundle.path("opt")).unwrap();
    std::fs::write(bundle.path("opt/secret"), "secret\n").unwrap();
    if !has_landlock() {
        return;
    }
    bundle.config["annotations"] = json!({
        "org.guise.landlock.read": "/bin:/etc:/nosuch",
        "org.guise.landlock.write": "/tmp:/dev/null",
    });
    let (status, out, err) = bundle.run();
    assert_eq!((status, out.as_str()), (0, "hello\nwritten\n"), "{err}");
    assert_eq!(err.matches("ermission denied").count(), 3, "{err}");
    // A program that may not be executed is no program.
    bundle.config["annotations"]["org.guise.landlock.read"] = json!("/etc");
    let (status, out, _) = bundle.run();
    assert_eq!((status, out.as_str()), (126, ""));
}

#[test]
fn programs_that_come_later_have_the_same_rules() {
    let Some(mut bundle) = Bundle::new("landexec", "sleep 600") else { return };
    std::fs::write(bundle.path("etc/secret"), "secret\n").unwrap();
    if !has_landlock() {
        return;
    }
    bundle.config["annotations"] = json!({ "org.guise.landlock.read": "/bin" });
    bundle.start();
    let mut exec = bundle.command(&["exec", &bundle.id, "cat", "/etc/secret"]);
    let output = exec.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
}

#[test]
fn rules_need_no_new_privileges_and_known_names() {
    let Some(mut bundle) = Bundle::new("landbad", "true") else { return };
    bundle.config["annotations"] = json!({ "org.guise.landlock.read": "/bin" });
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    let (status, _, err) = bundle.run();
    assert_eq!(status, 1);
    assert!(err.contains("process.noNewPrivileges"), "{err}");
    bundle.config["process"]["noNewPrivileges"] = json!(true);
    bundle.config["annotations"] = json!({ "org.guise.landlock.none": "/bin" });
    let (status, _, err) = bundle.run();
    assert_eq!(status, 1);
    assert!(err.contains("org.guise.landlock.none"), "{err}");
}
