//! Long work: tasks that are watched, cancelled, and go on with the next daemon.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use guise_image::Digest;
use serde_json::{Value, json};

use crate::access::Open;
use crate::home::{BOX, Guise, Home};

/// A registry with one image, whose layer comes drop by drop and never to its end.
struct Slow {
    address: String,
    over: Arc<AtomicBool>,
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(&self.address);
    }
}

fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

impl Slow {
    fn start() -> Slow {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let ended = ended.clone();
                // A client that goes away ends its thread.
                std::thread::spawn(move || serve(stream, &ended));
            }
        });
        Slow { address, over }
    }
}

fn serve(mut stream: TcpStream, ended: &AtomicBool) -> Option<()> {
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(b"layer")]},
    })
    .to_string();
    const SIZE: u64 = 1 << 30;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(config.as_bytes()), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest(b"layer"), "size": SIZE,
        }],
    })
    .to_string();
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut first = String::new();
        reader.read_line(&mut first).ok().filter(|count| *count > 0)?;
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        }
        let path = first.split(' ').nth(1)?.to_owned();
        let (kind, body) = if path.contains("/manifests/") {
            ("application/vnd.oci.image.manifest.v1+json", manifest.clone())
        } else if path.ends_with(&digest(config.as_bytes())) {
            ("application/octet-stream", config.clone())
        } else if path.ends_with(&digest(b"layer")) {
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n").ok()?;
            while !ended.load(Ordering::SeqCst) {
                stream.write_all(&[0; 4096]).ok()?;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            return None;
        } else {
            ("application/json", "{}".to_owned())
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\
             docker-content-digest: {}\r\n\r\n",
            digest(body.as_bytes())
        )
        .ok()?;
        let body = if first.starts_with("HEAD") { "" } else { &body };
        stream.write_all(body.as_bytes()).ok()?;
    }
}

fn tasks(home: &Home) -> Vec<Value> {
    serde_json::from_str(&home.good(&["task", "ls", "-o", "json"])).unwrap()
}

#[test]
fn a_pull_is_a_task_that_outlives_the_daemon_and_can_be_cancelled() {
    let Some(mut open) = Open::new("task", &[]) else { return };
    let registry = Slow::start();
    let image = format!("{}/slow:1", registry.address);
    let token = open.token("t", "default=operator");
    let mut pull = open.command(&token, "default", &["image", "pull", &image]);
    let mut pull = pull.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let home = &open.home;
    home.until("some of it has come", || {
        tasks(home).first().is_some_and(|task| task["done_bytes"].as_u64() > Some(0))
    });
    let task = tasks(home).remove(0);
    let id = task["id"].as_str().unwrap().to_owned();
    assert_eq!(task["by"], "t");
    assert_eq!(task["total_bytes"].as_u64().unwrap() >> 30, 1, "{task}");
    // A second one is the same.
    let again = open.home.request("POST", "/v1/images/pull", &json!({"image": image})).1;
    assert_eq!(again["id"], id, "{again}");
    pull.kill().unwrap();
    pull.wait().unwrap();
    open.home.kill_daemon();
    open.home.start_daemon();
    let home = &open.home;
    home.until("the next daemon goes on with it", || {
        let now = tasks(home).remove(0);
        now["id"] == id && now["state"] == "running" && now["done_bytes"].as_u64() > Some(0)
    });
    let mut wait = home.command(["task", "wait", &id]);
    let wait = wait.stderr(std::process::Stdio::piped()).spawn().unwrap();
    home.good(&["task", "cancel", &id]);
    let waited = crate::home::said(wait.wait_with_output().unwrap());
    assert!(waited.code == 1 && waited.err.contains("was cancelled"), "{waited:?}");
    let shown = home.good(&["task", "inspect", "-o", "yaml", &id]);
    assert!(shown.contains("state: \"cancelled\""), "{shown}");
    // One that is over stays as it is.
    home.good(&["task", "cancel", &id]);
    assert_eq!(tasks(home)[0]["state"], "cancelled");
}

#[test]
fn a_task_ends_with_a_result_or_a_reason() {
    let Some(open) = Open::new("task-ends", &[]) else { return };
    let token = open.token("t", "default=operator");
    let ls = open.good(&token, "default", &["image", "ls", "-o", "json"]);
    let images: Vec<Value> = serde_json::from_str(&ls).unwrap();
    let known = images.iter().find(|image| image["name"] == BOX).expect("it was imported");
    let digest = open.good(&token, "default", &["image", "pull", "--missing", BOX]);
    assert_eq!(known["digest"], digest);
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let image = format!("{free}/none:1");
    open.refused(&token, "default", &["image", "pull", &image], &free.to_string());
    open.refused(&token, "default", &["image", "pull", "No Name"], "image name");
    open.refused(&token, "default", &["image", "rm", BOX], "no operator in all projects");
    open.refused(&token, "default", &["image", "build", "/"], "no admin in all projects");
    let failed = tasks(&open.home).into_iter().find(|task| task["state"] == "failed").unwrap();
    assert!(failed["error"]["message"].is_string() && failed["finished"].is_string(), "{failed}");
    let missing = open.home.guise(&["task", "inspect", "none"]);
    assert!(missing.code == 1 && missing.err.contains("there is no task none"), "{missing:?}");
}

#[test]
fn a_build_is_a_task_with_a_log() {
    let Some(open) = Open::new("task-build", &[]) else { return };
    let home = &open.home;
    let context = home.path("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("file"), "text").unwrap();
    let file = |text: &str| {
        std::fs::write(context.join("Containerfile"), format!("FROM {BOX}\n{text}")).unwrap();
    };
    let folder = context.to_str().unwrap();
    let token = open.token("b", "*=admin");
    let build = |tag: &str| {
        let args = ["image", "build", "--network", "none", "-t", tag, folder];
        crate::home::said(open.command(&token, "default", &args).output().unwrap())
    };
    file("COPY file /made\nRUN echo saw $(cat /made) && echo complaint >&2\n");
    let built = build("made:1");
    assert!(built.code == 0 && built.out.starts_with("sha256:"), "{built:?}");
    for told in ["[2/3] COPY file /made", "[3/3] RUN", "saw text\n", "complaint\n"] {
        assert!(built.err.contains(told), "{told}: {built:?}");
    }
    assert_eq!(home.good(&["run", "--rm", "made:1", "cat", "/made"]), "text");
    let task = tasks(home).into_iter().find(|task| task["work"]["kind"] == "build").unwrap();
    assert_eq!((&task["state"], &task["result"]), (&json!("done"), &json!(built.out.trim())));
    let log = home.good(&["task", "logs", task["id"].as_str().unwrap()]);
    assert_eq!(log.trim(), built.err.trim());
    // One that fails says where, and keeps what was printed.
    file("RUN echo before && exit 3\n");
    let failed = build("made:2");
    assert!(failed.code == 1 && failed.err.contains("status 3"), "{failed:?}");
    assert!(failed.err.contains("before\n") && failed.err.contains("line 2"), "{failed:?}");
    // One that takes long can be cancelled in the middle of a command.
    file("RUN echo asleep; sleep 1000\n");
    let wanted = json!({"context": folder, "network": "none", "tags": ["made:3"]});
    let (status, task) = home.request("POST", "/v1/images/build", &wanted);
    assert_eq!(status, 202, "{task}");
    let id = task["id"].as_str().unwrap();
    home.until("it sleeps", || home.good(&["task", "logs", id]).ends_with("\nasleep"));
    home.good(&["task", "cancel", id]);
    home.until("it has ended", || {
        let now = tasks(home).into_iter().find(|task| task["id"] == id).unwrap();
        now["state"] == "cancelled"
    });
    assert!(home.guise(&["task", "wait", id]).err.contains("was cancelled"));
    // What is no build is refused before there is a task.
    for (wrong, why) in [
        (json!({"context": "context"}), "absolute path"),
        (json!({"context": "/no/such/folder"}), "/no/such/folder"),
        (json!({"context": folder, "tags": ["No Name"]}), "image name"),
        (json!({"context": folder, "shell": "sh"}), "shell"),
    ] {
        let (status, error) = home.request("POST", "/v1/images/build", &wrong);
        assert!(status == 400 && error.to_string().contains(why), "{wrong}: {error}");
    }
    let pulled = tasks(home).into_iter().find(|task| task["work"]["kind"] == "pull");
    assert!(pulled.is_none(), "bases of the store are not fetched: {pulled:?}");
}

#[test]
fn commands_come_back_at_once_where_they_are_asked_to() {
    let Some(home) = Home::new("no-wait", Guise::Container) else { return };
    let deaf = "trap '' TERM; echo deaf; while :; do sleep 1; done";
    home.good(&["create", "--name", "it", BOX, "sh", "-c", deaf]);
    home.good(&["start", "--no-wait", "it"]);
    home.until("it hears nothing", || home.good(&["logs", "it"]) == "deaf");
    // It would take all day.
    home.good(&["stop", "--no-wait", "-t", "80000", "it"]);
    home.until_phase("it", "stopping");
    home.good(&["rm", "-f", "--no-wait", "it"]);
    home.until("it has gone", || home.good(&["ps", "-aq"]).is_empty());
}
