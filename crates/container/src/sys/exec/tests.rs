use std::os::fd::AsFd;

use super::*;
use crate::sys::clone::{Side, fork};
use crate::sys::socket::Channel;

/// Runs a program through the trampoline in a child process.
fn run(path: &str, args: &[&str], filter: Option<&[Instruction]>) -> (i32, Vec<u8>) {
    let (ours, theirs) = Channel::pair().unwrap();
    let text = |s: &str| CString::new(s).unwrap();
    let path = text(path);
    let args: Vec<CString> = args.iter().map(|a| text(a)).collect();
    let program = Program {
        path: &path,
        args: &args,
        env: &[text("GUISE_TEST=1")],
        filter: filter.map(|f| (f, 0)),
        report: Some(theirs.as_fd()),
    };
    let trampoline = Trampoline::new(&program).unwrap();
    // SAFETY: the child only makes system calls before it executes or exits;
    // nothing was allocated between the fork and the exec.
    match unsafe { fork(0, None) }.unwrap() {
        Side::Child => {
            let _ = crate::sys::cred::set_no_new_privileges();
            trampoline.jump(Some(theirs.as_fd()));
            crate::sys::clone::exit_now(99)
        }
        Side::Parent(child) => {
            drop(theirs);
            let (message, _) = ours.receive().unwrap();
            (child.wait().unwrap(), message)
        }
    }
}

#[test]
fn passes_arguments_and_environment() {
    let script = r#"test "$0" = zero && test "$1" = "a b" && test "$GUISE_TEST" = 1 && exit 7"#;
    let (status, report) = run("/bin/sh", &["sh", "-c", script, "zero", "a b"], None);
    assert_eq!((status, report.len()), (7, 0));
}

#[test]
fn reports_why_a_program_cannot_be_executed() {
    let (status, report) = run("/nonexistent", &["x"], None);
    assert_eq!(status, 126);
    assert_eq!(decode_report(&report).unwrap().raw_os_error(), Some(libc::ENOENT));
    let (_, report) = run("/etc/passwd", &["x"], None);
    assert_eq!(decode_report(&report).unwrap().raw_os_error(), Some(libc::EACCES));
}

#[test]
fn installs_the_filter_before_the_program() {
    let kill_all = [Instruction { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_KILL_PROCESS }];
    assert_eq!(run("/bin/true", &["true"], Some(&kill_all)).0, 128 + libc::SIGSYS);
}

#[test]
fn the_image_is_sealed_and_is_what_a_script_can_reach() {
    // The interpreter is the trampoline itself, which sees more than one
    // argument and ends instead of executing the script for ever.
    let script = std::env::temp_dir().join(format!("guise-self-{}", std::process::id()));
    std::fs::write(&script, "#!/proc/self/exe\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let (status, report) = run(script.to_str().unwrap(), &["x"], None);
    std::fs::remove_file(&script).unwrap();
    assert_eq!((status, report.len()), (126, 0));
}
