//! An hour's hard work on the software engine, for `make soak`.

use std::time::Duration;

use guise_testkit::assets::Kernel;
use guise_testkit::initramfs;

use crate::support::{Boot, PATIENCE, alone, have, not_run};

/// Compile-like load, memory pressure and the torture program on two vCPUs: every job
/// checks what it made, and nothing may be lost.
#[test]
fn nothing_is_lost_under_load() {
    const SECONDS: &str = "GUISE_SOAK_SECONDS";
    let Some(seconds) = std::env::var_os(SECONDS) else {
        return not_run("the soak of the software engine", "make soak runs it");
    };
    let seconds = seconds.to_str().and_then(|text| text.parse::<u64>().ok());
    let seconds = seconds.unwrap_or_else(|| panic!("{SECONDS} is a number of seconds"));
    let _turn = alone();
    let job = format!("console=ttyS0 -- \"sh /bin/soak.sh {seconds}\"");
    let ended = Boot::kernel(&have(Kernel::Debian12Cloud.image()))
        .initrd(&have(initramfs::with_soak()))
        .args(["--engine", "soft", "--cpus", "2", "--memory", "256M", "--append", &job])
        .start()
        .with_patience(Duration::from_secs(seconds) + PATIENCE)
        .finish();
    ended.expect_code(0).expect_clean_log();
    let last = ended.output.lines().find(|line| line.contains("soak: over")).unwrap_or_default();
    println!("{last}");
    assert!(!ended.output.contains("LOST"), "{}", ended.output);
    let counts: Vec<u64> = last.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(counts.len() == 3 && counts.iter().all(|&count| count > 0), "{}", ended.output);
}
