//! `guise image` from the outside: what it prints, what it leaves when it is
//! killed, what a plain user can do.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guise_image::spec::{Config, Manifest, Process, RootFs, media};
use guise_image::tar::Writer;
use guise_image::{Digest, Store};

fn guise(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guise"));
    command.args(["image", "--store"]).arg(store).env("HOME", store.with_extension("home"));
    command
}

fn good(out: Output) -> String {
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{stderr}");
    String::from_utf8(out.stdout).unwrap()
}

/// A tar file of a root file system.
fn root_tar(path: &Path) {
    let mut tar = Writer::new(fs::File::create(path).unwrap());
    tar.file("etc/motd", b"hello\n").unwrap();
    tar.finish().unwrap();
}

#[test]
fn an_image_comes_in_is_shown_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let tar = dir.path().join("mine.tar");
    root_tar(&tar);
    let said = good(guise(&store).arg("import").arg(&tar).output().unwrap());
    assert!(said.starts_with("mine:latest sha256:"), "{said}");
    let listed = good(guise(&store).args(["ls", "-o", "json"]).output().unwrap());
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["name"], "mine:latest");
    assert_eq!(listed[0]["kind"], "image");
    let shown = good(guise(&store).args(["inspect", "mine"]).output().unwrap());
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["config"]["config"]["Cmd"][0], "/bin/sh");
    let erofs = good(guise(&store).args(["unpack", "-q", "mine"]).output().unwrap());
    assert!(Path::new(erofs.trim()).is_file());
    let dirs =
        good(guise(&store).args(["unpack", "-q", "mine", "--as", "layers"]).output().unwrap());
    assert_eq!(fs::read(Path::new(dirs.trim()).join("etc/motd")).unwrap(), b"hello\n");
    good(guise(&store).args(["tag", "mine", "yours:2"]).output().unwrap());
    let table = good(guise(&store).arg("ls").output().unwrap());
    assert!(table.contains("yours:2") && table.starts_with("NAME"), "{table}");
    good(guise(&store).args(["rm", "mine", "yours:2"]).output().unwrap());
    for empty in ["blobs/sha256", "refs", "layers", "erofs", "tmp"] {
        assert_eq!(fs::read_dir(store.join(empty)).unwrap().count(), 0, "{empty}");
    }
}

#[test]
fn archives_go_out_and_come_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let tar = dir.path().join("mine.tar");
    root_tar(&tar);
    let said = good(guise(&one).args(["import", "-q"]).arg(&tar).arg("mine:1").output().unwrap());
    assert_eq!(said, "");
    let digest = Store::open(&one).unwrap().reference(&"mine:1".parse().unwrap()).unwrap();
    for format in ["oci-layout", "oci-archive", "docker-archive"] {
        let file = dir.path().join(format);
        let mut export = guise(&one);
        export.args(["export", "mine:1"]).arg(&file).args(["--format", format]);
        good(export.output().unwrap());
        let said = good(guise(&two).arg("import").arg(&file).arg("back:1").output().unwrap());
        assert!(said.contains(&digest.target.digest.to_string()), "{format}: {said}");
    }
}

#[test]
fn errors_are_one_line_and_tell_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let out = guise(dir.path()).args(["inspect", "absent"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("guise: ") && said.contains("guise image pull absent"), "{said}");
    let out = guise(dir.path()).args(["pull", "debian:99"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let out = guise(dir.path()).args(["pull", "UPPER"]).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
}

/// Serves one image whose layer comes slowly as long as `slow` is set.
fn slow_registry(source: &Path, layer: Digest, slow: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let source = source.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (source, slow) = (source.clone(), slow.clone());
            std::thread::spawn(move || answer(stream, &source, layer, &slow));
        }
    });
    host
}

fn answer(mut stream: TcpStream, source: &Path, layer: Digest, slow: &AtomicBool) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut from = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            from = range.trim().trim_end_matches('-').parse().ok()?;
        }
    }
    let last = path.rsplit('/').next()?;
    let body = match last {
        "" => b"{}".to_vec(),
        "1" => fs::read(source.join("manifest")).ok()?,
        digest => {
            let hex = digest.strip_prefix("sha256:")?;
            fs::read(source.join("store/blobs/sha256").join(hex)).ok()?
        }
    };
    let status = if from > 0 { "206 Partial" } else { "200 OK" };
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: {}\r\ncontent-length: {}\r\n\
         content-range: bytes {from}-{}/{}\r\n\r\n",
        media::OCI_MANIFEST,
        body.len() - from,
        body.len() - 1,
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    for piece in body[from..].chunks(16 << 10) {
        stream.write_all(piece).ok()?;
        if slow.load(Ordering::Relaxed) && last == layer.to_string() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Some(())
}

#[test]
fn a_pull_that_is_killed_loses_nothing_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = Store::open(dir.path().join("store")).unwrap();
    let session = source.session().unwrap();
    let mut tar = Writer::new(Vec::new());
    let noise: Vec<u8> = (0..4_000_000u64).map(|i| (i.wrapping_mul(i) >> 5) as u8).collect();
    tar.file("noise", &noise).unwrap();
    let layer = session.add_bytes(media::OCI_LAYER, &tar.finish().unwrap()).unwrap();
    let config = Config {
        created: None,
        author: None,
        architecture: "amd64".into(),
        os: "linux".into(),
        variant: None,
        config: Some(Process::default()),
        rootfs: RootFs { kind: "layers".into(), diff_ids: vec![layer.digest] },
        history: Vec::new(),
    };
    let config = session.add_json(media::OCI_CONFIG, &config).unwrap();
    let manifest = Manifest::oci(config, vec![layer.clone()]);
    let target = session.add_json(media::OCI_MANIFEST, &manifest).unwrap();
    fs::copy(source.blob_path(target.digest), dir.path().join("manifest")).unwrap();
    let slow = Arc::new(AtomicBool::new(true));
    let host = slow_registry(dir.path(), layer.digest, slow.clone());

    let to = dir.path().join("to");
    // What is there before must be there afterwards.
    let mine = dir.path().join("mine.tar");
    root_tar(&mine);
    good(guise(&to).args(["import", "-q"]).arg(&mine).output().unwrap());
    let remote = format!("{host}/app:1");
    let part = to.join("partial").join(format!("sha256-{}", layer.digest.hex()));
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let before = fs::metadata(&part).map_or(0, |m| m.len());
        let mut pull = guise(&to)
            .args(["pull", &remote])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while fs::metadata(&part).map_or(0, |m| m.len()) < before + 200_000 {
            assert!(begun.elapsed() < Duration::from_secs(60), "the pull makes no progress");
            assert!(pull.try_wait().unwrap().is_none(), "the pull ended too early");
            std::thread::sleep(Duration::from_millis(5));
        }
        // SIGKILL.
        pull.kill().unwrap();
        pull.wait().unwrap();
        sizes.push(fs::metadata(&part).unwrap().len());
        let listed = good(guise(&to).args(["ls", "-o", "json"]).output().unwrap());
        assert!(listed.contains("mine") && !listed.contains("/app"), "{listed}");
    }
    assert!(sizes.is_sorted(), "each attempt goes on from the last: {sizes:?}");
    slow.store(false, Ordering::Relaxed);
    let said = good(guise(&to).args(["pull", &remote]).output().unwrap());
    assert_eq!(said.trim(), target.digest.to_string());
    for empty in ["partial", "tmp"] {
        assert_eq!(fs::read_dir(to.join(empty)).unwrap().count(), 0, "{empty}");
    }
    let dirs = good(guise(&to).args(["unpack", "-q", "--as", "layers", &remote]).output().unwrap());
    let mut back = Vec::new();
    let file = Path::new(dirs.trim()).join("noise");
    fs::File::open(file).unwrap().read_to_end(&mut back).unwrap();
    assert!(back == noise);
    // Killed once more, and given up: the collection takes what is left.
    good(guise(&to).args(["rm", &remote]).output().unwrap());
    fs::write(&part, b"abandoned").unwrap();
    good(guise(&to).arg("gc").output().unwrap());
    assert_eq!(fs::read_dir(to.join("partial")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(to.join("blobs/sha256")).unwrap().count(), 3, "mine");
}

#[test]
fn a_plain_user_unpacks_too_but_makes_no_devices() {
    use guise_image::tar::{Device, Entry, Kind};
    if !rustix::process::geteuid().is_root() {
        println!("not run as another user: this test needs root to become one");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let plain = dir.path().join("plain.tar");
    root_tar(&plain);
    let device = dir.path().join("device.tar");
    let mut tar = Writer::new(fs::File::create(&device).unwrap());
    let null = Entry::new("null", Kind::Character(Device { major: 1, minor: 3 }), 0o666);
    tar.append(&null, std::io::empty()).unwrap();
    tar.finish().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    // The test binary may lie where only root can go.
    let binary = dir.path().join("guise");
    fs::copy(env!("CARGO_BIN_EXE_guise"), &binary).unwrap();
    let nobody = |arguments: &[&str]| {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&binary);
        command.args(["image", "--store"]).arg(&store).args(arguments).uid(65534).gid(65534);
        command.env("HOME", dir.path()).output().unwrap()
    };
    good(nobody(&["import", plain.to_str().unwrap()]));
    let dirs = good(nobody(&["unpack", "-q", "--as", "layers", "plain"]));
    assert!(Path::new(dirs.trim()).join("etc/motd").is_file());
    good(nobody(&["import", device.to_str().unwrap()]));
    let out = nobody(&["unpack", "-q", "--as", "layers", "device"]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("only root can make") && said.lines().count() == 1, "{said}");
    assert_eq!(fs::read_dir(store.join("layers")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(store.join("tmp")).unwrap().count(), 0);
    // An EROFS image holds devices without anyone's privilege.
    good(nobody(&["unpack", "-q", "--as", "erofs", "device"]));
}
