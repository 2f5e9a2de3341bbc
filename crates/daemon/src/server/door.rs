//! The ways in: the daemon's own socket, and for other hosts TLS.
//!
//! Strangers get little: so many connections from one address, so long for the handshake and
//! for a request's head, so many bytes of it. What is left is done by what a token allows.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use guise_api::ApiError;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use super::guard::Peer;
use crate::{DaemonError, Listen, tls};

/// How long a request's head may take, and how long a connection may be idle between two.
const HEAD_PATIENCE: Duration = Duration::from_secs(15);
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// The connection notices up to as much late as it is told to hold.
const LARGEST_HEAD: usize = 64 << 10;
const MOST_HEADERS: usize = 64;
/// Connections of other hosts: all of them, and those of one address.
const MOST_CONNECTIONS: usize = 512;
const MOST_OF_ONE: usize = 128;
/// After the system refused one: it may have run out of descriptors for a moment.
const PAUSE: Duration = Duration::from_millis(100);

/// Of a request that came to the wrong port, so much is passed over, for so long.
const MOST_UNREAD: u64 = 1 << 20;
const FAREWELL: Duration = Duration::from_secs(5);

/// Where other hosts reach the daemon, and what they know it by.
#[derive(Debug)]
pub struct Door {
    pub address: SocketAddr,
    pub fingerprint: Option<String>,
}

/// The listener behind it.
pub struct Remote {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    places: Arc<Places>,
}

impl Remote {
    pub async fn open(listen: &Listen, folder: &Path) -> Result<(Remote, Door), DaemonError> {
        let address = listen.address;
        let (tls, fingerprint) = if listen.plain {
            if !address.ip().is_loopback() {
                return Err(DaemonError::Plain(address));
            }
            (None, None)
        } else {
            let own = tls::load(listen.certificate.as_ref(), folder, address.ip())?;
            (Some(own.acceptor), Some(own.fingerprint))
        };
        let refused = |error| DaemonError::Listen(address, error);
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let remote = Remote { listener, tls, places: Arc::default() };
        Ok((remote, Door { address, fingerprint }))
    }

    pub async fn serve(self, router: Router) {
        loop {
            let (stream, from) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            // Who has too many already is not answered: the connection closes.
            let Some(place) = self.places.take(from.ip()) else { continue };
            tokio::spawn(welcome(stream, from, self.tls.clone(), place, router.clone()));
        }
    }
}

async fn welcome(
    stream: TcpStream,
    from: SocketAddr,
    tls: Option<TlsAcceptor>,
    place: Place,
    router: Router,
) {
    let peer = Peer::Remote(from);
    // Small frames of terminals are not to wait for others.
    let _ = stream.set_nodelay(true);
    // A host that has gone without a word is noticed.
    let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
    let Some(tls) = tls else {
        return converse(Held { stream, _place: place }, peer, router).await;
    };
    match tokio::time::timeout(HANDSHAKE_PATIENCE, begins_plainly(&stream)).await {
        Ok(false) => {}
        Ok(true) => return point_at_tls(stream, place).await,
        Err(_) => return tracing::debug!("{from}: no handshake in time"),
    }
    match tokio::time::timeout(HANDSHAKE_PATIENCE, tls.accept(stream)).await {
        Ok(Ok(stream)) => converse(Held { stream, _place: place }, peer, router).await,
        Ok(Err(error)) => tracing::debug!("{from}: {error}"),
        Err(_) => tracing::debug!("{from}: no handshake in time"),
    }
}

/// Whether what comes first is a request and no handshake. Nothing is taken off the stream.
async fn begins_plainly(stream: &TcpStream) -> bool {
    let mut first = [0];
    // Methods are in capital letters; a handshake begins with 22.
    matches!(stream.peek(&mut first).await, Ok(1) if first[0].is_ascii_uppercase())
}

/// Answers whoever speaks HTTP without TLS, and lets him read that.
async fn point_at_tls(mut stream: TcpStream, _place: Place) {
    let error = ApiError::invalid("this port speaks TLS, and the request came without")
        .hint("begin the address with https://");
    let body = serde_json::to_string(&error).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let tell = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // A socket that is closed with something unread takes the answer back.
        tokio::io::copy(&mut stream.take(MOST_UNREAD), &mut tokio::io::sink()).await
    };
    // He is gone, or sends without end: both are his.
    let _ = tokio::time::timeout(FAREWELL, tell).await;
}

/// Serves the daemon's own socket, which only its user can open.
pub async fn serve_own(listener: UnixListener, router: Router) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, Peer::Owner, router.clone()));
            }
            Err(error) => {
                tracing::warn!("accept a connection: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse<S>(stream: S, peer: Peer, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.clone().call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(LARGEST_HEAD / 2)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!("{peer:?}: {error}");
    }
}

/// Who has how many connections.
#[derive(Default)]
struct Places(Mutex<HashMap<IpAddr, usize>>);

/// One connection's place, given back when it ends.
struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    fn take(self: &Arc<Places>, address: IpAddr) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= MOST_CONNECTIONS {
            return None;
        }
        let own = taken.entry(address).or_default();
        if *own >= MOST_OF_ONE {
            return None;
        }
        *own += 1;
        Some(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// A stream that keeps its place as long as it is open, as a session too.
struct Held<S> {
    stream: S,
    _place: Place,
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
