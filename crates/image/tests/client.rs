//! The registry client against a server that misbehaves.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::server::{Answer, Request, registry_of, serve};
use common::{image, layer, name, noise, store};
use guise_image::progress::Silent;
use guise_image::{Compression, Image, Pull, Store};

fn source(dir: &std::path::Path) -> (Store, Image) {
    let source = store(&dir.join("source"));
    let tars = [layer("a", &noise(1, 400_000)), layer("b", &noise(2, 300_000))];
    let image = image(&source.session().unwrap(), &tars, Compression::Gzip);
    (source, image)
}

fn pull(to: &Store, host: &str) -> guise_image::Result<guise_image::spec::Descriptor> {
    Pull::default().run(to, &name(&format!("{host}/app:1")), &Silent)
}

fn is_blob(request: &Request) -> bool {
    request.path.contains("/blobs/") && request.method == "GET"
}

#[test]
fn transfers_that_break_off_are_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = source(dir.path());
    let good = registry_of(&source, &image);
    let resumed = Arc::new(AtomicUsize::new(0));
    let counter = resumed.clone();
    let host = serve(move |request| {
        let mut answer = good(request);
        if is_blob(request) {
            if answer.status == 206 {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            answer.cut = Some(150_000);
        }
        answer
    });
    let to = store(&dir.path().join("to"));
    assert_eq!(pull(&to, &host).unwrap().digest, image.descriptor.digest);
    assert!(resumed.load(Ordering::Relaxed) >= 3);
}

#[test]
fn a_registry_without_ranges_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = source(dir.path());
    let good = registry_of(&source, &image);
    let cuts = AtomicUsize::new(0);
    let host = serve(move |request| {
        let mut plain = Request {
            method: request.method.clone(),
            path: request.path.clone(),
            headers: Default::default(),
            body: Vec::new(),
        };
        plain.headers.clear();
        let mut answer = good(&plain);
        if is_blob(request) && cuts.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            answer.cut = Some(100);
        }
        answer
    });
    let to = store(&dir.path().join("to"));
    assert_eq!(pull(&to, &host).unwrap().digest, image.descriptor.digest);
}

#[test]
fn a_server_error_is_tried_again_and_a_final_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = source(dir.path());
    let good = registry_of(&source, &image);
    let first = AtomicUsize::new(0);
    let host = serve(move |request| {
        if first.fetch_add(1, Ordering::Relaxed) == 2 {
            return Answer::new(503, "").header("retry-after", "0");
        }
        good(request)
    });
    let to = store(&dir.path().join("to"));
    pull(&to, &host).unwrap();

    let host = serve(|request| match request.path.as_str() {
        "/v2/" => Answer::new(200, "{}"),
        _ => Answer::new(418, r#"{"errors":[{"code":"TEA","message":"short\nand stout"}]}"#),
    });
    let error = pull(&to, &host).unwrap_err().to_string();
    assert!(error.contains("418") && error.contains("shortand stout"), "{error}");
}

#[test]
fn wrong_bytes_are_refused_and_nothing_of_them_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = source(dir.path());
    for (what, expected) in [("flip", "has digest"), ("grow", "bytes"), ("manifest", "has digest")]
    {
        let good = registry_of(&source, &image);
        let target = image.manifest.layers[1].digest.to_string();
        let host = serve(move |request| {
            let mut answer = good(request);
            match what {
                "flip" if request.path.ends_with(&target) => answer.body[1000] ^= 1,
                "grow" if request.path.ends_with(&target) => answer.body.push(0),
                "manifest" if request.path.contains("/manifests/") => answer.body.push(b' '),
                _ => {}
            }
            answer
        });
        let to = store(&dir.path().join(what));
        let asked = format!("{host}/app@{}", image.descriptor.digest);
        let error = Pull::default().run(&to, &name(&asked), &Silent).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{what}: {error}");
        assert!(to.references().unwrap().is_empty(), "{what}");
        to.collect().unwrap().unwrap();
        let left = std::fs::read_dir(to.root().join("blobs/sha256")).unwrap().count();
        assert_eq!(left, 0, "{what}");
    }
}

#[test]
fn malformed_manifests_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let to = store(dir.path());
    for body in [
        "",
        "{",
        "[]",
        r#"{"schemaVersion":1,"fsLayers":[]}"#,
        r#"{"schemaVersion":2,"manifests":[]}"#,
    ] {
        let host = serve(move |request| match request.path.as_str() {
            "/v2/" => Answer::new(200, "{}"),
            _ => Answer::new(200, body)
                .header("content-type", "application/vnd.oci.image.index.v1+json"),
        });
        let error = pull(&to, &host).unwrap_err().to_string();
        assert!(!error.contains('\n') && error.len() < 300, "{body}: {error}");
    }
}

/// A token comes from elsewhere, and does not go where a redirect leads.
#[test]
fn tokens_are_fetched_and_kept_from_strangers() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = source(dir.path());
    let storage = registry_of(&source, &image);
    let storage = serve(move |request| {
        if request.headers.contains_key("authorization") {
            return Answer::new(400, "a secret went astray");
        }
        storage(request)
    });
    let token = serve(|request| {
        assert!(request.path.contains("service=test"), "{}", request.path);
        assert!(request.path.contains("scope=repository"), "{}", request.path);
        Answer::new(200, r#"{"token":"t0ken"}"#)
    });
    let good = registry_of(&source, &image);
    let host = serve(move |request| {
        if request.path == "/v2/" {
            return Answer::new(401, "");
        }
        if request.headers.get("authorization").map(String::as_str) != Some("Bearer t0ken") {
            let challenge = format!(
                "Bearer realm=\"http://{token}/token\",service=\"test\",scope=\"repository:app:pull\""
            );
            return Answer::new(401, "").header("www-authenticate", challenge);
        }
        if is_blob(request) {
            return Answer::new(307, "")
                .header("location", format!("http://{storage}{}", request.path));
        }
        good(request)
    });
    let to = store(&dir.path().join("to"));
    assert_eq!(pull(&to, &host).unwrap().digest, image.descriptor.digest);
}

#[test]
fn what_needs_a_password_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let host =
        serve(|_| Answer::new(401, "").header("www-authenticate", "Basic realm=\"registry\""));
    let error = pull(&store(dir.path()), &host).unwrap_err().to_string();
    assert!(error.contains("user name and a password"), "{error}");
}

#[test]
fn an_unreachable_registry_is_named() {
    let dir = tempfile::tempdir().unwrap();
    // A port that was just free.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let error = pull(&store(dir.path()), &host).unwrap_err().to_string();
    assert!(error.contains(&host) && error.contains("cannot be reached"), "{error}");
}
