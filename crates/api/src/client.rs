//! The client: HTTP over the way to a daemon ([`Route`]), one connection a request.
//!
//! A daemon may be killed, or end, at any time. A request that may be done twice is
//! repeated when the connection broke before its answer was complete; one that never
//! reached a daemon is repeated in any case. Before each repetition somebody is asked to
//! have a daemon run ([`Revive`]).

mod route;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

pub use route::{DEFAULT_PORT, Route, RouteError, Stream, Trust, fingerprint};

use crate::session::Frame;
use crate::{ApiError, Code, PREFIX, PROJECT_HEADER, Page};

/// No answer other than a stream is larger.
const MAX_ANSWER: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot reach the daemon at {at}: {source}")]
    Unreachable { at: String, source: std::io::Error },
    /// Somebody listens there who may not be the daemon that is meant.
    #[error("the daemon at {at} is not to be trusted: {why}")]
    Untrusted { at: String, why: String },
    /// The daemon went away in the middle.
    #[error("the daemon at {at} did not answer: {why}")]
    Broken { at: String, why: String },
    /// It speaks another language.
    #[error("the daemon at {at} gave an answer that is none: {why}")]
    Garbled { at: String, why: String },
    /// No daemon could be brought to run.
    #[error("{0}")]
    Dead(String),
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// How often a request is repeated, and how long the first repetition is waited for; the
/// next ones wait twice as long each.
const REPEATS: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(20);

/// Brings a daemon back that has gone, or says why it does not.
pub trait Revive: Send + Sync {
    fn revive<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), String>>;
}

/// Whether a request may be done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Twice {
    May,
    MayNot,
}

/// Where a daemon listens, and who asks it.
#[derive(Clone)]
pub struct Client {
    route: Route,
    /// What proves who asks.
    token: Option<HeaderValue>,
    project: Option<HeaderValue>,
    revive: Option<Arc<dyn Revive>>,
}

impl Client {
    /// A client that takes it as it is when nobody listens.
    #[must_use]
    pub fn new(route: Route) -> Client {
        Client { route, token: None, project: None, revive: None }
    }

    /// One that has a daemon started, or started again.
    #[must_use]
    pub fn reviving(self, revive: Arc<dyn Revive>) -> Client {
        Client { revive: Some(revive), ..self }
    }

    /// One that shows a token. None where it has characters that no token has.
    #[must_use]
    pub fn with_token(self, token: &str) -> Option<Client> {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        Some(Client { token: Some(value), ..self })
    }

    /// One whose requests are about this project. None where that can be no name.
    #[must_use]
    pub fn in_project(self, project: &str) -> Option<Client> {
        Some(Client { project: Some(HeaderValue::from_str(project).ok()?), ..self })
    }

    fn broken(&self, why: impl std::fmt::Display) -> ClientError {
        ClientError::Broken { at: self.route.to_string(), why: why.to_string() }
    }

    fn garbled(&self, why: impl std::fmt::Display) -> ClientError {
        ClientError::Garbled { at: self.route.to_string(), why: why.to_string() }
    }

    /// Connects, to see whether somebody is there.
    pub async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        self.route.open().await.map_err(|source| {
            let at = self.route.to_string();
            match route::distrust(&source) {
                Some(why) => ClientError::Untrusted { at, why },
                None => ClientError::Unreachable { at, source },
            }
        })
    }

    /// What goes with every request: who asks, and in which project.
    fn headers(&self) -> impl Iterator<Item = (&'static str, &HeaderValue)> {
        let token = self.token.iter().map(|value| (AUTHORIZATION.as_str(), value));
        token.chain(self.project.iter().map(|value| (PROJECT_HEADER, value)))
    }

    /// Tries until there is an answer, or no hope of one. The attempt is told how many
    /// there were before it.
    async fn persist<T>(
        &self,
        twice: Twice,
        attempt: impl AsyncFn(u32) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let (mut before, mut wait) = (0, FIRST_WAIT);
        loop {
            let error = match attempt(before).await {
                Err(error @ ClientError::Unreachable { .. }) => error,
                Err(error @ ClientError::Broken { .. }) if twice == Twice::May => error,
                other => return other,
            };
            let Some(revive) = self.revive.as_ref().filter(|_| before < REPEATS) else {
                return Err(error);
            };
            if before > 0 {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            revive.revive(self).await.map_err(ClientError::Dead)?;
            before += 1;
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Bytes::new(), Twice::May).await
    }

    /// All of a list, page by page.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page: Page<T> = self.get(&format!("{path}?after={after}")).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => after = next,
                None => return Ok(all),
            }
        }
    }

    /// Puts something in the place of what is there.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::PUT, path, self.json(body)?, Twice::May).await
    }

    /// Asks for what is not to be done twice.
    pub async fn post_once<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, self.json(body)?, Twice::MayNot).await
    }

    /// Asks for what is the same when it is done twice.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, self.json(body)?, Twice::May).await
    }

    /// Removes something. That it is not there any more when this is repeated is success.
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        let attempt = async |before: u32| {
            let sent = self.send(Method::DELETE, path, Bytes::new()).await;
            match sent {
                Ok(answer) => self.whole(answer).await.map(drop),
                Err(ClientError::Api(error)) if before > 0 && error.code == Code::NotFound => {
                    Ok(())
                }
                Err(error) => Err(error),
            }
        };
        self.persist(Twice::May, attempt).await
    }

    fn json(&self, body: &impl Serialize) -> Result<Bytes, ClientError> {
        serde_json::to_vec(body).map(Bytes::from).map_err(|e| self.garbled(e))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        twice: Twice,
    ) -> Result<T, ClientError> {
        let attempt = async |_: u32| {
            let answer = self.send(method.clone(), path, body.clone()).await?;
            self.whole(answer).await
        };
        let bytes = self.persist(twice, attempt).await?;
        serde_json::from_slice(&bytes).map_err(|e| self.garbled(e))
    }

    /// An answer that goes on: its parts, as they come.
    pub async fn stream(&self, path: &str) -> Result<Parts, ClientError> {
        let attempt = async |_: u32| self.send(Method::GET, path, Bytes::new()).await;
        let answer = self.persist(Twice::May, attempt).await?;
        Ok(Parts { body: answer.into_body(), client: self.clone(), line: Vec::new() })
    }

    async fn whole(&self, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = answer.into_body();
        if body.size_hint().lower() > MAX_ANSWER {
            return Err(self.garbled("it is too large"));
        }
        let limited = http_body_util::Limited::new(body, MAX_ANSWER as usize);
        limited.collect().await.map(|body| body.to_bytes()).map_err(|e| self.broken(e))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(e))?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header("host", "guise")
            .header("content-type", "application/json");
        for (name, value) in self.headers() {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|e| self.garbled(e))?;
        let answer = sender.send_request(request).await.map_err(|e| self.broken(e))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = self.whole(answer).await?;
        let error: ApiError = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| ApiError::new(Code::Internal, format!("the daemon said {status}")));
        Err(error.into())
    }

    /// Opens a session. Opening it again does no harm: what a session is to do, it is
    /// told by frames, or by a request that may be done twice.
    pub async fn session(&self, path: &str) -> Result<Session, ClientError> {
        let attempt = async |_: u32| {
            let stream = self.connect().await?;
            let url = format!("ws://guise{PREFIX}{path}");
            let mut request = url.into_client_request().map_err(|e| self.garbled(e))?;
            for (name, value) in self.headers() {
                request.headers_mut().insert(name, value.clone());
            }
            match tokio_tungstenite::client_async(request, stream).await {
                Ok((socket, _)) => Ok(Session::new(socket, self)),
                Err(tungstenite::Error::Http(answer)) => {
                    let status = answer.status();
                    let body = answer.into_body().unwrap_or_default();
                    let error: ApiError = serde_json::from_slice(&body).unwrap_or_else(|_| {
                        ApiError::new(Code::Internal, format!("the daemon said {status}"))
                    });
                    Err(error.into())
                }
                Err(error) => Err(self.broken(error)),
            }
        };
        self.persist(Twice::May, attempt).await
    }
}

/// An answer that goes on.
pub struct Parts {
    body: Incoming,
    client: Client,
    line: Vec<u8>,
}

impl Parts {
    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.client.broken(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The next line's value, of an answer that has one on each line.
    pub async fn next_value<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|e| self.client.garbled(e));
            }
            match self.next().await? {
                Some(bytes) => self.line.extend_from_slice(&bytes),
                None => return Ok(None),
            }
            if self.line.len() as u64 > MAX_ANSWER {
                return Err(self.client.garbled("a line of it does not end"));
            }
        }
    }
}

/// An open session.
pub struct Session {
    sender: Sender,
    receiver: Receiver,
}

/// The end of a session that frames go into.
pub struct Sender {
    socket: SplitSink<WebSocketStream<Box<dyn Stream>>, Message>,
    client: Client,
}

/// The end of a session that frames come out of.
pub struct Receiver {
    socket: SplitStream<WebSocketStream<Box<dyn Stream>>>,
    client: Client,
}

impl Session {
    fn new(socket: WebSocketStream<Box<dyn Stream>>, client: &Client) -> Session {
        let (sink, stream) = socket.split();
        Session {
            sender: Sender { socket: sink, client: client.clone() },
            receiver: Receiver { socket: stream, client: client.clone() },
        }
    }

    /// Both ends, for two tasks: who only sends while nobody receives may wait for ever.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    pub async fn send(&mut self, frame: &Frame) -> Result<(), ClientError> {
        self.sender.send(frame).await
    }

    /// See [`Receiver::next`].
    pub async fn next(&mut self) -> Result<Option<Frame>, ClientError> {
        self.receiver.next().await
    }
}

impl Sender {
    pub async fn send(&mut self, frame: &Frame) -> Result<(), ClientError> {
        self.socket
            .send(Message::Binary(frame.encode().into()))
            .await
            .map_err(|e| self.client.broken(e))
    }
}

impl Receiver {
    /// The next frame; none when the daemon has ended the session. May be dropped
    /// before it is done, and called again.
    pub async fn next(&mut self) -> Result<Option<Frame>, ClientError> {
        loop {
            match self.socket.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Binary(bytes))) => {
                    return Frame::decode(&bytes).map(Some).map_err(|e| self.client.garbled(e));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(self.client.broken(error)),
            }
        }
    }
}
