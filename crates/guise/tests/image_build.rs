//! `guise image build` from the outside: what images come of Containerfiles, what
//! is done again and what is not, what is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use guise_image::progress::Silent;
use guise_image::{Limits, Store};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// A context with a static busybox; none, with the reason printed, where
    /// nothing can be built.
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("did not run {name}: needs root");
            return None;
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
        let Some(busybox) = busybox else {
            println!("did not run {name}: needs a static busybox (Debian: busybox-static)");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().join("context");
        fs::create_dir(&context).unwrap();
        fs::copy(busybox, context.join("busybox")).unwrap();
        Some(Bench { dir })
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("context").join(below)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Builds `Containerfile` under the name `made`.
    fn build(&self, options: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_guise"))
            .args(["image", "--store"])
            .arg(self.dir.path().join("store"))
            .args(["build", "-t", "made", "--network", "none"])
            .args(options)
            .arg(self.dir.path().join("context"))
            .output()
            .unwrap()
    }

    fn store(&self) -> Store {
        Store::open(self.dir.path().join("store")).unwrap()
    }

    fn image(&self) -> guise_image::Image {
        self.store().image(&"made".parse().unwrap(), None).unwrap()
    }

    /// What a file of the image holds: that of the topmost layer that has it.
    fn file(&self, path: &str) -> Option<String> {
        let store = self.store();
        let session = store.session().unwrap();
        let dirs = session.layer_dirs(&self.image(), Limits::default(), &Silent).unwrap();
        dirs.iter().rev().find_map(|dir| fs::read_to_string(dir.join(path)).ok())
    }
}

fn good(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

const BASE: &str =
    "FROM scratch AS base\nCOPY busybox /bin/\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n";

#[test]
fn instructions_do_what_they_say() {
    let Some(bench) = Bench::new("instructions") else { return };
    bench.write("data/one", "1");
    bench.write("data/sub/two", "2");
    bench.write("data/left.log", "no");
    bench.write(".dockerignore", "*.log\ndata/*.log\n");
    bench.write("passwd", "root:x:0:0::/root:/bin/sh\napp:x:7:8::/home/app:/bin/sh\n");
    bench.write(
        "Containerfile",
        &format!(
            "ARG WHO=nobody\n{BASE}\
             ARG WHO\n\
             ENV A=1\n\
             ENV B=\"$A 2\"\n\
             COPY passwd /etc/\n\
             COPY --chown=app --chmod=0640 data /srv/\n\
             WORKDIR /work\n\
             RUN echo \"$A/$B/$WHO/$(/bin/busybox pwd)\" > seen\n\
             USER app\n\
             RUN <<END\n\
             /bin/busybox id -u > /tmp/uid || /bin/busybox id -u > /srv/uid\n\
             END\n\
             FROM base\n\
             COPY --from=base /work/seen /from/\n\
             COPY <<FILE /inline\n\
             who: $A\n\
             FILE\n\
             LABEL made.by=\"$WHO\" two=2\n\
             EXPOSE 80 53/udp\n\
             VOLUME /var/data\n\
             STOPSIGNAL SIGINT\n\
             HEALTHCHECK --interval=5s CMD test -e /inline\n\
             ENTRYPOINT [\"/bin/busybox\"]\n\
             CMD [\"echo\", \"hi\"]\n"
        ),
    );
    // The user may write only where the image lets it.
    bench.write("data/uid", "");
    let said = good(&bench.build(&["--build-arg", "WHO=me"]));
    assert!(said.contains("COPY --from=base"), "{said}");
    assert_eq!(bench.file("from/seen").as_deref(), Some("1/1 2/me//work\n"));
    assert_eq!(bench.file("inline").as_deref(), Some("who: 1\n"));
    assert_eq!(bench.file("srv/sub/two").as_deref(), Some("2"));
    assert_eq!(bench.file("srv/left.log"), None);
    assert_eq!(bench.file("srv/uid").as_deref(), Some("7\n"));
    let process = bench.image().config.config.unwrap();
    assert_eq!(process.entrypoint, ["/bin/busybox"]);
    assert_eq!(process.cmd, ["echo", "hi"]);
    assert_eq!(process.user, "app");
    assert_eq!(process.working_dir, "/work");
    assert!(process.env.contains(&"B=1 2".to_owned()), "{:?}", process.env);
    assert_eq!(process.labels["two"], "2");
    assert!(process.exposed_ports.contains_key("80/tcp"));
    assert!(process.volumes.contains_key("/var/data"));
    assert_eq!(process.stop_signal, "SIGINT");
    assert_eq!(process.healthcheck.unwrap().interval, Some(5_000_000_000));
}

#[test]
fn steps_are_done_again_only_when_something_changed() {
    let Some(bench) = Bench::new("cache") else { return };
    bench.write("input", "a");
    bench.write(
        "Containerfile",
        &format!("{BASE}RUN echo first\nCOPY input /\nRUN /bin/busybox cp /input /output\n"),
    );
    let again = |said: &str| said.matches("as before").count();
    assert_eq!(again(&good(&bench.build(&[]))), 0);
    let first = bench.image().config.rootfs;
    assert_eq!(again(&good(&bench.build(&[]))), 4);
    assert_eq!(bench.image().config.rootfs, first);
    bench.write("input", "b");
    assert_eq!(again(&good(&bench.build(&[]))), 2);
    assert_eq!(bench.file("output").as_deref(), Some("b"));
    assert_eq!(again(&good(&bench.build(&["--no-cache"]))), 0);
    // Removing the name leaves the cache, forgetting the cache leaves nothing.
    let image = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guise"));
        command.args(["image", "--store"]).arg(bench.dir.path().join("store")).args(args);
        good(&command.output().unwrap());
    };
    image(&["rm", "made"]);
    assert_eq!(again(&good(&bench.build(&[]))), 4);
    image(&["rm", "made"]);
    image(&["gc", "--build-cache"]);
    let blobs = bench.dir.path().join("store/blobs/sha256");
    assert_eq!(fs::read_dir(blobs).unwrap().count(), 0);
}

#[test]
fn what_a_step_removes_is_hidden_and_nothing_of_the_container_stays() {
    let Some(bench) = Bench::new("whiteouts") else { return };
    bench.write("keep/gone", "x");
    bench.write("keep/stays", "y");
    bench.write(
        "Containerfile",
        &format!("{BASE}COPY keep /keep\nRUN /bin/busybox rm /keep/gone\n"),
    );
    good(&bench.build(&[]));
    let store = bench.store();
    let session = store.session().unwrap();
    let dirs = session.layer_dirs(&bench.image(), Limits::default(), &Silent).unwrap();
    let top = dirs.last().unwrap();
    let names: Vec<_> = fs::read_dir(top).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["keep"], "mount points were left in the layer");
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let hidden = fs::symlink_metadata(top.join("keep/gone")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    assert!(!top.join("keep/stays").exists());
}

#[test]
fn failures_name_the_line_and_leave_nothing() {
    let Some(bench) = Bench::new("failures") else { return };
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    for (text, said) in [
        ("RUN exit 3\n", "line 4: RUN exit 3: the command ended with status 3"),
        // Namespaces inside would give back capabilities.
        ("RUN /bin/busybox unshare -U /bin/busybox true\n", "ended with status 1"),
        ("COPY nosuch /\n", "nosuch is not there to be copied"),
        ("COPY ../../../etc/shadow /\n", "etc/shadow is not there to be copied"),
        ("COPY --from=nosuch.invalid/x:1 a /\n", "nosuch.invalid"),
        ("USER nosuch\nRUN true\n", "user nosuch is not in the image's /etc/passwd"),
        ("NONSENSE\n", "line 4: \"NONSENSE\" is no instruction"),
    ] {
        bench.write("Containerfile", &format!("{BASE}{text}"));
        let output = bench.build(&["-q"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{text}");
        assert!(error.contains(said), "{text}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    }
    let left = fs::read_dir(bench.dir.path().join("store/tmp")).unwrap().count();
    assert_eq!(left, 0, "something is left in the store");
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    assert_eq!(before, after, "a mount is left");
}

/// An archive that ADD unpacks writes nothing outside the image, whatever it says,
/// and a link in the image leads nowhere outside either.
#[test]
fn archives_and_links_stay_inside() {
    let Some(bench) = Bench::new("inside") else { return };
    let outside = bench.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let pack = |name: &str, path: &str| {
        let file = fs::File::create(bench.path(name)).unwrap();
        let mut tar = guise_image::tar::Writer::new(file);
        tar.file(path, b"text").unwrap();
        tar.finish().unwrap();
    };
    pack("good.tar", "sub/file");
    pack("bad.tar", "../../../../../../tmp/guise-escaped");
    std::os::unix::fs::symlink(&outside, bench.path("link")).unwrap();
    bench.write("dir/file", "x");
    fs::create_dir(bench.path("links")).unwrap();
    std::os::unix::fs::symlink(&outside, bench.path("links/out")).unwrap();
    bench.write("Containerfile", "FROM scratch\nADD good.tar /to/\nCOPY links /\n");
    good(&bench.build(&[]));
    assert_eq!(bench.file("to/sub/file").as_deref(), Some("text"));
    bench.write("Containerfile", "FROM scratch\nCOPY links /\nCOPY dir/file /out/file\n");
    bench.build(&["-q"]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    bench.write("Containerfile", "FROM scratch\nADD bad.tar /to/\n");
    let output = bench.build(&["-q"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("leads outside"), "{output:?}");
    assert!(!Path::new("/tmp/guise-escaped").exists());
    bench.write("Containerfile", "FROM scratch\nCOPY link/.. /\n");
    bench.build(&["-q"]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}
