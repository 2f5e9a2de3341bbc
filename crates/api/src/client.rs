//! The client: HTTP over the daemon's socket, one connection a request.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::session::Frame;
use crate::{ApiError, Code, PREFIX};

/// No answer other than a stream is larger.
const MAX_ANSWER: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot reach the daemon at {socket}: {source}")]
    Unreachable { socket: PathBuf, source: std::io::Error },
    /// The daemon went away in the middle, or speaks another language.
    #[error("the daemon at {socket} did not answer: {why}")]
    Broken { socket: PathBuf, why: String },
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Where a daemon listens.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn broken(&self, why: impl std::fmt::Display) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), why: why.to_string() }
    }

    /// Connects, to see whether somebody is there.
    pub async fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Unreachable { socket: self.socket.clone(), source })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, &()).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, body).await
    }

    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::DELETE, path, &()).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = if method == Method::POST {
            serde_json::to_vec(body).map_err(|e| self.broken(e))?
        } else {
            Vec::new()
        };
        let answer = self.send(method, path, "application/json", Bytes::from(body)).await?;
        let bytes = self.whole(answer).await?;
        serde_json::from_slice(&bytes).map_err(|e| self.broken(e))
    }

    /// Sends bytes that are no JSON; the answer's bytes.
    pub async fn upload(&self, path: &str, body: Bytes) -> Result<(), ClientError> {
        let answer = self.send(Method::POST, path, "application/x-tar", body).await?;
        self.whole(answer).await.map(drop)
    }

    /// An answer that goes on: its parts, as they come.
    pub async fn stream(&self, path: &str) -> Result<Parts, ClientError> {
        let answer = self.send(Method::GET, path, "application/json", Bytes::new()).await?;
        Ok(Parts { body: answer.into_body(), client: self.clone(), line: Vec::new() })
    }

    /// The same for a request with a body.
    pub async fn post_stream(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Parts, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.broken(e))?;
        let answer = self.send(Method::POST, path, "application/json", Bytes::from(body)).await?;
        Ok(Parts { body: answer.into_body(), client: self.clone(), line: Vec::new() })
    }

    async fn whole(&self, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = answer.into_body();
        if body.size_hint().lower() > MAX_ANSWER {
            return Err(self.broken("its answer is too large"));
        }
        let limited = http_body_util::Limited::new(body, MAX_ANSWER as usize);
        limited.collect().await.map(|body| body.to_bytes()).map_err(|e| self.broken(e))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(e))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header("host", "guise")
            .header("content-type", kind)
            .body(Full::new(body))
            .map_err(|e| self.broken(e))?;
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

    /// Opens a session.
    pub async fn session(&self, path: &str) -> Result<Session, ClientError> {
        let stream = self.connect().await?;
        let url = format!("ws://guise{PREFIX}{path}");
        match tokio_tungstenite::client_async(url, stream).await {
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
                return serde_json::from_slice(&line).map(Some).map_err(|e| self.client.broken(e));
            }
            match self.next().await? {
                Some(bytes) => self.line.extend_from_slice(&bytes),
                None => return Ok(None),
            }
            if self.line.len() as u64 > MAX_ANSWER {
                return Err(self.client.broken("a line of its answer does not end"));
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
    socket: SplitSink<WebSocketStream<UnixStream>, Message>,
    client: Client,
}

/// The end of a session that frames come out of.
pub struct Receiver {
    socket: SplitStream<WebSocketStream<UnixStream>>,
    client: Client,
}

impl Session {
    fn new(socket: WebSocketStream<UnixStream>, client: &Client) -> Session {
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
                    return Frame::decode(&bytes).map(Some).map_err(|e| self.client.broken(e));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(self.client.broken(error)),
            }
        }
    }
}
