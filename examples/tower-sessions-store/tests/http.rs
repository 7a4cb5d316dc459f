//! The store behind tower-sessions' layer, in an axum app on a socket: what a visitor with a cookie sees.
//! It looks into the table only to see which rows are left.

mod support;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;

use axum::extract::Path as Segments;
use axum::http::{Request, StatusCode, header};
use axum::routing::{get, post};
use axum::{Router, body::Body};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use leasepool::Pool;
use leasepool_tower_sessions_store::LeasepoolStore;
use support::{in_time, rows};
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower_sessions::session::{Error, Id};
use tower_sessions::{Expiry, Session, SessionManagerLayer};

type Answer = Result<String, StatusCode>;

fn failed(_: Error) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

async fn read(session: Session, Segments(key): Segments<String>) -> Answer {
    let value: Option<String> = session.get(&key).await.map_err(failed)?;
    Ok(value.unwrap_or_else(|| "none".to_owned()))
}

async fn write(session: Session, Segments((key, value)): Segments<(String, String)>) -> Answer {
    session.insert(&key, &value).await.map_err(failed)?;
    Ok(value)
}

async fn remove(session: Session, Segments(key): Segments<String>) -> Answer {
    let old: Option<String> = session.remove(&key).await.map_err(failed)?;
    Ok(old.unwrap_or_else(|| "none".to_owned()))
}

async fn count(session: Session) -> Answer {
    let count = session.get::<u32>("count").await.map_err(failed)?;
    let count = count.unwrap_or(0) + 1;
    session.insert("count", count).await.map_err(failed)?;
    Ok(count.to_string())
}

async fn cycle(session: Session) -> Answer {
    session.cycle_id().await.map_err(failed)?;
    Ok(String::new())
}

async fn flush(session: Session) -> Answer {
    session.flush().await.map_err(failed)?;
    Ok(String::new())
}

async fn expire(session: Session) -> Answer {
    let an_hour_ago = OffsetDateTime::now_utc() - Duration::hours(1);
    session.set_expiry(Some(Expiry::AtDateTime(an_hour_ago)));
    Ok(String::new())
}

fn app(store: LeasepoolStore) -> Router {
    let layer = SessionManagerLayer::new(store)
        .with_secure(false)
        .with_expiry(Expiry::OnInactivity(Duration::hours(1)));
    Router::new()
        .route("/read/{key}", get(read))
        .route("/write/{key}/{value}", post(write))
        .route("/remove/{key}", post(remove))
        .route("/count", post(count))
        .route("/cycle", post(cycle))
        .route("/flush", post(flush))
        .route("/expire", post(expire))
        .layer(layer)
}

/// The app on a socket, with its pool.
struct Server {
    pool: Pool,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Server {
    async fn start(path: &Path) -> Self {
        let pool = support::pool(path);
        let app = app(support::store(&pool).await);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            let serve = axum::serve(listener, app).with_graceful_shutdown(async {
                let _ = stopped.await;
            });
            serve.await.unwrap();
        });
        Server {
            pool,
            address,
            stop,
            served,
        }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap();
        self.pool.close_async().await.unwrap();
    }

    fn visitor(&self) -> Visitor {
        Visitor {
            address: self.address,
            client: Client::builder(TokioExecutor::new()).build_http(),
            cookie: None,
        }
    }
}

/// A browser that keeps one cookie, also past its date.
struct Visitor {
    address: SocketAddr,
    client: Client<HttpConnector, Body>,
    cookie: Option<String>,
}

impl Visitor {
    async fn send(&mut self, method: &str, path: &str) -> (StatusCode, String) {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        if let Some(cookie) = &self.cookie {
            request = request.header(header::COOKIE, format!("id={cookie}"));
        }
        let request = request.body(Body::empty()).unwrap();
        let response = self.client.request(request).await.unwrap();
        if let Some(cookie) = response.headers().get(header::SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
            assert_eq!(name, "id");
            self.cookie = (!value.is_empty()).then(|| value.to_owned());
        }
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&mut self, path: &str) -> String {
        let (status, body) = self.send("GET", path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        body
    }

    async fn post(&mut self, path: &str) -> String {
        let (status, body) = self.send("POST", path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        body
    }

    fn cookie(&self) -> String {
        self.cookie.clone().expect("a cookie")
    }
}

/// Serves one test.
async fn serve<F: Future<Output = Server>>(test: impl FnOnce(Server) -> F) {
    let folder = tempfile::tempdir().unwrap();
    in_time(async {
        let server = Server::start(&folder.path().join("sessions.db")).await;
        test(server).await.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_visitor_who_leaves_nothing_gets_no_cookie_and_no_row() {
    serve(|server| async {
        let mut ada = server.visitor();
        assert_eq!(ada.get("/read/name").await, "none");
        assert_eq!(ada.cookie, None);
        assert_eq!(rows(&server.pool), 0);
        drop(ada);
        server
    })
    .await;
}

#[tokio::test]
async fn a_value_is_kept_for_the_visitor_with_the_cookie_alone() {
    serve(|server| async {
        let (mut ada, mut eve) = (server.visitor(), server.visitor());
        ada.post("/write/name/ada").await;
        let cookie = ada.cookie();
        assert_eq!(ada.get("/read/name").await, "ada");
        assert_eq!(ada.cookie(), cookie);
        assert_eq!(eve.get("/read/name").await, "none");
        assert_eq!(rows(&server.pool), 1);
        server
    })
    .await;
}

#[tokio::test]
async fn values_are_changed_and_removed_in_the_same_session() {
    serve(|server| async {
        let mut ada = server.visitor();
        ada.post("/write/name/ada").await;
        ada.post("/write/town/london").await;
        let cookie = ada.cookie();
        ada.post("/write/name/countess").await;
        assert_eq!(ada.post("/remove/town").await, "london");
        assert_eq!(ada.get("/read/name").await, "countess");
        assert_eq!(ada.get("/read/town").await, "none");
        assert_eq!(ada.cookie(), cookie);
        assert_eq!(rows(&server.pool), 1);
        server
    })
    .await;
}

#[tokio::test]
async fn a_new_id_keeps_the_values_and_ends_the_old_cookie() {
    serve(|server| async {
        let (mut ada, mut eve) = (server.visitor(), server.visitor());
        ada.post("/write/name/ada").await;
        eve.cookie = ada.cookie.clone();
        ada.post("/cycle").await;
        assert_ne!(ada.cookie, eve.cookie);
        assert_eq!(ada.get("/read/name").await, "ada");
        assert_eq!(eve.get("/read/name").await, "none");
        assert_eq!(rows(&server.pool), 1);
        server
    })
    .await;
}

#[tokio::test]
async fn a_flushed_session_is_gone_with_its_cookie_and_its_row() {
    serve(|server| async {
        let (mut ada, mut eve) = (server.visitor(), server.visitor());
        ada.post("/write/name/ada").await;
        eve.cookie = ada.cookie.clone();
        ada.post("/flush").await;
        assert_eq!(ada.cookie, None);
        assert_eq!(rows(&server.pool), 0);
        assert_eq!(eve.get("/read/name").await, "none");
        server
    })
    .await;
}

#[tokio::test]
async fn an_expired_session_is_not_served_and_its_id_not_used_again() {
    serve(|server| async {
        let mut ada = server.visitor();
        ada.post("/write/name/ada").await;
        ada.post("/expire").await;
        let old = ada.cookie();
        assert_eq!(rows(&server.pool), 1);
        assert_eq!(ada.get("/read/name").await, "none");
        ada.cookie = Some(old.clone());
        assert_eq!(ada.post("/count").await, "1");
        assert_ne!(ada.cookie(), old);
        server
    })
    .await;
}

#[tokio::test]
async fn an_id_that_a_visitor_makes_up_becomes_no_session() {
    serve(|server| async {
        let mut eve = server.visitor();
        let made_up = Id::default().to_string();
        eve.cookie = Some(made_up.clone());
        eve.post("/write/name/eve").await;
        assert_ne!(eve.cookie(), made_up);
        eve.cookie = Some(made_up);
        assert_eq!(eve.get("/read/name").await, "none");
        server
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visitors_in_parallel_keep_apart() {
    serve(|server| async {
        let visits = (0..8).map(|_| {
            let mut visitor = server.visitor();
            tokio::spawn(async move {
                for i in 1..=25 {
                    assert_eq!(visitor.post("/count").await, i.to_string());
                }
                visitor.cookie()
            })
        });
        let visits: Vec<_> = visits.collect();
        let mut cookies = Vec::new();
        for visit in visits {
            cookies.push(visit.await.unwrap());
        }
        cookies.sort();
        cookies.dedup();
        assert_eq!(cookies.len(), 8);
        assert_eq!(rows(&server.pool), 8);
        server
    })
    .await;
}

#[tokio::test]
async fn sessions_outlive_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.db");
    in_time(async {
        let server = Server::start(&path).await;
        let mut ada = server.visitor();
        ada.post("/write/name/ada").await;
        let cookie = ada.cookie();
        drop(ada);
        server.stop().await;

        let server = Server::start(&path).await;
        let mut ada = server.visitor();
        ada.cookie = Some(cookie.clone());
        assert_eq!(ada.get("/read/name").await, "ada");
        ada.post("/write/name/countess").await;
        assert_eq!(ada.cookie(), cookie);
        assert_eq!(ada.get("/read/name").await, "countess");
        drop(ada);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_store_that_fails_is_an_error_of_the_server_and_not_an_empty_session() {
    serve(|server| async {
        let mut ada = server.visitor();
        ada.post("/write/name/ada").await;
        let cookie = ada.cookie();
        let rename = "ALTER TABLE tower_sessions RENAME TO away";
        server
            .pool
            .anonymous()
            .execute_async(rename, ())
            .await
            .unwrap();
        let (status, _) = ada.send("GET", "/read/name").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(ada.cookie(), cookie);
        let back = "ALTER TABLE away RENAME TO tower_sessions";
        server
            .pool
            .anonymous()
            .execute_async(back, ())
            .await
            .unwrap();
        assert_eq!(ada.get("/read/name").await, "ada");
        server
    })
    .await;
}
