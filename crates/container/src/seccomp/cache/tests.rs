use super::*;
use crate::spec::SyscallRule;

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("guise-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        let files = fs::read_dir(self.0.join(DIRECTORY)).unwrap();
        files.map(|f| f.unwrap().path()).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn profile(name: &str) -> Seccomp {
    Seccomp {
        default_action: "SCMP_ACT_ALLOW".into(),
        syscalls: vec![SyscallRule {
            names: vec![name.into()],
            action: "SCMP_ACT_ERRNO".into(),
            ..SyscallRule::default()
        }],
        ..Seccomp::default()
    }
}

fn words(compiled: &Compiled) -> Vec<(u16, u8, u8, u32)> {
    compiled.program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
}

#[test]
fn the_second_time_it_is_read() {
    let scratch = Scratch::new("seccomp-again");
    let first = compile(&profile("mkdir"), &scratch.0).unwrap();
    let [file] = &scratch.files()[..] else { panic!("{:?}", scratch.files()) };
    let source = source(&profile("mkdir")).unwrap();
    let kept = read(file, &source).unwrap();
    assert_eq!(words(&kept), words(&first));
    assert_eq!((kept.flags, kept.notifies), (first.flags, first.notifies));
    assert_eq!(words(&compile(&profile("mkdir"), &scratch.0).unwrap()), words(&first));
    let other = compile(&profile("rmdir"), &scratch.0).unwrap();
    assert_ne!(words(&other), words(&first));
    assert_eq!(scratch.files().len(), 2);
}

#[test]
fn what_is_damaged_or_anothers_is_compiled_again() {
    let scratch = Scratch::new("seccomp-damaged");
    let first = compile(&profile("mkdir"), &scratch.0).unwrap();
    let file = scratch.files().remove(0);
    let good = fs::read(&file).unwrap();
    let source = source(&profile("mkdir")).unwrap();
    for length in 0..good.len() {
        assert!(decode(&good[..length], &source).is_none(), "{length}");
    }
    for at in (0..good.len()).filter(|at| !(8..16).contains(at)) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(decode(&bad, &source).is_none(), "{at}");
    }
    fs::write(&file, &good[..good.len() - 8]).unwrap();
    assert_eq!(words(&compile(&profile("mkdir"), &scratch.0).unwrap()), words(&first));
    assert_eq!(fs::read(&file).unwrap(), good);
    let everybody: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(&file, everybody).unwrap();
    assert!(read(&file, &source).is_none());
}

#[test]
fn there_are_never_many_files() {
    let scratch = Scratch::new("seccomp-many");
    for number in 0..3 * MOST_FILES {
        let mut profile = profile("mkdir");
        profile.syscalls[0].errno_ret = Some(number as u32);
        compile(&profile, &scratch.0).unwrap();
        assert!(scratch.files().len() <= MOST_FILES);
    }
}
