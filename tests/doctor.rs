//! `guise doctor` on this host.

use std::process::Command;

fn doctor(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_guise"))
        .arg("doctor")
        .args(arguments)
        .output()
        .expect("the binary starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_table_fits_80_columns_and_names_everything() {
    let table = doctor(&[]);
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    for name in [
        "VT-x / AMD-V",
        "nested paging",
        "/dev/kvm",
        "IOMMU",
        "AMD SEV",
        "Intel TDX",
        "Intel SGX",
        "user",
        "time",
        "version",
        "KSM",
        "huge pages",
        "TUN",
        "overlayfs",
        "io_uring",
        "userfaultfd",
        "open files",
    ] {
        assert!(table.contains(&format!(" {name} ")), "{name} is missing:\n{table}");
    }
}

#[test]
fn json_holds_what_the_table_shows() {
    let report: serde_json::Value = serde_json::from_str(&doctor(&["-o", "json"])).expect("JSON");
    let groups = report["groups"].as_array().expect("groups");
    let findings = groups.iter().flat_map(|group| group["findings"].as_array().expect("findings"));
    for finding in findings {
        let status = finding["status"].as_str();
        assert!(matches!(status, Some("found" | "limited" | "missing")), "{finding}");
        assert_eq!(finding["remedy"].is_string(), status != Some("found"), "{finding}");
    }
}
