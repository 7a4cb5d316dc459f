//! The routes. A session borrows a connection for each read, hands each write to the pool's queue, and
//! has no connection while its reply is on the way.

use std::convert::Infallible;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::middleware::{Next, from_fn};
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{delete, get, post};
use futures_core::Stream;
use leasepool::rusqlite::Savepoint;
use leasepool::status;
use leasepool::web::{Agent, AgentSource, LeaseLayer};
use serde::Deserialize;
use tokio::time::timeout;

use crate::fault::Fault;
use crate::store::{self, Found, LONGEST_LIST, Message, Session};
use crate::{App, reply};

const LONGEST_ID: usize = 64;
/// In characters.
const LONGEST_TEXT: usize = 8_000;
const LONGEST_BODY: usize = 64 * 1024;
/// How long a body may take to arrive.
const BODY: Duration = Duration::from_secs(5);
const LONGEST_QUERY: usize = 200;

const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'";

pub(crate) fn router(app: &App) -> Router {
    let sessions = AgentSource::from_fn(|parts: &axum::http::request::Parts| {
        let id = parts.uri.path().split('/').nth(3)?;
        is_id(id).then(|| id.to_owned())
    });
    Router::new()
        .route("/api/sessions/{id}/messages", post(send).get(history))
        .route("/api/sessions/{id}", delete(remove))
        .route_layer(LeaseLayer::new(app.pool.clone(), sessions))
        .route("/api/sessions", get(list))
        .route("/api/search", get(search))
        .route("/", get(page))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .layer(from_fn(in_time))
        .with_state(app.clone())
}

/// Reads the body before anything is done for the request. A client that is slow gives its place to others.
async fn in_time(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match timeout(BODY, to_bytes(body, LONGEST_BODY)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(head, body.into())).await,
        Ok(Err(_)) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// For operators. Who they are is for `main` to say.
pub(crate) fn status(app: &App) -> status::Page {
    status::Page::new(&app.pool)
        .agents(status::Agents::Show)
        .places(status::Places::Show)
        .until(app.stop.clone().cancelled_owned())
}

fn is_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=LONGEST_ID).contains(&id.len()) && id.chars().all(allowed)
}

#[derive(Deserialize)]
struct Said {
    text: String,
}

/// Stores the message, and then says so, before the reply begins. A client that hangs up gets no
/// reply: only whole ones are stored.
async fn send(
    State(app): State<App>,
    agent: Agent,
    Json(said): Json<Said>,
) -> Result<impl IntoResponse, Fault> {
    let length = said.text.chars().count();
    if said.text.trim().is_empty() || length > LONGEST_TEXT {
        return Err(Fault::Bad("text: 1 to 8000 characters"));
    }
    let session = agent.id()?.to_owned();
    let place = app.streams.clone().try_acquire_owned();
    let place = place.map_err(|_| Fault::Busy)?;
    let (text, of) = (said.text.clone(), session.clone());
    let id = agent
        .write_async(move |tx| store::add(tx, &of, "user", &text))
        .await?;
    app.accepted.fetch_add(1, Relaxed);
    let stream = async_stream::stream! {
        let _place = place;
        let reply = stream_reply(app, agent, session, id, said.text);
        for await event in reply {
            yield Ok::<_, Infallible>(event);
        }
    };
    Ok(([(CACHE_CONTROL, "no-store")], Sse::new(stream)))
}

fn stream_reply(
    app: App,
    agent: Agent,
    session: String,
    id: i64,
    text: String,
) -> impl Stream<Item = Event> {
    async_stream::stream! {
        yield Event::default().event("accepted").data(id.to_string());
        let words = reply::words(&text, id);
        for word in &words {
            yield Event::default().event("word").data(word);
            tokio::select! {
                () = tokio::time::sleep(app.delay) => {}
                () = app.stop.cancelled() => {
                    yield Event::default().event("end").data("the server is stopping");
                    return;
                }
            }
        }
        let reply = words.join(" ");
        let add = move |tx: &mut Savepoint<'_>| store::add_reply(tx, &session, &reply);
        yield match agent.write_async(add).await {
            Ok(Some(id)) => Event::default().event("done").data(id.to_string()),
            Ok(None) => Event::default().event("end").data("the session was deleted"),
            Err(_) => Event::default().event("end").data("the reply could not be stored"),
        };
    }
}

#[derive(Deserialize)]
struct Page {
    before: Option<i64>,
    offset: Option<i64>,
    limit: Option<i64>,
}

impl Page {
    fn limit(&self) -> i64 {
        self.limit.unwrap_or(50).clamp(1, LONGEST_LIST)
    }
}

async fn history(
    State(app): State<App>,
    agent: Agent,
    Query(page): Query<Page>,
) -> Result<Json<Vec<Message>>, Fault> {
    let before = page.before.unwrap_or(i64::MAX);
    let messages = app.sessions.history(agent, before, page.limit()).await?;
    Ok(Json(messages))
}

async fn list(
    State(app): State<App>,
    Query(page): Query<Page>,
) -> Result<Json<Vec<Session>>, Fault> {
    let offset = page.offset.unwrap_or(0).clamp(0, 10_000);
    let sessions = app.sessions.list(&app.pool, offset, page.limit()).await?;
    Ok(Json(sessions))
}

#[derive(Deserialize)]
struct Words {
    q: String,
    session: Option<String>,
}

async fn search(
    State(app): State<App>,
    Query(words): Query<Words>,
) -> Result<Json<Vec<Found>>, Fault> {
    if words.q.chars().count() > LONGEST_QUERY || words.q.contains('\0') {
        return Err(Fault::Bad("q: up to 200 characters"));
    }
    if words.session.as_deref().is_some_and(|id| !is_id(id)) {
        return Err(Fault::Bad("session: not an id"));
    }
    let search = app.sessions.search(&app.pool, words.session, words.q);
    Ok(Json(search.await?))
}

async fn remove(State(app): State<App>, agent: Agent) -> Result<StatusCode, Fault> {
    match app.sessions.delete(agent).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Fault::NoSuchSession),
    }
}

async fn ready(State(app): State<App>) -> Result<&'static str, Fault> {
    app.pool.ready()?;
    Ok("ready")
}

async fn page() -> impl IntoResponse {
    let headers = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, Html(include_str!("page.html")))
}
