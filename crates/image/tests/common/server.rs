//! A small HTTP server whose answers a test decides: what arrives cut short,
//! what is slow, what wants a password.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use guise_image::{Image, Store};

pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub cut: Option<usize>,
    /// Sleep between pieces of 64 KiB.
    pub pause: Duration,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, pause: Duration::ZERO }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Serves on a port of its own until the test ends. Gives host and port.
pub fn serve(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || connection(stream, &*answer));
        }
    });
    host
}

fn connection(mut stream: TcpStream, answer: &dyn Fn(&Request) -> Answer) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    // One request a connection: simple, and every cut is a clean one.
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let mut words = line.split_whitespace();
    // A TLS greeting is no request: close, and the client falls back to HTTP.
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: HashMap::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':') {
            request.headers.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let length = request.headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    request.body.resize(length, 0);
    if reader.read_exact(&mut request.body).is_err() {
        return;
    }
    let answer = answer(&request);
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status);
    head += &format!("content-length: {}\r\n", answer.body.len());
    for (key, value) in &answer.headers {
        head += &format!("{key}: {value}\r\n");
    }
    head += "\r\n";
    let body = &answer.body[..answer.cut.unwrap_or(answer.body.len()).min(answer.body.len())];
    if stream.write_all(head.as_bytes()).is_err() || request.method == "HEAD" {
        return;
    }
    for piece in body.chunks(64 << 10) {
        if stream.write_all(piece).is_err() {
            return;
        }
        thread::sleep(answer.pause);
    }
}

/// What a well-behaved registry answers that has one image in every
/// repository and under every tag; with ranges.
pub fn registry_of(store: &Store, image: &Image) -> impl Fn(&Request) -> Answer + use<> {
    let (store, image) = (store.clone(), image.clone());
    move |request| {
        if request.path == "/v2/" {
            return Answer::new(200, "{}");
        }
        let last = request.path.rsplit('/').next().unwrap_or("");
        if request.path.contains("/manifests/") {
            let manifest = std::fs::read(store.blob_path(image.descriptor.digest)).unwrap();
            return Answer::new(200, manifest)
                .header("content-type", image.descriptor.media_type.clone());
        }
        let Some(blob) = last.parse().ok().and_then(|d| std::fs::read(store.blob_path(d)).ok())
        else {
            return Answer::new(404, "{}");
        };
        let from: Option<usize> = request
            .headers
            .get("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match from {
            Some(from) if from < blob.len() => Answer::new(206, &blob[from..])
                .header("content-range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
            _ => Answer::new(200, blob),
        }
    }
}
