//! HTTP/1 for the clients that the listener lets in, with limits for the slow.
//! It knows no routes.

use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use crate::limit::Limited;

/// How long a client may take to send the head of a request, and how long a connection may be idle between two. One that
/// takes longer gives its place to others.
const HEAD: Duration = Duration::from_secs(5);

/// How long an answer may wait for a client that reads nothing.
const WRITE: Duration = Duration::from_secs(5);

/// Serves until `stop`, and then until the requests that are under way have ended.
pub(crate) async fn serve(mut listener: Limited, router: Router, stop: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let under_way = GracefulShutdown::new();
    loop {
        let client = tokio::select! {
            (client, _) = listener.accept() => client,
            () = stop.cancelled() => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let mut client = TimeoutStream::new(client);
        client.set_write_timeout(Some(WRITE));
        let connection = http.serve_connection(TokioIo::new(Box::pin(client)), service);
        let connection = under_way.watch(connection);
        // A client that breaks the protocol, or is too slow, is its own fault.
        tokio::spawn(async { drop(connection.await) });
    }
    drop(listener);
    under_way.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    use axum::routing::get;
    use tokio::net::TcpListener;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

    /// It had its place for as long as it liked.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_reads_nothing_gives_its_place_to_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        // More than sockets keep.
        let much = get(|| async { vec![b'x'; 64 << 20] });
        let router = Router::new().route("/", much);
        let serving = tokio::spawn(serve(Limited::new(listener, 1, 1), router, stop.clone()));
        let asking = tokio::task::spawn_blocking(move || {
            let mut idle = TcpStream::connect(address).unwrap();
            idle.write_all(REQUEST).unwrap();
            let begun = Instant::now();
            loop {
                // Sent away while the other one has the only place.
                let mut next = TcpStream::connect(address).unwrap();
                let mut answer = Vec::new();
                let asked = next.write_all(REQUEST);
                if asked.is_ok() && next.read_to_end(&mut answer).is_ok() && !answer.is_empty() {
                    drop(idle);
                    return (begun.elapsed(), answer);
                }
                assert!(begun.elapsed() < WRITE * 6, "it keeps its place");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let (took, answer) = asking.await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
        assert!(answer.len() > 64 << 20);
        assert!(took >= WRITE, "{took:?}");
        stop.cancel();
        serving.await.unwrap();
    }
}
