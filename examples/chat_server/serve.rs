//! HTTP/1 for the clients that the listener lets in, with limits for the slow.
//! It knows no routes.

use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use crate::limit::Limited;

/// How long a client may take to send the head of a request, and how long a connection may be idle between two. One that
/// takes longer gives its place to others.
const HEAD: Duration = Duration::from_secs(5);

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
        let connection = http.serve_connection(TokioIo::new(client), service);
        let connection = under_way.watch(connection);
        // A client that breaks the protocol, or is too slow, is its own fault.
        tokio::spawn(async { drop(connection.await) });
    }
    drop(listener);
    under_way.shutdown().await;
}
