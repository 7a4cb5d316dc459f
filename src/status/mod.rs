//! The feature `status`: an axum router that shows what a pool does, live.
//! It only looks at the pool: nothing here changes anything.
//!
//! # The status page
//!
//! ```no_run
//! # use leasepool::{Database, Pool};
//! # fn application() -> Result<axum::Router, leasepool::Error> {
//! let pool = Pool::builder(Database::file("chat.db")).build()?;
//! let app = axum::Router::new().nest("/status", leasepool::status::router(&pool));
//! # Ok(app)
//! # }
//! ```
//!
//! | path | what |
//! |---|---|
//! | `/` | a page for people: one file without external assets, live |
//! | `/status.json` | the same numbers, with the last five minutes |
//! | `/metrics` | the numbers in Prometheus' text format |
//! | `/events` | server-sent events, the numbers twice a second |
//!
//! The pages show agents' ids and source lines: mount the router where only operators can see it.

mod feed;
mod prometheus;
mod snapshot;

use std::convert::Infallible;
use std::future::{Future, pending};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderName, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;

use crate::pool::Pool;
use crate::pool::pooled::Backend;
use feed::Feed;

const PAGE: &str = include_str!("page.html");

/// The page may do nothing but show itself and query its own server.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'";

const NOT_STORED: (HeaderName, &str) = (CACHE_CONTROL, "no-store");

/// The status page of a pool. The router holds a handle to the pool, which therefore stays open as long as
/// the router lives.
///
/// Event streams last as long as the browser wants. A server that shuts down gracefully should use
/// [`router_until`].
pub fn router<B: Backend>(pool: &Pool<B>) -> Router {
    router_until(pool, pending())
}

/// Like [`router`], but ends the event streams when `shutdown` is ready, so that a graceful shutdown does not
/// wait for browsers.
pub fn router_until<B: Backend>(
    pool: &Pool<B>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Router {
    let feed = Feed::new(pool.clone(), Box::pin(shutdown));
    // Without a runtime here, the history begins with the first request.
    feed.start();
    Router::new()
        .route("/", get(page))
        .route("/status.json", get(json::<B>))
        .route("/metrics", get(metrics::<B>))
        .route("/events", get(events::<B>))
        .with_state(feed)
}

async fn page() -> Response {
    let headers = [(CONTENT_SECURITY_POLICY, POLICY), NOT_STORED];
    (headers, Html(PAGE)).into_response()
}

async fn json<B: Backend>(State(feed): State<Arc<Feed<B>>>) -> Response {
    feed.start();
    ([NOT_STORED], Json(feed.full())).into_response()
}

async fn metrics<B: Backend>(State(feed): State<Arc<Feed<B>>>) -> Response {
    const TEXT: (HeaderName, &str) = (CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([TEXT, NOT_STORED], prometheus::text(feed.pool())).into_response()
}

async fn events<B: Backend>(State(feed): State<Arc<Feed<B>>>) -> Response {
    feed.start();
    let Some(listener) = feed.listen() else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "too many clients are watching: try again later",
        )
            .into_response();
    };
    let stream = futures_util::stream::unfold(listener, |mut listener| async {
        let data = listener.next().await?;
        let event = Event::default().data(&*data);
        Some((Ok::<_, Infallible>(event), listener))
    });
    Sse::new(stream).into_response()
}
