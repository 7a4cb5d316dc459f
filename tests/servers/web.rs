//! What shows a pool, and what takes a lease for a request, over a server's connections.

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use bb8_postgres::PostgresConnectionManager;
use leasepool::web::{AgentSource, LeaseLayer};
use leasepool::{Agent, Awaited, Lease, status};
use postgres::NoTls;
use tower::ServiceExt;

use crate::common::{a_server_awaited, awaited};

type Postgres = Awaited<PostgresConnectionManager<NoTls>>;

async fn who(lease: Lease<Postgres>) -> String {
    let row = lease
        .query_one("SELECT $1::text", &[&Lease::agent(&lease)])
        .await
        .unwrap();
    row.get(0)
}

async fn sum(agent: Agent<Postgres>) -> Result<Json<i32>, leasepool::Error> {
    let lease = agent.lease_async().await?;
    let row = lease.query_one("SELECT 1 + 1", &[]).await.unwrap();
    Ok(Json(row.get(0)))
}

async fn text(app: &Router, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extractors_and_the_status_page() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let pool = awaited(&server.url(), 2)
        .lease_timeout(std::time::Duration::from_millis(500))
        .build()
        .unwrap();
    let layer = LeaseLayer::new(pool.clone(), AgentSource::segment(1));
    let app = Router::new()
        .route("/who/{agent}", get(who))
        .route("/sum/{agent}", get(sum))
        .layer(layer)
        .nest("/status", status::Page::new(&pool).public());
    assert_eq!(
        text(&app, "/who/alice").await,
        (StatusCode::OK, "alice".to_owned())
    );
    assert_eq!(
        text(&app, "/sum/bob").await,
        (StatusCode::OK, "2".to_owned())
    );
    let (_, json) = text(&app, "/status/status.json").await;
    assert!(json.contains("\"name\":\"awaited\""), "{json}");
    assert!(json.contains("\"descriptor_ceiling\":2"), "{json}");
    let (_, metrics) = text(&app, "/status/metrics").await;
    assert!(
        metrics.contains("leasepool_discards_total{pool=\"awaited\",cause=\"probe\"} 0"),
        "{metrics}"
    );
    assert!(metrics.contains("leasepool_leases_total"), "{metrics}");
    // Without the server, the answer asks to come again.
    tokio::task::spawn_blocking(move || drop(server))
        .await
        .unwrap();
    let (status, body) = text(&app, "/sum/carol").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
}
