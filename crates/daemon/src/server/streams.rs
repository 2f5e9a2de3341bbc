//! Answers that go on: a JSON value on each line.

use std::convert::Infallible;

use axum::body::{Body as Answer, Bytes};
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use guise_api::{ApiError, Event, Pull, PullNews};
use guise_image::progress::{Meter, Progress};
use guise_image::{Digest, Name};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::App;
use super::answer::{Body, Refused};

/// An answer whose lines come out of a channel.
fn lines<T: Serialize + Send + 'static>(receiver: mpsc::Receiver<T>) -> Response {
    let lines = stream::unfold(receiver, |mut receiver| async move {
        let value = receiver.recv().await?;
        let mut line = serde_json::to_vec(&value).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), receiver))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Answer::from_stream(lines)).into_response()
}

#[derive(Deserialize)]
pub struct Following {
    #[serde(default)]
    follow: bool,
}

/// The last events, and with `follow` those that come.
#[utoipa::path(
    get, path = "/v1/events", params(("follow" = Option<bool>, Query)),
    responses((status = 200, description = "an event on each line", body = Event))
)]
pub async fn events(State(daemon): State<App>, Query(following): Query<Following>) -> Response {
    let (last, mut live) = daemon.events.listen();
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        for event in last {
            if sender.send(event).await.is_err() {
                return;
            }
        }
        if !following.follow {
            return;
        }
        loop {
            let event = tokio::select! {
                event = live.recv() => event,
                // Nobody listens any more.
                () = sender.closed() => return,
            };
            match event {
                Ok(event) => {
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
                // It was too slow for some: the others follow.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });
    lines(receiver)
}

/// Fetches an image. The last line is how that ended.
#[utoipa::path(
    post, path = "/v1/images/pull", request_body = Pull,
    responses(
        (status = 200, description = "news on each line", body = PullNews),
        (status = 400, body = ApiError),
    )
)]
pub async fn pull(State(daemon): State<App>, Body(asked): Body<Pull>) -> Result<Response, Refused> {
    let name: Name = asked
        .image
        .parse()
        .map_err(|error: guise_image::Error| ApiError::invalid(error.to_string()))?;
    let (sender, receiver) = mpsc::channel(64);
    tokio::task::spawn_blocking(move || {
        let pull = guise_image::Pull { missing: asked.missing, ..guise_image::Pull::default() };
        let teller = Teller(sender.clone());
        let last = match pull.run(&daemon.images, &name, &teller) {
            Ok(target) => {
                daemon.events.tell(
                    "image",
                    &target.digest.to_string(),
                    &asked.image,
                    "pulled",
                    None,
                );
                PullNews::Done(target.digest.to_string())
            }
            Err(error) => PullNews::Failed(ApiError::internal(error).exit_code(125)),
        };
        // Nobody may wait for it.
        let _ = sender.blocking_send(last);
    });
    Ok(lines(receiver))
}

/// Progress as lines.
struct Teller(mpsc::Sender<PullNews>);

impl Progress for Teller {
    fn start(&self, what: &'static str, digest: Digest, bytes: u64) -> Meter {
        self.note(&format!("{what} {} ({} KiB)", digest.short(), bytes >> 10));
        Meter::default()
    }

    fn note(&self, line: &str) {
        // A pull goes on without somebody who watches.
        let _ = self.0.blocking_send(PullNews::Note(line.to_owned()));
    }
}
