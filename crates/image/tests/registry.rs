//! Against the distribution's tools: docker-registry, skopeo, umoci.

mod common;

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{have, image, layer, name, noise, run, store};
use guise_image::archive::{self, Format};
use guise_image::progress::Silent;
use guise_image::{Compression, Error, Limits, Pull, Store, registry};

/// A registry process, ended with the test.
struct Registry {
    child: Child,
    host: String,
}

impl Registry {
    fn start(dir: &Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let data = dir.join("registry");
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  delete: {{enabled: true}}\n  \
             filesystem: {{rootdirectory: {}}}\nhttp: {{addr: {host}}}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, host };
        let begun = Instant::now();
        while TcpStream::connect(&registry.host).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the registry does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const REGISTRY: (&str, &str) = ("docker-registry", "docker-registry");
const SKOPEO: (&str, &str) = ("skopeo", "skopeo");
const UMOCI: (&str, &str) = ("umoci", "umoci");

fn tars() -> Vec<Vec<u8>> {
    (0..4).map(|i| layer(&format!("file-{i}"), &noise(i, 200_000))).collect()
}

/// A store with one image under a name.
fn source(dir: &Path, as_name: &str, how: Compression) -> (Store, guise_image::Image) {
    let source = store(&dir.join("source"));
    let session = source.session().unwrap();
    let image = image(&session, &tars(), how);
    session.set_reference(&name(as_name), &image.descriptor).unwrap();
    drop(session);
    (source, image)
}

#[test]
fn push_pull_and_delete() {
    if !have(&[REGISTRY]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Registry::start(dir.path());
    for how in [Compression::Gzip, Compression::Zstd, Compression::None] {
        let (source, image) = source(dir.path(), "local/app", how);
        let remote = name(&format!("{}/team/app:{how:?}", server.host).to_lowercase());
        let pushed = registry::push(&source, &name("local/app"), &remote, &Silent).unwrap();
        assert_eq!(pushed, image.descriptor.digest);
        // Again: everything is there already.
        registry::push(&source, &name("local/app"), &remote, &Silent).unwrap();

        let to = store(&dir.path().join(format!("to-{how:?}")));
        let pulled = Pull::default().run(&to, &remote, &Silent).unwrap();
        assert_eq!(pulled.digest, image.descriptor.digest);
        let session = to.session().unwrap();
        let back = to.image(&remote, None).unwrap();
        let dirs = session.layer_dirs(&back, Limits::default(), &Silent).unwrap();
        assert_eq!(fs::read(dirs[2].join("data/file-2")).unwrap(), noise(2, 200_000));

        assert_eq!(registry::delete(&remote).unwrap(), pushed);
        let error = registry::delete(&remote).unwrap_err().to_string();
        assert!(error.contains("does not have"), "{error}");
        let error = Pull::default().run(&to, &remote, &Silent).unwrap_err();
        assert!(matches!(error, Error::Registry(_)), "{error}");
    }
}

#[test]
fn skopeo_and_umoci_see_the_same_digests() {
    if !have(&[REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Registry::start(dir.path());
    let (source, image) = source(dir.path(), "app:1", Compression::Gzip);
    let digest = image.descriptor.digest;
    let remote = format!("{}/app:1", server.host);
    registry::push(&source, &name("app:1"), &name(&remote), &Silent).unwrap();

    // Registry to layout by skopeo, then into another store of ours.
    let layout = dir.path().join("skopeo-layout");
    run(Command::new("skopeo")
        .args(["copy", "--src-tls-verify=false", &format!("docker://{remote}")])
        .arg(format!("oci:{}:1", layout.display())));
    let to = store(&dir.path().join("to"));
    let imported =
        archive::import(&to.session().unwrap(), &layout, None, Limits::default(), &Silent).unwrap();
    assert_eq!(imported.target.digest, digest);
    assert_eq!(imported.name.as_deref(), Some("1"));

    // Our layout to umoci and, by skopeo, to the registry.
    let ours = dir.path().join("our-layout");
    archive::export(&source, &name("app:1"), None, Format::OciLayout, &ours).unwrap();
    let bundle = dir.path().join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.arg("unpack");
    if !rustix::process::geteuid().is_root() {
        umoci.arg("--rootless");
    }
    run(umoci.arg("--image").arg(format!("{}:1", ours.display())).arg(&bundle));
    for i in 0..4 {
        let file = bundle.join(format!("rootfs/data/file-{i}"));
        assert_eq!(fs::read(file).unwrap(), noise(i, 200_000));
    }
    let second = format!("{}/second:1", server.host);
    run(Command::new("skopeo")
        .args(["copy", "--dest-tls-verify=false"])
        .arg(format!("oci:{}:1", ours.display()))
        .arg(format!("docker://{second}")));
    let pulled = Pull::default().run(&to, &name(&second), &Silent).unwrap();
    assert_eq!(pulled.digest, digest);

    // An archive, and Docker's manifests: skopeo converts, we read.
    let file = dir.path().join("app.tar");
    archive::export(&source, &name("app:1"), None, Format::OciArchive, &file).unwrap();
    let docker = format!("{}/docker:1", server.host);
    run(Command::new("skopeo")
        .args(["copy", "--dest-tls-verify=false", "--format=v2s2"])
        .arg(format!("oci-archive:{}", file.display()))
        .arg(format!("docker://{docker}")));
    let pulled = Pull::default().run(&to, &name(&docker), &Silent).unwrap();
    assert_eq!(pulled.media_type, guise_image::spec::media::DOCKER_MANIFEST);
    let converted = to.image(&name(&docker), None).unwrap();
    assert_eq!(converted.chain_id(), image.chain_id());

    // Docker archives, theirs and ours.
    let theirs = dir.path().join("theirs.tar");
    run(Command::new("skopeo")
        .arg("copy")
        .arg(format!("oci-archive:{}", file.display()))
        .arg(format!("docker-archive:{}:app:2", theirs.display())));
    let imported =
        archive::import(&to.session().unwrap(), &theirs, None, Limits::default(), &Silent).unwrap();
    assert!(imported.name.as_deref().is_some_and(|name| name.ends_with("app:2")));
    let image_back = to.image_of(&imported.target, "x", None).unwrap();
    assert_eq!(image_back.chain_id(), image.chain_id());
    let ours = dir.path().join("ours.tar");
    archive::export(&source, &name("app:1"), None, Format::DockerArchive, &ours).unwrap();
    let said = run(Command::new("skopeo")
        .args(["inspect", "--config"])
        .arg(format!("docker-archive:{}", ours.display())));
    assert!(said.contains(&image.config.rootfs.diff_ids[3].to_string()), "{said}");
}

#[test]
fn fifty_pulls_at_once() {
    if !have(&[REGISTRY]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Registry::start(dir.path());
    let (source, image) = source(dir.path(), "app", Compression::Gzip);
    let remote = name(&format!("{}/app:1", server.host));
    registry::push(&source, &name("app"), &remote, &Silent).unwrap();
    let root = dir.path().join("to");
    std::thread::scope(|scope| {
        for i in 0..50 {
            let (root, remote, image) = (&root, &remote, &image);
            scope.spawn(move || {
                // Stores and names of their own, as fifty processes have.
                let to = store(root);
                let pull = Pull { name: Some(name(&format!("copy-{i}"))), ..Pull::default() };
                let target = pull.run(&to, remote, &Silent).unwrap();
                assert_eq!(target.digest, image.descriptor.digest);
            });
        }
    });
    let to = store(&root);
    assert_eq!(to.references().unwrap().len(), 50);
    for empty in ["partial", "tmp"] {
        assert_eq!(fs::read_dir(root.join(empty)).unwrap().count(), 0, "{empty}");
    }
    // Four layers, a configuration, a manifest: once.
    assert_eq!(fs::read_dir(root.join("blobs/sha256")).unwrap().count(), 6);
    assert_eq!(to.collect().unwrap().unwrap().items, 0);
}
