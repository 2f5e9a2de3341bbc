//! Filters on real programs.

use serde_json::json;

use crate::bundle::Bundle;

#[test]
fn denied_calls_fail_as_the_profile_says() {
    let Some(mut bundle) = Bundle::new("seccomp", "mkdir /tmp/x; touch /tmp/y && echo touched")
    else {
        return;
    };
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 },
        ],
    });
    for no_new_privileges in [true, false] {
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let (_, out, err) = bundle.run();
        assert_eq!(out, "touched\n", "{err}");
        assert!(err.contains("No space left"), "{err}");
    }
}

/// The filter is the last thing before the program: a profile needs to allow
/// only what the program itself does.
#[test]
fn a_profile_of_only_what_the_program_needs() {
    let Some(mut bundle) = Bundle::new("tight", "") else { return };
    bundle.config["process"]["args"] = json!(["/bin/true"]);
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{
            "names": ["execve", "brk", "arch_prctl", "set_tid_address", "set_robust_list", "rseq",
                      "prlimit64", "readlink", "readlinkat", "getrandom", "mprotect", "prctl",
                      "getuid", "exit_group", "mmap", "munmap", "newfstatat", "getpid"],
            "action": "SCMP_ACT_ALLOW",
        }],
    });
    let (status, _, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
}
