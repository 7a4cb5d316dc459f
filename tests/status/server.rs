//! An application with a status page, and a small client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use leasepool::Pool;
use leasepool::status::{self, Agents, Places};
use tokio::sync::oneshot;

/// Longer than anything may take; only a failing test waits for so long.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// On any port, or on the one of a server that is no more.
    pub(crate) fn start(pool: &Pool, port: u16) -> Server {
        let page = status::Page::new(pool);
        let page = page.agents(Agents::Show).places(Places::Show);
        Server::of(page, status::Page::public, port)
    }

    /// Of a page that `router` makes a router of.
    pub(crate) fn of(
        page: status::Page,
        router: impl FnOnce(status::Page) -> Router + Send + 'static,
        port: u16,
    ) -> Server {
        let listener = bind(port);
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (shut, shutdown) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let shutdown = async { _ = shutdown.await };
                let router = Router::new().nest_service("/status", router(page.until(shutdown)));
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let stopped = async {
                    let _ = stopped.await;
                    let _ = shut.send(());
                };
                axum::serve(listener, router)
                    .with_graceful_shutdown(stopped)
                    .await
                    .unwrap();
            });
        });
        Server {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Stops gracefully: the streams of the clients that watch must end with it.
    pub(crate) fn stop(mut self) {
        let start = Instant::now();
        let _ = self.stop.take().unwrap().send(());
        self.thread.take().unwrap().join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    pub(crate) fn get(&self, path: &str) -> (String, String) {
        let mut answer = String::new();
        self.ask(path).read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/status/status.json").1).unwrap()
    }

    /// The next events, as they come.
    pub(crate) fn events(&self) -> impl Iterator<Item = serde_json::Value> + use<> {
        let lines = BufReader::new(self.ask("/status/events")).lines();
        lines
            .map_while(Result::ok)
            .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
    }

    pub(crate) fn ask(&self, path: &str) -> TcpStream {
        self.ask_with(path, "")
    }

    /// `more`: more lines for the head.
    pub(crate) fn ask_with(&self, path: &str, more: &str) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(LONG)).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{more}\r\n");
        connection.write_all(request.as_bytes()).unwrap();
        connection
    }
}

fn bind(port: u16) -> TcpListener {
    // std sets SO_REUSEADDR, so that a port that was just left can be taken again.
    TcpListener::bind(("127.0.0.1", port)).unwrap()
}
