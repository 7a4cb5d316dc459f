//! The same application in axum and in actix-web, each on a thread of its own.

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use actix_web::HttpMessage;
use leasepool::web::{Agent, AgentSource, Existing, LeaseData, LeaseLayer, RequestParts};
use leasepool::{Error, Lease, Pool};
use serde::Deserialize;
use tokio::sync::oneshot;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Framework {
    Axum,
    Actix,
}

pub(crate) const FRAMEWORKS: [Framework; 2] = [Framework::Axum, Framework::Actix];

/// How the application finds its agents.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Named {
    BySegment,
    ByHeader,
    ByExtension,
    ByFunction,
    /// Every request has the same.
    Constantly,
    /// The layer, or the data, is missing.
    NotAtAll,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Who has logged in, as another layer says.
#[derive(Clone)]
struct User(String);

#[derive(Deserialize)]
struct Size {
    n: u64,
}

impl Server {
    pub(crate) fn start(framework: Framework, pool: &Pool, named: Named) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let pool = pool.clone();
        let thread = std::thread::spawn(move || match framework {
            Framework::Axum => serve_axum(listener, pool, named, stopped),
            Framework::Actix => serve_actix(listener, pool, named, stopped),
        });
        Server {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Lets requests finish, and waits for that.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

fn source<R: RequestParts + 'static>(
    named: Named,
    query: impl Fn(&R) -> Option<String> + Send + Sync + 'static,
) -> Option<AgentSource<R>> {
    match named {
        Named::BySegment => Some(AgentSource::segment(1)),
        Named::ByHeader => Some(AgentSource::header("x-agent")),
        Named::ByExtension => Some(AgentSource::extension(|user: &User| user.0.clone())),
        Named::ByFunction => Some(AgentSource::from_fn(query)),
        Named::Constantly => Some(AgentSource::constant(7)),
        Named::NotAtAll => None,
    }
}

fn visit(lease: &Lease) -> Result<String, Error> {
    let agent = Lease::agent(lease);
    lease.execute("INSERT INTO visit VALUES (?1)", [agent])?;
    let visits: i64 = lease.query_row(
        "SELECT count(*) FROM visit WHERE agent = ?1",
        [agent],
        |row| row.get(0),
    )?;
    Ok(format!("{agent} {visits}"))
}

/// Chunks at a steady pace, from a body that has a lease inside.
fn stream(
    lease: Lease,
    n: u64,
) -> impl futures_core::Stream<Item = Result<bytes::Bytes, std::io::Error>> {
    async_stream::stream! {
        for i in 0..n {
            let found: i64 = lease.query_row("SELECT ?1", [i as i64], |row| row.get(0)).unwrap();
            yield Ok(bytes::Bytes::from(format!("chunk {found}\n")));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn wrong_sql(lease: &Lease) -> Result<String, Error> {
    lease.execute("SELECT secret_column FROM visit", ())?;
    Ok(String::new())
}

async fn work(agent: Agent) -> Result<String, Error> {
    let sum: i64 = agent
        .run(|conn| conn.query_row("SELECT 1 + 1", [], |row| row.get(0)))
        .await?;
    Ok(format!("{} {sum}", agent.id()?))
}

async fn visit_existing(Existing(lease): Existing<Lease>) -> Result<String, Error> {
    visit(&lease)
}

async fn work_existing(Existing(agent): Existing<Agent>) -> Result<String, Error> {
    work(agent).await
}

async fn write(agent: Agent) -> Result<String, Error> {
    let id = agent.id()?.to_owned();
    agent
        .write_async(move |tx| {
            tx.execute("INSERT INTO visit VALUES (?1)", [&id])?;
            let count = "SELECT count(*) FROM visit WHERE agent = ?1";
            let visits: i64 = tx.query_row(count, [&id], |row| row.get(0))?;
            Ok(format!("{id} {visits}"))
        })
        .await
}

async fn read(agent: Agent) -> Result<String, Error> {
    let id = agent.id()?.to_owned();
    agent
        .read_async(move |tx| {
            let count = "SELECT count(*) FROM visit WHERE agent = ?1";
            let visits: i64 = tx.query_row(count, [&id], |row| row.get(0))?;
            Ok(format!("{id} {visits}"))
        })
        .await
}

/// Ways to fail in a write, and one more: to panic.
pub(crate) const WRONG: [&str; 3] = [
    "INSERT INTO visit VALUES (secret_column)",
    "COMMIT",
    "INSERT OR ROLLBACK INTO visit VALUES (NULL)",
];

/// Asks not who the agent is, so that the write finds out.
async fn write_wrong(agent: Agent, way: u64) -> Result<String, Error> {
    agent
        .write_async(move |tx| {
            tx.execute("INSERT INTO visit VALUES ('nobody')", [])?;
            match WRONG.get(way as usize) {
                Some(sql) => tx.execute_batch(sql)?,
                None => panic!("the secret of visit"),
            }
            Ok(String::new())
        })
        .await
}

fn serve_axum(listener: TcpListener, pool: Pool, named: Named, stopped: oneshot::Receiver<()>) {
    use axum::Router;
    use axum::body::Body;
    use axum::extract::{Query, Request};
    use axum::middleware::{Next, from_fn};
    use axum::routing::get;

    let query = |parts: &axum::http::request::Parts| Some(parts.uri.query()?.to_owned());
    let mut router = Router::new()
        .route(
            "/agents/{agent}/visit",
            get(|lease: Lease| async move { visit(&lease) }),
        )
        .route(
            "/agents/{agent}/stream",
            get(|lease: Lease, size: Query<Size>| async move {
                Body::from_stream(stream(lease, size.n))
            }),
        )
        .route(
            "/agents/{agent}/wrong",
            get(|lease: Lease| async move { wrong_sql(&lease) }),
        )
        .route("/agents/{agent}/work", get(work))
        .route("/agents/{agent}/write", get(write))
        .route("/agents/{agent}/read", get(read))
        .route(
            "/agents/{agent}/write-wrong",
            get(|agent: Agent, size: Query<Size>| write_wrong(agent, size.n)),
        )
        .route("/agents/{agent}/idle", get(|_: Agent| async { "no lease" }))
        .route("/existing/{agent}/visit", get(visit_existing))
        .route("/existing/{agent}/work", get(work_existing));
    if let Some(source) = source(named, query) {
        router = router.layer(LeaseLayer::new(pool, source));
    }
    let router = router.layer(from_fn(|mut request: Request, next: Next| async move {
        let user = request.headers().get("x-user");
        if let Some(user) = user.and_then(|user| user.to_str().ok()).map(str::to_owned) {
            request.extensions_mut().insert(User(user));
        }
        next.run(request).await
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let stopped = async { _ = stopped.await };
        axum::serve(listener, router)
            .with_graceful_shutdown(stopped)
            .await
            .unwrap();
    });
}

fn serve_actix(listener: TcpListener, pool: Pool, named: Named, stopped: oneshot::Receiver<()>) {
    use actix_web::dev::Service;
    use actix_web::web::{Query, get};
    use actix_web::{App, HttpRequest, HttpResponse, HttpServer};

    let query = |request: &HttpRequest| {
        let query = request.query_string();
        (!query.is_empty()).then(|| query.to_owned())
    };
    let leases = source(named, query).map(|source| LeaseData::new(pool, source));
    actix_web::rt::System::new().block_on(async move {
        let server = HttpServer::new(move || {
            let mut app = App::new()
                .route(
                    "/agents/{agent}/visit",
                    get().to(|lease: Lease| async move { visit(&lease) }),
                )
                .route(
                    "/agents/{agent}/stream",
                    get().to(|lease: Lease, size: Query<Size>| async move {
                        HttpResponse::Ok().streaming(stream(lease, size.n))
                    }),
                )
                .route(
                    "/agents/{agent}/wrong",
                    get().to(|lease: Lease| async move { wrong_sql(&lease) }),
                )
                .route("/agents/{agent}/work", get().to(work))
                .route("/agents/{agent}/write", get().to(write))
                .route("/agents/{agent}/read", get().to(read))
                .route(
                    "/agents/{agent}/write-wrong",
                    get().to(|agent: Agent, size: Query<Size>| write_wrong(agent, size.n)),
                )
                .route(
                    "/agents/{agent}/idle",
                    get().to(|_: Agent| async { "no lease" }),
                )
                .route("/existing/{agent}/visit", get().to(visit_existing))
                .route("/existing/{agent}/work", get().to(work_existing));
            if let Some(leases) = &leases {
                app = app.app_data(leases.clone());
            }
            app.wrap_fn(|request, service| {
                let user = request.headers().get("x-user");
                if let Some(user) = user.and_then(|user| user.to_str().ok()).map(str::to_owned) {
                    request.extensions_mut().insert(User(user));
                }
                service.call(request)
            })
        })
        .workers(2)
        .disable_signals()
        .shutdown_timeout(20)
        .listen(listener)
        .unwrap()
        .run();
        let handle = server.handle();
        let stopping = actix_web::rt::spawn(async move {
            let _ = stopped.await;
            handle.stop(true).await;
        });
        server.await.unwrap();
        stopping.await.unwrap();
    });
}
