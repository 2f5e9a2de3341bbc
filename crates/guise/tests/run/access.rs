//! The API from other hosts: TLS, tokens, roles, projects, quotas, the audit trail.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::home::{BOX, GUISE, Guise, Home, Said, exchange, said};

/// A home whose daemon other hosts reach, and what they have to know.
pub struct Open {
    pub home: Home,
    address: String,
    fingerprint: String,
}

impl Open {
    pub fn new(test: &str, options: &[&str]) -> Option<Open> {
        let home = Home::with_daemon(test, Guise::Container, |daemon| {
            daemon.args(["--listen", "127.0.0.1:0"]).args(options);
        })?;
        let info: Value = serde_json::from_str(&home.good(&["info", "-o", "json"])).unwrap();
        let address = info["listens"].as_str().unwrap().to_owned();
        let fingerprint = info["fingerprint"].as_str().unwrap_or_default().to_owned();
        Some(Open { home, address, fingerprint })
    }

    pub fn token(&self, name: &str, grant: &str) -> String {
        self.home.good(&["token", "create", "--grant", grant, name])
    }

    /// A command as on another host, where this host's places are unknown.
    pub fn command(&self, token: &str, project: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&*GUISE);
        command.args(args).stdin(std::process::Stdio::null());
        command.env("GUISE_HOST", format!("https://{}", self.address));
        command.env("GUISE_FINGERPRINT", &self.fingerprint);
        command.env("GUISE_TOKEN", token).env("GUISE_PROJECT", project);
        command.env("GUISE_RUN", "/nonexistent/run").env("GUISE_STATE", "/nonexistent/state");
        command
    }

    pub fn guise(&self, token: &str, project: &str, args: &[&str]) -> Said {
        said(self.command(token, project, args).output().unwrap())
    }

    #[track_caller]
    pub fn good(&self, token: &str, project: &str, args: &[&str]) -> String {
        let said = self.guise(token, project, args);
        assert_eq!(said.code, 0, "{args:?}: {}\n{}", said.err, self.home.daemon_log());
        said.out.trim_end().to_owned()
    }

    #[track_caller]
    pub fn refused(&self, token: &str, project: &str, args: &[&str], why: &str) {
        let said = self.guise(token, project, args);
        assert!(said.code != 0 && said.err.contains(why), "{args:?}: {said:?}");
    }
}

#[test]
fn a_token_reaches_as_far_as_its_role() {
    let Some(open) = Open::new("tokens", &[]) else { return };
    let home = &open.home;
    home.good(&["project", "create", "lab"]);
    let worker = open.token("worker", "lab=operator");
    let viewer = open.token("viewer", "lab=viewer");
    let ran = open.guise(&worker, "lab", &["run", "--rm", "--as", "container", BOX, "echo", "far"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "far\n"), "{}\n{}", ran.err, home.daemon_log());
    let run = ["run", "-d", "--as", "container", "--name", "it", BOX, "sleep", "1000"];
    open.good(&worker, "lab", &run);
    // The same name in two projects.
    home.good(&["run", "-d", "--name", "it", BOX, "sleep", "1000"]);
    assert_eq!(open.good(&worker, "lab", &["exec", "it", "echo", "inside"]), "inside");
    assert_eq!(open.good(&viewer, "lab", &["ps", "-q"]).lines().count(), 1);
    assert_eq!(open.good(&viewer, "*", &["ps", "-q"]).lines().count(), 1);
    assert_eq!(home.good(&["--project", "*", "ps", "-q"]).lines().count(), 2);
    open.good(&viewer, "lab", &["logs", "it"]);
    for args in [
        &["exec", "it", "true"][..],
        &["rm", "-f", "it"],
        &["cp", "it:/etc/passwd", "-"],
        &["volume", "create", "v"],
    ] {
        open.refused(&viewer, "lab", args, "viewer is no operator in project lab");
    }
    for args in [&["run", "--rm", BOX, "true"][..], &["ps"], &["volume", "ls"]] {
        open.refused(&worker, "default", args, "in project default");
    }
    let mount = ["run", "--rm", "-v", "/etc:/host", BOX, "true"];
    open.refused(&worker, "lab", &mount, "is for admins of project lab");
    let file = ["run", "--rm", "/etc/passwd"];
    open.refused(&worker, "lab", &file, "is for admins of project lab");
    let network = ["run", "--rm", "--network", "host", BOX, "true"];
    open.refused(&worker, "lab", &network, "is for admins of project lab");
    open.refused(&worker, "lab", &["token", "ls"], "no admin in all projects");
    open.refused(&worker, "lab", &["project", "rm", "lab"], "no admin in all projects");
    open.refused(&worker, "lab", &["audit"], "no admin in all projects");
    // Where there is no such project, and who may not know that.
    open.refused(&worker, "moon", &["ps"], "in project moon");
    let all = open.token("all", "*=viewer");
    open.refused(&all, "moon", &["ps"], "there is no project moon");
    home.good(&["token", "rm", "worker"]);
    open.refused(&worker, "lab", &["ps"], "none of this daemon's");
    open.refused("guise_viewer_0", "lab", &["ps"], "none of this daemon's");
    let brief =
        home.good(&["token", "create", "--grant", "lab=viewer", "--expires", "0s", "brief"]);
    open.refused(&brief, "lab", &["ps"], "token brief has expired");
    // The trail has who did it, and who was refused; nothing has a secret.
    let trail: Vec<Value> =
        serde_json::from_str(&home.good(&["audit", "-n", "1000", "-o", "json"])).unwrap();
    let has = |who: &str, what: &str, object: &str, status: u16| {
        trail.iter().any(|record| {
            record["who"] == who
                && record["what"] == what
                && record["object"] == object
                && record["status"] == status
        })
    };
    assert!(has("worker", "POST /v1/instances", "it", 200), "{trail:#?}");
    assert!(has("worker", "GET /v1/instances/{name}/exec", "it", 101), "{trail:#?}");
    assert!(has("viewer", "DELETE /v1/instances/{name}", "it", 403), "{trail:#?}");
    assert!(has("owner", "POST /v1/tokens", "worker", 200), "{trail:#?}");
    assert!(has("", "GET /v1/instances", "", 401), "{trail:#?}");
    let secret = |token: &str| token.rsplit_once('_').unwrap().1.to_owned();
    for kept in
        [home.path("state/audit.log"), home.path("daemon.log"), home.path("state/state.redb")]
    {
        let bytes = std::fs::read(&kept).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&secret(&viewer)), "{}", kept.display());
    }
    let key = std::fs::metadata(home.path("state/tls/key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    home.good(&["--project", "lab", "rm", "-f", "it"]);
    home.good(&["project", "rm", "lab"]);
}

#[test]
fn who_is_not_the_daemon_is_not_told_the_token() {
    let Some(open) = Open::new("trust", &[]) else { return };
    let token = open.token("t", "*=admin");
    let told = |change: &dyn Fn(&mut Command)| {
        let mut command = open.command(&token, "default", &["ps"]);
        change(&mut command);
        said(command.output().unwrap())
    };
    assert_eq!(told(&|_| ()).code, 0);
    let wrong = format!("sha256:{}", "0".repeat(64));
    for refused in [
        told(&|command| {
            command.env("GUISE_FINGERPRINT", &wrong);
        }),
        // Its own certificate is vouched for by nobody else.
        told(&|command| {
            command.env_remove("GUISE_FINGERPRINT");
        }),
        told(&|command| {
            command.env("GUISE_HOST", "http://192.0.2.1:80");
        }),
        told(&|command| {
            command.env_remove("GUISE_TOKEN");
        }),
    ] {
        assert!(refused.code != 0 && refused.err.lines().count() == 1, "{refused:?}");
    }
    // By the certificate itself.
    let file = open.home.path("state/tls/cert.pem");
    let by_file = told(&|command| {
        command.env_remove("GUISE_FINGERPRINT").env("GUISE_CA_FILE", &file);
    });
    assert_eq!(by_file.code, 0, "{by_file:?}");
    // The same daemon after a restart.
    let said = open.good(&token, "default", &["info", "-o", "json"]);
    assert!(said.contains(&open.fingerprint), "{said}");
}

#[test]
fn plain_tcp_is_for_this_host_alone() {
    let Some(open) = Open::new("plain-tcp", &["--plain"]) else { return };
    let daemon = |args: &[&str]| {
        let mut command = Command::new(&*GUISE);
        let own = open.home.path("second");
        command.arg("daemon").args(args).env("GUISE_STATE", &own).env("GUISE_RUN", own.join("r"));
        said(command.output().unwrap())
    };
    let refused = daemon(&["--listen", "0.0.0.0:0", "--plain"]);
    assert!(refused.code == 1 && refused.err.contains("without TLS"), "{refused:?}");
    let taken = daemon(&["--listen", &open.address, "--plain"]);
    assert!(taken.code == 1 && taken.err.contains("in use"), "{taken:?}");
    let token = open.token("t", "*=admin");
    let connect = || TcpStream::connect(&open.address).unwrap();
    let list = "GET /v1/instances HTTP/1.1";
    assert_eq!(exchange(connect(), list, b"").0, 401);
    let shown = format!("{list}\r\nauthorization: Bearer {token}");
    assert_eq!(exchange(connect(), &shown, b"").0, 200);
    // Greedy and slow clients.
    let greedy = format!("{list}\r\nx: {}", "x".repeat(100_000));
    assert!([0, 431].contains(&exchange(connect(), &greedy, b"").0));
    let post = "POST /v1/volumes HTTP/1.1";
    let much = vec![b' '; 5 << 20];
    assert_eq!(exchange(connect(), post, b"{").0, 401);
    let large = exchange(connect(), &format!("{post}\r\nauthorization: Bearer {token}"), &much);
    assert!([0, 413].contains(&large.0), "{large:?}");
    let mut slow = connect();
    slow.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
    slow.write_all(b"GET /v1/inst").unwrap();
    let mut rest = Vec::new();
    // It is cut off, and not by this end's patience.
    match slow.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert_eq!(exchange(connect(), &shown, b"").0, 200);
}

#[test]
fn who_speaks_without_tls_is_told_so() {
    let Some(open) = Open::new("no-tls", &[]) else { return };
    let connect = || TcpStream::connect(&open.address).unwrap();
    let answer = exchange(connect(), "GET /v1/instances HTTP/1.1", b"");
    assert_eq!(answer.0, 400, "{answer:?}");
    // What it sends does not matter, nor that it sends a lot.
    let much = exchange(connect(), "POST /v1/instances HTTP/1.1", &vec![b' '; 200_000]);
    assert_eq!(much.0, 400, "{much:?}");
    let mut stream = connect();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.contains("speaks TLS") && said.contains("https://"), "{said}");
    // Others are served meanwhile.
    let token = open.token("t", "*=admin");
    open.good(&token, "default", &["ps"]);
}

#[test]
fn a_quota_holds_also_when_many_ask_at_once() {
    let Some(home) = Home::new("quota", Guise::Container) else { return };
    home.good(&["project", "create", "--instances", "3", "--memory", "96M", "lab"]);
    let unsaid = home.guise(&["--project", "lab", "create", "--as", "container", BOX]);
    assert!(unsaid.err.contains("limits memory, and none was said"), "{unsaid:?}");
    let create = |size: &str| {
        let args = ["--project", "lab", "create", "--as", "container", "-m", size, BOX];
        home.command(args)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
    };
    let asked: Vec<_> = (0..8).map(|_| create("16M").unwrap()).collect();
    let told: Vec<Said> =
        asked.into_iter().map(|one| said(one.wait_with_output().unwrap())).collect();
    let made: Vec<&str> =
        told.iter().filter(|one| one.code == 0).map(|one| one.out.trim()).collect();
    assert_eq!(made.len(), 3, "{told:?}");
    for one in told.iter().filter(|one| one.code != 0) {
        assert!(one.err.contains("project lab may have 3 instances"), "{one:?}");
    }
    let refused = home.guise(&["project", "rm", "lab"]);
    assert!(refused.err.contains("has instances"), "{refused:?}");
    home.good(&["--project", "lab", "rm", made[0]]);
    let much = said(create("80M").unwrap().wait_with_output().unwrap());
    assert!(much.err.contains("MiB of memory"), "{much:?}");
    home.good(&["project", "set", "--instances", "3", "lab"]);
    let shown = home.good(&["project", "ls"]);
    assert!(shown.contains("2 of 3") && shown.contains("32.0 MiB"), "{shown}");
    let third = said(create("80M").unwrap().wait_with_output().unwrap());
    assert_eq!(third.code, 0, "{third:?}");
    for id in home.good(&["--project", "lab", "ps", "-aq"]).lines() {
        home.good(&["--project", "lab", "rm", id]);
    }
    let projects: Value =
        serde_json::from_str(&home.good(&["project", "ls", "-o", "json"])).unwrap();
    let lab = projects.as_array().unwrap().iter().find(|one| one["name"] == "lab").unwrap();
    assert_eq!(lab["reserved"]["memory_bytes"], 0, "{lab}");
    home.good(&["--project", "lab", "volume", "create", "v"]);
    let refused = home.guise(&["project", "rm", "lab"]);
    assert!(refused.err.contains("has volumes"), "{refused:?}");
    home.good(&["--project", "lab", "volume", "rm", "v"]);
    home.good(&["project", "rm", "lab"]);
}

#[test]
fn lists_come_in_pages_and_changes_since_them() {
    let Some(home) = Home::new("pages", Guise::Container) else { return };
    for name in ["a", "b", "c"] {
        home.good(&["volume", "create", name]);
    }
    let (status, page) = home.request("GET", "/v1/volumes?limit=2", &Value::Null);
    assert_eq!((status, page["next"].as_str()), (200, Some("b")), "{page}");
    let (_, rest) = home.request("GET", "/v1/volumes?limit=2&after=b", &Value::Null);
    assert_eq!((&rest["items"][0]["name"], &rest["next"]), (&json!("c"), &Value::Null), "{rest}");
    let since = page["revision"].as_u64().unwrap();
    home.good(&["volume", "rm", "b"]);
    home.good(&["volume", "create", "d"]);
    let changes = |since: u64| {
        let path = format!("/v1/changes?since={since}");
        let stream = UnixStream::connect(home.path("run/guise.sock")).unwrap();
        let (status, text) = exchange(stream, &format!("GET {path} HTTP/1.1"), b"");
        // In chunks, whose sizes are on lines of their own.
        let lines = text.lines().filter(|line| line.starts_with('{'));
        (status, lines.map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>())
    };
    let (status, told) = changes(since);
    let of = |id: &str| told.iter().find(|one| one["kind"] == "volume" && one["id"] == id);
    assert_eq!(status, 200);
    assert!(of("a").is_none() && of("b").unwrap()["object"].is_null(), "{told:?}");
    assert_eq!(of("d").unwrap()["object"]["name"], "d", "{told:?}");
    assert_eq!(changes(since + 1_000_000).0, 400);
    // The same request is the same instance; another with its key is refused.
    let wanted = |command: &str| json!({"key": "k1", "spec": {"image": BOX, "command": [command]}});
    let (_, first) = home.request("POST", "/v1/instances", &wanted("true"));
    let (_, again) = home.request("POST", "/v1/instances", &wanted("true"));
    assert_eq!(first["id"], again["id"], "{again}");
    assert_eq!(home.request("POST", "/v1/instances", &wanted("false")).0, 409);
    // Errors have one shape, whoever finds them.
    for (method, path, body, status) in [
        ("GET", "/v1/nothing", Value::Null, 404),
        ("GET", "/", Value::Null, 404),
        ("PATCH", "/v1/volumes", Value::Null, 405),
        ("POST", "/v1/volumes", json!([]), 400),
        ("POST", "/v1/volumes", json!({"name": "x", "odd": 1}), 400),
        ("GET", "/v1/volumes?limit=many", Value::Null, 400),
        ("POST", "/v1/instances", json!({"spec": {"image": BOX, "join": "\u{d0}"}}), 400),
        // More than the store takes, and more than anybody is listened to.
        (
            "POST",
            "/v1/instances",
            json!({"spec": {"image": BOX, "command": ["x".repeat(1 << 20)]}}),
            413,
        ),
        (
            "POST",
            "/v1/instances",
            json!({"spec": {"image": BOX, "command": ["x".repeat(3 << 20)]}}),
            413,
        ),
        ("GET", "/v1/instances/%ff", Value::Null, 400),
        ("GET", "/v1/instances/nobody/exec", Value::Null, 404),
        ("GET", &format!("/v1/instances/{}/exec", first["id"].as_str().unwrap()), Value::Null, 400),
        ("DELETE", "/v1/networks/%2f", Value::Null, 400),
        ("DELETE", "/v1/tokens/none", Value::Null, 404),
    ] {
        let (told, error) = home.request(method, path, &body);
        assert_eq!(told, status, "{method} {path}: {error}");
        assert!(error["code"].is_string() && error["message"].is_string(), "{path}: {error}");
    }
    let (_, description) = home.request("GET", "/v1/openapi.json", &Value::Null);
    assert_eq!(description.to_string(), {
        let printed: Value = serde_json::from_str(&home.good(&["daemon", "--openapi"])).unwrap();
        printed.to_string()
    });
}
