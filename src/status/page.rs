//! Page: which pools are shown, what of them, and to whom; and the router that does it.
//! What is shown is made in `snapshot` and `feed`.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;

use super::feed::{Feed, Shutdown};
use super::prometheus::{self, Buckets};
use super::snapshot::{Agents, Places, Privacy};
use super::watch::Watched;
use crate::observe::health::Health;
use crate::pool::Pool;
use crate::pool::pooled::Backend;

const PAGE: &str = include_str!("page.html");
/// Where the page has the nonce of its script and its style.
const NONCE: &str = "NONCE";

/// How many clients may watch at once, by default.
const WATCHERS: usize = 64;

type Guard = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;

/// The status page of one or more pools, until [`guarded`](Page::guarded) or [`public`](Page::public) makes a router of it.
///
/// The router holds handles to the pools, which therefore stay open as long as it lives.
#[must_use = "`guarded` or `public` makes the router"]
pub struct Page {
    pools: Vec<Arc<dyn Watched>>,
    agents: Option<Agents>,
    places: Option<Places>,
    watchers: usize,
    buckets: Buckets,
    shutdown: Shutdown,
}

impl Page {
    /// The page of a pool.
    pub fn new<B: Backend>(pool: &Pool<B>) -> Page {
        Page {
            pools: vec![Arc::new(pool.clone())],
            agents: None,
            places: None,
            watchers: WATCHERS,
            buckets: Buckets::default(),
            shutdown: Box::pin(pending()),
        }
    }

    /// Shows another pool, too.
    pub fn and<B: Backend>(mut self, pool: &Pool<B>) -> Page {
        self.pools.push(Arc::new(pool.clone()));
        self
    }

    /// How agents' ids are shown.
    ///
    /// Defaults to [`Agents::Show`] behind a guard, and to [`Agents::Hash`] on a public page.
    pub fn agents(mut self, agents: Agents) -> Page {
        self.agents = Some(agents);
        self
    }

    /// Whether source lines are shown.
    ///
    /// Defaults to [`Places::Show`] behind a guard, and to [`Places::Hide`] on a public page.
    pub fn places(mut self, places: Places) -> Page {
        self.places = Some(places);
        self
    }

    /// How many clients may watch by server-sent events at once. The page of a client that finds no place asks for the
    /// numbers every two seconds instead. A client that reads nothing for ten seconds loses its place, and a stream
    /// ends after a minute; the page then begins another one.
    ///
    /// Defaults to 64.
    pub fn watchers(mut self, most: usize) -> Page {
        self.watchers = most;
        self
    }

    /// Where the buckets of the histograms in `/metrics` end. Each end is moved up to that of an internal bucket, at most
    /// 12.5 % (or 64 ns) further, so that every count is exact; ends beyond 39 hours become that. The last bucket is
    /// always `+Inf`. The same ends for all pools of the page.
    ///
    /// Defaults to fourteen ends from 1 µs to 1 minute.
    pub fn buckets(mut self, ends: impl IntoIterator<Item = Duration>) -> Page {
        self.buckets = Buckets::near(ends);
        self
    }

    /// Ends the event streams when `shutdown` is ready, so that a graceful shutdown of the server does not wait for
    /// browsers.
    pub fn until(mut self, shutdown: impl Future<Output = ()> + Send + 'static) -> Page {
        self.shutdown = Box::pin(shutdown);
        self
    }

    /// The router, for requests whose head `may_see` lets through; the others are answered with 403. It is called for each
    /// request, except `/healthz` and `/readyz`, on a thread of the server: it must not block.
    ///
    /// A guard that awaits, or that answers with a challenge, is a layer of your own around [`public`](Page::public).
    pub fn guarded(self, may_see: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Router {
        let agents = self.agents.unwrap_or(Agents::Show);
        let privacy = Privacy::new(agents, self.places.unwrap_or(Places::Show));
        self.router(privacy, Some(Arc::new(may_see)))
    }

    /// The router, for every client that can reach it. Agents' ids are hashed and source lines hidden, unless
    /// [`agents`](Page::agents) and [`places`](Page::places) say otherwise.
    pub fn public(self) -> Router {
        let agents = self.agents.unwrap_or(Agents::Hash);
        let privacy = Privacy::new(agents, self.places.unwrap_or(Places::Hide));
        self.router(privacy, None)
    }

    fn router(self, privacy: Privacy, guard: Option<Guard>) -> Router {
        let buckets = Arc::new(self.buckets);
        let feed = Feed::new(self.pools, privacy, self.watchers, self.shutdown);
        // Without a runtime here, the history begins with the first request.
        feed.start();
        let mut seen = Router::new()
            .route("/", get(page))
            .route("/status.json", get(json))
            .route("/metrics", get(move |feed| numbers(feed, buckets)))
            .route("/events", get(events))
            .route("/descriptors", get(descriptors));
        if let Some(guard) = guard {
            seen = seen.route_layer(from_fn(move |request: Request, next: Next| {
                let guard = Arc::clone(&guard);
                async move {
                    let (head, body) = request.into_parts();
                    match guard(&head) {
                        true => next.run(Request::from_parts(head, body)).await,
                        false => (StatusCode::FORBIDDEN, "not for you\n").into_response(),
                    }
                }
            }));
        }
        seen.route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .layer(map_response(with_headers))
            .with_state(feed)
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pools = self.pools.iter().map(|pool| pool.name());
        f.debug_struct("Page")
            .field("pools", &pools.collect::<Vec<_>>())
            .field("agents", &self.agents)
            .field("places", &self.places)
            .field("watchers", &self.watchers)
            .finish_non_exhaustive()
    }
}

/// Which pool a request is about: the first, if it does not say. `None` if it names no number.
fn which(query: Option<&str>) -> Option<usize> {
    let mut pairs = query.unwrap_or_default().split('&');
    match pairs.find_map(|pair| pair.strip_prefix("pool=")) {
        Some(number) => number.parse().ok(),
        None => Some(0),
    }
}

const NO_POOL: (StatusCode, &str) = (StatusCode::NOT_FOUND, "no such pool\n");

async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(
            "default-src 'none'; frame-ancestors 'none'",
        ));
    response
}

async fn page() -> Response {
    // A nonce must not repeat; std's seeds come from the system's random numbers. The page has nothing of a request in it.
    let random = || RandomState::new().build_hasher().finish();
    let nonce = format!("{:016x}{:016x}", random(), random());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [(CONTENT_SECURITY_POLICY, policy)];
    (headers, Html(PAGE.replace(NONCE, &nonce))).into_response()
}

async fn json(State(feed): State<Arc<Feed>>, RawQuery(query): RawQuery) -> Response {
    feed.start();
    match which(query.as_deref()).and_then(|pool| feed.full(pool)) {
        Some(full) => Json(full).into_response(),
        None => NO_POOL.into_response(),
    }
}

async fn numbers(State(feed): State<Arc<Feed>>, buckets: Arc<Buckets>) -> Response {
    const TEXT: (HeaderName, &str) = (CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    let numbered = |pool: &Arc<dyn Watched>| (pool.name().to_owned(), pool.families());
    let pools: Vec<_> = feed.pools().map(numbered).collect();
    ([TEXT], prometheus::text(&pools, &buckets)).into_response()
}

async fn events(State(feed): State<Arc<Feed>>, RawQuery(query): RawQuery) -> Response {
    feed.start();
    let asked = which(query.as_deref()).filter(|pool| feed.pools().nth(*pool).is_some());
    let Some(pool) = asked else {
        return NO_POOL.into_response();
    };
    let Some(listener) = feed.listen(pool) else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "too many clients are watching: ask for status.json instead\n",
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

async fn descriptors(State(feed): State<Arc<Feed>>, RawQuery(query): RawQuery) -> Response {
    let compared = match which(query.as_deref()) {
        Some(pool) => feed.compare(pool).await,
        None => None,
    };
    match compared {
        Some(compared) => Json(compared).into_response(),
        None => NO_POOL.into_response(),
    }
}

async fn healthz(State(feed): State<Arc<Feed>>) -> Response {
    let verdicts = feed.pools().map(|pool| pool.health());
    let worst = verdicts
        .max_by_key(Health::level)
        .unwrap_or(Health::Healthy);
    let status = match worst.is_down() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::OK,
    };
    (status, format!("{}\n", worst.name())).into_response()
}

async fn readyz(State(feed): State<Arc<Feed>>) -> Response {
    let ready = feed.pools().all(|pool| pool.ready().is_ok());
    match ready {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
    }
}
